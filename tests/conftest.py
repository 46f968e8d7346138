"""Fixtures that many tests share: small models, images and projects."""

import gc

gc.disable()  # while modules are imported, which makes no garbage: half of the seconds

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from pictures import noise
from PIL import Image
from project import IDENTITY, Sandbox
from results import Files, write_results

from flows.project.project import Project
from flows.registry.versions import add_version
from vdm.model import VDM

if TYPE_CHECKING:  # they import TINY from here
    from forge import Forge
    from small import Small

# Variables of whoever runs the tests do not reach them, nor git's hooks and keys.
os.umask(0o022)
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:  # by nohup, and by a script that starts a job with `&`
        signal.signal(number, lambda *_: None)  # programs that tests start do not inherit this
for name in list(os.environ):
    # git names the repository to its hooks: the tests would commit to it.
    of_git = name.startswith("GIT_") and name not in ("GIT_EXEC_PATH", "GIT_SSL_CAINFO")
    if of_git or name.startswith("PREFECT_") or name.lower().endswith("_proxy"):
        del os.environ[name]
os.environ["GIT_CONFIG_GLOBAL"] = str(Path(__file__).with_name("gitconfig"))
# A training elsewhere on this machine holds no lock that a test waits for.
os.environ["VDM_LOCK_DIR"] = tempfile.mkdtemp(prefix="vdm-locks-")
atexit.register(shutil.rmtree, os.environ["VDM_LOCK_DIR"], ignore_errors=True)

TINY = {
    "image_shape": (1, 8, 8),
    "num_levels": 17,
    "schedule": "learned_linear",
    "gamma_0": -7.0,
    "gamma_1": 5.0,
    "width": 8,
    "blocks": 1,
    "attention_everywhere": False,
    "fourier_exponents": [2, 3],
    "norm_groups": 4,
    "norm_eps": 1e-6,
    "dropout": 0.0,
    "augmentation_input": False,
}

LONGEST = [
    "test_loop",
    "test_training",
    "test_distributed",
    "test_runs",
    "test_pipeline",
    "test_pruning",
    "test_registry",
    "test_promotion",
    "test_benchmarks",
    "test_notebook",
    "test_ending",
    "test_validate",
]


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
MISSING = {
    "Chromium": (not shutil.which("chromium"), "apt-get install chromium"),
    "Fashion-MNIST": (not FASHION_MNIST.is_dir(), "apt-get install dataset-fashion-mnist"),
    "systemd-analyze": (not shutil.which("systemd-analyze"), "apt-get install systemd"),
    "diffusers": (not find_spec("diffusers"), "pip install diffusers"),
    "PEERS": (
        "PEERS" not in os.environ,
        "export PEERS=FOLDER with checkouts addtt, bsi, google and jax/bin/python",
    ),
    "TensorBoard": (not find_spec("tensorboard"), "pip install tensorboard"),
}
"""What a test marked `needs` may miss on this machine, and what brings it."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs what is missing.  As all do so here, pytest's last lines name each reason once."""
    for name in (each.args[0] for each in item.iter_markers("needs")):
        is_missing, command = MISSING[name]
        if is_missing:
            pytest.skip(f"{name} is missing; `{command}`, then run the tests again")


def pytest_collection_finish() -> None:
    """Look for garbage again, but not among what was imported."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no pytest process is still busy with one when all others are done."""
    first = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def tiny_model() -> Callable[..., VDM]:
    """Return a function that builds a small VDM with random parameters, also in layers that are initialised to zero."""

    def build(**changes: Any) -> VDM:
        torch.manual_seed(0)
        model = VDM(**{**TINY, **changes})
        for parameter in model.network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model.eval()

    return build


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Small":
    """Change to a folder in which every command but those of the registry can run, and return it."""
    from small import Small

    small = Small(tmp_path / "small")
    monkeypatch.chdir(small.folder)
    return small


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of eight gray PNG images of 6x5 pixels; image i is noise of seed i."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(noise(6, 5, seed=i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """Return scikit-learn's digits, (1797,1,8,8) uint8 with levels 0..16."""
    from sklearn.datasets import load_digits

    return load_digits().images.astype(np.uint8)[:, None]


@pytest.fixture
def space_of_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure detail and the grid of JPEG, which take longest, on one image of a split, and not on 2,500."""
    monkeypatch.setattr("flows.contract.facts.SAMPLED", 1)


@pytest.fixture
def files(tmp_path: Path, digits: np.ndarray) -> Files:
    """Return the files of complete results, for the tests of reports."""
    return write_results(tmp_path, digits)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Sandbox:
    """Return a project with three versions, which are in its DVC remote, too.  Tests that change it must copy it.

    v1.0.0 is trained for 20 steps, v1.1.0 for 40, and v1.2.0 for 80 on another split of the data.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent  # built once for all pytest processes; each gets a copy
    with FileLock(shared / "built.lock"):
        if not (shared / "built.whole").exists():
            three_versions(Sandbox(shared / "built"), shared / "remote")
            (shared / "built.whole").touch()
    return Sandbox.at(shared / "built").copy(own / "registry")


def three_versions(project: Sandbox, remote: Path) -> None:
    """Train, commit, push and register the three versions."""
    for key, value in IDENTITY.items():
        project.git("config", f"user.{key.lower()}", value)
    project.dvc("remote", "add", "--default", "store", str(remote))
    of_model = ("train", "register", "evaluate")
    longer, other_split = {"steps: 20": "steps: 40"}, {"steps: 40": "steps: 80", "split_seed: 0": "split_seed: 1"}
    changes: dict[tuple[str, ...], dict[str, str]] = {(): {}, of_model: longer}
    for stages, change in (changes | {("download", "validate", *of_model): other_split}).items():
        project.edit("params.yaml", **change)
        project.reproduce(*stages)
        project.git("add", "--all")
        project.git("commit", "--quiet", "--message=Reproduce")
        project.dvc("push")
        add_version(Project(project.folder).repository, "HEAD", "Retrained")
    project.git("repack", "-a", "-d", "--quiet")  # one file instead of 300, in every copy


@pytest.fixture
def copied(registry: Sandbox, tmp_path: Path) -> Sandbox:
    """Return a copy of the registry's project that the test may change."""
    return registry.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> "Forge":
    """Return a repository with three forged versions, of which nothing is checked out."""
    from forge import Forge

    forge = Forge(tmp_path_factory.mktemp("made") / "forge")
    for number in ("v1.0.0", "v1.1.0", "v1.2.0"):
        forge.version(number)
    return forge


@pytest.fixture
def forge(made: "Forge", tmp_path: Path) -> "Forge":
    """Return a copy of that repository, or of the one that a module makes, that the test may change."""
    return made.copy(tmp_path / "forge")


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name a Prefect server that does not exist, so that the test reaches none that runs on this machine."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return a database of Prefect's server without content, whose tables a server would make in five seconds."""
    own = tmp_path_factory.getbasetemp()
    home = (own if worker_id == "master" else own.parent) / "prefect"  # made once for all pytest processes
    with FileLock(f"{home}.lock"):
        if not home.exists():
            part = home.with_name("prefect.part")
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            subprocess.run(command, env=os.environ | {"PREFECT_HOME": str(part)}, check=True, capture_output=True)
            assert not (part / "prefect.db-wal").exists()  # all tables are in the database itself
            part.rename(home)
    return home / "prefect.db"
