"""The solver of the probability-flow ODE: torchdiffeq's, which `vdm.ode` takes as an argument."""

from collections.abc import Callable

from torch import Tensor
from torchdiffeq import odeint

from flows.core.errors import Exit, UserError
from vdm.ode import Solve, State


def dopri5(tolerance: float) -> Solve:
    """Return an adaptive Runge-Kutta 5(4) solver with that absolute and relative tolerance.

    The solver raises UserError (exit 2) if no step is short enough to reach the tolerance.
    """

    def solve(derivative: Callable[[Tensor, State], State], start: State, times: Tensor) -> State:
        try:
            z, change = odeint(derivative, start, times, rtol=tolerance, atol=tolerance, method="dopri5")
        except AssertionError as error:
            reason = f"no step of the ODE reaches ode.tolerance {tolerance:g} ({error})"
            advice = "set a larger tolerance, or check that the model's bound is finite"
            raise UserError(f"{reason}; {advice}", Exit.USAGE) from error
        return z[-1], change[-1]

    return solve
