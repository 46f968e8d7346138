"""Training: the gradients, the data order, the averages, and that it learns."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from project import ROOT
from torch import nn
from trainings import SETTINGS, fit, same_bits, start

from flows.core.params_file import read_params
from flows.training.fitting import resolve
from flows.training.states import load_state, save_state
from vdm.choices import Compile, ScheduleKind
from vdm.errors import TrainingDiverged
from vdm.evaluation import BoundSettings, evaluate
from vdm.model import VDM
from vdm.training import log as training_log
from vdm.training.batches import Batch
from vdm.training.log import TrainingLog
from vdm.training.settings import TrainingSettings
from vdm.training.trainer import Trainer, backward
from vdm.training.validation import Validation
from vdm.vlb import bits_per_dim, low_discrepancy_times


def draw(model: VDM, digits: np.ndarray, size: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(digits[:size])
    eps = torch.randn(pixels.shape, dtype=torch.float64, generator=generator)
    return pixels, eps, low_discrepancy_times(torch.tensor(0.03, dtype=torch.float64), size)


@pytest.fixture
def bent_model(tiny_model: Callable[..., VDM]) -> VDM:
    """Return a float64 model with a learned schedule that is not a straight line."""
    model = tiny_model(schedule="learned_monotone").double()
    torch.nn.init.normal_(model.schedule.outer, std=3.0)
    return model


def central_difference(objective: Callable[[], float], parameter: torch.Tensor, index: int, step: float) -> float:
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.view(-1)[index] += sign * step
            values.append(objective())
            parameter.view(-1)[index] -= sign * step
    return (values[0] - values[1]) / (2 * step)


def test_end_points_descend_on_the_bound(bent_model: VDM, digits: np.ndarray) -> None:
    pixels, eps, t = draw(bent_model, digits)
    backward(bent_model, Batch(pixels, torch.zeros(len(t)), t, eps), "float32", bent_model.network, share=1.0)

    def bound() -> float:
        return bits_per_dim(bent_model(pixels, eps, t).total.mean(), bent_model.num_dims).item()

    for parameter in bent_model.schedule.end_points():
        assert parameter.grad is not None
        expected = central_difference(bound, parameter, 0, 1e-5)
        assert parameter.grad.item() == pytest.approx(expected, rel=1e-5)


def test_the_shape_descends_on_the_squared_loss(bent_model: VDM, digits: np.ndarray) -> None:
    model = bent_model
    pixels, eps, t = draw(model, digits)
    backward(model, Batch(pixels, torch.zeros(len(t)), t, eps), "float32", model.network, share=1.0)

    def squared_loss() -> float:
        loss = bits_per_dim(model(pixels, eps, t).diffusion, model.num_dims)
        return loss.square().mean().item()

    for parameter in model.schedule.shape_parameters():
        assert parameter.grad is not None
        for index in (0, parameter.numel() // 2):
            expected = central_difference(squared_loss, parameter, index, 1e-5)
            assert parameter.grad.reshape(-1)[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_the_network_descends_on_the_bound(bent_model: VDM, digits: np.ndarray) -> None:
    pixels, eps, t = draw(bent_model, digits)
    backward(bent_model, Batch(pixels, torch.zeros(len(t)), t, eps), "float32", bent_model.network, share=1.0)
    ours = [p.grad.clone() for p in bent_model.network.parameters() if p.grad is not None]
    bent_model.zero_grad()
    bits_per_dim(bent_model(pixels, eps, t).total.mean(), bent_model.num_dims).backward()
    plain = [p.grad for p in bent_model.network.parameters() if p.grad is not None]
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("schedule", [kind for kind in get_args(ScheduleKind) if kind != "fixed_linear"])
def test_a_learned_schedule_moves_and_stays_monotone(
    schedule: str, tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    """At a learning rate that is far too high."""
    model = tiny_model(schedule=schedule)
    before = model.schedule(torch.linspace(0, 1, 101))
    averaged = fit(model, digits[:64], **SETTINGS | {"steps": 8, "warmup_steps": 0, "learning_rate": 0.3}).averaged
    gamma, slope = averaged.schedule.gamma_and_slope(torch.linspace(0, 1, 101))
    assert gamma.isfinite().all()
    assert (slope >= 0).all()
    assert not torch.equal(gamma, before)


@pytest.mark.slow
def test_training_lowers_the_bound(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    settings = SETTINGS | {"steps": 40, "learning_rate": 1e-2}
    records = fit(tiny_model(), digits, **settings).records
    assert [record.step for record in records] == [10, 20, 30, 40]
    assert records[-1].bpd < 0.85 * records[0].bpd
    assert records[-1].bpd == pytest.approx(
        records[-1].prior_bpd + records[-1].reconstruction_bpd + records[-1].diffusion_bpd
    )


def test_the_same_seed_gives_the_same_weights(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    settings = SETTINGS | {"steps": 8}  # two epochs
    runs = [fit(tiny_model(), digits[:64], **settings).averaged.state_dict() for _ in range(2)]
    other = fit(tiny_model(), digits[:64], **settings | {"seed": 1}).averaged.state_dict()
    assert same_bits(*runs)
    assert not same_bits(runs[0], other)


@pytest.mark.parametrize(
    ("schedule", "optimizer"),
    [("learned_linear", "adamw"), pytest.param("learned_monotone", "muon", marks=pytest.mark.slow)],
)
def test_a_run_continued_from_any_step_ends_with_the_same_bits(
    schedule: str, optimizer: str, tiny_model: Callable[..., VDM], digits: np.ndarray, tmp_path: Path
) -> None:
    """The test uses dropout, an epoch's end, and the file; the log continues without gap or duplicate."""
    changes = {"schedule": schedule, "dropout": 0.3}
    settings = SETTINGS | {"optimizer": optimizer, "steps": 12, "log_every": 5}
    whole = fit(tiny_model(**changes), digits[:50], **settings)
    first = start(tiny_model(**changes), digits[:50], **settings)
    for _ in range(11):
        first.step()
        save_state(tmp_path / str(first.done), first.state())

    for step in (4, 5, 11):
        torch.manual_seed(999)
        second = start(tiny_model(**changes), digits[:50], **settings)
        second.load_state(load_state(tmp_path / str(step)))
        assert second.done == step
        while second.done < second.settings.steps:
            second.step()
        assert same_bits(second.averaged.state_dict(), whole.averaged.state_dict())
        assert same_bits(second.model.state_dict(), whole.model.state_dict())
        later = [record[:-1] for record in whole.records if record.step > step]
        assert [record[:-1] for record in second.records] == later
        assert second.log.lines == len(whole.records)


