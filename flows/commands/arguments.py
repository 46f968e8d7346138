"""What commands share: the folder, MODEL, --json, params.yaml, and options that replace its parameters."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from flows.core import layout
from flows.core.errors import Exit, UserError

if TYPE_CHECKING:
    from flows.core.params import Params, Section
    from flows.evaluation.results import SampleMetrics
    from flows.registry.versions import Version

ROOT = Path()
"""The project: the current folder."""
MODEL_HELP = "A model folder, a version (vdm@v1.2.0) or `champion`."
ModelArgument = Annotated[str | None, typer.Argument(help=MODEL_HELP, show_default="models/vdm")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace outputs that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; see docs/json.md.")]
SectionType = TypeVar("SectionType", bound="Section")

log = logging.getLogger(__name__)


def parameters() -> "Params":
    """Return params.yaml of the current folder.  Raises UserError (exit 2) that names file and key."""
    from flows.core.params_file import read_params  # 0.1 s, which `--help` does not need

    return read_params(layout.PARAMS)


def override(section: SectionType, values: dict[str, Any]) -> SectionType:
    """Return the section with some values replaced by options.  Raises UserError (exit 2) that names the option.

    The option --device names one device, so it also sets num_devices to 1.
    """
    from pydantic import ValidationError

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
        raise UserError(f"{option}: {first['msg']}, got {first['input']!r}", Exit.USAGE) from error


def version_of(model: str) -> "Version | None":
    """Return the version that the text names, as `champion` does; None for the path of a folder, as `./champion`."""
    from flows.registry.versions import REFERENCE, resolve

    return resolve(ROOT, model) if REFERENCE.fullmatch(model) else None


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


def sample_metrics(model: str, folder: Path) -> "SampleMetrics | None":
    """Return the quality of the samples of a version, or of the model in a folder; None if it was not measured.

    That of a folder's model is measured on the last samples in the working tree, if this model drew them.
    """
    from flows.core.checkpoint import model_sha256
    from flows.core.documents import read
    from flows.evaluation.results import SampleMetrics

    if version := version_of(model):
        return version.samples
    if not layout.SAMPLE_METRICS.exists():
        return None
    measured = read(SampleMetrics, layout.SAMPLE_METRICS, "run `vdmctl sample`")
    return measured if measured.model_sha256 == model_sha256(folder) else None


def images_for(*models: str | None) -> Path:
    """Return the image set to evaluate models on: data/images, or if that is missing, those of the last version.

    Log a warning for a version that was trained with another image set, which may contain the evaluated images.
    """
    images = layout.IMAGES
    versions = [version for model in models if model and (version := version_of(model))]
    if not versions:
        return images
    from flows.images.store import data_sha256
    from flows.registry.storage import fetch_images

    if not images.exists():
        images = fetch_images(ROOT, versions[-1])
    digest = data_sha256(images)
    for version in versions:
        if version.metrics.data_sha256 not in (None, digest):
            log.warning("%s was trained with other images than %s, and may have seen these", version.name, images)
    return images
