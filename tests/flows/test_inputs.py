"""A stage whose parameters or code change while DVC runs it fails, so that DVC does not record them."""

from pathlib import Path

import pytest

from flows.core.errors import Exit, UserError
from flows.process.inputs import require_unchanged_inputs

GRAPH = """
stages:
  evaluate:
    cmd: python -m flows.cli evaluate
    deps: [vdm/vlb.py, data/images]
    params: [evaluate]
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder with a graph, parameters and code, in the stage `evaluate`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "dvc.yaml:evaluate")
    for folder in ("vdm", "data/images"):
        Path(folder).mkdir(parents=True)
    Path("dvc.yaml").write_text(GRAPH)
    Path("params.yaml").write_text("train: {steps: 1}\nevaluate: {seed: 1}\n")
    Path("vdm/vlb.py").write_text("pass")


@pytest.mark.parametrize(
    ("path", "content", "changed"),
    [
        ("params.yaml", "evaluate: {seed: 2}", "params.yaml evaluate"),
        ("params.yaml", "evaluate: [", "params.yaml evaluate"),
        ("vdm/vlb.py", "return", "vdm/vlb.py"),
    ],
)
def test_changed_inputs_are_named(path: str, content: str, changed: str) -> None:
    reason = f"^{changed} changed while evaluate ran, .* undo the change and run"
    with pytest.raises(UserError, match=reason) as error, require_unchanged_inputs():
        Path(path).write_text(content)
    assert error.value.code is Exit.USAGE


def test_what_the_stage_does_not_depend_on_may_change() -> None:
    with require_unchanged_inputs():
        Path("params.yaml").write_text("train: {steps: 2}\nevaluate: {seed: 1}  # the bound\n")
        Path("vdm/new.py").touch()
        Path("data/images/new").touch()


def test_a_command_that_dvc_does_not_run_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE")
    with require_unchanged_inputs():
        Path("params.yaml").unlink()
