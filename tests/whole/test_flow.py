"""The retraining loop under a real Prefect server and worker, with a git remote and a DVC remote."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import MagicMock, Mock

import pytest
from interrupted import has_state
from plant import ENDLESS, Plant, served, trainers, wait_until
from prefect.states import Failed, StateType
from project import IDENTITY, ROOT, Project

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.orchestration import releasing
from flows.orchestration.announcing import announce, announce_drift, forget_outcome
from flows.orchestration.artifacts import Progress, in_words, show, show_metrics
from flows.orchestration.plugin import full_name
from flows.orchestration.streaming import EXPECTED, as_user_error, failure, result_of, when_free
from flows.process.groups import processes_in
from flows.registry.evidence import Evidence
from flows.train_vdm import check_champion, drift, reproduce, restore_images, stages, train_vdm

# Only a machine that is busy with other things needs as long.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Plant]:
    """Return a running retraining loop for these tests, in a folder with a space and an umlaut in its path."""
    yield from served(Plant(tmp_path_factory.mktemp("plant") / "Bücher und Bilder"), empty_database)


def tasks(plant: Plant, run: str) -> dict[str, str]:
    chosen = {"flow_runs": {"id": {"any_": [run]}}}
    listed = plant.api("task_runs/filter", sort="EXPECTED_START_TIME_ASC", **chosen)
    return {task["name"]: task["state_type"] for task in listed}


def artifacts(plant: Plant, run: str) -> dict[str, dict[str, Any]]:
    """Return what a run shows in Prefect's UI, by key."""
    chosen = {"flow_run_id": {"any_": [run]}}
    return {each["key"]: each for each in plant.api("artifacts/filter", limit=50, artifacts=chosen)}


def announced(plant: Plant, run: str, event: str) -> dict[str, str]:
    """Wait until a run's event has arrived, and return its payload."""
    chosen = {"event": {"name": [event]}, "related": {"id": [f"prefect.flow-run.{run}"]}}
    found: list[Any] = []

    def arrived() -> bool:
        found[:] = plant.api("events/filter", filter=chosen)["events"]
        return bool(found)

    wait_until(arrived, 300, plant.log, every=1.0)
    return found[0]["payload"]  # type: ignore[no-any-return]


def wait_for_state(plant: Plant, step: int) -> None:
    """Wait until the trainer has saved a state at or after the step."""
    wait_until(lambda: has_state(plant.project, step), 600, plant.log)


def test_a_run_leaves_a_commit_on_its_branch_and_the_checkout_alone(plant: Plant) -> None:
    project = plant.project
    (project.folder / "README.md").write_text("work in progress")
    project.git("add", "README.md")
    (project.folder / "README.md").write_text("and more of it")
    before = project.git("status", "--porcelain"), project.git("rev-parse", "HEAD"), project.git("write-tree")

    run = plant.retrain_by_command("train-vdm")
    state, message = plant.finish(run)
    assert state == "COMPLETED", message
    assert "vdm@v1.0.0" in message
    assert "promoted as vdm#champion#1" in message
    assert announced(plant, run, "vdm.promoted")["model"] == "vdm@v1.0.0"
    assert plant.read(run)["tags"] == ["vdm.promoted"]
    ran = tasks(plant, run)
    order = stages(ROOT)  # test_architecture.py tests it
    assert [name for name in ran if name in order] == order
    assert ran.keys() - set(order) == {"champion", "drift", "promote"}
    assert set(ran.values()) == {"COMPLETED"}
    log = plant.logged(run)
    assert "has uncommitted changes, which are not part of this run" in log
    assert "step 20:" in log
    assert "promote: vdm@v1.0.0 is the first champion" in log
    assert "challenger_model_sha256" not in log  # the log does not contain the evidence, which is an artifact
    assert "dvc push" not in log
    assert before == (project.git("status", "--porcelain"), project.git("rev-parse", "HEAD"), project.git("write-tree"))
    assert not (project.folder / "models" / "vdm").exists()

    (branch,) = plant.branches()
    changed = project.git("diff", "--name-only", f"main...{branch}").split()
    assert project.vdmctl("verify", "champion").returncode == 0  # its files are in the project's cache
    assert {"dvc.lock", "reports/evaluation/metrics.json", "reports/card.md"} <= set(changed)
    assert "README.md" not in changed
    assert project.git("rev-list", "--count", f"main..{branch}").strip() == "1"
    assert plant.worktrees() == []
    shown_in_the_ui(artifacts(plant, run))

    state, message = plant.finish(plant.retrain_by_command("train-vdm/train-vdm", publish=False, overrides={}))
    assert (state, message[:13]) == ("COMPLETED", "nothing to do")
    assert plant.branches() == [branch]
    project.git("checkout", "--quiet", "--force", "main", "--", "README.md")


