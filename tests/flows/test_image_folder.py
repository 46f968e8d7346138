"""Folders of images are read exactly: splits, classes, names, formats, levels, channels and sizes."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import load, noise, png
from PIL import Image

from flows.images import image_set
from flows.images.image_set import chunks, files_of, load_array, open_images, rows_per_chunk
from flows.images.picture import read_images
from flows.images.splitting import digest_of, place


def write(folder: Path, *names: str, pixels: np.ndarray | None = None) -> Path:
    """Write a PNG file of each name, of its own noise unless pixels are given, and return the folder."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(4, 4, seed=seed) if pixels is None else pixels).save(folder / name, "PNG")
    return folder


def names_of(folder: Path, split: str) -> list[str]:
    return [json.loads(line) for line in files_of(folder, split).read_text(encoding="ascii").splitlines()]


def test_seeded_shares_are_held_out_for_test_and_validation(folder: Path) -> None:
    first = load(folder)
    assert (first["train"].shape[1:], first["test"].shape[1:], first.num_levels) == ((1, 6, 5), (1, 6, 5), 256)
    assert first.description.split == "a share of 0.25 held out by digests of pixels and seed 0"
    test = np.array(first["test"])
    divided = load(folder, validation_fraction=0.5)
    assert np.array_equal(divided["test"], test)
    every = np.concatenate([divided["train"], divided["validation"], divided["test"]])
    assert {image.tobytes() for image in every} == {noise(6, 5, seed=i).tobytes() for i in range(8)}
    how = "by digests of pixels and seed 0"
    expected = f"a share of 0.25 held out {how}; 0.5 of the training images held out for validation {how}"
    assert divided.description.split == expected
    assert not np.array_equal(load(folder, split_seed=1)["test"], test)


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("training", "testing"), ("Train", "Eval")])
def test_splits_and_classes_of_the_folder_are_kept(train: str, test: str, tmp_path: Path) -> None:
    names = [f"{split}/{kind}/{i}.png" for split in (train, test) for kind in ("cat", "dög") for i in range(2)]
    images = load(write(tmp_path / "set", *names))
    assert np.array_equal(images["train"][:, 0], np.stack([noise(4, 4, seed=i) for i in range(4)]))
    parts = sorted([f"{train.lower()} for train", f"{test.lower()} for test"])
    assert images.description.split == f"by its folders: {', '.join(parts)}"
    assert np.asarray(open_images(tmp_path / "images").labels("train")).tolist() == [0, 0, 1, 1]
    assert names_of(tmp_path / "images", "train") == names[:4]


def test_a_folder_may_have_three_parts(tmp_path: Path) -> None:
    images = load(
        write(tmp_path / "set", "train/0.png", "train/1.png", "val/0.png", "test/0.png"), validation_fraction=0.5
    )
    counts = {split: len(images[split]) for split in images.splits}
    assert counts == {"train": 2, "validation": 1, "test": 1}  # the folder's own part wins
    assert images.description.split == "by its folders: test for test, train for train, val for validation"
    assert names_of(tmp_path / "images", "validation") == ["val/0.png"]


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "npy"])
def test_lossless_formats_give_the_same_bytes_and_lossy_ones_are_recorded(suffix: str, tmp_path: Path) -> None:
    for i, split in enumerate(("train", "test")):
        (tmp_path / "set" / split).mkdir(parents=True)
        path, pixels = tmp_path / "set" / split / f"{i}.{suffix}", noise(8, 7, 3, seed=i)
        if suffix == "npy":
            np.save(path, pixels.transpose(2, 0, 1))
        else:
            Image.fromarray(pixels).save(path, lossless=True)
    images = load(tmp_path / "set")
    both = {image.tobytes() for image in np.concatenate([images["train"], images["test"]])}
    assert both == {noise(8, 7, 3, seed=i).transpose(2, 0, 1).tobytes() for i in range(2)}
    assert images.description.formats == f"2 {suffix.upper().replace('TIF', 'TIFF')}"
    if suffix == "webp":
        Image.fromarray(noise(8, 7, 3)).save(path)
        assert load(tmp_path / "set").description.formats == "1 WEBP, 1 lossy WEBP"


