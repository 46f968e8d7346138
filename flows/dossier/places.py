"""Where results lie: in the project's outputs, or in a model folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flows.core import layout
from flows.core.documents import Document, Sha256, read_document
from flows.core.errors import Exit, FileError, UserError
from flows.dossier.origin import Origin, origin_here
from flows.images.image_set import ImageSet, open_images

if TYPE_CHECKING:
    from flows.core.model import TrainedModel

OF_SAMPLES = (layout.SAMPLE_METRICS, layout.SAMPLES_ARRAY, layout.NEIGHBOURS, layout.DENOISING)
RESULTS = (layout.METRICS, layout.PER_IMAGE, layout.NOISE_LEVELS, layout.CURVES, layout.FINDINGS, *OF_SAMPLES)
"""Where the pipeline writes what the page shows, below the project's folder."""


class OfModel(Document):
    """Of which model a document is."""

    model_sha256: Sha256 | None = None


class Outputs:
    """The outputs of the pipeline in the project's folder, which are of the model in `model`, by default models/vdm."""

    def __init__(
        self, folder: Path, parameters: Callable[[], Mapping[str, Any]], model: Path = layout.REGISTERED
    ) -> None:
        self.folder, self.parameters, self.model_folder = folder, parameters, model

    @contextmanager
    def file(self, name: Path) -> Iterator[Path | None]:
        """Yield where a result is; None if it was not made."""
        yield present(self.folder / name)

    def missing(self, name: Path) -> UserError:
        """Return the error that a result was not made."""
        return FileError(self.folder / name, "missing; run `dvc repro`")

    def origin(self) -> Origin:
        """Return the parameters, and how to make the results again."""
        return origin_here(self.model_folder, self.parameters())

    def images(self) -> ImageSet | None:
        """Return the image set, if there is one.  Raises UserError (exit 5) if it is damaged."""
        folder = self.folder / layout.IMAGES
        return open_images(folder) if folder.exists() else None

    def model(self) -> "TrainedModel | None":
        """Return the model, if there is one.  Raises UserError (exit 5) if it is damaged."""
        folder = self.folder / self.model_folder
        if not folder.exists():
            return None
        from flows.core.model import open_model  # torch takes a second

        return open_model(folder)

    def versions(self) -> pd.DataFrame | None:
        """Return None: the outputs are no version."""
        return None

    def notes(self) -> list[str]:
        """Return nothing."""
        return []


class ModelFolder:
    """A model folder with results in it, at the paths that the outputs have in `reports`.

    Results that it lacks are the project's outputs, if these are of its model.  Those of an evaluation come from one
    place, and so do those of samples.
    """

    def __init__(self, trained: "TrainedModel", outputs: Outputs, command: str) -> None:
        """`command` evaluates the model."""
        self.trained, self.outputs, self.command = trained, outputs, command
        self.folder = Path(trained.name)
        self.is_own = cache(self.find_own)

    @contextmanager
    def file(self, name: Path) -> Iterator[Path | None]:
        """Yield where a result of the model is; None if there is none."""
        own = self.is_own(document_of(name))
        if own is None and name in OF_SAMPLES:  # samples of which nobody measured the quality
            beside = self.is_own(layout.METRICS)
            own = None if beside is None or self.place_of(layout.SAMPLE_METRICS, own=beside).exists() else beside
        yield None if own is None else present(self.place_of(name, own=own))

    def find_own(self, document: Path) -> bool | None:
        """Return whether a document of the model is in its folder; None if it is not among the outputs either."""
        for own in (True, False):
            place = self.place_of(document, own=own)
            if place.exists() and read_document(OfModel, place).model_sha256 == self.trained.sha256:
                return own
        return None

    def place_of(self, name: Path, *, own: bool) -> Path:
        """Return where a result is in the folder of the model, or among the outputs."""
        return self.folder / name.relative_to(layout.REPORTS) if own else self.outputs.folder / name

    def missing(self, name: Path) -> UserError:
        """Return the error that the model was not evaluated, or has no such result, with the command that makes it."""
        other = self.place_of(name, own=True)
        if other.exists():
            return UserError(f"{other} is about another model; run `{self.command}`", Exit.MISSING)
        if name == layout.METRICS:
            return UserError(f"{self.folder}: not evaluated yet; run `{self.command}`", Exit.MISSING)
        reason = f"{self.folder} has no {name.relative_to(layout.REPORTS)} of this model"
        return UserError(f"{reason}; `{self.command}` makes it from the model's images", Exit.MISSING)

    def origin(self) -> Origin:
        """Return the parameters of the training, and how to evaluate the model; those of outputs if these are used."""
        if self.is_own(layout.METRICS) is False:
            return self.outputs.origin()
        # Shape and levels are those of the images, and no parameters.
        arguments = self.trained.description.model
        ours = {"classes": None} | {key: arguments[key] for key in arguments.keys() - {"image_shape", "num_levels"}}
        return Origin(str(self.folder), self.trained.parameters | {"model": ours}, {}, [self.command])

    def images(self) -> ImageSet | None:
        """Return the project's image set, if there is one."""
        return self.outputs.images()

    def model(self) -> "TrainedModel":
        """Return the model."""
        return self.trained

    def versions(self) -> pd.DataFrame | None:
        """Return None: a folder is no version."""
        return None

    def notes(self) -> list[str]:
        """Return nothing."""
        return []


def document_of(name: Path) -> Path:
    """Return the document that says of which model a result is."""
    if name in (layout.CALIBRATION, layout.ERROR_CURVE):
        return name
    return layout.SAMPLE_METRICS if name in OF_SAMPLES else layout.METRICS


def present(path: Path) -> Path | None:
    """Return the path; None if nothing is there."""
    return path if path.exists() else None
