"""Publishers' files are read correctly; damaged and hostile ones are refused."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torchvision
from fuzzing import Hostile
from pictures import settings
from sklearn.datasets import load_digits
from torchvision.datasets import SVHN as TorchvisionSVHN

from flows.core.errors import Exit, UserError
from flows.core.params import Data
from flows.images.catalogue import CIFAR10, FASHION_MNIST, PUBLISHED, SVHN, PublishedSet
from flows.images.publishers import Chunk, Splits, divided, read_digits, read_published
from flows.images.splitting import held_out
from flows.images.store import data_sha256, load_images, save_images
from flows.stages.download import download

NONE = np.zeros(0, dtype=np.int64)


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    """Return an array in MNIST's file format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def small_mnist(tmp_path: Path) -> tuple[PublishedSet, Path]:
    """Return Fashion-MNIST's entry with the checksums of a few random images, and the folder that holds them."""
    contents = {
        "train-images-idx3-ubyte": idx(images(5, 28, 28)),
        "train-labels-idx1-ubyte": idx(images(5)),
        "t10k-images-idx3-ubyte": idx(images(3, 28, 28, seed=1)),
        "t10k-labels-idx1-ubyte": idx(images(3)),
    }
    source = tmp_path / "source"
    source.mkdir()
    for name, content in contents.items():
        (source / f"{name}.gz").write_bytes(gzip.compress(content))
    return replace(FASHION_MNIST, files={name: sha256(content) for name, content in contents.items()}), source


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PublishedSet, Path]:
    """Return CIFAR-10's entry with the checksums of a few random images, and the folder that holds its archive."""
    contents = {
        name: pickle.dumps({"data": images(2, 3072, seed=i), "labels": [0, 1]})
        for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"])
    }
    contents["batches.meta"] = pickle.dumps({"label_names": list("0123456789")})
    # torchvision checks its own digests.
    reader = torchvision.datasets.CIFAR10
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(reader, "train_list", [[name, md5[name]] for name, _ in reader.train_list])
    monkeypatch.setattr(reader, "test_list", [[name, md5[name]] for name, _ in reader.test_list])
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": md5["batches.meta"]})
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return replace(CIFAR10, files={name: sha256(content) for name, content in contents.items()}), source


def arrays(splits: Splits) -> list[np.ndarray]:
    """Return the splits as arrays."""
    return [np.concatenate([chunk.images for chunk in chunks]) for chunks in splits.values()]


def published_arrays(entry: PublishedSet, source: Path, folder: Path) -> list[np.ndarray]:
    """Return the training and the test images of a published set."""
    return arrays(read_published(entry, source, folder / "downloads", scratch(folder), validation=NONE))


def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return tmp_path / "scratch"


def test_every_name_of_a_published_set_has_an_entry() -> None:
    names = get_args(Data.model_fields["name"].annotation)
    assert {*PUBLISHED, "digits", "image_folder"} == set(names)


def test_reads_idx_files_compressed_or_not(small_mnist: tuple[PublishedSet, Path], tmp_path: Path) -> None:
    published, source = small_mnist
    packed = source / "train-images-idx3-ubyte.gz"
    (source / "train-images-idx3-ubyte").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    train, test = published_arrays(published, source, tmp_path)
    assert np.array_equal(train, images(5, 28, 28)[:, None])
    assert np.array_equal(test, images(3, 28, 28, seed=1)[:, None])


@pytest.mark.parametrize("unpacked", [False, True])
def test_reads_cifar_batches_packed_or_not(
    unpacked: bool, small_cifar: tuple[PublishedSet, Path], tmp_path: Path
) -> None:
    published, source = small_cifar
    if unpacked:
        with tarfile.open(source / "cifar-10-python.tar.gz") as tar:
            tar.extractall(source, filter="data")
        (source / "cifar-10-python.tar.gz").unlink()
    train, test = published_arrays(published, source, tmp_path)
    assert train.shape == (10, 3, 32, 32)
    assert np.array_equal(test, images(2, 3072, seed=5).reshape(2, 3, 32, 32))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def other_content(path: Path) -> None:
    path.write_bytes(gzip.compress(idx(images(5, 28, 28, seed=9))))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "holds no train-images-idx3-ubyte or train-images-idx3-ubyte.gz"),
        (cut, "truncated or damaged"),
        (lambda path: path.write_bytes(b""), "sha256|truncated"),
        (lambda path: path.write_text("<!DOCTYPE html><title>404</title>"), "truncated or damaged"),
        (other_content, "train-images-idx3-ubyte: sha256 of the uncompressed bytes"),
    ],
    ids=["missing", "truncated", "empty", "an error page", "other images"],
)
def test_a_bad_file_is_named(
    damage: Callable[[Path], object], message: str, small_mnist: tuple[PublishedSet, Path], tmp_path: Path
) -> None:
    published, source = small_mnist
    damage(source / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match=message) as error:
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)
    assert error.value.code == Exit.MISSING
    assert str(source) in str(error.value)


