"""Open the dossier of a model by its name: a version, a model folder, or the project's outputs."""

import hashlib
import shlex
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.dossier.dossier import Dossier
from flows.dossier.places import ModelFolder, Outputs
from flows.dossier.versions import VersionPlace
from flows.project.project import Project
from flows.repository.lock_file import lock_here, output_at

if TYPE_CHECKING:
    from flows.core.model import TrainedModel


def open_dossier(project: Project, name: str | None = None) -> Dossier:
    """Return what is known of the model that a text names, by default of the project's outputs.

    Raises UserError (exit 5) if there is no such version or model folder.
    """
    if name is None:
        return Dossier(Outputs(project.folder, partial(recorded_parameters, project)))
    if version := project.version(name):
        return Dossier(VersionPlace(project, version))
    from flows.core.model import CONFIG  # torch takes a second

    if not (Path(name) / CONFIG).is_file():
        raise UserError(f"{name}: no model folder, since it has no {CONFIG}", Exit.MISSING)
    return dossier_of(project, project.model(name))


def dossier_of(project: Project, trained: "TrainedModel") -> Dossier:
    """Return what is known of a model that is open already: of a version, or in a folder."""
    if version := project.version(trained.name):
        return Dossier(VersionPlace(project, version, trained))
    name = shlex.quote(trained.name)
    command = f"vdmctl evaluate {name} --out {shlex.quote(str(Path(trained.name) / 'evaluation'))}"
    if output_at(project.repository, Path(trained.name)):
        command = "dvc repro evaluate"
    outputs = Outputs(project.folder, partial(recorded_parameters, project), Path(trained.name))
    return Dossier(ModelFolder(trained, outputs, command))


def recorded_parameters(project: Project) -> Mapping[str, Any]:
    """Return the parameters of the outputs: those of dvc.lock if DVC made them, since params.yaml may have changed.

    Raises UserError (exit 2).
    """
    shown = project.shown_params
    with suppress(UserError, OSError):
        lock, metrics = lock_here(project.repository), project.folder / layout.METRICS
        if lock.outputs.get(str(layout.METRICS)) == hashlib.md5(metrics.read_bytes()).hexdigest():
            shown |= lock.parameters
    return shown
