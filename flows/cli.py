"""The entry point of vdmctl: set signal handlers, open the streams, run a command, turn errors into exit codes.

The commands are in `flows.commands`.  They are imported after the signal handlers are set, since importing takes time.
"""

import os
import signal
import sys
from collections.abc import MutableMapping
from contextlib import suppress

from flows.core.errors import Exit, NetworkError, UserError, exit_code
from flows.core.escaping import visible
from flows.process.ending import STOP, STOPPED, fail, finish, stop_at_once


def main() -> None:
    """Run the console script with the arguments of this process."""
    for number in STOP:
        signal.signal(number, stop_at_once)
    share_cores(os.environ)
    from flows.process.streams import open_streams

    open_streams()
    try:
        sys.exit(run(sys.argv[1:]))
    finally:
        for number in STOP:  # only the shutdown of Python is left, which takes time
            signal.signal(number, signal.SIG_IGN)


def share_cores(environment: MutableMapping[str, str]) -> None:
    """Limit how long idle threads of OpenMP wait on a core before they sleep, unless the user chose.

    By default they wait so long that two jobs on the same cores slow each other down many times (docs/results.md).
    OpenMP reads the variables when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "1000")


def run(arguments: list[str]) -> int:
    """Run vdmctl and return its exit code.  A UserError becomes one line on stderr, a bug keeps its traceback."""
    from flows.process.streams import start_logging

    start_logging()
    try:
        call(arguments)
        finish()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return fail(STOPPED, Exit.RESUMABLE)
    except UserError as error:
        return fail(str(error), error.code, network=isinstance(error, NetworkError))
    except OSError as error:
        return fail(f"{visible(error.filename or 'a file')}: {error.strerror or error}", Exit.MISSING)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        return fail(str(error), code)
    finally:
        with suppress(OSError):  # reported above, or less important than the error reported above
            sys.stdout.flush()
    return Exit.DONE


def call(arguments: list[str]) -> None:
    """Call the command that the arguments name.  Raises UserError (exit 2) for wrong usage.

    Calling `app()` would exit with Typer's exit codes.
    """
    import typer

    from flows.commands.vdmctl import app

    try:
        with typer.main.get_command(app).make_context("vdmctl", list(arguments)) as context:
            context.command.invoke(context)
    except typer.Exit:  # after --help
        return
    except typer.TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "vdmctl")
        raise UserError(f"{error.format_message().rstrip('.')}; see `{path} --help`", Exit.USAGE) from error


if __name__ == "__main__":
    main()
