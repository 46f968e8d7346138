"""The split of an image depends on its pixels in the source and on the seed, and on nothing else."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import load, noise
from pictures import settings as data_of
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.images import download as module
from flows.images.download import write_images
from flows.images.image_set import Chosen, ImageSet, open_images, sources_of
from flows.images.source import Source
from flows.images.splitting import DIGEST_BYTES, split_of

NUM_IMAGES = 60
SHARES = {"test_fraction": 0.3, "validation_fraction": 0.2}


def write(folder: Path, names: dict[str, int]) -> Path:
    """Write a PNG file of each name, with noise of its seed."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, seed in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(4, 4, seed=seed)).save(folder / name)
    return folder


def splits_of(images: ImageSet) -> dict[bytes, str]:
    """Return the split of each image by its pixels.  Fails if an image is in two."""
    pairs = [(image.tobytes(), split) for split in images.splits for image in images[split]]
    found = dict(pairs)
    assert len(set(pairs)) == len(found)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, str]:
    """Return the splits of sixty images."""
    root = tmp_path_factory.mktemp("whole")
    return splits_of(load(write(root / "set", {f"{seed}.png": seed for seed in range(NUM_IMAGES)}), **SHARES))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, NUM_IMAGES - 1), min_size=40, max_size=60, unique=True),
    st.lists(st.integers(0, NUM_IMAGES - 1), max_size=20),
    st.randoms(use_true_random=False),
)
def test_sets_that_grow_shrink_and_are_shuffled_move_no_image(
    whole: dict[bytes, str],
    tmp_path_factory: pytest.TempPathFactory,
    seeds: list[int],
    copies: list[int],
    rng: random.Random,
) -> None:
    """Some images are missing, others are there twice, and all have other names in other folders."""
    root = tmp_path_factory.mktemp("some")
    seeds += copies
    names = [f"{number:03}/x.png" if number % 2 else f"{number:03}.png" for number in range(len(seeds))]
    rng.shuffle(names)
    found = splits_of(load(write(root / "set", dict(zip(names, seeds, strict=True))), **SHARES))
    assert found == {noise(4, 4, seed=seed).tobytes(): whole[noise(4, 4, seed=seed).tobytes()] for seed in seeds}
    assert set(whole.values()) == {"train", "validation", "test"}


@pytest.mark.parametrize("changes", [{"num_bits": 5}, {"crop": "center"}, {"resize": [4, 4]}, {"background": "black"}])
def test_other_transforms_move_no_image(changes: dict[str, Any], tmp_path: Path) -> None:
    """Else a model that continues would be tested on images that its ancestor was trained on."""
    (tmp_path / "set").mkdir()
    for seed in range(20):
        Image.fromarray(noise(8, 6, 4, seed=seed), "RGBA").save(tmp_path / f"set/{seed}.png")
    found = []
    for each in ({}, changes):
        images = load(tmp_path / "set", **({"background": "white"} | each))
        names = [Chosen(images, split).names for split in images.splits]
        sources = [np.load(sources_of(images.folder, split)).tolist() for split in images.splits]
        found.append((images.data_sha256, names, sources))
    before, after = found
    assert before[0] != after[0]
    assert before[1:] == after[1:]


def test_another_seed_draws_another_split(folder: Path) -> None:
    assert splits_of(load(folder)) != splits_of(load(folder, split_seed=1))


def test_digests_lie_beside_the_arrays_and_outside_the_digest_of_the_set(folder: Path) -> None:
    images = load(folder)
    before = images.data_sha256
    digests = {split: images.digests(split) for split in images.splits}
    assert {split: len(found) for split, found in digests.items()} == {s: len(images[s]) for s in images.splits}
    for split in images.splits:
        (images.folder / f"{split}_digests.npy").unlink()
    again = open_images(images.folder)
    assert again.data_sha256 == before
    with pytest.raises(UserError, match=r"train_digests\.npy: missing or damaged"):
        again.digests("train")


@pytest.mark.parametrize("change", ["added", "removed", "another time", "emptied"])
def test_a_folder_that_changes_while_it_is_read_is_read_again(
    change: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC would record the changed files as those that were read."""
    read = module.read_folder

    def arriving(*arguments: object) -> object:
        source = read(*arguments)  # type: ignore[arg-type]
        path = folder / "7.png"
        if change == "another time":
            os.utime(path, (1, 1))
        elif change == "added":
            shutil.copy(path, folder / "8.png")
        else:
            pictures = list(source.pictures)
            path.unlink()
            source = source._replace(pictures=pictures)
            if change == "emptied":
                shutil.rmtree(folder)
                folder.mkdir()
        return source

    monkeypatch.setattr(module, "read_folder", arriving)
    with pytest.raises(UserError, match=r"folder changed while it was read.*; run again when no more files") as error:
        load(folder)
    assert error.value.code is Exit.BUSY
    assert not (folder.parent / "images").exists()


def test_a_picture_that_is_half_copied_is_named(folder: Path) -> None:
    path = folder / "5.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r'1 of 8 files cannot be used: 1 damaged \("5.png"') as error:
        write_images(data_of(folder), source=folder, out=folder.parent / "out", downloads=folder.parent / "tmp")
    assert error.value.code is Exit.MISSING
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(("name", "value"), [("test_fraction", 0.001), ("validation_fraction", 0.001)])
def test_a_drawn_split_without_images_names_the_share_and_the_seed(name: str, value: float, folder: Path) -> None:
    with pytest.raises(UserError, match=rf"are left by data\.{name} 0\.001 and data\.split_seed 0; both") as error:
        load(folder, **{name: value})
    assert error.value.code is Exit.INVALID_DATA


def test_shares_are_those_of_the_parameters_but_for_chance() -> None:
    data, source = data_of(Path("x"), test_fraction=0.25), Source("x", [], {})
    splits = [split_of(number.to_bytes(DIGEST_BYTES), None, source, data) for number in range(4000)]
    assert splits.count("test") / len(splits) == pytest.approx(0.25, abs=0.03)
