"""Declared transforms: exact where they can be, and never unrecorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.errors import Exit, UserError
from flows.params import read_params
from flows.stages.download import download
from flows.transforms import describe, levels_left, transform
from vdm.images import data_sha256, load_images

NOTHING: dict[str, Any] = {"grayscale": False, "resize": None, "pad": 0, "num_bits": 8}
DIGITS = read_params(Path(__file__).parents[1] / "presets" / "digits.yaml").data


def noise(*shape: int, highest: int = 255) -> np.ndarray:
    return np.random.default_rng(0).integers(0, highest, shape, dtype=np.uint16, endpoint=True)


def test_nothing_is_nothing() -> None:
    pixels = noise(3, 2, 4, 5).astype(np.uint8)
    assert transform(pixels, 256, **NOTHING) is pixels
    assert describe(256, **NOTHING) == "none"


@given(num_levels=st.integers(2, 2**16), num_bits=st.integers(1, 8))
def test_bits_are_shifted_and_the_levels_counted(num_levels: int, num_bits: int) -> None:
    levels = np.arange(num_levels).astype(np.uint16).reshape(1, 1, 1, -1)
    if num_levels <= 256:
        levels = levels.astype(np.uint8)
    left = transform(levels, num_levels, **NOTHING | {"num_bits": num_bits})
    assert left.dtype == np.uint8
    count = int(left.max()) + 1
    assert count == levels_left(num_levels, num_bits) <= 2**num_bits
    assert np.array_equal(np.unique(left), np.arange(count))  # no level is skipped
    assert (levels_left(num_levels, num_bits) == num_levels) == (num_levels <= 2**num_bits)


def test_order_and_words() -> None:
    settings = {"grayscale": True, "resize": [4, 6], "pad": 2, "num_bits": 3}
    done = transform(noise(2, 3, 8, 8, highest=2**16 - 1), 2**16, **settings)
    assert done.shape == (2, 1, 8, 10)
    assert done.max() < 8
    assert not done[:, :, :2].any()
    words = "grayscale (ITU-R 601), resized to 4x6 (bicubic, antialiased), padded by 2, 16 bits shifted to 3"
    assert describe(2**16, **settings) == words


def test_resizing_stays_within_the_levels() -> None:
    edge = np.zeros((1, 1, 16, 16), dtype=np.uint8)
    edge[..., 7:] = 16
    done = transform(edge, 17, **NOTHING | {"resize": [24, 24]})
    assert done.max() == 16
    constant = transform(edge[..., 7:], 17, **NOTHING | {"resize": [5, 5]})
    assert (constant == 16).all()


def test_gray_levels_of_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match="images have 2") as error:
        transform(noise(1, 2, 4, 4).astype(np.uint8), 256, **NOTHING | {"grayscale": True})
    assert error.value.code == Exit.USAGE


@pytest.mark.parametrize("change", [{"num_bits": 4}, {"pad": 1}, {"resize": [8, 9]}, {"split_seed": 1}])
def test_each_declaration_changes_the_digest_and_is_recorded(change: dict[str, Any], tmp_path: Path) -> None:
    for name, settings in (("plain", DIGITS), ("changed", DIGITS.model_copy(update=change))):
        download(settings, out=tmp_path / name, downloads=tmp_path / "downloads")
    assert data_sha256(tmp_path / "plain") != data_sha256(tmp_path / "changed")
    plain, changed = (load_images(tmp_path / name).description for name in ("plain", "changed"))
    assert (plain["split"], plain["transforms"]) != (changed["split"], changed["transforms"])


def test_a_transform_that_leaves_the_bytes_is_still_in_the_digest(tmp_path: Path) -> None:
    from vdm.images import save_images

    splits = {"train": noise(3, 1, 2, 2).astype(np.uint8), "test": noise(2, 1, 2, 2).astype(np.uint8)}
    digests = set()
    for transforms in ("none", "grayscale (ITU-R 601)"):
        save_images(tmp_path, splits, {"name": "a", "num_levels": 256, "transforms": transforms})
        digests.add(data_sha256(tmp_path))
    assert len(digests) == 2
