"""The notebook in docs/: every cell runs, with few steps in place of minutes, and it is kept with its pictures."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from project import ROOT

NOTEBOOK = ROOT / "docs/first_model.ipynb"
QUICK = {"STEPS": "10", "TIMES": "1"}
"""Parameters in the first cell, and what stands for them here."""
TESTED, FEW = "order[-360:]", "order[-100:]"
"""The test images, and those here."""
TRAININGS = {"minutes=MINUTES,": "steps=30,", "minutes=MINUTES / 2,": "steps=2,"}
"""Arguments of trainings, and what stands for them: beside other tests, a few seconds may be too few."""
LIBRARIES = {"flows.api", "vdm", "numpy", "matplotlib", "sklearn", "torch"}


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.processes
@pytest.mark.slow
def test_every_cell_runs_without_a_warning(notebook: Any, tmp_path: Path) -> None:
    """It does so by the command that CONTRIBUTING.md names."""
    first = code(notebook)[0]
    for name, quick in QUICK.items():
        first.source, count = re.subn(rf"^{name} = \d+", f"{name} = {quick}", first.source, flags=re.MULTILINE)
        assert count == 1, name
    assert [sum(cell.source.count(old) for cell in code(notebook)) for old in TRAININGS] == [1, 2]
    for cell in code(notebook):
        cell.source = cell.source.replace(TESTED, FEW)
        for old, new in TRAININGS.items():
            cell.source = cell.source.replace(old, new)
    copy = tmp_path / "docs" / NOTEBOOK.name
    copy.parent.mkdir()
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    nbformat.write(notebook, copy)
    folders = ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "MPLCONFIGDIR")
    environment = os.environ | dict.fromkeys(folders, str(tmp_path / "jupyter")) | {"PYTHONPATH": str(ROOT)}
    program = "import sys; from nbclient.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--inplace", "--KernelManager.transport=ipc", str(copy)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(copy, as_version=4)
    outputs = [output for cell in code(executed) for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert re.search(r"training: .* \d\.\d{4} bits/dim", said)
    assert "arning" not in said
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == len(pictures())


def pictures() -> list[str]:
    """Return the pictures that the notebook is kept with, in base64."""
    cells = code(nbformat.read(NOTEBOOK, as_version=4))
    shown = [output.get("data", {}) for cell in cells for output in cell.outputs]
    return [data["image/png"] for data in shown if "image/png" in data]


def test_it_is_kept_whole_with_its_pictures(notebook: Any) -> None:
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {(output.output_type, output.get("name")) for cell in cells for output in cell.outputs}
    assert kinds == {("stream", "stdout"), ("display_data", None)}, "no error, and no progress bar"
    assert len(pictures()) >= 9
    assert NOTEBOOK.stat().st_size < 1_200_000
    text = NOTEBOOK.read_text()
    assert "/home/" not in text
    assert str(ROOT) not in text
    assert json.loads(text)["metadata"]["kernelspec"]["name"] == "python3"


def test_it_takes_only_what_a_reader_has(notebook: Any) -> None:
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            foreign = {
                name for name in names if not {name, name.split(".")[0]} & {*LIBRARIES, *sys.stdlib_module_names}
            }
            assert not foreign
