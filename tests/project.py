"""Copy this project to a temporary folder, for tests that run its commands as a user does."""

import contextlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch
from warnings import catch_warnings, simplefilter

import psutil
from ruamel.yaml import YAML

from flows import cli

ROOT = Path(__file__).parents[1]
STAGES = [shlex.split(each["cmd"])[3:] for each in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values()]
"""The arguments of vdmctl of each stage, in the order of dvc.yaml, in which a stage comes after what it needs."""
TINY_PARAMS = {
    "width: 32": "width: 8",
    "blocks: 2": "blocks: 1",
    "schedule: learned_monotone": "schedule: learned_linear",
    "  dropout: 0.1": "  dropout: 0.0",
    "num_devices: 2": "num_devices: 1",
    "gamma_0: -9.0": "gamma_0: -7.0",
    "norm_groups: 8": "norm_groups: 4",
    "steps: 3400": "steps: 20",
    "log_every: 50": "log_every: 5",
    "times_per_image: 32": "times_per_image: 2",
    "num_timesteps: 25": "num_timesteps: 3",
    "num_images: 400": "num_images: 12",
    "resamples: 50": "resamples: 2",
    "  steps: 600": "  steps: 5",
    "validate_every_steps: 500": "validate_every_steps: 10",
    "validation_times: 8": "validation_times: 2",
    "approval: few_images": "approval: null",
}


class Sandbox:
    """A git repository with this project's files, and parameters with which training takes a second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in listed.stdout.splitlines():
            of_another_run = name.startswith(("tests/", "reports/")) and not name.endswith(".gitignore")
            if (ROOT / name).is_file() and name != "dvc.lock" and not of_another_run:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        shutil.copyfile(ROOT / "presets" / "digits.yaml", folder / "params.yaml")
        self.edit("params.yaml", **TINY_PARAMS)
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=Start")

    @classmethod
    def at(cls, folder: Path) -> "Sandbox":
        """Return the project that already exists in the folder."""
        project = object.__new__(cls)
        project.folder = folder
        return project

    def copy(self, folder: Path) -> "Sandbox":
        """Copy the repository and its cache to another folder, without `.vdm`; return the copy."""
        shutil.copytree(self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns(".vdm"))
        return Sandbox.at(folder)

    def edit(self, name: str, **replacements: str) -> None:
        """Replace texts in a file; each must be there."""
        text = (self.folder / name).read_text()
        for old, new in replacements.items():
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new)
        (self.folder / name).write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment with this interpreter first on PATH, as `make` sets it, and a git identity."""
        git = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in IDENTITY.items()}
        locks = {"VDM_LOCK_DIR": str(self.folder / ".vdm")}
        return os.environ | git | locks | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder."""
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)

    def git(self, *arguments: str) -> str:
        """Run git, which must succeed; return its output."""
        result = self.run("git", *arguments)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def published(self) -> list[str]:
        """Return the tags in the git remote `origin`."""
        return self.git("ls-remote", "--tags", "--refs", "origin").split()[1::2]

    def dvc(self, *arguments: str) -> None:
        """Run DVC in this process, since a new one would spend half a second on its imports.  It must succeed."""
        from dvc.cli import main  # loads much that most tests do not need

        with in_place_of_a_program(self.folder, self.environment):
            assert main(list(arguments)) == 0

    def gto(self, *arguments: str) -> None:
        """Run gto in this process, as DVC.  It must succeed."""
        from gto.cli import app  # loads much that most tests do not need

        with in_place_of_a_program(self.folder, self.environment):
            assert app(list(arguments), standalone_mode=False) in (None, 0)

    def up_to_date(self) -> bool:
        """Whether `dvc repro` finds nothing to do."""
        output = StringIO()
        with redirect_stdout(output):
            self.dvc("repro")
        return "Running stage" not in output.getvalue() and "up to date" in output.getvalue()

    def new_dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run DVC as a new process."""
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def vdmctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run vdmctl in the project's folder, in this process."""
        return run_vdmctl(self.folder, self.environment, *arguments)

    def reproduce(self, *stages: str) -> None:
        """Run these stages, by default all, as `dvc repro` does, without the imports of its processes."""
        for stage in STAGES:
            if not stages or stage[0] in stages:
                result = self.vdmctl(*stage)
                assert result.returncode == 0, result.stderr
        self.dvc("commit", "--force")

    def new_vdmctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run vdmctl as a new process, from the code in the project's folder."""
        return self.run(sys.executable, "-m", "flows.cli", *arguments)


@contextmanager
def in_place_of_a_program(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Have the folder, the environment and the warnings of a new program while the block runs."""
    with contextlib.chdir(folder), patch.dict(os.environ, environment, clear=True), catch_warnings():
        simplefilter("ignore", DeprecationWarning)
        yield


def run_vdmctl(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run vdmctl in the folder, in this process: a new one would spend seconds on its imports."""
    output, errors = StringIO(), StringIO()
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []  # so that vdmctl sets up its own
    try:
        with in_place_of_a_program(folder, environment), redirect_stdout(output), redirect_stderr(errors):
            code = cli.run(list(arguments))
    finally:
        root.handlers = handlers
    return subprocess.CompletedProcess(["vdmctl", *arguments], int(code), output.getvalue(), errors.getvalue())


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the only line on stderr."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def imports_torch(pid: int) -> bool:
    """Whether a process has begun to import torch, which takes another second or more."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def session(leader: int) -> list[psutil.Process]:
    """Return the running processes of a session, also those whose parents are gone."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def cached(project: Sandbox, output: str, place: str, version: str) -> Path:
    """Return the path in the cache of a file of an output ('': its listing), without the code under test."""
    lock = YAML(typ="safe").load(project.git("show", f"vdm@{version}:dvc.lock"))
    outs = [out for stage in lock["stages"].values() for out in stage["outs"] if out["path"] == output]
    folder = project.folder / ".dvc" / "cache" / "files" / "md5"
    listing = folder / outs[0]["md5"][:2] / outs[0]["md5"][2:]
    if not place:
        return listing
    (md5,) = [entry["md5"] for entry in json.loads(listing.read_text()) if entry["relpath"] == place]
    return folder / md5[:2] / md5[2:]


def metrics_at(project: Sandbox, commit: str) -> dict[str, float]:
    """Return the metrics of the test images at a commit."""
    return json.loads(project.git("show", f"{commit}:reports/evaluation/metrics.json"))  # type: ignore[no-any-return]


IDENTITY = {"NAME": "Test", "EMAIL": "test@example.org"}
