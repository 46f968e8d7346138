"""The results of one model: the files that hold them, and what these files say.

Only the metrics must be there.  A page leaves out what is missing and says so; a damaged file is an error.
"""

import math
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from flows.contract.findings import Alike, Result, Verdict
from flows.core.documents import read_document
from flows.core.errors import FileError, brief
from flows.core.files import read_bounded
from flows.evaluation.results import BoundMetrics, SampleMetrics
from flows.images.image_set import ImageSet, load_array, open_images
from flows.report.origin import Origin

if TYPE_CHECKING:
    from flows.core.model import TrainedModel

LARGEST = 1e12
"""The largest absolute value of a number in a table.  Larger ones, which only a broken model has, count as missing."""
T = TypeVar("T")


class Files(NamedTuple):
    """Where the results of a model are; None or a missing file if there is no such result."""

    metrics: Path
    per_image: Path | None = None
    noise_levels: Path | None = None
    curves: Path | None = None
    findings: Path | None = None
    samples: Path | None = None
    sample_metrics: Path | None = None
    neighbours: Path | None = None
    denoising: Path | None = None


class Checked(Verdict):
    """What the contract found, as far as the page shows it."""

    transforms: str
    expectations: list[Result]
    alike: list[Alike]


class ShownModel(NamedTuple):
    """What the page shows of a model: `schedule` has gamma and the line at which training began, at the times t."""

    sha256: str
    num_parameters: int
    num_levels: int
    schedule: pd.DataFrame
    class_names: list[str] | None = None


class Results(NamedTuple):
    """What the files say; None for what is missing.  `notes` name results that do not belong together."""

    origin: Origin
    metrics: BoundMetrics
    per_image: pd.DataFrame | None
    noise_levels: pd.DataFrame | None
    curves: pd.DataFrame | None
    findings: Checked | None
    images: ImageSet | None
    samples: np.ndarray | None
    sample_metrics: SampleMetrics | None
    neighbours: pd.DataFrame | None
    notes: list[str]
    denoising: bytes | None
    """A PNG file."""
    model: ShownModel | None
    schedule: pd.DataFrame | None
    labels: np.ndarray | None
    """Of all images of the split in the metrics, (N,) integers."""
    versions: pd.DataFrame | None = None
    """The versions of the registry: name, state, num_train, bpd and standard_error of validation images, ancestor."""


