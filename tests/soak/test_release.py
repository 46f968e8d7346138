"""A release: sdist and wheel are built, checked and installed, and what they carry works away from the checkout.

The environment sees the libraries of the tests' own, so that torch is not fetched again: a library that is needed and
not declared is not noticed if the tests have it.  The extras are installed, and not used.  Needs a network.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = ("build", "twine", "validate-pyproject[all]", "check-jsonschema>=0.39")
EXTRAS = ",".join(PROJECT["optional-dependencies"].keys() - {"test"})


def run(*command: str | Path, folder: Path) -> str:
    """Return what a command prints; it must end well.  It sees nothing of the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment_in(folder: Path) -> Path:
    """Return the folder of the programs of a new environment."""
    run(sys.executable, "-m", "venv", folder, folder=folder.parent)
    return folder / "bin"


def tracked(*folders: str) -> list[str]:
    return run("git", "ls-files", *folders, folder=ROOT).splitlines()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sdist and the wheel of the tracked files, as they are now."""
    folder = tmp_path_factory.mktemp("release")
    tools = environment_in(folder / "tools")
    run(tools / "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS, folder=folder)
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    run(tools / "python", "-m", "build", source, "--outdir", folder / "dist", folder=folder)
    files = sorted((folder / "dist").iterdir())
    run(tools / "twine", "check", "--strict", *files, folder=folder)
    return folder / "dist"


def test_the_metadata_are_valid_with_classifiers_that_an_index_takes(built: Path) -> None:
    run(built.parent / "tools/bin/validate-pyproject", ROOT / "pyproject.toml", folder=built)


@pytest.mark.parametrize(
    ("files", "schema"),
    [
        (".github/workflows/*.yml", "github-workflows"),
        (".github/ISSUE_TEMPLATE/[!c]*.yml", "github-issue-forms"),
        (".github/ISSUE_TEMPLATE/config.yml", "github-issue-config"),
        ("CITATION.cff", "citation-file-format"),
    ],
)
def test_what_a_forge_reads_is_valid_by_its_schema(files: str, schema: str, built: Path) -> None:
    paths = [ROOT / path for path in tracked(files)]
    assert paths
    run(built.parent / "tools/bin/check-jsonschema", "--builtin-schema", f"vendor.{schema}", *paths, folder=built)


@pytest.fixture(scope="module")
def programs(built: Path) -> Path:
    """Return the folder of the programs of an environment that has the wheel and its extras."""
    folder = built.parent
    programs = environment_in(folder / "installed")
    (wheel,) = built.glob("*.whl")
    install = [programs / "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*install, "--no-deps", wheel, folder=folder)
    (packages,) = (folder / "installed/lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    run(*install, f"{wheel}[{EXTRAS}]", folder=folder)  # with what the tests lack, and nothing else
    return programs


def test_sdist_and_wheel_have_the_version_of_pyproject_and_every_file_of_the_packages(built: Path) -> None:
    name = f"vdm_pipeline-{PROJECT['version']}"
    assert [path.name for path in sorted(built.iterdir())] == [f"{name}-py3-none-any.whl", f"{name}.tar.gz"]
    with ZipFile(built / f"{name}-py3-none-any.whl") as wheel:
        carried = {path for path in wheel.namelist() if not path.startswith(f"{name}.dist-info/")}
    presets = {f"flows/{path}" for path in tracked("presets")}
    assert carried == set(tracked("vdm", "flows")) - {"flows/presets"} | presets


def test_the_wheel_runs_vdmctl_and_the_program_of_the_readme(programs: Path, tmp_path: Path) -> None:
    """The models in pretrained/ are no part of the wheel."""
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    where = run(programs / "python", "-c", "import flows, vdm; print(flows.__file__, vdm.__file__)", folder=tmp_path)
    assert where.count(str(programs.parent)) == 2
    assert "decompress" in run(programs / "vdmctl", "--help", folder=tmp_path)
    assert run(programs / "vdmctl", "--version", folder=tmp_path) == f"vdmctl {PROJECT['version']}\n"
    program = re.search(r"## In Python\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert program
    printed = run(programs / "python", "-c", program[1].replace("model, 16", "model, 4"), folder=tmp_path)
    assert re.fullmatch(r"[1-4]\.\d{3} \+- 0\.\d{3} bits/dim\n", printed)


def test_presets_templates_and_pages_are_found_in_the_wheel(programs: Path, tmp_path: Path) -> None:
    program = """
from flows.api import load, train
from flows.app.application import PAGE
import numpy as np
train(np.zeros((20, 1, 8, 8), np.uint8), num_levels=17, steps=1)
print((PAGE / "index.html").is_file())
"""
    assert run(programs / "python", "-c", program, folder=tmp_path) == "True\n"
    assert "the preset mnist" in run(programs / "vdmctl", "preset", "mnist", folder=tmp_path)
    report = ["report", str(ROOT / "pretrained/digits_classes"), "--out", "report.html"]
    run(programs / "vdmctl", *report, folder=tmp_path)
    assert "<html" in (tmp_path / "report.html").read_text()
