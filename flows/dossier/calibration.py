"""What evaluations kept of held-out images: their features, for surprise, and the errors at each noise level.

Surprise also needs the images that a model was trained on.
"""

from contextlib import suppress
from functools import partial

from flows.core import layout
from flows.core.ancestry import SeenImages
from flows.core.documents import read_document
from flows.core.errors import NetworkError, UserError
from flows.core.model import TrainedModel
from flows.dossier.dossier import Dossier
from flows.evaluation.calibration import Calibration
from flows.evaluation.error_curve import KeptCurve
from flows.images.image_set import open_images
from flows.project.project import Project
from flows.registry.images import list_training_images
from vdm.choices import FITTED_SPLITS


def calibration_of(dossier: Dossier) -> Calibration:
    """Return the kept features of the held-out images of a model.

    Raises UserError (exit 5) if there are none, with the command that makes them, or if they are damaged.
    """
    found = dossier.read(layout.CALIBRATION, partial(read_document, Calibration))
    if found is None:
        raise dossier.place.missing(layout.CALIBRATION)
    return found


def error_curve_of(dossier: Dossier) -> KeptCurve | None:
    """Return the kept errors of a model on validation images; None if no evaluation kept them.

    Raises UserError (exit 5) if they are damaged.
    """
    return dossier.read(layout.ERROR_CURVE, partial(read_document, KeptCurve))


def images_seen_by(
    project: Project, model: TrainedModel, transforms: str, data_sha256: str | None = None
) -> SeenImages:
    """Return the images that a model, and those of its line, were trained on, as they are after `transforms`.

    Known are those of a training in this process, those of a version, and the project's own image set, if that is the
    model's, or has the digest `data_sha256`.
    """
    if model.vdm.seen:
        return model.vdm.seen
    others = {ancestor.model_sha256: ancestor.name for ancestor in model.line[1:]}
    if version := project.version(model.name):
        with suppress(NetworkError):
            return list_training_images(project.registry, version, transforms)
    else:
        with suppress(UserError):
            own = open_images(project.folder / layout.IMAGES)
            if own.data_sha256 in (data_sha256, model.training and model.training.data_sha256):
                fitted = FITTED_SPLITS[model.fitted_to or "train"]
                return SeenImages({digest for split in fitted for digest in own.digests(split)}, others)
    return SeenImages(set(), {model.sha256: model.name} | others)
