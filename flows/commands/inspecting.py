"""`vdmctl validate PATH`: images outside the pipeline, as the pipeline would read them."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.core.escaping import visible
from flows.images.preparing import write_images
from flows.images.store import DESCRIPTION
from flows.validation.inspection import inspect_images
from vdm.files import scratch_folder

if TYPE_CHECKING:
    from flows.core.params import Contract, Data

log = logging.getLogger(__name__)


def inspect_path(
    data: "Data", contract: "Contract", *, path: Path, out: Path | None, reference: Path | None
) -> dict[str, Any]:
    """The report on an image set, or on a folder of images with the transforms and the split of `data`.

    `out` is a folder for the report, its site and its picture.  Raises what reading and `inspect_images` raise.
    """
    if out:
        out.mkdir(parents=True, exist_ok=True)  # an error is wanted before the work
    with scratch_folder() as scratch:
        images, report = path, out or scratch / "report"
        # Path.is_file raises where a folder must not be entered; reading the images names the folder.
        if "\0" in str(path) or not os.access(path / DESCRIPTION, os.F_OK):
            images = scratch / "images"
            folder = data.model_copy(update={"name": "image_folder"})
            origin = write_images(folder, source=path, out=images, downloads=scratch / "downloads")
            log.info("%s: transforms: %s", visible(str(path)), origin["transforms"])
        return inspect_images(
            contract,
            images=images,
            out=report / "validation.json",
            data_docs=report / "data_docs",
            picture=report / "validation.png",
            reference=reference,
        )
