"""Transforms are exact where possible, and always recorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from project import ROOT

from flows.core.errors import Exit, UserError
from flows.core.params import Data
from flows.core.params_file import read_params
from flows.images.download import download
from flows.images.image_set import open_images
from flows.images.transforms import describe_transforms, levels_left, parts, transform

DIGITS = read_params(ROOT / "presets" / "digits.yaml").data
"""It has no transforms."""


def declared(**transforms: Any) -> Data:
    return DIGITS.model_copy(update=transforms)


def noise(*shape: int, highest: int = 255) -> np.ndarray:
    return np.random.default_rng(0).integers(0, highest, shape, dtype=np.uint16, endpoint=True)


@given(num_levels=st.integers(2, 2**16), num_bits=st.integers(1, 8))
def test_bits_are_shifted_and_the_levels_follow(num_levels: int, num_bits: int) -> None:
    levels = np.arange(num_levels).astype(np.uint16).reshape(1, 1, 1, -1)
    if num_levels <= 256:
        levels = levels.astype(np.uint8)
    left = transform(levels, num_levels, declared(num_bits=num_bits))
    assert left.dtype == np.uint8
    count = int(left.max()) + 1
    assert count == levels_left(num_levels, num_bits) <= 2**num_bits
    assert np.array_equal(np.unique(left), np.arange(count))  # no level is skipped
    assert (levels_left(num_levels, num_bits) == num_levels) == (num_levels <= 2**num_bits)


def test_transforms_have_a_fixed_order_and_a_description() -> None:
    settings = declared(grayscale=True, resize=[4, 6], pad=2, num_bits=3)
    done = transform(noise(2, 3, 8, 8, highest=2**16 - 1), 2**16, settings)
    assert done.shape == (2, 1, 8, 10)
    assert done.max() < 8
    assert done.sum() == done[:, :, 2:6, 2:8].sum() > 0
    words = "grayscale (ITU-R 601, rounded), resized to 4x6 (bicubic, antialiased), padded by 2, 16 bits shifted to 3"
    assert describe_transforms(2**16, settings) == words


def test_resizing_stays_within_the_levels() -> None:
    edge = np.zeros((1, 1, 16, 16), dtype=np.uint8)
    edge[..., 7:] = 16
    done = transform(edge, 17, declared(resize=[24, 24]))
    assert done.max() == 16
    constant = transform(edge[..., 7:], 17, declared(resize=[5, 5]))
    assert (constant == 16).all()


def test_gray_levels_are_rounded() -> None:
    levels = np.arange(256, dtype=np.uint8)
    gray = np.broadcast_to(levels, (1, 3, 1, 256))
    assert np.array_equal(transform(gray, 256, declared(grayscale=True))[0, 0, 0], levels)
    colours = noise(4, 3, 50, 60).astype(np.uint8)
    exact = np.tensordot([0.299, 0.587, 0.114], colours, axes=(0, 1))[:, None]
    assert np.abs(transform(colours, 256, declared(grayscale=True)) - exact).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("channels", "size"), [(1, [5, 5]), (3, [8, 1]), (5, [5, 5])])
def test_every_channel_is_resized_as_a_gray_image(channels: int, size: list[int]) -> None:
    """torch's kernels fail or differ for some numbers of channels."""
    images = np.random.default_rng(0).integers(0, 256, (3, channels, 50, 16), dtype=np.uint8)
    done = transform(images, 256, declared(resize=size))
    alone = [transform(images[:, [channel]], 256, declared(resize=size)) for channel in range(channels)]
    assert (done == np.concatenate(alone, axis=1)).all()
    gray = [Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC) for image in images[:, 0]]
    assert np.abs(done[:, 0].astype(int) - np.stack([np.asarray(each) for each in gray])).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 13), (12, 7), (1, 1)])
def test_a_crop_is_the_middle_square(height: int, width: int) -> None:
    images = noise(2, 3, height, width).astype(np.uint8)
    done = transform(images, 256, declared(crop="center"))
    side = min(height, width)
    assert done.shape == (2, 3, side, side)
    top, left = (height - side) // 2, (width - side) // 2
    assert np.array_equal(done, images[:, :, top : top + side, left : left + side])
    assert abs(height - side - 2 * top) <= 1
    assert abs(width - side - 2 * left) <= 1


def test_the_crop_is_taken_before_images_are_resized_and_padded() -> None:
    settings = declared(gray_as_rgb=True, crop="center", resize=[4, 6], pad=1)
    images = noise(2, 1, 8, 30).astype(np.uint8)
    square = images[..., 11:19]
    expected = transform(square, 256, declared(resize=[4, 6], pad=1)).repeat(3, axis=1)
    assert np.array_equal(transform(images, 256, settings), expected)
    words = "gray as RGB, cropped to the middle square, resized to 4x6 (bicubic, antialiased), padded by 1"
    assert describe_transforms(256, settings) == words


@pytest.mark.parametrize(
    "change",
    [{"num_bits": 4}, {"pad": 1}, {"resize": [8, 9]}, {"split_seed": 1}, {"gray_as_rgb": True}, {"crop": "center"}],
)
def test_each_declaration_changes_the_digest_and_is_recorded(change: dict[str, Any], tmp_path: Path) -> None:
    for name, settings in (("plain", DIGITS), ("changed", declared(**change))):
        download(settings, out=tmp_path / name, downloads=tmp_path / "downloads")
    assert open_images(tmp_path / "plain").data_sha256 != open_images(tmp_path / "changed").data_sha256
    plain, changed = (open_images(tmp_path / name).description for name in ("plain", "changed"))
    assert (plain.split, plain.transforms) != (changed.split, changed.transforms)


@pytest.mark.parametrize(
    ("shape", "change", "message", "code"),
    [
        ((3, 9000, 9000), {}, "3x9000x9000 have more than .* levels; set data.resize to a", Exit.INVALID_DATA),
        ((3, 8, 8), {"resize": [4096, 4096]}, "3x4096x4096 have more than .* or lower data.pad", Exit.USAGE),
        ((1000, 4, 4), {"pad": 1024}, "1000x2052x2052", Exit.USAGE),
        ((1, 4000, 8000), {"gray_as_rgb": True, "crop": "center"}, "3x4000x4000 have more", Exit.INVALID_DATA),
        ((2, 4, 4), {"grayscale": True}, "needs 1 or 3 channels, but the images have 2", Exit.USAGE),
    ],
)
def test_images_that_a_transform_does_not_allow_are_refused(
    shape: tuple[int, ...], change: dict[str, Any], message: str, code: Exit
) -> None:
    images = np.broadcast_to(np.uint8(1), (2, *shape))
    with pytest.raises(UserError, match=message) as error:
        transform(images[next(parts(images, declared(**change)))], 256, declared(**change))
    assert error.value.code == code
