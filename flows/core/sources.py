"""Check and expand `data.source`, the path that images are read from."""

from pathlib import Path


def source_path(text: str) -> Path:
    """Return the path, with `~` and `~name` replaced by a home folder.  Raises ValueError if that is impossible.

    The path need not exist.
    """
    if not text.strip() or "\0" in text:
        raise ValueError(f"must name a folder or a file, or be null, got {text!r}")
    if "://" in text:
        raise ValueError(f"must name a folder or a file of this machine, got {text!r}; download the images first")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text!r} begins with a user who has no home folder; name the folder itself") from error


def checked_source(text: str) -> str:
    """Return the text unchanged.  Raises ValueError if `source_path` does."""
    source_path(text)
    return text
