"""The stage `download`: write an image set as arrays, after checking its published checksums."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from flows.core.errors import Exit, UserError
from flows.core.folders import contains
from flows.images.preparing import write_images
from flows.images.store import DESCRIPTION, FEWEST_COMPARED, read_description

if TYPE_CHECKING:
    from flows.core.params import Data

log = logging.getLogger(__name__)


def download(data: "Data", *, out: Path, downloads: Path) -> None:
    """Write the images that the parameters name, and log their origin.

    Raises UserError: exit 2 if that would remove images of the source or add to them, 5 for a relative source that does
    not exist.  Also raises what `write_images` raises.
    """
    source = Path(data.source).expanduser() if data.source is not None else None
    if source and (contains(out, source) or contains(source, out)):
        reason = f"data.source {source} and {out}, which is replaced, must lie apart"
        raise UserError(f"{reason}; move the images to another folder", Exit.USAGE)
    if source and not source.is_absolute() and not source.exists():
        reason = f"data.source: {source} does not exist in {Path.cwd()}"
        raise UserError(f"{reason}; name its absolute path, which runs of the Prefect flow find, too", Exit.MISSING)
    origin = write_images(data, source=source, out=out, downloads=downloads)
    log.info("%s: %s, transforms: %s -> %s", data.name, origin["title"], origin["transforms"], out)
    if (num_test := read_description(out / DESCRIPTION)["num_test"]) < FEWEST_COMPARED:
        needed = f"the stage `sample` compares with {FEWEST_COMPARED} or more; add some, or raise data.test_fraction"
        log.warning("%s: only %d test images; %s", out, num_test, needed)
