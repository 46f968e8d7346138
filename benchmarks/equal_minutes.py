"""Compare ours with the peer after equal minutes of training: bits/dim of the same images by one evaluator.

    python -m benchmarks.equal_minutes --peer bsi --checkout FOLDER --images SET [--minutes M] [--seeds 0 1]

For each seed ours and the peer train in turn, each alone on the machine in new processes, the peer once at each of its
learning rates.  At --points evenly spaced moments, with the clock stopped, each is saved.  All are evaluated on the
validation images of SET, a folder that `vdmctl download` wrote.  The peer is evaluated with its averaged and with its
last weights, and the better of the two count; so does the better of its rates at the end.

Both stop by the clock.  Ours has the preset's recipe, and its learning rate falls with the minutes to 0 at their end;
the weights are averaged over the same share of the steps as in the preset.  The peer has its own recipe, in its file in
benchmarks/peers, and the preset's sizes of the network; --peer-learning-rates, --peer-batch-size and --peer-precision
change its recipe.  What each peer needs is in `python -m benchmarks.speed --help`.  addtt's weights and google's are
evaluated by ours, at the same times with the same noise, and so is diffusers' network, which has no bound; bsi is
evaluated by its own bound, at as many noise levels.  --plot FILE draws the curves.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import PRESETS, chart, duration, explained, new_parser, positive, preset_params, show
from benchmarks.peers import class_of, peer_options, require_peer
from flows.core.device import find_device
from flows.core.model import arguments_of, open_model, save_model
from flows.core.params import Params
from flows.core.params_file import preset_names
from flows.images.image_set import open_images
from flows.training.distributed import is_first, launch, local_rank, process_group, take_first
from flows.training.fitting import build, pixels_to_fit, resolve
from vdm.evaluation import BoundSettings, evaluate, paired_difference, standard_error
from vdm.training.batches import batch_indices
from vdm.training.settings import TrainingSettings

CONFIDENCE = 0.95
Training = tuple[str, int, float]
"""Who trained, the seed, and the learning rate: 0 for that of our preset."""
Curves = dict[Training, list[dict[str, Any]]]
"""The points of each training."""


def main() -> None:
    options = parser()
    chosen = options.parse_args()
    if chosen.train:
        who, seed, rate, out = chosen.train
        if who == "ours":
            train_ours(chosen, int(seed), Path(out))
        else:
            train_peer(chosen, int(seed), float(rate), Path(out))
        return
    with explained(options):
        require_peer(chosen.peer, chosen.checkout, chosen.peer_python)
        images = open_images(chosen.images)
        if not len(images["validation"]) or images.num_levels != 256:
            raise ValueError(f"{chosen.images} needs validation images, and 256 levels for the peer")
    rates = chosen.peer_learning_rates or class_of(chosen.peer).learning_rates
    curves: Curves = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in chosen.seeds:
            for who, rate in (("ours", 0.0), *(("peer", rate) for rate in rates)):
                folder = Path(scratch, f"{who}-{seed}-{rate}")
                command = [sys.executable, "-m", "benchmarks.equal_minutes", *sys.argv[1:]]
                subprocess.run([*command, "--train", who, str(seed), str(rate), folder], check=True)
                curves[who, seed, rate] = measured(folder, chosen)
    report(curves, chosen)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    options = new_parser(__doc__)
    peer_options(options, default="addtt")
    options.add_argument("--images", type=Path, required=True, help="a prepared image set with validation images")
    options.add_argument("--preset", default="fashion_mnist_cpu", choices=preset_names(PRESETS))
    options.add_argument("--peer-learning-rates", type=float, nargs="+", help="default: the two of its recipe")
    options.add_argument("--peer-batch-size", type=positive, help="default: that of its recipe")
    options.add_argument("--minutes", type=duration, default=10.0, help="minutes of each training")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the trainings")
    options.add_argument("--points", type=positive, default=5, help="points of each curve")
    options.add_argument("--num-images", type=positive, default=512, help="validation images to evaluate")
    options.add_argument("--times-per-image", type=positive, default=8, help="noise levels per image")
    options.add_argument("--plot", type=Path, help="the picture of the curves, a .png or .svg file")
    options.add_argument("--train", nargs=4, help=argparse.SUPPRESS)  # of the processes that this one starts
    return options


def train_ours(chosen: argparse.Namespace, seed: int, out: Path) -> None:
    """Train ours in the preset's number of processes."""
    params = preset_params(chosen.preset, train={"seed": seed, "device": "auto"})
    job = partial(train_part, params, chosen.images, chosen.minutes, chosen.points, out)
    launch(job, num_processes=params.train.num_devices)


def train_part(params: Params, images: Path, minutes: float, points: int, out: Path) -> None:
    """Take this process's part in the training of ours."""
    image_set, device = open_images(images), find_device(params.train.device, params.train.num_devices, local_rank())
    config = arguments_of(params.model, image_set.image_shape, image_set.num_levels)
    settings = resolve(params.train, device)
    with process_group(device):
        pixels = torch.from_numpy(pixels_to_fit(image_set, "train")).to(device)

        run = build(config, settings, pixels, None)

        def step(seconds: float) -> None:
            # The steps that the minutes allow at the speed so far: so the schedule ends with the minutes.
            if run.done:
                run.settings = of_length(settings, max(run.done + 1, round(run.done * 60 * minutes / seconds)))
            run.step()

        take_points(out, points, minutes, step, partial(save_model, model=run.averaged, config=config))


