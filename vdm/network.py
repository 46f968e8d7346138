"""The noise predictor eps_hat(z_t, gamma_t) (section 3.4, appendix B): a U-Net that never changes resolution.

    z_t + Fourier features -> conv -> `blocks` residual blocks, their outputs kept -> block, attention, block
        -> `blocks` + 1 residual blocks, each also fed a kept output -> norm, conv -> + z_t

The last layer of every branch is initialised to zero, so that at first eps_hat = z_t.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention, silu

from vdm.choices import MOST_BLOCKS

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear, nn.Embedding)

LARGEST_EXPONENT = 64
FINEST_ANGLE = 8
"""The largest exponent with which sines of 2 pi 2^n z are taken as they are."""
SCORES_AT_ONCE = 5 * 2**18
"""Attention scores in bfloat16 that a CPU core can keep in its cache."""


class NoisePredictor(nn.Module):
    """Computes eps_hat (B,C,H,W) from z_t (B,C,H,W) and gamma_t (B,), for any number of channels and any image size.

    Each n of `fourier_exponents` adds sin and cos of 2 pi 2^n z to the input.  `gamma_min` and `gamma_max` scale the
    time embedding; they are constants even if the schedule's end points are learned.  `augmentation_input` adds one
    number per image to the conditioning: whether the image was augmented.  `classes` adds an embedding of the image's
    class to it: a row for each class 0..classes-1, and a last one for "no class".

    Raises ValueError unless `width` is even, at least 4 and a multiple of `norm_groups`, `blocks` is 1 to
    `MOST_BLOCKS`, the exponents are at most `LARGEST_EXPONENT` in size, `norm_eps` is above 0 and finite, and `dropout`
    is at least 0 and below 1, and `classes` is None or at least 2.
    """

    def __init__(
        self,
        *,
        channels: int,
        width: int,
        blocks: int,
        attention_everywhere: bool,
        fourier_exponents: Sequence[int],
        norm_groups: int,
        norm_eps: float,
        dropout: float,
        gamma_min: float,
        gamma_max: float,
        augmentation_input: bool,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        require_buildable(width, blocks, norm_groups, norm_eps, dropout, fourier_exponents)
        if classes is not None and classes < 2:
            raise ValueError(f"classes {classes} must be at least 2")
        self.width = width
        self.gamma_min = gamma_min
        self.gamma_max = gamma_max
        self.fourier_exponents = tuple(fourier_exponents)
        self.augmentation_input = augmentation_input
        self.classes = classes

        def block(inputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, width, 4 * width, norm_groups, norm_eps, dropout)

        def attention() -> AttentionBlock:
            return AttentionBlock(width, norm_groups, norm_eps)

        def attentions(count: int) -> nn.ModuleList:
            return nn.ModuleList(attention() if attention_everywhere else nn.Identity() for _ in range(count))

        self.condition_1 = nn.Linear(width + augmentation_input, 4 * width)
        self.condition_2 = nn.Linear(4 * width, 4 * width)
        self.conv_in = nn.Conv2d(channels * (1 + 2 * len(self.fourier_exponents)), width, 3, padding=1)
        self.down = nn.ModuleList(block(width) for _ in range(blocks))
        self.down_attention = attentions(blocks)
        self.middle_1 = block(width)
        self.middle_attention = attention()
        self.middle_2 = block(width)
        self.up = nn.ModuleList(block(2 * width) for _ in range(blocks + 1))
        self.up_attention = attentions(blocks + 1)
        self.norm_out = nn.GroupNorm(norm_groups, width, norm_eps)
        self.conv_out = set_to_zero(nn.Conv2d(width, channels, 3, padding=1))
        if classes is not None:
            self.class_embedding = set_to_zero(nn.Embedding(classes + 1, 4 * width))

    def forward(
        self, z_t: Tensor, gamma_t: Tensor, augmented: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """Return eps_hat (B,C,H,W).  gamma_t (B,); `augmented` (B,) is 0 or 1, by default 0 for all images.

        `classes` (B,) are integers, by default that of "no class", which is the one after the last class.
        """
        condition = self.condition(gamma_t, augmented, classes)
        h = self.conv_in(torch.cat([z_t, fourier_features(z_t, self.fourier_exponents)], dim=1))
        kept = [h]
        for block, attention in zip(self.down, self.down_attention, strict=True):
            h = attention(block(h, condition))
            kept.append(h)
        h = self.middle_2(self.middle_attention(self.middle_1(h, condition)), condition)
        for block, attention in zip(self.up, self.up_attention, strict=True):
            h = attention(block(torch.cat([h, kept.pop()], dim=1), condition))
        return z_t + self.conv_out(silu(self.norm_out(h)))  # type: ignore[no-any-return]

    def matrices_of_blocks(self) -> list[nn.Parameter]:
        """Return the weights of the blocks that are matrices or convolutions."""
        blocks = (block for block in self.modules() if isinstance(block, (ResidualBlock, AttentionBlock)))
        return [parameter for block in blocks for parameter in block.parameters() if parameter.ndim > 1]

    def condition(self, gamma_t: Tensor, augmented: Tensor | None, classes: Tensor | None = None) -> Tensor:
        """Return the conditioning vector (B, 4 width) that every residual block receives."""
        embedding = time_embedding(gamma_t, self.width, self.gamma_min, self.gamma_max)
        if self.augmentation_input:
            flag = torch.zeros_like(gamma_t) if augmented is None else augmented.to(gamma_t)
            embedding = torch.cat([embedding, flag[:, None]], dim=1)
        condition = self.condition_2(silu(self.condition_1(embedding)))
        if self.classes is not None:
            rows = torch.full_like(gamma_t, self.classes, dtype=torch.long) if classes is None else classes
            condition = condition + self.class_embedding(rows)
        return silu(condition)


def require_buildable(
    width: int, blocks: int, norm_groups: int, norm_eps: float, dropout: float, fourier_exponents: Sequence[int]
) -> None:
    """Raise ValueError unless a `NoisePredictor` with these arguments can be built and computes numbers."""
    if width < 4 or width % 2 or norm_groups < 1 or width % norm_groups:
        raise ValueError(f"width {width} must be even, at least 4 and a multiple of norm_groups {norm_groups}")
    if not 0 < blocks <= MOST_BLOCKS:
        raise ValueError(f"blocks {blocks} must be between 1 and {MOST_BLOCKS}")
    if any(abs(exponent) > LARGEST_EXPONENT for exponent in fourier_exponents):
        raise ValueError(f"an exponent of fourier_exponents is beyond {LARGEST_EXPONENT}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
    if not 0 < norm_eps < math.inf:
        raise ValueError(f"norm_eps must be above 0 and finite, got {norm_eps}")


class OwnNetwork(nn.Module):
    """A noise predictor that somebody else wrote, called as `NoisePredictor` is; see `vdm.model.VDM`.

    It is not told which images were augmented.
    """

    def __init__(self, network: nn.Module, classes: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.classes = classes

    def forward(
        self, z_t: Tensor, gamma_t: Tensor, augmented: Tensor | None = None, classes: Tensor | None = None
    ) -> Tensor:
        """Return eps_hat (B,C,H,W).  `classes` (B,) are by default "no class".  Raises ValueError for another shape."""
        if self.classes is None:
            eps_hat = self.network(z_t, gamma_t)
        else:
            none = torch.full_like(gamma_t, self.classes, dtype=torch.long)
            eps_hat = self.network(z_t, gamma_t, none if classes is None else classes)
        if getattr(eps_hat, "shape", None) != z_t.shape:
            found = tuple(eps_hat.shape) if isinstance(eps_hat, Tensor) else type(eps_hat).__name__
            raise ValueError(f"the network must return a tensor of the shape {tuple(z_t.shape)} of z_t, got {found}")
        return eps_hat  # type: ignore[no-any-return]

    def matrices_of_blocks(self) -> list[nn.Parameter]:
        """Return no weights: which are matrices of blocks is not known, so AdamW trains all."""
        return []


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + projected condition)))), (B,inputs,H,W) -> (B,width,H,W)."""

    def __init__(self, inputs: int, width: int, condition: int, norm_groups: int, norm_eps: float, dropout: float):
        super().__init__()
        self.norm_1 = nn.GroupNorm(norm_groups, inputs, norm_eps)
        self.conv_1 = nn.Conv2d(inputs, width, 3, padding=1)
        self.project = set_to_zero(nn.Linear(condition, width, bias=False))
        self.norm_2 = nn.GroupNorm(norm_groups, width, norm_eps)
        self.dropout = Dropout(dropout)
        self.conv_2 = set_to_zero(nn.Conv2d(width, width, 3, padding=1))
        self.shortcut = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv_1(silu(self.norm_1(x))) + self.project(condition)[:, :, None, None]
        return self.shortcut(x) + self.conv_2(self.dropout(silu(self.norm_2(h))))  # type: ignore[no-any-return]


