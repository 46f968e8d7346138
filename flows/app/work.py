"""What a request makes the device do: scores, drawings and classes, by the functions behind the commands.

Each is a generator of frames, if it has some, and at last its answer.  Between two pieces of work, of a batch of
network evaluations at most, it calls `pause`, which raises when the work is given up; so may whoever takes a frame.
"""

import math
from collections.abc import Callable, Generator, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch

from flows.app.answers import Classes, ClassifiedImage, Drawn, Frame, ScoredImage, Scores
from flows.app.pictures import Allowance, SentImages, a_file, npy_base64, png_base64, read_sent
from flows.app.questions import MOST_TIMES, HowToDraw, ToClassify, ToFillIn, ToSample, ToScore
from flows.core.documents import Document
from flows.core.errors import Exit, UserError
from flows.core.model import TrainedModel
from flows.core.params import Evaluate, Sample
from flows.evaluation.calibration import Calibration
from flows.evaluation.classes import SURE, classify
from flows.evaluation.surprise import Compared, compare_with_held_out, reason_without_p
from flows.evaluation.terms import Advance, terms
from flows.images.as_png import measure_png
from flows.images.grids import as_8_bits, png
from flows.images.made_to_fit import read_to_fit
from flows.images.user_files import require_size, transforms_of
from flows.sampling.drawing import Drawing
from flows.sampling.film import pixels
from flows.sampling.request import read_known, read_mask
from vdm.evaluation import stratified_times, terms_of_set
from vdm.samplers import SAMPLERS
from vdm.sampling import Step, decode, noise_levels
from vdm.vlb import grid_times

MOST_FRAMES, MOST_SHOWN = 30, 64
"""How many steps of a drawing are shown, and of how many images."""
Pause = Callable[[], None]
Work = Generator[Document]


def require_few(evaluations: int, most: int) -> None:
    """Raise UserError (exit 2) if a request takes more evaluations of the network than it may."""
    if evaluations > most:
        advice = "ask for less at once, or start the app with another --most-evaluations"
        reason = f"this takes {evaluations:,} evaluations of the network, and a request may take {most:,}"
        raise UserError(f"{reason}; {advice}", Exit.USAGE)


def draw_sample(model: TrainedModel, settings: Sample, most: int, asked: ToSample, _: Pause) -> Work:
    """Draw images."""
    solver = SAMPLERS[asked.sampler].settings if asked.sampler else {}
    yield from draw_frames(Drawing(model, apply_options(model, settings, asked, asked.num_images, **solver)), most)


def draw_filled_in(model: TrainedModel, settings: Sample, most: int, asked: ToFillIn, pause: Pause) -> Work:
    """Fill in the pixels of a picture where its mask is bright."""
    allowance = Allowance()
    with a_file(asked.picture) as path:
        stated = transforms_of(model)
        if asked.picture.fit:
            allowance.take(path)
            known = torch.from_numpy(read_to_fit(path, model, stated).pixels[0].astype(np.int64))
        else:
            require_size(path, None, model, small=True, shown=asked.picture.name)
            allowance.take(path)
            known = read_known(path, model.vdm, stated)
    pause()
    with a_file(asked.mask) as path:
        require_size(path, None, model, small=True, shown=asked.mask.name)
        allowance.take(path)
        missing = read_mask(path, model.vdm)
    drawing = Drawing(model, apply_options(model, settings, asked, asked.num_images), known, missing)
    yield from draw_frames(drawing, most)


def apply_options(model: TrainedModel, settings: Sample, asked: HowToDraw, num_images: int, **solver: Any) -> Sample:
    """Return the settings with what was asked.  Raises UserError (exit 2) for a class that the model does not have."""
    count = model.num_classes or 0
    if asked.classes and not count:
        raise UserError(f"classes: {model.name} has none; leave them out", Exit.USAGE)
    if unknown := [each for each in asked.classes or [] if each >= count]:
        raise UserError(f"classes: {model.name} has no class {unknown[0]}, only 0 to {count - 1}", Exit.USAGE)
    given = {"num_timesteps": asked.steps, "seed": asked.seed, "guidance": asked.guidance, **solver}
    given = {name: value for name, value in given.items() if value is not None}
    classes = asked.classes or list(range(count)) or None
    return settings.model_copy(update=given | {"classes": classes, "num_images": num_images})


