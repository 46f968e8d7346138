"""Folders with strange names, links, locks or nothing inside are read, or refused with an error that names them."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pictures import load, noise, settings, unprivileged
from PIL import Image
from project import ROOT

from flows.commands.inspecting import inspect_path
from flows.core.errors import Exit, UserError
from flows.core.files import parse_json
from flows.core.params_file import read_params
from flows.images.folder import read_folder
from flows.images.store import files_of, load_images
from flows.stages.download import download


@pytest.mark.parametrize(
    ("names", "code", "message"),
    [
        ([], Exit.MISSING, "holds no .jpeg, "),
        (["one.png"], Exit.INVALID_DATA, "0 of 1 images would be held out"),
        (["train/1.png"], Exit.INVALID_DATA, 'all images are in "train", but'),
        (["train/1.png", "train/2.png"], Exit.INVALID_DATA, 'all images are in "train", but'),
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


@pytest.mark.parametrize(
    ("names", "empty", "message"),
    [
        (["train/a.npy"], "cat", 'all images are in "train", but'),
        (["test.npy"], "cat", 'all images are in "test.npy", but'),
        (["train.npy"], "test", 'no images in "test"; add them'),
        (["cat/a.npy", "dog/b.npy"], "test", 'no images in "test"; add them'),
    ],
)
def test_one_part_is_not_a_whole_set(names: list[str], empty: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "set" / empty).mkdir(parents=True)
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / "set" / name, noise(20, 1, 6, 6))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load(tmp_path / "set")
    assert error.value.code is Exit.INVALID_DATA


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_an_npz_file_is_not_taken_for_a_picture(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=noise(4, 4))
    with pytest.raises(UserError, match=r"\.npz files are not read; save the array of images as \.npy") as refused:
        load(tmp_path / "images.npz")
    assert refused.value.code is Exit.INVALID_DATA


@pytest.mark.parametrize("layout", ["same", "inside", "around", "linked"])
def test_a_source_that_the_output_would_replace_or_join_is_refused(layout: str, tmp_path: Path) -> None:
    out, own = tmp_path / "data" / "images", tmp_path / "data"
    place = {"same": out, "inside": out / "mine", "around": own, "linked": own / "raw"}[layout]
    place.mkdir(parents=True)
    for number in range(10):
        Image.fromarray(noise(4, 4, seed=number)).save(place / f"{number}.png")
    if layout == "linked":
        out.symlink_to("raw")
    data = settings(place)
    with pytest.raises(UserError, match="which is replaced, must lie apart; move the images") as refused:
        download(data, out=out, downloads=tmp_path / "downloads")
    assert refused.value.code is Exit.USAGE
    assert len(list(place.glob("*.png"))) == 10


def test_a_circular_link_a_pipe_and_an_invalid_path_are_refused_as_sources(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe.npy")
    for name in ("circle", "pipe.npy", "nul\0"):
        with pytest.raises(UserError, match=r"is not a folder of images|does not exist") as error:
            read_folder(tmp_path / name, settings(Path("images")))
        assert error.value.code == Exit.MISSING
        assert str(error.value).isprintable()
    with pytest.raises(UserError, match=r"x: File name too long$"):
        read_folder(tmp_path / ("x" * 300), settings(Path("images")))


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
    params = read_params(ROOT / "presets" / "digits.yaml")
    with unprivileged(), pytest.raises(UserError, match=r"^folder/locked\S*: Permission denied; make it") as error:
        inspect_path(params.data, params.contract, path=Path(source), out=None, reference=None)
    assert error.value.code == Exit.MISSING


def test_a_file_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "3.png").chmod(0)
    folder.parent.chmod(0o755)
    monkeypatch.chdir(folder.parent)  # whose own parents other users may not enter
    with unprivileged(), pytest.raises(UserError, match=r'"3\.png": Permission denied; make it readable') as error:
        read_folder(Path("folder"), settings(Path("images")))
    assert error.value.code == Exit.MISSING


def test_too_many_images_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.images.splitting.MOST_IMAGES", 7)
    with pytest.raises(UserError, match="folder: 8 images, but at most 7 are read") as error:
        load(folder)
    assert error.value.code == Exit.INVALID_DATA


def test_circular_links_are_ignored(folder: Path) -> None:
    (folder / "a").mkdir()
    for link, target in (("a/b", "../c"), ("c", "a/b"), ("self", "self"), ("a/parent", ".."), ("here", ".")):
        (folder / link).symlink_to(target)
    assert len(load(folder).train) == 6


def test_a_source_may_lie_in_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder)
    download(settings(Path("~/folder")), out=folder.parent / "images", downloads=folder.parent / "downloads")
    assert load_images(folder.parent / "images").description["title"] == "folder"


@pytest.mark.processes
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


def test_a_folder_renamed_by_a_mac_or_a_file_manager_is_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hidden files are not read; hidden images are logged."""
    for name in ("._0.png", ".DS_Store", "__MACOSX/._1.png", "__MACOSX/a/1.png", "class/._2.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7")
    with caplog.at_level(logging.WARNING):
        assert len(load(folder).train) == 6
    assert [record.name for record in caplog.records] == ["flows.stages.download"]  # of the number of test images
    for name in (".copy.png", ".thumbnails/1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(2, 2)).save(folder / name)
    assert len(load(folder).train) == 6
    assert 'hidden, therefore left out: ".copy.png", ".thumbnails"' in caplog.text


def test_strange_names_are_read_and_shown(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for i, name in enumerate(["line\nend.png", "käse 猫.png", os.fsdecode(b"\xff.png"), "plain.png"]):
        Image.fromarray(noise(4, 4, seed=i)).save(tmp_path / "set" / name)
    assert len(load(tmp_path / "set").train) == 3
    for path in (tmp_path / "set").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError) as error:
        load(tmp_path / "set")
    assert r'"käse 猫.png", "line\nend.png", "plain.png", "\udcff.png": empty' in str(error.value)


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
    assert len(caplog.records) == 4
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
        "flows.commands.inspecting.inspect_images",
        lambda *_, images, **__: SimpleNamespace(report=len(load_images(images).train)),
    )
    params = read_params(ROOT / "presets" / "digits.yaml")
    path = Path("~nobody-of-this-name")
    assert inspect_path(params.data, params.contract, path=path, out=None, reference=None) == 5


@pytest.mark.processes
def test_a_full_disk_leaves_the_previous_set(tmp_path: Path) -> None:
    """A limit on the size of files acts like a full disk: a write fails halfway, with nearly the same error."""
    np.save(tmp_path / "train.npy", noise(300, 3, 32, 32))
    program = (
        "import resource, signal; from pathlib import Path; from pictures import settings;"
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


@pytest.mark.processes
def test_a_download_that_is_killed_at_any_time_leaves_the_old_set_or_the_new(tmp_path: Path) -> None:
    for seed in range(2):
        np.save(tmp_path / f"{seed}.npy", noise(3000, 3, 32, 32, seed=seed))
    program = (
        "import os, signal, sys, time; from pathlib import Path; from pictures import settings;"
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
    environment |= {"TMPDIR": str(tmp_path)}  # the folders of killed downloads stay
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert len(done.stdout) == 25, done.stderr
