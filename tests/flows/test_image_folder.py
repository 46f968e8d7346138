"""Folders of images are read exactly, or refused with an error that names the files."""

import itertools
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.commands.inspecting import inspect_path
from flows.core.errors import Exit, UserError
from flows.core.files import parse_json
from flows.core.params import Data, read_params
from flows.images.folder import ImageFolder, read_folder
from flows.images.picture_files import BadImageError, inspect, read
from flows.images.store import ImageSet, files_of, load_images, load_labels
from flows.stages.download import download

SPLIT: Any = {"test_fraction": 0.25, "validation_fraction": 0, "split_seed": 0, "grayscale": False, "resized": False}


def settings(source: Path, **changes: Any) -> Data:
    defaults = {
        "name": "image_folder",
        "source": str(source),
        "test_fraction": 0.25,
        "validation_fraction": 0,
        "split_seed": 0,
    }
    transforms = {"grayscale": False, "resize": None, "pad": 0, "num_bits": 8}
    return Data(**(defaults | transforms | changes))


def load(source: Path, **changes: Any) -> ImageSet:
    out = source.parent / "images"
    download(settings(source, **changes), out=out, downloads=source.parent / "downloads")
    return load_images(out)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of eight gray PNG images of 6x5 pixels; image i is noise of seed i."""
    (tmp_path / "folder").mkdir()
    for i in range(8):
        Image.fromarray(noise(6, 5, seed=i)).save(tmp_path / "folder" / f"{i}.png")
    return tmp_path / "folder"


def test_a_seeded_share_is_held_out(folder: Path) -> None:
    first = load(folder)
    assert (first.train.shape, first.test.shape, first.num_levels) == ((6, 1, 6, 5), (2, 1, 6, 5), 256)
    both = np.concatenate([first.train, first.test])
    assert {image.tobytes() for image in both} == {noise(6, 5, seed=i).tobytes() for i in range(8)}
    assert first.description["split"] == "0.25 held out with seed 0"
    test = np.array(first.test)
    assert np.array_equal(load(folder).test, test)
    assert not np.array_equal(load(folder, split_seed=1).test, test)


@pytest.mark.parametrize(
    ("train_name", "test_name"), [("train", "test"), ("train", "val"), ("training", "testing"), ("Train", "Eval")]
)
def test_splits_and_classes_of_the_folder_are_kept(train_name: str, test_name: str, tmp_path: Path) -> None:
    for split, count in ((train_name, 3), (test_name, 1)):
        for label, kind in enumerate(("cat", "dög")):
            (tmp_path / "set" / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((4, 4, 3), 10 * label + i, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / kind / f"{i}.png")
    images = load(tmp_path / "set")
    assert np.array(images.train)[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert images.image_shape == (3, 4, 4)
    parts = sorted([f"{train_name.lower()} for train", f"{test_name.lower()} for test"])
    assert images.description["split"] == f"by its folders: {', '.join(parts)}"
    assert len(images.validation) == 0
    labels = load_labels(tmp_path / "images", "train")
    assert labels is not None
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    files = [json.loads(line) for line in files_of(tmp_path / "images", "train").read_text().splitlines()]
    assert files[1:4] == [f"{train_name}/{name}.png" for name in ("cat/1", "cat/2", "dög/0")]


def test_a_folder_may_have_three_parts(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        (tmp_path / "set" / part).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 4), count, dtype=np.uint8)).save(tmp_path / "set" / part / f"{i}.png")
    images = load(tmp_path / "set", validation_fraction=0.5)  # the folder's own part wins
    for split, count in (("train", 3), ("validation", 2), ("test", 1)):
        assert np.array(getattr(images, split))[:, 0, 0, 0].tolist() == [count] * count
    assert images.description["split"] == "by its folders: test for test, train for train, val for validation"
    assert files_of(tmp_path / "images", "validation").read_text().splitlines() == ['"val/0.png"', '"val/1.png"']


def test_validation_images_are_drawn_from_the_training_part(folder: Path) -> None:
    images = load(folder, validation_fraction=0.5)
    assert (len(images.train), len(images.validation), len(images.test)) == (3, 3, 2)
    assert np.array_equal(images.test, load(folder).test)
    every = np.concatenate([images.train, images.validation, images.test])
    assert {image.tobytes() for image in every} == {noise(6, 5, seed=i).tobytes() for i in range(8)}
    expected = "0.25 held out with seed 0; 0.5 of the training images held out for validation with seed 0"
    assert images.description["split"] == expected


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "npy"])
def test_lossless_formats_give_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for i in range(2):
        path = tmp_path / "set" / f"{i}.{suffix}"
        pixels = noise(8, 7, 3, seed=i)
        if suffix == "npy":
            np.save(path, pixels.transpose(2, 0, 1))
        else:
            Image.fromarray(pixels).save(path, lossless=True)
    images = load(tmp_path / "set", test_fraction=0.5)
    both = {image.tobytes() for image in np.concatenate([images.train, images.test])}
    assert both == {noise(8, 7, 3, seed=i).transpose(2, 0, 1).tobytes() for i in range(2)}


def test_arrays_of_many_images_and_any_channels(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "train.npy", noise(2500, 5, 4, 6))
    np.save(tmp_path / "set" / "test.npy", noise(10, 5, 4, 6, seed=1))
    images = load(tmp_path / "set")
    assert np.array_equal(images.train, noise(2500, 5, 4, 6))
    assert np.array_equal(images.test, noise(10, 5, 4, 6, seed=1))
    alone = load(tmp_path / "set" / "train.npy")
    assert (len(alone.train), len(alone.test)) == (1875, 625)


@pytest.mark.parametrize(("bits", "levels"), [(1, 2), (2, 4), (4, 16)])
def test_narrow_pixels_are_not_widened(bits: int, levels: int, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pixels = noise(9, 8) % levels
    for i in range(2):
        (tmp_path / "set" / f"{i}.png").write_bytes(png(np.roll(pixels, i), bits))
    images = load(tmp_path / "set", test_fraction=0.5)
    assert images.num_levels == levels
    assert {image.tobytes() for image in (images.train[0], images.test[0])} == {
        np.roll(pixels, i).tobytes() for i in range(2)
    }


@pytest.mark.parametrize(
    ("bits", "white_is_zero", "fill_order"),
    [*itertools.product((1, 2, 4), (False, True), (1, 2)), (12, False, 1)],
)
def test_levels_of_tiff_files_are_those_stored(bits: int, white_is_zero: bool, fill_order: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**bits, (9, 8)).astype(np.uint16)
    stored = 2**bits - 1 - pixels if white_is_zero else pixels
    (tmp_path / "a.tif").write_bytes(tiff(stored, bits, white_is_zero, fill_order))
    head = inspect(tmp_path / "a.tif")
    assert (head.kind.shape, head.kind.num_bits) == ((1, 9, 8), bits)
    (images,) = read(tmp_path / "a.tif")
    assert np.array_equal(images[0, 0], pixels)


def tiff(pixels: np.ndarray, bits: int, white_is_zero: bool, fill_order: int) -> bytes:
    """Return an uncompressed gray TIFF file of `bits` per pixel; in fill order 2 pixels start at the lowest bits."""
    wide = np.unpackbits(pixels.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., 16 - bits :]
    order: Any = {1: "big", 2: "little"}[fill_order]
    packed = np.packbits(wide.reshape(len(pixels), -1), axis=1, bitorder=order).tobytes()
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 266: fill_order}
    tags |= {273: 8, 277: 1, 278: height, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    head = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    return head + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


def png(pixels: np.ndarray, bits: int, colour: int = 0, size: tuple[int, int] | None = None) -> bytes:
    """Return a PNG file of `bits` per sample, gray (colour 0) or RGB (2); its header may claim another size."""
    rows = pixels.reshape(len(pixels), -1)
    if bits < 8:
        wide = np.unpackbits(rows[..., None].astype(np.uint8), axis=-1)[..., 8 - bits :]
        packed = np.packbits(wide.reshape(len(rows), -1), axis=1)
    else:
        packed = rows.astype(">u2").view(np.uint8) if bits == 16 else rows
    raw = b"".join(b"\0" + row.tobytes() for row in packed)

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = size or pixels.shape
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(raw)) + part(b"IEND", b"")


def test_sixteen_bits_are_shifted_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    deep = np.random.default_rng(0).integers(0, 2**16, (4, 5)).astype(np.uint16)
    for i in range(2):
        (tmp_path / "set" / f"{i}.png").write_bytes(png(deep, 16))
    images = load(tmp_path / "set", test_fraction=0.5)
    assert np.array_equal(images.test[0, 0], deep >> 8)
    assert images.transforms == "16 bits shifted to 8"
    assert load(tmp_path / "set", test_fraction=0.5, num_bits=5).num_levels == 32


def turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(5, 6)).save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_rotation_is_applied_and_logged(suffix: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    turned(folder / f"8.{suffix}", 6)
    images = load(folder)
    assert "1 images turned as their EXIF tags say" in caplog.text
    upright = np.rot90(noise(5, 6), -1)
    assert any(np.array_equal(image[0], upright) for image in np.concatenate([images.train, images.test]))


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_an_invalid_orientation_means_upright(orientation: int, tmp_path: Path) -> None:
    turned(tmp_path / "a.png", orientation)
    head = inspect(tmp_path / "a.png")
    assert (head.kind.shape, head.turned) == ((1, 5, 6), False)
    assert np.array_equal(next(read(tmp_path / "a.png"))[0, 0], noise(5, 6))


def test_jpeg_and_other_files_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(8):
        Image.open(folder / f"{i}.png").save(folder / f"{i}.jpg")
        (folder / f"{i}.png").unlink()
    (folder / "notes\n.txt").write_text("not an image")
    images = load(folder)
    assert "8 JPEG files: their bits/dim are those of decoded JPEG" in caplog.text
    assert r'1 files are not images, such as "notes\n.txt"' in caplog.text
    assert images.description["formats"] == "8 JPEG"


def test_classes_without_images_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("full", "empty"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for i in range(4):
        Image.fromarray(noise(4, 4, seed=i)).save(tmp_path / "set" / "full" / f"{i}.png")
    load(tmp_path / "set")
    assert 'classes without images: "empty"' in caplog.text


def small_bomb(path: Path) -> None:
    path.write_bytes(png(np.zeros((1, 1), dtype=np.uint8), 8, size=(2**16, 2**16)))


def animated(path: Path) -> None:
    frames = [Image.fromarray(noise(6, 5, seed=i)) for i in range(2)]
    frames[0].save(path.with_suffix(".webp"), save_all=True, append_images=frames[1:])


def pipe(path: Path) -> None:
    os.mkfifo(path)


def pipe_of_arrays(path: Path) -> None:
    os.mkfifo(path.with_suffix(".npy"))


def socket_file(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


def circle(path: Path) -> None:
    path.symlink_to("other.png")
    path.with_name("other.png").symlink_to(path.name)


def linked_folder(path: Path) -> None:
    path.with_name("classes").mkdir()
    path.symlink_to("classes")


def several_frames(path: Path) -> None:
    frames = [Image.fromarray(noise(6, 5, seed=i)) for i in range(3)]
    frames[0].save(path.with_suffix(".tif"), save_all=True, append_images=frames[1:])


def out_of_the_folder(path: Path) -> None:
    target = path.parents[1] / "elsewhere.png"
    Image.fromarray(noise(6, 5)).save(target)
    path.symlink_to(target)


def array(content: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path.with_suffix(".npy"), content)


def mode(name: str, suffix: str = ".png") -> Callable[[Path], None]:
    return lambda path: Image.fromarray(noise(6, 5, 3)).convert(name).save(path.with_suffix(suffix))


@pytest.mark.parametrize(
    ("add", "code", "message"),
    [
        (lambda path: path.write_bytes(b""), Exit.MISSING, '"bad.png": empty'),
        (lambda path: path.write_text("<!DOCTYPE html>"), Exit.MISSING, '"bad.png": damaged, or not PNG'),
        (lambda path: path.write_bytes(png(noise(6, 5), 8)[:60]), Exit.MISSING, '"bad.png": damaged'),
        (lambda path: path.symlink_to("nowhere.png"), Exit.MISSING, '"bad.png": not a file'),
        (pipe, Exit.MISSING, '"bad.png": not a file'),
        (pipe_of_arrays, Exit.MISSING, '"bad.npy": not a file'),
        (socket_file, Exit.MISSING, '"bad.png": not a file'),
        (circle, Exit.MISSING, '"bad.png": not a file'),
        (linked_folder, Exit.MISSING, '"bad.png": not a file'),
        (out_of_the_folder, Exit.INVALID_DATA, 'links lead out of the folder: "bad.png"'),
        (small_bomb, Exit.INVALID_DATA, '"bad.png": too large'),
        (mode("RGBA"), Exit.INVALID_DATA, '"bad.png": mode RGBA'),
        (mode("P"), Exit.INVALID_DATA, '"bad.png": mode P'),
        (mode("CMYK", ".jpg"), Exit.INVALID_DATA, '"bad.jpg": mode CMYK'),
        (animated, Exit.INVALID_DATA, '"bad.webp": 2 frames'),
        (several_frames, Exit.INVALID_DATA, '"bad.tif": several frames'),
        (
            lambda path: path.write_bytes(png(noise(6, 15), 16, 2, size=(6, 5))),
            Exit.INVALID_DATA,
            "16 bits per channel",
        ),
        (mode("RGB"), Exit.INVALID_DATA, '"0.png" is 1x6x5 of 8 bits, "bad.png" is 3x6x5 of 8 bits, "1.png" is'),
        (array(np.full((6, 5), np.nan)), Exit.INVALID_DATA, "float64 with NaN, not levels"),
        (array(np.float32([[0, 1]])), Exit.INVALID_DATA, "float32 from 0 to 1, not levels"),
        (array(np.array([[0, 256]])), Exit.INVALID_DATA, "level 256 of int64, outside 0..255"),
        (array(np.array([[0, -1]])), Exit.INVALID_DATA, "level -1 of int64"),
        (array(noise(6, 5, 3)), Exit.INVALID_DATA, "channels last"),
        (array(np.array("text")), Exit.INVALID_DATA, "wanted (H,W), (C,H,W) or (N,C,H,W)"),
        (array(noise(100, 8, 8)), Exit.INVALID_DATA, "an array of (100, 8, 8); gray images must be (100,1,8,8)"),
        (array(np.zeros((0, 1, 6, 5), np.uint8)), Exit.INVALID_DATA, "an array of (0, 1, 6, 5)"),
    ],
    ids=lambda value: None if isinstance(value, (Exit, str)) else "",
)
def test_a_bad_file_is_named(add: Callable[[Path], None], code: Exit, message: str, folder: Path) -> None:
    images = load(folder)  # write a good set first
    before = images.description
    add(folder / "bad.png")
    if "256" in message or "-1" in message:  # then the good images must have the same size
        for path in folder.glob("*.png"):
            path.unlink()
        np.save(folder / "good.npy", np.zeros((3, 1, 1, 2), dtype=np.uint8))
    with pytest.raises(UserError) as error:
        load(folder)
    assert error.value.code == code
    assert message in str(error.value)
    assert load_images(folder.parent / "images").description == before
    assert sorted(path.name for path in folder.parent.iterdir() if "elsewhere" not in path.name) == ["folder", "images"]


def test_mixed_channels_need_one_mode(folder: Path) -> None:
    Image.fromarray(noise(6, 5, 3)).save(folder / "colour.png")
    with pytest.raises(UserError, match=r"; set data\.grayscale to true, or convert them to one mode$"):
        load(folder)
    with pytest.raises(UserError, match=r"; set data\.grayscale to true, or convert them to one mode$"):
        load(folder, resize=[3, 3])
    images = load(folder, grayscale=True)
    assert images.image_shape == (1, 6, 5)
    assert images.transforms == "grayscale (ITU-R 601)"
    both = {image.tobytes() for image in np.concatenate([images.train, images.test])}
    assert {noise(6, 5, seed=i).tobytes() for i in range(8)} < both
    Image.fromarray(noise(7, 5, 3)).save(folder / "tall.png")
    with pytest.raises(UserError, match=r"; set data\.resize to \[height, width\]$"):
        load(folder, grayscale=True)
    with pytest.raises(UserError, match=r"; set data\.grayscale to true and data\.resize to \[height, width\], or"):
        load(folder)
    (folder / "deep.png").write_bytes(png(noise(6, 5), 16))
    with pytest.raises(UserError, match=r"; convert them to one mode$"):
        load(folder, grayscale=True, resize=[3, 3])


def test_mixed_sizes_need_a_size(folder: Path) -> None:
    Image.fromarray(noise(7, 5)).save(folder / "tall.png")
    with pytest.raises(UserError, match=r'"tall.png" is 1x7x5 .*data\.resize') as error:
        load(folder)
    assert error.value.code == Exit.INVALID_DATA
    images = load(folder, resize=[3, 3])
    assert images.image_shape == (1, 3, 3)
    assert images.transforms == "resized to 3x3 (bicubic, antialiased)"


def test_every_damaged_file_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    good = png(noise(4, 4), 8)
    for i in range(10_000):
        (tmp_path / "set" / f"{i:05}.png").write_bytes(good)
    cut = ["00000.png", "05000.png", "09999.png"]
    for name in cut:
        (tmp_path / "set" / name).write_bytes(good[:50])
    (tmp_path / "set" / "00077.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"4 of 10000 files cannot be used") as error:
        load(tmp_path / "set")
    assert error.value.code == Exit.MISSING
    assert [str(error.value).count(f'"{name}"') for name in [*cut, "00077.png"]] == [1, 1, 1, 1]
    (tmp_path / "set" / "00077.png").write_bytes(good)  # now all headers are good
    with pytest.raises(UserError, match=r"3 of 10000 files cannot be used") as error:
        load(tmp_path / "set")
    assert [str(error.value).count(f'"{name}"') for name in cut] == [1, 1, 1]


def test_a_folder_of_damaged_files_is_refused(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"8 of 8 files cannot be used"):
        load(folder)


def test_strange_names_are_read_and_shown(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for i, name in enumerate(["line\nend.png", "käse 猫.png", os.fsdecode(b"\xff.png"), "plain.png"]):
        Image.fromarray(noise(4, 4, seed=i)).save(tmp_path / "set" / name)
    assert len(load(tmp_path / "set").train) == 3
    for path in (tmp_path / "set").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError) as error:
        load(tmp_path / "set")
    assert r'"line\nend.png": empty' in str(error.value)
    assert '"käse 猫.png": empty' in str(error.value)


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        ([], Exit.MISSING, "holds no .jpeg, "),
        (["one.png"], Exit.INVALID_DATA, "0 of 1 images would be held out"),
        (["train/1.png"], Exit.INVALID_DATA, "0 of 1 images would be held out"),
        (["train/1.png", "train/2.png"], Exit.INVALID_DATA, 'there is "train"; rename'),
        (["train/1.png", "test/1.png", "a/1.png"], Exit.INVALID_DATA, 'there is "test", "train", "a"; rename'),
        (["test/1.png", "val/1.png"], Exit.INVALID_DATA, 'there is "test", "val"; rename'),
        (["train/1.png", "test/1.png", "eval/1.png"], Exit.INVALID_DATA, 'there is "eval", "test", "train"; rename'),
        (
            ["train/1.png", "test/1.png", "val/1.png", "val/2.png"],
            Exit.INVALID_DATA,
            "2 validation images, but only 1 training images; exchange the folders",
        ),
        (["Training/1.png", "a/1.png", "b/1.png"], Exit.INVALID_DATA, 'there is "Training", "a", "b"; rename'),
        (["learn/1.png", "TEST/1.png"], Exit.INVALID_DATA, 'there is "TEST", "learn"; rename'),
    ],
)
def test_unusable_folders_are_refused(names: list[str], code: Exit, message: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise(4, 4)).save(tmp_path / "set" / name)
    with pytest.raises(UserError) as error:
        load(tmp_path / "set")
    assert error.value.code == code
    assert message in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "npy"])
def test_damage_raises_only_documented_errors(suffix: str, tmp_path: Path) -> None:
    path, generator = tmp_path / f"a.{suffix}", np.random.default_rng(0)
    if suffix == "npy":
        np.save(path, noise(3, 20, 17))
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(noise(20, 17, 3)).save(path, exif=exif)
    good, num_bad = path.read_bytes(), 0
    for _ in range(300):
        content = bytearray(good)
        for place in generator.integers(0, min(len(good), 400), 3):
            content[place] = generator.integers(256)
        path.write_bytes(content[: generator.integers(1, len(good))] if generator.random() < 0.3 else content)
        try:
            inspect(path)
            list(read(path))
        except BadImageError:
            num_bad += 1
    assert num_bad > 30


@contextmanager
def unprivileged() -> Iterator[None]:
    """Give up the rights of root, who may read any file."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


