"""Find the results of the models that `vdmctl report --out` names, and write the page."""

import hashlib
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from flows.commands.arguments import ROOT, parameters, version_of
from flows.core import bounded_yaml, layout
from flows.core.documents import read
from flows.core.errors import Exit, UserError
from flows.core.files import scratch_folder, write_whole
from flows.evaluation.results import Metrics
from flows.registry.lock_file import Lineage, lineage, lock_here, output_at, require_no_outputs
from flows.registry.storage import fetch_files, fetch_images, fetch_model
from flows.registry.versions import Version, open_registry
from flows.report.origin import Origin, beside_preset, origin_here, restoring_images
from flows.report.page import page, report
from flows.report.results import Files, Results, opened_images, opened_model, read_results

WORKSPACE = Files(
    metrics=layout.METRICS,
    per_image=layout.PER_IMAGE,
    noise_levels=layout.NOISE_LEVELS,
    curves=layout.CURVES,
    validation=layout.VALIDATION,
    samples=layout.SAMPLES_ARRAY,
    sample_metrics=layout.SAMPLE_METRICS,
    neighbours=layout.NEIGHBOURS,
    denoising=layout.DENOISING,
)
SECTIONS = ("data", "contract", "model", "train", "evaluate", "features", "sample", "quality")
"""The sections of params.yaml that the stage takes."""


def write_page(models: list[str], out: Path, *, force: bool) -> None:
    """Write the page about the workspace, about one model, or about two.

    Without models and to `flows.core.layout.PAGE` this is the stage, which replaces its output and its charts.

    Raises UserError: exit 2 if the file exists and `force` is not set, or if it lies in an output of the pipeline, 5 if
    results are missing or damaged; OSError that names `out`.
    """
    if not models and out == layout.PAGE:
        origin, model = origin_here(layout.REGISTERED, sections()), opened_model(layout.REGISTERED)
        report(origin, WORKSPACE, opened_images(layout.IMAGES), model, out=out, pictures=layout.PICTURES)
        return
    require_no_outputs(ROOT, out)
    if out.exists() and not force:
        raise UserError(f"{out} exists; --force overwrites it", Exit.USAGE)
    found = [results_of(name) for name in models]
    write_whole(out, page(*found or [of_workspace(layout.REGISTERED)]).html)


def results_of(model: str) -> Results:
    """Return the results of the model that the text names.  Raises what `of_version` and `of_folder` raise."""
    return of_version(version) if (version := version_of(model)) else of_folder(Path(model))


def of_version(version: Version) -> Results:
    """Return the results of a version.  Raises UserError (exit 5) if one is damaged or cannot be fetched."""
    chain = lineage(open_registry(ROOT), version)
    if version.problem:
        raise UserError(f"{version.name}: {version.problem}", Exit.MISSING)
    outputs = chain.lock.outputs
    listed = [path for path in map(str, WORKSPACE) if path in outputs]
    if str(layout.METRICS) not in listed:
        raise UserError(f"{version.name}: its {layout.DVC_LOCK} does not list {layout.METRICS}", Exit.MISSING)
    images = fetch_images(ROOT, version) if str(layout.IMAGES) in outputs else None
    model = fetch_model(ROOT, version) if str(layout.REGISTERED) in outputs else None
    with scratch_folder() as scratch:
        fetch_files(ROOT, version, listed, scratch)
        places = {path: scratch / path for path in listed}
        files = Files(*(places.get(str(path)) for path in WORKSPACE))  # type: ignore[arg-type]  # None: no such result
        try:
            return read_results(files, beside_preset(origin_of(chain)), images, model)._replace(line=versions_in_line())
        except UserError as error:
            raise UserError(str(error).replace(f"{scratch}/", f"{version.name}: "), error.code) from error


def versions_in_line() -> pd.DataFrame:
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
        for version in open_registry(ROOT).versions
    ]
    return pd.DataFrame(rows).astype({"num_train": float, "bpd": float, "standard_error": float})


def origin_of(chain: Lineage) -> Origin:
    """Return where a version comes from."""
    version = chain.version
    rows = {"version": version.name, "registered": version.created, "commit": version.commit}
    promotions = {
        f"{'withdrawn' if '!' in tag.name else 'promoted'}, {tag.name}": tag.created for tag in chain.promotions
    }
    commands = [
        f"git checkout {version.name}",
        *restoring_images(chain.lock.parameters),
        "make repro",
        f"vdmctl verify {version.name}    # recomputes every digest",
        f"vdmctl evaluate {version.name}  # the likelihood alone",
    ]
    return Origin(version.name, chain.lock.parameters, rows | promotions, commands)


def of_workspace(folder: Path) -> Results:
    """Return the results in the workspace, which are of the model in the folder.

    The parameters are those of dvc.lock if DVC made these results, since params.yaml may have changed after that.
    """
    shown = sections()
    with suppress(UserError, OSError):
        lock = lock_here(ROOT)
        if lock.outputs.get(str(layout.METRICS)) == hashlib.md5(layout.METRICS.read_bytes()).hexdigest():
            shown |= lock.parameters
    model = opened_model(folder)
    return read_results(WORKSPACE, beside_preset(origin_here(folder, shown)), opened_images(layout.IMAGES), model)


def sections() -> dict[str, Any]:
    """Return the sections of params.yaml that the page shows.  Raises UserError; see `parameters`."""
    params = parameters()
    return {name: getattr(params, name).model_dump() for name in SECTIONS}


def of_folder(folder: Path) -> Results:
    """Return the results of a model folder: those in the folder, or if it has none, the workspace's of the same model.

    The folder's are at the paths that the workspace's have in `reports`.  Raises UserError (exit 5).
    """
    from flows.core.model import CONFIG, open_model  # torch takes a second

    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no model folder, since it has no {CONFIG}", Exit.MISSING)
    model = open_model(folder)
    files = Files(*(folder / path.relative_to(layout.REPORTS) for path in WORKSPACE if path))
    metrics = files.metrics
    if not metrics.exists() and layout.METRICS.exists() and read(Metrics, layout.METRICS).model_sha256 == model.sha256:
        return of_workspace(folder)
    name = shlex.quote(str(folder))
    command = f"vdmctl evaluate {name} --out {shlex.quote(str(metrics.parent))}"
    if not metrics.exists():
        advice = "dvc repro evaluate" if output_at(ROOT, folder) else command
        raise UserError(f"{folder}: not evaluated yet; run `{advice}`", Exit.MISSING)
    if read(Metrics, metrics).model_sha256 != model.sha256:
        raise UserError(f"{metrics} is about another model; run `{command}`", Exit.MISSING)
    # Shape and levels are those of the images, and no parameters.
    arguments = model.description.model
    ours = {"classes": None} | {key: arguments[key] for key in arguments.keys() - {"image_shape", "num_levels"}}
    parameters = bounded_yaml.sections(model.parameters) | {"model": ours}
    origin = beside_preset(Origin(str(folder), parameters, {}, [command]))
    return read_results(files, origin, opened_images(layout.IMAGES), model)
