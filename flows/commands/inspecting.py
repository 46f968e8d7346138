"""Check images outside the pipeline, read as the pipeline reads them, for `vdmctl validate PATH`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.arguments import ROOT
from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.files import scratch_folder
from flows.core.folders import contains
from flows.images.preparing import write_images
from flows.images.store import DESCRIPTION
from flows.registry.lock_file import require_no_outputs
from flows.validation.drift import read_reference
from flows.validation.inspection import inspect_images, write_report
from flows.validation.report import REPORT, Report

if TYPE_CHECKING:
    from flows.core.params import Contract, Data

log = logging.getLogger(__name__)


def inspect_path(data: "Data", contract: "Contract", *, path: Path, out: Path | None, reference: Path | None) -> Report:
    """Validate an image set, or a folder of images with the transforms and the split of `data`; return the report.

    Writes the report, its picture and its site into the folder `out`, if given.  Raises UserError (exit 2) if that lies
    in `path`, or has outputs of the pipeline or the reference.  Also raises what `write_images`, `inspect_images` and
    `write_report` raise.
    """
    if out:
        if contains(path, out):
            raise UserError(f"--out {out} lies in {path}, whose pictures are images of the set", Exit.USAGE)
        require_no_outputs(ROOT, out)
        if reference and contains(out / REPORT, reference / REPORT if reference.is_dir() else reference):
            raise UserError(f"--out {out} would replace --reference {reference}; choose another --out", Exit.USAGE)
        out.mkdir(parents=True, exist_ok=True)  # fails before the images are read
    if reference and not (reference / DESCRIPTION).exists():
        read_reference(reference)  # fails before the images are read
    with scratch_folder() as scratch:
        images = path
        if not (path / DESCRIPTION).exists():
            images = scratch / "images"
            folder = data.model_copy(update={"name": "image_folder"})
            origin = write_images(folder, source=path, out=images, downloads=scratch / "downloads")
            log.info("%s: transforms: %s", visible(str(path)), origin["transforms"])
        inspection = inspect_images(contract, images=images, reference=reference)
        if out:
            write_report(inspection, out)
        return inspection.report