class Dropout(nn.Dropout):
    """Sets values to zero with probability p in training, and divides the others by 1 - p.

    On a CPU, p is rounded to a multiple of 2^-16.  Then a random number of 64 bits serves four values, which is five
    times as fast as torch's own dropout.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.training or not self.p:
            return dropout(x, self.p, self.training)
        # An int16 is uniform over -2^15 to 2^15 - 1: it is below zeros - 2^15 with probability zeros / 2^16, about p.
        zeros = min(round(self.p * 2**16), 2**16 - 1)
        bits = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), device=x.device)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape).ge_(zeros - 2**15)
        return x * kept.to(x.dtype).mul_(1 / (1 - zeros / 2**16))


class AttentionBlock(nn.Module):
    """x + single-head self-attention over all pixels of the normalised x, (B,C,H,W) -> (B,C,H,W)."""

    def __init__(self, width: int, norm_groups: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, width, norm_eps)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = set_to_zero(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        h = self.project(attention(*self.query_key_value(pixels).chunk(3, dim=-1)))
        return x + h.transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query key^T / sqrt(D)) value, (B,N,D), of three tensors of this shape.

    On a CPU in bfloat16 it takes a few images at a time, so that their scores stay in the cache.  For 28x28 pixels that
    is twice as fast as torch's fused kernel, forward and backward.
    """
    images = SCORES_AT_ONCE // query.shape[1] ** 2
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or not images:
        return scaled_dot_product_attention(query[:, None], key[:, None], value[:, None]).squeeze(1)
    query = query / math.sqrt(query.shape[2])
    parts = zip(query.split(images), key.split(images), value.split(images), strict=True)
    return torch.cat([(q @ k.mT).softmax(-1) @ v for q, k, v in parts])