def test_a_step_stopped_between_its_micro_batches_leaves_no_trace(
    tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    settings = SETTINGS | {"steps": 4, "accumulation": 4, "log_every": 1}
    changes = {"dropout": 0.3}
    whole = fit(tiny_model(**changes), digits[:50], **settings)
    trainer = start(tiny_model(**changes), digits[:50], **settings)
    trainer.step()
    for answers in ([True], [False, False, True]):
        answer = iter(answers)
        assert trainer.step(lambda answer=answer: next(answer)) is None
        assert list(answer) == []  # the rest of the step is not computed
        assert trainer.done == len(trainer.records) == trainer.state()["log"]["count"] + 1 == 1
    while trainer.done < 4:
        trainer.step()
    assert same_bits(trainer.averaged.state_dict(), whole.averaged.state_dict())
    assert [record[:-1] for record in trainer.records] == [record[:-1] for record in whole.records]


class Normed(nn.Module):
    """A small network with running statistics, a count, and a mask with infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 1, 1))
        self.mask: torch.Tensor
        self.register_buffer("mask", torch.full((2,), -math.inf), persistent=False)

    def forward(self, z_t: torch.Tensor, gamma_t: torch.Tensor) -> torch.Tensor:
        sines = (8 * math.pi * z_t).sin(), (8 * math.pi * z_t).cos()
        return z_t + self.layers(torch.cat([z_t, *sines], dim=1)) + self.mask.exp().sum()


def normed_model() -> VDM:
    torch.manual_seed(0)
    ends = {"schedule": "fixed_linear", "gamma_0": -7.0, "gamma_1": 5.0}
    return VDM(image_shape=(1, 8, 8), num_levels=17, network=Normed(), **ends)


def test_running_statistics_are_averaged_like_the_weights(digits: np.ndarray) -> None:
    decay = 0.8
    trainer = start(normed_model(), digits[:200], **SETTINGS | {"steps": 5, "ema_decay": decay})
    seen = []
    while trainer.done < 5:
        trainer.step()
        seen.append({name: value.clone() for name, value in trainer.model.named_buffers()})
    shares = decay ** np.arange(4, -1, -1)
    for name, value in trainer.averaged.named_buffers():
        expected = seen[-1][name]
        if "running" in name:
            weighted = [share * each[name] for share, each in zip(shares / shares.sum(), seen, strict=True)]
            expected = torch.stack(weighted).sum(0)
        torch.testing.assert_close(value, expected)


def test_a_network_with_running_statistics_is_as_good_as_in_training(digits: np.ndarray) -> None:
    settings = {"steps": 150, "batch_size": 64, "learning_rate": 1e-2, "log_every": 50, "ema_decay": 0.9}
    trainer = fit(normed_model(), digits[:400], **SETTINGS | settings)
    bound = BoundSettings(times_per_image=8, batch_size=400, seed=0)
    bpd = evaluate(trainer.averaged, digits[:100], bound).bpd.mean()
    assert bpd == pytest.approx(trainer.records[-1].bpd, rel=0.1)  # with statistics of 0 and 1 it is far above


def test_a_stopped_step_of_a_network_with_running_statistics_leaves_no_trace(
    digits: np.ndarray, tmp_path: Path
) -> None:
    settings = SETTINGS | {"steps": 4, "accumulation": 4}
    whole = fit(normed_model(), digits[:50], **settings)
    trainer = start(normed_model(), digits[:50], **settings)
    trainer.step()
    answer = iter([False, False, True])
    assert trainer.step(lambda: next(answer)) is None
    save_state(tmp_path / "state", trainer.state())
    again = start(normed_model(), digits[:50], **settings)
    again.load_state(load_state(tmp_path / "state"))
    while again.done < 4:
        again.step()
    assert same_bits(again.averaged.state_dict(), whole.averaged.state_dict())


@pytest.mark.parametrize("part", ["conv_out", "middle_1.norm_1"])
def test_a_diverged_run_is_neither_saved_nor_continued_after_the_next_line(
    part: str, tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    trainer = start(tiny_model(), digits[:64], **SETTINGS | {"log_every": 4})
    trainer.step()
    assert trainer.state()["done"] == 1
    torch.nn.init.constant_(trainer.model.network.get_submodule(part).weight, math.inf)  # type: ignore[arg-type]
    assert (trainer.step(), trainer.step()) == (None, None)
    with pytest.raises(TrainingDiverged, match=r"^step 3: the loss is nan bits/dim and the norm of its gradient nan"):
        trainer.state()
    with pytest.raises(TrainingDiverged, match=r"^step 4: the loss is nan"):
        trainer.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"accumulation": 4},
        {"accumulation": 2, "activation_checkpointing": True, "schedule": "learned_monotone"},
    ],
    ids=str,
)
def test_the_losses_do_not_depend_on_how_a_step_is_computed(
    settings: dict[str, Any], tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    settings = dict(settings)
    schedule, common = settings.pop("schedule", "learned_linear"), SETTINGS | {"steps": 6, "log_every": 3}
    plain, other = (fit(tiny_model(schedule=schedule), digits, **common | more).records for more in ({}, settings))
    for record, expected in zip(other, plain, strict=True):
        # Rounding errors, amplified by 6 steps of training.  Another batch would differ in the second digit.
        figures, wanted = ([value for value in line[:-1] if value is not None] for line in (record, expected))
        assert figures == pytest.approx(wanted, rel=2e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler reads it
@pytest.mark.processes
@pytest.mark.parametrize("choice", [True, "graphs"])
def test_a_compiled_step_in_bfloat16_follows_the_eager_float32_loss(
    choice: Compile, tiny_model: Callable[..., VDM], digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does the validation, which calls the compiled network of averaged weights."""
    from torch._dynamo import reset
    from torch._dynamo.utils import counters  # loads the compiler, which takes every pytest process a second

    reset()
    settings = SETTINGS | {"steps": 3, "log_every": 1}
    # The graphs of the loss and of its gradient run without inductor's code, which takes 20 s to compile.
    compile_fast = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda function, *, dynamic, mode=None: compile_fast(function))
    counters.clear()
    changes = {"compile": choice, "precision": "bfloat16", "accumulation": 2}
    options: dict[str, Any] = {"every_steps": 3, "times_per_image": 2, "batch_size": 8, "seed": 0}
    eager, compiled = (
        Trainer(
            tiny_model(),
            torch.from_numpy(digits),
            TrainingSettings(**settings | more),
            Validation(digits[:4], **options, keep="last", patience=None, precision=precision),
        )
        for more, precision in (({}, "float32"), (changes, "bfloat16"))
    )
    for step in range(3):
        expected, record = eager.step(), compiled.step()
        assert expected is not None
        assert record is not None
        assert record.bpd == pytest.approx(expected.bpd, rel=0.02)  # bfloat16 has 8 bits of mantissa
        assert counters["stats"]["unique_graphs"] == 1 + (step == 2)  # what is not compiled would follow the loss, too
    assert record.validation_bpd == pytest.approx(expected.validation_bpd, rel=0.02)
    assert record.validation_bpd != expected.validation_bpd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compile": "none"}, "compile must be one of True, False, 'graphs', got 'none'"),
        ({"compile": None}, "compile must be one of"),
        ({"precision": "float16"}, "precision must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"optimizer": "adam"}, "optimizer must be one of 'adamw', 'muon'"),
        ({"learning_rate_decay": None}, "learning_rate_decay must be one of 'none', 'linear', 'cosine'"),
        ({"activation_checkpointing": "no"}, "activation_checkpointing must be one of True, False"),
        ({"augmentation": "flip"}, "augmentation must be a list of 'flip', 'rotate', 'swap_channels', got 'flip'"),
        ({"augmentation": ["flop"]}, "augmentation must be a list of"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"batch_size": 1e3}, "batch_size must be a whole number of at least 1, got 1000.0"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number of at least 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0 and finite"),
        ({"betas": [0.9]}, "betas must be two numbers of at least 0 and below 1"),
        ({"betas": [0.9, 1.0]}, "betas must be two numbers"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0 and finite"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm must be above 0, or None"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1"),
        ({"class_dropout": 1.1}, "class_dropout must be between 0 and 1"),
    ],
    ids=str,
)
def test_a_setting_that_training_cannot_take_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        TrainingSettings(**change)


