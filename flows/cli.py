"""The entry point of vdmctl: set signal handlers, open the streams, run a command, turn errors into exit codes.

The commands are in `flows.commands`.  They are imported after the signal handlers are set, since importing takes time.
"""

import multiprocessing
import os
import re
import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from flows.core.errors import Exit, NetworkError, UserError, of_file
from flows.process.ending import STOP, STOPPED, fail, finish, stop_at_once
from flows.process.environment import settle
from flows.process.inputs import unchanged_inputs
from flows.process.streams import open_streams, start_logging
from vdm.errors import TrainingDiverged


def main() -> None:
    """Run the console script with the arguments of this process."""
    for number in STOP:
        signal.signal(number, stop_at_once)
    settle(os.environ)
    # No process is forked.  But since Python 3.14 the default method gives the lock of tqdm's progress bars a helper
    # process, which prints a warning when this one is stopped.
    multiprocessing.set_start_method("fork", force=True)
    open_streams()
    try:
        code = run(sys.argv[1:])
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = Exit.BUG
    finally:
        for number in STOP:  # only the shutdown of Python is left, which takes time
            signal.signal(number, signal.SIG_IGN)
    leave(code)


def leave(code: int) -> NoReturn:
    """Exit with the code.  Skip Python's shutdown after an error in a process group.

    Threads of gloo still wait for those processes.  If one of them calls Python during the shutdown, it aborts this
    process, and the exit code is lost.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run vdmctl and return its exit code.  A UserError becomes one line on stderr, a bug keeps its traceback."""
    start_logging()
    try:
        require_own_code()
        refuse_blank(arguments)
        with unchanged_inputs():
            call(arguments)
        finish()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return fail(STOPPED, Exit.RESUMABLE)
    except UserError as error:
        return fail(str(error), error.code, network=isinstance(error, NetworkError))
    except OSError as error:
        note = "; nothing else failed" if error.filename == "standard output" else ""  # results are printed last
        return fail(f"{of_file(error)}{note}", Exit.MISSING)
    except TrainingDiverged as error:
        return fail(str(error), Exit.USAGE)
    except (MemoryError, RuntimeError) as error:
        reason = lack_of_memory(error)
        if not reason:
            raise
        return fail(f"{reason}; lower the batch size of this stage, or free memory, and run again", Exit.USAGE)
    finally:
        with suppress(OSError):  # reported above, or less important than the error reported above
            sys.stdout.flush()
    return Exit.DONE


def lack_of_memory(error: MemoryError | RuntimeError) -> str:
    """Return what the error says about memory that ran out, on a GPU or a CPU; "" for any other error."""
    text = str(error)
    if isinstance(error, MemoryError):
        return text or "not enough memory"
    if type(error).__name__ != "OutOfMemoryError":  # of torch, which `vdmctl --help` must not load
        text = text.partition("DefaultCPUAllocator: ")[2]  # as under `ulimit -v`
    return text.partition(". ")[0]


def require_own_code() -> None:
    """Raise UserError (exit 2) if a DVC stage runs code from another folder: DVC records this folder's digests."""
    own = Path("flows", "cli.py")
    if "DVC_STAGE" in os.environ and own.is_file() and not own.samefile(__file__):
        reason = f"the stage runs the code in {Path(__file__).parents[1]} instead of that in {Path.cwd()}"
        advice = "activate the environment that was made in this folder, or unset PYTHONSAFEPATH"
        raise UserError(f"{reason}; {advice}", Exit.USAGE)


def refuse_blank(arguments: list[str]) -> None:
    """Raise UserError (exit 2) for an argument, or an option's value after `=`, that is blank or `-`.

    `-` would be taken as the name of a file.  A blank one would mean the default or the current folder, as in
    `vdmctl promote "$VERSION"` with an unset variable.
    """
    for number, argument in enumerate(arguments, 1):
        place = f"argument {number} of `vdmctl {shlex.join(arguments)}`"
        if re.fullmatch(r"(--[\w-]+=)?-", argument):
            raise UserError(f"{place} is -, and no command reads or writes streams; name a file, or ./-", Exit.USAGE)
        if re.fullmatch(r"(--[\w-]+=)?\s*", argument):
            raise UserError(f"{place} is empty, perhaps from a variable that is not set", Exit.USAGE)


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
