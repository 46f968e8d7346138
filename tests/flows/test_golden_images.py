"""Image sets of each kind of source and transform keep their bytes: every version states the digest of its own."""

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pictures import load
from PIL import Image

from flows.images.image_set import DESCRIPTION, Description


def pixels(number: int, channels: int = 4, most: int = 255) -> np.ndarray:
    """Return pixels (H,W,channels) or, for one channel, (H,W), uint8 or uint16; sizes differ from number to number."""
    height, width = 12 + number % 5, 17 - number % 4
    found = np.random.default_rng(number).integers(0, most, (height, width, channels), np.uint16, endpoint=True)
    return (found if most > 255 else found.astype(np.uint8)).squeeze()


def icons(folder: Path) -> Path:
    """Twenty icons of two classes, with transparency."""
    for number in range(20):
        place = folder / ("cat" if number % 3 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(place / f"{number}.png")
    return folder


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", icons(folder)))


def mixed(folder: Path) -> Path:
    """Gray and RGB pictures in parts for training and test, copies and a damaged one among them."""
    for number in range(16):
        place = folder / ("test" if number % 4 == 3 else "train")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number % 14, 1 if number % 2 else 3)).save(place / f"{number}.png")
    (folder / "train/damaged.png").write_bytes(b"no picture")
    return folder


def deep(folder: Path) -> Path:
    """Fourteen pictures of 12 bits in files of 16, with a table of labels."""
    folder.mkdir()
    for number in range(14):
        Image.fromarray(pixels(number, 1, 4095)).save(folder / f"{number}.tif")
    (folder / "labels.csv").write_text("file,label\n" + "".join(f"{n}.tif,{'ab'[n % 2]}\n" for n in range(14)))
    return folder


def array(folder: Path) -> Path:
    path = folder.with_suffix(".npy")
    np.save(path, np.random.default_rng(0).integers(0, 16, (15, 2, 9, 7)))
    return path


class Golden(NamedTuple):
    data_sha256: str
    others: str
    """Of all files of the set but its description, with their names."""


ICONS = {"background": "#204060", "crop": "center", "resize": [6, 6], "pad": 1, "num_bits": 5}


@pytest.mark.parametrize(
    ("source", "changes", "golden"),
    [
        (
            icons,
            ICONS,
            Golden(
                "218a8d4f4bb2630e3bcb33df52d252ce6e64dd7ea6ab6722c751be5740e7f34f",
                "aea29340dd69b4fc06a43cce10a2773d57012f76a97a661f412bf48b51e2258b",
            ),
        ),
        (
            zipped,
            ICONS,
            Golden(
                "218a8d4f4bb2630e3bcb33df52d252ce6e64dd7ea6ab6722c751be5740e7f34f",
                "aea29340dd69b4fc06a43cce10a2773d57012f76a97a661f412bf48b51e2258b",
            ),
        ),
        (
            mixed,
            {"grayscale": True, "resize": [7, 5], "without_copies": True, "max_damaged": 1},
            Golden(
                "6468597a04aa5423928c59bfaf05c1b01cc439addfba481ab5fd39531070e10c",
                "b667f725126476787424b016fe71c64c49a99c97a7b6075b4f1cea40956ff81a",
            ),
        ),
        (
            mixed,
            {"gray_as_rgb": True, "crop": "center", "resize": [4, 4], "max_damaged": 0.5, "validation_fraction": 0.25},
            Golden(
                "a99e07cf858e09419c28aafcc8b7401a7fb24a19f632cc3ea3624a05e2afc3cb",
                "0b743e9719f536966ef2022444d4bda396b45ab099d263bf0a18ea8461672128",
            ),
        ),
        (
            deep,
            {"stored_bits": 12, "num_bits": 10, "resize": [8, 8], "validation_fraction": 0.25},
            Golden(
                "c12a748fcade422d2bdc63f5625a986fbe85019fb1e8531bde04405c601ecf6e",
                "be5260ae8e92f0aba97153975b184657fd7e474b96a07663ffc15e6bdefa01f8",
            ),
        ),
        (
            deep,
            {"stored_bits": 12, "num_bits": None, "crop": "center", "resize": [8, 8]},
            Golden(
                "9cf9486a11403dd4dfd4c4b1fbe24a137e0660bed2df34db4f41d61c36487063",
                "d9a9003003634a4ad22511e87dd2c9af4480e6cf2e745dc534b0f70ae2b98410",
            ),
        ),
        (
            array,
            {"num_bits": None},
            Golden(
                "a3ea436afbd7eabdc8b9b323695ba04f900f02d59ace2c6c0821426820fae697",
                "31f83e643a57d2941be7dc842e01d7df9677e76df7564ad14d26fbcfef2f0338",
            ),
        ),
        (
            array,
            {"num_bits": 3, "pad": 2},
            Golden(
                "3e5f43593f36e7f5218d25e6df0105563d7558e5461f239fd0025c1dc661b12c",
                "d116e7190a5b47fda0802041bda4bfb19572b0871994c9c599a55912f52c31d7",
            ),
        ),
    ],
)
def test_a_set_keeps_its_bytes(source: Any, changes: dict[str, Any], golden: Golden, tmp_path: Path) -> None:
    images = load(source(tmp_path / "pictures"), **changes)
    digest = hashlib.sha256()
    for path in sorted(images.folder.iterdir()):
        if path.name != DESCRIPTION:
            digest.update(path.name.encode() + path.read_bytes())
    assert Golden(images.data_sha256, digest.hexdigest()) == golden


@pytest.mark.parametrize(
    ("keys", "is_resized", "is_lossy"),
    [
        ({"transforms": "gray as RGB, resized to 4x4 (bicubic, antialiased)", "formats": "3 PNG, 1 JPEG"}, True, True),
        ({"transforms": "padded by 2", "formats": "3 GIF (first frame), 1 WEBP"}, False, False),
        ({"transforms": "none", "formats": "1 lossy TIFF"}, False, True),
        ({}, False, False),
        ({"transforms": "words of tomorrow", "transformed": ["resize"], "formats": "", "lossy_files": 2}, True, True),
        ({"transforms": "resized", "transformed": [], "formats": "3 JPEG", "lossy_files": 0}, False, False),
    ],
)
def test_what_was_done_to_a_set_is_read_from_its_keys_and_in_older_ones_from_their_words(
    keys: dict[str, Any], is_resized: bool, is_lossy: bool
) -> None:
    described = {"name": "x", "num_levels": 256, "image_shape": [1, 4, 4], "num_train": 1, "num_test": 1}
    found = Description.model_validate(described | keys)
    assert (found.is_resized, found.is_lossy) == (is_resized, is_lossy)


def test_a_set_states_its_transforms_by_their_parameters(tmp_path: Path) -> None:
    described = load(icons(tmp_path / "pictures"), **ICONS).description
    assert described.transformed == ["background", "crop", "resize", "pad", "num_bits"]
    assert (described.is_resized, described.lossy_files) == (True, 0)
