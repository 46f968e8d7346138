"""Make versions in a small repository with real git, a git remote, and DVC's cache and remote, without training."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TINY
from project import IDENTITY, ROOT, Sandbox

from flows.core import layout
from flows.core.files import file_sha256
from flows.core.model import save_model
from flows.evaluation.results import Comparison, ModelFigures
from flows.images.image_set import digests_of, open_images, save_images, write_array
from flows.images.splitting import digest_of
from flows.project.project import Project
from flows.registry.evidence import PROMOTE, REFUSE, Evidence
from flows.registry.versions import Version, assign
from flows.repository.repository import Repository
from flows.repository.tags import CHAMPION, REFUSED
from vdm.model import VDM

METRICS = str(layout.METRICS)
GRAPH = {
    "artifacts": {"vdm": {"path": "models/vdm", "type": "model"}},
    "stages": {
        "all": {
            "cmd": "true",
            "deps": ["code.py"],
            "outs": ["models/vdm", "data/images", "reports/contract/findings.json"],
            "metrics": [{METRICS: {"cache": False}}],
        }
    },
}


class Forge:
    """A repository with forged versions.  Their files are in DVC's cache and remote, and nothing is at the git remote.

    The versions differ in the file README.md of their models.
    """

    def __init__(self, folder: Path) -> None:
        self.place(folder)
        self.root.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(folder / "origin.git"))
        self.git("remote", "add", "origin", "../origin.git")
        for key, value in IDENTITY.items():
            self.git("config", f"user.{key.lower()}", value)
        self.write(
            ".dvc/config", "[core]\nremote = store\nanalytics = false\n['remote \"store\"']\nurl = ../../store\n"
        )
        self.write(".dvc/.gitignore", "/tmp\n/cache\n/config.local\n")
        self.write(".gitignore", ".vdm/\n/models\n/data\n/reports/contract\n")
        shutil.copyfile(ROOT / "presets/digits.yaml", self.root / "params.yaml")
        self.write("code.py", "")
        torch.manual_seed(0)
        save_model(self.files / "models/vdm", VDM(**TINY), TINY)
        images = np.arange(6 * 64, dtype=np.uint8).reshape(6, 1, 8, 8) % 17
        description = {"name": "forged", "num_levels": 17, "image_shape": [1, 8, 8], "num_train": 6, "num_test": 6}
        folder, splits = self.files / "data/images", {"train": images, "test": (images + 2) % 17}
        save_images(folder, splits, description)
        for split, pixels in splits.items():
            write_array(
                digests_of(folder, split), [np.frombuffer(b"".join(map(digest_of, pixels)), np.uint8).reshape(6, -1)]
            )
        report = {"success": True, "data_sha256": open_images(self.files / "data/images").data_sha256}
        (self.files / "findings.json").write_text(json.dumps(report))
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=Start")

    def place(self, folder: Path) -> None:
        """Set the paths to those below `folder`."""
        self.folder = folder
        self.root = folder / "project"
        self.project = Sandbox.at(self.root)
        self.git, self.vdmctl = self.project.git, self.project.vdmctl
        self.cache, self.remote = self.root / ".dvc/cache", folder / "store"
        self.files = folder / "files"

    def copy(self, folder: Path) -> "Forge":
        """Copy everything to another folder and return the copy."""
        shutil.copytree(self.folder, folder, symlinks=True)
        forge = object.__new__(Forge)
        forge.place(folder)
        return forge

    def clone(self, folder: Path) -> "Forge":
        """Return another machine's clone of the git remote, which uses the same DVC remote."""
        folder.mkdir()
        self.git("clone", "--quiet", str(self.folder / "origin.git"), str(folder / "project"))
        for name in ("origin.git", "store", "files"):
            (folder / name).symlink_to(self.folder / name)
        forge = object.__new__(Forge)
        forge.place(folder)
        for key, value in IDENTITY.items():
            forge.git("config", f"user.{key.lower()}", value)
        return forge

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the repository."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def store(self, content: bytes, suffix: str = "") -> str:
        """Put an object into DVC's cache and remote; return its digest."""
        digest = hashlib.md5(content).hexdigest() + suffix
        for place in (self.cache, self.remote):
            path = place / "files/md5" / digest[:2] / digest[2:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return digest

    def cached(self, digest: str) -> Path:
        """Return the path of an object in DVC's cache."""
        return self.cache / "files/md5" / digest[:2] / digest[2:]

    def listing(self, output: str, **more: bytes) -> list[dict[str, Any]]:
        """Return the entries of the listing of a folder, with more files."""
        files = {path.name: path.read_bytes() for path in (self.files / output).iterdir()} | more
        return [{"md5": self.store(content), "relpath": name} for name, content in sorted(files.items())]

    def lock(self, number: str, model: bytes | None = None) -> dict[str, Any]:
        """Return a dvc.lock as DVC would write it; `model`, if given, is the listing of the model folder."""
        content = model or json.dumps(self.listing("models/vdm", **{"README.md": number.encode()})).encode()
        outs = {
            "models/vdm": self.store(content, ".dir"),
            "data/images": self.store(json.dumps(self.listing("data/images")).encode(), ".dir"),
            "reports/contract/findings.json": self.store((self.files / "findings.json").read_bytes()),
        }
        entries = [{"path": path, "hash": "md5", "md5": digest} for path, digest in outs.items()]
        code = {"path": "code.py", "hash": "md5", "md5": hashlib.md5((self.root / "code.py").read_bytes()).hexdigest()}
        return {"schema": "2.0", "stages": {"all": {"cmd": "true", "deps": [code], "outs": entries}}}

    def commit(self, number: str, lock: Any = None, documents: Mapping[str, str | bytes] = {}, run: str = "") -> str:
        """Commit results, with other documents in place of valid ones, on the branch of a run if given; return it."""
        digests = {
            "model_sha256": file_sha256(self.files / "models/vdm/config.json"),
            "data_sha256": open_images(self.files / "data/images").data_sha256,
        }
        metrics = json.dumps({"bpd": 2.0, "bpd_standard_error": 0.1, "num_images": 6, **digests})
        lock = json.loads(json.dumps(lock or self.lock(number)))
        md5 = hashlib.md5(metrics.encode()).hexdigest()
        lock["stages"]["all"]["outs"].append({"path": METRICS, "hash": "md5", "md5": md5})
        valid = {METRICS: metrics, "dvc.lock": json.dumps(lock), "dvc.yaml": json.dumps(GRAPH)}
        for name, written in (valid | dict(documents)).items():
            self.write(name, written)
        if run:
            self.git("switch", "--quiet", "--create", f"runs/{run}")
        self.git("add", "--all")
        trailer = f"\n\nRun: {run}" if run else ""
        self.git("commit", "--quiet", "--allow-empty", f"--message=Results {number}{trailer}")
        made = self.git("rev-parse", "HEAD").strip()
        if run:
            self.git("switch", "--quiet", "main")
        return made

    def version(self, number: str, lock: Any = None, documents: Mapping[str, str | bytes] = {}, run: str = "") -> str:
        """Commit results and tag them as a version; return its name."""
        made = self.commit(number, lock, documents, run)
        self.git("tag", "--annotate", f"--message=Version {number}", f"vdm@{number}", made)
        return f"vdm@{number}"

    @property
    def repository(self) -> Repository:
        """The project's repository."""
        return self.opened.repository

    @property
    def opened(self) -> Project:
        """The project, as the product opens it."""
        return Project(self.root)

    def resolve(self, reference: str) -> Version:
        """Return a version by its name, or the champion."""
        return self.opened.registry.resolve(reference)

    def damage(self, digest: str) -> None:
        """Change the last byte of an object in DVC's cache."""
        path = self.cached(digest)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"?")


