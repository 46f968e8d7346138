"""Images that cannot be read exactly are refused with an error that names their files, and nothing is written."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import load, noise, png, settings
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.images.download import download
from flows.images.image_set import open_images

DEEP = png(noise(6, 15), 16, 2, size=(6, 5))
ICON = png(noise(6, 20), 8, 6, size=(6, 5))
DEEP_ICON = png(noise(6, 20).astype(np.uint16), 16, 6, size=(6, 5))


def animated(path: Path) -> None:
    frames = [Image.fromarray(noise(6, 5, seed=i)) for i in range(2)]
    frames[0].save(path.with_suffix(".webp"), save_all=True, append_images=frames[1:])


def animated_png(path: Path) -> None:
    frames = [Image.fromarray(noise(6, 5, seed=i)) for i in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def out_of_the_folder(path: Path) -> None:
    target = path.parents[1] / "elsewhere.png"
    Image.fromarray(noise(6, 5)).save(target)
    path.symlink_to(target)


def array(content: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path.with_suffix(".npy"), content, **options)


def mode(name: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(noise(6, 5, 3)).convert(name).save(path)


def tiff(name: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(noise(6, 5, 3)).convert("L").convert(name).save(path.with_suffix(".tif"))


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("add", "code", "message"),
    [
        (
            content(b""),
            Exit.MISSING,
            '1 damaged ("bad.png": not a PNG, JPEG, WEBP, TIFF, GIF or BMP file): replace or remove',
        ),
        (content(png(noise(6, 5), 8)[:60]), Exit.MISSING, '1 damaged ("bad.png": '),
        (os.mkfifo, Exit.MISSING, '1 unreadable ("bad.png": not a regular file)'),
        (out_of_the_folder, Exit.INVALID_DATA, "folder COPY` makes a folder without links"),
        (
            content(png(np.zeros((1, 1)), 8, size=(50_000, 50_000))),
            Exit.INVALID_DATA,
            '1 too large ("bad.png": Image si',
        ),
        (content(DEEP), Exit.INVALID_DATA, '1 in colour with 16 bits ("bad.png"): convert to 8 bits, or save as .npy'),
        (
            content(ICON),
            Exit.INVALID_DATA,
            '1 with transparency ("bad.png"): set data.background (white, black or "#rr',
        ),
        (content(DEEP_ICON), Exit.INVALID_DATA, '1 with transparency ("bad.png"): set data.background'),
        (animated_png, Exit.INVALID_DATA, '1 with several frames ("bad.png"): save each frame as a file'),
        (tiff("CMYK"), Exit.INVALID_DATA, '1 in CMYK ("bad.tif"): convert to RGB'),
        (
            tiff("F"),
            Exit.INVALID_DATA,
            '1 in an unusual pixel format ("bad.tif"): convert to gray levels or RGB of 8 bits',
        ),
        (animated, Exit.INVALID_DATA, '1 with several frames ("bad.webp"): save each frame as a file'),
        (mode("RGB"), Exit.INVALID_DATA, '1 in colour ("bad.png"): convert to gray levels, or set data.grayscale ('),
        (array(np.array([[{}]]), allow_pickle=True), Exit.MISSING, '1 damaged ("bad.npy": '),
        (array(np.full((6, 5), np.nan)), Exit.INVALID_DATA, '1 of float64, not levels ("bad.npy"): save the integers'),
        (array(np.full((6, 5), 256)), Exit.INVALID_DATA, '1 with levels outside 0..255 ("bad.npy": 256 of int64): '),
        (
            array(noise(5)),
            Exit.INVALID_DATA,
            '1 of an unusual shape ("bad.npy": (5,)): save (H,W), (C,H,W) of at most 4',
        ),
        (
            array(noise(7, 4)),
            Exit.INVALID_DATA,
            '1 of another size than 6x5 ("bad.npy"): convert to 6x5, or set data.re',
        ),
        (array(noise(6, 5) > 9), Exit.INVALID_DATA, '1 gray with 1 bit ("bad.npy"): convert to 8 bits'),
    ],
    ids=lambda value: None if isinstance(value, Exit | str) else "",
)
def test_a_bad_file_is_named(add: Callable[[Path], object], code: Exit, message: str, folder: Path) -> None:
    before = load(folder).description  # of a good set, which stays
    add(folder / "bad.png")
    with pytest.raises(UserError) as error:
        load(folder)
    assert error.value.code == code
    assert message in str(error.value)
    assert open_images(folder.parent / "images").description == before
    assert {path.name for path in folder.parent.iterdir()} - {"elsewhere.png"} == {"folder", "images"}


@pytest.mark.parametrize(("most", "is_enough"), [(0, False), (1, False), (2, True), (0.1, False), (0.2, True)])
def test_as_many_damaged_files_are_left_out_and_named_as_the_parameters_allow(
    most: float, is_enough: bool, folder: Path
) -> None:
    """A file that is no level image, as one in CMYK, is not damaged."""
    good = load(folder)
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes(png(noise(6, 5), 8)[:60])
    if not is_enough:
        with pytest.raises(
            UserError, match=r"2 of 10 .*replace or remove; data\.max_damaged leaves out as many"
        ) as error:
            load(folder, max_damaged=most)
        assert error.value.code is Exit.MISSING
        return
    images = load(folder, max_damaged=most)
    assert images.description.damaged == ["empty.png", "half.png"]
    assert images.description.split.endswith('; 2 damaged left out: "empty.png", "half.png"')
    assert images.data_sha256 == good.data_sha256
    mode("CMYK")(folder / "cmyk.tif")
    with pytest.raises(UserError, match="1 of 11 files cannot be used: 1 in CMYK"):
        load(folder, max_damaged=most)


def test_all_bad_files_are_named_in_groups_after_one_pass(folder: Path) -> None:
    """The first file is unlike the others, too."""
    for number in range(20):
        Image.fromarray(noise(6, 5, 3)).save(folder / f"colour{number}.png")
    for number in range(1170):
        (folder / f"icon{number:04}.png").write_bytes(ICON)
    for number, name in enumerate(("deep0", "deep1", "0")):
        (folder / f"{name}.png").write_bytes(png(noise(6, 5).astype(np.uint16) + number, 16))
    (folder / "tall.png").write_bytes(png(noise(7, 5), 8))
    for name in ("x", "y"):
        (folder / f"{name}.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        load(folder)
    assert error.value.code is Exit.MISSING
    assert str(error.value) == (
        f"{folder}: 1,183 of 1,203 files cannot be used: "
        '1,170 with transparency ("icon0000.png", "icon0001.png", "icon0002.png", "icon0003.png", "icon0004.png", and'
        ' 1,165 more): set data.background (white, black or "#rrggbb"), or lay them over a colour and save them without'
        ' alpha; an image editor\'s "convert to RGB" may show colours that transparency hides; '
        '7 gray ("1.png", "2.png", "3.png", "4.png", "5.png", and 2 more): convert to RGB, or set data.grayscale (or'
        " data.gray_as_rgb) for the pipeline; "
        '3 gray with 16 bits ("0.png", "deep0.png", "deep1.png"): convert to RGB and 8 bits; '
        '2 damaged ("x.png": not a PNG, JPEG, WEBP, TIFF, GIF or BMP file, "y.png": not a PNG, JPEG, WEBP, TIFF, GIF or'
        " BMP file): replace or remove; "
        '1 gray of another size than 6x5 ("tall.png"): convert to RGB and 6x5, or set data.grayscale (or'
        " data.gray_as_rgb) and data.resize for the pipeline"
    )


@pytest.mark.parametrize(
    ("names", "empty", "code", "message"),
    [
        ([], "cat", Exit.MISSING, "holds no .bmp, "),
        (["one.png"], "", Exit.INVALID_DATA, "0 test images and 1 training images are left by data.test_fraction 0.25"),
        (["test.npy"], "cat", Exit.INVALID_DATA, 'there is "test.npy"; name one part as the source'),
        (["train/1.png", "test/1.png", "a/1.png"], "", Exit.INVALID_DATA, 'there is "a", "test", "train"; name'),
        (["train/1.png", "val/1.png"], "test", Exit.INVALID_DATA, 'no images in "test"; add them'),
        (["train/1.png", "test/1.png", "val/1.png", "val/2.png"], "", Exit.INVALID_DATA, "2 validation images, but on"),
    ],
)
def test_folders_without_sets_are_refused(
    names: list[str], empty: str, code: Exit, message: str, tmp_path: Path
) -> None:
    (tmp_path / "set" / empty).mkdir(parents=True)
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        if name.endswith(".npy"):
            np.save(tmp_path / "set" / name, noise(20, 1, 6, 6))
        else:
            Image.fromarray(noise(4, 4)).save(tmp_path / "set" / name)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load(tmp_path / "set")
    assert error.value.code is code


def test_sources_that_are_no_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    for name, message in (("gone", "does not exist in "), ("pipe.npy", "is not a folder of images")):
        with pytest.raises(UserError, match=message) as error:
            load(tmp_path / name)
        assert error.value.code is Exit.MISSING
    np.savez(tmp_path / "images.npz", noise(3, 1, 4, 4))
    with pytest.raises(UserError, match=r"\.npz files are not read; save the array of images as \.npy") as refused:
        load(tmp_path / "images.npz")
    assert refused.value.code is Exit.INVALID_DATA
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"pictures does not exist in {tmp_path}; correct the path"):
        load(Path("pictures"))


@pytest.mark.parametrize("layout", ["around", "linked"])
def test_a_source_that_the_output_would_replace_or_join_is_refused(layout: str, tmp_path: Path) -> None:
    """test_pipeline.py has one inside the output."""
    out, own = tmp_path / "data" / "images", tmp_path / "data"
    place = {"around": own, "linked": own / "raw"}[layout]
    place.mkdir(parents=True)
    Image.fromarray(noise(4, 4)).save(place / "0.png")
    if layout == "linked":
        out.symlink_to("raw")
    with pytest.raises(UserError, match="which is replaced, must lie apart; move the images") as refused:
        download(settings(place), out=out, downloads=tmp_path / "downloads")
    assert refused.value.code is Exit.USAGE
    assert (place / "0.png").exists()
