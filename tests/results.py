"""Make the files with results of a small model, for tests of pages that show them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from flows.core import layout
from flows.core.model import TrainedModel, open_model, read_config, save_model
from flows.dossier.dossier import Dossier
from flows.dossier.origin import Origin
from flows.dossier.places import Outputs
from flows.images.image_set import ImageSet, open_images, save_images
from vdm.model import VDM

PARAMETERS = {"data": {"name": "digits"}, "train": {"betas": [0.9, 0.99], "batch_size": 12, "keep": "best"}}
ORIGIN = Origin("models/vdm", PARAMETERS, {}, ["make repro"])
BPD = np.linspace(1, 3, 40)


class Files(NamedTuple):
    """Where the results of a model are; None for one that is left out."""

    metrics: Path
    per_image: Path | None = None
    noise_levels: Path | None = None
    curves: Path | None = None
    findings: Path | None = None
    samples: Path | None = None
    sample_metrics: Path | None = None
    neighbours: Path | None = None
    denoising: Path | None = None


OUTPUTS = Files(
    metrics=layout.METRICS,
    per_image=layout.PER_IMAGE,
    noise_levels=layout.NOISE_LEVELS,
    curves=layout.CURVES,
    findings=layout.FINDINGS,
    samples=layout.SAMPLES_ARRAY,
    sample_metrics=layout.SAMPLE_METRICS,
    neighbours=layout.NEIGHBOURS,
    denoising=layout.DENOISING,
)


class Chosen(Outputs):
    """Outputs at chosen places, with images and a model that are open already."""

    def __init__(self, files: Files, origin: Origin, images: ImageSet | None, model: TrainedModel | None) -> None:
        super().__init__(Path(), dict)
        self.files, self.stated, self.opened = dict(zip(OUTPUTS, files, strict=True)), origin, (images, model)

    @contextmanager
    def file(self, name: Path) -> Iterator[Path | None]:
        """Yield where a result is."""
        found = self.files[name]
        yield found if found and found.exists() else None

    def origin(self) -> Origin:
        """Return what was stated."""
        return self.stated

    def images(self) -> ImageSet | None:
        """Return the opened images."""
        return self.opened[0]

    def model(self) -> TrainedModel | None:
        """Return the opened model."""
        return self.opened[1]


def read_results(files: Files, origin: Origin, images: ImageSet | None, model: TrainedModel | None) -> Dossier:
    """Return the dossier of a model, with everything read."""
    found = Dossier(Chosen(files, origin, images, model))
    found.read_all()
    return found


def changed(dossier: Dossier, **values: object) -> Dossier:
    """Return a copy of a dossier that was read, with other values."""
    other = copy(dossier)
    for name, value in values.items():
        setattr(other, name, value)
    return other


def write_results(folder: Path, digits: np.ndarray, **description: Any) -> Files:
    """Write all results of a model of 60 training, 10 validation and 40 test images into the folder."""
    files = Files(*(folder / path for path in OUTPUTS if path))
    splits = {"train": digits[:60], "validation": digits[100:110], "test": digits[60:100]}
    save_images(folder / layout.IMAGES, splits, {"name": "digits", "title": "Digits", "num_levels": 17} | description)
    for split, images in splits.items():
        np.save(folder / layout.IMAGES / f"{split}_labels.npy", np.arange(len(images)) % 2)
    data = open_images(folder / layout.IMAGES).data_sha256
    write_model(folder / layout.REGISTERED)
    model = read_config(folder / layout.REGISTERED)[1]
    documents = {
        layout.METRICS: metrics(data, model),
        layout.FINDINGS: findings(data),
        layout.SAMPLE_METRICS: sample_metrics(data, model),
    }
    tables = {
        layout.PER_IMAGE: "image,bpd\n" + "".join(f"{i},{bpd:.6f}\n" for i, bpd in enumerate(BPD)),
        layout.NOISE_LEVELS: "t,gamma,diffusion_bpd,standard_error\n0.25,-5,1.5,0.1\n0.75,3,2.1,0.2\n",
        layout.CURVES: "step,bpd,validation_bpd,gradient_norm,learning_rate\n"
        "10,5.5,nan,2.5,0.001\n20,2.5,2.1,1.5,0.002\n30,2.0,2.6,1.0,0.001\n",
        layout.NEIGHBOURS: "sample,train_image,distance\n3,3,0.0\n1,5,0.25\n",
    }
    for path, content in (tables | {path: json.dumps(value) for path, value in documents.items()}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    np.save(folder / layout.SAMPLES_ARRAY, digits[:16])
    Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (32, 2))).save(folder / layout.DENOISING)
    return files


def opened(folder: Path) -> tuple[ImageSet, TrainedModel]:
    """Return the images and the model of the results in the folder."""
    return open_images(folder / layout.IMAGES), open_model(folder / layout.REGISTERED)


def write_model(folder: Path) -> None:
    """Write a small model whose schedule is no line, and that has learned other end points than it began with."""
    from conftest import TINY  # which imports this file

    torch.manual_seed(0)
    config = TINY | {"schedule": "learned_monotone"}
    model = VDM(**config)
    model.schedule.start.data.sub_(1.5)
    model.schedule.outer.data.mul_(500)
    save_model(folder, model, config)


def metrics(data: str, model: str = "a" * 64) -> dict[str, Any]:
    """Return a metrics.json about images and a model with these digests."""
    return {
        "bpd": BPD.mean(),
        "bpd_standard_error": 0.0946,
        "bpd_monte_carlo_standard_error": 0.0123,
        "prior_bpd": 0.001,
        "reconstruction_bpd": 0.03,
        "diffusion_bpd": 1.969,
        "num_images": len(BPD),
        "seed": 0,
        "times_per_image": 2,
        "num_timesteps": None,
        "environment": {
            "python": "3.11",
            "torch": "2.13.0",
            "numpy": "2.4",
            "processor": "x86_64 AVX2",
            "requirements_sha256": "e" * 64,
        },
        "validation": part(2.1, 10),
        "training": part(1.9, 40),
        "generalisation_gap_bpd": 0.1,
        "generalisation_gap_standard_error": 0.02,
        "data_sha256": data,
        "model_sha256": model,
    }


def part(bpd: float, num_images: int) -> dict[str, Any]:
    """Return the figures of a split."""
    errors = dict.fromkeys(("bpd_standard_error", "bpd_monte_carlo_standard_error"), 0.05)
    return {"bpd": bpd, "num_images": num_images, **errors}


def findings(data: str, meaning: str = "no image is of one level", file: str = "a.png") -> dict[str, Any]:
    """Return a findings.json with one expectation that holds and one that two images break."""
    common = {"table": "images", "expectation": "expect", "arguments": {}, "severity": "critical"}
    rows = [{"split": "test", "image": 3, "file": file}, {"split": "test", "image": 10**9}]
    pair = {"split": "test", "image": 4, "of_split": "train", "of_image": 5, "by_chance": 0.5, "distance": 0.02}
    return {
        "success": False,
        "data_sha256": data,
        "transforms": "none",
        "expectations": [
            common | {"meaning": "no pixel is NaN", "success": True, "observed": "as expected", "rows": []},
            common | {"meaning": meaning, "success": False, "observed": "2 of 110 images", "rows": rows},
        ],
        "alike": [
            {"first": "train", "second": "test", "found": 1, "by_chance": 0.5, "excess": 0}
            | {"pairs": [pair | {"moved": "as it is"}]}
        ],
    }


def sample_metrics(data: str, model: str = "a" * 64) -> dict[str, Any]:
    """Return a metrics.json of samples."""
    measure = {"samples": 1.25, "samples_standard_error": 0.05, "held_out": 0.75, "held_out_standard_error": 0.04}
    return {
        "figures": {"fd_0a1b2c3d": measure, "precision": measure},
        "nearer_than_held_out": 0.48,
        "nearer_than_held_out_standard_error": 0.03,
        "num_images": 16,
        "num_training_images": 60,
        "features_task": "labels",
        "features_accuracy": 0.95,
        "features_sha256": "0a1b2c3d" + "0" * 56,
        "model_sha256": model,
        "data_sha256": data,
        "sampler": {
            "seed": 0,
            "num_timesteps": 25,
            "order": 2,
            "eta": 0.0,
            "grid": "gamma",
            "clip": True,
            "precision": "float32",
        },
    }
