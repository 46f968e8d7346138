"""Compare ours with the peer after equal minutes of training: bits/dim of the same images by one evaluator.

    python -m benchmarks.equal_minutes --peer FOLDER --images SET [--preset NAME] [--minutes M] [--seeds 0 1]

For each seed ours and the peer train in turn, each alone on the machine in new processes.  At --points evenly spaced
moments, with the clock stopped, each saves its averaged weights.  The peer also saves its last weights, and the better
of the two count.  All are then evaluated on the validation images of SET, a folder that `vdmctl download` wrote, at the
same times with the same noise.

Ours has the preset's recipe, with as many steps as --minutes allow by the speed of the first ones; the weights are
averaged over the same share of the steps as in the preset.  The peer has its own recipe and the preset's sizes of the
network; --peer-learning-rate and --peer-batch-size change its recipe.  --plot FILE draws the curves.  The peer, a
checkout of addtt/variational-diffusion-models, needs the packages accelerate, ema-pytorch, torchinfo and pyyaml.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import chart, duration, explained, new_parser, picture, positive, show
from benchmarks.speed import (
    PEER_BATCH_SIZE,
    PEER_LEARNING_RATE,
    PRESETS,
    peer_model,
    peer_training_step,
    require_peer,
)
from flows.core.checkpoint import arguments_of, load_model, save_model
from flows.core.device import find_device
from flows.core.params import Params, device_name
from flows.core.params_file import parse_params
from flows.core.presets import read_preset
from flows.evaluation.importing import import_checkpoint
from flows.images.store import load_images
from flows.training import fitting
from flows.training.distributed import from_first, is_first, launch, local_rank, process_group
from vdm.evaluation import Evaluation, evaluate, paired_difference
from vdm.training.batches import batch_indices
from vdm.training.trainer import Trainer

WHO = ("ours", "peer")
STEPS_TO_TIME = 10
CONFIDENCE = 0.95


def main() -> None:
    options = parser()
    chosen = options.parse_args()
    with explained(options):
        params, device = chosen_params(chosen), find_device(chosen.device)
        if not len(load_images(chosen.images).validation):
            raise ValueError(f"{chosen.images} has no validation images")
        if min(chosen.seeds) < 0:
            raise ValueError("--seeds must be at least 0")
        if chosen.train != "ours":
            if (num_levels := load_images(chosen.images).num_levels) != 256:
                raise ValueError(f"{chosen.images} has {num_levels} levels; the peer supports 256 only")
            require_peer(chosen.peer)
    if chosen.train:
        {"ours": train_ours, "peer": train_peer}[chosen.train](chosen, params)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for seed in chosen.seeds:
            for who in WHO:
                folder = Path(scratch, f"{who}-{seed}")
                folder.mkdir()
                command = [sys.executable, "-m", "benchmarks.equal_minutes", *sys.argv[1:]]
                subprocess.run([*command, "--train", who, "--seed", str(seed), "--out", folder], check=True)
        curves = {
            (who, seed): measured(Path(scratch, f"{who}-{seed}"), chosen, device)
            for seed in chosen.seeds
            for who in WHO
        }
    report(curves, chosen, device)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    options = new_parser(__doc__)
    options.add_argument("--peer", type=Path, required=True, help="a checkout of the peer")
    options.add_argument("--images", type=Path, required=True, help="a prepared image set with validation images")
    options.add_argument(
        "--preset", default="fashion_mnist_cpu", choices=sorted(p.stem for p in PRESETS.glob("*.yaml"))
    )
    options.add_argument("--width", type=positive, help="network width instead of the preset's")
    options.add_argument("--blocks", type=positive, help="number of blocks instead of the preset's")
    options.add_argument("--learning-rate", type=float, help="of ours, instead of the preset's")
    options.add_argument(
        "--peer-learning-rate", type=float, default=PEER_LEARNING_RATE, help="of the peer; default: its own, 2e-4"
    )
    options.add_argument(
        "--peer-batch-size", type=positive, default=PEER_BATCH_SIZE, help="of the peer; default: its own, 128"
    )
    options.add_argument("--minutes", type=duration, default=10.0, help="minutes of each training")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the trainings")
    options.add_argument("--points", type=positive, default=5, help="points of each curve")
    options.add_argument("--num-images", type=positive, default=512, help="validation images to evaluate")
    options.add_argument("--times-per-image", type=positive, default=8, help="noise levels per image")
    options.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument("--plot", type=picture, help="the picture of the curves, a .png or .svg file")
    for name in ("--train", "--seed", "--out"):  # of the processes that this one starts
        options.add_argument(name, help=argparse.SUPPRESS)
    return options


def chosen_params(chosen: argparse.Namespace) -> Params:
    """Return the preset's parameters with the sizes that were chosen.  Raises ValueError if they do not fit."""
    read = parse_params(read_preset(chosen.preset, PRESETS), chosen.preset).model_dump()
    read["model"] |= {name: size for name in ("width", "blocks") if (size := getattr(chosen, name))}
    read["train"] |= {"device": chosen.device, "validate_every_steps": None, "keep": "last", "patience": None}
    read["train"] |= {"learning_rate": chosen.learning_rate} if chosen.learning_rate else {}
    read["train"] |= {"seed": int(chosen.seed)} if chosen.seed else {}
    return Params.model_validate(read)


