"""The variational diffusion model: a noise schedule, a noise predictor, and the bound that they give."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vdm.choices import MOST_LEVELS, ScheduleKind
from vdm.discretization import pixels_to_x, require_levels
from vdm.grids import Grid
from vdm.network import NoisePredictor, OwnNetwork
from vdm.schedule import LinearSchedule, MonotoneSchedule
from vdm.vlb import (
    PredictNoise,
    Terms,
    diffusion_loss,
    finite_diffusion_loss,
    own_variance_loss,
    prior_loss,
    reconstruction_loss,
)


def build_schedule(kind: ScheduleKind, gamma_0: float, gamma_1: float) -> LinearSchedule:
    """Return a noise schedule between the (initial) end points gamma_0 < gamma_1.  Raises ValueError."""
    match kind:
        case "fixed_linear":
            return LinearSchedule(gamma_0, gamma_1, learned=False)
        case "learned_linear":
            return LinearSchedule(gamma_0, gamma_1, learned=True)
        case "learned_monotone":
            return MonotoneSchedule(gamma_0, gamma_1)


def count_parameters(**arguments: Any) -> int:
    """Return the number of weights of a `VDM` with these arguments, without memory for them.  Raises ValueError."""
    with torch.device("meta"):
        return sum(p.numel() for p in VDM(**arguments).parameters())


def images_per_batch(batch_size: int, evaluations_per_image: int) -> int:
    """Return the number of images, at least one, in a batch of `batch_size` network evaluations."""
    return max(1, batch_size // evaluations_per_image)


class VDM(nn.Module):
    """A VDM over images of `image_shape` (C,H,W) with pixel levels 0..num_levels-1.

    The arguments are the configuration of a model on disk; `of_network` are those of `NoisePredictor`.  `gamma_0` and
    `gamma_1` also scale its time embedding.

    `network` takes its place: any module f(z_t, gamma_t) -> eps_hat of the shape of z_t (B,C,H,W), with gamma_t (B,).
    With `classes` it is f(z_t, gamma_t, class), where class (B,) is 0..classes-1, or `classes` for "no class".  Fourier
    features and conditioning are its own.  Raises ValueError, and TypeError for other arguments of a network.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int],
        num_levels: int,
        schedule: ScheduleKind,
        gamma_0: float,
        gamma_1: float,
        classes: int | None = None,
        network: nn.Module | None = None,
        **of_network: Any,
    ) -> None:
        super().__init__()
        if len(image_shape) != 3 or min(image_shape) < 1 or num_levels not in range(2, MOST_LEVELS + 1):
            raise ValueError(f"images cannot have shape {image_shape} and {num_levels} levels")
        self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        self.num_levels = num_levels
        self.classes = classes
        self.schedule = build_schedule(schedule, gamma_0, gamma_1)
        self.network: NoisePredictor | OwnNetwork
        if network is not None:
            if of_network:
                raise TypeError(f"{', '.join(of_network)} are arguments of the network that `network` replaces")
            self.network = OwnNetwork(network, classes)
            return
        self.network = NoisePredictor(
            channels=self.image_shape[0], gamma_min=gamma_0, gamma_max=gamma_1, classes=classes, **of_network
        )
        groups = of_network["norm_groups"]
        if groups == self.network.width * math.prod(self.image_shape[1:]):
            raise ValueError(f"norm_groups {groups} normalises single numbers of images of 1x1 pixel; lower it")

    @property
    def num_dims(self) -> int:
        """Dimensions of one image, C H W."""
        return math.prod(self.image_shape)

    def store_channels_last(self) -> None:
        """On CUDA, store weights in the layout of tensor cores, which suits a compiled network alone.

        Torch's own group norms copy from that layout and back.  On CPUs it made convolutions half as fast.
        """
        if next(self.parameters()).is_cuda:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compile_network(self) -> None:
        """Compile the network for evaluation and sampling, anew for each size of a batch."""
        self.store_channels_last()
        self.network.compile(dynamic=False)

    def require_images(self, pixels: np.ndarray) -> None:
        """Raise TypeError unless the pixels (N,C,H,W) are integers, and ValueError unless they are images of the model.

        They are if their shape is `image_shape` and their levels are 0..num_levels-1.
        """
        if pixels.shape[1:] != self.image_shape:
            raise ValueError(f"images of the model are {self.image_shape}, got {pixels.shape[1:]}")
        require_levels(pixels, self.num_levels)

    def require_evaluation_mode(self) -> None:
        """Raise ValueError if dropout is active: in training mode, until `eval` is called."""
        if any(isinstance(module, nn.Dropout) and module.p and module.training for module in self.modules()):
            raise ValueError("the model is in training mode, with dropout; call its method eval() first")

    def given(self, classes: Tensor | np.ndarray | Sequence[int] | None, guidance: float = 1.0) -> PredictNoise:
        """Return the noise predictor of images of these classes (B,); None stands for p(x), without a class.

        Guidance w gives eps_hat(no class) + w (eps_hat(class) - eps_hat(no class)): 1 is p(x | c), more exaggerates
        what distinguishes the class (Ho and Salimans 2022, arXiv 2207.12598, eq. 6, where w is called 1 + w).
        """
        if classes is None:
            return self.network
        given = partial(self.network, classes=torch.as_tensor(classes, device=self.schedule.gamma_0.device))
        if guidance == 1:
            return given
        return lambda z_t, gamma_t: torch.lerp(self.network(z_t, gamma_t), given(z_t, gamma_t), guidance)

    def forward(
        self, pixels: Tensor, eps: Tensor, t: Tensor, classes: Tensor | None = None, *, grid: Grid | None = None
    ) -> Terms:
        """Return one draw of the bound's terms, each (B,) nats per image (eq. 11).

        pixels (B,C,H,W) of an integer type; eps (B,C,H,W) standard normal; t (B,) in [0, 1).  With a `grid`
        they are those of the step in which t falls; None stands for continuous time.  With classes (B,) they are the
        terms of p(x | c).  Raises TypeError for other pixels.
        """
        predict_noise = self.given(classes)
        if grid is None:
            return self.terms(pixels, eps, *self.schedule.gamma_and_slope(t), predict_noise)
        x = pixels_to_x(pixels, self.num_levels, eps.dtype)
        (gamma_s, gamma_t), variance = grid.steps_at(self.schedule, t), grid.variance_at(t)
        if variance is None:
            diffusion = finite_diffusion_loss(x, eps, gamma_s, gamma_t, grid.num_timesteps, predict_noise)
        else:
            diffusion = own_variance_loss(x, eps, gamma_s, gamma_t, variance, grid.num_timesteps, predict_noise)
        return Terms(prior_loss(x, self.schedule.gamma_1), self.reconstruction_loss(pixels), diffusion)

    def terms(
        self, pixels: Tensor, eps: Tensor, gamma_t: Tensor, dgamma_dt: Tensor, predict_noise: PredictNoise | None = None
    ) -> Terms:
        """Return the terms in continuous time, (B,) nats each, at gamma_t with slope dgamma_dt (B,) (eq. 11, 17).

        `predict_noise` replaces the network, for example by a compiled one.
        """
        x = pixels_to_x(pixels, self.num_levels, eps.dtype)
        diffusion = diffusion_loss(x, eps, gamma_t, dgamma_dt, predict_noise or self.network)
        return Terms(prior_loss(x, self.schedule.gamma_1), self.reconstruction_loss(pixels), diffusion)

    def reconstruction_loss(self, pixels: Tensor) -> Tensor:
        """Return the exact reconstruction term, (B,) nats (eq. 11)."""
        return reconstruction_loss(pixels, self.schedule.gamma_0, self.num_levels)
