"""The results of one model: the files that hold them, and what these files say.

Only the metrics must be there.  A page leaves out what is missing and says so; a damaged file is an error.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from flows.core.documents import read
from flows.core.errors import Exit, UserError, brief
from flows.core.files import read_bounded
from flows.evaluation.results import BoundMetrics, SampleMetrics
from flows.images.store import Description, ImageSet, data_sha256, load_array, load_images, load_labels
from flows.validation.report import Alike, Result, Validation

LARGEST = 1e12
"""The largest absolute value of a number in a table.  Larger ones, which only a broken model has, count as missing."""
T = TypeVar("T")


class Files(NamedTuple):
    """Where the results of a model are, and its images; None or a missing file if there is no such result."""

    metrics: Path
    per_image: Path | None = None
    noise_levels: Path | None = None
    curves: Path | None = None
    validation: Path | None = None
    images: Path | None = None
    samples: Path | None = None
    sample_metrics: Path | None = None
    neighbours: Path | None = None
    denoising: Path | None = None
    model: Path | None = None


class Checked(Validation):
    """The validation report, as far as the page shows it."""

    transforms: str
    expectations: list[Result]
    alike: list[Alike]


class Origin(NamedTuple):
    """Where a model comes from: its name, its parameters by section, its tags and commit, and how to make it again."""

    name: str
    parameters: Mapping[str, Any]
    lineage: Mapping[str, str]
    commands: list[str]
    preset: str = ""
    """The preset that is most like the parameters, and what differs from it, in words."""


class Model(NamedTuple):
    """What the page shows of a model: `schedule` has gamma and the line at which training began, at the times t."""

    sha256: str
    num_parameters: int
    num_levels: int
    schedule: pd.DataFrame


def origin_here(folder: Path, parameters: Mapping[str, Any]) -> Origin:
    """Return where the model in the folder comes from if this project made it with these parameters."""
    commands = [
        "git checkout COMMIT     # the commit with the digests above",
        *restoring_images(parameters),
        "make repro              # the environment, then every stage whose inputs changed",
        "vdmctl report           # says whether every output is identical to that of the commit",
        f"vdmctl evaluate {folder}    # the likelihood alone",
    ]
    return Origin(str(folder), parameters, {}, commands)


def restoring_images(parameters: Mapping[str, Any]) -> list[str]:
    """Return the commands that restore images from a `data.source`, which `make repro` would read anew."""
    if not parameters.get("data", {}).get("source"):
        return []
    dvc = ".venv/bin/dvc"
    restore = f"{dvc} checkout data/images || {dvc} pull data/images    # data.source may hold other images by now"
    return ["make .venv/installed", restore]


class Results(NamedTuple):
    """What the files say; None for what is missing.  `notes` name results that do not belong together."""

    origin: Origin
    metrics: BoundMetrics
    per_image: pd.DataFrame | None
    noise_levels: pd.DataFrame | None
    curves: pd.DataFrame | None
    validation: Checked | None
    images: ImageSet | None
    samples: np.ndarray | None
    sample_metrics: SampleMetrics | None
    neighbours: pd.DataFrame | None
    notes: list[str]
    denoising: bytes | None
    """A PNG file."""
    model: Model | None
    schedule: pd.DataFrame | None
    labels: np.ndarray | None
    """Of all images of the split in the metrics, (N,) integers."""


def read_results(files: Files, origin: Origin) -> Results:
    """Read the results.  Raises UserError (exit 5) without metrics, and for a damaged file."""
    metrics = read(BoundMetrics, files.metrics, "run `dvc repro`")
    validation = present(partial(read, Checked), files.validation)
    sample_metrics = present(partial(read, SampleMetrics), files.sample_metrics)
    digest = present(data_sha256, files.images)
    images = present(load_images, files.images) if digest == metrics.data_sha256 else None
    samples = present(partial(read_samples, images=images), files.samples)
    neighbours = present(partial(read_table, names=("sample", "train_image", "distance")), files.neighbours)
    if neighbours is not None and samples is not None and images is not None:
        require_indices(files.neighbours, neighbours["sample"], len(samples))
        require_indices(files.neighbours, neighbours["train_image"], len(images.train))
    model = present(read_model, files.model)
    notes = list(disagreements(metrics, digest, validation, sample_metrics))
    if model and model.sha256 != metrics.model_sha256:
        notes.append("The model is not the one that was evaluated, so its noise schedule is left out.")
        model = None
    labels = load_labels(files.images, metrics.split) if images and files.images else None
    return Results(
        origin=origin,
        metrics=metrics,
        per_image=present(partial(read_per_image, metrics=metrics, images=images), files.per_image),
        noise_levels=present(
            partial(read_table, names=("t", "gamma", "diffusion_bpd", "standard_error")), files.noise_levels
        ),
        curves=present(partial(read_table, names=("step", "bpd")), files.curves),
        validation=validation,
        images=images,
        samples=samples,
        sample_metrics=sample_metrics,
        neighbours=neighbours,
        notes=notes,
        denoising=present(read_bounded, files.denoising),
        model=model,
        schedule=model.schedule if model else None,
        labels=labels,
    )


def present(reader: Callable[[Path], T], path: Path | None) -> T | None:
    """Return what `reader` reads from the file or folder; None if there is no such file or folder."""
    return reader(path) if path is not None and path.exists() else None


def disagreements(
    metrics: BoundMetrics, digest: str | None, validation: Checked | None, samples: SampleMetrics | None
) -> Iterator[str]:
    """Yield sentences about results that are of another model or of other images than the metrics."""
    if digest not in (None, metrics.data_sha256):
        yield "The image set is not the one that was evaluated, so no images are shown."
    if validation and validation.data_sha256 != metrics.data_sha256:
        yield "The data validation is about other images than the metrics."
    if samples and (samples.model_sha256, samples.data_sha256) != (metrics.model_sha256, metrics.data_sha256):
        yield "The quality of samples was measured with another model or other images than the metrics."


def read_model(folder: Path) -> Model:
    """Return what the page shows of the model in a folder.  Raises CheckpointError."""
    import torch  # takes a second

    from flows.core.checkpoint import load_model, model_sha256, read_description

    vdm, arguments = load_model(folder), read_description(folder)["model"]
    gamma_0, gamma_1, t = arguments["gamma_0"], arguments["gamma_1"], torch.linspace(0, 1, 201)
    with torch.inference_mode():
        columns = {"t": t, "gamma": vdm.schedule(t), "initial": gamma_0 + (gamma_1 - gamma_0) * t}
    schedule = pd.DataFrame({name: column.double().numpy() for name, column in columns.items()})
    return Model(model_sha256(folder), sum(p.numel() for p in vdm.parameters()), vdm.num_levels, schedule)


def read_table(path: Path, names: Collection[str]) -> pd.DataFrame:
    """Return a table of numbers in CSV, which must have the columns `names` and a row.

    Values that are not finite or beyond `LARGEST` are NaN.  Raises UserError (exit 5) that says what is wrong.
    """
    try:
        table = pd.read_csv(path, dtype=float, index_col=False, usecols=lambda name: name != "file")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged: {brief(error)}", Exit.MISSING) from error
    if missing := [name for name in names if name not in table]:
        raise UserError(f"{path}: damaged: no column {missing[0]}", Exit.MISSING)
    if table.empty:
        raise UserError(f"{path}: damaged: no rows", Exit.MISSING)
    return table.where(table.abs() <= LARGEST)


def read_per_image(path: Path, metrics: BoundMetrics, images: ImageSet | None) -> pd.DataFrame:
    """Return the bits/dim of every image.  Raises UserError (exit 5) unless it has a row for each."""
    table = read_table(path, ("image", "bpd"))
    if len(table) != metrics.num_images:
        rows = f"{len(table)} rows, but the metrics are about {metrics.num_images} images"
        raise UserError(f"{path}: damaged: {rows}", Exit.MISSING)
    require_indices(path, table["image"], len(getattr(images, metrics.split)) if images else math.inf)
    return table


def require_indices(path: Path | None, column: "pd.Series[float]", size: float) -> None:
    """Raise UserError (exit 5) unless all values are whole numbers from 0 and below `size`."""
    wrong = column[~(column.between(0, size, inclusive="left") & (column % 1 == 0))]
    if len(wrong):
        raise UserError(f"{path}: damaged: there is no {column.name} {wrong.iloc[0]:g}", Exit.MISSING)


def read_samples(path: Path, images: ImageSet | None) -> np.ndarray:
    """Return the samples (N,C,H,W).  Raises UserError (exit 5) unless they are images like those of the set."""
    samples = load_array(path)
    expected = images.image_shape if images else samples.shape[1:]
    if samples.ndim != 4 or samples.shape[1:] != expected or not samples.size or samples.dtype.kind not in "ui":
        found = f"{samples.dtype} of shape {samples.shape}"
        raise UserError(f"{path}: damaged: {found}, not samples of images of shape {expected}", Exit.MISSING)
    return samples


def description(images: ImageSet | None) -> dict[str, Any]:
    """Return the set's description, sorted, without the keys that the pipeline does not know."""
    known = sorted(Description.model_fields)
    return {key: images.description[key] for key in known if key in images.description} if images else {}
