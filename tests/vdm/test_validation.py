"""Validation while training: the same figures every time, the best weights, patience, and resuming."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from trainings import SETTINGS, Recorded, fit, same_bits

from flows.training.states import load_state, save_state
from vdm.evaluation import Evaluation
from vdm.model import VDM
from vdm.training.settings import TrainingSettings
from vdm.training.validation import Validation


def validated(model: VDM, train: np.ndarray, held_out: np.ndarray, **settings: Any) -> Recorded:
    """Return a run with validations before its first step."""
    options: dict[str, Any] = {"every_steps": 10, "times_per_image": 4, "batch_size": 64, "seed": 0}
    options |= {"keep": "best", "patience": None}
    validation = Validation(held_out, **options | {key: settings.pop(key) for key in options.keys() & settings.keys()})
    settings = SETTINGS | settings
    return Recorded(model, torch.from_numpy(train), TrainingSettings(**settings), validation)


def never() -> bool:
    return False


def run(trainer: Recorded) -> Recorded:
    while not trainer.finished:
        trainer.step()
    return trainer


def test_a_run_ends_with_a_line_and_a_validation(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    trainer = run(validated(tiny_model(), digits[:16], digits[16:18], steps=3, every_steps=2, log_every=2))
    assert [(line.step, line.validation_bpd is not None) for line in trainer.records] == [(2, True), (3, True)]


OVERFIT: dict[str, Any] = {"steps": 120, "learning_rate": 1e-2, "every_steps": 20, "batch_size": 32}
STATES = (15, 59, 75, 80)


def small_model() -> VDM:
    """Return a model that learns four images by heart in a few steps."""
    torch.manual_seed(0)
    return VDM(
        **TINY | {"width": 16, "schedule": "fixed_linear", "gamma_0": -6.0, "gamma_1": 5.0, "fourier_exponents": []}
    )


@pytest.fixture(scope="module")
def overfitting(digits: np.ndarray) -> Callable[..., Recorded]:
    """Return a function that starts a run that overfits, of which each validation has four batches."""
    return lambda **changes: validated(small_model(), digits[:4], digits[100:132], **OVERFIT | changes)


@pytest.fixture(scope="module")
def whole(
    overfitting: Callable[..., Recorded], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recorded, dict[int, Path]]:
    """Return that run at its end, and its states after some steps.  Tests only read them."""
    trainer, folder = overfitting(), tmp_path_factory.mktemp("states")
    while not trainer.finished:
        trainer.step()
        if trainer.done in STATES:
            save_state(folder / str(trainer.done), trainer.state())
    return trainer, {step: folder / str(step) for step in STATES}


def require_the_same_until_step_80(ended: Recorded, whole: tuple[Recorded, dict[int, Path]]) -> None:
    """Require the weights, the best weights and the log that a run without interruption has after 80 steps.

    Its best weights are those of step 60, as `test_the_best_weights_of_a_model_that_overfits_are_kept` shows.
    """
    trainer, states = whole
    assert ended.done == 80
    assert same_bits(ended.state()["model"], load_state(states[80])["model"])
    assert same_bits(ended.kept.state_dict(), trainer.kept.state_dict())
    records = [record[:-1] for record in trainer.records if record.step <= 80]
    assert ended.log.lines == len(records)
    assert [record[:-1] for record in ended.records] == records[-len(ended.records) :]


@pytest.mark.slow
def test_the_best_weights_of_a_model_that_overfits_are_kept(whole: tuple[Recorded, dict[int, Path]]) -> None:
    trainer, _ = whole
    curve = {record.step: record.validation_bpd or math.inf for record in trainer.records if record.validation_bpd}
    assert list(curve) == [20, 40, 60, 80, 100, 120]
    best = min(curve, key=curve.__getitem__)
    assert best == 60  # STATES are from before and after it
    assert curve[best] < curve[120] - 0.3
    assert trainer.validation is not None
    for model, step in ((trainer.kept, best), (trainer.averaged, 120)):
        found = trainer.validation.evaluate(model, never)
        assert found is not None
        assert found.bpd.mean() == curve[step]


@pytest.mark.slow
def test_training_ends_when_patience_ends_and_may_keep_the_last_weights(
    overfitting: Callable[..., Recorded], whole: tuple[Recorded, dict[int, Path]]
) -> None:
    trainer = overfitting(patience=1, keep="last")
    trainer.load_state(load_state(whole[1][59]))
    run(trainer)
    curve = [record.validation_bpd for record in trainer.records if record.validation_bpd]
    assert trainer.done == 40 + 20 * len(curve) == 80
    assert curve.index(min(curve)) == len(curve) - 2
    assert trainer.kept is trainer.averaged


@pytest.mark.slow
def test_validation_changes_no_weights_and_no_other_figure(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    plain = fit(tiny_model(dropout=0.3), digits[:64], **SETTINGS)
    torch.manual_seed(0)
    other = run(validated(tiny_model(dropout=0.3), digits[:64], digits[64:80], keep="last"))
    assert same_bits(other.averaged.state_dict(), plain.averaged.state_dict())
    assert [record[:9] for record in other.records] == [record[:9] for record in plain.records]


@pytest.mark.slow
@pytest.mark.parametrize("interrupted_after", [15, 75])
def test_a_run_with_validation_resumes_to_the_same_bytes(
    interrupted_after: int, overfitting: Callable[..., Recorded], whole: tuple[Recorded, dict[int, Path]]
) -> None:
    """The best weights, those of step 60, may be from before or after the interruption.  Patience ends the run."""
    second = overfitting(patience=1)
    second.load_state(load_state(whole[1][interrupted_after]))
    require_the_same_until_step_80(run(second), whole)


@pytest.mark.slow
def test_an_abandoned_validation_is_the_first_thing_that_a_resumed_run_does(
    overfitting: Callable[..., Recorded], whole: tuple[Recorded, dict[int, Path]], tmp_path: Path
) -> None:
    """Step 60 has the best weights."""
    first, second = overfitting(steps=80), overfitting(steps=80)
    first.load_state(load_state(whole[1][59]))
    for number in range(4):
        answers = iter([False] * number + [True])
        assert first.step(lambda answers=answers: next(answers)) is None
        assert list(answers) == []
        assert first.done == 60
        assert not first.finished
    save_state(tmp_path / "state", first.state())
    second.load_state(load_state(tmp_path / "state"))
    record = second.step()
    assert record is not None
    assert record.step == second.done == 60
    require_the_same_until_step_80(run(second), whole)


def test_processes_share_a_validation_without_changing_it(
    tiny_model: Callable[..., VDM], digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of three processes, evaluated one after the other, make the result of one process.

    Each asks whether to stop as often as the others, although their shares have one, one and two batches.
    """
    model = tiny_model().double()
    validation = Validation(
        digits[:10], every_steps=1, times_per_image=2, batch_size=6, seed=0, keep="last", patience=None
    )
    whole = validation.evaluate(model, never)
    assert whole is not None
    parts: list[np.ndarray] = []
    for rank in range(3):
        monkeypatch.setattr("vdm.training.validation.process", lambda rank=rank: (rank, 3))
        monkeypatch.setattr("vdm.training.validation.gather", lambda terms: parts.append(terms) or list(parts))
        answers = iter([False] * 2)
        shared = validation.evaluate(model, lambda answers=answers: next(answers))
        assert shared is not None
        assert list(answers) == []
    assert [part.shape[1] for part in parts] == [3, 3, 4]
    np.testing.assert_allclose(shared.bpd, whole.bpd, rtol=1e-12)
    np.testing.assert_allclose(shared.diffusion_variance, whole.diffusion_variance, rtol=1e-9)


