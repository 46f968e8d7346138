"""Ancestral sampling (section 3.3, appendix A.4): from z_1 ~ N(0, I) down to z_0, then to pixels."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vdm.diffusion import reverse_step
from vdm.discretization import nearest_pixels
from vdm.model import VDM


def memory_needed(model: VDM, num_images: int, num_timesteps: int) -> int:
    """Return a lower bound of the bytes that `sample` takes: images, their noise, one block, and the schedule."""
    num_pixels = model.image_shape[1] * model.image_shape[2]
    features = sum(parameter.numel() for parameter in model.schedule.parameters())
    images = num_images * (12 * model.num_dims + 16 * model.network.width * num_pixels)
    return images + 4 * features * num_timesteps


@torch.inference_mode()
def sample(
    model: VDM,
    num_images: int,
    *,
    num_timesteps: int,
    clip: bool,
    generator: torch.Generator,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """Draw `num_images` images in `num_timesteps` steps: (num_images,C,H,W) integer pixels on the model's device.

    Noise comes from `generator`, on the generator's device.  `clip` limits every x_hat to [-1, 1].  The last step takes
    the mode of p(x | z_0) instead of a draw; at the usual gamma_0 they differ by less than one level.
    """
    device = next(model.parameters()).device

    def noise() -> Tensor:
        shape = (num_images, *model.image_shape)
        return torch.randn(shape, generator=generator, device=generator.device).to(device)

    # Integers divided once: s of a step is exactly t of the next.
    times = torch.arange(num_timesteps, -1, -1, device=device) / num_timesteps
    gammas = model.schedule(times)
    z = noise()
    for i in progress(range(num_timesteps)):
        gamma_t, gamma_s = gammas[i].expand(num_images), gammas[i + 1].expand(num_images)
        z = reverse_step(z, model.network(z, gamma_t), noise(), gamma_s, gamma_t, clip=clip)
    return nearest_pixels(z, model.schedule.gamma_0, model.num_levels)
