"""Folders with strange names, links or nothing inside are read, or refused with an error of one line."""

import os
from pathlib import Path

import pytest
from pictures import load, noise, settings
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.core.files import parse_json
from flows.images.store import files_of, load_images
from flows.stages.download import download


def write(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(4, 4, seed=seed)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["one.png"],
        ["train/1.png", "train/2.png"],
        ["train/1.png", "test/1.png", "a/1.png"],
        ["train/1.png", "test/1.png", "val/1.png", "val/2.png"],
        ["Training/1.png", "a/1.png", "b/1.png"],
    ],
)
def test_folders_that_are_no_image_set_are_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(write(tmp_path / "set", *names))
    assert error.value.code is Exit.INVALID_DATA


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe.npy")
    for name in ("nowhere", "empty", "circle", "pipe.npy"):
        with pytest.raises(UserError, match=name) as error:
            load(tmp_path / name)
        assert error.value.code is Exit.MISSING


@pytest.mark.parametrize("place", ["data/images", "data/images/mine", "data"])
def test_a_source_that_the_output_would_replace_or_join_is_refused(place: str, tmp_path: Path) -> None:
    source = write(tmp_path / place, *(f"{number}.png" for number in range(10)))
    with pytest.raises(UserError) as error:
        download(settings(source), out=tmp_path / "data/images", downloads=tmp_path / "downloads")
    assert error.value.code is Exit.USAGE
    assert len(list(source.glob("*.png"))) == 10


def test_circular_links_and_hidden_files_are_left_out(folder: Path) -> None:
    for link, target in (("self", "self"), ("here", ".")):
        (folder / link).symlink_to(target)
    for name in ("._0.png", "__MACOSX/._1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert len(load(folder).train) == 6


def test_a_source_may_lie_in_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder)
    download(settings(Path("~/folder")), out=folder.parent / "images", downloads=folder.parent / "downloads")
    assert load_images(folder.parent / "images").description["title"] == "folder"


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "line\nend", "<b>\x1b[31mred"])
def test_names_reach_no_reader_unescaped(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write(tmp_path / name, *(f"{name}{number}.png" for number in range(4)))
    load(source)
    assert parse_json((tmp_path / "images/dataset.json").read_bytes())["title"].isprintable()
    for line in files_of(tmp_path / "images", "train").read_text(encoding="ascii").splitlines():
        assert parse_json(line).startswith(name.encode(errors="backslashreplace").decode()[:1])
    assert all(record.getMessage().isprintable() for record in caplog.records)
    (source / "bad.png").touch()
    with pytest.raises(UserError) as error:
        load(source)
    assert str(error.value).isprintable()
