"""Formats beside PNG, tables of labels, and containers give the set that a folder gives; the others are named."""

import csv
import io
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pictures import load, noise
from PIL import Image
from project import ROOT
from pyarrow import parquet

from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.params_file import read_params
from flows.images import containers
from flows.images.image_set import ImageSet
from flows.images.picture import read_images
from flows.images.unpacking import Container, unpack
from flows.training.planning_images import plan_images

NAMES = [f"{kind}/{number}.png" for kind in ("cat", "dog") for number in range(10)]


def content(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(6, 5, seed=number)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def classed(tmp_path: Path) -> ImageSet:
    """Return a set of two folders of pictures."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "folder/set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(number))
    return load(tmp_path / "folder/set")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the system's temporary folder, which is empty."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def write_parquet(path: Path, numbers: Iterable[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"image": [{"bytes": content(number), "path": None} for number in numbers]}), path)


def require_equal(first: ImageSet, second: ImageSet) -> None:
    assert first.data_sha256 == second.data_sha256
    assert first.labels_sha256 == second.labels_sha256
    assert first.class_names == second.class_names


@pytest.mark.parametrize("name", ["a.gif", "a.bmp"])
def test_gray_gif_and_bmp_have_their_levels(name: str, tmp_path: Path) -> None:
    Image.fromarray(noise(16, 17)).save(tmp_path / name)
    found = read_images(tmp_path / name)
    assert (found.num_bits, found.format) == (8, name[2:].upper())
    assert np.array_equal(found.pixels[0], np.broadcast_to(noise(16, 17), found.pixels[0].shape))


def test_colours_of_bmp_and_gif_and_the_first_frame_of_an_animation(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(noise(6, 5, 3)).save(folder / "colour.bmp")
    assert np.array_equal(read_images(folder / "colour.bmp").pixels[0], noise(6, 5, 3).transpose(2, 0, 1))
    colours = Image.fromarray(noise(6, 5, 3)).quantize(16)
    colours.save(folder / "colour.gif")
    expected = np.asarray(colours.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_images(folder / "colour.gif").pixels[0], expected)
    first, second = (Image.fromarray(noise(6, 5, seed=seed)) for seed in (8, 9))
    first.save(folder / "moving.gif", save_all=True, append_images=[second])
    images = load(folder, grayscale=True)
    assert images.description.formats == "1 BMP, 1 GIF, 1 GIF (first frame), 8 PNG"
    assert "of 1 animations, the first frame is taken" in caplog.text
    every = {image.tobytes() for image in np.concatenate([images["train"], images["test"]])}
    assert noise(6, 5, seed=8).tobytes() in every


def test_pictures_that_are_not_read_are_named_with_the_command_that_converts_them(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.svg", "b.SVG", "c.heic", "notes.txt"):
        (folder / name).touch()
    load(folder)
    assert "2 files are .svg, not read; convert by `rsvg-convert --width 64 IN.svg" in caplog.text
    assert "1 file is .heic, not read; convert by `heif-convert IN.heic OUT.png`" in caplog.text
    assert '1 files are not images, such as "notes.txt"' in caplog.text
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds no .*: 2 files are \.svg, not read; convert by") as none:
        load(folder)
    assert none.value.code is Exit.MISSING
    (folder.parent / "set.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 file is \.tar, not read; convert by `tar --extract --file IN.tar`"):
        load(folder.parent / "set.tar")


@pytest.mark.parametrize("header", ["file,label", "file_name,text,label"])
def test_a_table_has_the_labels(header: str, tmp_path: Path, classed: ImageSet) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = [header]
    for number, name in enumerate(NAMES):
        (flat / f"{number:02}.png").write_bytes(content(number))
        lines.append(f"{number:02}.png,{'words,' if 'text' in header else ''}{name[:3]}")
    table = flat / ("metadata.csv" if "text" in header else "labels.csv")
    table.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    require_equal(load(flat), classed)
    table.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match=r'1 images have no label in .*, such as "19\.png"; add them') as without:
        load(flat)
    assert without.value.code is Exit.INVALID_DATA
    table.write_text("name,kind\n")
    with pytest.raises(UserError, match='its columns are "name", "kind", and it needs `file` and `label`'):
        load(flat)


def test_labels_that_are_numbers_keep_their_order(tmp_path: Path) -> None:
    for part in ("train", "test"):
        folder = tmp_path / "set" / part
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.png").write_bytes(content(number + 3 * (part == "test")))
        (folder / "metadata.csv").write_text("file_name,label\n0.png,10\n1.png,9\n2.png,0\n")
    images = load(tmp_path / "set")
    assert images.class_names == ["0", "9", "10"]
    assert np.asarray(images.labels("test")).tolist() == [2, 1, 0]


ODD_LABELS = ["a\nb", "a", "b", "a\u2028b", "a\x0bb", "a\r\nb", 'a"b', "a,b", "a\rb", " "]


@pytest.mark.parametrize("kind", ["table", "parquet"])
def test_labels_keep_every_character(kind: str, tmp_path: Path) -> None:
    if kind == "table":
        (tmp_path / "set").mkdir()
        with (tmp_path / "set/labels.csv").open("w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            lines.writerow(("file", "label"))
            for number in range(20):
                (tmp_path / f"set/{number:02}.png").write_bytes(content(number))
                lines.writerow((f"{number:02}.png", ODD_LABELS[number // 2]))
    else:
        (tmp_path / "set").mkdir()
        rows = {"image": [content(number) for number in range(20)], "label": [*np.repeat(ODD_LABELS, 2)]}
        parquet.write_table(pa.table(rows), tmp_path / "set/a.parquet")
    images = load(tmp_path / "set")
    expected = sorted(ODD_LABELS)
    assert images.class_names == [visible(label) for label in expected]
    found = {
        image.tobytes(): expected[label]
        for split in images.splits
        for image, label in zip(images[split], np.asarray(images.labels(split)).tolist(), strict=True)
    }
    assert found == {noise(6, 5, seed=number).tobytes(): ODD_LABELS[number // 2] for number in range(20)}


@pytest.mark.parametrize("label", ["9" * 5000, 'a"b\n' * 100, "x" * 256])
def test_a_label_that_is_too_long_is_refused(label: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/1.png").write_bytes(content(1))
    doubled = label.replace('"', '""')
    (tmp_path / "set/labels.csv").write_text(f'file,label\n1.png,"{doubled}"\n')
    with pytest.raises(UserError, match=r"set: a label in labels\.csv has [0-9,]+ characters, and 255 are") as refused:
        load(tmp_path / "set")
    assert refused.value.code is Exit.INVALID_DATA


def test_the_order_of_labels_of_one_number_is_that_of_their_digits(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(8):
        (tmp_path / f"set/{number}.png").write_bytes(content(number))
    written = ["1", "01", "001", "0001", "10", "2", "02", "3"]
    lines = [f"{number}.png,{label}\n" for number, label in enumerate(written)]
    (tmp_path / "set/labels.csv").write_text("file,label\n" + "".join(lines))
    assert load(tmp_path / "set").class_names == ["0001", "001", "01", "1", "02", "2", "3", "10"]


@pytest.mark.parametrize("inside", ["", "animals/"])
def test_a_zip_is_read_as_the_folder_in_it(inside: str, tmp_path: Path, classed: ImageSet) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number, name in enumerate(NAMES):
            archive.writestr(inside + name, content(number))
        archive.writestr("__MACOSX/._0.png", b"")
    require_equal(load(tmp_path / "set.zip"), classed)


TAR = """
import tarfile
from pathlib import Path
from typing import BinaryIO

from flows.images.unpacking import Container, Room


class Tar(Container):
    called, endings, damage = "tar", (".tar", ".tar.gz"), (tarfile.TarError,)

    def unpack(self, file: Path, content: BinaryIO, folder: Path, room: Room) -> None:
        with tarfile.open(fileobj=content) as archive:
            entries = archive.getmembers()
            room.take(file, sum(entry.size for entry in entries), len(entries))
            archive.extractall(folder, entries, filter="data")
"""


@pytest.mark.parametrize("inside", ["", "animals"])
def test_one_file_adds_a_kind_of_container(
    inside: str, tmp_path: Path, classed: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "folder/set", inside)
    with pytest.raises(UserError, match=r"1 file is \.tar\.gz, not read; convert by `tar --extract"):
        load(tmp_path / "set.tar.gz")
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds/tar_file.py").write_text(TAR)
    monkeypatch.setattr(containers, "__path__", [*containers.__path__, str(tmp_path / "kinds")])
    monkeypatch.setitem(sys.modules, f"{containers.__name__}.tar_file", None)
    del sys.modules[f"{containers.__name__}.tar_file"]
    require_equal(load(tmp_path / "set.tar.gz"), classed)
    (tmp_path / "set.tar.gz").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"set\.tar\.gz: damaged, or not as it is read") as damaged:
        load(tmp_path / "set.tar.gz")
    assert damaged.value.code is Exit.MISSING


def test_what_a_zip_holds_stays_in_its_folder_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number in range(9):
            archive.writestr(f"../../{number}.png", content(number))
    assert len(load(tmp_path / "set.zip")["train"])
    assert {path.name for path in tmp_path.iterdir()} == {"set.zip", "images"}
    (tmp_path / "set.zip").write_bytes((tmp_path / "set.zip").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"set\.zip: damaged, or not as it is read: File is not a zip file") as damaged:
        load(tmp_path / "set.zip")
    assert damaged.value.code is Exit.MISSING


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("notes.txt", "", r"set\.zip: holds no "),
        ("test/labels.csv", "name\n", r"set\.zip/test/labels\.csv: its columns are "),
        ("other/1.png", "", r"set\.zip: needs parts for training "),
    ],
)
def test_what_is_wrong_inside_a_zip_is_said_of_the_zip(name: str, text: str, reason: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(name, text)
        for part in () if name == "notes.txt" else ("train", "test"):
            archive.writestr(f"{part}/{part}.png", content(len(part)))
    with pytest.raises(UserError, match=f"^{tmp_path}/{reason}"):
        load(tmp_path / "set.zip")


@pytest.mark.filterwarnings("ignore")  # Great Expectations warns about itself and about pandas.
def test_a_preset_for_a_zip_unpacks_it_once_and_says_once_what_it_does_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("notes.txt", "")
        for number in range(100):
            archive.writestr(f"{number}.png", content(number))
    unpacked: list[Path] = []

    def unpack_and_count(kind: type[Container], files: list[Path], source: Path, out: Path) -> Path:
        unpacked.append(out)
        return unpack(kind, files, source, out)

    monkeypatch.setattr("flows.images.folder.unpack", unpack_and_count)
    preset = read_params(ROOT / "presets/digits.yaml")
    found = plan_images(preset, tmp_path / "set.zip", None, classes=False)
    assert sum(found.num_images.values()) == 100
    assert caplog.text.count("set.zip: 1 files are not images") == 1
    assert [path.exists() for path in unpacked] == [False]


@pytest.mark.parametrize("is_hub", [True, False])
def test_parquet_is_read_as_a_folder_with_classes(is_hub: bool, tmp_path: Path, classed: ImageSet) -> None:
    (tmp_path / "hub/data").mkdir(parents=True)
    if is_hub:  # as `datasets` writes it
        pictures = [{"bytes": content(number), "path": name} for number, name in enumerate(NAMES)]
        table = pa.table({"image": pictures, "label": [int(name[:3] == "dog") for name in NAMES]})
        features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    else:
        table = pa.table({"image": [content(number) for number in range(20)], "label": [name[:3] for name in NAMES]})
    halves = [table[:11], table[11:]]
    for number, half in enumerate(halves):
        parquet.write_table(half, tmp_path / f"hub/data/images-{number:05}-of-00002.parquet")
    require_equal(load(tmp_path / "hub"), classed)


def test_parquet_with_splits_and_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for part, first in (("train", 0), ("test", 20)):
        rows = pa.table({"image": [{"bytes": content(first + number), "path": None} for number in range(5)]})
        parquet.write_table(rows, tmp_path / f"set/{part}-00000-of-00001.parquet")
    images = load(tmp_path / "set")
    assert [len(images[split]) for split in images.splits] == [5, 5]
    assert np.array_equal(images["test"][:, 0], np.stack([noise(6, 5, seed=20 + number) for number in range(5)]))
    parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(UserError, match="its columns are text, and none is `image`; rename"):
        load(tmp_path / "text.parquet")
    (tmp_path / "text.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"text\.parquet: damaged"):
        load(tmp_path / "text.parquet")


def test_parquet_of_one_name_in_the_folders_of_the_splits(tmp_path: Path) -> None:
    """Hugging Face converts every set to this layout."""
    write_parquet(tmp_path / "hub/default/train/0000.parquet", range(6))
    write_parquet(tmp_path / "hub/default/test/0000.parquet", range(6, 9))
    for number in range(9):
        path = tmp_path / f"plain/{'train' if number < 6 else 'test'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(number))
    images = load(tmp_path / "hub")
    assert [len(images[split]) for split in images.splits] == [6, 3]
    assert images.data_sha256 == load(tmp_path / "plain").data_sha256


def test_parquet_of_one_name_in_other_folders_and_of_one_split_is_divided_as_a_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "one/a/0000.parquet", range(4))
    write_parquet(tmp_path / "one/b/0000.parquet", range(4, 12))
    write_parquet(tmp_path / "two/train-00000-of-00002.parquet", range(4))
    write_parquet(tmp_path / "two/train-00001-of-00002.parquet", range(4, 12))
    write_parquet(tmp_path / "train.parquet", range(12))
    for number in range(12):
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / f"plain/{number:02}.png").write_bytes(content(number))
    expected = load(tmp_path / "plain").data_sha256
    assert [load(tmp_path / source).data_sha256 for source in ("one", "two", "train.parquet")] == [expected] * 3


def test_parquet_beside_pictures(classed: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "folder/set"
    write_parquet(folder / ".cache/old.parquet", range(3))
    parquet.write_table(pa.table({"file_name": NAMES}), folder / "metadata.parquet")
    require_equal(load(folder), classed)
    assert "1 file is metadata.parquet, not read; convert by `python" in caplog.text
    write_parquet(folder / "data/a.parquet", range(3))
    with pytest.raises(
        UserError, match=r'holds 20 images and 1 Parquet files, such as "data/a\.parquet"; name'
    ) as both:
        load(folder)
    assert both.value.code is Exit.INVALID_DATA


def test_parquet_that_a_link_leads_to(tmp_path: Path) -> None:
    write_parquet(tmp_path / "elsewhere/a.parquet", range(3))
    write_parquet(tmp_path / "set/b.parquet", range(3, 12))
    (tmp_path / "set/a.parquet").symlink_to(tmp_path / "elsewhere/a.parquet")
    with pytest.raises(UserError, match=r"set/a\.parquet: a link that leads out of .*/set; `cp -rL") as out:
        load(tmp_path / "set")
    assert out.value.code is Exit.INVALID_DATA


def test_a_damaged_parquet_is_named_and_nothing_stays_of_the_others(tmp_path: Path, scratch: Path) -> None:
    write_parquet(tmp_path / "set/a.parquet", range(5))
    write_parquet(tmp_path / "set/b.parquet", range(5, 10))
    path = tmp_path / "set/b.parquet"
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[:-9], whole[:60] + bytes(200) + whole[260:], b"PAR1" + whole[-40:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"^{path}: damaged") as refused:
            load(tmp_path / "set")
        assert refused.value.code is Exit.MISSING
        assert not [*scratch.iterdir()]
    path.write_bytes(whole)
    load(tmp_path / "set")
    assert not [*scratch.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 100_000])
def test_a_parquet_that_grows_without_end_is_refused(
    size: int, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dictionary of one value says nothing of the size of its rows."""
    monkeypatch.setattr("flows.images.unpacking.ALWAYS_ROOM", 2**26)
    numbers = pa.array(np.zeros(300_000, np.int32))
    table = pa.table({"image": pa.DictionaryArray.from_arrays(numbers, pa.array([bytes(size)]))})
    parquet.write_table(table, tmp_path / "set.parquet")
    assert (tmp_path / "set.parquet").stat().st_size < 6000
    with pytest.raises(UserError, match=r"set\.parquet: it grows to more than 0\.1 GiB, 200 times its size") as bomb:
        load(tmp_path / "set.parquet")
    assert bomb.value.code is Exit.INVALID_DATA
    assert not [*scratch.iterdir()]


def zipped(path: Path, *entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for number in range(9):
            archive.writestr(f"{number}.png", content(number))
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def cut_inside(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = data.index(b"last.bmp") + 8
    data[start + 20 : start + 60] = b"\xff" * 40
    path.write_bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_inside_a_zip_is_named_and_nothing_stays(method: int, tmp_path: Path, scratch: Path) -> None:
    path = zipped(tmp_path / "set.zip", ("last.bmp", noise(900).tobytes()), method=method)
    cut_inside(path)
    with pytest.raises(UserError, match=rf"^{path}: damaged") as refused:
        load(path)
    assert refused.value.code is Exit.MISSING
    assert not [*scratch.iterdir()]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "reason", "code"),
    [
        ([("", b"")], "damaged, or not as it is read: an entry has no name", Exit.MISSING),
        ([("..", b"")], "damaged, or not as it is read: an entry has no name", Exit.MISSING),
        ([("a.png", b""), ("a.png", b"1")], "damaged, or not as it is read: it holds a.png twice", Exit.MISSING),
        ([("a.png", b""), ("../a.png", b"")], "damaged, or not as it is read: it holds ../a.png twice", Exit.MISSING),
        ([("a", b""), ("a/b.png", b"")], "cannot be unpacked: Not a directory", Exit.MISSING),
        ([("x" * 300, b"")], "cannot be unpacked: File name too long", Exit.MISSING),
        pytest.param([("a.png", bytes(2**28))], "it grows to more than", Exit.INVALID_DATA, marks=pytest.mark.slow),
    ],
)
def test_a_zip_with_odd_entries_is_refused(
    entries: list[tuple[str, bytes]], reason: str, code: Exit, tmp_path: Path, scratch: Path
) -> None:
    path = zipped(tmp_path / "set.zip", *entries)
    with pytest.raises(UserError, match=f"^{re.escape(f'{path}: {reason}')}") as refused:
        load(path)
    assert refused.value.code is code
    assert not [*scratch.iterdir()]


def test_parquet_inside_a_zip_is_to_be_unpacked(tmp_path: Path, scratch: Path) -> None:
    write_parquet(tmp_path / "a.parquet", range(3))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "a.parquet", "a.parquet")
    with pytest.raises(UserError, match=r'^[^:]*/set\.zip: holds Parquet files, such as "a\.parquet", which are read'):
        load(tmp_path / "set.zip")
    assert not [*scratch.iterdir()]
