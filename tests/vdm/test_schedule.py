"""The noise schedule: identities, end points, and the slope that weights the bound."""

import math
from copy import deepcopy

import pytest
import torch

from vdm.schedule import LinearSchedule, MonotoneSchedule, alpha, sigma, snr

GAMMAS = torch.linspace(-13.3, 5.0, 50)


def bent_schedule(gamma_0: float = -13.3, gamma_1: float = 5.0) -> MonotoneSchedule:
    """Return a monotone schedule far from a straight line."""
    torch.manual_seed(1)
    schedule = MonotoneSchedule(gamma_0, gamma_1, num_features=64)
    torch.nn.init.normal_(schedule.outer, std=5.0)
    torch.nn.init.normal_(schedule.inner, std=3.0)
    return schedule


SCHEDULES = [LinearSchedule(-13.3, 5.0, learned=True), bent_schedule()]


def test_the_process_preserves_variance() -> None:
    torch.testing.assert_close(alpha(GAMMAS) ** 2 + sigma(GAMMAS) ** 2, torch.ones_like(GAMMAS))


def test_snr_is_the_ratio_of_variances() -> None:
    torch.testing.assert_close(alpha(GAMMAS) ** 2 / sigma(GAMMAS) ** 2, snr(GAMMAS), rtol=1e-5, atol=0)


def test_sigma_keeps_its_digits_where_alpha_is_nearly_one() -> None:
    gamma = torch.tensor(-13.3)
    exact = torch.sigmoid(gamma.double()).sqrt()
    assert abs(sigma(gamma).double() / exact - 1) < 1e-6
    # The obvious formula is off by 0.15% in sigma, 0.3% in its square.
    assert abs((1 - alpha(gamma) ** 2).sqrt().double() / exact - 1) > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("batch", [1, 2, 7, 64, 129])
def test_ends_are_met_to_the_bit(schedule: LinearSchedule, batch: int) -> None:
    t = torch.rand(batch)
    t[0], t[-1] = 0.0, 1.0
    gamma = schedule(t)
    assert gamma[-1] == schedule.gamma_1
    if batch > 1:
        assert gamma[0] == schedule.gamma_0


def test_a_monotone_schedule_never_decreases_for_any_weights() -> None:
    t = torch.linspace(0, 1, 1001)
    for seed in range(20):
        torch.manual_seed(seed)
        schedule = MonotoneSchedule(-7.0, 5.0, num_features=32)
        for parameter in schedule.parameters():
            torch.nn.init.normal_(parameter, std=10.0 ** torch.randint(-2, 3, ()).item())
        gamma = schedule(t)
        assert gamma.isfinite().all()
        assert (gamma.diff() >= 0).all()
        assert schedule.gamma_0 <= schedule.gamma_1


@pytest.mark.parametrize(
    ("linear", "inner", "bias", "outer"), [(0, 0, 0, 0), (0, 1, 0, 0), (1e-9, 1, 40, 3), (1, 1e6, -1e6, 1e6)]
)
def test_any_weights_leave_a_schedule(linear: float, inner: float, bias: float, outer: float) -> None:
    schedule = MonotoneSchedule(-7.0, 5.0, num_features=8)
    for name, value in {"linear": linear, "inner": inner, "bias": bias, "outer": outer}.items():
        torch.nn.init.constant_(getattr(schedule, name), value)
    gamma = schedule(torch.linspace(0, 1, 11))
    assert gamma.isfinite().all()
    assert (gamma.diff() >= 0).all()
    assert (gamma[0], gamma[-1]) == (schedule.gamma_0, schedule.gamma_1)


def test_no_update_makes_a_schedule_decrease() -> None:
    schedule = LinearSchedule(-1.0, 1.0, learned=True)
    with torch.no_grad():
        schedule.span.neg_()
    assert (schedule(torch.linspace(0, 1, 11)).diff() > 0).all()


@pytest.mark.parametrize("ends", [(5.0, -13.3), (5.0, 5.0), (-math.inf, 5.0), (-13.3, math.inf), (math.nan, 5.0)])
def test_ends_must_be_finite_and_in_order(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="gamma_0 must lie below gamma_1"):
        LinearSchedule(*ends, learned=False)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_slope_is_the_derivative(schedule: LinearSchedule) -> None:
    schedule = deepcopy(schedule).double()
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    _, slope = schedule.gamma_and_slope(t)
    step = 1e-5
    torch.testing.assert_close(slope, (schedule(t + step) - schedule(t - step)) / (2 * step), rtol=1e-6, atol=1e-6)


def test_the_slope_is_differentiable_in_the_schedule() -> None:
    schedule = bent_schedule().double()
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    # The function has the parameters as its arguments by reference: gradcheck changes them in place.
    assert torch.autograd.gradcheck(lambda *_: schedule.gamma_and_slope(t)[1], tuple(schedule.parameters()))
