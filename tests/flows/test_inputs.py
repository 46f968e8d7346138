"""A stage whose parameters or code change while DVC runs it fails, so that DVC does not record them.

test_pipeline.py has a run of DVC in which it happens.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from project import ROOT

from flows import cli
from flows.core.errors import Exit, UserError
from flows.process.inputs import unchanged_inputs


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with the graph, the parameters and the code of the project, in the stage `evaluate`."""
    for name in ("dvc.yaml", "params.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("flows", "vdm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "evaluate")
    return tmp_path


def edit(name: str, old: str, new: str) -> Callable[[], object]:
    def change() -> None:
        text = Path(name).read_text()
        assert old in text
        Path(name).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (edit("params.yaml", "times_per_image: 32", "times_per_image: 3"), "params.yaml evaluate"),
        (edit("vdm/vlb.py", "import", "import "), "vdm/vlb.py"),
        (Path("vdm/vlb.py").unlink, "vdm/vlb.py"),
        (edit("params.yaml", "evaluate:", "evaluate: ["), "params.yaml evaluate"),
        (edit("requirements.lock", "torch==", "torch==1"), "requirements.lock"),
    ],
)
def test_changed_inputs_are_named(change: Callable[[], object], changed: str, project: Path) -> None:
    message = f"^{changed} changed while evaluate ran, .* undo the change and run"
    with pytest.raises(UserError, match=message) as error, unchanged_inputs():
        change()
    assert error.value.code is Exit.USAGE


@pytest.mark.parametrize(
    "change",
    [
        edit("params.yaml", "steps: 2600", "steps: 1"),
        edit("flows/stages/sample.py", "import", "import "),
        edit("params.yaml", "evaluate:", "evaluate:  # the bound"),
        Path("flows/new.py").touch,
    ],
)
def test_what_the_stage_does_not_depend_on_may_change(change: Callable[[], object], project: Path) -> None:
    with unchanged_inputs():
        change()


def test_a_command_that_dvc_does_not_run_records_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE")
    with unchanged_inputs():
        (project / "params.yaml").unlink()


def test_a_stage_does_not_run_the_code_of_another_folder(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC would record the digests of this folder's code for what the other made."""
    assert cli.run(["evaluate"]) == Exit.USAGE
    assert f"the stage runs the code in {ROOT} instead of that in {project}; " in capsys.readouterr().err
