"""The benchmarks run.  A few seconds are too short to measure; test_figures.py tests what they compute."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from conftest import TINY
from project import ROOT
from torch import distributed

from benchmarks import (
    aged,
    compression,
    contract,
    equal_minutes,
    estimator_variance,
    gpu_day,
    load,
    loop,
    peer,
    sample,
    samplers,
    speed,
    standard_error,
    train_step,
)
from benchmarks.options import require_peer
from benchmarks.speed import PRESETS, parser, read_problem
from flows.core.checkpoint import save_model
from flows.core.params_file import read_params
from flows.images.store import save_images
from vdm.model import VDM
from vdm.network import attention
from vdm.training import trainer

MACHINE = {"device", "threads", "torch", "python", "commit"}


@pytest.mark.parametrize(
    "command",
    [
        ["benchmarks.standard_error", "--steps", "4", "--repeats", "2"],
        ["benchmarks.evaluate", "--seconds", "0", "--blocks", "1"],
        ["benchmarks.validate", "--images", "300"],
        ["benchmarks.contract", "--sets", "digits", "--rows", "a class missing, test", "--copies", "20"],
        [
            *("benchmarks.load", "--versions", "3", "--runs", "6", "--flow-runs", "2", "--rows", "20"),
            *("--repeats", "1", "--only", "status", "judged_by", "alike"),
        ],
        ["benchmarks.sample", "--seconds", "0", "--blocks", "1", "--num-timesteps", "3", "--preset", "digits"],
    ],
    ids=lambda command: command[0],
)
def test_a_benchmark_prints_its_figures_and_the_machine(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    empty_database: Path,
    tmp_path: Path,
) -> None:
    module, *options = command
    database = shutil.copy(empty_database, tmp_path)
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{database}")
    monkeypatch.setattr("benchmarks.aged.own_environment", lambda **given: os.environ | given)  # with that database
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [module, *options, "--json"])
    import_module(module).main()
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() > MACHINE


def test_a_training_step_is_timed_in_as_many_processes_as_the_preset_has() -> None:
    command = [sys.executable, "-m", "benchmarks.train_step", "--seconds", "0", "--blocks", "1", "--preset", "digits"]
    done = subprocess.run([*command, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    figures = json.loads(done.stdout)
    assert figures.keys() > MACHINE
    assert figures["num_devices"] == 2
    assert figures["peak_memory_mib"] > 500  # that of both; one takes less


def test_the_comparison_of_codecs_prints_a_row_for_each(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path / "images", {"train": digits[:3], "test": digits[:9]}, {"name": "x", "num_levels": 17})
    save_model(tmp_path / "model", VDM(**TINY), TINY)
    options = ["--model", str(tmp_path / "model"), "--images", str(tmp_path / "images"), "--count", "5", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options, "--json"])
    compression.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() > MACHINE
    assert [row["of"] for row in figures["rows"] if row["codec"] == "PNG, optimised"] == ["each image", "one picture"]
    assert figures["rows"][-1].keys() > {"bpd", "code_bpd", "bound_bpd", "encode_s", "decode_s"}


def test_ours_trains_for_the_minutes_and_the_curves_are_compared(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peer's curve is ours, and a quarter of a bit worse: the peer is not on the machine of the tests."""
    splits = {"train": digits[:80], "validation": digits[80:90], "test": digits[90:99]}
    save_images(tmp_path / "images", splits, {"name": "x", "num_levels": 17})
    options = ["--peer", "nowhere", "--images", str(tmp_path / "images"), "--preset", "digits", "--blocks", "1"]
    options += ["--width", "16", "--minutes", "0.005", "--points", "2", "--plot", str(tmp_path / "curves.svg")]
    for who in equal_minutes.WHO:
        (tmp_path / who).mkdir()
    training = ["--train", "ours", "--seed", "0", "--out", str(tmp_path / "ours")]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options, *training])
    with patch.dict(os.environ):  # torch's agent sets variables for the processes that train
        equal_minutes.main()
    chosen = equal_minutes.parser().parse_args([*options, "--json"])
    points = equal_minutes.measured(tmp_path / "ours", chosen, torch.device("cpu"))
    worse = [
        point | {"evaluation": point["evaluation"]._replace(prior=point["evaluation"].prior + 0.25)} for point in points
    ]
    equal_minutes.report({("ours", 0): points, ("peer", 0): worse}, chosen, torch.device("cpu"))
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() > MACHINE
    assert [row["steps"] for row in figures["rows"][:2]] == [points[0]["steps"], points[1]["steps"]]
    assert figures["peer_minus_ours_bpd"] == pytest.approx(0.25)
    assert (tmp_path / "curves.svg").stat().st_size > 0


