"""What a run of the flow shows, repeats, and says when it fails; test_loop.py runs it under a real server."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import Mock

import numpy as np
import pytest
from forge import Forge, crown
from prefect import State
from prefect.exceptions import TerminationSignal
from prefect.logging import disable_run_logger
from prefect.states import Cancelling, Failed, Running
from project import ROOT, Sandbox
from small import Small

from flows.cli import run as run_command
from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.core.files import write_whole
from flows.core.params_file import parse_params
from flows.evaluation.results import Metrics
from flows.images.image_set import open_images, save_images
from flows.orchestration import releasing
from flows.orchestration.arrivals import Arrivals
from flows.orchestration.artifacts import ProgressBar
from flows.orchestration.checking import check_drift, findings_of_champion
from flows.orchestration.due import Due
from flows.orchestration.outcome import DRIFTED, Drifted, Outcome, Release
from flows.orchestration.staging import STAGES, reproduce, run_stage, run_stages, while_busy
from flows.orchestration.streaming import EXPECTED, failure, stream, to_user_error
from flows.orchestration.tasks import RunTask
from flows.orchestration.workspace import Instructions, Run, compose_params, workspace
from flows.process.ending import handle_stop
from flows.project.project import Project
from flows.registry.costs import Costs, count_costs, known_costs
from flows.registry.evidence import WAIT, Evidence
from flows.registry.fetching import fetch
from flows.registry.promotion import add_conditions
from flows.registry.verification import require_sound
from flows.registry.versions import Version
from flows.repository.commit import Commit
from flows.repository.files import DamagedVersionError, readable
from flows.repository.repository import Repository
from flows.repository.stages import stage_names
from flows.train_vdm import (
    check_champion,
    is_cancelled,
    name_champion,
    restore,
    retrain,
)

ARTIFACTS = "flows.orchestration.artifacts"


@pytest.fixture
def quietly() -> Iterator[None]:
    """Let the flow's functions run outside a run, and log nothing."""
    with disable_run_logger():
        yield


