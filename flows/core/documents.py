"""Documents that are read back from files and from git: JSON and YAML as strict models, errors in one line.

Keys that a model does not name are kept where they may come from another version of the pipeline.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flows.core.errors import Exit, UserError
from flows.core.files import inside, parse_json, read_bounded

Model = TypeVar("Model", bound=BaseModel)
LONGEST_SHOWN = 60
MOST_BYTES = 2**24
"""Of a document: parsed, it may take fifty times its size."""


def relative_path(name: str) -> str:
    """Return a path that leads into a folder, as POSIX writes it.  Raises ValueError for any other."""
    inside(Path(), name)
    if str(PurePosixPath(name)) != name or not name.isprintable():
        raise ValueError("not a path in its shortest form")
    if max(len(part.encode()) for part in name.split("/")) > 255 or len(name.encode()) > 4000:
        raise ValueError("a path that no file system takes")
    return name


RelativePath = Annotated[str, AfterValidator(relative_path)]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
FolderOrFileMd5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Document(BaseModel):
    """An object whose known keys have their types."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


def parse(model: type[Model], content: bytes, name: str) -> Model:
    """Return the document in JSON.  Raises UserError (exit 5) that names it, the key and what is wrong."""
    return checked(model, json_value(content, name), name)


def json_value(content: bytes, name: str) -> Any:
    """Return what a file's JSON says.  Raises UserError (exit 5) with the file's name."""
    if len(content) > MOST_BYTES:
        raise UserError(f"{name}: larger than {MOST_BYTES:,} bytes, the most that is read", Exit.MISSING)
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{name}: damaged: {shown(str(error))}", Exit.MISSING) from error


def read(model: type[Model], path: Path, advice: str = "") -> Model:
    """Return the document in a JSON file.  Raises UserError (exit 5), with the advice after it."""
    try:
        return parse(model, read_bounded(path, MOST_BYTES), str(path))
    except (OSError, UserError) as error:
        reason = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise UserError(f"{reason}{advice and f'; {advice}'}", Exit.MISSING) from error


def checked(model: type[Model], value: Any, name: str) -> Model:
    """Return a value as the model.  Raises UserError (exit 5) that names it, the key and what is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(f"{name}: damaged: {explain(error)}", Exit.MISSING) from error


def explain(error: ValidationError) -> str:
    """Return the key and what is wrong with it, of the first error."""
    first = error.errors(include_url=False)[0]
    place = ".".join(shown(str(part)) for part in first["loc"])
    return f"{place}: {first['msg'][:200]}".removeprefix(": ")


def shown(text: str, longest: int = LONGEST_SHOWN) -> str:
    """Return a text from data for people: cut, and without characters that a terminal obeys."""
    cut = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(character if character.isprintable() else "?" for character in cut)


def as_json(value: Any) -> Any:
    """Return a value read from YAML as JSON can say it.  Raises ValueError for one that it cannot."""
    return parse_json(json.dumps(value))


def require_apart(paths: list[str], name: str) -> None:
    """Raise UserError (exit 5) for a path that is there twice, or is a folder of another."""
    known = set(paths)
    twice = len(known) < len(paths)
    folders = {str(parent) for path in known for parent in PurePosixPath(path).parents}
    if twice or folders & known:
        found = min(folders & known, default="")
        what = f"{shown(found)} is a file and a folder" if found else "a path is there twice"
        raise UserError(f"{name}: damaged: {what}", Exit.MISSING)