def shown_in_the_ui(found: dict[str, dict[str, Any]]) -> None:
    """Check the artifacts of a run that made the first champion: they are readable from any machine."""
    pages = {"report", "samples", "data-docs", "model-card", "evidence"}
    assert found.keys() == {"training", "metrics", *pages}
    assert not any("file:" in found[key]["data"] for key in pages)
    for key in pages - {"model-card"}:
        # The last line names a file, which is there although the worktree is gone, and the machine.
        line = re.fullmatch(r"(.+): (.+) on (\S+)\.", found[key]["data"].splitlines()[-1])
        assert line
        assert Path(line[2].replace("\\", "")).is_file()
        assert line[3].replace("\\", "") == platform.node()
    figure = r"\d+\.\d{4}\s±\s\d+\.\d{4}"
    assert re.fullmatch(figure + " bits/dim on 359 test images", found["report"]["description"])
    assert re.search(r"\| test images \| " + figure, found["report"]["data"])
    assert found["report"]["data"].count("(data:image/svg+xml;base64,") == 4
    assert "(data:image/png;base64," in found["samples"]["data"]
    assert found["data-docs"]["description"] == "The images are valid: 28 of 28 expectations hold"
    assert "| number of images | holds | 1797 |" in found["data-docs"]["data"]
    assert found["model-card"]["data"].startswith("# Variational diffusion model of ")
    assert found["evidence"]["data"].startswith("**promote as `vdm#champion#1`: `vdm@v1.0.0` is the first champion")
    assert re.search(r"\| challenger `vdm@v1.0.0`, validation images \| " + figure, found["evidence"]["data"])
    rows = {row["bits/dim"]: row["vdm@v1.0.0"] for row in json.loads(found["metrics"]["data"])}
    assert re.fullmatch(figure, rows["test images"])
    assert found["training"]["data"] == 100
    assert found["training"]["description"].startswith("20 of 20 steps: ")


