"""docs/json.md is what the code makes of its documents, and names every key that `--json` prints."""

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import typer
from forge import Forge, crown, refuse
from project import ROOT
from small import Small

from flows.cli import run
from flows.commands.json_docs import fill_in_keys, fill_in_tables
from flows.commands.vdmctl import app
from flows.core.errors import Exit
from flows.evaluation.results import BoundMetrics, Metrics
from flows.registry.verification import Reproduction, Verified
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
    assert fill_in_keys(PAGE) == PAGE, "run `python -m flows.commands.json_docs`"
    assert PAGE.count("<!-- flows.") == 22


def test_the_tables_of_samplers_and_figures_are_up_to_date() -> None:
    page = (ROOT / "docs/samples.md").read_text()
    assert fill_in_tables(page) == page, "run `python -m flows.commands.json_docs`"
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
    registry = Mock(
        costs={}, versions=[VERSION], tags=[Tag(VERSION.name, VERSION.commit)], resolve=lambda name: VERSION
    )
    monkeypatch.setattr("flows.project.project.open_registry", lambda root: registry)
    monkeypatch.setattr("flows.registry.verification.verify", lambda root, version: [Verified("models/vdm", "")])
    monkeypatch.setattr("flows.registry.verification.reproduction", lambda root: Reproduction(True, "equal", []))
    require_named("models", keys_in(printed(capsys, "models")))
    require_named("verify", keys_in(printed(capsys, "verify", "champion")))
    found = printed(capsys, "report")
    require_named("report", found.keys() | found["reproduction"].keys())


@pytest.mark.processes
def test_what_the_loop_and_the_registry_answer_has_these_keys(tmp_path: Path) -> None:
    """Programs read them, also those that are missing where something cannot be read."""
    forge = Forge(tmp_path / "forge")
    forge.version("v1.0.0")
    crown(forge.project, "v1.0.0")
    refuse(forge.project, "v1.0.0")

    def answer(*arguments: str) -> dict[str, Any]:
        return json.loads(forge.vdmctl(*arguments, "--json").stdout)  # type: ignore[no-any-return]

    state = answer("status")
    assert list(state) == (
        [
            "folder",
            "server",
            "devices",
            "apps",
            "worktrees",
            "registry",
            "images",
            "disk_bytes",
            "disk_free_bytes",
            "problems",
        ]
    )
    assert list(state["server"]) == ["url", "answers", "reason"]
    assert list(state["images"]) == ["problem"]
    assert list(state["registry"]) == [
        "versions",
        "champion",
        "champion_bpd",
        "hold",
        "waiting",
        "unpublished",
        "unfetched",
    ]
    assert list(state["disk_bytes"]) == (
        ["dvc_cache", "training_states", "worktrees", "fetched_models", "reports_of_runs", "downloads", "git"]
    )
    pruned = answer("prune", "--dry-run")
    assert list(pruned) == ["dry_run", "keep", "removed", "kept"]
    assert list(pruned["removed"]) == (
        [
            "worktrees",
            "branches",
            "versions",
            "cached_files",
            "unfinished",
            "reports",
            "fetched_models",
            "training_states",
        ]
    )
    assert [list(each) for each in pruned["removed"].values()] == [["count", "bytes", "names", "reason"]] * 8
    chain = answer("lineage", "champion")
    assert list(chain) == (
        [
            "version",
            "created",
            "message",
            "stages",
            "commit",
            "parameters",
            "source",
            "data",
            "ancestors",
            "findings",
            "code",
            "outputs",
            "metrics",
            "promotions",
            "refusal",
        ]
    )
    assert list(chain["data"]) == ["path", "md5", "sha256", "licence"]
    assert list(chain["findings"]) == ["path", "md5"]
    assert list(chain["metrics"]) == ["bpd", "bpd_standard_error", "num_images", "data_sha256", "model_sha256"]
    assert [list(each) for each in chain["promotions"]] == [["tag", "created", "evidence"]]
    evidence = ["decision", "reason", "challenger"]
    assert list(chain["promotions"][0]["evidence"]) == list(chain["refusal"]) == evidence