@pytest.mark.parametrize("dtype", ["|b1", "|u1", ">u2", "<i8"])
@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_of_any_integers_in_any_order_are_read(fortran: bool, dtype: str, tmp_path: Path) -> None:
    shift = 8 if dtype.endswith("u2") else 0
    levels = np.random.default_rng(0).integers(0, 2, (2500, 5, 4, 6)).astype(dtype)
    levels = levels << shift if shift else levels
    np.save(tmp_path / "a.npy", np.asfortranarray(levels) if fortran else levels)
    images = load(tmp_path / "a.npy")
    expected = levels.astype(np.uint16) >> shift
    digests = [digest_of(image.astype(np.uint16 if shift else np.uint8)) for image in levels]
    chosen = np.array([place(digest, "test", 0) < 0.25 for digest in digests])
    assert 500 < chosen.sum() < 750
    assert np.array_equal(images["train"], expected[~chosen])
    assert np.array_equal(images["test"], expected[chosen])
    assert images.num_levels == (2 if dtype == "|b1" else 256)


@pytest.mark.parametrize(("bits", "levels"), [(1, 2), (2, 4), (4, 16), (16, 256)])
def test_levels_are_those_stored_and_more_than_8_bits_are_shifted(bits: int, levels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**bits, (9, 8)).astype(np.uint16)
    for i, split in enumerate(("train", "test")):
        (tmp_path / "set" / split).mkdir(parents=True)
        (tmp_path / "set" / split / f"{i}.png").write_bytes(png(np.roll(pixels, i), bits))
    images = load(tmp_path / "set")
    assert images.num_levels == levels
    assert images.description.transforms == ("16 bits shifted to 8" if bits == 16 else "none")
    both = np.concatenate([images["train"], images["test"]])[:, 0].tolist()
    assert sorted(both) == sorted((np.roll(pixels, i) >> max(0, bits - 8)).tolist() for i in range(2))


def test_a_photograph_is_turned_as_its_camera_says_and_read_without_its_preview(tmp_path: Path) -> None:
    """Phones and cameras append previews and gain maps to their JPEG files."""
    photograph, preview = (Image.fromarray(noise(*size, 3)) for size in ((20, 17), (5, 4)))
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(tmp_path / "plain.jpg")
    photograph.save(tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=[preview], exif=exif)
    plain, camera = (read_images(tmp_path / name) for name in ("plain.jpg", "camera.jpg"))
    assert np.array_equal(np.rot90(plain.pixels, -1, (2, 3)), camera.pixels)
    assert plain[1:3] == camera[1:3] == (2**8, "JPEG")


def test_images_beside_classes_have_no_labels_and_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(write(tmp_path / "set", *(f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(4))))
    assert open_images(tmp_path / "images").labels("train") is not None
    load(write(tmp_path / "set", "cover\n.png", "notes\n.txt"))
    assert r'images have no labels, since 1 files are in no class folder, such as "cover\n.png"' in caplog.text
    assert r'1 files are not images, such as "notes\n.txt"' in caplog.text
    assert open_images(tmp_path / "images").labels("train") is None


def test_mixed_sizes_and_channels_can_be_made_alike(folder: Path) -> None:
    write(folder, "colour.png", pixels=noise(6, 5, 3))
    images = load(folder, grayscale=True)
    assert (images.image_shape, images.description.transforms) == ((1, 6, 5), "grayscale (ITU-R 601, rounded)")
    both = {image.tobytes() for image in np.concatenate([images["train"], images["test"]])}
    assert {noise(6, 5, seed=i).tobytes() for i in range(8)} < both
    write(folder, "tall.png", pixels=noise(7, 5))
    images = load(folder, grayscale=True, resize=[3, 3])
    assert images.image_shape == (1, 3, 3)
    assert images.description.transforms == "grayscale (ITU-R 601, rounded), resized to 3x3 (bicubic, antialiased)"


def test_copies_are_left_out_if_asked_and_the_set_is_that_without_them(tmp_path: Path) -> None:
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(20)]
    single = load(write(tmp_path / "one/set", *names))
    write(tmp_path / "two/set", *names)
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        (tmp_path / "two/set" / name.replace(".png", " (copy).png")).write_bytes(
            (tmp_path / "two/set" / name).read_bytes()
        )
    assert len(load(tmp_path / "two/set")["train"]) + len(open_images(tmp_path / "two/images")["test"]) == 43
    without = load(tmp_path / "two/set", without_copies=True)
    assert without.description.split == f"{single.description.split}; 3 exact copies of other images left out"
    assert without.data_sha256 == single.data_sha256
    assert without.labels_sha256 == single.labels_sha256