def test_the_progress_of_a_training_run_names_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2600 steps, of which 100 took 50 s; then an early end."""
    shown, now = [], [1000.0]
    shutil.copyfile(ROOT / "presets" / "digits.yaml", tmp_path / "params.yaml")
    module = "flows.orchestration.artifacts"
    monkeypatch.setattr(f"{module}.create_progress_artifact", lambda *_, **__: "1")
    monkeypatch.setattr(f"{module}.update_progress_artifact", lambda *given: shown.append(given[1:]))
    monkeypatch.setattr(f"{module}.time.monotonic", lambda: now[0])
    progress = Progress(tmp_path)
    validation = "validation 2.6000 (Monte Carlo error 0.0100)"
    progress.read(f"step 300: 2.5 bits/dim, {validation}, 900 images/s\n")
    now[0] += 50
    progress.read("step 400: 2.4 bits/dim, 900 images/s\n")
    progress.read("step 400 of 2600: training ends, since validation no longer improves\n")
    assert [description for _, description in shown] == [
        f"300 of 2600 steps: 2.5 bits/dim, {validation}, 900 images/s",
        f"400 of 2600 steps, 18 min left: 2.4 bits/dim, 900 images/s; {validation} at step 300",
        f"400 of 2600 steps: training ends, since validation no longer improves; {validation} at step 300",
    ]
    assert [percent for percent, _ in shown] == [100 * 300 / 2600, 100 * 400 / 2600, 100]


def test_a_run_goes_on_when_prefect_can_show_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("500 Internal Server Error")

    shutil.copyfile(ROOT / "presets" / "digits.yaml", tmp_path / "params.yaml")
    module, said = "flows.orchestration.artifacts", Mock()
    monkeypatch.setattr(f"{module}.get_run_logger", lambda: said)
    for name in ("create_markdown_artifact", "create_table_artifact", "update_progress_artifact"):
        monkeypatch.setattr(f"{module}.{name}", fails)
    monkeypatch.setattr("flows.orchestration.announcing.get_client", fails)
    monkeypatch.setattr("flows.orchestration.announcing.emit_event", lambda *_, **__: None)
    monkeypatch.setattr(f"{module}.create_progress_artifact", lambda *_, **__: "1")
    Progress(tmp_path).read("step 300: 2.5 bits/dim, 900 images/s\n")
    monkeypatch.setattr(f"{module}.create_progress_artifact", fails)
    Progress(tmp_path).read("step 300: 2.5 bits/dim, 900 images/s\n")
    show("report", "a page", "content")
    show_metrics({}, Evidence(decision="refused", reason="not better"))
    announce("refused", "not better")
    forget_outcome()
    assert [call.args[1] for call in said.warning.call_args_list] == ["500 Internal Server Error"] * 6


def test_a_training_that_dvc_does_not_repeat_shows_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(ROOT / "presets" / "digits.yaml", tmp_path / "params.yaml")
    created = Mock(return_value="1")
    monkeypatch.setattr("flows.orchestration.artifacts.create_progress_artifact", created)
    progress = Progress(tmp_path)
    progress.read("Stage 'train' is cached - skipping run, checking out outputs\n")
    progress.read("Stage 'train' didn't change, skipping\n")
    assert created.call_count == 0
    for _ in range(2):  # a busy device is tried again
        progress.read("Running stage 'train':\n")
    assert created.call_count == 1


def test_withdrawn_versions_have_numbers_before_the_first_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = []
    fetched = Mock(return_value=Mock(result=lambda: ["first", "second"]))
    monkeypatch.setattr(releasing, "fetch_versions", fetched)
    monkeypatch.setattr(releasing, "subject", lambda root, commit: f"Retrain {commit}")
    monkeypatch.setattr(releasing.registry, "add_version", lambda root, commit, message: added.append(message))
    with pytest.raises(UserError, match="not a git repository"):
        releasing.catch_up(tmp_path)
    assert added == ["Retrain first", "Retrain second"]


def test_wrong_parameters_fail_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """test_workspace.py has more of them."""
    project = Project(tmp_path)
    monkeypatch.chdir(project.folder)
    for key, value in IDENTITY.items():
        for role in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{role}_{key}", value)
    for name in ("hold_what_starts", "settle", "leave_out_tracebacks", "forget_outcome", "announce"):
        monkeypatch.setattr(f"flows.train_vdm.{name}", lambda *_: None)
    monkeypatch.setattr("flows.train_vdm.get_run_logger", Mock())
    state = train_vdm.fn(overrides={"train.steps": 0})
    assert state.type is StateType.FAILED
    assert "train.steps: input should be greater than or equal to 1, got 0" in str(state.message)
    assert "\n" not in str(state.message)
    assert not (project.folder / ".vdm" / "worktrees").exists()


@pytest.mark.parametrize(
    ("error", "shared", "raises"),
    [
        (UserError("lost", Exit.MISSING), True, False),
        (NetworkError("silent"), False, False),
        (NetworkError("silent"), True, True),
    ],
)
def test_recorded_images_that_cannot_be_restored_are_read_from_their_source_again(
    error: UserError, shared: bool, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If machines share versions, they wait for the remote instead."""
    logger = Mock()
    monkeypatch.setattr("flows.train_vdm.get_run_logger", lambda: logger)
    monkeypatch.setattr("flows.train_vdm.take_images", Mock(side_effect=error))
    if shared:
        monkeypatch.setenv("VDM_SHARE", "1")
    with pytest.raises(NetworkError) if raises else nullcontext():
        restore_images(Mock())
    assert logger.warning.called != raises


