"""What commands share: the folder, MODEL, --json, params.yaml, and options that replace its parameters."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from flows.core import layout
from flows.core.errors import Exit, UserError

if TYPE_CHECKING:
    from flows.contract.findings import Verdict
    from flows.core.model import TrainedModel
    from flows.core.params import Params, Section
    from flows.registry.versions import Version

ROOT = Path()
"""The project: the current folder."""
MODEL_HELP = "A model folder, a version (vdm@v1.2.0) or `champion`."
ModelArgument = Annotated[str | None, typer.Argument(help=MODEL_HELP, show_default="models/vdm")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")]
FIT_HELP = (
    "Change pictures to what the model takes: the middle in its size, gray or RGB, and shades to its levels. A warning"
    " says what was changed."
)
FitOption = Annotated[bool, typer.Option("--fit", help=FIT_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; see docs/json.md.")]
SectionType = TypeVar("SectionType", bound="Section")


def parameters() -> "Params":
    """Return params.yaml of the current folder.  Raises UserError (exit 2) that names file and key."""
    from flows.core.params_file import read_params  # 0.1 s, which `--help` does not need

    return read_params(layout.PARAMS)


def override(section: SectionType, values: dict[str, Any]) -> SectionType:
    """Return the section with some values replaced by options.  Raises UserError (exit 2) that names the option.

    The option --device names one device, so it also sets num_devices to 1.
    """
    from pydantic import ValidationError

    from flows.core.params_file import explain

    replaced = section.model_dump()
    if "device" in values and "num_devices" in replaced:
        replaced["num_devices"] = 1
    try:
        return type(section).model_validate(replaced | values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        if first["type"] == "extra_forbidden":
            other = {"Evaluate": "ode", "Ode": "vlb"}.get(type(section).__name__)
            raise UserError(f"{option} needs --protocol {other}", Exit.USAGE) from error
        raise UserError(f"{option}{explain(first)}", Exit.USAGE) from error


def verdict() -> "Verdict":
    """Return what the contract found of data/images.  Raises UserError (exit 5) before `vdmctl validate`."""
    from flows.contract.findings import Verdict
    from flows.core.documents import read

    return read(Verdict, layout.VALIDATION, "run `vdmctl validate`")


def version_of(model: str) -> "Version | None":
    """Return the version that the text names, as `champion` does; None for the path of a folder, as `./champion`."""
    from flows.registry.versions import REFERENCE, open_registry

    return open_registry(ROOT).resolve(model) if REFERENCE.fullmatch(model) else None


def named_model(model: str | None, device: str = "cpu") -> "TrainedModel":
    """Return the model that the text names, by default models/vdm, opened on the device.  A version is fetched.

    Raises UserError: exit 5 if the folder or the version is missing or damaged, 2 for a device that is missing.
    """
    from flows.core.device import find_device  # torch takes a second
    from flows.core.model import open_model

    return open_model(model_folder(model), find_device(device), model)


def model_folder(model: str | None) -> Path:
    """Return the folder of a model, by default models/vdm.  A version is fetched.

    Raises UserError (exit 5) if the folder or the version is missing.
    """
    if model is None:
        if not layout.REGISTERED.is_dir():
            raise UserError(f"{layout.REGISTERED}: no model yet; `dvc repro` trains one", Exit.MISSING)
        return layout.REGISTERED
    if version := version_of(model):
        from flows.registry.storage import fetch

        return fetch(ROOT, version)
    if not Path(model).is_dir():
        reason = "no such folder, and not a version such as vdm@v1.2.0, nor `champion`"
        raise UserError(f"{model}: {reason}; `vdmctl models` lists the versions", Exit.MISSING)
    return Path(model)
