"""Models in Python: load, train and save them, and use them as `vdmctl` does.  docs/python.md has an example of each.

Images are arrays (N,C,H,W) of integer levels, 0..num_levels-1, and a model is a `vdm.model.VDM` in evaluation mode.
The defaults are those of presets/digits.yaml, except that the network computes in float32, where `vdmctl` may take
bfloat16; training takes what is faster here.  Only `save` writes a file.

Seconds in these texts are those of digits, 8x8 pixels, and of images of 28x28 pixels, on two CPU cores.
"""

import hashlib
import logging
import math
from collections.abc import Collection
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flows.compression.coding import coding_of, new_coding
from flows.core.ancestry import SeenImages
from flows.core.card import CARD, card
from flows.core.errors import Exit, UserError
from flows.core.escaping import list_names
from flows.core.files import replace_folder, write_whole
from flows.core.model import (
    CONFIG,
    TRAINING,
    WEIGHTS,
    DescribedVDM,
    TrainedModel,
    copy_model,
    model_in_memory,
    read_config,
)
from flows.evaluation.calibration import Calibration, calibration_with
from flows.evaluation.surprise import Compared, compare_with_held_out
from flows.images.image_set import dtype_of
from flows.images.splitting import digest_of
from flows.project.project import Project
from flows.sampling.drawing import REPEATS
from vdm import evaluation, sampling
from vdm.classification import Classified, class_losses, classify_alone
from vdm.evaluation import BoundSettings, Evaluation, PairedDifference
from vdm.grids import Grid
from vdm.model import VDM
from vdm.sampling import Solver

BATCH = 400
BATCH_OF_EVALUATIONS = 512
BATCH_TO_COMPRESS = 32
SURPRISE_LEVELS = 4
LEVELS = 256
"""Of images whose levels are not stated."""
COLOURS = (1, 3, 4)
"""Channels of gray images, of colours, and of colours with transparency."""
DEFAULT = Solver(num_timesteps=25, order=2)
log = logging.getLogger(__name__)


def load(model: str | Path, device: str = "auto", *, network: nn.Module | None = None) -> VDM:
    """Return a model in evaluation mode: a folder, or a version of this folder's project, `vdm@v1.2.0` or `champion`.

    `device` is cpu, cuda, cuda:N, or auto: CUDA if torch finds it.  Nothing in the folder is run.  A model that was
    trained with a network of your own needs one, `network`, made with the same arguments.  Raises UserError.
    """
    return Project().model(str(model), device, network).vdm


