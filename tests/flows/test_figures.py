"""What the benchmarks compute from times, bytes and losses: units, ratios, and which side is which."""

import argparse
import math
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from project import Project
from torch import Tensor

from benchmarks import (
    compression,
    contract,
    equal_minutes,
    estimator_variance,
    evaluate,
    gpu_day,
    load,
    loop,
    machine,
    ode_error,
    peer,
    sample,
    samplers,
    speed,
    standard_error,
    train_step,
    validate,
)
from benchmarks import contract as change
from flows.core.checkpoint import save_model
from flows.images.store import save_images
from vdm.model import VDM
from vdm.ode import Derivative, Solve, State
from vdm.schedule import alpha

CPU = torch.device("cpu")


def seconds(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    """Let the CPU's clock of `benchmarks.compression` show these times."""
    monkeypatch.setattr(compression, "cpu_seconds", Mock(side_effect=times))


def test_the_spread_of_ours_is_divided_by_that_of_the_plain_estimator(
    digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three values one apart the standard deviation is 1."""
    monkeypatch.setattr(standard_error, "ours", lambda model, pixels, times, seed: 2.0 + seed)
    monkeypatch.setattr(standard_error, "plain", lambda model, pixels, times, seed: 3.0 + 4 * seed)
    found = standard_error.measure("digits", Mock(), digits[:5], 1, repeats=3)
    assert (found["ours_bpd"], found["plain_bpd"]) == (3.0, 7.0)
    assert (found["ours_standard_error"], found["plain_standard_error"]) == (1.0, 4.0)
    assert (found["ratio"], found["ratio_error"]) == (0.25, pytest.approx(0.25 / math.sqrt(2)))


def test_both_estimators_have_the_same_mean(digits: np.ndarray) -> None:
    """With gamma_0 = -2, so that the reconstruction is a large part of the bound."""
    model = VDM(**TINY | {"gamma_0": -2.0}).eval()
    ours, plain = (
        [estimator(model, digits[:32], 4, seed) for seed in range(4)]
        for estimator in (standard_error.ours, standard_error.plain)
    )
    assert np.mean(plain) == pytest.approx(np.mean(ours), rel=0.05)


def test_the_schedules_have_the_shapes_of_their_names() -> None:
    ends = torch.tensor([-7.0, 5.0], dtype=torch.float64)
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    shapes = {
        estimator_variance.linear: (lambda gamma: gamma, t),
        estimator_variance.beta_linear: (lambda gamma: torch.log(alpha(gamma)), t.square()),
        estimator_variance.alpha_cosine: (lambda gamma: torch.acos(alpha(gamma)), t),
    }
    for schedule, (shape, share) in shapes.items():
        first, last = shape(ends)
        torch.testing.assert_close(shape(schedule(*ends)(t)), first + (last - first) * share)


def test_the_diffusion_loss_of_a_network_that_predicts_nothing_is_that_of_the_noise(digits: np.ndarray) -> None:
    """Its loss at a time is half the slope of gamma times a chi-square of 64 degrees of freedom."""
    nothing = Mock(num_levels=17, num_dims=64, network=lambda z, gamma: torch.zeros_like(z))
    schedule = estimator_variance.linear(torch.tensor(-7.0), torch.tensor(5.0))
    mean, variance = estimator_variance.estimate(nothing, schedule, digits[:1], 4096)
    expected = 0.5 * 12 / math.log(2)
    assert mean == pytest.approx(expected, rel=0.01)
    assert variance == pytest.approx(expected**2 * 2 / 64, rel=0.1)


def test_the_error_of_a_solver_is_what_it_finds_minus_the_truth() -> None:
    def solve(derivative: Derivative, start: State, times: Tensor) -> State:
        return derivative(times[0], derivative(times[0], start))

    def run(solve: Solve) -> Tensor:
        zero = torch.zeros(2)
        solve(lambda gamma, state: state, (zero, zero), zero)
        return torch.tensor([1.0, 2.0])

    found = ode_error.measure(run, solve, torch.tensor([1.5, 1.75]))
    assert found == {"evaluations": 2, "mean_error_bpd": -0.125, "worst_error_bpd": -0.5}


def test_both_states_of_the_ode_solve_the_same_problem(digits: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images of one pixel, whose density is known."""
    monkeypatch.setattr(ode_error, "TOLERANCES", (1e-4,))
    of_z, of_y = ode_error.finite_set(digits[:4, :, 3:4, 3:4], 2)
    assert (of_z["state"], of_y["state"]) == ("z", "y")
    assert of_z["worst_error_bpd"] == pytest.approx(0, abs=0.05)
    assert of_y["worst_error_bpd"] == pytest.approx(0, abs=0.02)


def test_the_error_of_a_network_is_the_difference_from_a_tenth_of_the_lowest_tolerance(
    digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    tolerances: list[float] = []
    monkeypatch.setattr(ode_error, "dopri5", tolerances.append)
    monkeypatch.setattr(ode_error, "trained", Mock())
    monkeypatch.setattr(ode_error, "evaluate_ode", lambda *_, **__: np.zeros(1))
    rows = ode_error.network(digits[:0], digits[:1], 1)
    truth, *others = tolerances
    assert truth == pytest.approx(1e-6)
    assert others == [row["tolerance"] for row in rows] == [1e-3, 1e-4, 1e-5]


def test_every_image_is_a_tile_of_the_one_picture(digits: np.ndarray) -> None:
    images = digits[:5]
    expected = np.zeros((1, 16, 24), np.uint8)
    for image, (row, column) in zip(images, [(0, 0), (0, 8), (0, 16), (8, 0), (8, 8)], strict=True):
        expected[:, row : row + 8, column : column + 8] = image
    np.testing.assert_array_equal(compression.tiled(images), expected)


@pytest.mark.parametrize("codec", ["PNG, optimised", "WebP, lossless"])
def test_a_codec_of_pictures_loses_nothing(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    read: list[np.ndarray] = []

    def saved(image: Image.Image, **options: Any) -> int:
        file = BytesIO()
        image.save(file, **options)
        read.append(np.asarray(Image.open(file)))
        return 1

    monkeypatch.setattr(compression, "saved", saved)
    compression.PICTURES[codec](compression.picture(pixels))
    np.testing.assert_array_equal(read[0].transpose(2, 0, 1), pixels)


def test_the_bits_of_a_general_codec_are_per_number_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch, 5.0)
    found = compression.row("PNG", "each image", 30, np.zeros((2, 3, 4, 5), np.uint8), begin=2.0)
    assert (found["bpd"], found["encode_s"]) == (2.0, 3.0)


def test_our_seconds_are_those_of_each_direction_and_bits_count_the_whole_file(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "model", VDM(**TINY), TINY)
    seconds(monkeypatch, 10.0, 12.0, 15.0)
    found = compression.ours(digits[:3], tmp_path / "model", 1, 3)
    assert (found["encode_s"], found["decode_s"]) == (2.0, 3.0)
    assert found["bpd"] == 8 * found["bytes"] / digits[:3].size


def test_a_file_that_gives_other_images_has_no_figures(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decompress(file: Path, *, out: Path, **_: Any) -> None:
        out.mkdir()
        np.save(out / "images.npy", digits[1:4])

    save_model(tmp_path / "model", VDM(**TINY), TINY)
    monkeypatch.setattr(compression.files, "decompress", decompress)
    with pytest.raises(AssertionError, match="the images differ"):
        compression.ours(digits[:3], tmp_path / "model", 1, 3)


def test_the_memory_of_both_commands_is_in_mib(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = [(1, 0, Mock(ru_maxrss=200 * 1024)), (2, 0, Mock(ru_maxrss=300 * 1024))]
    monkeypatch.setattr(subprocess, "Popen", Mock())
    monkeypatch.setattr(os, "wait4", Mock(side_effect=peaks))
    found = compression.memory(digits[:3], tmp_path, 4)
    assert found == {"images": 12, "compress_peak_memory_mib": 200, "decompress_peak_memory_mib": 300}


@pytest.mark.slow
def test_the_coder_is_timed_per_symbol_in_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It pops 200,000 symbols, and pushes as many."""
    seconds(monkeypatch, 1.0, 1.2, 1.6)
    assert compression.coder_microseconds() == pytest.approx({"pop_us": 1.0, "push_us": 2.0})


@pytest.mark.processes
def test_seconds_on_the_cpu_count_programs_that_have_ended() -> None:
    begin = compression.cpu_seconds()
    subprocess.run([sys.executable, "-I", "-c", "sum(range(3_000_000))"], check=True)
    assert compression.cpu_seconds() - begin > 0.03


def test_a_ratio_is_ours_to_the_peers_in_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = [(300.0, 100.0), (100.0, 400.0), (200.0, 300.0), (100.0, 400.0)]
    answers = [dict(zip(("images_per_second", "peak_memory_mib"), figures, strict=True)) for figures in measured]
    run = Mock(side_effect=answers)
    monkeypatch.setattr(speed, "run", run)
    chosen = argparse.Namespace(preset="digits", device="cpu", seconds=1.0, peer=tmp_path, rounds=2)
    vars(chosen).update(width=8, blocks=1, batch_size=4, precision="auto")
    found = speed.against_peer("evaluate", chosen)
    assert [call.args[0][0] for call in run.call_args_list] == ["benchmarks.evaluate", "benchmarks.peer"] * 2
    assert (found["ours"], found["peer"]) == (answers[::2], answers[1::2])
    assert (found["speed_ratio"], found["speed_ratio_range"]) == (2.5, [2.0, 3.0])
    assert (found["memory_ratio"], found["memory_ratio_range"]) == (0.5, [0.25, 0.75])


def test_the_mean_of_the_steps_leaves_the_first_three_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [100.0], iter([9.0, 5.0, 4.0, 1.0, 2.0, 3.0, 2.0])

    def step() -> None:
        now[0] += next(durations)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert speed.clock(step, CPU, 7.0) == {"first_step_s": 9.0, "step_s": 2.0, "steps": 4}


def test_at_least_three_steps_are_timed() -> None:
    assert speed.clock(lambda: None, CPU, 0.0)["steps"] == 3


def test_the_peak_memory_is_that_of_the_kernel_in_mib() -> None:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    assert speed.peak_memory(CPU) == pytest.approx(int(line.split()[1]) / 1024, rel=0.1)


def test_the_peak_memory_of_reading_images_is_in_mib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.stages.download.download", Mock())
    found = validate.run_step("download", tmp_path)
    assert found["peak_memory_mib"] == pytest.approx(speed.peak_memory(CPU), rel=0.1)


def test_a_matrix_product_has_a_multiplication_and_an_addition_for_each_term(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Mock(side_effect=[{"step_s": 2.0}, {"step_s": 0.5}] * 5)
    monkeypatch.setattr(speed, "clock", times)
    assert speed.matrix_rate(CPU, torch.float32) == 2 * 1024**3 / 0.5


def test_rounds_and_ranges_are_printed_in_their_units() -> None:
    rounds = [{"images_per_second": 12.34, "peak_memory_mib": 100.4}] * 2
    assert speed.short(rounds) == "12.3 images/s, 100 MiB; 12.3 images/s, 100 MiB"
    assert speed.short([1.0, 2.5]) == "1.0 to 2.5"


def problem() -> speed.Problem:
    """Return the problem of the digits with a network of one block."""
    return speed.read_problem(speed.parser(None).parse_args(["--preset", "digits", "--blocks", "1"]))


def test_the_shares_of_a_training_step_follow_from_the_intervals_of_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem()
    train = given.params.train
    for name, value in {"saving_time": 3.0, "validation_time": 5.0, "count_flop": 8e9, "matrix_rate": 16e9}.items():
        monkeypatch.setattr(train_step, name, lambda *_, value=value: value)
    chosen = argparse.Namespace(preset="digits", precision="float32", compile="false", batch_size=16)
    vars(chosen).update(activation_checkpointing=False, accumulation=1, num_devices=1)
    found = train_step.measure(given, chosen, CPU, 7.0, 2.0, 500.0)
    assert (found["time_to_first_step_s"], found["peak_memory_mib"]) == (7.0, 500.0)
    assert (found["images_per_second"], found["steps_per_second"]) == (8.0, 0.5)
    assert train.validate_every_steps is not None
    assert found["validation_share_of_time"] == 5 / (2 * train.validate_every_steps + 5)
    interval = min(60 * train.checkpoint_every_minutes, 2 * train.checkpoint_every_steps)
    assert found["saved_states_share_of_time"] == 3 / (interval + 3)
    assert (found["step_tflop"], found["matrix_rate_tflops"]) == (0.008, 0.016)
    assert found["share_of_matrix_rate"] == 0.25


def test_a_validation_is_as_long_as_the_share_of_images_that_it_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of the digits take two seconds; a tenth of the 1,438 are for validation."""
    given = problem()
    few = given.params.train.batch_size
    validation = Mock()
    monkeypatch.setattr(train_step, "Validation", validation)
    monkeypatch.setattr(time, "perf_counter", Mock(side_effect=[10.0, 12.0]))
    chosen = argparse.Namespace(batch_size=few, accumulation=1, num_devices=1)
    expected = 2.0 / few * round(given.params.data.validation_fraction * 1438)
    assert train_step.validation_time(given, chosen, Mock()) == pytest.approx(expected)
    assert len(validation.call_args.args[0]) == few


@pytest.mark.parametrize(
    ("module", "options", "per_second"),
    [
        (sample, ["--num-timesteps", "5"], {"images_per_second": 4.0, "images_x_steps_per_second": 20.0}),
        (evaluate, [], {"images_per_second": 4.0}),
    ],
)
def test_images_per_second_are_those_of_a_step_after_the_first(
    module: Any,
    options: list[str],
    per_second: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = Mock()
    monkeypatch.setattr(module, "report", report)
    monkeypatch.setattr(module, "clock", lambda *_: {"first_step_s": 100.0, "step_s": 2.0})
    monkeypatch.setattr(sys, "argv", ["benchmark", "--blocks", "1", "--batch-size", "8", "--device", "cpu", *options])
    module.main()
    assert per_second.items() <= report.call_args.args[0].items()


def test_the_images_of_the_peer_are_from_0_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Tensor] = []
    report = Mock()
    monkeypatch.setattr(peer, "report", report)
    monkeypatch.setattr(peer, "build", Mock())
    monkeypatch.setattr(peer, "evaluation", lambda diffusion, batch: batches.append(batch))
    monkeypatch.setattr(peer, "clock", lambda *_: {"step_s": 2.0})
    monkeypatch.setattr(sys, "path", [*sys.path])
    options = ["evaluate", "nowhere", "--preset", "mnist", "--blocks", "1", "--batch-size", "8", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *options])
    peer.main()
    assert report.call_args.args[0]["images_per_second"] == 4.0
    assert (batches[0].min().item(), batches[0].max().item()) == (0.0, 1.0)


BFLOAT16 = gpu_day.Row("bfloat16", "compile", "contiguous")
FIGURES = {"images_per_second": 640.0, "peak_memory_mib": 512.0, "share_of_matrix_rate": 0.25}


def test_a_row_of_the_day_stands_beside_the_loss_in_float32() -> None:
    steps: list[tuple[gpu_day.Row, gpu_day.Figures]] = [
        (gpu_day.REFERENCE, {**FIGURES, "losses": [1.0, 2.0], "steps_per_second": 5.0}),
        (BFLOAT16, {**FIGURES, "losses": [0.98, 2.02], "steps_per_second": 10.0}),
        (gpu_day.ROWS[-1], {"left_out": "no time"}),
    ]
    _, _, *lines = gpu_day.markdown(steps, {"sample, ours": {**FIGURES}}).splitlines()
    assert lines == [
        "| eager, contiguous, float32 | 5.00 | 640 | 512 | 0.25 | 0.0e+00 |",
        "| compile, contiguous, bfloat16 | 10.00 | 640 | 512 | 0.25 | 2.0e-02 |",
        "| max-autotune, contiguous, bfloat16, no reindexing | no time |  |  |  |  |",
        "| sample, ours |  | 640 | 512 |  |  |",
    ]


def test_auto_should_choose_the_fastest_way_of_one_process_in_bfloat16() -> None:
    rows = {
        gpu_day.REFERENCE: 40.0,
        gpu_day.Row("bfloat16", "eager", "channels_last", distributed=True): 30.0,
        BFLOAT16: 20.0,
        gpu_day.Row("bfloat16", "eager", "contiguous"): 10.0,
    }
    steps = [(row, {"losses": [1.0], "steps_per_second": speed}) for row, speed in rows.items()]
    assert gpu_day.proposal(steps) == "`auto` should choose: compile, contiguous, bfloat16 (20.00 steps/s)."
    assert gpu_day.proposal(steps[:2]) == "No step in bfloat16 was measured."


def test_the_options_of_the_day_reach_its_rows_and_those_of_the_peer() -> None:
    chosen = argparse.Namespace(preset="digits", width=None, blocks=1, batch_size=4, device="cpu", seconds=2.0)
    given = ["--preset", "digits", "--blocks", "1", "--batch-size", "4", "--device", "cpu", "--seconds", "2.0"]
    chosen.peer = "checkout"
    found = gpu_day.commands(chosen)
    assert found["sample, ours"] == ["benchmarks.sample", *given, "--json"]
    assert found["train_step, peer"] == ["benchmarks.peer", "train_step", "checkout", *given, "--json"]


def test_a_row_of_the_load_is_the_full_one_over_a_tenth_of_it() -> None:
    found = load.row("status", load.Measured(2.0, 0), load.Measured(3.0, 5))
    assert found == {"name": "status", "tenth_s": 2.0, "full_s": 3.0, "ratio": 1.5, "exit_code": 5}


def test_a_table_has_a_column_for_each_figure_of_any_row() -> None:
    rows = [{"codec": "PNG", "bpd": 1.23456789}, {"codec": "ours", "bpd": 1e-5, "bytes": 123456, "code_bpd": None}]
    head, *lines = machine.table(rows).splitlines()
    assert [line.split() for line in lines] == [["PNG", "1.2346"], ["ours", "1e-05", "123456"]]
    assert head.split() == ["codec", "bpd", "bytes", "code_bpd"]


def test_the_fastest_call_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", Mock(side_effect=[0.0, 3.0, 10.0, 11.0, 20.0, 22.0]))
    assert load.fastest(lambda: 4, 3) == load.Measured(1.0, 4)


def test_what_the_loop_adds_is_its_time_minus_that_of_dvc(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "settle", lambda environment: None)
    monkeypatch.setattr(loop, "clone", lambda folder: folder)
    monkeypatch.setattr(loop, "by_dvc", lambda folder, home: 4.0)
    monkeypatch.setattr(loop, "by_prefect", lambda home: {"run_step_s": 10.5})
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    loop.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["repro_step_s: 4.0", "run_step_s: 10.5", "added_s: 6.5"]


def test_the_memory_of_the_loop_is_that_of_the_kernel_in_mib() -> None:
    def shared() -> float:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        (pss,) = [line.split()[1] for line in lines if line.startswith("Pss:")]
        return int(pss) / 1024

    assert loop.memory(os.getpid()) == pytest.approx(shared(), rel=0.1)


def test_the_clock_of_a_training_stands_still_while_a_point_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def save(folder: Path) -> None:
        now[0] += 1000

    clock = equal_minutes.Clock(tmp_path, batch_size=32)
    for steps in (5, 9):
        now[0] += 60
        clock.save(steps, save)
    assert clock.seconds() == 120
    assert clock.points == [
        {"minutes": 1.0, "steps": 5, "images": 160},
        {"minutes": 2.0, "steps": 9, "images": 288},
    ]


def test_the_weights_are_averaged_over_the_same_share_of_the_steps_as_in_the_preset(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one step per second ours has 40 steps, of which it saves the 20th and the last."""
    build, saved = Mock(), Mock()
    save_images(tmp_path / "images", {"train": digits[:40], "test": digits[40:60]}, {"name": "x", "num_levels": 17})
    preset = problem().params
    train = preset.train.model_copy(update={"device": "cpu", "num_devices": 1})
    monkeypatch.setattr(equal_minutes, "steps_per_second", lambda trainer: 1.0)
    monkeypatch.setattr(equal_minutes.fitting, "build", build)
    monkeypatch.setattr(equal_minutes.Clock, "save", lambda clock, steps, save: saved(steps))
    params = preset.model_copy(update={"train": train})
    equal_minutes.train_part(params, tmp_path / "images", 40 / 60, 2, tmp_path)
    settings = build.call_args.args[1]
    assert settings.steps == 40
    assert (1 - settings.ema_decay) * 40 == pytest.approx((1 - train.ema_decay) * train.steps)
    assert [call.args for call in saved.call_args_list] == [(20,), (40,)]


def test_the_better_weights_of_a_point_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: np.ndarray
) -> None:
    bpd = {"averaged": 3.0, "last": 2.0}
    for name in bpd:
        (tmp_path / "0" / name).mkdir(parents=True)
        (tmp_path / "0" / name / "config.json").touch()
    (tmp_path / "points.json").write_text('[{"steps": 1}]')
    monkeypatch.setattr(equal_minutes, "load_images", lambda folder: Mock(validation=digits[:3]))
    monkeypatch.setattr(equal_minutes, "bound", lambda model, *_: Mock(bpd=np.array([bpd[model.name], 1.0])))
    chosen = argparse.Namespace(images=tmp_path, num_images=2)
    (point,) = equal_minutes.measured(tmp_path, chosen, CPU)
    assert point["evaluation"].bpd[0] == 2.0


def test_only_what_the_clean_set_does_not_have_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("BGR", "transposed", "mirrored", "upside down")
    entries = [contract.Corruption(name, lambda known: known) for name in names]
    clean = {"labels are uniform": "warning"}
    found = [clean, {"a": "critical", "b": "warning"}, {"b": "warning"}, clean, {}]
    monkeypatch.setattr(contract, "corruptions", lambda: entries)
    monkeypatch.setattr(contract, "verdict", Mock(side_effect=found))
    table = contract.table({"digits": contract.CleanSet(17, {}, {})}, "")
    assert [table[name]["digits"] for name in names] == ["error", "warning", "missed", "missed"]


def test_copies_in_the_test_images_are_found_and_other_images_are_not(digits: np.ndarray) -> None:
    known = contract.CleanSet(17, {"train": digits[:60], "test": digits[100:140]}, {})
    shares = [contract.found(known, copies) for copies in (digits[:20], digits[10:0:-1])]
    assert shares == [1.0, 1.0]
    fresh = np.random.default_rng(0).integers(0, 17, (20, 1, 8, 8), dtype=np.uint8)
    assert contract.found(known, np.concatenate([digits[:20], fresh])) == 0.5


def test_noise_is_as_large_in_sets_of_few_levels(digits: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its standard deviation is 1 or 2 of 255; the digits have levels to 16."""
    used: list[float] = []

    def noisy(images: np.ndarray, sd: float, num_levels: int) -> np.ndarray:
        used.append(sd * 255 / (num_levels - 1))
        return images

    monkeypatch.setattr(change, "noisy", noisy)
    monkeypatch.setattr(contract, "found", lambda *_: 0.0)
    contract.recall(contract.CleanSet(17, {"train": digits[:40], "test": digits[40:80]}, {}), 5)
    assert used == pytest.approx([1.0, 2.0, 2.0])


def test_shares_of_found_copies_are_printed_in_percent() -> None:
    figures: dict[str, Any] = dict.fromkeys(("device", "threads", "python", "commit"), "x")
    figures |= {"clean": {"digits": {}, "photographs": {}}, "corruptions": {"BGR": {"photographs": "error"}}}
    figures |= {"recall": {"digits": {"mirrored": 0.25}, "photographs": {"mirrored": 1.0, "JPEG": 0.5}}, "cost": {}}
    lines = contract.text(figures).splitlines()
    assert {"| BGR | - | error |", "| mirrored | 25% | 100% |", "| JPEG | - | 50% |"} <= set(lines)


def test_a_corruption_changes_as_much_as_its_name_says(digits: np.ndarray) -> None:
    images = digits[:100]
    inverted = (change.one_pixel(images, 17) != images).sum((1, 2, 3))
    assert inverted.max() == 1
    assert (change.in_a_tenth(images, lambda part: 16 - part) != images).any((1, 2, 3)).sum() == 10
    noise = change.noisy(np.full((100, 1, 8, 8), 128, np.uint8), 2.0, 256).astype(float) - 128
    assert (noise.mean(), noise.std()) == (pytest.approx(0, abs=0.1), pytest.approx(2, rel=0.05))
    spot = np.zeros((1, 1, 9, 9), np.uint8)
    spot[0, 0, 4, 4] = 250
    place = np.arange(9) - 4
    spread = change.blurred(spot, sd=1.0)[0, 0].astype(float)
    variance = [(spread.sum(axis) * place**2).sum() / spread.sum() for axis in (0, 1)]
    assert variance == pytest.approx([1.0, 1.0], rel=0.1)  # but for what is less than half a level


def test_the_rows_of_samplers_have_the_steps_and_changes_of_their_names() -> None:
    found = samplers.rows(argparse.Namespace(steps=[10, 25, 50], reference_steps=1000))
    assert [changes["num_timesteps"] for name, changes in found if name == "ancestral"] == [10, 25, 50, 1000]
    changed = dict(found)
    best = changed["sde-dpm-solver++"]
    assert changed["sde-dpm-solver++ seed 1"] == best | {"num_timesteps": 25, "seed": 1}
    assert changed["sde-dpm-solver++ clip False"] == best | {"num_timesteps": 25, "clip": False}


@pytest.mark.processes
def test_figures_of_changed_files_do_not_have_the_name_of_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    monkeypatch.chdir(project.folder)
    name = machine.commit()
    assert project.git("rev-parse", "HEAD").startswith(name)
    (project.folder / "README.md").write_text("changed")
    assert machine.commit() == f"{name}-dirty"