def test_a_figure_that_is_not_finite_is_never_the_best(
    tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, zero, figures = np.zeros((1, 1, 8, 8), np.uint8), np.zeros(1), iter([math.nan, math.inf, 2.5, math.nan])
    options = {"every_steps": 1, "times_per_image": 1, "batch_size": 1, "seed": 0, "keep": "best", "patience": None}
    validation = Validation(images, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(validation, "evaluate", lambda *_: Evaluation(zero, zero, np.full((1, 1), next(figures))))
    for step in range(1, 5):
        validation.validate(tiny_model(), step, never)
    assert validation.best is not None
    assert (validation.best.step, validation.best.bpd, validation.since_best) == (3, 2.5, 1)


def test_a_restart_does_not_renew_patience(tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch) -> None:
    images, zero, figures = np.zeros((1, 1, 8, 8), np.uint8), np.zeros(1), iter([1.0, 2.0, 3.0])
    options = {"every_steps": 1, "times_per_image": 1, "batch_size": 1, "seed": 0, "keep": "last", "patience": 2}
    first, second = (Validation(images, **options) for _ in range(2))  # type: ignore[arg-type]
    for validation in (first, second):
        monkeypatch.setattr(validation, "evaluate", lambda *_: Evaluation(zero, zero, np.full((1, 1), next(figures))))
    for step in (1, 2):
        first.validate(tiny_model(), step, never)
    assert not first.impatient
    second.load_state(first.state())
    second.validate(tiny_model(), 3, never)
    assert second.impatient
