"""docs/json.md is what the code makes of its documents, and names every key that `--json` prints."""

import json
import re
from typing import Any
from unittest.mock import Mock

import pytest
import typer
from project import ROOT
from small import Small

from flows.cli import run
from flows.commands.json_docs import with_tables, written
from flows.commands.vdmctl import app
from flows.core.errors import Exit
from flows.evaluation.results import BoundMetrics, Metrics
from flows.registry.verification import Check, Reproduction
from flows.registry.versions import Version
from flows.repository.tags import Tag

VERSION = Version("vdm@v1.0.0", "a" * 40, "2026-01-31T00:00:00+00:00", "Retrained", (), Metrics(), "damaged")
PAGE = (ROOT / "docs/json.md").read_text()
TEXTS = {part.split()[0]: part for part in reversed(PAGE.split("\n## ")[1:])}
"""The sections by command; that of `evaluate` is the first of two."""


def require_named(command: str, keys: Any) -> None:
    """Require that the section of a command names these keys."""
    missing = sorted(set(keys) - set(re.findall(r"`(\w+)`", TEXTS[command])))
    assert not missing, f"docs/json.md, {command}: {missing}"


def keys_in(value: Any) -> set[str]:
    """Return the keys of a JSON object and of the objects in it."""
    if isinstance(value, list):
        return set().union(*map(keys_in, value))
    return set(value).union(*map(keys_in, value.values())) if isinstance(value, dict) else set()


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Return the object that a command prints."""
    capsys.readouterr()
    assert run([*arguments, "--json"]) == Exit.DONE
    return json.loads(capsys.readouterr().out)


def test_the_page_is_up_to_date() -> None:
    assert written(PAGE) == PAGE, "run `python -m flows.commands.json_docs`"
    assert PAGE.count("<!-- flows.") == 18


def test_the_tables_of_samplers_and_figures_are_up_to_date() -> None:
    page = (ROOT / "docs/samples.md").read_text()
    assert with_tables(page) == page, "run `python -m flows.commands.json_docs`"
    assert "| `ddim` | 1 | 0.0 | DDIM |" in page
    assert "| `precision` | precision | share" in page


def test_every_command_with_json_has_a_section() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    printing = {name for name, each in commands.items() if any("--json" in option.opts for option in each.params)}
    assert printing == TEXTS.keys() - {"app"}  # which answers over HTTP


def test_the_keys_of_objects_that_are_no_documents(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.edit(times_per_image=1)
    sweep = printed(capsys, "evaluate", "models/vdm", "--num-timesteps", "1,2", "--device", "cpu")
    require_named("evaluate", sweep.keys())
    assert [each.keys() for each in sweep["sweep"]] == [BoundMetrics.model_fields.keys()] * 2
    require_named("sample", printed(capsys, "sample", "models/vdm", "-n", "1", "--steps", "1", "--out", "one.npy"))
    registry = Mock(versions=[VERSION], tags=[Tag(VERSION.name, VERSION.commit)], resolve=lambda name: VERSION)
    monkeypatch.setattr("flows.registry.project.open_registry", lambda root: registry)
    monkeypatch.setattr("flows.registry.verification.verify", lambda root, version: [Check("models/vdm", "")])
    monkeypatch.setattr("flows.registry.verification.reproduction", lambda root: Reproduction(True, "equal", []))
    require_named("models", keys_in(printed(capsys, "models")))
    require_named("verify", keys_in(printed(capsys, "verify", "champion")))
    found = printed(capsys, "report")
    require_named("report", found.keys() | found["reproduction"].keys())
