"""The stage `validate`: check the images against the discretization contract."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.validation.inspection import inspect_images, require_success, write_report

if TYPE_CHECKING:
    from flows.core.params import Contract


def validate(contract: "Contract", *, images: Path, out: Path, reference: Path | None = None) -> None:
    """Write the report on `images` into the folder `out`.

    Raises what `inspect_images` and `write_report` raise, and UserError (exit 4), once the report is written, for
    invalid images.
    """
    out.mkdir(parents=True, exist_ok=True)  # fails before the images are read
    inspection = inspect_images(contract, images=images, reference=reference)
    write_report(inspection, out)
    require_success(inspection.report, images, out)