def test_a_hostile_pickle_is_refused_before_it_is_read(small_cifar: tuple[PublishedSet, Path], tmp_path: Path) -> None:
    published, source = small_cifar
    (source / "data_batch_1").write_bytes(pickle.dumps(Hostile(tmp_path / "trace")))
    with pytest.raises(UserError, match="data_batch_1: sha256"):
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)
    assert not (tmp_path / "trace").exists()


def test_a_truncated_archive_is_named(small_cifar: tuple[PublishedSet, Path], tmp_path: Path) -> None:
    published, source = small_cifar
    packed = source / "cifar-10-python.tar.gz"
    packed.write_bytes(packed.read_bytes()[:5000])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)


def test_a_source_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source: .*nowhere is not a folder"):
        read_published(FASHION_MNIST, tmp_path / "nowhere", tmp_path / "downloads", scratch(tmp_path), validation=NONE)


def test_an_address_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.images.fetching.PAUSES", ())
    unreachable = replace(FASHION_MNIST, addresses={"a.gz": ["http://127.0.0.1:9/a.gz"]})
    with pytest.raises(UserError, match=r"could not be downloaded.*data\.source") as error:
        read_published(unreachable, None, tmp_path / "downloads", scratch(tmp_path), validation=NONE)
    assert error.value.code == Exit.MISSING


def test_digits_are_split_by_the_seed() -> None:
    splits, again, other = (arrays(read_digits(0.2, 0.1, seed)) for seed in (0, 0, 1))
    assert list(map(len, splits)) == [1294, 144, 359]
    for first, same, different in zip(splits, again, other, strict=True):
        assert np.array_equal(first, same)
        assert not np.array_equal(first, different)
    assert len(np.unique(np.concatenate(splits).reshape(1797, -1), axis=0)) == 1797


@pytest.mark.parametrize(("fraction", "number"), [(0.0002, 0), (0.9999, 1797)])
def test_a_test_fraction_that_leaves_a_split_empty_is_refused(fraction: float, number: int) -> None:
    reason = rf"digits: {number} of 1797 images would be held out \(data.test_fraction {fraction}\)"
    with pytest.raises(UserError, match=reason) as error:
        read_digits(fraction, 0, 0)
    assert error.value.code == Exit.INVALID_DATA


def test_the_test_images_do_not_depend_on_the_validation_split() -> None:
    whole, divided = read_digits(0.2, 0, 0), read_digits(0.2, 0.1, 0)
    assert list(whole) == ["train", "test"]
    all_train, test = arrays(whole)
    train, validation, same_test = arrays(divided)
    assert np.array_equal(test, same_test)
    assert np.array_equal(np.unique(all_train, axis=0), np.unique(np.concatenate([train, validation]), axis=0))


@pytest.mark.parametrize("fraction", [0.0001, 0.6])
def test_a_validation_fraction_that_leaves_a_split_empty_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"^digits: . of 1 images .*data.validation_fraction") as error:
        held_out("digits", 1, fraction, 0, "data.validation_fraction")
    assert error.value.code == Exit.INVALID_DATA


def test_published_validation_images_are_training_images_with_their_labels(
    small_mnist: tuple[PublishedSet, Path], tmp_path: Path
) -> None:
    entry, source = small_mnist
    whole = read_published(entry, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)
    parts = read_published(entry, source, tmp_path / "downloads", scratch(tmp_path), validation=np.array([3, 0]))
    (everything,), (train,), (validation,) = whole["train"], parts["train"], parts["validation"]
    for part, numbers in ((train, [1, 2, 4]), (validation, [0, 3])):
        assert np.array_equal(part.images, everything.images[numbers])
        assert np.array_equal(part.labels, everything.labels[numbers])