def config_of(params: Params, images: Path) -> dict[str, Any]:
    """Return the arguments of the model of the images."""
    image_set = load_images(images)
    return arguments_of(params.model, image_set.image_shape, image_set.num_levels)


def train_ours(chosen: argparse.Namespace, params: Params) -> None:
    """Train ours in the preset's number of processes."""
    job = partial(train_part, params, chosen.images, chosen.minutes, chosen.points, Path(chosen.out))
    launch(job, num_processes=params.train.num_devices)


def train_part(params: Params, images: Path, minutes: float, points: int, out: Path) -> None:
    """Take this process's part in the training of ours."""
    device = find_device(params.train.device, params.train.num_devices, local_rank())
    config, settings = config_of(params, images), fitting.resolve(params.train, device)
    with process_group(device):
        pixels = torch.from_numpy(fitting.training_images(load_images(images), "train")).to(device)

        def trainer(steps: int) -> Trainer:
            decay = max(0.0, 1 - (1 - settings.ema_decay) * settings.steps / steps)
            return fitting.build(config, dataclasses.replace(settings, steps=steps, ema_decay=decay), pixels, None)

        speed = from_first(steps_per_second(trainer(3 * STEPS_TO_TIME)))
        steps = max(points, int(60 * minutes * speed))
        run, clock = trainer(steps), Clock(out, settings.batch_size)
        for done in range(1, steps + 1):
            run.step()
            if done * points // steps > (done - 1) * points // steps and is_first():
                clock.save(done, lambda folder: save_model(folder, run.averaged, config))


def steps_per_second(trainer: Trainer) -> float:
    """Return the speed of the steps after the first ones."""
    for _ in range(STEPS_TO_TIME):
        trainer.step()
    begin = time.perf_counter()
    for _ in range(2 * STEPS_TO_TIME):
        trainer.step()
    return 2 * STEPS_TO_TIME / (time.perf_counter() - begin)


def train_peer(chosen: argparse.Namespace, params: Params) -> None:
    """Train the peer as its script does, on images of 256 levels."""
    device, size, seed = find_device(chosen.device), chosen.peer_batch_size, params.train.seed
    torch.manual_seed(seed)
    config = config_of(params, chosen.images)
    images = torch.from_numpy(fitting.training_images(load_images(chosen.images), "train"))
    diffusion = peer_model(chosen.peer, config, size, device)
    clock = Clock(Path(chosen.out), size)
    done = 0

    def next_batch() -> torch.Tensor:
        return (images[batch_indices(len(images), size, done, seed, "cpu")].float() / 255).to(device)

    step, average = peer_training_step(diffusion, next_batch, learning_rate=chosen.peer_learning_rate)

    def save(folder: Path) -> None:
        file = folder / "model.pt"
        torch.save({"model": diffusion.state_dict(), "ema": average.state_dict()}, file)
        (folder / "config.yaml").write_text(json.dumps(dataclasses.asdict(diffusion.cfg)))  # JSON is YAML
        _, *shape = config["image_shape"]
        for name, averaged in {"averaged": True, "last": False}.items():
            sizes = {"image_size": (shape[0], shape[1]), "num_levels": config["num_levels"]}
            import_checkpoint(file, "addtt", out=folder / name, averaged=averaged, **sizes)

    for point in range(1, chosen.points + 1):
        while clock.seconds() < 60 * chosen.minutes * point / chosen.points:
            step()
            done += 1
        clock.save(done, save)


