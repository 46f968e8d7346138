"""The batch of a step: the order of the images, evenly spread times, noise, and the augmentation."""

import itertools
import math

import numpy as np
import pytest
import torch

from vdm.training.batches import Batch, augment, batch_indices, draw_batch


def draw(digits: np.ndarray, step: int = 0, batch_size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.from_numpy(digits)
    return draw_batch(images, batch_size, step=step, generator=generator, seed=0, transforms=[])


def test_every_image_is_seen_once_an_epoch() -> None:
    order = torch.cat([batch_indices(10, 4, step, 0, "cpu") for step in range(5)]).tolist()
    assert sorted(order[:10]) == list(range(10))
    assert sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert batch_indices(3, 8, 1, 0, "cpu").shape == (8,)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parts_make_up_the_batch_and_differ(digits: np.ndarray, count: int) -> None:
    whole = draw(digits)
    parts = [whole.part(index, count) for index in range(count)]
    for part in parts:
        # The times are evenly spread in each part too: one in each interval of the circle.
        gaps = part.t.sort().values.diff()
        assert torch.allclose(gaps, torch.full_like(gaps, count / 32), atol=1e-6)
    for field in ("t", "eps", "pixels"):
        together = torch.stack([getattr(part, field) for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(together, getattr(whole, field))
    for one, other in itertools.combinations(parts, 2):
        assert not torch.equal(one.eps, other.eps)
        assert not torch.isin(one.t, other.t).any()


COLOURED = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(1, 3, 4, 4)
VERSIONS = {
    "flip": [COLOURED.flip(3)],
    "rotate": [torch.rot90(COLOURED, turns, (2, 3)) for turns in (1, 2, 3)],
    "swap_channels": [COLOURED[:, list(order)] for order in itertools.permutations(range(3))],
}


@pytest.mark.parametrize("transform", VERSIONS)
def test_an_image_stays_or_becomes_each_of_the_versions(transform: str) -> None:
    pixels = COLOURED.repeat(6000, 1, 1, 1)
    result, augmented = augment(pixels, [transform], torch.Generator().manual_seed(0))  # type: ignore[list-item]
    assert torch.equal(result[~augmented], pixels[~augmented])
    assert augmented.float().mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(6000))
    share = 1 / len(VERSIONS[transform])
    for version in VERSIONS[transform]:
        found = (result[augmented] == version).flatten(1).all(1).float().mean().item()
        assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2800) + 1e-9)


def test_transforms_are_independent_and_any_of_them_raises_the_flag() -> None:
    pixels = COLOURED.repeat(6000, 1, 1, 1)
    transforms = ["flip", "rotate", "swap_channels"]
    result, augmented = augment(pixels, transforms, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert augmented.float().mean() == pytest.approx(7 / 8, abs=4 * math.sqrt(7 / 64 / 6000))
    assert torch.equal(result[~augmented], pixels[~augmented])
    assert len(result.flatten(1).unique(dim=0)) == 8 * 6  # the square's symmetries times the orders of the channels


def test_levels_of_16_bits_are_augmented_like_others() -> None:
    pixels = torch.arange(2**16 - 60, 2**16).reshape(5, 3, 2, 2)
    transforms = ["flip", "rotate", "swap_channels"]
    deep, flags = augment(pixels.to(torch.uint16), transforms, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    expected, expected_flags = augment(pixels, transforms, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert torch.equal(deep.long(), expected)
    assert torch.equal(flags, expected_flags)


def test_a_rotation_needs_a_square() -> None:
    with pytest.raises(ValueError, match="rotate needs square images, got 4x5"):
        augment(torch.zeros(2, 1, 4, 5), ["rotate"], torch.Generator())
