"""Continue from a model when images arrive, or train anew: what each reaches, and in how many steps.

    python -m benchmarks.continuing --images SET [--pairs 2e-3:500 1e-3:800 ...]
    python -m benchmarks.continuing --images SET --final RATE STEPS [--seeds 3]

First a model is trained on the first half of the training images of SET, a folder that `vdmctl download` wrote, for
half of the preset's steps.  Then all of them are there.  For each pair of a learning rate and a number of steps, a
training continues from the half's averaged weights; others begin from noise, one of them with all the preset's steps.
The figures are bits/dim of the validation images, by which to choose.

With --final, the chosen pair is trained with several seeds, and so are the half and all steps from noise.  The figures
are bits/dim of the test images, and the difference between both over the same images, times and noise.

Every training that ends is kept in --results, so that a run that was stopped goes on with the next training.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import PRESETS, explained, new_parser, positive, preset_params, show
from flows.core.files import write_whole
from flows.core.model import TrainedModel, arguments_of, open_model, save_model
from flows.core.params import Params
from flows.core.params_file import preset_names
from flows.evaluation.terms import bound_settings
from flows.images.image_set import ImageSet, open_images
from flows.training.fitting import build, resolve, validation_of
from vdm.choices import Split
from vdm.evaluation import Evaluation, evaluate, paired_difference, standard_error
from vdm.model import VDM

PAIRS = ["1e-3:500", "2e-3:500", "5e-3:500", "1e-3:800", "2e-3:800", "5e-3:800", "2e-3:1150", "5e-3:1150"]
CHOOSING: Split = "validation"
CONFIDENCE = 0.95
Row = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """One training: on the first half of the images or on all, from noise or from the model of the half."""

    steps: int
    rate: float
    seed: int
    half: bool = False
    continues: bool = False

    def __str__(self) -> str:
        start = "half" if self.half else "continued" if self.continues else "noise"
        return f"{start}-{self.steps}-{self.rate:g}-{self.seed}"


class Trainings:
    """Trainings of a preset on an image set; each is done once, and its figures are kept in a folder."""

    def __init__(self, params: Params, images: ImageSet, folder: Path) -> None:
        self.params, self.images, self.folder = params, images, folder
        self.file = folder / "results.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, list[float]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        """The bits/dim of every image, by training and split."""

    def half(self, seed: int) -> Training:
        """Return the training on half of the images, with half of the steps."""
        return Training(self.params.train.steps // 2, self.params.train.learning_rate, seed, half=True)

    def bpd(self, training: Training, split: Split) -> np.ndarray:
        """Return the bits/dim of the images of a split (N,), training first if that was not done."""
        key = f"{training} {split}"
        if key not in self.done:
            self.done[key] = self.evaluated(self.model(training), split).bpd.tolist()
            write_whole(self.file, json.dumps(self.done))
        return np.array(self.done[key])

    def model(self, training: Training) -> TrainedModel:
        """Return the model of a training, training first if that was not done."""
        folder = self.folder / str(training)
        if not (folder / "config.json").exists():
            config = arguments_of(self.params.model, self.images.image_shape, self.images.num_levels)
            save_model(folder, self.trained(training, config), config)
        return open_model(folder)

    def trained(self, training: Training, config: Row) -> VDM:
        """Train, and return the model that is kept.  The validation images are the same in all trainings."""
        changes = {"steps": training.steps, "learning_rate": training.rate, "seed": training.seed}
        train = self.params.train.model_copy(update=changes)
        pixels = self.images["train"]
        pixels = np.array(pixels[: len(pixels) // 2] if training.half else pixels)
        start = self.model(self.half(training.seed)) if training.continues else None
        settings, validation = resolve(train, torch.device("cpu")), validation_of(train, self.images, "float32")
        trainer = build(config, settings, torch.from_numpy(pixels), validation, start=start)
        while not trainer.finished:
            if record := trainer.step():
                print(f"{training}: step {record.step}: {record.bpd:.3f} bits/dim", flush=True)
        return trainer.kept

    def evaluated(self, model: TrainedModel, split: Split) -> Evaluation:
        """Return the bound of every image of a split."""
        return evaluate(model.vdm, self.images[split], bound_settings(self.params.evaluate))


def main() -> None:
    chosen = parser().parse_args()
    with explained(parser()):
        images = open_images(chosen.images)
        params = preset_params(chosen.preset, train={"device": "cpu", "num_devices": 1})
        if not len(images["validation"]):
            raise ValueError(f"{chosen.images} needs validation images")
        pairs = [pair(text) for text in chosen.pairs]
        final = (float(chosen.final[0]), positive(chosen.final[1])) if chosen.final else None
    trainings = Trainings(params, images, chosen.results)
    rows = compared(trainings, *final, chosen.seeds) if final else choices(trainings, pairs)
    show({"preset": chosen.preset, "split": "test" if final else "validation", "rows": [*rows]}, as_json=chosen.json)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    options = new_parser(__doc__)
    options.add_argument("--images", type=Path, required=True, help="a prepared image set with validation images")
    options.add_argument("--preset", default="digits", choices=preset_names(PRESETS))
    options.add_argument("--pairs", nargs="+", default=PAIRS, help="learning rates and steps, such as 2e-3:500")
    options.add_argument("--final", nargs=2, metavar=("RATE", "STEPS"), help="the pair to compare on test images")
    options.add_argument("--seeds", type=positive, default=3, help="of --final: how many")
    options.add_argument("--results", type=Path, default=Path(".vdm/continuing"), help="the folder of what is done")
    return options


def pair(text: str) -> tuple[float, int]:
    """Parse a rate and a number of steps, such as 2e-3:500.  Raises ValueError."""
    rate, _, steps = text.partition(":")
    return float(rate), int(steps)


def choices(trainings: Trainings, pairs: list[tuple[float, int]]) -> Iterator[Row]:
    """Yield the validation bits/dim of the half, of all steps from noise, and of every pair."""
    train, split = trainings.params.train, CHOOSING
    noise = Training(train.steps, train.learning_rate, train.seed)
    reference = trainings.bpd(noise, split)
    pairs_of = [Training(steps, rate, train.seed, continues=True) for rate, steps in pairs]
    for training in [trainings.half(train.seed), noise, *pairs_of]:
        bpd = trainings.bpd(training, split)
        yield figures(training, bpd) | difference(reference, bpd)


def compared(trainings: Trainings, rate: float, steps: int, seeds: int) -> Iterator[Row]:
    """Yield the test bits/dim of each seed, and their means over the seeds, against all steps from noise."""
    train = trainings.params.train
    bpd: dict[str, list[np.ndarray]] = {}
    for seed in range(seeds):
        noise = Training(train.steps, train.learning_rate, seed)
        continued = Training(steps, rate, seed, continues=True)
        for who, training in {"noise": noise, "half": trainings.half(seed), "continued": continued}.items():
            bpd.setdefault(who, []).append(trainings.bpd(training, "test"))
            yield figures(training, bpd[who][-1]) | difference(bpd["noise"][-1], bpd[who][-1])
    # Every image has the mean over the seeds.
    means = {who: np.mean(each, axis=0) for who, each in bpd.items()}
    for who, mean in means.items():
        over_seeds = standard_error(np.array([each.mean() for each in bpd[who]]))
        row = {"training": f"{who}, {seeds} seeds", "bpd": mean.mean(), "standard_error": standard_error(mean)}
        yield row | {"error_over_seeds": over_seeds} | difference(means["noise"], mean)


def figures(training: Training, bpd: np.ndarray) -> Row:
    """Return the row of a training."""
    steps = {"rate": training.rate, "steps": training.steps, "seed": training.seed}
    return {"training": str(training), **steps, "bpd": bpd.mean(), "standard_error": standard_error(bpd)}


def difference(first: np.ndarray, second: np.ndarray) -> Row:
    """Return second - first over the same images, with its interval."""
    paired = paired_difference(first, second, confidence=CONFIDENCE)
    low, high = paired.interval
    return {"minus_noise_bpd": paired.difference, "low": low, "high": high}


if __name__ == "__main__":
    main()
