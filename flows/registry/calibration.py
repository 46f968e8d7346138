"""What surprise needs of a model: the kept features of held-out images, and the images that it was trained on."""

import logging
import shlex
from contextlib import suppress
from pathlib import Path

from flows.core import layout
from flows.core.documents import read_document
from flows.core.errors import Exit, NetworkError, UserError
from flows.core.files import scratch_folder
from flows.core.model import TrainedModel
from flows.evaluation.calibration import Calibration
from flows.evaluation.results import BOTH
from flows.images.image_set import ImageSet, open_images
from flows.registry.fetching import fetch_files
from flows.registry.images import list_training_images
from flows.registry.project import Project
from flows.repository.lock_file import output_at
from vdm.choices import Split

log = logging.getLogger(__name__)


def calibration_of(project: Project, model: TrainedModel) -> Calibration:
    """Return the kept features of the held-out images of a version, or of the model in a folder.

    Those of a folder lie where its other results do, or in the workspace.  Raises UserError (exit 5) if there are none,
    with the command that makes them, or if they are damaged or of another model.
    """
    if version := project.version(model.name):
        path = str(layout.CALIBRATION)
        with scratch_folder() as scratch:
            fetch_files(project, version, [path], scratch)
            return read_document(Calibration, scratch / path)
    folder = Path(model.name)
    own = folder / layout.CALIBRATION.relative_to(layout.REPORTS)
    name = shlex.quote(str(folder))
    command = "dvc repro evaluate" if output_at(project, folder) else f"vdmctl evaluate {name} --out {name}/evaluation"
    for place in (own, project.folder / layout.CALIBRATION):
        if place.exists() and (found := read_document(Calibration, place)).model_sha256 == model.sha256:
            return found
    reason = f"{folder} has no {own.relative_to(folder)} of this model, with which images are compared"
    raise UserError(f"{reason}; `{command}` makes it from the model's images", Exit.MISSING)


def digests_seen_by(project: Project, model: TrainedModel, images: ImageSet, calibration: Calibration) -> set[bytes]:
    """Return the digests of images that the model, or one of its line, was trained on, as far as they are known.

    Log a warning if those of a version are not.
    """
    if version := project.version(model.name):
        digests, known = set[bytes](), False
        with suppress(NetworkError):
            digests, unknown = list_training_images(project.registry, version, images.description.transforms)
            known = not unknown
        if not known:
            log.warning("not all images that %s was trained on are known; p of one of them is not valid", version.name)
        return digests
    with suppress(UserError):
        own = open_images(project.folder / layout.IMAGES)
        if own.data_sha256 == calibration.data_sha256:
            fitted: list[Split] = ["train", "validation"] if model.fitted_to == BOTH else ["train"]
            return {digest for split in fitted for digest in own.digests(split)}
    return set()