def fourier_features(z: Tensor, exponents: Sequence[int]) -> Tensor:
    """Return sin and cos of 2 pi 2^n z for the N `exponents` n (appendix C): (B,C,H,W) -> (B, 2 N C, H, W).

    Sines come before cosines, each channel-major.  The result is at least float32, since the argument exceeds 800 rad.
    With an exponent above `FINEST_ANGLE`, 2^n z is reduced modulo 1 before, without an error: in float32 an angle of
    2e5 has lost two digits.
    """
    z = z if z.dtype == torch.float64 else z.float()
    if max(exponents, default=0) > FINEST_ANGLE:
        powers = torch.cat([z.new_full((1,), 2.0**n) for n in exponents])
        turns = (z.unsqueeze(2) * powers[:, None, None]).flatten(1, 2)
        angles = 2 * math.pi * torch.remainder(turns, 1)
        return torch.cat([angles.sin(), angles.cos()], dim=1)
    # Made on the device: `torch.tensor` would copy them from the CPU, and so wait for all earlier work of the device.
    frequencies = torch.cat([z.new_empty(0), *(z.new_full((1,), 2 * math.pi * 2.0**n) for n in exponents)])
    angles = (z.unsqueeze(2) * frequencies[:, None, None]).flatten(1, 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def time_embedding(gamma_t: Tensor, width: int, gamma_min: float, gamma_max: float) -> Tensor:
    """Return sin and cos of time / 10,000^(i / (width/2 - 1)), i = 0..width/2 - 1: (B,) -> (B, width), width even.

    time = 1000 (gamma_t - gamma_min) / (gamma_max - gamma_min).
    """
    half = width // 2
    time = 1000 * (gamma_t - gamma_min) / (gamma_max - gamma_min)
    exponents = torch.arange(half, device=time.device, dtype=time.dtype) / (half - 1)
    angles = time[:, None] * 10_000**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def set_to_zero(layer: Layer) -> Layer:
    """Set weights and bias of the layer to zero, and return it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
