"""The benchmarks that start programs run, at the smallest sizes, and say on which machine and at which commit."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
from project import ROOT

MACHINE = {"device", "threads", "torch", "python", "commit"}


@pytest.mark.parametrize(
    "command",
    [
        ["registry", "--versions", "2", "--commands", "models"],
        ["many_images", "--images", "--pictures", "2000"],
        ["serving", "--requests", "4", "--clients", "2", "--steps", "2", "--seconds", "0"],
    ],
    ids=" ".join,
)
def test_a_benchmark_prints_its_figures_and_the_machine(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *options = command
    monkeypatch.chdir(ROOT if module == "serving" else tmp_path)
    monkeypatch.setattr(sys, "argv", [module, *options, "--json"])
    import_module(f"benchmarks.{module}").main()
    assert json.loads(capsys.readouterr().out).keys() > MACHINE