def test_an_unknown_parameter_of_the_flow_starts_no_run(plant: Plant) -> None:
    deployment = plant.api("deployments/name/train-vdm/train-vdm")["id"]
    for parameters, reason in (
        ({"stepz": 5}, b"'stepz' was unexpected"),
        ({"wait_hours": 1e9}, b"1000000000.0 is greater than the maximum of 8760"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            plant.api(f"deployments/{deployment}/create_flow_run", parameters=parameters)
        assert reason in refused.value.read()
        refused.value.close()


def test_the_code_that_runs_is_that_of_the_commit(plant: Plant) -> None:
    """Neither the uncommitted code of the checkout nor the installed package."""
    project, line = plant.project, '    log.info("%s: %s, transforms'
    project.edit("flows/stages/download.py", **{line: f'    raise SystemExit("COMMITTED")\n{line}'})
    project.git("commit", "--quiet", "--all", "--message=Other code")
    project.edit("flows/stages/download.py", COMMITTED="UNCOMMITTED")
    project.git("checkout", "--quiet", "--detach")
    run = plant.retrain(overrides={"data.split_seed": 3})
    assert plant.finish(run)[0] == "FAILED"
    log = plant.logged(run)
    assert "has no branch checked out; the run starts from its commit" in log
    assert "COMMITTED" in log
    assert "UNCOMMITTED" not in log
    assert "Traceback" not in log
    project.git("checkout", "--quiet", "--force", "main")
    project.git("reset", "--quiet", "--hard", "HEAD~1")


def test_a_graph_that_dvc_refuses_is_one_line(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.edit("dvc.yaml", **{"stages:": "stages: ["})
    with pytest.raises(EXPECTED) as error:
        stages(project.folder)
    reason = str(as_user_error(error.value))
    assert "dvc.yaml" in reason
    assert "\n" not in reason


def test_a_second_run_is_cancelled_at_once_and_the_first_by_prefects_command(plant: Plant) -> None:
    run = plant.retrain(overrides=ENDLESS)
    wait_for_state(plant, 20)
    assert len(trainers(plant.project.folder)) == 1
    second = plant.retrain(overrides=ENDLESS)
    assert plant.finish(second)[0] == "CANCELLED"  # only one run at a time
    assert plant.read(run)["name"] in plant.run("flow-run", "ls").stdout
    assert plant.run("flow-run", "cancel", run).returncode == 0
    wait_until(lambda: trainers(plant.project.folder) == [], 100)
    assert plant.finish(run)[0] == "CANCELLED"
    wait_until(lambda: "Flow run was cancelled." in plant.lines(run), 300, every=1.0)
    log = "\n".join(plant.lines(run))
    assert re.search(r"stopped at step \d+ of \d+; run again to continue", log)
    assert not re.search("Traceback|Crash detected|Finished in state Running", log)


def test_prefects_commands_find_the_server_of_the_folder_and_keep_their_own_settings(plant: Plant) -> None:
    assert "vdm" in plant.run("--no-prompt", "work-pool", "ls").stdout
    assert plant.url not in plant.run("config", "view", "--hide-sources").stdout


def test_a_run_by_hand_continues_a_cancelled_one_and_names_the_signal_that_ends_training(
    plant: Plant, tmp_path: Path
) -> None:
    """Its trainer is killed."""
    run = f"print(train_vdm(overrides={ENDLESS}, return_state=True).message)"
    environment = plant.environment | {"PREFECT_API_URL": plant.url}  # otherwise Prefect would start a temporary server
    log = tmp_path / "log"
    with log.open("wb") as output:
        engine = subprocess.Popen(
            [sys.executable, "-c", f"from flows.train_vdm import train_vdm; {run}"],
            cwd=plant.project.folder,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: "continuing from step" in log.read_text(), 600, log)
        (trainer,) = trainers(plant.project.folder)
        os.kill(trainer, signal.SIGKILL)
        assert engine.wait(600) == 0
    finally:
        engine.kill()  # its trainer ends with it
        engine.wait()
    said = log.read_text()
    assert "\nstage train failed: SIGKILL ended it (the kernel does that when memory runs out)" in said
    assert "Traceback" not in said
    assert orphans(plant) == []
    plant.remove_states()


@pytest.mark.parametrize("status", [-9, 137])
def test_a_signal_is_named_under_every_shell(tmp_path: Path, status: int) -> None:
    last = ["", f"ERROR: failed to reproduce 'train': failed to run: python -m flows.cli train, exited with {status}"]
    assert str(failure(tmp_path / "none", last, 255)).startswith("SIGKILL ended it")


def test_a_killed_command_was_not_stopped_by_somebody(tmp_path: Path) -> None:
    """Its trainer ends by itself then, and says that it was stopped."""
    reason = tmp_path / "reason.json"
    reason.write_text(json.dumps({"message": "stopped at step 3", "code": int(Exit.BUSY), "network": False}))
    assert str(failure(reason, [], 255)) == "stopped at step 3"
    assert str(failure(reason, [], -signal.SIGKILL)).startswith("SIGKILL ended it")


@pytest.mark.parametrize(("code", "announced"), [(Exit.INVALID_DATA, ["drifted"]), (Exit.MISSING, [])])
def test_a_check_of_drift_that_fails_for_another_reason_is_not_announced_as_drift(
    code: Exit, announced: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(*_: object) -> None:
        raise UserError("the reason", code)

    said: list[str] = []
    monkeypatch.setattr("flows.train_vdm.stream", stream)
    monkeypatch.setattr("flows.train_vdm.champion_report", lambda root, folder: tmp_path / "validation.json")
    monkeypatch.setattr("flows.train_vdm.announce", lambda what, reason: said.append(what))
    with pytest.raises(UserError, match=r"^the reason$"):
        drift.fn(tmp_path, tmp_path)
    assert said == announced


def test_a_task_that_takes_too_long_is_named() -> None:
    message, error = "Task run exceeded timeout of 7.0 second(s)", TimeoutError("Scope timed out")
    with pytest.raises(UserError, match=rf"^stage evaluate took too long, so it was ended: {re.escape(message)}$"):
        result_of(Failed(name="TimedOut", message=message, data=error), "stage evaluate")


@pytest.mark.parametrize(("held", "looks"), [("process 7 in /my  data", 3), ("", 1)])
def test_a_run_waits_for_the_process_that_holds_its_device_and_no_other(
    held: str, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "flows.orchestration.streaming"
    found = iter([[{"holder": held}], [{"holder": held}], []])
    listed = Mock(side_effect=lambda: next(found))
    busy = UserError("cpu is busy: process 7 in /my  data trains on it; wait for it or stop it", Exit.BUSY)
    run = Mock(side_effect=[busy, None])
    monkeypatch.setattr(f"{module}.devices", listed)
    monkeypatch.setattr(f"{module}.POLL_SECONDS", 0.0)
    monkeypatch.setattr(f"{module}.get_run_logger", Mock())
    when_free(run, hours=1.0)
    assert (run.call_count, listed.call_count) == (2, looks)


def test_a_run_that_is_repeated_loses_the_outcome_of_its_first_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    client = MagicMock()
    client.__enter__.return_value = client
    client.read_flow_run.return_value.tags = ["mine", "vdm.drifted", "vdm.failed"]
    monkeypatch.setattr("flows.orchestration.announcing.get_client", lambda **_: client)
    monkeypatch.setattr("flows.orchestration.announcing.flow_run", Mock(id="1"))
    monkeypatch.setattr("flows.orchestration.announcing.emit_event", Mock())
    announce("promoted", "better")
    assert client.update_flow_run.call_args.kwargs == {"tags": ["mine", "vdm.drifted", "vdm.promoted"]}
    forget_outcome()
    assert client.update_flow_run.call_args.kwargs == {"tags": ["mine"]}


def test_files_that_could_not_be_copied_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "page.html").symlink_to("nowhere")
    (tmp_path / "reports" / "other.html").symlink_to("nowhere")
    with pytest.raises(shutil.Error) as error:
        shutil.copytree(tmp_path / "reports", tmp_path / "copy")
    reason = str(as_user_error(error.value))
    assert reason.startswith("[Errno 2] No such file or directory: ")
    assert "\n" not in reason


def test_a_champion_whose_bytes_are_damaged_is_named_before_training(plant: Plant) -> None:
    champion = plant.project.git("tag", "--list", "vdm#champion*", "--sort=-creatordate").split()[0]
    lock = plant.project.git("show", f"{champion}:dvc.lock")
    digest = re.search(r"path: models/vdm\n.*\n\s+md5: (\w+)", lock)
    assert digest
    listing = plant.project.folder / ".dvc" / "cache" / "files" / "md5" / digest[1][:2] / f"{digest[1][2:]}.dir"
    content = listing.read_bytes()
    listing.chmod(0o644)
    listing.write_bytes(content[:-2])
    try:
        run = plant.retrain(overrides={"train.seed": 77})
        state, message = plant.finish(run)
    finally:
        listing.write_bytes(content)
    assert state == "FAILED"
    assert message.startswith("no comparison with the champion is possible: ")
    assert "is damaged in the cache" in message
    assert "train" not in tasks(plant, run)


def orphans(plant: Plant) -> list[int]:
    """Return the processes that still work in a run's worktree."""
    return processes_in(plant.project.folder / ".vdm" / "worktrees")


def test_images_that_drifted_from_the_champions_stop_the_run(plant: Plant) -> None:
    """The images are another split of the digits, and the tolerance is zero."""
    overrides = {"data.split_seed": 5, "contract.max_drift": 0.0, "contract.on_drift": "fail"}
    run = plant.retrain(overrides=overrides)
    state, message = plant.finish(run)
    assert state == "FAILED"
    assert "broken expectation: images are like the reference's" in message
    assert announced(plant, run, "vdm.drifted")["reason"] == message
    assert plant.read(run)["tags"] == ["vdm.drifted", "vdm.failed"]
    assert not re.search("Traceback|Task run failed with", plant.logged(run))
    assert "data-docs" in artifacts(plant, run)
    assert "train" not in tasks(plant, run)


def test_a_run_that_could_not_publish_fails_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    project.git("remote", "add", "origin", "elsewhere")
    monkeypatch.chdir(project.folder)
    announced = Mock()
    monkeypatch.setattr("flows.train_vdm.announce", announced)
    monkeypatch.setattr("flows.train_vdm.retrain", lambda *_, **__: pytest.fail("the run starts"))
    for name in ("hold_what_starts", "settle", "leave_out_tracebacks", "forget_outcome"):
        monkeypatch.setattr(f"flows.train_vdm.{name}", lambda *_: None)
    state = train_vdm.fn(publish=True)
    assert state.type is StateType.FAILED
    assert "no DVC remote; `dvc remote add --default NAME URL`" in str(state.message)
    assert announced.call_args.args == ("failed", state.message)


def test_an_interrupted_publication_is_completed_by_the_next_run(plant: Plant) -> None:
    hook = plant.remote / "hooks" / "update"
    hook.write_text('#!/bin/sh\ncase "$1" in refs/tags/*) echo no tags today >&2; exit 1;; esac\n')
    hook.chmod(0o755)
    run = plant.retrain(overrides={"train.steps": 10}, publish=True)
    state, message = plant.finish(run, 900)
    assert "is not shown to improve by more than" in plant.logged(run)  # 10 steps against 20
    assert state == "FAILED"
    assert "the next run with publish=true publishes again" in message
    assert plant.project.git("ls-remote", "--tags", "origin") == ""  # files and commits first
    hook.unlink()
    # As if the run had been killed after making the version and before the comparison.
    newest = plant.project.git("tag", "--list", "vdm@*", "--sort=-version:refname").split()[0]
    plant.project.git("notes", "--ref=vdm-refusals", "remove", f"{newest}^{{commit}}")
    state, message = plant.finish(plant.retrain(overrides={"train.steps": 10}, publish=True))
    assert state == "COMPLETED"
    assert message.startswith(f"{newest}, commit ")
    assert plant.worktrees() == []  # also those that failed runs left behind
    branches = plant.project.git("branch", "--format=%(refname:short)", "--points-at", f"{newest}^{{commit}}").split()
    assert f" on branch {branches[0]}, not promoted: " in message  # the branch of the run that was interrupted
    assert sorted(plant.project.published()) == sorted(f"refs/tags/{tag}" for tag in plant.project.git("tag").split())
    clone = plant.remote.parent / "clone"
    plant.project.git("clone", "--quiet", "--branch=vdm@v1.0.0", str(plant.remote), str(clone))
    assert Project.at(clone).vdmctl("verify", "v1.0.0").returncode == 0  # all files come from the remote


def test_runs_of_a_schedule_keep_the_state_in_which_they_ended(plant: Plant) -> None:
    """The automation fires for them, since the server delays the event of their end, but must not change them."""
    name = "train-vdm/weekly"
    (automation,) = plant.api("automations/filter", limit=5)
    given = {key: automation[key] for key in ("name", "description", "enabled", "trigger", "actions")}
    sooner = given | {"trigger": automation["trigger"] | {"within": 25}}
    plant.api(f"automations/{automation['id']}", "PUT", **sooner)
    assert plant.run("deployment", "schedule", "create", name, "--interval", "20").returncode == 0
    deployment = plant.api("deployments/name/" + name)
    assert [each["active"] for each in deployment["schedules"]].count(True) == 1  # the weekly one is off

    states = {"type": {"not_any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLED"]}}
    chosen = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}, "state": states}}
    wait_until(lambda: bool(plant.api("flow_runs/filter", **chosen)), 300, plant.log, every=1.0)
    plant.remove_schedules(name)
    # Only later events: runs of earlier tests have ended, too.
    since = {
        "event": {"name": ["prefect.automation.action.failed"]},
        "occurred": {"since": datetime.now(UTC).isoformat()},
    }
    wait_until(lambda: bool(plant.api("events/filter", filter=since)["events"]), 300, plant.log, every=1.0)
    plant.api(f"automations/{automation['id']}", "PUT", **given)
    assert {run["state"]["type"] for run in plant.api("flow_runs/filter", **chosen)} == {"COMPLETED"}


