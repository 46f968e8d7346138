"""The tasks of a run: Prefect's, which are called like their functions.

They are called, not submitted: a submitted task would not be stopped when its run is cancelled.
"""

from collections.abc import Callable
from typing import Any, Generic, ParamSpec

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE

from flows.core.errors import Exit, NetworkError, UserError

P = ParamSpec("P")
STAGE = "stage"
"""The tag of the tasks that are stages."""


class RunTask(Generic[P]):
    """A task of a run.  Its call returns the task's result, and raises what the task raised."""

    def __init__(self, task: Task[P, Any], words: str) -> None:
        """Name what the task does, as `stage evaluate`, for the error of one that took too long."""
        self.task, self.words = task, words

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run the task.  Raises UserError (exit 1) if it took too long."""
        state: State[Any] = self.task(*args, return_state=True, **kwargs)
        if state.name == "TimedOut":  # Prefect's error does not name the task
            raise UserError(f"{self.words} took too long, so it was ended: {state.message}", Exit.BUG)
        return state.result()


def step(name: str, hours: float) -> Callable[[Callable[P, Any]], RunTask[P]]:
    """Make a function a task of this name, which is ended after so many hours."""

    def decorate(function: Callable[P, Any]) -> RunTask[P]:
        made = task(name=name, task_run_name=name, cache_policy=NO_CACHE, timeout_seconds=3600 * hours)
        return RunTask(made(function), name)

    return decorate


def step_over_network(name: str, hours: float = 6) -> Callable[[Callable[P, Any]], RunTask[P]]:
    """Make a function a task that is run again, twice at most, if the network fails."""

    def decorate(function: Callable[P, Any]) -> RunTask[P]:
        made = step(name, hours)(function)
        retried = made.task.with_options(retries=2, retry_condition_fn=is_network, retry_delay_seconds=[5, 60])
        return RunTask(retried, name)

    return decorate


def is_network(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether the task failed because of the network, so that a retry may help."""
    return isinstance(state.result(raise_on_failure=False), NetworkError)