def read_results(files: Files, origin: Origin, images: ImageSet | None, evaluated: "TrainedModel | None") -> Results:
    """Read the results of a model and its images.  Raises UserError (exit 5) without metrics, and for a damaged file.

    The set is left out if it is not the one that was evaluated, and so is what the page shows of the model.
    """
    metrics = read_document(BoundMetrics, files.metrics, "run `dvc repro`")
    findings = present(partial(read_document, Checked), files.findings)
    sample_metrics = present(partial(read_document, SampleMetrics), files.sample_metrics)
    digest = images.data_sha256 if images else None
    images = images if digest == metrics.data_sha256 else None
    samples = present(partial(read_samples, images=images), files.samples)
    neighbours = present(partial(read_table, names=("sample", "train_image", "distance")), files.neighbours)
    if neighbours is not None and samples is not None and images is not None:
        require_indices(files.neighbours, neighbours["sample"], len(samples))
        require_indices(files.neighbours, neighbours["train_image"], len(images["train"]))
    model = describe_shown(evaluated) if evaluated else None
    notes = list(disagreements(metrics, digest, findings, sample_metrics))
    if model and model.sha256 != metrics.model_sha256:
        notes.append("The model is not the one that was evaluated, so its noise schedule is left out.")
        model = None
    labels = images.labels(metrics.split) if images and metrics.split != "other" else None
    return Results(
        origin=origin,
        metrics=metrics,
        per_image=present(partial(read_per_image, metrics=metrics, images=images), files.per_image),
        noise_levels=present(
            partial(read_table, names=("t", "gamma", "diffusion_bpd", "standard_error")), files.noise_levels
        ),
        curves=present(partial(read_table, names=("step", "bpd")), files.curves),
        findings=findings,
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


def find_image_set(folder: Path) -> ImageSet | None:
    """Return the image set in a folder, if there is one.  Raises UserError (exit 5) if it is damaged."""
    return open_images(folder) if folder.exists() else None


def find_model(folder: Path) -> "TrainedModel | None":
    """Return the model in a folder, if there is one.  Raises UserError (exit 5) if it is damaged."""
    if not folder.exists():
        return None
    from flows.core.model import open_model  # torch takes a second

    return open_model(folder)


def present(reader: Callable[[Path], T], path: Path | None) -> T | None:
    """Return what `reader` reads from the file or folder; None if there is no such file or folder."""
    return reader(path) if path is not None and path.exists() else None


def disagreements(
    metrics: BoundMetrics, digest: str | None, findings: Checked | None, samples: SampleMetrics | None
) -> Iterator[str]:
    """Yield sentences about results that are of another model or of other images than the metrics."""
    if digest not in (None, metrics.data_sha256):
        yield "The image set is not the one that was evaluated, so no images are shown."
    if findings and findings.data_sha256 != metrics.data_sha256:
        yield "What the contract found is about other images than the metrics."
    if samples and (samples.model_sha256, samples.data_sha256) != (metrics.model_sha256, metrics.data_sha256):
        yield "The quality of samples was measured with another model or other images than the metrics."


def describe_shown(model: "TrainedModel") -> ShownModel:
    """Return what the page shows of a model."""
    import torch  # takes a second

    vdm, arguments = model.vdm, model.description.model
    gamma_0, gamma_1, t = arguments["gamma_0"], arguments["gamma_1"], torch.linspace(0, 1, 201, device=model.device)
    with torch.inference_mode():
        columns = {"t": t, "gamma": vdm.schedule(t), "initial": gamma_0 + (gamma_1 - gamma_0) * t}
    schedule = pd.DataFrame({name: column.double().cpu().numpy() for name, column in columns.items()})
    count = sum(p.numel() for p in vdm.parameters())
    return ShownModel(model.sha256, count, vdm.num_levels, schedule, model.class_names)


def read_table(path: Path, names: Collection[str]) -> pd.DataFrame:
    """Return a table of numbers in CSV, which must have the columns `names` and a row.

    Values that are not finite or beyond `LARGEST` are NaN.  Raises FileError (exit 5) that says what is wrong.
    """
    try:
        table = pd.read_csv(path, dtype=float, index_col=False, usecols=lambda name: name != "file")
    except (OSError, ValueError) as error:
        raise FileError(path, f"damaged: {brief(error)}") from error
    if missing := [name for name in names if name not in table]:
        raise FileError(path, f"damaged: no column {missing[0]}")
    if table.empty:
        raise FileError(path, "damaged: no rows")
    return table.where(table.abs() <= LARGEST)


def read_per_image(path: Path, metrics: BoundMetrics, images: ImageSet | None) -> pd.DataFrame:
    """Return the bits/dim of every image.  Raises FileError (exit 5) unless it has a row for each."""
    table = read_table(path, ("image", "bpd"))
    if len(table) != metrics.num_images:
        rows = f"{len(table)} rows, but the metrics are about {metrics.num_images} images"
        raise FileError(path, f"damaged: {rows}")
    require_indices(
        path, table["image"], len(images[metrics.split]) if images and metrics.split != "other" else math.inf
    )
    return table


def require_indices(path: Path | None, column: "pd.Series[float]", size: float) -> None:
    """Raise UserError (exit 5) unless all values are whole numbers from 0 and below `size`."""
    wrong = column[~(column.between(0, size, inclusive="left") & (column % 1 == 0))]
    if len(wrong):
        raise FileError(path, f"damaged: there is no {column.name} {wrong.iloc[0]:g}")


def read_samples(path: Path, images: ImageSet | None) -> np.ndarray:
    """Return the samples (N,C,H,W).  Raises FileError (exit 5) unless they are images like those of the set."""
    samples = load_array(path)
    expected = images.image_shape if images else samples.shape[1:]
    if samples.ndim != 4 or samples.shape[1:] != expected or not samples.size or samples.dtype.kind not in "ui":
        found = f"{samples.dtype} of shape {samples.shape}"
        raise FileError(path, f"damaged: {found}, not samples of images of shape {expected}")
    return samples


def description(images: ImageSet | None) -> dict[str, Any]:
    """Return the set's description, sorted, without the keys that the pipeline does not know."""
    return dict(sorted(images.description.stated.items())) if images else {}
