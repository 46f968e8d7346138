"""validate: check the images against the discretization contract."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.validation.inspection import inspect_images, require_success

if TYPE_CHECKING:
    from flows.core.params import Contract


def validate(contract: "Contract", *, images: Path, out: Path, reference: Path | None = None) -> None:
    """Write the report on `images` into the folder `out`.

    Raises what `inspect_images` raises, and UserError (exit 4), once the report is written, for invalid images.
    """
    require_success(inspect_images(contract, images=images, out=out, reference=reference), images, out)
