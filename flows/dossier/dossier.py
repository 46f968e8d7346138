"""The dossier of a model: what its results say, each read when it is asked for, once, and checked to belong to it.

Only the metrics must be there.  What else is missing is None; a damaged file is an error.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np
import pandas as pd

from flows.contract.findings import Alike, Result, Verdict
from flows.core import layout
from flows.core.documents import read_document
from flows.core.errors import UserError
from flows.core.files import read_bounded
from flows.dossier.origin import Origin
from flows.dossier.tables import read_neighbours, read_per_image, read_samples, read_table
from flows.evaluation.results import BoundMetrics, Metrics, SampleMetrics
from flows.images.image_set import ImageSet

if TYPE_CHECKING:
    from flows.core.model import TrainedModel

T = TypeVar("T")


class Place(Protocol):
    """Where the results of a model come from."""

    def file(self, name: Path) -> AbstractContextManager[Path | None]:
        """Yield a file with the result whose place among the pipeline's outputs is `name`; None if there is none.

        It may be gone after the block.  A FileError in the block names the result as the user knows it.
        """

    def missing(self, name: Path) -> UserError:
        """Return the error that there is no such result, if possible with the command that makes it."""

    def origin(self) -> Origin:
        """Return where the results come from."""

    def images(self) -> ImageSet | None:
        """Return the image set that may be the model's."""

    def model(self) -> "TrainedModel | None":
        """Return the model, opened."""

    def versions(self) -> pd.DataFrame | None:
        """Return the versions of the registry, if the model is one."""

    def notes(self) -> list[str]:
        """Return sentences about what a person has to decide."""


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


class Dossier:
    """What is known of a model.

    Raises UserError (exit 5) for what is damaged, when it is asked for.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def read_all(self) -> None:
        """Read everything now: the files may vanish.  Raises UserError (exit 5)."""
        for name, each in vars(Dossier).items():
            if isinstance(each, cached_property):
                getattr(self, name)

    @cached_property
    def origin(self) -> Origin:
        """Where the results come from."""
        return self.place.origin()

    @cached_property
    def metrics(self) -> BoundMetrics:
        """The likelihood.  Raises UserError (exit 5) without."""
        found = self.read(layout.METRICS, partial(read_document, BoundMetrics))
        if found is None:
            raise self.place.missing(layout.METRICS)
        return found

    @cached_property
    def figures(self) -> Metrics | None:
        """Of the metrics of any version of the pipeline, what the registry reads; None without metrics."""
        return self.read(layout.METRICS, partial(read_document, Metrics))

    @cached_property
    def per_image(self) -> pd.DataFrame | None:
        """The bits/dim of every image."""
        return self.read(layout.PER_IMAGE, partial(read_per_image, metrics=self.metrics, images=self.images))

    @cached_property
    def noise_levels(self) -> pd.DataFrame | None:
        """The diffusion term at some times."""
        names = ("t", "gamma", "diffusion_bpd", "standard_error")
        return self.read(layout.NOISE_LEVELS, partial(read_table, names=names))

    @cached_property
    def curves(self) -> pd.DataFrame | None:
        """The losses of the training."""
        return self.read(layout.CURVES, partial(read_table, names=("step", "bpd")))

    @cached_property
    def findings(self) -> Checked | None:
        """What the contract found."""
        return self.read(layout.FINDINGS, partial(read_document, Checked))

    @cached_property
    def samples(self) -> np.ndarray | None:
        """Samples (N,C,H,W)."""
        return self.read(layout.SAMPLES_ARRAY, partial(read_samples, images=self.images))

    @cached_property
    def sample_metrics(self) -> SampleMetrics | None:
        """The quality of the samples."""
        return self.read(layout.SAMPLE_METRICS, partial(read_document, SampleMetrics))

    @cached_property
    def neighbours(self) -> pd.DataFrame | None:
        """The samples that are nearest to a training image."""
        return self.read(layout.NEIGHBOURS, partial(read_neighbours, samples=self.samples, images=self.images))

    @cached_property
    def denoising(self) -> bytes | None:
        """The film of a denoising, a PNG file."""
        return self.read(layout.DENOISING, read_bounded)

    @cached_property
    def images_here(self) -> ImageSet | None:
        """The image set of the place, which may be another one than that of the metrics."""
        return self.place.images()

    @cached_property
    def images(self) -> ImageSet | None:
        """The image set that was evaluated."""
        here = self.images_here
        return here if here and here.data_sha256 == self.metrics.data_sha256 else None

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Those of all images of the split in the metrics, (N,) integers."""
        split = self.metrics.split
        return self.images.labels(split) if self.images and split != "other" else None

    @cached_property
    def trained(self) -> "TrainedModel | None":
        """The model of the place, which may be another one than that of the metrics."""
        return self.place.model()

    @cached_property
    def model(self) -> ShownModel | None:
        """What the page shows of the model, if it is the one that was evaluated."""
        trained = self.trained
        return describe_shown(trained) if trained and trained.sha256 == self.metrics.model_sha256 else None

    @property
    def schedule(self) -> pd.DataFrame | None:
        """The noise schedule of the model, if it is the one that was evaluated."""
        return self.model.schedule if self.model else None

    @cached_property
    def versions(self) -> pd.DataFrame | None:
        """The versions of the registry: name, state, num_train, bpd and standard_error of validation images, ancestor.

        None for a model that is no version.
        """
        return self.place.versions()

    @cached_property
    def notes(self) -> list[str]:
        """Sentences about results that do not belong together, and about what a person has to decide."""
        return [*self.disagreements(), *self.place.notes()]

    def disagreements(self) -> Iterator[str]:
        """Yield sentences about results that are of another model or of other images than the metrics."""
        metrics, samples = self.metrics, self.sample_metrics
        if self.images_here and not self.images:
            yield "The image set is not the one that was evaluated, so no images are shown."
        if self.findings and self.findings.data_sha256 != metrics.data_sha256:
            yield "What the contract found is about other images than the metrics."
        if samples and (samples.model_sha256, samples.data_sha256) != (metrics.model_sha256, metrics.data_sha256):
            yield "The quality of samples was measured with another model or other images than the metrics."
        if self.trained and not self.model:
            yield "The model is not the one that was evaluated, so its noise schedule is left out."

    def read(self, name: Path, reader: Callable[[Path], T]) -> T | None:
        """Return what `reader` reads of a result; None if there is none."""
        with self.place.file(name) as path:
            return None if path is None else reader(path)


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
