"""The likelihood of the probability-flow ODE on a split, and the paired comparison of two models."""

import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from flows.core.device import find_device
from flows.core.errors import Exit, UserError
from flows.evaluation.bound import digests, evaluate_split, load_fitting, named, warn_if_seen
from flows.evaluation.results import Comparison, ModelFigures, OdeMetrics
from flows.images.labels import classes_of, given_class
from flows.images.store import load_images, spread
from vdm import evaluation
from vdm.choices import Split
from vdm.model import images_per_batch
from vdm.ode import evaluate_ode

if TYPE_CHECKING:
    from flows.core.params import Evaluate, Ode

log = logging.getLogger(__name__)

NUM_REPEATED = 8
"""The number of images on which `ode` measures the numerical error: few, so that a whole set hardly takes longer."""


def ode(settings: "Ode", *, model: Path, images: Path, split: Split = "test") -> OdeMetrics:
    """Return the likelihood of the probability-flow ODE on `num_images` images of a split, evenly spread, in bits/dim.

    Its numerical error is the mean difference from a tenth of the tolerance, with the same draws and probes, over the
    first `NUM_REPEATED` of the images.  Raises what `load_fitting` raises, and UserError (exit 2) if no step of the
    solver is short enough.
    """
    from flows.evaluation.solver import dopri5  # imports SciPy for half a second, which `compare` does not need

    device = find_device(settings.device)
    vdm, pixels = load_fitting(model, images, device, split, settings.num_images)
    vdm.requires_grad_(False)  # the ODE needs only the gradient with respect to the images
    warn_if_seen(model, split)
    classed = given_class(model, settings.given, images)
    labels = spread(classes_of(images, split, model), settings.num_images) if classed else None
    options = settings.model_dump(include={"seed", "dequantisation", "num_draws", "num_probes", "batch_size"})
    of_set: dict[str, Any] = options | {"labels": labels}
    repeated = pixels[:NUM_REPEATED]
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    per_batch = images_per_batch(settings.batch_size, settings.num_draws)
    # The solver moves the bar by the shares of a batch.  Rounded, they add up to a little more than 1.
    total = (1 + 1e-9) * (math.ceil(len(repeated) / per_batch) + math.ceil(len(pixels) / per_batch))
    begin = time.monotonic()
    with tqdm(desc="evaluating", total=total, bar_format=form, disable=None, leave=False) as shown:
        accurate = evaluate_ode(vdm, repeated, solve=dopri5(settings.tolerance / 10, shown.update), **of_set)
        # A tenth of the tolerance takes a solver of order 5 as many steps times 10^(1/5).
        minutes = (time.monotonic() - begin) / len(repeated) / 10**0.2 / 60
        num_images, num_all = len(pixels), len(getattr(load_images(images), split))
        words = "%d images take about %.1f minutes or less, all %d about %.1f"
        log.info(words, num_images, minutes * num_images, num_all, minutes * num_all)
        bpd = evaluate_ode(vdm, pixels, solve=dopri5(settings.tolerance, shown.update), **of_set)
    return OdeMetrics(
        split=named(images, split),
        bpd=bpd.mean(),
        bpd_standard_error=evaluation.standard_error(bpd),
        bpd_numerical_error=(bpd[: len(repeated)] - accurate).mean(),
        num_images=len(bpd),
        num_repeated=len(repeated),
        tolerance=settings.tolerance,
        given="class" if classed else "nothing",
        **options,
        **digests(model, images),
    )


def compare(
    settings: "Evaluate", *models: tuple[str, Path], images: Path, confidence: float, split: Split = "test"
) -> Comparison:
    """Return the difference second - first in bits/dim over the same images, times and noise, with its interval.

    `models` are the names and folders of the two.  With `settings.given` auto, p(x | c) is compared if both have
    classes, and else p(x).  Raises what `load_fitting` raises.
    """
    _, (_, second) = models
    load_fitting(second, images, find_device(settings.device), split)  # report its errors before the first is evaluated
    classed = [given_class(model, "auto", images) for _, model in models]
    if settings.given == "class" and not any(classed):
        raise UserError(f"neither model has classes, or {images} no labels; leave out --given class", Exit.USAGE)
    given = settings.given if settings.given != "auto" else "class" if all(classed) else "nothing"
    results = [
        evaluate_split(settings, model, images, split, ["class" if known and given == "class" else None])[0]
        for (_, model), known in zip(models, classed, strict=True)
    ]
    figures = [
        ModelFigures(
            model=name, bpd=result.bpd.mean(), bpd_standard_error=result.standard_error, **digests(model, images)
        )
        for (name, model), result in zip(models, results, strict=True)
    ]
    paired = evaluation.paired_difference(*(result.bpd for result in results), confidence=confidence)
    return Comparison(
        split=split,
        models=figures,
        difference_bpd=paired.difference,
        difference_standard_error=paired.standard_error,
        confidence=confidence,
        confidence_interval=list(paired.interval),
        num_images=paired.num_images,
        seed=settings.seed,
        times_per_image=settings.times_per_image,
        num_timesteps=settings.num_timesteps,
        given=given,
    )