def logged_by(module: str, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Return what a module of the flow logs to, outside a run."""
    logger = Mock()
    monkeypatch.setattr(f"{module}.get_run_logger", lambda: logger)
    return logger


def test_the_progress_of_a_training_run_names_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2300 steps, of which 100 took 50 s; then an early end."""
    shown: list[tuple[float, str]] = []
    now = [1000.0]

    def create(percent: float, key: str, description: str) -> str:
        shown.append((percent, description))
        return "1"

    monkeypatch.setattr(f"{ARTIFACTS}.create_progress_artifact", create)
    monkeypatch.setattr(f"{ARTIFACTS}.update_progress_artifact", lambda _, *given: shown.append(given))
    monkeypatch.setattr(f"{ARTIFACTS}.time.monotonic", lambda: now[0])
    progress = ProgressBar(tmp_path)
    progress.look()
    assert shown == []
    file, step = tmp_path / layout.PROGRESS, {"step": 300, "steps": 2300, "bpd": 2.5}
    validation = {"validation_bpd": 2.6, "validation_monte_carlo_standard_error": 0.01, "validation_step": 300}

    def follow(**changes: Any) -> None:
        write_whole(file, json.dumps(step | validation | changes))
        progress.look()

    follow()
    follow(step=350)  # too soon
    now[0] += 50
    follow(step=400, bpd=2.4, seconds_left=1100.0)
    follow(step=400, bpd=2.4, has_ended=True)
    validated = "validation 2.6000 ± 0.0100 at step 300"
    assert [description for _, description in shown] == [
        f"300 of 2300 steps, 2.5000 bits/dim, {validated}",
        f"400 of 2300 steps, 2.4000 bits/dim, {validated}, 0:18:20 left",
        f"400 of 2300 steps, training ends, since validation no longer improves, 2.4000 bits/dim, {validated}",
    ]
    assert [percent for percent, _ in shown] == [100 * 300 / 2300, 100 * 400 / 2300, 100]


def test_other_machines_may_be_first_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is outrun releases its model anew, publishes that, and says of the images what it found."""
    version = Version("vdm@v1.1.0", "c" * 40, "", "", (), Metrics())
    answers = [False, True]
    evidence = Evidence(decision="refuse", reason="not better")
    first, again = (Release(version, name, evidence) for name in ("first", "again"))
    monkeypatch.setattr(releasing, "publish_versions", lambda project: answers.pop(0))
    monkeypatch.setattr(releasing, "fetch_published", lambda project: [version.commit])
    monkeypatch.setattr(releasing, "release_anew", lambda project, withdrawn: dict.fromkeys(withdrawn, again))
    assert releasing.publish_all(Project(tmp_path), first) == again
    outcome = Outcome("Promoted", first, arrivals=Arrivals(5, 0, "vdm@v1.0.0")).released(again)
    assert (outcome.state, outcome.release) == ("Refused", again)
    assert str(outcome).endswith(
        "on branch again, not promoted: not better; images: 5 added and 0 removed since vdm@v1.0.0"
    )
    answers += [False] * 3
    with pytest.raises(NetworkError, match="other machines took the version's number three times"):
        releasing.publish_all(Project(tmp_path), None)
    assert answers == []


def test_a_graph_that_dvc_refuses_is_one_line(tmp_path: Path) -> None:
    project = Sandbox(tmp_path)
    project.edit("dvc.yaml", **{"stages:": "stages: ["})
    with pytest.raises(EXPECTED) as error:
        stage_names(Project(project.folder).repository)
    reason = str(to_user_error(error.value))
    assert "dvc.yaml" in reason
    assert "\n" not in reason


def test_a_command_that_fails_gives_its_reason_and_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last lines of one that is stopped are logged."""
    logger = logged_by("flows.orchestration.streaming", monkeypatch)
    (tmp_path / ".vdm").mkdir()
    (tmp_path / "program.py").write_text(
        "import json, os, pathlib, signal, sys, time\n"
        "try:\n"
        "    print('begins', flush=True)\n"
        "    time.sleep(60 if len(sys.argv) > 1 else 0)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit('state saved at step 7')\n"
        "reason = {'message': 'no space', 'code': 5, 'network': False}\n"
        "pathlib.Path(os.environ['VDM_REASON']).write_text(json.dumps(reason))\n"
        "sys.exit(255)\n"
    )
    with pytest.raises(UserError, match=r"^no space$") as failed:
        stream(["program"], tmp_path)
    assert failed.value.code is Exit.MISSING

    def stop() -> None:
        raise TerminationSignal(signal.SIGTERM)

    began = time.monotonic()
    with pytest.raises(TerminationSignal):
        stream(["program", "long"], tmp_path, stop)
    assert time.monotonic() - began < 30
    assert [call.args[0] for call in logger.info.call_args_list][-2:] == ["begins", "state saved at step 7"]


def test_a_run_that_is_stopped_twice_still_asks_whether_somebody_cancels_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a worker stops its run twice: by the log that cannot be written, and by SIGTERM a moment later."""

    def end(*_: object) -> NoReturn:
        raise TerminationSignal(signal.SIGTERM)

    for state, cancelled in ((Running(), False), (Cancelling(), True)):

        def read_flow_run(_: object, state: State[None] = state) -> Mock:
            signal.raise_signal(signal.SIGTERM)
            return Mock(state=state)

        client = nullcontext(Mock(read_flow_run=read_flow_run))
        monkeypatch.setattr("flows.train_vdm.get_client", lambda client=client, **_: client)
        with handle_stop(end):
            assert is_cancelled() is cancelled


def test_a_task_that_takes_too_long_is_named() -> None:
    message, error = "Task run exceeded timeout of 7.0 second(s)", TimeoutError("Scope timed out")
    with pytest.raises(UserError, match=r"^stage evaluate took too long, so it was ended: Task run exceeded"):
        RunTask(Mock(return_value=Failed(name="TimedOut", message=message, data=error)), "stage evaluate")()


@pytest.mark.parametrize(
    ("error", "count", "hours", "again"),
    [
        (UserError("busy", Exit.BUSY), 50, 1.0, True),
        (UserError("busy", Exit.BUSY), 1, -1.0, False),
        (NetworkError("silent"), 2, -1.0, True),
        (NetworkError("silent"), 3, 1.0, False),
        (UserError("wrong", Exit.USAGE), 1, 1.0, False),
    ],
)
def test_when_a_stage_is_tried_again(error: UserError, count: int, hours: float, again: bool) -> None:
    condition = while_busy(time.monotonic() + 3600 * hours)
    assert condition(reproduce, Mock(run_count=count), Failed(data=error)) is again


def test_only_what_the_network_prevented_is_tried_again(tmp_path: Path) -> None:
    reason = tmp_path / "reason.json"
    for network in (True, False):
        reason.write_text(json.dumps({"message": "no answer", "code": int(Exit.MISSING), "network": network}))
        state = Failed(data=failure(reason, [], 5))
        tasks = releasing.run_promote, releasing.publish_versions, releasing.fetch_published, check_champion, restore
        for run_task in tasks:
            task = run_task.task
            assert task.retries == 2
            assert task.retry_condition_fn is not None
            assert task.retry_condition_fn(task, Mock(), state) is network


@pytest.mark.parametrize(("force", "shared"), [(False, False), (True, True), (False, True)])
def test_a_stage_is_forced_if_asked_or_takes_what_another_machine_made(
    force: bool, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, restored = Mock(), Mock()
    monkeypatch.setattr("flows.orchestration.staging.stream", called)
    monkeypatch.setattr("flows.repository.stages.restore_stage", restored)
    run = Run(Project(tmp_path), "run", "HEAD", Instructions(force=force, shared=shared))
    reproduce.fn(STAGES["evaluate"], run)
    options = ["--force"] if force else []
    assert called.call_args.args == (
        ["dvc", "repro", "--single-item", "evaluate", *options],
        tmp_path / ".vdm/worktrees/run",
        None,
    )
    assert restored.call_count == int(shared and not force)
    restored.side_effect = NetworkError("DVC's remote cannot be read")
    if shared and not force:  # so that the task is tried again
        with pytest.raises(NetworkError, match=r"^stage evaluate failed: DVC's remote cannot be read$"):
            reproduce.fn(STAGES["evaluate"], run)


def test_a_run_counts_what_the_interrupted_run_that_it_repeats_cost(forge: Forge) -> None:
    """Also of the processes that it started; a run with other parameters counts anew."""
    params = (forge.root / "params.yaml").read_text()
    base = forge.git("rev-parse", "HEAD").strip()
    counted = []
    for _ in range(2):
        with suppress(TerminationSignal), workspace(forge.opened, params, base) as run:
            with suppress(UserError), count_costs(run.folder, "validate"):
                raise UserError("not valid", Exit.INVALID_DATA)
            with count_costs(run.folder, "train", cards=2):
                counted.append(known_costs(run.folder))
                subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
                raise TerminationSignal(signal.SIGTERM)
        counted.append(known_costs(run.folder))
    evidence = Evidence(decision="", reason="")
    rule = Mock(max_frechet=None, approval=None)
    add_conditions(evidence, Mock(hold=None, repository=run), Mock(), rule)
    assert evidence.costs == counted[-1]
    begun, once, again, twice = (each or Costs(minutes={}, core_hours=0.0, card_hours=0.0) for each in counted)
    assert list(begun.minutes) == ["validate"]
    assert 0 < begun.core_hours < once.core_hours <= again.core_hours < twice.core_hours
    assert again.minutes["train"] == once.minutes["train"] < twice.minutes["train"]
    assert twice.card_hours == pytest.approx(2 * twice.minutes["train"] / 60)
    assert re.fullmatch(r"cost: \d+\.\d minutes.*, 0\.00 core-hours(, 0\.00 card-hours)?", twice.words)
    with workspace(forge.opened, f"{params}# another", base) as other:
        assert known_costs(other.folder) is None


@pytest.mark.usefixtures("quietly")
def test_a_model_that_is_not_promoted_has_its_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = Evidence(decision="refuse", reason="not better")

    def refuse(*_: object, stdout: Path) -> NoReturn:
        stdout.parent.mkdir()
        stdout.write_text(evidence.model_dump_json(exclude_unset=True))
        raise UserError("not better", Exit.NOT_PROMOTED)

    shown = Mock()
    monkeypatch.setattr(releasing, "stream", refuse)
    monkeypatch.setattr(f"{ARTIFACTS}.create_table_artifact", shown)
    assert releasing.run_promote.task.fn("vdm@v1.0.0", tmp_path) == evidence
    assert shown.call_args.kwargs == {"key": "evidence", "description": "refuse: not better"}


def test_a_command_that_was_killed_says_by_what_and_not_that_somebody_stopped_it(tmp_path: Path) -> None:
    """Its trainer ends by itself then, and says that it was stopped.  A shell adds 128 to the number of a signal."""
    reason = tmp_path / "reason.json"
    reason.write_text(json.dumps({"message": "stopped at step 3", "code": int(Exit.BUSY), "network": False}))
    assert str(failure(reason, [], 255)) == "stopped at step 3"
    assert str(failure(reason, [], -signal.SIGKILL)).startswith("SIGKILL ended it")
    for status in (-9, 137):
        last = [f"ERROR: failed to reproduce 'train': failed to run: python -m flows.cli train, exited with {status}"]
        assert str(failure(tmp_path / "none", last, 255)).startswith("SIGKILL ended it")


def test_the_reason_is_the_line_that_says_why(tmp_path: Path) -> None:
    """DVC ends with chatter; on a full disk there is no file with the reason, but the command's line."""
    why = "unexpected error - Could not connect to the endpoint URL"
    assert str(failure(tmp_path / "none", [f"ERROR: {why}", ""], 255)) == f"see the log: {why}"
    said = "models/trained/weights.safetensors: No space left on device"
    last = [f"vdmctl: {said}", "ERROR: failed to reproduce 'train': failed to run: vdmctl train, exited with 5"]
    error = failure(tmp_path / "none", last, 255)
    assert (str(error), error.code) == (said, Exit.MISSING)


def test_the_chatter_of_dvc_is_not_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logged_by("flows.orchestration.streaming", monkeypatch)
    (tmp_path / ".vdm").mkdir()
    said = "ERROR: unexpected error - no route to host\n\nHaving any troubles? Hit us up at https://dvc.org/support"
    (tmp_path / "program.py").write_text(f"import sys\nsys.exit({said!r})\n")
    with pytest.raises(UserError, match=r"^see the log: unexpected error - no route to host$"):
        stream(["program"], tmp_path)
    assert [call.args[0] for call in logger.info.call_args_list] == [said.splitlines()[0], ""]


def test_a_full_disk_is_no_error_of_the_network() -> None:
    for number, kind in ((errno.ENOSPC, UserError), (errno.ECONNRESET, NetworkError)):
        said = f"models/vdm cannot be read now: .*{os.strerror(number)}"
        with pytest.raises(UserError, match=said) as error, readable("models/vdm"):
            raise OSError(number, os.strerror(number))
        assert (type(error.value), error.value.code) == (kind, Exit.MISSING)


@pytest.mark.processes
@pytest.mark.usefixtures("quietly")
def test_drift_from_a_champion_without_findings_is_left_out(forge: Forge) -> None:
    """A champion of before 1.0.0 kept them at another path."""
    lock = forge.lock("v1.3.0")
    lock["stages"]["all"]["outs"].pop(2)
    forge.version("v1.3.0", lock)
    crown(forge.project, "v1.3.0")
    run = Run(forge.opened, "later", "HEAD")
    write_whole(run.folder / layout.FINDINGS, json.dumps({"success": True, "data_sha256": "a" * 64}))
    assert findings_of_champion(run) is None


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.usefixtures("quietly")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_only_images_that_differ_have_drifted(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the state of the task or, with `on_drift: fail`, as its failure."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path(".vdm").mkdir()
    images = open_images(Path("data/images"))
    inverted = {split: 16 - images[split] for split in images.splits}
    save_images(Path("inverted"), inverted, {"name": "digits", "num_levels": 17})
    for name, folder in (("same", "data/images"), ("other", "inverted")):
        run_command(["validate", folder, "--out", name])
    assert Path("other/findings.json").is_file()

    run = Run(Project(small.folder), "small", "HEAD")
    run.project = run.main

    def compared_with(name: str) -> str:
        reference = small.folder / name / "findings.json"
        monkeypatch.setattr("flows.orchestration.checking.findings_of_champion", lambda *_: reference)
        state = check_drift.task.fn(run)
        assert ("images are like the reference's" in str(state.message)) is (name == "other")
        return str(state.name)

    assert [compared_with(name) for name in ("same", "other")] == ["Completed", DRIFTED]
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("on_drift: warn", "on_drift: fail"))
    assert compared_with("same") == "Completed"
    said = r"Drifted from the champion's images: .*images are like the reference's"
    with pytest.raises(Drifted, match=said) as drifted:
        compared_with("other")
    assert drifted.value.code is Exit.INVALID_DATA
    (small.folder / "data/images/train.npy").unlink()
    with pytest.raises(UserError, match=r"train\.npy: missing") as missing:
        compared_with("same")
    assert not isinstance(missing.value, Drifted)


@pytest.mark.slow
@pytest.mark.usefixtures("quietly")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_whose_images_are_not_valid_names_the_page_that_outlives_its_folder(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_images(Path("data/images"))
    leaking = {split: images[split] for split in images.splits} | {"test": np.array(images["train"][:40])}
    save_images(Path("data/images"), leaking, images.description.stated)
    assert run_command(["validate"]) == Exit.INVALID_DATA
    reason = "stage validate failed: data/images: leaked; see reports/contract/data_docs/index.html"
    failed = Mock(return_value=Failed(data=UserError(reason, Exit.INVALID_DATA)))
    monkeypatch.setattr("flows.orchestration.staging.reproduce", Mock(with_options=Mock(return_value=failed)))
    monkeypatch.setattr(f"{ARTIFACTS}.create_markdown_artifact", Mock())
    run = Run(Project(small.folder), "small", "HEAD")
    run.project = run.main
    with pytest.raises(UserError) as error:
        run_stage(STAGES["validate"], run)
    kept = ".vdm/reports/small/data_docs/index.html"
    assert (str(error.value), error.value.code) == (
        f"{reason}, kept as {kept}",
        Exit.INVALID_DATA,
    )
    assert Path(kept).is_file()


def test_only_a_damaged_champion_is_a_reason_to_roll_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, advised in (
        (DamagedVersionError("vdm@v1.0.0 does not verify: models/vdm: differs", Exit.MISSING), True),
        (NetworkError("the remote does not answer"), False),
    ):
        monkeypatch.setattr("flows.train_vdm.open_registry", Mock())
        monkeypatch.setattr("flows.train_vdm.require_sound", Mock(side_effect=error))
        with pytest.raises(type(error), match=str(error)) as raised:
            check_champion.task.fn(Mock())
        assert ("vdmctl rollback" in str(raised.value)) is advised


def test_a_run_begins_from_the_champion_of_its_moment(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logged_by("flows.train_vdm", monkeypatch)
    text = (forge.root / "params.yaml").read_text()
    assert name_champion(forge.opened, text) == text
    forge.write("params.yaml", text.replace("start_from: null ", "start_from: champion "))
    text = compose_params(forge.opened, forge.git("commit", "--quiet", "--all", "--message=Continue") or "HEAD")

    def start(params: str) -> Any:
        return parse_params(params, "params.yaml").train.start_from

    assert (start(text), start(name_champion(forge.opened, text))) == ("champion", None)
    said = "begins from noise: there is no champion yet"
    assert logger.info.call_args.args == ("training %s", said)
    crown(forge.project, "v1.1.0")
    assert start(name_champion(forge.opened, text)) == "vdm@v1.1.0"
    assert logger.info.call_args.args == ("training %s", "continues from the champion vdm@v1.1.0")


def test_a_run_names_the_damaged_files_that_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    logged_by("flows.orchestration.staging", monkeypatch)
    for name in ("run_stage", "artifacts.show_results"):
        monkeypatch.setattr(f"flows.orchestration.staging.{name}", Mock())
    monkeypatch.setattr("flows.orchestration.staging.stages.stage_names", Mock(return_value=["download"]))
    run, due = Mock(), Due(Path("/here"), None)
    run.project.images.description.damaged = ["a.png"]
    run.base, run.name = "HEAD", "name"
    outcome = run_stages(run, due, Outcome("NothingToDo", reason="first"))
    assert str(outcome) == 'first; 1 damaged left out: "a.png"'


def test_a_run_whose_model_waits_says_so() -> None:
    waits = Release(Mock(commit="0" * 40), "runs/a", Evidence(decision=WAIT, reason="it waits"))
    outcome = Outcome("NothingToDo").released(waits)
    assert outcome.state == "Waiting"
    assert str(outcome).endswith("on branch runs/a, waiting: it waits")


@pytest.mark.parametrize(("is_gone", "state"), [(True, "SourceMissing"), (False, "NothingToDo")])
def test_a_run_without_a_source_that_nobody_has_says_so(
    is_gone: bool, state: str, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may have the source: its worker's run finds what is new."""
    newest = Commit(forge.repository, forge.commit("v1.0.0", run="made"), "the newest run")
    due = Due(Path("/gone"), newest, "missing", same_code=True, same_parameters=True, same_preparation=True)
    logged_by("flows.train_vdm", monkeypatch)
    for needed in ("fetch_published", "release_anew"):
        monkeypatch.setattr(f"flows.train_vdm.{needed}", Mock())
    monkeypatch.setattr("flows.train_vdm.find_due", Mock(return_value=due))
    monkeypatch.setattr("flows.train_vdm.is_source_gone", Mock(return_value=is_gone))
    monkeypatch.setattr(Repository, "first_commit", Mock(return_value="HEAD"))
    outcome = retrain(forge.opened, Instructions(shared=True))
    assert outcome.state == state
    assert "/gone is not on this machine" in str(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("emptied", ["before", "after"])
def test_a_champion_that_was_checked_is_the_one_that_is_compared(emptied: str, tmp_path: Path) -> None:
    """Where DVC's remote is emptied: in the project's folder DVC still knows the listing that the run would miss."""
    forge = Forge(tmp_path)
    forge.version("v1.0.0")
    crown(forge.project, "v1.0.0")
    require_sound(forge.repository, forge.resolve("champion"))
    params = forge.git("show", "HEAD:params.yaml")
    with workspace(forge.opened, params, forge.git("rev-parse", "HEAD").strip()) as place:
        if emptied == "after":
            check_champion.task.fn(place)
        for listing in forge.cache.rglob("*.dir"):
            listing.unlink()
        shutil.rmtree(forge.remote)
        require_sound(forge.repository, forge.resolve("champion"))
        if emptied == "after":
            reigning = place.project.registry.resolve("champion")
            assert (fetch(place.project.repository, reigning) / "weights.safetensors").is_file()
        else:
            with pytest.raises(UserError, match=r"^no comparison .*: vdm@v1.0.0: .* is neither in DVC's cache nor in"):
                check_champion.task.fn(place)
