"""addtt/variational-diffusion-models: VDM in PyTorch, trained as its train.py does, in float32."""

import json
from contextlib import redirect_stderr
from dataclasses import asdict
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import Model, Peer, importable
from flows.exchange.importing import import_checkpoint


class Addtt(Peer):
    repository = "addtt/variational-diffusion-models"
    mark = "vdm_unet.py"
    needs = ("accelerate", "ema_pytorch", "torchinfo", "yaml")
    learning_rates = (2e-4, 1e-3)
    batch_size = 128

    def build(self, checkout: Path, model: Model, batch_size: int) -> None:
        importable(checkout)
        from ema_pytorch import EMA  # type: ignore[import-not-found]
        from utils import TrainConfig  # type: ignore[import-not-found]
        from vdm_unet import UNetVDM  # type: ignore[import-not-found]

        config = TrainConfig(
            embedding_dim=model["width"],
            n_blocks=model["blocks"],
            n_attention_heads=1,
            dropout_prob=model["dropout"],
            norm_groups=model["norm_groups"],
            input_channels=model["image_shape"][0],
            use_fourier_features=True,
            attention_everywhere=model["attention_everywhere"],
            batch_size=batch_size,
            noise_schedule="learned_linear",
            gamma_min=model["gamma_0"],
            gamma_max=model["gamma_1"],
            antithetic_time_sampling=True,
            lr=self.learning_rate,
            weight_decay=0.01,
            clip_grad_norm=True,
        )
        # Its module is called vdm, as our package is.
        spec = spec_from_file_location("peer_vdm", checkout / "vdm.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        self.network = module.VDM(UNetVDM(config), config, image_shape=model["image_shape"]).to(self.device)
        self.ema = EMA(self.network, beta=0.9999, update_every=1, power=0.75)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )

    def loss(self, pixels: Tensor) -> Tensor:
        loss, _ = self.network(pixels.float() / 255)  # as its data loader does; it supports 256 levels only
        return loss  # type: ignore[no-any-return]

    def average(self) -> None:
        self.ema.update()

    @torch.no_grad()
    def evaluate(self, pixels: Tensor) -> None:
        with self.autocast():
            _, metrics = self.network.eval()(pixels.float() / 255)
        metrics["bpd"].item()

    def sample(self, count: int, num_timesteps: int) -> None:
        with redirect_stderr(StringIO()), self.autocast():  # its progress bar
            self.network.eval().sample(count, num_timesteps, clip_samples=True)  # type: ignore[operator]

    def save(self, folder: Path, images: np.ndarray, times_per_image: int) -> None:
        folder.mkdir()
        file, size = folder / "model.pt", (images.shape[2], images.shape[3])
        torch.save({"model": self.network.state_dict(), "ema": self.ema.state_dict()}, file)
        (folder / "config.yaml").write_text(json.dumps(asdict(self.network.cfg)))  # type: ignore[call-overload]
        for name, averaged in {"averaged": True, "last": False}.items():
            import_checkpoint(file, "addtt", out=folder / name, averaged=averaged, image_size=size, num_levels=256)


PEER = Addtt