def test_the_day_of_a_card_writes_a_table_with_a_row_for_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    options = ["--out", str(tmp_path), "--preset", "digits", "--blocks", "1", "--seconds", "0", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options, "--minutes", "0.001"])
    gpu_day.main()
    table = (tmp_path / "table.md").read_text()
    assert capsys.readouterr().out.strip() == table.strip()
    results = json.loads((tmp_path / "results.json").read_text())
    first, *others = results["rows"]
    assert np.isfinite(first["losses"]).all()
    assert len(first["losses"]) == gpu_day.COMPARED_STEPS
    assert {row["left_out"] for row in others} == {"no time"}
    assert table.count("\n| ") == 1 + len(gpu_day.ROWS) + 2
    found = gpu_day.figures(
        gpu_day.ROWS[1],
        read_problem(parser(None).parse_args(["--preset", "digits", "--blocks", "1"])),
        16,
        0.0,
        torch.device("cpu"),
    )
    assert gpu_day.proposal([(gpu_day.ROWS[1], found)]).startswith("`auto` should choose: eager, channels_last")


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_is_a_problem_of_speed(preset: str) -> None:
    problem = read_problem(parser(None).parse_args(["--preset", preset]))
    assert problem.images.shape[1:] == problem.model["image_shape"]


def test_a_large_batch_is_as_large_as_it_says() -> None:
    problem = read_problem(parser(None).parse_args(["--preset", "digits", "--batch-size", "5000"]))
    assert len(problem.images) == 5000


def test_the_peer_is_measured_with_the_sizes_and_options_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    params = read_params(PRESETS / "digits.yaml")
    sizes = {"train_step": params.train.batch_size, "evaluate": params.evaluate.batch_size, "sample": speed.SAMPLED}
    built: list[int] = []
    monkeypatch.setattr(peer, "build", lambda model, size, device: built.append(size))
    monkeypatch.setattr(peer, "training_step", lambda *_, **__: (list, None))
    monkeypatch.setattr(peer, "evaluation", lambda *_: list)
    monkeypatch.setattr(peer, "sampling", lambda *_: list)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for what in sizes:
        monkeypatch.setattr(sys, "argv", ["benchmark", what, "nowhere", "--preset", "digits", "--seconds", "0"])
        peer.main()
    assert built == list(sizes.values())

    commands: list[list[str]] = []

    def run(command: list[str]) -> dict[str, float]:
        commands.append(command)
        return {"images_per_second": 1.0, "peak_memory_mib": 1.0}

    monkeypatch.setattr(speed, "run", run)
    monkeypatch.setattr(speed, "require_peer", lambda folder: None)
    options = ["--accumulation", "2", "--activation-checkpointing", "--rounds", "1", "--peer", "nowhere"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options, "--device", "cpu"])
    train_step.main()
    ours, theirs = commands
    assert "--accumulation 2 --activation-checkpointing" in " ".join(ours)
    assert theirs[:3] == ["benchmarks.peer", "train_step", "nowhere"]