def test_an_unknown_or_ambiguous_bare_name_is_one_line(plant: Plant) -> None:
    with pytest.raises(
        SystemExit, match=r"^no single deployment is called 'train-vdn'; `prefect deployment ls` lists them"
    ):
        full_name("train-vdn", plant.url)
    flow = plant.api("flows/", name="other")["id"]
    other = plant.api("deployments/", name="train-vdm", flow_id=flow)["id"]
    result = plant.run("deployment", "run", "train-vdm")
    assert result.returncode == 1
    assert "2 deployments have it: other/train-vdm, train-vdm/train-vdm" in result.stderr
    plant.api(f"deployments/{other}", "DELETE", id=other)


def test_a_run_without_a_git_identity_says_so(plant: Plant) -> None:
    nobody = {key: value for key, value in plant.environment.items() if not key.startswith("GIT_")}
    nobody |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "EMAIL": ""}
    nobody |= {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "240"}
    nobody |= {"GIT_DIR": "/nowhere"}  # as from a hook of another repository; it is ignored

    def run(*options: str, **given: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "flows.train_vdm", *options]
        return subprocess.run(program, cwd=plant.project.folder, env=nobody | given, capture_output=True, text=True)

    refused = run("--force")
    assert (refused.returncode, "unrecognized arguments: --force" in refused.stderr) == (Exit.USAGE, True)
    homeless = run(PREFECT_HOME="/dev/null/prefect")
    assert homeless.returncode == Exit.MISSING
    assert "/dev/null/prefect: Not a directory; PREFECT_HOME names another folder" in homeless.stderr
    alone = run(PREFECT_API_URL="http://127.0.0.1:9/api")
    assert alone.returncode == Exit.MISSING
    assert re.fullmatch(r"vdmctl: .* http://127\.0\.0\.1:9/api/; correct PREFECT_API_URL, .*\n", alone.stderr)
    served = run(PREFECT_HOME="/dev/null/prefect", PREFECT_API_URL=plant.url)
    assert "git needs an identity" in served.stderr
    result = run()
    assert result.returncode == Exit.USAGE, result.stderr
    assert "git needs an identity: `git config user.name NAME`" in result.stderr