@pytest.mark.parametrize(
    ("source", "mode"),
    [("folder", 0), ("folder", 0o444), ("folder/locked", 0), ("folder/locked/deep", 0o444)],
)
def test_a_folder_that_cannot_be_read_is_named(
    source: str, mode: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "locked" / "deep").mkdir(parents=True)
    (folder / "locked").chmod(mode)
    folder.parent.chmod(0o755)
    monkeypatch.chdir(folder.parent)  # whose own parents other users may not enter
    params = read_params(Path(__file__).parents[2] / "presets" / "digits.yaml")
    with unprivileged(), pytest.raises(UserError, match=r"^folder/locked\S*: Permission denied; make it") as error:
        inspect_path(params.data, params.contract, path=Path(source), out=None, reference=None)
    assert error.value.code == Exit.MISSING


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder of images"):
        load(tmp_path / "nowhere")


@pytest.mark.processes
def test_a_full_disk_leaves_the_previous_set(tmp_path: Path) -> None:
    """A limit on the size of files acts like a full disk: a write fails halfway, with nearly the same error."""
    np.save(tmp_path / "train.npy", noise(300, 3, 32, 32))
    program = (
        "import resource, signal; from pathlib import Path; from test_image_folder import settings;"
        "from flows.stages.download import download;"
        f"job = lambda: download(settings(Path({str(tmp_path)!r}, 'train.npy')), out=Path({str(tmp_path)!r}, 'images'),"
        f" downloads=Path({str(tmp_path)!r}, 'downloads')); job();"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); job()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "images/train.npy: File too large; free some space and run again" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "train.npy"]
    assert len(load_images(tmp_path / "images").train) == 225


