"""The results of one model: the files that hold them, and what these files say.

Only the metrics must be there.  A page leaves out what is missing and says so; a damaged file is an error.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from flows.core.documents import read
from flows.core.errors import Exit, UserError
from flows.evaluation.results import BoundMetrics, SampleMetrics
from flows.images.store import Description, ImageSet, data_sha256, load_array, load_images
from flows.report.tables import Columns, integers, read_table
from flows.validation.report import Alike, Result, Validation

NOISE_LEVELS = ("t", "gamma", "diffusion_bpd", "standard_error")
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


class Expected(Result):
    """The result of one expectation, as far as the page shows it; in older reports all are critical, without rows."""

    severity: Literal["warning", "critical"] = "critical"
    rows: Annotated[list[dict[str, Any]], Field(default_factory=list)]


class Checked(Validation):
    """The validation report, as far as the page shows it; older ones lack some of it."""

    transforms: str = "not stated"
    expectations: Annotated[list[Expected], Field(default_factory=list)]
    alike: Annotated[list[Alike], Field(default_factory=list)]


class Origin(NamedTuple):
    """Where a model comes from: its name, its parameters by section, its tags and commit, and how to make it again."""

    name: str
    parameters: Mapping[str, Any]
    lineage: Mapping[str, str]
    commands: list[str]


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
    data = parameters.get("data")
    if not isinstance(data, Mapping) or not data.get("source"):
        return []
    dvc = ".venv/bin/dvc"
    restore = f"{dvc} checkout data/images || {dvc} pull data/images    # data.source may hold other images by now"
    return ["make .venv/installed", restore]


class Neighbour(NamedTuple):
    """A sample, the training image nearest to it, and their distance per dimension for pixels in [-1, 1]."""

    sample: int
    image: int
    distance: float


class Results(NamedTuple):
    """What the files say; None for what is missing.  `notes` name results that do not belong together."""

    origin: Origin
    metrics: BoundMetrics
    per_image: Columns | None
    noise_levels: Columns | None
    curves: Columns | None
    validation: Checked | None
    images: ImageSet | None
    samples: np.ndarray | None
    sample_metrics: SampleMetrics | None
    neighbours: list[Neighbour]
    notes: list[str]


def read_results(files: Files, origin: Origin) -> Results:
    """Read the results.  Raises UserError (exit 5) without metrics, and for a damaged file."""
    metrics = read(BoundMetrics, files.metrics, "run `dvc repro`")
    validation = present(lambda path: read(Checked, path), files.validation)
    sample_metrics = present(lambda path: read(SampleMetrics, path), files.sample_metrics)
    digest = present(data_sha256, files.images)
    images = present(load_images, files.images) if digest == metrics.data_sha256 else None
    samples = present(lambda path: read_samples(path, images), files.samples)
    return Results(
        origin=origin,
        metrics=metrics,
        per_image=present(lambda path: read_images(path, metrics), files.per_image),
        noise_levels=present(lambda path: read_table(path, NOISE_LEVELS), files.noise_levels),
        curves=present(lambda path: read_table(path, ("step", "bpd")), files.curves),
        validation=validation,
        images=images,
        samples=samples,
        sample_metrics=sample_metrics,
        neighbours=present(lambda path: read_neighbours(path, samples, images), files.neighbours) or [],
        notes=list(disagreements(metrics, digest, validation, sample_metrics)),
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


def read_images(path: Path, metrics: BoundMetrics) -> Columns:
    """Return the bits/dim of every image.  Raises UserError (exit 5) unless it has a row for each."""
    table = read_table(path, ("image", "bpd"))
    if len(table["bpd"]) != metrics.num_images:
        rows = f"{len(table['bpd'])} rows, but the metrics are about {metrics.num_images} images"
        raise UserError(f"{path}: damaged: {rows}", Exit.MISSING)
    integers(path, table, "image", metrics.num_images)
    return table


def read_samples(path: Path, images: ImageSet | None) -> np.ndarray:
    """Return the samples (N,C,H,W).  Raises UserError (exit 5) unless they are images like those of the set."""
    samples = load_array(path)
    expected = images.image_shape if images else samples.shape[1:]
    if samples.ndim != 4 or samples.shape[1:] != expected or not samples.size or samples.dtype.kind not in "ui":
        found = f"{samples.dtype} of shape {samples.shape}"
        raise UserError(f"{path}: damaged: {found}, not samples of images of shape {expected}", Exit.MISSING)
    return samples


def read_neighbours(path: Path, samples: np.ndarray | None, images: ImageSet | None) -> list[Neighbour]:
    """Return the samples with their nearest training images, the nearest first; [] if either is missing."""
    table = read_table(path, ("sample", "train_image", "distance"))
    if samples is None or images is None:
        return []
    pairs = zip(
        integers(path, table, "sample", len(samples)),
        integers(path, table, "train_image", len(images.train)),
        map(float, table["distance"]),
        strict=True,
    )
    return [Neighbour(*pair) for pair in pairs]


def description(images: ImageSet | None) -> dict[str, Any]:
    """Return the set's description, sorted, without the keys that the pipeline does not know."""
    known = sorted(Description.model_fields)
    return {key: images.description[key] for key in known if key in images.description} if images else {}