def test_packages_that_the_peer_lacks_are_named_before_ours_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vdm_unet.py").touch()
    monkeypatch.setattr("benchmarks.options.find_spec", lambda name: name if name != "ema_pytorch" else None)
    with pytest.raises(ValueError, match="not installed: `pip install ema-pytorch`"):
        require_peer(tmp_path)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (sample.main, ["--batch-size", "0"], "argument --batch-size: must be at least 1, got 0"),
        (train_step.main, ["--peer", "nowhere", "--seconds", "0"], "error: --peer nowhere is not a checkout"),
        (contract.main, ["--rows", "JPG"], "error: --rows: no corruption has 'JPG' in its name"),
        (
            contract.main,
            ["--sets", "digits", "--fashion-mnist", "nowhere"],
            "error: data.source: nowhere is not a folder",
        ),
        (
            standard_error.main,
            ["--fashion-mnist", "nowhere", "--steps", "1", "--repeats", "14"],
            "error: data.source: nowhere is not a folder",
        ),
        (sample.main, ["--num-timesteps", "-3"], "argument --num-timesteps: must be at least 1, got -3"),
        (sample.main, ["--seconds", "-1"], "argument --seconds: must be a finite number from 0, got -1"),
        (sample.main, ["--seconds", "nan"], "argument --seconds: must be a finite number from 0, got nan"),
        (sample.main, ["--width", "9"], "error: width 9 must be even, at least 4 and a multiple of norm_groups 8"),
        (sample.main, ["--device", "abacus"], "argument --device: invalid"),
        (sample.main, ["--device", "cuda:99"], "error: device cuda:99: "),
        (standard_error.main, ["--repeats", "1"], "error: --repeats must be at least 2"),
        (samplers.main, ["--plot", "nowhere/x.png"], "argument --plot: must be a .png or .svg file in a folder that"),
        (samplers.main, ["--plot", "x.jpg"], "argument --plot: must be a .png or .svg file in a folder that"),
        (contract.main, ["--images", "1"], "error: --images must be at least 2"),
        (load.main, ["--runs", "100"], "error: --versions 200 must be at most --runs 100"),
        (standard_error.main, ["--repeats", "13", "--fashion-mnist", "x"], "error: --repeats must be at least 14"),
        (
            gpu_day.main,
            ["--out", "x", "--minutes", "nan"],
            "argument --minutes: must be a finite number from 0, got nan",
        ),
        (
            gpu_day.main,
            ["--out", "x", "--preset", "digits", "--peer", "nowhere"],
            "error: --peer nowhere is not a check",
        ),
        (train_step.main, ["--accumulation", "7"], "error: batch_size 64 is not a multiple of num_devices x accumul"),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    main: Callable[[], None],
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_continuous_bound_does_not_depend_on_the_schedule_between_its_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The four schedules of the variance table differ only in variance (section 5.1)."""
    monkeypatch.setattr(sys, "argv", ["benchmark", "--steps", "8", "--images", "8", "--json"])
    estimator_variance.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() > MACHINE
    schedules = figures["schedules"].values()
    means = [row["diffusion_bpd"] for row in schedules]
    # 8 images at 256 times: the standard error is sqrt(variance / 2048), low-discrepancy times make it smaller.
    errors = [(row["variance"] / (8 * 256)) ** 0.5 for row in schedules]
    assert max(means) - min(means) < 4 * 2**0.5 * max(errors)


@pytest.mark.parametrize("memory_format", gpu_day.FORMATS)
def test_the_state_of_the_optimizers_has_the_layout_of_the_weights(memory_format: str) -> None:
    problem = read_problem(parser(None).parse_args(["--preset", "digits", "--blocks", "1"]))
    row = gpu_day.Row("float32", "eager", memory_format)
    for optimizer in gpu_day.build(row, problem, 16, torch.device("cpu")).optimizers:
        for weight, value in zip(optimizer.parameters, optimizer.state(), strict=False):
            assert weight.stride() == value.stride()


def test_no_micro_batch_of_the_benchmark_is_larger_than_those_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that has room for those has none for larger ones, and the figures would be lost."""
    sizes: list[int] = []
    backward = trainer.backward

    def counted(model: VDM, batch: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(batch.pixels))
        return backward(model, batch, *args, **options)

    monkeypatch.setattr(trainer, "backward", counted)
    monkeypatch.setattr(train_step, "matrix_rate", lambda *_: 1.0)
    monkeypatch.setattr(train_step, "validation_time", lambda *_: 1.0)
    problem = read_problem(parser(None).parse_args(["--preset", "digits", "--blocks", "1"]))
    chosen = argparse.Namespace(preset="digits", precision="float32", compile="false", batch_size=16)
    vars(chosen).update(activation_checkpointing=False, accumulation=2, num_devices=2)
    train_step.measure(problem, chosen, torch.device("cpu"), 1.0, 1.0, 1.0)
    assert max(sizes) == 4


def test_a_step_in_a_process_group_of_one_communicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the day of a card would say nothing about NCCL."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    problem = read_problem(parser(None).parse_args(["--preset", "digits", "--blocks", "1"]))
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        shared: list[torch.Tensor] = []
        monkeypatch.setattr(distributed, "all_reduce", shared.append)
        row = gpu_day.Row("float32", "eager", "channels_last", distributed=True)
        gpu_day.build(row, problem, 16, torch.device("cpu")).step()
        assert len(shared) == 1
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operations_of_attention_are_counted(dtype: torch.dtype) -> None:
    query, key, value = (torch.randn(2, 16, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    forward = 2 * 2 * (2 * 16 * 16 * 8)  # two images, two products of 2 N N D operations
    assert speed.count_flop(lambda: attention(query, key, value).sum().backward()) == 3 * forward


def test_the_benchmark_of_the_loop_leaves_the_operators_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_AUTH_STRING", "VDM_SHARE"):
        monkeypatch.setenv(name, "production")
    found = loop.environment(tmp_path)
    assert "production" not in found.values()
    assert found["PREFECT_HOME"] == str(tmp_path / "prefect")


@pytest.mark.parametrize(
    ("num_validation", "num_levels", "reason"),
    [
        (0, 17, "has no validation images"),
        (10, 17, "has 17 levels; the peer supports 256 only"),
        (10, 256, "is not a checkout of the peer"),
    ],
)
def test_what_ours_and_the_peer_cannot_be_compared_with_is_refused_before_the_training(
    num_validation: int,
    num_levels: int,
    reason: str,
    digits: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    splits = {"train": digits[:80], "validation": digits[80:][:num_validation], "test": digits[90:99]}
    save_images(tmp_path / "images", splits, {"name": "x", "num_levels": num_levels})
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("trained"))
    options = ["--peer", "nowhere", "--images", str(tmp_path / "images"), "--preset", "digits", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options])
    with pytest.raises(SystemExit, match="2"):
        equal_minutes.main()
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_the_server_of_the_benchmarks_has_its_own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "production")
    started = Mock()
    monkeypatch.setattr(aged.subprocess, "Popen", started)
    monkeypatch.setattr(aged, "answers", lambda url: True)
    monkeypatch.setattr(aged, "History", Mock())
    with aged.server(tmp_path):
        pass
    assert "production" not in started.call_args.kwargs["env"].values()
