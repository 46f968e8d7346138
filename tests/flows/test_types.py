"""A type checker finds the types of the installed package: the programs in the documentation have no errors."""

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from project import ROOT

PAGES = ("README.md", "docs/python.md", "docs/export.md", "docs/questions.md")
WITHOUT_TYPES = "[mypy-sklearn.*,diffusers.*]\nignore_missing_imports = True\n"
WRONG = """\
from flows.api import evaluate, load

model = load(5)
result = evaluate(model, "images")
reveal_type(result.bpd)
"""


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    """Return the Python of an environment in which the packages are installed, beside the libraries of the tests."""
    venv.create(tmp_path / "environment", with_pip=False)
    (packages,) = (tmp_path / "environment/lib").glob("python*/site-packages")
    for package in ("flows", "vdm"):
        (packages / package).symlink_to(ROOT / package)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return tmp_path / "environment/bin/python"


@pytest.mark.processes
@pytest.mark.slow
def test_mypy_checks_the_programs_of_the_pages(interpreter: Path, tmp_path: Path) -> None:
    """A mistake in a program is an error, since the types of the package are known."""
    (tmp_path / "networks").symlink_to(ROOT / "networks")
    (tmp_path / "mypy.ini").write_text(f"[mypy]\ncheck_untyped_defs = True\n{WITHOUT_TYPES}")
    (tmp_path / "wrong.py").write_text(WRONG)
    programs = [text for page in PAGES for text in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)]
    assert len(programs) >= len(PAGES)
    for number, program in enumerate(programs):
        (tmp_path / f"program_{number}.py").write_text(program)
    files = [path.name for path in sorted(tmp_path.glob("*.py"))]
    command = [sys.executable, "-m", "mypy", "--python-executable", str(interpreter), "--no-error-summary"]
    cache = ROOT / ".mypy_cache/programs"  # of libraries, which take most of the time
    done = subprocess.run([*command, f"--cache-dir={cache}", *files], cwd=tmp_path, capture_output=True, text=True)
    found = re.findall(r"^(\S+): (error|note): (.*)", done.stdout, re.MULTILINE)
    assert [(place, kind) for place, kind, _ in found] == [
        ("wrong.py:3", "error"),
        ("wrong.py:4", "error"),
        ("wrong.py:5", "note"),
    ], done.stdout + done.stderr
    assert 'Argument 1 to "load" has incompatible type "int"' in found[0][2]
    assert "ndarray" in found[2][2]