def comparison(
    champion_bpd: float | None = 2.1,
    challenger_bpd: float | None = 2.0,
    interval: Sequence[float | None] = (-0.2, -0.05),
) -> Comparison:
    """Return a comparison of two models on 359 images, with these figures."""
    found = {"vdm@v1.0.0": champion_bpd, "vdm@v1.1.0": challenger_bpd}
    digests = {"model_sha256": "a" * 64, "data_sha256": "b" * 64}
    return Comparison(
        models=[ModelFigures(model=name, bpd=bpd, bpd_standard_error=0.1, **digests) for name, bpd in found.items()],
        difference_bpd=-0.1,
        difference_standard_error=0.03,
        confidence=0.95,
        confidence_interval=list(interval),
        num_images=359,
        seed=0,
        times_per_image=1,
        num_timesteps=None,
        given="nothing",
    )


def crown(project: Sandbox, *references: str, **known: Any) -> None:
    """Make the versions champion one after the other, with what is known in the evidence."""
    for reference in references:
        with Project(project.folder).repository.registry_lock():
            evidence = Evidence(decision=PROMOTE, reason="better", challenger=reference, **known)
            message = evidence.message("Promote")
            registry = Project(project.folder).registry
            assign(registry, CHAMPION, registry.resolve(reference), message)


def refuse(project: Sandbox, *references: str, reason: str = "worse") -> None:
    """Refuse the versions."""
    for reference in references:
        with Project(project.folder).repository.registry_lock():
            message = Evidence(decision=REFUSE, reason=reason, challenger=reference).message("Refuse")
            registry = Project(project.folder).registry
            assign(registry, REFUSED, registry.resolve(reference), message)


def champion(project: Sandbox) -> str:
    """Return the name of the champion."""
    return Project(project.folder).registry.resolve("champion").name


def history(project: Sandbox) -> list[str]:
    """Return the versions that the champion's tags name, oldest first, without the code under test."""
    names = project.git("tag", "--list", "vdm#champion*", "--sort=version:refname").split()
    return [project.git("tag", "--list", "vdm@*", "--points-at", f"{name}^{{commit}}").strip() for name in names]
