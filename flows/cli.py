"""The entry point of vdmctl: set signal handlers, run a command, turn errors into exit codes.

The commands are in `flows.commands`.  They are imported after the signal handlers are set, since importing takes time.
"""

import gc
import multiprocessing
import os
import signal
import sys

from flows.core.errors import Exit, NetworkError, UserError, file_problem
from flows.process.ending import STOP, STOPPED, fail, finish, stop_at_once
from flows.process.groups import settle
from flows.process.inputs import require_unchanged_inputs
from flows.process.lifeline import end_with_starters
from flows.process.streams import reader_has_ended, start_logging
from vdm.errors import TrainingDiverged


def main() -> None:
    """Run the console script with the arguments of this process."""
    gc.set_threshold(50_000)  # Importing makes no garbage, and looking for it takes a quarter of the time of an import.
    for number in STOP:
        signal.signal(number, stop_at_once)
    try:
        settle(os.environ)
        end_with_starters()
        # No process is forked.  But since Python 3.14 the default method gives tqdm's lock a helper process, which
        # prints a warning when this one is stopped.
        multiprocessing.set_start_method("fork", force=True)
        code = run(sys.argv[1:])
    except SystemExit:  # of `stop_at_once`, before `run` began
        code = fail(STOPPED, Exit.RESUMABLE)
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = Exit.BUG
    finish()
    if code is Exit.DONE:
        sys.exit()
    # Python's shutdown would wait for threads, and those of gloo, which wait for other processes, would abort it.
    sys.stderr.flush()
    os._exit(code)


def run(arguments: list[str]) -> Exit:
    """Run vdmctl and return its exit code.  A UserError becomes one line on stderr, a bug keeps its traceback."""
    start_logging()
    try:
        with require_unchanged_inputs():
            call(arguments)
        finish()
        sys.stdout.flush()
    except (KeyboardInterrupt, SystemExit):  # of `stop_at_once`
        return fail(STOPPED, Exit.RESUMABLE)
    except UserError as error:
        return fail(str(error), error.code, network=isinstance(error, NetworkError))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_has_ended():
            return Exit.DONE
        return fail(file_problem(error), Exit.MISSING)
    except TrainingDiverged as error:
        return fail(str(error), Exit.USAGE)
    except (MemoryError, RuntimeError) as error:
        reason = lack_of_memory(error)
        if not reason:
            raise
        return fail(f"{reason}; lower the batch size of this stage, or free memory, and run again", Exit.USAGE)
    return Exit.DONE


def lack_of_memory(error: MemoryError | RuntimeError) -> str:
    """Return what the error says about memory that ran out, on a GPU or a CPU; "" for any other error."""
    text = str(error)
    if isinstance(error, MemoryError):
        return text or "not enough memory"
    if type(error).__name__ != "OutOfMemoryError":  # of torch, which `vdmctl --help` must not load
        text = text.partition("DefaultCPUAllocator: ")[2]
    return text.partition(". ")[0]


def call(arguments: list[str]) -> None:
    """Call the command that the arguments name.  Raises UserError (exit 2) for wrong usage; `app()` would exit."""
    import typer

    from flows.commands.vdmctl import app

    group = typer.main.get_command(app)
    try:
        with group.make_context("vdmctl", list(arguments)) as context:
            context.command.invoke(context)
    except typer.Exit:  # after --help
        return
    except typer.TyperException as error:
        known = [name for name in arguments[:1] if name in group.commands]  # type: ignore[attr-defined]
        see = " ".join(["vdmctl", *known, "--help"])
        reason = error.format_message().rstrip(".").replace("Value error, ", "")  # pydantic's words
        raise UserError(f"{reason}; see `{see}`", Exit.USAGE) from error


if __name__ == "__main__":
    main()