class Clock:
    """The time of a training, which stands still while a point of the curve is saved to the folder `out`."""

    def __init__(self, out: Path, batch_size: int) -> None:
        self.out, self.batch_size = out, batch_size
        self.begin = time.perf_counter()
        self.points: list[dict[str, Any]] = []

    def seconds(self) -> float:
        """Return the seconds of training so far."""
        return time.perf_counter() - self.begin

    def save(self, steps: int, save: Callable[[Path], None]) -> None:
        """Save a point after this number of steps: call `save` with its folder."""
        stopped = self.seconds()
        folder = self.out / str(len(self.points))
        folder.mkdir()
        save(folder)
        self.points.append({"minutes": stopped / 60, "steps": steps, "images": steps * self.batch_size})
        (self.out / "points.json").write_text(json.dumps(self.points))
        self.begin = time.perf_counter() - stopped


def measured(folder: Path, chosen: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Return the points of a training with the evaluation of each, the better one of several weights."""
    images = load_images(chosen.images).validation[: chosen.num_images]
    points = json.loads((folder / "points.json").read_text())
    for number, point in enumerate(points):
        models = [file.parent for file in sorted(Path(folder, str(number)).rglob("config.json"))]
        results = [bound(model, images, chosen, device) for model in models]
        point["evaluation"] = min(results, key=lambda result: float(result.bpd.mean()))
    return points  # type: ignore[no-any-return]


def bound(model: Path, images: np.ndarray, chosen: argparse.Namespace, device: torch.device) -> Evaluation:
    """Evaluate a model, at times and with noise that are the same for all."""
    times = chosen.times_per_image
    vdm = load_model(model, device)
    return evaluate(vdm, images, times_per_image=times, num_timesteps=None, batch_size=512, seed=0)


def figures_of(point: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a point of a curve."""
    result = point["evaluation"]
    figures = {key: point[key] for key in ("minutes", "steps", "images")}
    return figures | {"bpd": result.bpd.mean(), "standard_error": result.standard_error}


def report(
    curves: dict[tuple[str, int], list[dict[str, Any]]], chosen: argparse.Namespace, device: torch.device
) -> None:
    """Print the curves and the difference at their ends, and draw them."""
    rows = [
        {"who": who, "seed": seed, **figures_of(point)} for (who, seed), points in curves.items() for point in points
    ]
    # Every image has the mean over the seeds.
    ours, peer = (
        np.mean([points[-1]["evaluation"].bpd for (name, _), points in curves.items() if name == who], axis=0)
        for who in WHO
    )
    end = paired_difference(ours, peer, confidence=CONFIDENCE)
    figures = {
        "preset": chosen.preset,
        "rows": rows,
        "peer_minus_ours_bpd": end.difference,
        "interval": list(end.interval),
        "confidence": CONFIDENCE,
        "num_images": end.num_images,
    }
    if chosen.plot:
        plot(rows, chosen.plot)
    show(figures, as_json=chosen.json, device=device)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw bits/dim over minutes, a line for each training."""
    with chart(path, xlabel="minutes of training", ylabel="bits/dim of the validation images") as axes:
        for who, style in zip(WHO, ("o-", "s--"), strict=True):
            for seed in sorted({row["seed"] for row in rows}):
                line = [row for row in rows if (row["who"], row["seed"]) == (who, seed)]
                points = [[row[key] for row in line] for key in ("minutes", "bpd", "standard_error")]
                axes.errorbar(points[0], points[1], points[2], fmt=style, capsize=3, label=f"{who}, seed {seed}")


if __name__ == "__main__":
    main()
