"""`data.source`: where images are read from."""

from pathlib import Path


def source_path(text: str) -> Path:
    """Return the path, `~` and `~name` replaced by a home folder.  Raises ValueError for text that is no path.

    Whether it leads anywhere is found when it is read.
    """
    if not text.strip() or "\0" in text:
        raise ValueError(f"must name a folder or a file, or be null, got {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{text!r} begins with a user who has no home folder; name the folder itself") from error


def checked_source(text: str) -> str:
    """Return the text itself if it is a path.  Raises ValueError."""
    source_path(text)
    return text
