"""martenlienen/bsi, its VDM: trained as config/task/vdm.yaml says, in float32, or by autocast in bfloat16.

Its warm-up, and the steps before it averages, are 1,000 steps: a training of minutes would not get beyond them, so both
are 100 here.  On a CPU it is not compiled, which made ours slower there.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import Model, Peer, importable

WARM_UP = 100
EVALUATED = 32
"""Images that are evaluated at a time."""


class Bsi(Peer):
    repository = "martenlienen/bsi"
    mark = "bsi/models/vdm_unet.py"
    needs = ("einops", "jaxtyping")
    learning_rates = (3e-4, 1e-3)
    batch_size = 128

    def build(self, checkout: Path, model: Model, batch_size: int) -> None:
        importable(checkout)
        from bsi.bsi import Discretization  # type: ignore[import-not-found]
        from bsi.models.pos_emb import NyquistPositionalEmbedding  # type: ignore[import-not-found]
        from bsi.models.vdm_unet import DenoisingVDMUNet  # type: ignore[import-not-found]
        from bsi.nn import FourierFeatures  # type: ignore[import-not-found]
        from bsi.tasks.ema_pytorch import EMA  # type: ignore[import-not-found]
        from bsi.vdm import VDM  # type: ignore[import-not-found]

        self.shape = tuple(model["image_shape"])
        self.network = DenoisingVDMUNet(
            self.shape,
            pos_emb=NyquistPositionalEmbedding(size=32, expected_rate=100),
            actfn="silu",
            dim=model["width"],
            levels=model["blocks"],
            pos_emb_mult=4,
            dropout=model["dropout"] or None,
            downsampling_attention=model["attention_everywhere"],
            fourier_features=FourierFeatures(n_min=6, n_max=8),
        ).to(self.device)
        update = {"update_after_step": WARM_UP, "update_every": 1, "power": 2 / 3}
        self.ema = EMA(self.network, beta=0.9999, include_online_model=False, use_foreach=True, **update)

        def bound(network: Any) -> Any:
            settings = {"snr_min": 6.73794699909e-3, "snr_max": 597195.613793, "k": 50}
            levels = Discretization.image_8bit()
            return VDM(network, data_shape=self.shape, discretization=levels, **settings).to(self.device)

        self.vdm, self.averaged = bound(self.network), bound(self.ema)
        self.train_loss = torch.compile(self.vdm.train_loss) if self.device.type == "cuda" else self.vdm.train_loss
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), self.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
        )

    def scaled(self, pixels: Tensor) -> Tensor:
        """Return images in [-1, 1], as its data set gives them."""
        return pixels.to(self.device).float() * (2 / 255) - 1

    def factor(self, share: float) -> float:
        return min(1.0, self.done / WARM_UP)

    def loss(self, pixels: Tensor) -> Tensor:
        return self.train_loss(self.scaled(pixels)).mean()  # type: ignore[no-any-return]

    def average(self) -> None:
        self.ema.update()

    @torch.no_grad()
    def evaluate(self, pixels: Tensor) -> None:
        self.network.eval()
        with self.autocast():
            _, bpd, _ = self.vdm.elbo(self.scaled(pixels), 1, 1)
        bpd.mean().item()

    @torch.no_grad()
    def sample(self, count: int, num_timesteps: int) -> None:
        self.network.eval()
        with self.autocast():
            self.vdm.sample(count, t=torch.linspace(1.0, 0.0, num_timesteps + 1, device=self.device))

    @torch.no_grad()
    def save(self, folder: Path, images: np.ndarray, times_per_image: int) -> None:
        folder.mkdir()
        self.network.eval()
        self.ema.ema_model.eval()
        for name, vdm in {"averaged": self.averaged, "last": self.vdm}.items():
            generator = torch.Generator(self.device).manual_seed(0)
            found = [
                vdm.elbo(self.scaled(part), times_per_image, times_per_image, generator)[1].cpu().numpy()
                for part in torch.from_numpy(images).split(EVALUATED)
            ]
            np.save(folder / f"{name}.npy", np.concatenate(found))
        self.network.train()


PEER = Bsi
