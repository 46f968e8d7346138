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
from flows.images.store import load_images
from flows.stages.download import download

DEEP = png(noise(6, 15), 16, 2, size=(6, 5))


def animated(path: Path) -> None:
    frames = [Image.fromarray(noise(6, 5, seed=i)) for i in range(2)]
    frames[0].save(path.with_suffix(".webp"), save_all=True, append_images=frames[1:])


def out_of_the_folder(path: Path) -> None:
    target = path.parents[1] / "elsewhere.png"
    Image.fromarray(noise(6, 5)).save(target)
    path.symlink_to(target)


def array(content: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path.with_suffix(".npy"), content, **options)


def mode(name: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(noise(6, 5, 3)).convert(name).save(path)


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("add", "code", "message"),
    [
        (content(b""), Exit.MISSING, '"bad.png": damaged: cannot identify'),
        (content(png(noise(6, 5), 8)[:60]), Exit.MISSING, '"bad.png": damaged: '),
        (os.mkfifo, Exit.MISSING, '"bad.png": not a regular file'),
        (out_of_the_folder, Exit.INVALID_DATA, "bad.png: a link that leads out of "),
        (content(png(np.zeros((1, 1)), 8, size=(50_000, 50_000))), Exit.INVALID_DATA, '"bad.png": too large: '),
        (content(DEEP), Exit.INVALID_DATA, '"bad.png": pixels of mode RGB;16B; convert it to gray levels or RGB'),
        (mode("RGBA"), Exit.INVALID_DATA, '"bad.png": pixels of mode RGBA'),
        (animated, Exit.INVALID_DATA, '"bad.webp": several frames'),
        (mode("RGB"), Exit.INVALID_DATA, 'of 2 kinds: "0.png" is 1x6x5 of 8 bits, "bad.png" is 3x6x5 of 8 bits; '),
        (array(np.array([[{}]]), allow_pickle=True), Exit.MISSING, '"bad.npy": damaged: '),
        (array(np.full((6, 5), np.nan)), Exit.INVALID_DATA, "an array of float64, not levels; save the integers"),
        (array(np.full((6, 5), 256)), Exit.INVALID_DATA, "level 256 of int64, outside 0..255"),
        (array(noise(5)), Exit.INVALID_DATA, "an array of (5,), wanted (H,W), (C,H,W) of at most 4 channels, or (N,C,"),
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
    assert load_images(folder.parent / "images").description == before
    assert {path.name for path in folder.parent.iterdir()} - {"elsewhere.png"} == {"folder", "images"}


def test_all_bad_files_are_named_at_once_up_to_ten(folder: Path) -> None:
    good = png(noise(6, 5), 8)
    for i in range(10, 30):
        (folder / f"{i}.png").write_bytes(good[: 40 + i] if i < 22 else good)
    with pytest.raises(UserError, match=r"12 of 28 files cannot be used: .*; and 2 more$") as error:
        load(folder)
    assert [f'"{i}.png": damaged' in str(error.value) for i in range(8, 24)] == [False] * 2 + [True] * 10 + [False] * 4
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    np.save(folder / "a.npy", noise(5))
    with pytest.raises(UserError, match=r"29 of 29 files cannot be used: .*; and 19 more$"):
        load(folder)


@pytest.mark.parametrize(
    ("names", "empty", "code", "message"),
    [
        ([], "cat", Exit.MISSING, "holds no .jpeg, "),
        (["one.png"], "", Exit.INVALID_DATA, "0 of 1 images would be held out"),
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
    for name in ("gone", "pipe.npy"):
        with pytest.raises(UserError, match="does not exist, or is not a folder of images") as error:
            load(tmp_path / name)
        assert error.value.code is Exit.MISSING
    with pytest.raises(UserError, match=r"\.npz files are not read; save the array of images as \.npy") as refused:
        load(tmp_path / "images.npz")
    assert refused.value.code is Exit.INVALID_DATA
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"pictures does not exist in {tmp_path}; name its absolute path"):
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
