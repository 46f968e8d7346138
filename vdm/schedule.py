"""The noise schedule (section 3.2): everything about the noise follows from one quantity, gamma(t).

    gamma(t) = -log SNR(t), increasing in t        t = 0 is clean, t = 1 is noise
    sigma^2  = sigmoid(gamma)                      alpha^2 = 1 - sigma^2 = sigmoid(-gamma)
    SNR      = alpha^2 / sigma^2 = exp(-gamma)

In continuous time the bound depends on gamma through its end points gamma_0 = gamma(0) and
gamma_1 = gamma(1) alone (section 5.1); the shape between them only moves the variance of its estimate.
"""

import torch
from torch import Tensor, nn


def alpha(gamma: Tensor) -> Tensor:
    """Signal standard deviation sqrt(sigmoid(-gamma)), same shape as gamma (section 3.2)."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Tensor) -> Tensor:
    """Noise standard deviation sqrt(sigmoid(gamma)), same shape as gamma (section 3.2)."""
    # sqrt(1 - alpha^2) would be 0.3% off in float32 at gamma = -13.3.
    return torch.sigmoid(gamma).sqrt()


def snr(gamma: Tensor) -> Tensor:
    """Signal-to-noise ratio exp(-gamma), same shape as gamma (eq. 2, section 3.2)."""
    return torch.exp(-gamma)


class LinearSchedule(nn.Module):
    """gamma(t) = gamma_0 + (gamma_1 - gamma_0) t, with fixed or learned end points (appendix H).

    gamma_1 must lie above gamma_0.  Learning cannot turn the schedule round, because what is learned is
    gamma_0 and a span that enters through its absolute value.
    """

    def __init__(self, gamma_0: float, gamma_1: float, *, learned: bool) -> None:
        super().__init__()
        if not gamma_0 < gamma_1:
            raise ValueError(f"gamma_0 must lie below gamma_1, got {gamma_0} and {gamma_1}")
        self.start = nn.Parameter(torch.tensor(float(gamma_0)), requires_grad=learned)
        self.span = nn.Parameter(torch.tensor(float(gamma_1) - float(gamma_0)), requires_grad=learned)

    @property
    def gamma_0(self) -> Tensor:
        """gamma(0), a scalar."""
        return self.start

    @property
    def gamma_1(self) -> Tensor:
        """gamma(1), a scalar."""
        return self.start + self.span.abs()

    def forward(self, t: Tensor) -> Tensor:
        """gamma at times t in [0, 1]; any shape in, the same shape out."""
        return self.start + self.span.abs() * t


def gamma_and_slope(schedule: nn.Module, t: Tensor) -> tuple[Tensor, Tensor]:
    """gamma(t) and gamma'(t) of the schedule in use, both (B,); differentiable in the schedule's parameters."""
    return torch.func.jvp(schedule, (t,), (torch.ones_like(t),))  # type: ignore[no-any-return]
