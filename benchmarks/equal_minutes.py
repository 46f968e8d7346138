"""Compare ours with the peer after equal minutes of training: bits/dim of the same images by one evaluator.

    python -m benchmarks.equal_minutes --peer FOLDER --images SET [--preset NAME] [--minutes M] [--seeds 0 1]

For each seed ours and the peer train in turn, each alone on the machine in new processes.  At --points evenly spaced
moments, with the clock stopped, each saves its averaged weights.  The peer also saves its last weights, and the better
of the two count.  All are then evaluated on the validation images of SET, a folder that `vdmctl download` wrote, at the
same times with the same noise.

Both stop by the clock.  Ours has the preset's recipe, and its learning rate falls with the minutes to 0 at their end;
the weights are averaged over the same share of the steps as in the preset.  The peer has its own recipe and the
preset's sizes of the network; --peer-learning-rate and --peer-batch-size change its recipe.  --plot FILE draws the
curves.  The peer, a checkout of addtt/variational-diffusion-models, needs the packages accelerate, ema-pytorch,
torchinfo and pyyaml.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import PRESETS, chart, duration, explained, new_parser, positive, preset_params, show
from benchmarks.speed import PEER_BATCH_SIZE, PEER_LEARNING_RATE, peer_model, peer_training_step, require_peer
from flows.core.device import find_device
from flows.core.model import arguments_of, open_model, save_model
from flows.core.params import Params
from flows.core.params_file import preset_names
from flows.evaluation.importing import import_checkpoint
from flows.images.image_set import open_images
from flows.training.distributed import is_first, launch, local_rank, process_group, take_first
from flows.training.fitting import build, pixels_to_fit, resolve
from vdm.evaluation import evaluate, paired_difference
from vdm.training.batches import batch_indices
from vdm.training.settings import TrainingSettings

WHO = ("ours", "peer")
CONFIDENCE = 0.95
Curves = dict[tuple[str, int], list[dict[str, Any]]]
"""The points of each training, named by who trained and the seed."""


def main() -> None:
    options = parser()
    chosen = options.parse_args()
    if chosen.train:
        who, seed, out = chosen.train
        {"ours": train_ours, "peer": train_peer}[who](chosen, int(seed), Path(out))
        return
    with explained(options):
        images = open_images(chosen.images)
        if not len(images["validation"]) or images.num_levels != 256:
            raise ValueError(f"{chosen.images} needs validation images, and 256 levels for the peer")
        require_peer(chosen.peer)
    curves: Curves = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in chosen.seeds:
            for who in WHO:
                folder = Path(scratch, f"{who}-{seed}")
                command = [sys.executable, "-m", "benchmarks.equal_minutes", *sys.argv[1:]]
                subprocess.run([*command, "--train", who, str(seed), folder], check=True)
                curves[who, seed] = measured(folder, chosen)
    report(curves, chosen)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    options = new_parser(__doc__)
    options.add_argument("--peer", type=Path, required=True, help="a checkout of the peer")
    options.add_argument("--images", type=Path, required=True, help="a prepared image set with validation images")
    options.add_argument("--preset", default="fashion_mnist_cpu", choices=preset_names(PRESETS))
    options.add_argument("--peer-learning-rate", type=float, default=PEER_LEARNING_RATE)
    options.add_argument("--peer-batch-size", type=positive, default=PEER_BATCH_SIZE)
    options.add_argument("--minutes", type=duration, default=10.0, help="minutes of each training")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the trainings")
    options.add_argument("--points", type=positive, default=5, help="points of each curve")
    options.add_argument("--num-images", type=positive, default=512, help="validation images to evaluate")
    options.add_argument("--times-per-image", type=positive, default=8, help="noise levels per image")
    options.add_argument("--plot", type=Path, help="the picture of the curves, a .png or .svg file")
    options.add_argument("--train", nargs=3, help=argparse.SUPPRESS)  # of the processes that this one starts
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


def train_peer(chosen: argparse.Namespace, seed: int, out: Path) -> None:
    """Train the peer as its script does, on images of 256 levels."""
    device, size, image_set = find_device("auto"), chosen.peer_batch_size, open_images(chosen.images)
    torch.manual_seed(seed)
    config = arguments_of(preset_params(chosen.preset).model, image_set.image_shape, image_set.num_levels)
    images = torch.from_numpy(pixels_to_fit(image_set, "train"))
    diffusion = peer_model(chosen.peer, config, size, device)
    numbers = count()

    def next_batch() -> torch.Tensor:
        return (images[batch_indices(len(images), size, next(numbers), seed, "cpu")].float() / 255).to(device)

    step, average = peer_training_step(diffusion, next_batch, learning_rate=chosen.peer_learning_rate)

    def save(folder: Path) -> None:
        folder.mkdir()
        file = folder / "model.pt"
        torch.save({"model": diffusion.state_dict(), "ema": average.state_dict()}, file)
        (folder / "config.yaml").write_text(json.dumps(asdict(diffusion.cfg)))  # JSON is YAML
        _, height, width = image_set.image_shape
        for name, averaged in {"averaged": True, "last": False}.items():
            sizes = {"image_size": (height, width), "num_levels": image_set.num_levels}
            import_checkpoint(file, "addtt", out=folder / name, averaged=averaged, **sizes)

    take_points(out, chosen.points, chosen.minutes, lambda _: step(), save)


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
    settings = {"times_per_image": chosen.times_per_image, "num_timesteps": None, "batch_size": 512, "seed": 0}
    points: list[dict[str, Any]] = json.loads((folder / "points.json").read_text())
    for number, point in enumerate(points):
        models = [file.parent for file in sorted(Path(folder, str(number)).rglob("config.json"))]
        results = [evaluate(open_model(model, device).vdm, images, **settings) for model in models]
        best = min(results, key=lambda result: float(result.bpd.mean()))
        point |= {"bpd": best.bpd.mean(), "standard_error": best.standard_error, "per_image": best.bpd}
    return points


def report(curves: Curves, chosen: argparse.Namespace) -> None:
    """Print the curves and the difference at their ends, and draw them."""
    # Every image has the mean over the seeds.
    ours, peer = (
        np.mean([points[-1]["per_image"] for (name, _), points in curves.items() if name == who], axis=0) for who in WHO
    )
    end = paired_difference(ours, peer, confidence=CONFIDENCE)
    figures = {
        "preset": chosen.preset,
        "rows": [
            {"who": who, "seed": seed} | {key: figure for key, figure in point.items() if key != "per_image"}
            for (who, seed), points in curves.items()
            for point in points
        ],
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
        for (who, seed), points in curves.items():
            minutes, bpd, errors = ([point[key] for point in points] for key in ("minutes", "bpd", "standard_error"))
            style = {"ours": "o-", "peer": "s--"}[who]
            axes.errorbar(minutes, bpd, errors, fmt=style, capsize=3, label=f"{who}, seed {seed}")


if __name__ == "__main__":
    main()
