"""The T steps of a model: where each ends, and the variance with which p(z_s | z_t) draws.

The paper's steps are even in t, and p(z_s | z_t) has the variance sigma_Q^2 of q(z_s | z_t, x) (section 4).  Any other
ends and any other variance u sigma_Q^2 give a bound, too.  With rho = expm1(gamma_t - gamma_s) (eps - eps_hat)^2 the
term of a dimension is

    KL(q(z_s | z_t, x) || N(mu_hat, u sigma_Q^2)) = 1/2 [ln u + (1 + rho)/u - 1]

which is 1/2 rho at u = 1 and least, on average, at u = 1 + E rho (Bao et al. 2022, arXiv 2201.06503).
`vdm.fitted_grids` finds ends and variances from the errors of a model.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vdm.schedule import LinearSchedule
from vdm.vlb import grid_times

LARGEST_VARIANCE = 2.0**60
"""The largest u.  No schedule of this code needs it: gamma_1 - gamma_0 would be 40."""


@dataclass(frozen=True, eq=False)
class Grid:
    """T steps from gamma_0 to gamma_1, even in t unless `shares` say where they end.

    `shares` (T+1,) are the ends of the steps as shares of the way from gamma_0 to gamma_1, rising from 0 to 1.
    `variances` are u of each step, (T,), or of each step and dimension, (T,C,H,W); None is 1, the paper's.  Step 1 ends
    at gamma_0.

    Raises ValueError unless both have the right length, the shares rise from 0 to 1, and every u is in
    [1, `LARGEST_VARIANCE`].
    """

    num_timesteps: int
    shares: np.ndarray | None = None
    variances: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.num_timesteps < 1:
            raise ValueError(f"a grid has at least one step, got {self.num_timesteps}")
        if self.shares is not None:
            require_shares(self.shares, self.num_timesteps)
        if self.variances is not None:
            require_variances(self.variances, self.num_timesteps)

    def steps_at(self, schedule: LinearSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return gamma_s and gamma_t (B,) float64 of the steps in which uniform times t (B,) in [0, 1) fall."""
        if self.shares is None:
            # In float32 neighbouring times of many steps would lose the digits of their difference.
            t = grid_times(t.double(), self.num_timesteps)
            return schedule(t - 1 / self.num_timesteps), schedule(t)
        number, levels = self.numbers_at(t), self.between(schedule, torch.float64)
        return levels[number], levels[number + 1]

    def variance_at(self, t: Tensor) -> Tensor | None:
        """Return u of the steps in which uniform times t (B,) fall, (B,) or (B,C,H,W) float64; None for 1."""
        if self.variances is None:
            return None
        return torch.from_numpy(self.variances).to(t.device, torch.float64)[self.numbers_at(t)]

    def numbers_at(self, t: Tensor) -> Tensor:
        """Return the numbers, from 0, of the steps in which uniform times t (B,) in [0, 1) fall."""
        return torch.floor(t.double() * self.num_timesteps).long()

    def levels(self, schedule: LinearSchedule) -> Tensor:
        """Return gamma at the ends of the steps, (T+1,), rising from gamma_0 to gamma_1, with the schedule's dtype."""
        like = schedule.gamma_0
        if self.shares is None:
            times = torch.arange(self.num_timesteps + 1, device=like.device).to(like) / self.num_timesteps
            levels: Tensor = schedule(times)
            return levels
        return self.between(schedule, like.dtype)

    def between(self, schedule: LinearSchedule, dtype: torch.dtype) -> Tensor:
        """Return gamma at the `shares`, (T+1,)."""
        shares = torch.from_numpy(self.shares).to(schedule.gamma_0.device, dtype)
        gamma_0, gamma_1 = schedule.gamma_0.to(dtype), schedule.gamma_1.to(dtype)
        levels: Tensor = gamma_0 + (gamma_1 - gamma_0) * shares
        return levels


def even_in_gamma(num_timesteps: int) -> Grid:
    """Return the grid of steps that are even in gamma, as the samplers take it."""
    return Grid(num_timesteps, np.arange(num_timesteps + 1) / num_timesteps)


def require_shares(shares: np.ndarray, num_timesteps: int) -> None:
    """Raise ValueError unless they are (T+1,) and rise from 0 to 1."""
    if shares.shape != (num_timesteps + 1,):
        raise ValueError(f"a grid of {num_timesteps} steps has {num_timesteps + 1} ends, got {shares.shape}")
    # NaN compares as false.
    if not (shares[0] == 0 and shares[-1] == 1 and (np.diff(shares) > 0).all()):
        raise ValueError("the ends of a grid must rise from 0 to 1")


def require_variances(variances: np.ndarray, num_timesteps: int) -> None:
    """Raise ValueError unless they are (T,) or (T,C,H,W), in [1, `LARGEST_VARIANCE`]."""
    if variances.ndim not in (1, 4) or len(variances) != num_timesteps:
        raise ValueError(f"{num_timesteps} steps have as many variances, (T,) or (T,C,H,W), got {variances.shape}")
    if not ((variances >= 1) & (variances <= LARGEST_VARIANCE)).all():
        most = round(math.log2(LARGEST_VARIANCE))
        raise ValueError(f"variances must be 1 to 2^{most}, in units of that of q(z_s | z_t, x)")
