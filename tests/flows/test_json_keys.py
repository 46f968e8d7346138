"""docs/json.md has a row for every key that `--json` prints, and no other row."""

import inspect
import json
import re
import typing
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import typer
from project import ROOT
from pydantic import BaseModel
from small import Small

from flows.cli import run
from flows.commands.vdmctl import app
from flows.compression.files import Compressed, Decompressed
from flows.core.errors import Exit
from flows.evaluation.results import BoundMetrics, Comparison, Metrics, OdeMetrics, SampleMetrics
from flows.orchestration import pruning, status
from flows.registry import promotion
from flows.registry.evidence import Evidence
from flows.registry.git import Tag
from flows.registry.lineage import Lineage
from flows.registry.lock_file import Lock
from flows.registry.reproduction import Reproduction
from flows.registry.verification import Check
from flows.registry.versions import Version
from flows.validation.inspection import entry
from flows.validation.report import Report

PAGE = (ROOT / "docs/json.md").read_text()
ROWS = {
    part.partition("\n")[0]: re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE) for part in PAGE.split("\n## ")[1:]
}
"""The keys in the table of each section."""
VERSION = Version("vdm@v1.0.0", "a" * 40, "2026-01-31T00:00:00+00:00", "Retrained", (), Metrics())

# Sections about a document, and the keys whose objects another row or section describes.
DOCUMENTS: dict[str, tuple[type[BaseModel], set[str]]] = {
    "Evaluate: the bound": (BoundMetrics, {"training"}),
    "Evaluate: the ODE": (OdeMetrics, set()),
    "Compare": (Comparison, {"samples"}),
    "The quality of samples": (SampleMetrics, set()),
    "Compress": (Compressed, set()),
    "Decompress": (Decompressed, set()),
    "Promote": (Evidence, set()),
}
# Keys of requests to the server, and states that it answers.
ASKED = {"any_", "flow_run_id", "limit", "offset", "sort", "type", "FAILED", "CRASHED"}


def keys_of(model: type[BaseModel], whole: Collection[str] = (), prefix: str = "") -> Iterator[str]:
    """Yield the keys of a document, except those inside of `whole`."""
    for name, field in model.model_fields.items():
        yield (key := f"{prefix}{name}")
        for place, inner in () if key in whole else documents_in(field.annotation):
            yield from keys_of(inner, whole, f"{key}{place}.")


def documents_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the documents in the type of a field, with what leads to them: nothing, `[]` in a list, `.NAME`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    place = {list: "[]", dict: ".NAME"}.get(typing.get_origin(annotation), "")
    for argument in typing.get_args(annotation):
        yield from ((place + rest, inner) for rest, inner in documents_in(argument))


def keys_in(value: Any, whole: Collection[str] = (), prefix: str = "") -> Iterator[str]:
    """Yield the keys of a JSON object, except those inside of `whole`."""
    for name, inner in value.items():
        yield (key := f"{prefix}{name}")
        if key in whole:
            continue
        for part in inner if isinstance(inner, list) else [inner]:
            if isinstance(part, dict):
                yield from keys_in(part, whole, f"{key}{'[]' if isinstance(inner, list) else ''}.")


