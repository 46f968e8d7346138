"""The noise schedule (section 3.2): everything about the noise follows from one quantity, gamma(t).

    gamma(t) = -log SNR(t), increasing in t        t = 0 is clean, t = 1 is noise
    sigma^2  = sigmoid(gamma)                      alpha^2 = 1 - sigma^2 = sigmoid(-gamma)
    SNR      = alpha^2 / sigma^2 = exp(-gamma)

In continuous time the bound depends only on the end points gamma_0 = gamma(0) and gamma_1 = gamma(1) of gamma (section
5.1).  The shape between them changes only the variance of the bound's estimate.
"""

import math

import torch
from torch import Tensor, nn


def alpha(gamma: Tensor) -> Tensor:
    """Return the factor of the signal, sqrt(sigmoid(-gamma)), same shape as gamma (section 3.2)."""
    return torch.sigmoid(-gamma).sqrt()


def sigma(gamma: Tensor) -> Tensor:
    """Return the standard deviation of the noise, sqrt(sigmoid(gamma)), same shape as gamma (section 3.2)."""
    # 1 - alpha^2 would be 0.3% off in float32 at gamma = -13.3.
    return torch.sigmoid(gamma).sqrt()


def snr(gamma: Tensor) -> Tensor:
    """Return the signal-to-noise ratio, exp(-gamma), same shape as gamma (eq. 2, section 3.2)."""
    return torch.exp(-gamma)


class LinearSchedule(nn.Module):
    """gamma(t) = gamma_0 + (gamma_1 - gamma_0) t, with fixed or learned end points (appendix H).

    The parameters are gamma_0 and a span.  Only the absolute value of the span is used, so no update can make the
    schedule decrease.  Raises ValueError unless gamma_0 < gamma_1 and both are finite.
    """

    def __init__(self, gamma_0: float, gamma_1: float, *, learned: bool) -> None:
        super().__init__()
        if not -math.inf < gamma_0 < gamma_1 < math.inf:
            raise ValueError(f"gamma_0 must lie below gamma_1, both finite, got {gamma_0} and {gamma_1}")
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

    def end_points(self) -> list[nn.Parameter]:
        """Return the parameters that are trained on the bound, an empty list if they are fixed."""
        return [p for p in (self.start, self.span) if p.requires_grad]

    def shape_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are trained on the variance of the bound's estimate; a straight line has none."""
        return []

    def straight(self) -> "LinearSchedule":
        """Return the straight line between the same end points."""
        line = LinearSchedule(0.0, 1.0, learned=False)
        line.start, line.span = self.start, self.span
        return line

    def shape(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the share of the way from gamma_0 to gamma_1 at t (B,), and its derivative, both (B,).

        The share increases, from 0 at t = 0 to 1 at t = 1.
        """
        return t, torch.ones_like(t)

    def gamma_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma(t) and its derivative gamma'(t), both (B,), at times t (B,) in [0, 1]."""
        share, slope = self.shape(t)
        span = self.span.abs()
        return self.start + span * share, span * slope

    def forward(self, t: Tensor) -> Tensor:
        """Return gamma at times t (B,) in [0, 1]: (B,)."""
        return self.gamma_and_slope(t)[0]


class MonotoneSchedule(LinearSchedule):
    """gamma_eta(t), a monotone network between learned end points (appendix H).

    Three layers of positive weights, the second through a sigmoid, on the input 2 t - 1, and a linear path in t:

        rise(t) = |a| t + mean_j 2 |c_j| (h_j(t) - h_j(0)),    h_j(t) = sigmoid(|b_j| (2 t - 1) + bias_j)
        shape(t) = rise(t) / rise(1)

    so that gamma(0) and gamma(1) are the learned end points for any weights.  |a| is at least 1e-6: without that limit
    weights that saturate or vanish would give 0/0.
    """

    NUM_FEATURES = 1024

    def __init__(self, gamma_0: float, gamma_1: float, *, num_features: int = NUM_FEATURES) -> None:
        super().__init__(gamma_0, gamma_1, learned=True)
        self.linear = nn.Parameter(torch.ones(()))
        self.inner = nn.Parameter(torch.randn(num_features))
        self.bias = nn.Parameter(torch.randn(num_features))
        self.outer = nn.Parameter(torch.randn(num_features).mul_(0.01))

    def shape_parameters(self) -> list[nn.Parameter]:
        return [p for p in (self.linear, self.inner, self.bias, self.outer) if p.requires_grad]

    def shape(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # With t and both ends in one evaluation, the share at 0 is exactly 0 and the share at 1 exactly 1.
        times = torch.cat([t, t.new_zeros(1), t.new_ones(1)])  # no copy from the CPU, which would wait for the device
        straight, inner, outer = self.linear.abs().clamp(min=1e-6), self.inner.abs(), 2 * self.outer.abs()
        hidden = torch.sigmoid(inner * (2 * times[:, None] - 1) + self.bias)
        rise = straight * times + (outer * (hidden - hidden[-2])).mean(dim=1)
        slope = straight + (2 * outer * inner * hidden * (1 - hidden)).mean(dim=1)
        return rise[:-2] / rise[-1], slope[:-2] / rise[-1]
