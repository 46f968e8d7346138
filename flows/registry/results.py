"""The results of a model: those in the project's folder, of a version, or of a model folder."""

import hashlib
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from flows.core import layout
from flows.core.documents import read_document
from flows.core.errors import Exit, FileError, UserError
from flows.core.files import scratch_folder
from flows.evaluation.results import Metrics
from flows.registry.fetching import fetch_files, fetch_images, fetch_model
from flows.registry.lineage import Lineage, trace_lineage
from flows.registry.versions import Version
from flows.report.origin import Origin, origin_here, restore_commands
from flows.report.results import Files, Results, find_image_set, find_model, read_results
from flows.repository.lock_file import lock_here, output_at

if TYPE_CHECKING:
    from flows.core.model import TrainedModel
    from flows.registry.project import Project

OUTPUTS = Files(
    metrics=layout.METRICS,
    per_image=layout.PER_IMAGE,
    noise_levels=layout.NOISE_LEVELS,
    curves=layout.CURVES,
    findings=layout.FINDINGS,
    samples=layout.SAMPLES_ARRAY,
    sample_metrics=layout.SAMPLE_METRICS,
    neighbours=layout.NEIGHBOURS,
    denoising=layout.DENOISING,
)
"""Where the pipeline writes results, below the project's folder."""


def read_version_results(project: "Project", version: Version, model: "TrainedModel | None" = None) -> Results:
    """Return the results of a version.  Raises UserError (exit 5) if one is damaged or cannot be fetched."""
    chain = trace_lineage(project.registry, version)
    if version.problem:
        raise UserError(f"{version.name}: {version.problem}", Exit.MISSING)
    outputs = chain.outputs
    listed = [path for path in map(str, OUTPUTS) if path in outputs]
    if str(layout.METRICS) not in listed:
        raise UserError(f"{version.name}: its {layout.DVC_LOCK} does not list {layout.METRICS}", Exit.MISSING)
    images = fetch_images(project, version) if str(layout.IMAGES) in outputs else None
    if model is None and str(layout.REGISTERED) in outputs:
        model = fetch_model(project, version)
    with scratch_folder() as scratch:
        fetch_files(project, version, listed, scratch)
        places = {path: scratch / path for path in listed}
        files = Files(*(places.get(str(path)) for path in OUTPUTS))  # type: ignore[arg-type]  # None: no such result
        try:
            results = read_results(files, origin_of(chain), images, model)
        except FileError as error:
            path = Path(error.path)
            if not path.is_relative_to(scratch):
                raise
            raise UserError(f"{version.name}: {path.relative_to(scratch)}: {error.reason}", error.code) from error
    return results._replace(versions=table_versions(project), notes=[*results.notes, *undecided(project, version)])


def undecided(project: "Project", version: Version) -> Iterator[str]:
    """Yield sentences about what a person has to decide: a version that waits, and a champion that is held."""
    registry = project.registry
    if registry.waiting_tag and registry.waiting_tag.commit == version.commit:
        yield f"{version.name} waits for a person: `vdmctl promote --approve {version.name}` makes it the champion."
    if registry.hold:
        yield f"Promotions are held: {registry.hold}; `vdmctl promote --release` ends this."


def table_versions(project: "Project") -> pd.DataFrame:
    """Return the versions with their numbers of training images, their figures of validation images and ancestors."""
    rows = [
        {
            "version": version.name,
            "state": version.state,
            "num_train": version.metrics.num_train,
            "bpd": version.metrics.validation and version.metrics.validation.bpd,
            "standard_error": version.metrics.validation and version.metrics.validation.bpd_standard_error,
            "ancestor": version.metrics.ancestors[0].name if version.metrics.ancestors else "noise",
        }
        for version in project.registry.versions
    ]
    return pd.DataFrame(rows).astype({"num_train": float, "bpd": float, "standard_error": float})


def origin_of(chain: Lineage) -> Origin:
    """Return where a version comes from."""
    rows = {"version": chain.version, "registered": chain.created, "commit": chain.commit}
    promotions = {
        f"{'withdrawn' if '!' in each.tag else 'promoted'}, {each.tag}": each.created for each in chain.promotions
    }
    commands = [
        f"git checkout {chain.version}",
        *restore_commands(chain.parameters),
        "make repro",
        f"vdmctl verify {chain.version}    # recomputes every digest",
        f"vdmctl evaluate {chain.version}  # the likelihood alone",
    ]
    return Origin(chain.version, chain.parameters, rows | promotions, commands)


def read_output_results(project: "Project", folder: Path | None = None) -> Results:
    """Return the results in the project's folder, which are of the model in a folder, by default models/vdm.

    The parameters are those of dvc.lock if DVC made these results, since params.yaml may have changed after that.
    """
    shown, metrics = project.shown_params, project.folder / layout.METRICS
    with suppress(UserError, OSError):
        lock = lock_here(project)
        if lock.outputs.get(str(layout.METRICS)) == hashlib.md5(metrics.read_bytes()).hexdigest():
            shown |= lock.parameters
    folder = folder or project.folder / layout.REGISTERED
    files = Files(*(project.folder / path for path in OUTPUTS if path))
    images = find_image_set(project.folder / layout.IMAGES)
    return read_results(files, origin_here(folder, shown), images, find_model(folder))


def read_folder_results(project: "Project", folder: Path, model: "TrainedModel | None" = None) -> Results:
    """Return the results of a model folder: those in the folder, or if it has none, the workspace's of the same model.

    The folder's are at the paths that the workspace's have in `reports`.  Raises UserError (exit 5).
    """
    from flows.core.model import CONFIG, open_model  # torch takes a second

    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no model folder, since it has no {CONFIG}", Exit.MISSING)
    model = model or open_model(folder)
    files = Files(*(folder / path.relative_to(layout.REPORTS) for path in OUTPUTS if path))
    metrics = files.metrics
    here = project.folder / layout.METRICS
    if not metrics.exists() and here.exists() and read_document(Metrics, here).model_sha256 == model.sha256:
        return read_output_results(project, folder)
    name = shlex.quote(str(folder))
    command = f"vdmctl evaluate {name} --out {shlex.quote(str(metrics.parent))}"
    if not metrics.exists():
        advice = "dvc repro evaluate" if output_at(project, folder) else command
        raise UserError(f"{folder}: not evaluated yet; run `{advice}`", Exit.MISSING)
    if read_document(Metrics, metrics).model_sha256 != model.sha256:
        raise UserError(f"{metrics} is about another model; run `{command}`", Exit.MISSING)
    # Shape and levels are those of the images, and no parameters.
    arguments = model.description.model
    ours = {"classes": None} | {key: arguments[key] for key in arguments.keys() - {"image_shape", "num_levels"}}
    parameters = model.parameters | {"model": ours}
    origin = Origin(str(folder), parameters, {}, [command])
    return read_results(files, origin, find_image_set(project.folder / layout.IMAGES), model)
