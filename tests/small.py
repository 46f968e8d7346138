"""Make a folder in which every command but those of the registry can run, without training."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from conftest import TINY
from project import ROOT, TINY_PARAMS
from results import sample_metrics
from sklearn.datasets import load_digits

from flows.core.model import Training, save_model
from flows.images.image_set import open_images, save_images
from flows.sampling.features import Classifier, save_features
from vdm.model import VDM

METRICS = {
    "protocol": "vlb",
    **dict.fromkeys(("bpd", "bpd_standard_error", "prior_bpd", "reconstruction_bpd", "diffusion_bpd"), 1.0),
    **{"num_images": 20, "seed": 0, "times_per_image": 2, "num_timesteps": None},
}
OLD = {
    "reports/contract/findings.png": "old",
    "reports/contract/data_docs/index.html": "old",
    "reports/report.html": "old",
    "reports/evaluation/metrics.json": json.dumps(METRICS),
    "reports/evaluation/per_image.csv": "image,bpd\n" + "".join(f"{image},1.0\n" for image in range(20)),
    "reports/samples/samples.png": "old",
    "reports/samples/neighbours.png": "old",
    "reports/samples/neighbours.csv": "sample,train_image,distance\n0,0,0.5\n",
    "reports/samples/metrics.json": json.dumps(sample_metrics("0" * 64)),
    "reports/training/curves.csv": "step,bpd,validation_bpd\n20,6.5,6.6\n",
    "models/vdm/README.md": "old",
}


def training_json(parameters: dict[str, Any], **known: Any) -> str:
    """Return a training.json with these parameters."""
    images = {"name": "digits", "num_train": 60, "num_test": 40, "transforms": "none", "data_sha256": "0" * 64}
    return Training(
        **{"fitted_to": "train", "step": 20, "bpd": 6.5, "judgement": [], "parameters": parameters} | images | known
    ).as_json()


class Small:
    """A folder with digits, a model with random weights, and old outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "presets", folder / "presets")
        digits = load_digits().images.astype(np.uint8)[:, None]
        description = {"name": "digits", "title": "Digits", "num_levels": 17}
        splits = {"train": digits[:60], "validation": digits[100:110], "test": digits[60:100]}
        save_images(folder / "data/images", splits, description)
        self.save_features()
        save_model(folder / "models/trained", VDM(**TINY), TINY)
        self.reset()

    def save_features(self) -> None:
        """Write a classifier with random weights."""
        described = {
            "task": "symmetries",
            "num_classes": 4,
            "channels": 1,
            "num_levels": 17,
            "width": 4,
            "accuracy": 0.75,
            "guess": 0.25,
        }
        digest = open_images(self.folder / "data/images").data_sha256
        save_features(self.folder / "models/features", Classifier(1, 17, 4, 4), described | {"data_sha256": digest})

    def reset(self) -> None:
        """Restore parameters and outputs."""
        text = (ROOT / "presets" / "digits.yaml").read_text()
        for old, new in TINY_PARAMS.items():
            assert old in text, old
            text = text.replace(old, new)
        (self.folder / "params.yaml").write_text(text)
        for place in ("reports", "models/vdm", "models/imported"):
            shutil.rmtree(self.folder / place, ignore_errors=True)
        for place in ("models/vdm", "models/imported"):
            shutil.copytree(self.folder / "models/trained", self.folder / place)
        report = {"success": True, "data_sha256": open_images(self.folder / "data/images").data_sha256}
        for name, content in (OLD | {"reports/contract/findings.json": json.dumps(report)}).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(content)
        np.save(self.folder / "reports/samples/samples.npy", np.zeros((2, 1, 8, 8), dtype=np.uint8))

    def edit(self, **parameters: int) -> None:
        """Set numbers in the section `evaluate`."""
        before, name, after = (self.folder / "params.yaml").read_text().partition("\nevaluate:\n")
        for key, value in parameters.items():
            after, count = re.subn(rf"^  {key}: \d+", f"  {key}: {value}", after, count=1, flags=re.MULTILINE)
            assert count == 1, key
        (self.folder / "params.yaml").write_text(before + name + after)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of this process, with the code under test on PYTHONPATH and locks in the folder."""
        return self.environment_of(self.folder)

    @staticmethod
    def environment_of(folder: Path) -> dict[str, str]:
        """Return that environment for another folder."""
        return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VDM_LOCK_DIR": str(folder / ".vdm")}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start vdmctl."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command and wait for it."""
        given = self.environment | environment
        return subprocess.run(command, cwd=self.folder, env=given, capture_output=True, text=True, check=False)

    def outputs(self) -> dict[str, str]:
        """Return the sha256 of all files by name, hidden ones too."""
        files = {str(path.relative_to(self.folder)): path for path in self.folder.rglob("*") if path.is_file()}
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}