def save(model: VDM, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a model of `train` or `load` into a new folder, which `load` and `vdmctl` read: wholly, or not at all.

    With `overwrite`, the folder of another model is replaced, if it holds nothing else.  A loaded model keeps what is
    known of its training, with the licence of its images.  Raises UserError if the folder exists, OSError that names
    what cannot be written, and TypeError for a network that neither function made.
    """
    folder = Path(folder)
    known = model_in_memory(model)
    if folder.exists() and not overwrite:
        advice = "save the model, which is still in memory, into another folder, or with overwrite=True"
        raise UserError(f"{folder} exists; {advice}", Exit.USAGE)
    if folder.exists():
        require_saved_model(folder)
    with replace_folder(folder) as empty:
        copy_model(empty, known)
        if known.training:
            write_whole(empty / CARD, card(known, known.training, str(folder)))


def require_saved_model(folder: Path) -> None:
    """Raise UserError (exit 2) unless a folder is a model, and holds only files that `save` writes."""
    try:
        read_config(folder)
    except UserError as error:
        raise UserError(f"{folder} is no model, so it is not overwritten; name another folder", Exit.USAGE) from error
    written = {WEIGHTS, CONFIG, TRAINING, CARD}
    if others := [path.name for path in folder.iterdir() if path.name not in written or not path.is_file()]:
        reason = f"{folder} is not overwritten, since it holds more than a model: {list_names(sorted(others))}"
        raise UserError(f"{reason}; name another folder", Exit.USAGE)


def train(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    preset: str = "digits",
    start_from: VDM | None = None,
    network: nn.Module | None = None,
    num_levels: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    device: str = "auto",
) -> VDM:
    """Return a new model of averaged weights that is trained on images (N,C,H,W), for so many minutes or steps.

    For minutes, some steps are measured first, which the minutes include, and all others while they are taken; the
    learning rate falls to zero over as many steps as fit, unless the preset keeps it as it is.  The same `steps` give
    the same weights again on this machine, whatever the state of torch's random numbers, which stays as it is.  A
    progress bar shows the loss in a terminal or a notebook.

    `preset` names the network and its recipe: digits, fashion_mnist_cpu for larger images, or another file in presets/.
    With `labels` (N,), classes from 0, the model has p(x | class), too.  `num_levels` is 256 unless it is given: name
    it for images of fewer levels, since bits/dim depend on it.  With `start_from`, training begins with the weights of
    that model, which stays as it is: the images must be like its own.  The network is that of the model, and the recipe
    is that of its training, with 0.4 of the learning rate and at most half of the steps.  Where that is not known, as
    after `train`, the recipe is that of `preset`, with 0.4 of the digits' learning rate.

    `network` takes the place of the preset's: a module f(z_t, gamma_t) -> eps_hat of the shape of z_t (B,C,H,W), with
    gamma_t (B,); with labels it is f(z_t, gamma_t, class), where the number after the last class stands for "no class".
    A copy of it is trained, from its weights on.

    Raises TypeError unless the images are an array of integers, and the labels, too.  Raises ValueError for another
    shape, for levels that the model does not have, for other than one label for each image, and unless either `minutes`
    or `steps` is given and enough; UserError for a preset or a device that is missing; TrainingDiverged.
    """
    from flows.training.arrays import train_on  # a third of a second, which other functions do not need

    start = None if start_from is None else model_in_memory(start_from)
    require_images(images)
    if start and (images.shape[1:] != start.image_shape or num_levels not in (None, start.num_levels)):
        ours, theirs = (images.shape[1:], num_levels), (start.image_shape, start.num_levels)
        raise ValueError(f"images must have the shape and the levels of start_from, {theirs}, got {ours}")
    if start and network is not None:
        raise ValueError("start_from has a network already, which is trained on; leave out `network`")
    num_levels = levels_of(images, start.num_levels if start else num_levels)
    num_classes = (start.num_classes or 0) if start else None
    classes = None if labels is None else classes_of(labels, len(images), num_classes)
    if (minutes is None) == (steps is None):
        raise ValueError("say how long to train: either `minutes` or `steps`")
    if not 0 < (minutes or steps or 0) < math.inf:
        raise ValueError(f"minutes and steps must be above 0, got {minutes if steps is None else steps}")
    changes = {"seed": seed} | ({} if learning_rate is None else {"learning_rate": learning_rate})
    pixels = np.array(images, dtype_of(num_levels))
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        model = train_on(
            pixels,
            num_levels,
            classes,
            preset,
            minutes=minutes,
            steps=steps,
            start=start,
            network=network,
            device=device,
            **changes,
        )
    line = {each.model_sha256: each.name for each in start.line} if start else {}
    digests, unknown = (start and start.vdm.seen) or SeenImages(set(), line)
    model.seen = SeenImages(digests | set(map(digest_of, pixels)), unknown)
    return model


def evaluate(
    model: VDM,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    times_per_image: int = 32,
    num_timesteps: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Return the bound of every image (N,C,H,W) in bits/dim: `bpd` (N,), and `standard_error`, that of its mean.

    With `labels` (N,) it is that of p(x | class), else of p(x).  `num_timesteps` None is continuous time.  100 images
    take 1 s, or 29 s.  Raises TypeError and ValueError unless they are images of the model, and the labels its classes.
    """
    require_images(images)
    require_counts(times_per_image=times_per_image, num_timesteps=num_timesteps)
    classes = None if labels is None else classes_of(labels, len(images), model.classes or 0)
    settings = BoundSettings(
        times_per_image=times_per_image,
        batch_size=BATCH_OF_EVALUATIONS,
        seed=seed,
        grid=None if num_timesteps is None else Grid(num_timesteps),
    )
    return evaluation.evaluate(model, images, settings, labels=classes)


def compare(
    first: VDM,
    second: VDM,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    times_per_image: int = 32,
    num_timesteps: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> PairedDifference:
    """Return second - first in bits/dim over the same images, times and noise, with its standard error and interval.

    A negative `difference` means that the second model is better.  It takes and raises what `evaluate` does, and takes
    twice as long.
    """
    options: dict[str, Any] = {"times_per_image": times_per_image, "num_timesteps": num_timesteps, "seed": seed}
    bpd = [evaluate(model, images, labels, **options).bpd for model in (first, second)]
    return evaluation.paired_difference(*bpd, confidence=confidence)


def classify(model: VDM, images: np.ndarray, *, times_per_image: int = 32, seed: int = 0) -> Classified:
    """Return the likeliest class of each image (N,C,H,W), `best` (N,), `probabilities` (N,K), and a margin in nats.

    Each is classified as if it were alone.  It takes as long as evaluating the images once for each class: 1 s for 10
    digits.  Raises TypeError and ValueError unless they are images of the model, and ValueError for a model without
    classes.
    """
    require_images(images)
    if model.classes is None:
        raise ValueError("the model has no classes; give `train` the labels of its images")
    require_counts(times_per_image=times_per_image)
    settings = BoundSettings(times_per_image=times_per_image, batch_size=BATCH_OF_EVALUATIONS, seed=seed, alone=True)
    return classify_alone(class_losses(model, images, range(len(images)), settings))


def surprise(model: VDM, images: np.ndarray, held_out: np.ndarray | None = None, *, seed: int = 0) -> Compared:
    """Return how odd images (N,C,H,W) are to a model: `scores` (N,), to sort by, and `p` (N,), NaN where not valid.

    They are compared with held-out images, on which the model was not trained: `held_out` (M,C,H,W), at best a
    thousand; fewer than 197 give no p.  Without it they are those that `vdmctl evaluate` kept with a model of `load`,
    and `seed` is theirs.  100 images take 0.3 s, or 4 s, and so do 100 held-out ones.

    Images that the model is known to be trained on have no p, and no image has one if some of `held_out` are such.
    Known are those of `train` in this process, of a version, and of this folder's data/images, if these are the
    model's.  A warning says that p rests on your word where some are not known.

    Raises TypeError and ValueError unless they are images of the model, ValueError for a model of `train` without
    `held_out`, and UserError for a model of `load` without kept images and for a single held-out one.
    """
    require_images(images)
    model.require_images(images)
    known = model_in_memory(model)
    if held_out is None and known.name == DescribedVDM.name:
        raise ValueError("this model is in memory alone; give `held_out`, images on which it was not trained")
    from flows.dossier.calibration import calibration_of, images_seen_by  # half a second, which others do not need
    from flows.dossier.opening import dossier_of

    transforms = known.training.transforms if known.training else "none"
    if held_out is None:
        calibration = calibration_of(dossier_of(Project(), known))
        seen = images_seen_by(Project(), known, transforms, calibration.data_sha256)
    else:
        seen = images_seen_by(Project(), known, transforms)
        calibration = calibrate_with(known, held_out, seen.digests, seed)
    pixels = images.astype(dtype_of(known.num_levels))
    found = compare_with_held_out(known, pixels, calibration, seen.digests, BATCH_OF_EVALUATIONS)
    if seen.unknown and np.isfinite(found.p).any():
        log.warning("p rests on your word that the model saw none of these images: not all that it saw are known")
    return found


def calibrate_with(model: TrainedModel, held_out: np.ndarray, seen: Collection[bytes], seed: int) -> Calibration:
    """Return the features of held-out images (M,C,H,W), which give no p if the model has seen some of them.

    Raises what `surprise` raises.
    """
    require_images(held_out)
    model.vdm.require_images(held_out)
    pixels = held_out.astype(dtype_of(model.num_levels))
    among = sum(digest_of(image) in seen for image in pixels)
    if among:
        log.warning("no p: the model was trained on %d of the %d held-out images", among, len(pixels))
    about: dict[str, Any] = {"data_sha256": None, "split": "validation", "held_out": not among}
    settings = {"levels": SURPRISE_LEVELS, "seed": seed, "batch_size": BATCH_OF_EVALUATIONS}
    return calibration_with(model, pixels, **settings, **about)


def sample(model: VDM, num_images: int, *, seed: int = 0, solver: Solver = DEFAULT) -> np.ndarray:
    """Return images (N,C,H,W).  Image i of a seed is the same picture, however many are drawn.

    64 images take 0.3 s, or 6 s.  `solver` chooses the number of steps, the classes and the guidance.  Raises
    ValueError for less than one image or step.
    """
    require_counts(num_images=num_images, num_timesteps=solver.num_timesteps)
    batches = (range(first, min(first + BATCH, num_images)) for first in range(0, num_images, BATCH))
    return torch.cat([sampling.sample(model, batch, solver, seed=seed) for batch in batches]).cpu().numpy()


def fill_in(
    model: VDM, image: np.ndarray, missing: np.ndarray, num_images: int = 1, *, seed: int = 0, solver: Solver = DEFAULT
) -> np.ndarray:
    """Return images (N,C,H,W) with the pixels of `image` (C,H,W) except where the mask `missing` (H,W) is true.

    It is an approximation, and takes ten times as long as `sample`.  Raises what `vdm.sampling.fill_in` and `sample`
    raise.
    """
    require_counts(num_images=num_images, num_timesteps=solver.num_timesteps)
    known, mask = torch.tensor(image), torch.tensor(missing)
    steps = sampling.fill_in(model, known, mask, range(num_images), solver, seed=seed, repeats=REPEATS)
    return np.where(missing, sampling.decode(model, steps).cpu().numpy(), image)


def compress(model: VDM, images: np.ndarray, *, num_timesteps: int = 100) -> bytes:
    """Return images (N,C,H,W) without loss, as the content of a .vdmz file, for `decompress` and `vdmctl decompress`.

    It takes `num_timesteps` evaluations of the network for each image: 10 s for 50 digits.  Both need the same model,
    versions and kind of processor.  Raises TypeError and ValueError unless they are images of the model.
    """
    require_images(images)
    require_counts(num_timesteps=num_timesteps)
    model.require_images(images)
    known, pixels = model_in_memory(model), np.ascontiguousarray(images, dtype_of(model.num_levels))
    coding = new_coding(known, num_images=len(pixels), num_timesteps=num_timesteps, batch_size=BATCH_TO_COMPRESS)
    return coding.encode(pixels, hashlib.sha256(pixels.data).digest(), unseen, None).content


def decompress(model: VDM, content: bytes) -> np.ndarray:
    """Return the images (N,C,H,W) in the content of a .vdmz file: uint8 or, above 256 levels, uint16.

    It takes as long as `compress`.  Raises UserError if it is of another model, is damaged, or is decoded differently
    on this machine.
    """
    coding = coding_of(content, "the content", model_in_memory(model))
    return np.concatenate(list(coding.decode(content, "the content", unseen)))


def require_images(images: np.ndarray) -> None:
    """Raise TypeError or ValueError, which says what to do, unless these are images (N,C,H,W) of integers."""
    if not isinstance(images, np.ndarray):
        raise TypeError(f"images must be a NumPy array, got {type(images).__name__}; numpy.asarray makes one")
    if not np.issubdtype(images.dtype, np.integer):
        advice = "(255 * images).round().astype('uint8') makes levels of 0 to 1"
        raise TypeError(f"images must be levels of an integer type, got {images.dtype}; {advice}")
    if images.ndim != 4 or not images.size:
        advice = "; images[:, None] adds the channel of gray images" if images.ndim == 3 else ""
        raise ValueError(f"images must have the shape (N,C,H,W) and be at least one, got {images.shape}{advice}")
    if images.shape[3] in COLOURS and images.shape[1] not in COLOURS:
        advice = "images.transpose(0, 3, 1, 2) puts the channels before height and width"
        raise ValueError(f"images must have the shape (N,C,H,W), got {images.shape}; {advice}")


def require_counts(**counts: int | None) -> None:
    """Raise ValueError, which names the argument, unless each is a whole number of at least 1, or None."""
    for name, count in counts.items():
        if count is not None and not (isinstance(count, Integral) and int(count) >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")


def levels_of(images: np.ndarray, num_levels: int | None) -> int:
    """Return the number of levels of images to train on, 256 unless it is given.

    Warns if that may be far too many.  Raises ValueError unless the images have these levels.
    """
    highest = int(images.max())
    if num_levels is None and 2 * highest < LEVELS:
        text = "the highest level is %d, and the model gets %d levels; if these images have fewer, say num_levels=%d"
        log.warning(text, highest, LEVELS, highest + 1)
    num_levels = LEVELS if num_levels is None else num_levels
    if images.min() < 0 or highest >= num_levels:
        levels = f"{images.min()} to {highest}"
        raise ValueError(f"the levels of {num_levels} are 0 to {num_levels - 1}, got {levels}; set num_levels")
    return num_levels


def classes_of(labels: np.ndarray, num_images: int, num_classes: int | None) -> np.ndarray:
    """Return the labels of images as classes (N,) int64; `num_classes` are those of the model, if there is one.

    Raises TypeError unless they are an array of integers, and ValueError unless each image has a class from 0.
    """
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        found = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise TypeError(f"labels must be a NumPy array of integers, classes from 0, got {found}")
    if labels.shape != (num_images,):
        raise ValueError(f"labels must have one class for each of {num_images} images, got {labels.shape}")
    if labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes):
        possible = "0" if num_classes is None else f"0 to {num_classes - 1}" if num_classes else "none"
        raise ValueError(f"labels must be classes from {possible}, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


def unseen(count: int) -> None:
    """Take the progress of a computation without a bar."""
