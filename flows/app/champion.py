"""Which model answers, and the change to a new champion between two requests.

The champion's tag is looked at in the git repository.  The files of a new one are fetched, their digests checked, an
image is drawn in one step, and its results are read, before it answers; one that does not check is not switched to.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch

from flows.app.answers import About, NoiseSchedule
from flows.app.questions import ToSample
from flows.app.work import apply_options
from flows.core.card import card
from flows.core.errors import Exit, UserError, brief, file_problem
from flows.core.model import TrainedModel
from flows.core.params import Evaluate, Sample
from flows.dossier.calibration import calibration_of
from flows.dossier.dossier import Dossier
from flows.dossier.opening import dossier_of
from flows.evaluation.calibration import Calibration
from flows.images.image_set import dtype_of, load_array, spread
from flows.project.project import Project
from flows.registry.fetching import fetch_model
from flows.registry.lineage import trace_lineage
from flows.registry.publishing import fetch_tags
from flows.registry.versions import Version
from flows.report.page import judge_results, png_of
from flows.repository.tags import CHAMPION
from flows.sampling.drawing import Drawing
from vdm.sampling import decode

LOOK_SECONDS = 30.0
EXAMPLES, MOST_EXAMPLES = "examples.npy", 10
"""The file beside the weights with a few test images of a model that is given away without its images."""
log = logging.getLogger(__name__)


class Served:
    """A model that answers, with what its folder and the registry say of it, read once: its files may vanish."""

    def __init__(self, project: Project, model: TrainedModel, version: Version | None) -> None:
        self.model, self.version = model, version
        self.card = card(model, model.training, model.name) if model.training else None
        self.lineage = trace_lineage(project.registry, version).model_dump(exclude_unset=True) if version else None
        self.shipped = find_examples(model)
        self.dossier: Dossier | None = None
        """Its results, once they were read."""
        self.calibration: Calibration | None = None
        """The features of held-out images, with which pictures are compared."""
        self.problem: str | None = None
        self.judgement: list[str] = []
        """What the results mean, in words."""
        self.report: bytes | None = None
        """The report page, once somebody has asked for it."""

    def read_results(self, project: Project) -> None:
        """Read the results of the model, which takes seconds; what is wrong with them is their `problem`."""
        dossier = dossier_of(project, self.model)
        with suppress(UserError):
            calibration = calibration_of(dossier)
            if len(calibration.reference.scores):  # which fails for features that cannot be compared
                self.calibration = calibration
        try:
            dossier.read_all()
            ours = dossier.model is not None
            self.judgement = [remark.text for remark in judge_results(dossier, png_of(dossier))] if ours else []
            self.dossier = dossier if ours else None
            self.problem = None if ours else "the results are of another model"
        except Exception as error:  # the model answers without its results
            self.problem = file_problem(error) if isinstance(error, OSError) else brief(error)

    @property
    def examples(self) -> np.ndarray:
        """A few test images (N,C,H,W), to try the model with; none where none are known."""
        if self.shipped is not None:
            return self.shipped
        images = self.dossier.images if self.dossier else None
        return (
            spread(images["test"], MOST_EXAMPLES)
            if images
            else np.empty((0, *self.model.image_shape), dtype_of(self.model.num_levels))
        )

    def own(self, settings: Evaluate) -> Evaluate:
        """Return the settings with those of the model's own evaluation, if they are known.

        Its test images were evaluated so, and a picture's bits/dim are comparable with theirs.
        """
        if not self.dossier:
            return settings
        metrics = self.dossier.metrics
        found = {"times_per_image": metrics.times_per_image, "num_timesteps": metrics.num_timesteps}
        found |= {} if metrics.seed is None else {"seed": metrics.seed}
        found |= {"class_times": metrics.classes.class_times} if metrics.classes else {}
        return settings.model_copy(update=found)

    def about(self, **more: object) -> About:
        """Return what is known about the model."""
        model, dossier, t = self.model, self.dossier, torch.linspace(0, 1, 101)
        with torch.inference_mode():
            gamma = model.vdm.schedule(t.to(model.device)).cpu()
        return About.model_validate(
            {
                "name": model.name,
                "model_sha256": model.sha256,
                "num_parameters": sum(p.numel() for p in model.vdm.parameters()),
                "image_shape": list(model.image_shape),
                "num_levels": model.num_levels,
                "num_classes": model.num_classes,
                "class_names": model.class_names,
                "card": self.card,
                "lineage": self.lineage,
                "judgement": self.judgement,
                "figures": dossier and dossier.metrics,
                "samples": dossier and dossier.sample_metrics,
                "problem": self.problem,
                "schedule": NoiseSchedule(t=t.tolist(), gamma=gamma.tolist()),
                "report": dossier is not None,
                "num_calibrated": len(self.calibration.reference.scores) if self.calibration else None,
                "device": str(model.device),
                **more,
            }
        )


def find_examples(model: TrainedModel) -> np.ndarray | None:
    """Return the images beside the weights; None without any.  Raises UserError (exit 5) if they are damaged."""
    path = model.folder / EXAMPLES
    if not path.exists():
        return None
    images = np.array(load_array(path))
    fitting = images.shape[1:] == model.image_shape and images.dtype == dtype_of(model.num_levels)
    if not fitting or images.max(initial=0) >= model.num_levels:
        raise UserError(f"{path}: damaged: no images of the model; remove it", Exit.MISSING)
    return images


def require_drawing(model: TrainedModel, settings: Sample) -> None:
    """Draw one image in one step.  Raises UserError (exit 5) for a model that draws none."""
    drawing = Drawing(model, apply_options(model, settings, ToSample(steps=1), 1))
    try:
        decode(model.vdm, drawing.steps(range(1)))
    except ArithmeticError as error:
        raise UserError(f"{model.name} draws no images: {error}", Exit.MISSING) from error


class Following:
    """The model that answers, and whether the present champion takes its place."""

    def __init__(
        self,
        project: Project,
        model: TrainedModel,
        version: Version | None,
        settings: Sample,
        *,
        follows: bool,
        share: bool,
    ) -> None:
        self.project, self.settings = project, settings
        self.device = model.device
        self.follows, self.share = follows, share
        self.served = Served(project, model, version)
        self.have_results = asyncio.Event()
        """Whether the results of the first model were read, or cannot be; those of its successors are."""
        self.problem: str | None = None
        """Why the present champion does not answer."""

    def look(self) -> None:
        """Change to the present champion if it is another version, and checks."""
        problem = self.attempted(lambda: fetch_tags(self.project.repository)) if self.share else None
        problem = self.attempted(self.change) or problem
        if problem and problem != self.problem:
            log.warning("%s goes on: %s", self.served.model.name, problem)
        self.problem = problem

    def attempted(self, step: Callable[[], object]) -> str | None:
        """Take a step, and return why it cannot be taken, such as a lack of memory for two models."""
        try:
            step()
        except Exception as error:
            return file_problem(error) if isinstance(error, OSError) else brief(error)
        return None

    def change(self) -> None:
        """Change to the champion, if it is another version.  Raises what hinders it."""
        project, present = Project(self.project.folder), self.served.version
        registry = project.registry
        tag = registry.champion_tag
        if tag is None or (present and tag.commit == present.commit):
            return
        version = registry.resolve(CHAMPION)
        served = Served(project, fetch_model(project.repository, version).on(self.device), version)
        require_drawing(served.model, self.settings)
        served.read_results(project)  # which may fetch images, for its report
        self.served = served
        log.info("%s answers from now on", version.name)

    async def keep_looking(self) -> None:
        """Read the results of the model, then look for a new champion every `LOOK_SECONDS`, in a thread."""
        await asyncio.to_thread(self.served.read_results, self.project)
        self.have_results.set()
        while self.follows:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)
