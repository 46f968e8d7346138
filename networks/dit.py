"""A small diffusion transformer (Peebles and Xie 2022, arXiv 2212.09748): patches attend to each other.

gamma_t scales and shifts every normalised layer (adaLN-Zero, section 3.2), and so does the class, if there are some.
"""

import math

import torch
from torch import Tensor, nn


class DiT(nn.Module):
    """eps_hat (B,C,H,W) of z_t (B,C,H,W) and gamma_t (B,), for images of `size` (H,W) that `patch` divides."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        patch: int = 2,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.patch, self.width, (height, wide) = patch, width, size
        self.embed = nn.Linear(3 * channels * patch**2, width)
        self.place = nn.Parameter(torch.randn(1, height * wide // patch**2, width) / math.sqrt(width))
        self.condition = nn.Sequential(nn.Linear(width, width), nn.SiLU())
        self.classes = nn.Embedding(classes + 1, width) if classes else None
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.out = nn.Linear(width, channels * patch**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z_t: Tensor, gamma_t: Tensor, classes: Tensor | None = None) -> Tensor:
        angles = gamma_t[:, None] * torch.linspace(0.1, 3, self.width // 2, device=z_t.device, dtype=gamma_t.dtype)
        condition = self.condition(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.classes is not None:
            condition = condition + self.classes(classes)
        periods = 2 * math.pi * 4 * z_t  # Fourier features, which fine details need
        h = self.embed(self.patches(torch.cat([z_t, periods.sin(), periods.cos()], dim=1))) + self.place
        for layer in self.layers:
            h = layer(h, condition)
        (_, channels, height, wide), side = z_t.shape, self.patch
        h = self.out(h).unflatten(1, (height // side, wide // side)).unflatten(3, (channels, side, side))
        return z_t + h.permute(0, 3, 1, 4, 2, 5).reshape(z_t.shape)

    def patches(self, x: Tensor) -> Tensor:
        """Return the patches (B,N,D) of x (B,C,H,W)."""
        return nn.functional.unfold(x, self.patch, stride=self.patch).mT


class Layer(nn.Module):
    """Attention and two linear layers, each normalised, scaled, shifted and gated by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(condition)[:, None].chunk(6, dim=2)
        x = self.norm(h) * (1 + scale) + shift
        h = h + gate * self.attention(x, x, x, need_weights=False)[0]
        return h + gate_2 * self.linear(self.norm(h) * (1 + scale_2) + shift_2)
