"""validate: is a likelihood of these images comparable?  The contract, its report for machines and for people."""

from pathlib import Path
from typing import TYPE_CHECKING

from flows.validation.inspection import inspect_images, require_success

if TYPE_CHECKING:
    from flows.core.params import Contract


def validate(
    contract: "Contract", *, images: Path, out: Path, data_docs: Path, picture: Path, reference: Path | None = None
) -> None:
    """Write the report of `inspect_images`.

    Raises what that raises, and UserError (exit 4), after writing, when the contract is broken.
    """
    report = inspect_images(contract, images=images, out=out, data_docs=data_docs, picture=picture, reference=reference)
    require_success(report, images, data_docs)