def test_the_settings_that_a_script_leaves_out_are_those_of_the_digits() -> None:
    preset = read_params(ROOT / "presets/digits.yaml").train
    of_preset = asdict(resolve(preset, torch.device("cpu")))
    of_preset |= {name: tuple(of_preset[name]) for name in ("augmentation", "betas")}
    assert asdict(TrainingSettings()) == of_preset
    assert TrainingSettings(steps=np.int64(5)).steps == 5


def test_a_batch_that_cannot_be_split_is_refused(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    with pytest.raises(ValueError, match="batch_size 16 is not a multiple of 1 processes x accumulation 3"):
        start(tiny_model(), digits, **SETTINGS | {"accumulation": 3})


def test_the_model_gets_the_augmentation_flag(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """The weights of the flag change, since upright and turned images differ."""
    model = tiny_model(augmentation_input=True)
    before = model.network.condition_1.weight[:, -1].clone()
    fit(model, digits[:64], **SETTINGS | {"steps": 5, "augmentation": ["flip", "rotate"]})
    # Weight decay would shrink them by a share of 5 x 1e-3 x 0.01.
    assert ((model.network.condition_1.weight[:, -1] - before).abs() > 1e-3 * before.abs()).all()
    with pytest.raises(ValueError, match="swap_channels needs more than one channel"):
        start(model, digits, **SETTINGS | {"augmentation": ["swap_channels"]})


def test_steps_and_seeds_have_their_own_noise_and_processes_their_own_dropout(
    tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    trainer, other = (start(tiny_model(), digits[:64], **SETTINGS | {"seed": seed}) for seed in (0, 1))
    first, again, of_dropout = trainer.draw(), trainer.draw(), [torch.initial_seed()]
    assert torch.equal(first.eps, again.eps)
    trainer.done = 1
    second = trainer.draw()
    of_dropout.append(torch.initial_seed())
    trainer.processes, trainer.rank = 2, 1
    assert torch.equal(trainer.draw().eps, second.eps)  # the batch is the same in all processes
    of_dropout.append(torch.initial_seed())
    for batch in (second, other.draw()):
        for field in ("pixels", "t", "eps"):
            assert not torch.equal(getattr(first, field), getattr(batch, field)), field
    assert len(set(of_dropout)) == 3
    generator = torch.Generator().manual_seed(of_dropout[0])
    torch.rand((), generator=generator)
    assert not torch.equal(torch.randn(first.eps.shape, generator=generator), first.eps)


def test_a_line_of_the_log_has_every_mean_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.0, 15.0, 17.0, 18.0])
    monkeypatch.setattr(training_log, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    log = TrainingLog("cpu")
    log.add(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    log.add(torch.tensor([3.0, 4.0, 6.0, 10.0]))
    line = log.line(2, ends=(-7.0, 5.0), learning_rate=0.1, batch_size=16, validation=(2.5, 0.5))
    assert line == (2, 10.0, 2.0, 3.0, 5.0, -7.0, 5.0, 9.0, 0.1, 2.5, 0.5, 8.0)
    log.add(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    line = log.line(3, ends=(-6.0, 4.0), learning_rate=0.2, batch_size=16, validation=None)
    assert line == (3, 18.0, 5.0, 6.0, 7.0, -6.0, 4.0, 8.0, 0.2, None, None, 8.0)


def test_a_line_has_the_losses_of_its_step_in_bits_and_the_schedules_ends(
    tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    trainer = start(tiny_model(), digits[:64], **SETTINGS | {"log_every": 1})
    batch = trainer.draw()
    terms = trainer.model(batch.pixels, batch.eps, batch.t)
    line = trainer.step()
    assert line is not None
    losses = (line.prior_bpd, line.reconstruction_bpd, line.diffusion_bpd)
    assert losses == pytest.approx([bits_per_dim(term.mean(), 64).item() for term in terms])
    schedule = trainer.model.schedule
    assert (line.gamma_0, line.gamma_1) == (schedule.gamma_0.item(), schedule.gamma_1.item())


def test_the_optimizer_gets_clipped_gradients_and_the_rate_of_the_step(
    tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    changes = {
        "steps": 4,
        "warmup_steps": 2,
        "learning_rate_decay": "linear",
        "max_gradient_norm": 0.01,
        "log_every": 1,
    }
    trainer, rates, norms = start(tiny_model(), digits[:64], **SETTINGS | changes), list[float](), list[float]()

    groups = [{"lr": 0.0}]

    def step() -> None:
        rates.append(groups[0]["lr"])
        norms.append(torch.cat([p.grad.flatten() for p in trainer.on_bound if p.grad is not None]).norm().item())

    trainer.optimizers = [SimpleNamespace(step=step, param_groups=groups)]  # type: ignore[list-item]
    for _ in range(4):
        trainer.step()
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)  # without a limit they are far above it
    assert [record.learning_rate for record in trainer.records] == pytest.approx(rates)


def test_the_gradient_of_the_shape_is_not_clipped_with_that_of_the_bound(
    tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    model = tiny_model(schedule="learned_monotone")
    trainer = start(model, digits[:64], **SETTINGS)
    of_shape = set(map(id, model.schedule.shape_parameters()))
    assert set(map(id, trainer.on_bound)) == set(map(id, model.parameters())) - of_shape