def of_length(settings: TrainingSettings, steps: int) -> TrainingSettings:
    """Return the settings of a training of so many steps, whose weights are averaged over the same share of them."""
    decay = max(0.0, 1 - (1 - settings.ema_decay) * settings.steps / steps)
    return replace(settings, steps=steps, ema_decay=decay)


def train_peer(chosen: argparse.Namespace, seed: int, rate: float, out: Path) -> None:
    """Train the peer as its script does, on images of 256 levels."""
    device, image_set, kind = find_device("auto"), open_images(chosen.images), class_of(chosen.peer)
    model = arguments_of(preset_params(chosen.preset).model, image_set.image_shape, image_set.num_levels)
    images, size = pixels_to_fit(image_set, "train"), chosen.peer_batch_size or kind.batch_size
    if chosen.peer == "google":
        job = {"model": model, "batch_size": size, "learning_rate": rate, "seed": seed, "out": out}
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            np.save(file.name, images)
            job |= {"images": file.name, "minutes": chosen.minutes, "points": chosen.points}
            kind.run(chosen.peer_python, "minutes", checkout=chosen.checkout, **job)
        kind.import_points(out, chosen.points, image_set.image_shape[1:])
        return
    torch.manual_seed(seed)
    peer = kind(chosen.checkout, model, device, rate, chosen.peer_precision, size)
    pixels, validation = torch.from_numpy(images), np.array(image_set["validation"][: chosen.num_images])

    def step(seconds: float) -> None:
        batch = pixels[batch_indices(len(pixels), size, peer.done, seed, "cpu")]
        peer.step(batch.to(device), share=seconds / (60 * chosen.minutes))

    save = partial(peer.save, images=validation, times_per_image=chosen.times_per_image)
    take_points(out, chosen.points, chosen.minutes, step, save)


def take_points(
    out: Path, points: int, minutes: float, step: Callable[[float], object], save: Callable[[Path], None]
) -> None:
    """Take steps for so many minutes, each given the seconds so far, which are those of the first process.

    There, save the points of the curve to folders in `out`, while the clock stands still.
    """
    out.mkdir(exist_ok=True)
    rows, done, seconds = [], 0, 0.0
    for point in range(1, points + 1):
        begin = time.perf_counter() - seconds
        while (seconds := take_first(time.perf_counter() - begin)) < 60 * minutes * point / points:
            step(seconds)
            done += 1
        if is_first():
            save(out / str(point - 1))
            rows.append({"minutes": seconds / 60, "steps": done})
            (out / "points.json").write_text(json.dumps(rows))


def measured(folder: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the points of a training with the evaluation of each, the better one of several weights."""
    images, device = open_images(chosen.images)["validation"][: chosen.num_images], find_device("auto")
    settings = BoundSettings(times_per_image=chosen.times_per_image, batch_size=512, seed=0)
    points: list[dict[str, Any]] = json.loads((folder / "points.json").read_text())
    for number, point in enumerate(points):
        at = folder / str(number)
        models = [file.parent for file in sorted(at.rglob("config.json"))]
        results = [evaluate(open_model(model, device).vdm, images, settings).bpd for model in models]
        results += [np.load(file).astype(np.float64) for file in sorted(at.glob("*.npy"))]
        best = min(results, key=np.mean)
        point |= {"bpd": best.mean(), "standard_error": standard_error(best), "per_image": best}
    return points


def report(curves: Curves, chosen: argparse.Namespace) -> None:
    """Print the curves and the difference at their ends, at the peer's better rate, and draw them."""
    ends: dict[tuple[str, float], list[np.ndarray]] = {}
    for (who, _, rate), points in curves.items():
        ends.setdefault((who, rate), []).append(points[-1]["per_image"])
    # Every image has the mean over the seeds.
    means = {key: np.mean(results, axis=0) for key, results in ends.items()}
    best = min((key for key in means if key[0] == "peer"), key=lambda key: float(means[key].mean()))
    (ours,) = (mean for (who, _), mean in means.items() if who == "ours")
    end = paired_difference(ours, means[best], confidence=CONFIDENCE)
    figures = {
        "preset": chosen.preset,
        "peer": chosen.peer,
        "rows": [
            {"who": who, "seed": seed, "learning_rate": rate or None}
            | {key: figure for key, figure in point.items() if key != "per_image"}
            for (who, seed, rate), points in curves.items()
            for point in points
        ],
        "peer_learning_rate": best[1],
        "peer_minus_ours_bpd": end.difference,
        "interval": list(end.interval),
        "confidence": CONFIDENCE,
        "num_images": end.num_images,
    }
    show(figures, as_json=chosen.json, device=find_device("auto"))
    if chosen.plot:
        plot(curves, chosen.plot)


def plot(curves: Curves, path: Path) -> None:
    """Draw bits/dim over minutes, a line for each training."""
    with chart(path, xlabel="minutes of training", ylabel="bits/dim of the validation images") as axes:
        for (who, seed, rate), points in curves.items():
            minutes, bpd, errors = ([point[key] for point in points] for key in ("minutes", "bpd", "standard_error"))
            style = {"ours": "o-", "peer": "s--"}[who]
            axes.errorbar(
                minutes,
                bpd,
                errors,
                fmt=style,
                capsize=3,
                label=f"{who}, seed {seed}" + (f", {rate:g}" if rate else ""),
            )


if __name__ == "__main__":
    main()