def require_rows(section: str, keys: Collection[str]) -> None:
    """Require one row for each of the keys, and no other row."""
    rows = ROWS[section]
    assert len(rows) == len(set(rows)), f"docs/json.md, {section}: a key has two rows"
    assert set(keys) - set(rows) == set(), f"docs/json.md, {section}: keys without a row"
    assert set(rows) - set(keys) == set(), f"docs/json.md, {section}: rows of keys that do not exist"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Return the object that a command prints."""
    capsys.readouterr()
    assert run([*arguments, "--json"]) == Exit.DONE
    return json.loads(capsys.readouterr().out)


def replace(monkeypatch: pytest.MonkeyPatch, module: Any, **values: Any) -> None:
    """Replace functions of a module by ones that return these values."""
    for name, value in values.items():
        monkeypatch.setattr(module, name, returning(value))


def returning(value: Any) -> Callable[..., Any]:
    """Return a function that returns the value, whatever its arguments are."""
    return lambda *arguments, **options: value


def test_every_command_with_json_has_a_section() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    with_json = {name for name, each in commands.items() if any("--json" in option.opts for option in each.params)}
    described = set(re.findall(r"^`vdmctl ([\w-]+)[^`\n]* --json`", PAGE, re.MULTILINE))
    missing, gone = sorted(with_json - described), sorted(described - with_json)
    assert not missing, f"docs/json.md: a section for {missing} begins with `vdmctl NAME --json`"
    assert not gone, f"docs/json.md: {gone} take no --json"
    tested = Path(__file__).read_text()
    assert [section for section in ROWS if f'"{section}"' not in tested] == [], "docs/json.md: no test of the keys"


@pytest.mark.parametrize("section", DOCUMENTS)
def test_the_keys_of_a_document(section: str) -> None:
    require_rows(section, set(keys_of(*DOCUMENTS[section])))


def test_the_keys_of_a_sweep(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    small.edit(times_per_image=1)
    found = printed(capsys, "evaluate", "models/vdm", "--num-timesteps", "1,2", "--device", "cpu")
    require_rows("Evaluate: several numbers of steps", set(keys_in(found, {"sweep"})))
    assert [each.keys() for each in found["sweep"]] == [BoundMetrics.model_fields.keys()] * 2


def test_the_keys_of_the_last_results(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.registry.reproduction.reproduction", returning(Reproduction(True, "equal", [])))
    require_rows("Report", set(keys_in(printed(capsys, "report"), {"metrics"})))


def test_the_keys_of_a_validation_report(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}_files.txt").write_text('"a.png"\n')
    found = {"image": 0, "of_image": 0, "moved": "as it is", "distance": 0.0, "by_chance": 0.0, "excess": False}
    (pair,) = entry(("train", "test"), pd.DataFrame([found]), tmp_path).pairs
    require_rows("Validate", {*keys_of(Report), *keys_in(pair, prefix="alike[].pairs[].")})


def test_the_keys_of_drawn_samples(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "sample", "models/vdm", "-n", "1", "--steps", "1", "--out", "one.npy", "--device", "cpu")
    require_rows("Sample", set(keys_in(found)))


def test_the_keys_of_the_versions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("flows.registry.versions.versions", returning([VERSION._replace(problem="damaged")]))
    require_rows("Models", set(keys_in(printed(capsys, "models"))))


@pytest.mark.parametrize("pair", [("champion", "models/vdm"), ("models/vdm", "champion")])
def test_a_version_is_compared_on_its_own_images_if_there_are_no_others(
    pair: tuple[str, str], small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data/images").rename("its own")
    monkeypatch.setattr("flows.registry.versions.resolve", returning(VERSION))
    monkeypatch.setattr("flows.registry.storage.fetch", returning(Path("models/vdm")))
    monkeypatch.setattr("flows.registry.storage.fetch_images", returning(Path("its own")))
    assert printed(capsys, "compare", *pair)["difference_bpd"] == 0


def test_the_keys_of_a_lineage() -> None:
    found = Lineage(VERSION, Lock({}, {}, {}, set()), [Tag("vdm#champion#1", VERSION.commit)], None).as_json()
    require_rows("Lineage", set(keys_in(found)))


def test_the_keys_of_checks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("flows.registry.versions.resolve", returning(VERSION))
    monkeypatch.setattr("flows.registry.verification.verify", returning([Check("models/vdm", "")]))
    require_rows("Verify", set(keys_in(printed(capsys, "verify", "champion"))))


def test_the_keys_of_a_rollback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tag, lock = Tag("vdm#champion#2", VERSION.commit), nullcontext()
    replace(monkeypatch, promotion, champion_tag=tag, previous_champion=VERSION, resolve=VERSION, registry_lock=lock)
    replace(monkeypatch, promotion, require_sound=None, finish=None, make_champion="vdm#champion#3")
    require_rows("Rollback", set(keys_in(printed(capsys, "rollback"))))


@pytest.mark.parametrize(
    ("section", "module", "fields"),
    [("Status", status, {}), ("Prune", pruning, vars(pruning.Pruning(dry_run=False, keep=1)))],
)
def test_the_keys_of_objects_about_the_loop(section: str, module: ModuleType, fields: dict[str, Any]) -> None:
    """They need a server with runs, so their names are compared with those in the code."""
    source = inspect.getsource(module)
    rows = {row.rpartition(".")[2] for row in ROWS[section]}
    written = set(re.findall(r'"(\w+)":', source)) | set(fields)
    assert written - rows - ASKED == set(), f"docs/json.md, {section}: keys without a row"
    assert {row for row in rows - set(fields) if f'"{row}"' not in source} == set(), (
        f"docs/json.md, {section}: no such keys"
    )
