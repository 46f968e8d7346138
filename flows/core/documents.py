"""Turn JSON from files and from git, and values parsed from YAML, into pydantic models, with errors of one line.

Keys that a model does not name are kept: another version of the pipeline may have written them.
"""

import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flows.core.errors import FileError, brief
from flows.core.files import parse_json, read_bounded

DocumentType = TypeVar("DocumentType", bound=BaseModel)
MOST_BYTES = 2**24
"""The largest document that is read; the parsed document may take fifty times this size."""


def finite_or_none(value: Any) -> Any:
    """Return a number as it is, and None for NaN and infinities, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


FolderOrFileMd5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Figure = Annotated[Number | None, BeforeValidator(finite_or_none)]
"""A number that was computed; None if it is not finite."""


class Document(BaseModel):
    """A base for models that keep unknown keys and check the types of known ones."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, use_attribute_docstrings=True)


def parse(model: type[DocumentType], content: bytes, name: str) -> DocumentType:
    """Parse a JSON document.  Raises FileError (exit 5) that says `name`, the key and what is wrong."""
    try:
        value = parse_json(content)
    except ValueError as error:
        raise FileError(name, f"damaged: {brief(error, 60)}") from error
    return check_value(model, value, name)


def read_document(model: type[DocumentType], path: Path, advice: str = "", most: int = MOST_BYTES) -> DocumentType:
    """Read a JSON document of at most `most` bytes from a file.  Raises FileError (exit 5) that ends with `advice`."""
    try:
        return parse(model, read_bounded(path, most), str(path))
    except (OSError, FileError) as error:
        reason = error.reason if isinstance(error, FileError) else error.strerror or brief(error)
        raise FileError(path, f"{reason}; {advice}" if advice else reason) from error


def check_value(model: type[DocumentType], value: Any, name: str) -> DocumentType:
    """Convert a value to the model.  Raises FileError (exit 5) that says `name`, the key and what is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise FileError(name, f"damaged: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """Return the key of the first error and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    place = ".".join(brief(part, 60) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")  # pydantic's, for what a validator of ours says
    return f"{place}: {brief(reason)}".removeprefix(": ")