@pytest.mark.parametrize("network", [True, False])
def test_only_what_the_network_prevented_is_tried_again(network: bool, tmp_path: Path) -> None:
    reason = tmp_path / "reason.json"
    reason.write_text(json.dumps({"message": "no answer", "code": int(Exit.MISSING), "network": network}))
    state = Failed(data=failure(reason, [], 5))
    for task in (releasing.promote, releasing.publish_versions, releasing.fetch_versions, reproduce, check_champion):
        assert task.retries == 2
        assert task.retry_condition_fn is not None
        assert task.retry_condition_fn(task, Mock(), state) is network


@pytest.mark.parametrize("error", [NetworkError("silent", Exit.USAGE), UserError("wrong", Exit.INVALID_DATA)])
def test_a_task_that_fails_keeps_the_kind_and_the_code_of_its_reason(
    error: UserError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what the network prevented would not be tried again."""
    for module in ("flows.train_vdm", "flows.orchestration.releasing"):
        monkeypatch.setattr(f"{module}.stream", Mock(side_effect=error))
    monkeypatch.setattr("flows.train_vdm.registry.champion", lambda root: Mock())
    tasks = (
        lambda: reproduce.fn("evaluate", tmp_path, False, 1.0),
        lambda: check_champion.fn(tmp_path, tmp_path),
        lambda: releasing.promote.fn("vdm@v1.0.0", tmp_path, tmp_path),
    )
    for task in tasks:
        with pytest.raises(UserError, match=str(error)) as raised:
            task()
        assert (type(raised.value), raised.value.code) == (type(error), error.code)


@pytest.mark.parametrize(
    ("force", "shared", "options"),
    [(False, False, []), (True, False, ["--force"]), (False, True, ["--pull"]), (True, True, ["--force", "--pull"])],
)
def test_a_stage_is_forced_if_asked_and_pulls_what_another_machine_made(
    force: bool, shared: bool, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Mock()
    monkeypatch.setattr("flows.train_vdm.stream", stream)
    if shared:
        monkeypatch.setenv("VDM_SHARE", "1")
    reproduce.fn("evaluate", tmp_path, force, 1.0)
    assert stream.call_args.args == (["dvc", "repro", "--single-item", "evaluate", *options], tmp_path, None)


def test_a_model_that_is_not_promoted_has_its_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = Evidence(decision="refuse", reason="not better")

    def stream(*_: object, stdout: Path) -> NoReturn:
        stdout.parent.mkdir()
        stdout.write_text(evidence.model_dump_json(exclude_unset=True))
        raise UserError("not better", Exit.NOT_PROMOTED)

    shown = Mock()
    monkeypatch.setattr(releasing, "stream", stream)
    monkeypatch.setattr(releasing.artifacts, "show_evidence", shown)
    monkeypatch.setattr(releasing, "get_run_logger", Mock())
    assert releasing.promote.fn("vdm@v1.0.0", tmp_path, tmp_path / "kept") == evidence
    assert shown.call_args.args == (evidence, tmp_path / layout.EVIDENCE, tmp_path / "kept")


def released(name: str, tag: str | None) -> releasing.Release:
    version = Mock(commit=name, metrics=Mock(bpd=2.0))
    version.name = f"vdm@{name}"
    return releasing.Release(version, f"runs/{name}", Evidence(decision="", reason="measured", tag=tag))


def test_versions_that_another_machine_withdraws_are_decided_anew_and_the_runs_own_is_announced_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model was promoted, but the champion that another machine published first is better."""
    announced = Mock()
    publish = Mock(side_effect=[Mock(result=lambda: False), Mock(result=lambda: True)])
    tags = {"ours": None, "other": "vdm#champion#2"}
    monkeypatch.setattr(releasing, "publish_versions", publish)
    monkeypatch.setattr(releasing, "fetch_versions", Mock(return_value=Mock(result=lambda: ["other", "ours"])))
    monkeypatch.setattr(releasing, "subject", lambda root, commit: commit)
    monkeypatch.setattr(releasing, "git_text", lambda *_: "")
    monkeypatch.setattr(releasing.registry, "add_version", Mock())
    monkeypatch.setattr(releasing, "workspace", lambda *_: nullcontext())
    monkeypatch.setattr(releasing, "release", lambda place, commit: released(commit, tags[commit]))
    monkeypatch.setattr(releasing, "announce", announced)
    message = releasing.conclude(tmp_path, released("ours", "vdm#champion#1"), publish=True)
    assert message == "vdm@ours, commit ours on branch runs/ours, not promoted: measured"
    assert [(call.args, call.kwargs["model"]) for call in announced.call_args_list] == [
        (("promoted", "measured"), "vdm@other"),
        (("refused", "measured"), "vdm@ours"),
    ]


def test_an_event_has_the_model_with_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    emitted = Mock()
    monkeypatch.setattr("flows.orchestration.announcing.get_client", MagicMock())
    monkeypatch.setattr("flows.orchestration.announcing.flow_run", Mock(id="1"))
    monkeypatch.setattr("flows.orchestration.announcing.emit_event", emitted)
    announce("refused", "worse", model="vdm@v1.0.0", bpd=2.5)
    assert emitted.call_args.kwargs["payload"] == {"model": "vdm@v1.0.0", "bpd": 2.5, "reason": "worse"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("warning: images are like the reference's (times the limit): 1.2\n", True),
        ("warning: number of images\n", False),
        ("compared with the reference's profile\n", False),
    ],
)
def test_only_a_warning_about_the_reference_is_drift(line: str, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = Mock()
    monkeypatch.setattr("flows.orchestration.announcing.announce", announced)
    announce_drift(line)
    assert announced.called is said


@pytest.mark.parametrize(
    ("seconds", "words"), [(89, "89 s"), (90, "2 min"), (7140, "119 min"), (7200, "2 h 0 min"), (9000, "2 h 30 min")]
)
def test_the_time_left_is_in_seconds_minutes_or_hours(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_bug_is_announced_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = Mock()
    monkeypatch.chdir(Project(tmp_path).folder)
    monkeypatch.setattr("flows.train_vdm.announce", announced)
    monkeypatch.setattr("flows.train_vdm.retrain", Mock(side_effect=ZeroDivisionError("by zero")))
    for name in ("hold_what_starts", "settle", "leave_out_tracebacks", "forget_outcome"):
        monkeypatch.setattr(f"flows.train_vdm.{name}", lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        train_vdm.fn()
    assert announced.call_args.args == ("failed", "a bug: by zero; the log has the traceback")


def test_ctrl_c_stops_everything_and_leaves_nothing_behind(plant: Plant) -> None:
    """A run trains meanwhile, and its state is saved.  This test is the last in the file, since it stops the plant."""
    run = plant.retrain(overrides=ENDLESS)
    wait_for_state(plant, 20)
    assert plant.read(run)["state"]["type"] == "RUNNING"
    output = plant.stop()
    assert plant.process.returncode == 0
    assert "stopping" in output.splitlines()
    assert trainers(plant.project.folder) == []
    assert orphans(plant) == []
    left = subprocess.run(["pgrep", "--full", str(plant.port)], capture_output=True, text=True)
    assert left.stdout == ""
    assert any((plant.project.folder / ".vdm" / "runs").glob("*/step-*.state"))


def test_a_decision_counts_even_if_the_copy_of_its_evidence_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evidence.json").write_text("{}")
    (tmp_path / "reports").touch()  # no folder can be made in a file
    shown, logger = Mock(), Mock()
    monkeypatch.setattr(releasing.artifacts, "show", shown)
    monkeypatch.setattr(releasing.artifacts, "get_run_logger", lambda: logger)
    evidence = Evidence(decision="promote", reason="better", challenger="vdm@v1.1.0")
    releasing.artifacts.show_evidence(evidence, tmp_path / "evidence.json", tmp_path / "reports" / "run")
    shown.assert_called_once()
    assert "evidence.json" not in shown.call_args.args[2]
    logger.warning.assert_called_once()