def draw_frames(drawing: Drawing, most: int) -> Work:
    """Yield a frame after each step, and at last the images.

    Raises UserError: exit 5 for a model that draws none, 2 for more than `most` evaluations of the network.
    """
    require_few(drawing.num_evaluations, most)
    model, settings, begin = drawing.model, drawing.settings, perf_counter()
    vdm, solver = model.vdm, drawing.solver
    batches = drawing.batches(range(settings.num_images))
    parts = list[torch.Tensor]()
    try:
        gammas = noise_levels(vdm.schedule, solver)[1:].tolist()
        total, every = len(batches) * len(gammas), -(-len(gammas) // MOST_FRAMES)
        for batch in batches:
            for number, step in enumerate(drawing.steps(batch)):
                is_shown = batch is batches[0] and (len(gammas) - 1 - number) % every == 0
                yield Frame(
                    step=len(parts) * len(gammas) + number + 1,
                    steps=total,
                    gamma=gammas[number],
                    z=pictures_of(step.z) if is_shown else None,
                    x_hat=pictures_of(step.x_hat) if is_shown else None,
                )
            parts.append(decode(vdm, [Step(step.z, step.x_hat)]))
    except ArithmeticError as error:
        raise UserError(f"no images can be drawn from this model: {error}", Exit.MISSING) from error
    images = drawing.joined(parts)
    yield Drawn(
        model=model.name,
        model_sha256=model.sha256,
        num_images=len(images),
        seed=settings.seed,
        **solver._asdict(),
        approximate=drawing.known is not None,
        seconds=perf_counter() - begin,
        images=[png_base64(image, model.num_levels) for image in images],
        npy=npy_base64(images),
    )


def pictures_of(x: torch.Tensor) -> list[str]:
    """Return the first images of x (N,C,H,W), in [-1, 1], as PNG files."""
    return [png_base64(image, 256) for image in pixels(x[:MOST_SHOWN])]


def make_pause(pause: Pause) -> Advance:
    """Return what makes an evaluation pause before each batch."""

    def numbers(batches: range) -> Iterator[int]:
        for number in batches:
            pause()
            yield number

    return numbers


def score(
    model: TrainedModel, settings: Evaluate, most: int, asked: ToScore, calibration: Calibration | None, pause: Pause
) -> Work:
    """Evaluate the bound of p(x) of each picture, as if it were alone, and compare it with held-out images, if any.

    Raises what `read_sent` and `require_few` raise.
    """
    given: dict[str, Any] = {"times_per_image": asked.times, "seed": asked.seed}
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    sent = read_sent(asked.pictures, model, pause)
    require_few(len(sent.images) * settings.times_per_image, most)
    (found,) = terms(model, sent.images, settings, [None], alone=True, progress=make_pause(pause))
    size = settings.batch_size
    odd = [
        compare_with_held_out(model, sent.images.pixels[first : first + size], calibration, (), size)
        for first in make_pause(pause)(range(0, len(sent.images), size))
        if calibration
    ]
    yield Scores(
        model=model.name,
        model_sha256=model.sha256,
        given="nothing",
        seed=settings.seed,
        times_per_image=settings.times_per_image,
        num_timesteps=settings.num_timesteps,
        transforms=sent.images.set.description.transforms,
        num_calibrated=len(calibration.reference.scores) if calibration else None,
        without_p=reason_without_p(calibration) if calibration else None,
        images=list(score_images(model, settings, sent, found, odd)),
        refused=sent.refused,
    )


def score_images(
    model: TrainedModel, settings: Evaluate, sent: SentImages, found: np.ndarray, odd: list[Compared]
) -> Iterator[ScoredImage]:
    """Yield the score of each image by its terms (3,N,K), and by its comparison with held-out images."""
    images = sent.images.pixels
    scores, p = (np.concatenate([np.zeros(0), *(part[place] for part in odd)]) for place in (0, 1))
    words = [each for part in odd for each in part.words]
    times = torch.from_numpy(stratified_times(settings.seed, [0], settings.times_per_image)[0])
    if settings.num_timesteps is not None:
        times = grid_times(times, settings.num_timesteps)
    with torch.inference_mode():
        gamma = model.vdm.schedule(times.float().to(model.device)).tolist()
    for place, picture in enumerate(sent.pictures):
        result = terms_of_set(found[:, [place]])
        bpd, error = result.bpd.item(), math.sqrt(result.diffusion_variance.item())
        image = images[place : place + 1]
        in_png = measure_png(image).bpd if model.num_levels > 256 else png_bpd(image, model.num_levels)
        yield ScoredImage(
            name=str(picture.name),
            number=picture.number,
            seen=png_base64(images[place], model.num_levels),
            changed=picture.changes or None,
            bpd=bpd,
            bpd_standard_error=error,
            prior_bpd=result.prior.item(),
            reconstruction_bpd=result.reconstruction.item(),
            diffusion_bpd=result.diffusion.item(),
            score=scores[place] if odd else None,
            p=p[place] if odd else None,
            words=words[place] if odd else "",
            png_bpd=in_png if model.image_shape[0] in (1, 3) else None,
            gamma=gamma,
            level_bpd=result.diffusion_draws[0].tolist(),
        )


def png_bpd(image: np.ndarray, num_levels: int) -> float:
    """Return what an image (1,C,H,W) takes in a PNG file of its shades, in bits/dim."""
    return 8 * len(png(as_8_bits(image, num_levels)[0])) / image.size


def classify_pictures(model: TrainedModel, settings: Evaluate, most: int, asked: ToClassify, pause: Pause) -> Work:
    """Classify each picture, as if it were alone, at `MOST_TIMES` noise levels at most.

    Raises what `read_sent` and `require_few` raise, and UserError (exit 2) for a model without classes.
    """
    if model.num_classes is None:
        raise UserError(f"{model.name} has no classes", Exit.USAGE)
    given: dict[str, Any] = {"class_times": asked.times, "seed": asked.seed}
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    sent = read_sent(asked.pictures, model, pause)
    at_each_level = len(sent.images) * model.num_classes
    require_few(at_each_level * settings.class_times, most)
    options: dict[str, Any] = {"until_sure": asked.until_sure, "most_times": min(MOST_TIMES, most // at_each_level)}
    result = classify(settings, model, sent.images, progress=make_pause(pause), **options)
    margins = zip(result.margin, result.margin_standard_error, strict=True)
    yield Classes(
        model=model.name,
        model_sha256=model.sha256,
        seed=settings.seed,
        num_timesteps=settings.num_timesteps,
        images=[
            ClassifiedImage(
                name=str(picture.name),
                number=picture.number,
                seen=png_base64(sent.images.pixels[place], model.num_levels),
                changed=picture.changes or None,
                best=result.best[place],
                class_name=result.names[place] if result.names else str(result.best[place]),
                probabilities=result.probabilities[place],
                log_likelihoods=result.log_likelihoods[place],
                margin=margin,
                margin_standard_error=error,
                times=result.times[place],
                sure=margin is not None and error is not None and margin >= SURE * error,
            )
            for place, (picture, (margin, error)) in enumerate(zip(sent.pictures, margins, strict=True))
        ],
        refused=sent.refused,
    )
