"""Make versions with forged documents, in a small repository with real git and a DVC remote, without training."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TINY
from project import ROOT, Project

from flows.core import layout
from flows.core.checkpoint import model_sha256, save_model
from flows.images.store import data_sha256, save_images
from vdm.model import VDM

METRICS = str(layout.METRICS)


class Forge:
    """A repository with forged versions, whose files are only in the DVC remote."""

    def __init__(self, folder: Path) -> None:
        self.place(folder)
        self.project.folder.mkdir()
        self.project.git("init", "--quiet", "--initial-branch=main")
        self.project.git("init", "--quiet", "--bare", str(self.git))
        self.project.git("remote", "add", "origin", "../origin.git")
        for key in ("name", "email"):
            self.project.git("config", f"user.{key}", "test@example.org")
        self.write(
            ".dvc/config", "[core]\nremote = store\nanalytics = false\n['remote \"store\"']\nurl = ../../remote\n"
        )
        self.write(".dvc/.gitignore", "/tmp\n/cache\n/config.local\n")
        self.write(".gitignore", ".vdm/\n")
        shutil.copyfile(ROOT / "presets/digits.yaml", self.project.folder / "params.yaml")
        self.make_outputs()

    def place(self, folder: Path) -> None:
        """Set the paths to those below `folder`."""
        self.folder = folder
        self.project = Project.at(folder / "project")
        self.remote = folder / "remote"
        self.files = folder / "files"
        self.git = folder / "origin.git"

    def copy(self, folder: Path) -> "Forge":
        """Copy everything to another folder and return the copy."""
        shutil.copytree(self.folder, folder, symlinks=True)
        forge = object.__new__(Forge)
        forge.place(folder)
        forge.digests = self.digests
        return forge

    def vdmctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run vdmctl, with the code under test, in the repository, which has no code."""
        return self.project.vdmctl(*arguments)

    def tag(self, name: str, content: bytes) -> None:
        """Make a tag of any content, also one that `git tag` would refuse."""
        command = ["git", "hash-object", "-t", "tag", "-w", "--literally", "--stdin"]
        made = subprocess.run(command, cwd=self.project.folder, input=content, capture_output=True, check=True)
        self.project.git("update-ref", f"refs/tags/{name}", made.stdout.decode().strip())

    def make_outputs(self) -> None:
        """Make a model that loads and images that fit it."""
        torch.manual_seed(0)
        save_model(self.files / "models/vdm", VDM(**TINY), TINY)
        images = np.arange(6 * 64, dtype=np.uint8).reshape(6, 1, 8, 8) % 17
        description = {"name": "forged", "num_levels": 17, "image_shape": [1, 8, 8], "num_train": 6, "num_test": 6}
        save_images(self.files / "data/images", {"train": images, "test": images[::-1]}, description)
        self.digests = {
            "model_sha256": model_sha256(self.files / "models/vdm"),
            "data_sha256": data_sha256(self.files / "data/images"),
        }
        report = {"success": True, "data_sha256": self.digests["data_sha256"]}
        (self.files / "validation.json").write_text(json.dumps(report))

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the repository."""
        path = self.project.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def store(self, content: bytes, suffix: str = "") -> str:
        """Put an object into the DVC remote, and return its digest."""
        digest = hashlib.md5(content).hexdigest() + suffix
        path = self.remote / "files/md5" / digest[:2] / digest[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return digest

    def listing(self, output: str) -> list[dict[str, Any]]:
        """Put the files of a folder into the DVC remote, and return the entries of its listing."""
        return [
            {"md5": self.store(path.read_bytes()), "relpath": path.name}
            for path in sorted((self.files / output).iterdir())
        ]

    def lock(self, model: Any = None) -> dict[str, Any]:
        """Return a dvc.lock as DVC would write it; `model`, if given, replaces the listing of the model folder."""
        content = json.dumps(self.listing("models/vdm")).encode() if model is None else model
        outs = {
            "models/vdm": self.store(content, ".dir"),
            "data/images": self.store(json.dumps(self.listing("data/images")).encode(), ".dir"),
            "reports/validation/validation.json": self.store((self.files / "validation.json").read_bytes()),
        }
        entries = [{"path": path, "hash": "md5", "md5": digest} for path, digest in outs.items()]
        return {"schema": "2.0", "stages": {"all": {"cmd": "true", "deps": [], "outs": entries}}}

    def version(self, number: str, documents: dict[str, str | bytes] | None = None, lock: Any = None) -> str:
        """Commit the documents, with valid ones for those not given, and tag them as a version; return its name."""
        metrics = {"bpd": 2.0, "bpd_standard_error": 0.1, "num_images": 6, **self.digests}
        forged = documents or {}
        lock = json.loads(json.dumps(lock or self.lock()))
        if METRICS not in forged:
            content = json.dumps(metrics)
            digest = hashlib.md5(content.encode()).hexdigest()
            lock["stages"]["all"]["outs"].append({"path": METRICS, "hash": "md5", "md5": digest})
            forged = {METRICS: content, **forged}
        graph = json.dumps({"artifacts": {"vdm": {"path": "models/vdm", "type": "model"}}})
        for name, written in ({"dvc.lock": json.dumps(lock), "dvc.yaml": graph} | forged).items():
            self.write(name, written)
        self.project.git("add", "--all")
        self.project.git("commit", "--quiet", "--allow-empty", f"--message={number}")
        self.project.git("tag", "--annotate", f"--message=Version {number}", f"vdm@{number}")
        return f"vdm@{number}"
