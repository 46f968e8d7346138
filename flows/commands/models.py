"""Find the model that a command names, its images and its samples.

Heavy modules are imported inside the functions.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.arguments import ROOT
from flows.core import layout
from flows.core.errors import Exit, UserError

if TYPE_CHECKING:
    from flows.evaluation.results import SampleMetrics


def model_folder(model: str) -> Path:
    """Return the folder of a model: fetch it if the text names a version or `champion`; else the text is the path.

    `./champion` is a folder of that name.
    """
    from flows.registry.versions import REFERENCE, resolve

    if not REFERENCE.fullmatch(model):
        if "/" not in model and not Path(model).exists():
            reason = "no such folder, and not a version such as vdm@v1.2.0, nor `champion`"
            raise UserError(f"{model}: {reason}; `vdmctl models` lists the versions", Exit.MISSING)
        return Path(model)
    from flows.registry.storage import fetch

    return fetch(ROOT, resolve(ROOT, model))


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

    That of a folder's model is known if the last samples in the working tree are of this model.
    """
    from flows.core.checkpoint import model_sha256
    from flows.core.documents import read
    from flows.evaluation.results import SampleMetrics
    from flows.registry.versions import REFERENCE, resolve

    if REFERENCE.fullmatch(model):
        return resolve(ROOT, model).samples
    if not layout.SAMPLE_METRICS.exists():
        return None
    measured = read(SampleMetrics, layout.SAMPLE_METRICS, "run `vdmctl sample`")
    return measured if measured.model_sha256 == model_sha256(folder) else None


def images_for(model: str | None) -> Path:
    """Return the image set to evaluate a model on: data/images, or if that is missing, the version's own."""
    from flows.registry.versions import REFERENCE, resolve

    images = ROOT / layout.IMAGES
    if images.exists() or not model or not REFERENCE.fullmatch(model):
        return images
    from flows.registry.storage import fetch_images

    return fetch_images(ROOT, resolve(ROOT, model))
