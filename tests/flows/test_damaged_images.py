"""An image that cannot be read exactly is refused with an error that names its file."""

import os
import socket
import weakref
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import load, noise, png, settings, tiff
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.images import picture_files
from flows.images.folder import complain, read_folder
from flows.images.picture_files import BadImageError, Head, decoded, inspect, read
from flows.images.publishers import Splits
from flows.images.store import load_images

DEEP = noise(3, 6, 5).astype(np.uint16) * 257


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


def tif(planes: np.ndarray, **form: Any) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(".tif").write_bytes(tiff(planes, **form)) and None


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
        (circle, Exit.MISSING, '"bad.png", "other.png": not a file'),
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
        (tif(DEEP, planar=True, photometric=2), Exit.INVALID_DATA, "16 bits per channel"),
        (tif(DEEP, photometric=2), Exit.INVALID_DATA, "16 bits per channel"),
        (
            tif(noise(4, 6, 5), photometric=2),
            Exit.INVALID_DATA,
            "4 channels, of which 3 would be read; save it as .npy",
        ),
        (tif(noise(5, 6, 5), photometric=2), Exit.INVALID_DATA, "5 channels, of which 3 would be read"),
        (tif(noise(2, 6, 5)), Exit.INVALID_DATA, "2 channels, of which 1 would be read"),
        (tif(DEEP[:1], photometric=0), Exit.INVALID_DATA, "of which 0 is white; save it"),
        (mode("RGB"), Exit.INVALID_DATA, '"0.png" is 1x6x5 of 8 bits, "bad.png" is 3x6x5 of 8 bits; '),
        (array(np.full((6, 5), np.nan)), Exit.INVALID_DATA, "an array of float64, not levels; save the integers"),
        (array(np.float32([[0, 1]])), Exit.INVALID_DATA, "an array of float32, not levels; save the integers"),
        (array(np.array([[0, 256]])), Exit.INVALID_DATA, "level 256 of int64, outside 0..255"),
        (array(np.array([[0, -1]])), Exit.INVALID_DATA, "level -1 of int64"),
        (array(noise(6, 5, 3)), Exit.INVALID_DATA, "channels last"),
        (array(noise(8, 6, 5, 4)), Exit.INVALID_DATA, "channels last"),
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


@pytest.mark.slow
def test_every_damaged_file_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.images.folder.ROWS", 100)  # the images arrive in several chunks
    (tmp_path / "set").mkdir()
    good = png(noise(4, 4), 8)
    for i in range(300):
        (tmp_path / "set" / f"{i:05}.png").write_bytes(good)
    cut = ["00000.png", "00150.png", "00299.png"]
    for name in cut:
        (tmp_path / "set" / name).write_bytes(good[:50])
    (tmp_path / "set" / "00077.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"4 of 300 files cannot be used") as error:
        load(tmp_path / "set")
    assert error.value.code == Exit.MISSING
    assert [str(error.value).count(f'"{name}"') for name in [*cut, "00077.png"]] == [1, 1, 1, 1]
    (tmp_path / "set" / "00077.png").write_bytes(good)  # now all headers are good
    with pytest.raises(UserError, match=r"3 of 300 files cannot be used") as error:
        load(tmp_path / "set")
    assert [str(error.value).count(f'"{name}"') for name in cut] == [1, 1, 1]


def test_thousands_of_unusable_files_give_a_short_message() -> None:
    odd = {f"{i:04}.png": BadImageError("mode RGBA; convert it to gray levels or RGB") for i in range(3000)}
    odd |= {f"cut{i}.png": BadImageError(f"damaged at byte {i}", Exit.MISSING) for i in range(50)}
    with pytest.raises(UserError, match="3050 of 4000 files cannot be used: ") as raised:
        complain(Path("pictures"), odd, 4000)
    message = str(raised.value)
    assert '"0099.png" and 2900 more: mode RGBA; convert it' in message
    assert message.endswith("; and 31 other reasons")
    assert len(message) < 3000


def test_a_folder_of_damaged_files_is_refused(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"8 of 8 files cannot be used"):
        load(folder)


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


def exhaust(splits: Splits) -> None:
    for chunks in splits.values():
        for _ in chunks:
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
    splits, _ = read_folder(folder, settings(Path("images")))
    change(folder / "3.png")
    with pytest.raises(UserError, match=r'1 of 8 files cannot be used: "3\.png": ') as error:
        exhaust(splits)
    assert error.value.code == Exit.MISSING


def test_a_picture_is_freed_before_its_levels_are_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def noted(image: Image.Image, head: Head) -> np.ndarray:
        opened.append(weakref.ref(image))
        return decoded(image, head)

    monkeypatch.setattr(picture_files, "decoded", noted)
    images = read(folder / "3.png")
    next(images)
    assert [picture() for picture in opened] == [None]


def test_a_terminal_shows_how_many_files_have_been_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    with redirect_stderr(terminal):
        exhaust(read_folder(folder, settings(Path("images")))[0])
    for shown in ("looking at files:   0%|", "reading images:   0%|"):
        assert shown in terminal.getvalue()


@pytest.mark.parametrize("images", [noise(4000, 1, 6, 5), noise(2000, 1, 6, 5), noise(3000, 1, 5, 6)])
def test_an_array_that_changes_after_its_head_was_read_is_named(images: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(3000, 1, 6, 5))
    splits, _ = read_folder(tmp_path / "a.npy", settings(Path("images")))
    np.save(tmp_path / "a.npy", images)
    with pytest.raises(UserError, match=r'"a\.npy": changed while it was read; run again') as error:
        exhaust(splits)
    assert error.value.code == Exit.MISSING


def test_an_array_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(5000, 1, 40, 40))
    images = read(tmp_path / "a.npy")
    next(images)
    os.truncate(tmp_path / "a.npy", 2_000_000)
    with pytest.raises(BadImageError, match="cut short") as error:
        list(images)
    assert error.value.code == Exit.MISSING


def test_a_damaged_tiff_file_gives_an_error_of_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(noise(20, 20)).save(tmp_path / "a.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[8:60] = bytes(52)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(BadImageError):
        list(read(tmp_path / "a.tif"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("planes", "form"),
    [
        (noise(3, 6, 5), {"photometric": 2}),
        (noise(3, 6, 5), {"photometric": 2, "planar": True}),
        (noise(1, 6, 5), {}),
        (DEEP[:1], {}),
    ],
)
def test_tiff_files_of_other_tools_are_read_exactly(planes: np.ndarray, form: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(planes, **form))
    (found,) = read(tmp_path / "a.tif")
    assert np.array_equal(found[0], planes)
    assert found.dtype == planes.dtype