def test_nothing_is_fetched_when_a_source_is_given(
    small_mnist: tuple[PublishedSet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a network call")

    monkeypatch.setattr("socket.socket.connect", refuse)
    published, source = small_mnist
    assert len(published_arrays(published, source, tmp_path)[0]) == 5
    (source / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(UserError, match="holds no t10k-images-idx3-ubyte"):
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)


def test_a_set_leaves_the_downloads_of_others_alone(
    small_mnist: tuple[PublishedSet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNIST and Fashion-MNIST have the same names of files."""
    published, source = small_mnist
    monkeypatch.setitem(PUBLISHED, "fashion_mnist", published)

    def copied(addresses: list[str], path: Path, most: int, take: Callable[[], None]) -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((source / path.name).read_bytes())
        take()

    monkeypatch.setattr("flows.images.publishers.fetch_file", copied)
    interrupted = tmp_path / "downloads" / "mnist" / "train-images-idx3-ubyte.gz"
    interrupted.parent.mkdir(parents=True)
    interrupted.write_bytes(b"MNIST")
    for name in ("fashion_mnist", "digits"):
        data = settings(tmp_path).model_copy(update={"name": name, "source": None})
        download(data, out=tmp_path / "images", downloads=tmp_path / "downloads")
        assert load_images(tmp_path / "images").description["name"] == name
        assert [*(tmp_path / "downloads").rglob("*ubyte*")] == [interrupted]


def test_a_web_page_in_place_of_a_file_is_named_and_a_mirror_takes_over(
    small_mnist: tuple[PublishedSet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other files, which have arrived, stay."""
    published, source = small_mnist
    page = tmp_path / "train-images-idx3-ubyte.gz"
    page.write_text("<!DOCTYPE html><title>Too many requests</title>")
    asked = []

    def receive(address: str, part: Path, most: int) -> None:
        asked.append(address)
        part.write_bytes(((source if address == "mirror" else tmp_path) / part.stem).read_bytes())

    monkeypatch.setattr("flows.images.fetching.receive", receive)
    for name in published.files:
        if name not in page.name:
            (tmp_path / f"{name}.gz").write_bytes((source / f"{name}.gz").read_bytes())
    bad = replace(published, addresses={name: ["publisher"] for name in published.addresses})
    downloads = tmp_path / "downloads"
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz is a web page.*; try again, or set data.source"):
        read_published(bad, None, downloads, scratch(tmp_path), validation=NONE)
    assert page.name not in [path.name for path in downloads.iterdir()]
    asked.clear()
    both = replace(published, addresses={name: ["publisher", "mirror"] for name in published.addresses})
    fetched = arrays(read_published(both, None, downloads, scratch(tmp_path), validation=NONE))
    given = arrays(read_published(published, source, downloads, scratch(tmp_path), validation=NONE))
    assert all((one == other).all() for one, other in zip(fetched, given, strict=True))
    assert asked.count("mirror") == 1


def test_a_bomb_is_not_unpacked(
    small_mnist: tuple[PublishedSet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.images.publishers.MOST_BYTES", 10_000)
    published, source = small_mnist
    (source / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(5_000_000)))
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte is truncated or damaged: unpacks to more than 10000"):
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)
    assert sum(path.stat().st_size for path in scratch(tmp_path).rglob("*") if path.is_file()) < 20_000


def test_paths_and_links_out_of_an_archive_are_not_followed(
    small_cifar: tuple[PublishedSet, Path], tmp_path: Path
) -> None:
    published, source = small_cifar
    archive = source / "cifar-10-python.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (tmp_path / "secret").write_text("secret")

    def packed(*, linked: bool) -> None:
        with tarfile.open(archive, "w:gz") as tar:
            outside = tarfile.TarInfo("../trace")
            outside.size = 4
            tar.addfile(outside, io.BytesIO(b"evil"))
            tar.add(tmp_path / "unpacked" / "cifar-10-batches-py", "cifar-10-batches-py")
            if linked:
                link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
                link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
                tar.addfile(link)

    packed(linked=False)
    train, _ = published_arrays(published, source, tmp_path)
    assert len(train) == 10
    packed(linked=True)
    with pytest.raises(UserError, match="test_batch is truncated or damaged"):
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)
    assert not list(tmp_path.rglob("trace"))


def archive(path: Path, *entries: tuple[str, bytes, bytes], size: bytes | None = None) -> None:
    """Write a packed tar file of names, types and contents.  `size` replaces the last size, with a valid checksum."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.size = len(content)
            info.linkname = "cifar-10-batches-py/data_batch_2"
            place = tar.offset
            tar.addfile(info, io.BytesIO(content))
    plain = bytearray(file.getvalue())
    if size is not None:
        plain[place + 124 : place + 136] = size
        plain[place + 148 : place + 156] = b" " * 8
        plain[place + 148 : place + 156] = b"%06o\0 " % sum(plain[place : place + 512])
    path.write_bytes(gzip.compress(plain))


NEGATIVE = (-512).to_bytes(12, "big", signed=True)
HUGE = b"\x80" + (2**62).to_bytes(11, "big")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("entries", "size", "message"),
    [
        ([("data_batch_1", tarfile.REGTYPE, b"x")], NEGATIVE, "overlap|seeking backwards|invalid offset"),
        ([("data_batch_1", tarfile.REGTYPE, b"x")], HUGE, "unpacks to more than"),
        ([("other", tarfile.REGTYPE, b"x")], HUGE, "unpacks to more than"),
        ([("other", b"x", b"x")], HUGE, "damaged"),
        ([("other", b"L", b"x")], HUGE, "damaged"),
        ([("data_batch_1", tarfile.SYMTYPE, b"")], None, "data_batch_1 is truncated or damaged: .* is not a file"),
        ([("data_batch_1", tarfile.LNKTYPE, b"")], None, "data_batch_1 is truncated or damaged: .* is not a file"),
        ([("data_batch_1", tarfile.FIFOTYPE, b"")], None, "data_batch_1 is truncated or damaged: .* is not a file"),
        ([("data_batch_1", tarfile.CHRTYPE, b"")], None, "data_batch_1 is truncated or damaged: .* is not a file"),
        ([("../cifar-10-batches-py/data_batch_1", tarfile.REGTYPE, b"x")], None, "it holds no cifar-10-batches-py/"),
        ([("/cifar-10-batches-py/data_batch_1", tarfile.REGTYPE, b"x")], None, "it holds no cifar-10-batches-py/"),
        ([], None, "it holds no cifar-10-batches-py/batches.meta"),
    ],
)
def test_hostile_archives_are_refused(
    entries: list[tuple[str, bytes, bytes]],
    size: bytes | None,
    message: str,
    small_cifar: tuple[PublishedSet, Path],
    tmp_path: Path,
) -> None:
    published, source = small_cifar
    named = [(name if "/" in name else f"cifar-10-batches-py/{name}", *rest) for name, *rest in entries]
    archive(source / "cifar-10-python.tar.gz", *named, size=size)
    with pytest.raises(UserError, match=message) as error:
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)
    assert error.value.code == Exit.MISSING
    assert str(error.value).isprintable()
    assert sum(path.stat().st_size for path in scratch(tmp_path).rglob("*") if path.is_file()) < 10


def test_a_file_that_an_archive_holds_twice_is_refused(small_cifar: tuple[PublishedSet, Path], tmp_path: Path) -> None:
    published, source = small_cifar
    with tarfile.open(source / "cifar-10-python.tar.gz") as tar:
        member = tar.extractfile("cifar-10-batches-py/test_batch")
        assert member
        content = member.read()
    entry = ("cifar-10-batches-py/test_batch", tarfile.REGTYPE, content)
    archive(source / "cifar-10-python.tar.gz", entry, entry)
    with pytest.raises(UserError, match="test_batch is truncated or damaged: the archive holds it twice"):
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)


@pytest.mark.slow
def test_an_archive_cannot_fill_the_memory(
    small_cifar: tuple[PublishedSet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive of 200 kB has a header of 200 MB."""
    monkeypatch.setattr("flows.images.reading.MOST_MEMORY", 100 * 2**20)
    published, source = small_cifar
    archive(source / "cifar-10-python.tar.gz", ("header", tarfile.XHDTYPE, bytes(200 * 2**20)))
    with pytest.raises(UserError, match="is truncated or damaged: takes too much memory"):
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)


def test_an_archive_that_a_browser_unpacked_is_read(small_cifar: tuple[PublishedSet, Path], tmp_path: Path) -> None:
    published, source = small_cifar
    path = source / "cifar-10-python.tar.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    train, _ = published_arrays(published, source, tmp_path)
    assert len(train) == 10


@pytest.mark.timeout(120)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_pipes_are_not_opened(suffix: str, small_mnist: tuple[PublishedSet, Path], tmp_path: Path) -> None:
    published, source = small_mnist
    (source / "train-images-idx3-ubyte.gz").unlink()
    os.mkfifo(source / f"train-images-idx3-ubyte{suffix}")
    with pytest.raises(UserError, match="holds no train-images-idx3-ubyte"):
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)


def test_a_wrong_file_is_named_before_the_others_are_unpacked(
    small_mnist: tuple[PublishedSet, Path], tmp_path: Path
) -> None:
    published, source = small_mnist
    other_content(source / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match="train-images-idx3-ubyte: sha256"):
        read_published(published, source, tmp_path / "downloads", scratch(tmp_path), validation=NONE)
    assert [path.name for path in scratch(tmp_path).rglob("*") if path.is_file()] == ["train-images-idx3-ubyte"]


@pytest.mark.parametrize(("seed", "drawn"), [(0, [9, 2, 7]), (7, [4, 6, 10])])
def test_a_seed_holds_out_the_same_images_in_every_version(seed: int, drawn: list[int]) -> None:
    """Else a model would be tested on images to which an older version fitted it."""
    assert held_out("x", 12, 0.25, seed, "data.test_fraction").tolist() == drawn


def test_digits_keep_their_labels() -> None:
    loaded = load_digits()
    known = {image.astype(np.uint8).tobytes(): label for image, label in zip(loaded.images, loaded.target, strict=True)}
    for chunks in read_digits(0.2, 0.1, 0).values():
        for pixels, labels, _ in chunks:
            assert labels is not None
            assert [known[image.tobytes()] for image in pixels] == labels.tolist()


def test_svhn_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    files, lists = {}, {}
    for seed, split in enumerate(("train", "test")):
        path = tmp_path / f"{split}_32x32.mat"
        shown = images(4, 3, 32, 32, seed=seed).transpose(2, 3, 1, 0)
        scipy_io.savemat(path, {"X": shown, "y": np.array([[1], [10], [3], [9]], dtype=np.uint8)})
        files[path.name] = sha256(path.read_bytes())
        lists[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(TorchvisionSVHN, "split_list", lists)
    entry = replace(SVHN, files=files)
    splits = read_published(entry, tmp_path, tmp_path / "none", scratch(tmp_path), validation=NONE)
    (train,), (test,) = splits["train"], splits["test"]
    assert np.array_equal(train.images, images(4, 3, 32, 32))
    assert np.array_equal(test.images, images(4, 3, 32, 32, seed=1))
    assert train.labels is not None
    assert train.labels.tolist() == [1, 0, 3, 9]


def test_the_entries_know_where_svhn_comes_from() -> None:
    assert SVHN.addresses["test_32x32.mat"] == ["http://ufldl.stanford.edu/housenumbers/test_32x32.mat"]


def test_validation_images_are_taken_from_every_chunk() -> None:
    images = np.arange(10, dtype=np.uint8).reshape(-1, 1, 1, 1)
    chunks = [Chunk(images[part], part) for part in np.split(np.arange(10), [4, 7])]
    splits = divided(lambda: chunks, np.array([8, 1, 5]))
    for split, expected in (("train", [0, 2, 3, 4, 6, 7, 9]), ("validation", [1, 5, 8])):
        found = list(splits[split])
        assert np.concatenate([chunk.images.ravel() for chunk in found]).tolist() == expected
        assert [label for chunk in found if chunk.labels is not None for label in chunk.labels] == expected


def test_the_digest_of_images_stays_that_of_versions_that_are_registered(tmp_path: Path) -> None:
    images = np.zeros((3, 1, 2, 2), np.uint8)
    save_images(tmp_path, {"train": images, "test": images[:2]}, {"name": "x", "num_levels": 17, "transforms": "gray"})
    files = [hashlib.sha256((tmp_path / f"{split}.npy").read_bytes()).hexdigest() for split in ("train", "test")]
    content = f"num_levels=17\ntransforms=gray\ntrain {files[0]}\ntest {files[1]}\n"
    assert data_sha256(tmp_path) == hashlib.sha256(content.encode()).hexdigest()