def test_hidden_files_and_circular_links_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that macOS writes beside every file are no images."""
    for name in ("._0.png", ".DS_Store", "__MACOSX/a/1.png", "class/._2.png", ".thumbnails/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    for link, target in (("a", "b"), ("b", "a"), ("here", "."), ("class/parent", "..")):
        (folder / link).symlink_to(target)
    (folder / "linked.png").symlink_to("0.png")
    assert len(load(folder)["train"]) == 7
    assert "linked.png" in [*names_of(folder.parent / "images", "train"), *names_of(folder.parent / "images", "test")]


@pytest.mark.parametrize(
    ("folder", "name"), [("set", os.fsdecode(b"caf\xe9")), ("line\nend", "<b>\x1b[31mred\u202e\x7f\x85")]
)
def test_names_are_escaped(folder: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / folder, *(f"{name}{i}.png" for i in range(4)))
    (tmp_path / folder / f"{name}.txt").touch()
    with caplog.at_level(logging.INFO):
        images = load(tmp_path / folder)
    assert images.description.title.isprintable()
    for found in names_of(tmp_path / "images", "train"):
        assert found.startswith(name.encode(errors="backslashreplace").decode()[:1])
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_images_transformed_in_parts_keep_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_set, "MOST_CHUNK_BYTES", 200)  # six images of 4x8, three of 6x10
    for split in ("train", "test"):
        for label in range(3):
            (tmp_path / "set" / split / str(label)).mkdir(parents=True)
            np.save(tmp_path / "set" / split / str(label) / "a.npy", np.full((7, 1, 4, 8), label, np.uint8))
    images, expected = load(tmp_path / "set", pad=1), np.repeat([0, 1, 2], 7)
    assert np.array_equal(images["train"][:, 0, 2, 2], expected)
    assert np.array_equal(np.asarray(open_images(tmp_path / "images").labels("train")), expected)
    assert names_of(tmp_path / "images", "test") == [f"test/{label}/a.npy" for label in expected]


def test_chunks_are_bounded_in_bytes_and_equal_the_images(tmp_path: Path) -> None:
    assert (
        rows_per_chunk(1000, 3072),
        rows_per_chunk(1000, image_set.MOST_CHUNK_BYTES // 10),
        rows_per_chunk(1000, 2**80),
    ) == (1000, 10, 1)
    images = np.broadcast_to(np.uint8(1), (7, 3, 3000, 2000))
    assert [len(chunk) for _, chunk in chunks(images[:, :, :1000], 1000)] == [5, 2]
    for dtype in (np.uint8, np.uint16):
        images = np.random.default_rng(0).integers(0, 256, (7, 1, 3, 2)).astype(dtype)
        np.save(tmp_path / "images.npy", images)
        found = list(chunks(load_array(tmp_path / "images.npy"), 3))
        assert [first for first, _ in found] == [0, 3, 6]
        assert np.array_equal(np.concatenate([chunk for _, chunk in found]), images)


@pytest.mark.parametrize("order", [np.ascontiguousarray, np.asfortranarray])
def test_chunks_of_a_mapped_file_are_those_of_the_array_also_in_parts_and_turned(
    order: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 65536, (7, 3, 4, 4), np.uint16)
    np.save(tmp_path / "images.npy", order(images))
    mapped = load_array(tmp_path / "images.npy")
    for turn in (
        lambda array: array,
        lambda array: array[2:],
        lambda array: array[:5],
        lambda array: array[::-1],
        lambda array: array[..., ::-1],
        lambda array: array.swapaxes(2, 3),
        lambda array: array.reshape(21, 1, 4, 4),
        lambda array: array[[3, 1]],
        lambda array: array[:0],
    ):
        chosen = turn(images)
        found = [chunk for _, chunk in chunks(turn(mapped), 2)]
        assert np.array_equal(np.concatenate([chosen[:0], *found]), chosen)
