"""Find the model that a command names, its images and its samples."""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.arguments import ROOT
from flows.core import layout
from flows.core.errors import Exit, UserError

if TYPE_CHECKING:
    from flows.evaluation.results import SampleMetrics
    from flows.registry.versions import Version

log = logging.getLogger(__name__)


def version_of(model: str) -> "Version | None":
    """Return the version that the text names, as `champion` does; None for the path of a folder, as `./champion`."""
    from flows.registry.versions import REFERENCE, resolve

    return resolve(ROOT, model) if REFERENCE.fullmatch(model) else None


def model_folder(model: str) -> Path:
    """Return the folder of a model, which is fetched if the text names a version."""
    if version := version_of(model):
        from flows.registry.storage import fetch

        return fetch(ROOT, version)
    if "/" not in model and not Path(model).exists():
        reason = "no such folder, and not a version such as vdm@v1.2.0, nor `champion`"
        raise UserError(f"{model}: {reason}; `vdmctl models` lists the versions", Exit.MISSING)
    return Path(model)


def as_argument(folder: Path) -> str:
    """Return a model folder as an argument in a shell: `./champion`, since `champion` is a version."""
    from flows.registry.versions import REFERENCE

    return shlex.quote(f"./{folder}" if REFERENCE.fullmatch(str(folder)) else str(folder))


def model_or_ours(model: str | None) -> Path:
    """Return the folder of `model`, by default models/vdm.  Raises UserError (exit 5) if that folder is missing."""
    if model:
        return model_folder(model)
    if not layout.REGISTERED.is_dir():
        raise UserError(f"{layout.REGISTERED}: no model yet; `dvc repro` trains one", Exit.MISSING)
    return layout.REGISTERED


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
    images = ROOT / layout.IMAGES
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