def test_a_folder_renamed_by_a_mac_or_a_file_manager_is_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hidden files are not read; hidden images are logged."""
    for name in ("._0.png", ".DS_Store", "__MACOSX/._1.png", "__MACOSX/a/1.png", "class/._2.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    with caplog.at_level(logging.WARNING):
        assert len(load(folder).train) == 6
    assert caplog.text == ""
    for name in (".copy.png", ".thumbnails/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(2, 2)).save(folder / name)
    assert len(load(folder).train) == 6
    assert 'hidden, therefore left out: ".copy.png", ".thumbnails"' in caplog.text


def test_circular_links_are_ignored(folder: Path) -> None:
    (folder / "a").mkdir()
    for link, target in (("a/b", "../c"), ("c", "a/b"), ("self", "self"), ("a/parent", ".."), ("here", ".")):
        (folder / link).symlink_to(target)
    assert len(load(folder).train) == 6


def test_a_circular_link_a_pipe_and_an_invalid_path_are_refused_as_sources(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe.npy")
    for name in ("circle", "pipe.npy", "nul\0"):
        with pytest.raises(UserError, match="is not a folder of images") as error:
            read_folder(tmp_path / name, **SPLIT)
        assert error.value.code == Exit.MISSING
        assert str(error.value).isprintable()
    with pytest.raises(UserError, match=r"x: File name too long$"):
        read_folder(tmp_path / ("x" * 300), **SPLIT)


def test_folders_deeper_than_the_recursion_limit_are_read(folder: Path) -> None:
    here = Path.cwd()
    try:
        os.chdir(folder)
        for _ in range(1200):
            Path("d").mkdir()
            os.chdir("d")
        os.chdir(here)
        assert len(load(folder).train) == 6
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-r", folder], check=True)  # pytest recurses


def test_a_file_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "3.png").chmod(0)
    folder.parent.chmod(0o755)
    monkeypatch.chdir(folder.parent)  # whose own parents other users may not enter
    with unprivileged(), pytest.raises(UserError, match=r'"3\.png": Permission denied; make it readable') as error:
        read_folder(Path("folder"), **SPLIT)
    assert error.value.code == Exit.MISSING


def exhaust(found: ImageFolder) -> None:
    for chunks in found.splits:
        for _ in chunks or ():
            pass


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: Image.fromarray(noise(7, 5)).save(path),
        lambda path: Image.fromarray(noise(6, 5, 3)).save(path),
        lambda path: path.write_bytes(png(noise(6, 5), 16)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["gone", "empty", "cut", "larger", "colour", "deeper", "a folder", "a pipe"],
)
def test_a_picture_that_changes_after_its_head_was_read_is_named(change: Callable[[Path], Any], folder: Path) -> None:
    found = read_folder(folder, **SPLIT)
    change(folder / "3.png")
    with pytest.raises(UserError, match=r'1 of 8 files cannot be used: "3\.png": ') as error:
        exhaust(found)
    assert error.value.code == Exit.MISSING


@pytest.mark.parametrize("images", [noise(4000, 1, 6, 5), noise(2000, 1, 6, 5), noise(3000, 1, 5, 6)])
def test_an_array_that_changes_after_its_head_was_read_is_named(images: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(3000, 1, 6, 5))
    found = read_folder(tmp_path / "a.npy", **SPLIT)
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(UserError, match=r'"a\.npy": changed while it was read; run again') as error:
        exhaust(found)
    assert error.value.code == Exit.MISSING


def test_an_array_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(5000, 1, 40, 40))
    images = read(tmp_path / "a.npy")
    next(images)
    os.truncate(tmp_path / "a.npy", 2_000_000)
    with pytest.raises(BadImageError, match="cut short") as error:
        list(images)
    assert error.value.code == Exit.MISSING


def test_arrays_of_few_columns_are_channels_first(tmp_path: Path) -> None:
    """Channels of 4x4 or pixels of 4 channels: (N,C,H,W) is documented."""
    np.save(tmp_path / "a.npy", noise(8, 1000, 4, 4))
    assert load(tmp_path / "a.npy").image_shape == (1000, 4, 4)
    np.save(tmp_path / "a.npy", noise(8, 28, 28, 3))
    with pytest.raises(UserError, match="channels last"):
        load(tmp_path / "a.npy")


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "line\nend", "<b>\x1b[31mred", "\u202e\x7f\x85"])
def test_names_reach_no_reader_unescaped(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / name).mkdir()
    for i in range(4):
        Image.fromarray(noise(4, 4, seed=i)).save(tmp_path / name / f"{name}{i}.jpg")
    (tmp_path / name / f"{name}.txt").touch()
    with caplog.at_level(logging.INFO):
        load(tmp_path / name)
    title = parse_json((tmp_path / "images" / "dataset.json").read_bytes())["title"]
    assert title.isprintable()
    for split in ("train", "test"):
        for line in files_of(tmp_path / "images", split).read_text(encoding="ascii").splitlines():
            assert parse_json(line).startswith(name.encode(errors="backslashreplace").decode()[:1])
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert len(caplog.records) == 3
    (tmp_path / name / "bad.png").touch()
    with pytest.raises(UserError) as error:
        load(tmp_path / name)
    assert str(error.value).isprintable()


def test_a_folder_without_a_name_has_a_title(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    download(settings(Path()), out=folder.parent / "images", downloads=folder.parent / "downloads")
    assert load_images(folder.parent / "images").description["title"] == "folder"


def test_a_folder_whose_name_begins_with_a_tilde_is_that_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.parent / "~nobody-of-this-name")
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(
        "flows.commands.inspecting.inspect_images", lambda *_, images, **__: {"read": len(load_images(images).train)}
    )
    params = read_params(Path(__file__).parents[2] / "presets" / "digits.yaml")
    path = Path("~nobody-of-this-name")
    assert inspect_path(params.data, params.contract, path=path, out=None, reference=None) == {"read": 5}


def test_a_damaged_tiff_file_gives_an_error_of_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(noise(20, 20)).save(tmp_path / "a.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[8:60] = bytes(52)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(BadImageError):
        list(read(tmp_path / "a.tif"))
    assert capfd.readouterr().err == ""


def test_too_many_images_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.images.splitting.MOST_IMAGES", 7)
    with pytest.raises(UserError, match="folder: 8 images, but at most 7 are read") as error:
        load(folder)
    assert error.value.code == Exit.INVALID_DATA


@pytest.mark.processes
def test_a_download_that_is_killed_at_any_time_leaves_the_old_set_or_the_new(tmp_path: Path) -> None:
    for seed in range(2):
        np.save(tmp_path / f"{seed}.npy", noise(3000, 3, 32, 32, seed=seed))
    program = (
        "import os, signal, sys, time; from pathlib import Path; from test_image_folder import settings;"
        "from flows.stages.download import download; from flows.images.store import data_sha256\n"
        "folder = Path(sys.argv[1]); out = folder / 'images'\n"
        "def job(seed): download(settings(folder / f'{seed}.npy'), out=out, downloads=folder / 'downloads')\n"
        "known = []\n"
        "for seed in range(2): begin = time.monotonic(); job(seed); known.append(data_sha256(out))\n"
        "seconds = time.monotonic() - begin\n"
        "for i in range(25):\n"
        "    child = os.fork()\n"
        "    if not child: job(i % 2); os._exit(0)\n"
        "    time.sleep(1.5 * seconds * i / 25); os.kill(child, signal.SIGKILL); os.waitpid(child, 0)\n"
        "    print(known.index(data_sha256(out)), end='')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert len(done.stdout) == 25, done.stderr
