"""huggingface/diffusers: UNet2DModel with as many parameters as ours, trained as train_unconditional.py does.

The script descends on the mean squared error of the noise at evenly drawn noise levels.  So it does here, at levels
that are even in gamma, where this error is the bound's: diffusers has no bound, so it is evaluated by ours.  The
warm-up is 100 steps instead of 500, which are too many for minutes, and the cosine falls with the minutes.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers import Model, Peer
from vdm.diffusion import diffuse
from vdm.discretization import pixels_to_x
from vdm.evaluation import BoundSettings, evaluate
from vdm.model import VDM, count_parameters

WARM_UP = 100
LEVELS = 1000
"""The number of noise levels that its time embedding is made for."""


class OfGamma(nn.Module):
    """Its network as a function of gamma_t, which it is told as a time step from 0 to 1,000."""

    def __init__(self, unet: nn.Module, gamma_0: float, gamma_1: float) -> None:
        super().__init__()
        self.unet, self.gamma_0, self.gamma_1 = unet, gamma_0, gamma_1

    def forward(self, z_t: Tensor, gamma_t: Tensor) -> Tensor:
        times = (gamma_t - self.gamma_0) / (self.gamma_1 - self.gamma_0)
        return self.unet(z_t, times * LEVELS).sample  # type: ignore[no-any-return]


class Diffusers(Peer):
    repository = "huggingface/diffusers"
    needs = ("diffusers",)
    learning_rates = (1e-4, 1e-3)
    batch_size = 16

    def build(self, checkout: Path | None, model: Model, batch_size: int) -> None:
        from diffusers.training_utils import EMAModel  # type: ignore[import-not-found]

        ends = {key: model[key] for key in ("gamma_0", "gamma_1")}
        self.unet = unet_of_size(model, count_parameters(**model)).to(self.device)
        shape, levels = model["image_shape"], model["num_levels"]
        of_gamma = OfGamma(self.unet, **ends)
        self.vdm = VDM(image_shape=shape, num_levels=levels, schedule="fixed_linear", network=of_gamma, **ends)
        self.network = self.vdm.to(self.device)
        self.ema = EMAModel(self.unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), self.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )

    def factor(self, share: float) -> float:
        return min(self.done / WARM_UP, 0.5 * (1 + math.cos(math.pi * share)))

    def loss(self, pixels: Tensor) -> Tensor:
        x = pixels_to_x(pixels, self.vdm.num_levels)
        gamma_t, eps = self.vdm.schedule(torch.rand(len(x), device=x.device)), torch.randn_like(x)
        return nn.functional.mse_loss(self.vdm.network(diffuse(x, gamma_t, eps), gamma_t), eps)

    def average(self) -> None:
        self.ema.step(self.unet.parameters())

    def bound(self, images: np.ndarray, times_per_image: int, batch_size: int) -> np.ndarray:
        """Return the bits/dim of each image."""
        self.vdm.eval()
        sizes = {"times_per_image": times_per_image, "batch_size": batch_size}
        settings = BoundSettings(seed=0, precision=self.precision, **sizes)
        return evaluate(self.vdm, images, settings).bpd

    def evaluate(self, pixels: Tensor) -> None:
        self.bound(pixels.cpu().numpy(), 1, len(pixels))

    @torch.no_grad()
    def sample(self, count: int, num_timesteps: int) -> None:
        from diffusers import DDPMScheduler

        self.vdm.eval()
        scheduler = DDPMScheduler(num_train_timesteps=LEVELS)
        scheduler.set_timesteps(num_timesteps)
        images = torch.randn(count, *self.vdm.image_shape, device=self.device)
        for t in scheduler.timesteps:
            with self.autocast():
                eps_hat = self.unet(images, t).sample
            images = scheduler.step(eps_hat, t, images).prev_sample

    def save(self, folder: Path, images: np.ndarray, times_per_image: int) -> None:
        folder.mkdir()
        np.save(folder / "last.npy", self.bound(images, times_per_image, 512))
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        np.save(folder / "averaged.npy", self.bound(images, times_per_image, 512))
        self.ema.restore(self.unet.parameters())
        self.vdm.train()


def unet_of_size(model: Model, num_parameters: int) -> nn.Module:
    """Return its network over two resolutions, attention at the lower one, with the number of parameters nearest."""
    from diffusers import UNet2DModel

    def unet(width: int) -> nn.Module:
        return UNet2DModel(  # type: ignore[no-any-return]
            sample_size=tuple(model["image_shape"][1:]),
            in_channels=model["image_shape"][0],
            out_channels=model["image_shape"][0],
            layers_per_block=1,
            block_out_channels=(width, 2 * width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=width // 2,
            attention_head_dim=None,
            dropout=model["dropout"],
        )

    def distance(width: int) -> int:
        with torch.device("meta"):
            return abs(sum(p.numel() for p in unet(width).parameters()) - num_parameters)

    return unet(min(range(4, 2 * model["width"] + 2, 2), key=distance))


PEER = Diffusers
