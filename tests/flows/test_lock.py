"""The locks have what pyproject.toml names, with digests; what is installed from them is in the right order."""

import re
import subprocess
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILDS = {"torch", "torchvision"}
"""Torch has other builds for cards than for CPUs, so no digest holds for both."""
FOR_CARDS = set(PROJECT["tool"]["uv"]["exclude-dependencies"])
INSTALLED = re.compile(
    r"install.* --require-hashes .*requirements.*torch(?!diff).*install.* --no-deps --no-build-isolation --editable \.",
    re.DOTALL,
)


def locked(name: str) -> dict[str, set[str]]:
    """Return the versions by package of a lock.  Every one of them has a digest."""
    entries = re.split(r"\n(?! )", (ROOT / f"{name}.lock").read_text().strip())
    found: dict[str, set[str]] = {}
    for entry in entries:
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)[^\n]*( \\\n    --hash=sha256:[0-9a-f]{64})+", entry)
        assert match, entry
        found.setdefault(match[1], set()).add(match[2])
    return found


def named(texts: list[str]) -> set[str]:
    """Return the packages of requirements, without those of extras and of other machines."""
    found = map(Requirement, texts)
    return {canonicalize_name(each.name) for each in found if not each.marker or each.marker.evaluate({"extra": ""})}


@pytest.mark.parametrize(("lock", "extras"), [("requirements", []), ("requirements-test", ["test"])])
def test_a_lock_has_all_that_is_needed_but_torch(lock: str, extras: list[str]) -> None:
    project = PROJECT["project"]
    needed = named(
        [*project["dependencies"], *(each for name in extras for each in project["optional-dependencies"][name])]
    )
    assert needed > BUILDS
    of_torch = named([each for build in BUILDS for each in requires(build) or []])
    found = locked(lock)
    assert (needed | of_torch) - BUILDS - FOR_CARDS - {"triton"} <= found.keys()
    assert not [name for name in found if name in BUILDS | FOR_CARDS or name.startswith("nvidia")]
    assert "setuptools" in found  # which builds the project


def test_tests_use_the_locked_versions() -> None:
    tested = locked("requirements-test")
    assert {name: tested[name] for name in locked("requirements")} == locked("requirements")


def test_digests_are_required_before_torch_and_the_project_are_installed(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-test.lock"):
        (tmp_path / name).symlink_to(ROOT / name)
    for target, lock in (("installed", "requirements.lock"), ("installed-test", "requirements-test.lock")):
        command = ["make", "--dry-run", f".venv/{target}"]
        shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert INSTALLED.search(shown), shown
        assert f"--requirement {lock} " in shown
        assert '"torch>=' in shown
    assert INSTALLED.search((ROOT / "deploy/Dockerfile").read_text())
