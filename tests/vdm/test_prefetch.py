"""Nothing waits: steps read no value back from the device, copy nothing to it, and find their data ready."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import SETTINGS, same_bits

from vdm import sampling
from vdm.evaluation import BoundSettings, image_terms
from vdm.model import VDM
from vdm.prefetch import prefetch
from vdm.sampling import Solver, trajectory
from vdm.training.settings import TrainingSettings
from vdm.training.trainer import Trainer

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero"}
MADE_ON_THE_HOST = {"tensor", "as_tensor", "from_numpy"}
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "lift_fresh",
}


class Calls(TorchFunctionMode):
    """Counts what Python asks of torch, also where on a CPU there is nothing to do, as in `cpu`."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.found[name] += name in READS | MADE_ON_THE_HOST
        return func(*args, **kwargs or {})


class Operations(TorchDispatchMode):
    """Counts what torch itself does, also inside its optimizers and the backward pass."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        name = func.overloadpacket.__name__
        devices = {each.device for each in (*args, result) if isinstance(each, torch.Tensor)}
        copied = name in ("_to_copy", "copy_") and len(devices) > 1
        self.found[name] += name in WAITS or copied
        return result


@contextmanager
def waits() -> Iterator[Counter[str]]:
    """Count what makes the host wait for the device, in this thread."""
    found: Counter[str] = Counter()
    with Calls(found), Operations(found):
        yield found


@pytest.fixture
def meta_model(tiny_model: Callable[..., VDM], monkeypatch: pytest.MonkeyPatch) -> VDM:
    """Return a model on the device "meta", which has no values to read: only what follows the last step fails."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know that device
    return tiny_model(schedule="learned_monotone").to("meta")


@pytest.mark.slow
@pytest.mark.parametrize("from_host", [False, True])
@pytest.mark.parametrize(("optimizer", "schedule"), [("adamw", "fixed_linear"), ("muon", "learned_monotone")])
def test_a_step_between_two_lines_of_the_log_waits_for_nothing(
    optimizer: str, schedule: str, from_host: bool, tiny_model: Callable[..., VDM], digits: np.ndarray
) -> None:
    changes = {"log_every": 3, "accumulation": 2, "augmentation": ["flip", "rotate"], "optimizer": optimizer}
    model = tiny_model(schedule=schedule, augmentation_input=True, dropout=0.1)
    settings = TrainingSettings(**SETTINGS | changes)
    trainer = Trainer(model, torch.from_numpy(digits), settings, from_host=from_host)
    trainer.step()
    with waits() as found:
        trainer.step()
    assert found.total() == 0, found
    with waits() as found:
        assert trainer.step() is not None
    assert found.total() > 0


def test_a_batch_of_an_evaluation_waits_for_nothing(meta_model: VDM, digits: np.ndarray) -> None:
    seen = list[int]()

    def watched(starts: range) -> Iterator[int]:
        for start in starts:
            yield start
            seen.append(found.total())

    settings = BoundSettings(times_per_image=2, batch_size=4, seed=0)
    with pytest.raises(RuntimeError, match="meta"), waits() as found:
        image_terms(meta_model, digits, range(9), settings, progress=watched)
    assert seen == [0] * 5
    assert found.total() > 0


@pytest.mark.parametrize(("order", "eta"), [(1, 1.0), (2, 0.0)])
def test_a_step_of_a_sampler_waits_for_nothing(
    order: int, eta: float, meta_model: VDM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "noise_levels", lambda *_: torch.zeros(6, device="meta"))  # read before the steps
    steps = trajectory(meta_model, range(3), Solver(5, order=order, eta=eta), seed=0)
    with waits() as found:
        assert len([*islice(steps, 5)]) == 5
        assert found.total() == 0, found
        with pytest.raises(RuntimeError, match="meta"):
            next(steps)
    assert found.total() > 0


def test_arrays_are_made_while_earlier_ones_are_used() -> None:
    made = [Event() for _ in range(9)]

    def make(key: int) -> list[np.ndarray]:
        made[key].set()
        return [np.array([key])]

    for key, (value,) in enumerate(prefetch(make, range(len(made)), torch.device("cpu"))):
        assert value.tolist() == [key]
        for later in made[key + 1 : key + 3]:
            assert later.wait(60)
        assert not any(event.is_set() for event in made[key + 3 :])


def test_batches_from_the_host_are_those_from_the_device(tiny_model: Callable[..., VDM], digits: np.ndarray) -> None:
    """Also after a restart; four steps make an epoch."""
    settings, images = TrainingSettings(**SETTINGS), torch.from_numpy(digits[:50])
    one, other = (Trainer(tiny_model(), images, settings, from_host=from_host) for from_host in (False, True))
    for _ in range(5):
        one.step()
        other.step()
    assert same_bits(one.model.state_dict(), other.model.state_dict())
    one.done = other.done = 2
    assert torch.equal(one.draw().pixels, other.draw().pixels)
