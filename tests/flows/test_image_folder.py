"""Folders of images are read exactly: splits, formats, levels, channels and sizes."""

import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import load, noise, png
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.images import picture_files, store
from flows.images.picture_files import inspect, read
from flows.images.store import files_of, load_labels


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


def test_arrays_of_few_columns_are_channels_first(tmp_path: Path) -> None:
    """Channels of 4x4 or pixels of 4 channels: (N,C,H,W) is documented."""
    np.save(tmp_path / "a.npy", noise(8, 1000, 4, 4))
    assert load(tmp_path / "a.npy").image_shape == (1000, 4, 4)
    np.save(tmp_path / "a.npy", noise(8, 28, 28, 3))
    with pytest.raises(UserError, match="channels last"):
        load(tmp_path / "a.npy")


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


def with_icc(path: Path) -> None:
    Image.fromarray(noise(16, 16)).save(path.with_suffix(".webp"), icc_profile=b"an odd number of bytes")


def in_a_frame(path: Path) -> None:
    """Write an animation of one frame."""
    Image.fromarray(noise(16, 16)).save(path.with_suffix(".webp"))
    content = path.with_suffix(".webp").read_bytes()[12:]
    size = b"\x0f\0\0\x0f\0\0"  # less one
    frame = bytes(6) + size + bytes(4) + content
    parts = ((b"VP8X", b"\x02\0\0\0" + size), (b"ANIM", bytes(6)), (b"ANMF", frame))
    packed = b"WEBP" + b"".join(name + struct.pack("<I", len(part)) + part for name, part in parts)
    path.with_suffix(".webp").write_bytes(b"RIFF" + struct.pack("<I", len(packed)) + packed)


def saved(suffix: str, **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(noise(16, 16, 3)).save(path.with_suffix(suffix), **options)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (saved(".webp"), "lossy WEBP"),
        (with_icc, "lossy WEBP"),
        (in_a_frame, "lossy WEBP"),
        (saved(".tif", compression="jpeg"), "lossy TIFF"),
        (saved(".jpg"), "JPEG"),
        (saved(".webp", lossless=True), "WEBP"),
        (saved(".webp", lossless=True, icc_profile=b"odd"), "WEBP"),
        (saved(".tif"), "TIFF"),
        (saved(".tif", compression="tiff_lzw"), "TIFF"),
        (saved(".tif", compression="tiff_adobe_deflate"), "TIFF"),
        (saved(".png"), "PNG"),
    ],
)
def test_lossy_files_are_logged(
    write: Callable[[Path], None], expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "set").mkdir()
    for name in "ab":
        write(tmp_path / "set" / name)
    assert load(tmp_path / "set", test_fraction=0.5).description["formats"] == f"2 {expected}"
    assert ("decoded" in caplog.text) == (expected == "JPEG" or "lossy" in expected)
    assert (f"2 {expected} files: their bits/dim are those of decoded {expected}" in caplog.text) == (
        "decoded" in caplog.text
    )


def test_images_beside_classes_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(noise(4, 4, seed=i)).save(tmp_path / "set" / kind / f"{i}.png")
    load(tmp_path / "set")
    assert "no labels" not in caplog.text
    Image.fromarray(noise(4, 4)).save(tmp_path / "set" / "cover\n.png")
    load(tmp_path / "set")
    assert r'images have no labels, since 1 files are in no class folder, such as "cover\n.png"' in caplog.text
    assert load_labels(tmp_path / "images", "train") is None


def test_images_without_classes_are_not_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(folder)
    assert "no labels" not in caplog.text


def test_classes_without_images_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("full", "empty"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for i in range(4):
        Image.fromarray(noise(4, 4, seed=i)).save(tmp_path / "set" / "full" / f"{i}.png")
    load(tmp_path / "set")
    assert 'classes without images: "empty"' in caplog.text


def test_mixed_channels_need_one_mode(folder: Path) -> None:
    Image.fromarray(noise(6, 5, 3)).save(folder / "colour.png")
    with pytest.raises(UserError, match=r"; set data\.grayscale to true, or convert them to one mode$"):
        load(folder)
    with pytest.raises(UserError, match=r"; set data\.grayscale to true, or convert them to one mode$"):
        load(folder, resize=[3, 3])
    images = load(folder, grayscale=True)
    assert images.image_shape == (1, 6, 5)
    assert images.transforms == "grayscale (ITU-R 601, rounded)"
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


@pytest.mark.parametrize(("full", "empty"), [("val", "test"), ("test", "validation")])
def test_a_part_without_images_is_refused(full: str, empty: str, tmp_path: Path) -> None:
    for part, count in (("train", 6), (full, 2), (empty, 0)):
        (tmp_path / "set" / part).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(4, 4, seed=i)).save(tmp_path / "set" / part / f"{i}.png")
    with pytest.raises(UserError, match=f'set: no images in "{empty}"; add them') as error:
        load(tmp_path / "set")
    assert error.value.code is Exit.INVALID_DATA
    (tmp_path / "set" / empty).rmdir()
    load(tmp_path / "set")


def test_a_relative_source_that_is_missing_is_named_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"pictures does not exist in {tmp_path}; name its absolute path") as error:
        load(Path("pictures"))
    assert error.value.code is Exit.MISSING


def test_a_photograph_with_a_preview_is_read_as_the_photograph(tmp_path: Path) -> None:
    """Phones and cameras append previews and gain maps to their JPEG files."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    photograph, preview = (Image.fromarray(noise(*size, 3)) for size in ((20, 17), (5, 4)))
    photograph.save(tmp_path / "plain.jpg", exif=exif)
    photograph.save(tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=[preview], exif=exif)
    plain, camera = (inspect(tmp_path / name) for name in ("plain.jpg", "camera.jpg"))
    assert camera == plain
    assert camera.format == "JPEG"
    pixels = [next(read(tmp_path / name, plain)) for name in ("plain.jpg", "camera.jpg")]
    assert np.array_equal(*pixels)


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_a_large_picture_is_read_in_strips(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_files, "STRIP", 2 * 7)  # two rows; the last strip has one
    Image.fromarray(noise(*shape)).save(tmp_path / "large.png")
    assert np.array_equal(
        next(read(tmp_path / "large.png"))[0], noise(9, 7, *shape[2:]).reshape(9, 7, -1).transpose(2, 0, 1)
    )


def test_images_that_are_transformed_in_parts_keep_their_labels_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_CHUNK_BYTES", 200)  # six images of 4x8, three of 6x10
    for split in ("train", "test"):
        for label in range(5):
            (tmp_path / "set" / split / str(label)).mkdir(parents=True)
            Image.fromarray(np.full((4, 8), label, dtype=np.uint8)).save(tmp_path / "set" / split / f"{label}/0.png")
    images = load(tmp_path / "set", pad=1)
    labels = load_labels(tmp_path / "images", "train")
    assert images.train[:, 0, 2, 2].tolist() == list(range(5))
    assert labels is not None
    assert labels.tolist() == list(range(5))
    names = files_of(tmp_path / "images", "train").read_text().splitlines()
    assert names == [f'"train/{label}/0.png"' for label in range(5)]
