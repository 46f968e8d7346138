"""Errors that are the user's to mend: one line that says where, what and how to go on, and an exit code."""

from enum import IntEnum

from flows.core.escaping import visible
from vdm.errors import CheckpointError, TrainingDiverged


class Exit(IntEnum):
    """Exit codes of vdmctl."""

    DONE = 0
    BUG = 1
    USAGE = 2
    NOT_PROMOTED = 3
    INVALID_DATA = 4
    MISSING = 5
    BUSY = 6
    RESUMABLE = 75


class UserError(Exception):
    """Something the user can mend; `str(error)` is one line."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(visible(" ".join(message.split())))
        self.code = code

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, Exit]]:
        return type(self), (str(self), self.code)


class NetworkError(UserError):
    """The network or a remote machine failed: trying again may help."""

    def __init__(self, message: str, code: Exit = Exit.MISSING) -> None:
        super().__init__(message, code)


def brief(error: BaseException) -> str:
    """Return what a parser says of damaged bytes, in one line of at most 200 characters."""
    text = " ".join(str(error).split())
    text = text or ("takes too much memory" if isinstance(error, MemoryError) else type(error).__name__)
    return text if len(text) <= 200 else f"{text[:200]}..."


def exit_code(error: Exception) -> Exit | None:
    """Return the exit code of an error that `vdm` raises; None for a bug."""
    match error:
        case CheckpointError():
            return Exit.MISSING
        case TrainingDiverged():
            return Exit.USAGE
    return None
