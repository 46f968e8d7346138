"""Published sets are read from the publisher's files, which are checked before anything parses them."""

import gc
import gzip
import hashlib
import io
import pickle
import socket
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import scipy.io
from fuzzing import Hostile
from pictures import noise, settings
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from flows.core.errors import Exit, NetworkError, UserError
from flows.core.params import PUBLISHED_FOLDER, Data
from flows.images.catalogue import PUBLISHED
from flows.images.download import download
from flows.images.image_set import ImageSet, open_images, save_images
from flows.images.splitting import digest_of, place

TAR = "cifar-10-python.tar.gz"
DIGEST = "c377f3ed7f8b8c6a84fcd84396b347e1e0df19000b0554e3f413aabf3e3c785b"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def accept(name: str, patch: pytest.MonkeyPatch, files: dict[str, bytes], num_train: int, num_test: int) -> None:
    """Let the sha256 of these contents and these counts be the published ones."""
    digests = {file: sha256(content) for file, content in files.items()}
    patch.setitem(PUBLISHED, name, replace(PUBLISHED[name], files=digests, num_train=num_train, num_test=num_test))


def idx(array: np.ndarray) -> bytes:
    """Return an array in MNIST's file format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def packed(contents: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """Return a tar file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def fashion_mnist(source: Path, patch: pytest.MonkeyPatch) -> None:
    """Write ten and three random images in the publisher's format, and let their checksums be the published ones."""
    contents = {
        "train-images-idx3-ubyte": idx(noise(10, 28, 28)),
        "train-labels-idx1-ubyte": idx(np.arange(10, dtype=np.uint8)),
        "t10k-images-idx3-ubyte": idx(noise(3, 28, 28, seed=1)),
        "t10k-labels-idx1-ubyte": idx(np.arange(3, dtype=np.uint8)),
    }
    for name, content in contents.items():
        (source / f"{name}.gz").write_bytes(gzip.compress(content))
    checksums = [(f"{name}.gz", md5((source / f"{name}.gz").read_bytes())) for name in contents]
    patch.setattr(datasets.FashionMNIST, "resources", checksums)
    accept("fashion_mnist", patch, contents, 10, 3)


def cifar10(source: Path, patch: pytest.MonkeyPatch) -> None:
    """Write five and one batches of two random images, as `fashion_mnist` does."""
    reader = datasets.CIFAR10
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    batches = {
        name: pickle.dumps({"data": noise(2, 3072, seed=number), "labels": [number, 9]})
        for number, name in enumerate(names)
    }
    contents = batches | {"batches.meta": pickle.dumps({"label_names": list("0123456789")})}
    (source / TAR).write_bytes(packed({f"cifar-10-batches-py/{name}": each for name, each in contents.items()}))
    patch.setattr(reader, "train_list", [[name, md5(contents[name])] for name in names[:5]])
    patch.setattr(reader, "test_list", [["test_batch", md5(contents["test_batch"])]])
    patch.setattr(reader, "meta", reader.meta | {"md5": md5(contents["batches.meta"])})
    patch.setattr(reader, "tgz_md5", md5((source / TAR).read_bytes()))
    accept("cifar10", patch, contents, 10, 2)


def svhn(source: Path, patch: pytest.MonkeyPatch) -> None:
    """Write ten and two random images, as `fashion_mnist` does."""
    lists, files = {}, {}
    for seed, (split, count) in enumerate((("train", 10), ("test", 2))):
        path = source / f"{split}_32x32.mat"
        pixels = noise(count, 3, 32, 32, seed=seed).transpose(2, 3, 1, 0)
        scipy.io.savemat(path, {"X": pixels, "y": np.arange(10, 10 - count, -1, dtype=np.uint8)[:, None]})
        files[path.name] = path.read_bytes()
        lists[split] = ["", path.name, md5(path.read_bytes())]
    patch.setattr(datasets.SVHN, "split_list", lists)
    accept("svhn", patch, files, 10, 2)


def imagenet32(source: Path, patch: pytest.MonkeyPatch) -> None:
    """Write the version of 2017: 1,300 images in two batches, whose numbers are their order, and five more."""
    train = noise(1300, 3, 32, 32)
    parts = {"d/train_data_batch_10.npz": train[1200:], "d/train_data_batch_9.npz": train[:1200]}
    archives = {"Imagenet32_train_npz.zip": parts, "Imagenet32_val_npz.zip": {"val.npz": noise(5, 3, 32, 32, seed=1)}}
    for name, batches in archives.items():
        with zipfile.ZipFile(source / name, "w") as archive:
            for batch, images in batches.items():
                content, rows = io.BytesIO(), images.reshape(len(images), -1)
                np.savez_compressed(content, mean=rows.mean(0), labels=np.arange(len(rows)) + 1, data=rows)
                archive.writestr(batch, content.getvalue())
    accept("imagenet32", patch, {name: (source / name).read_bytes() for name in archives}, 1300, 5)


def imagenet32_2016(source: Path, patch: pytest.MonkeyPatch) -> None:
    """Write the version of 2016: ten and three PNG files."""
    archives = {}
    for seed, (name, count) in enumerate((("train_32x32", 10), ("valid_32x32", 3))):
        contents = {}
        for number, pixels in enumerate(noise(count, 3, 32, 32, seed=seed)):
            file = io.BytesIO()
            Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
            contents[f"{name}/{number}.png"] = file.getvalue()
        archives[f"{name}.tar"] = packed(contents, "w")
        (source / f"{name}.tar").write_bytes(archives[f"{name}.tar"])
    accept("imagenet32_2016", patch, archives, 10, 3)


PUBLISHERS = {write.__name__: write for write in (fashion_mnist, cifar10, svhn, imagenet32, imagenet32_2016)}


Publish = Callable[[str], Path]


@pytest.fixture(autouse=True)
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Change to a folder; return a function that writes a small set as its publisher would, and returns its folder."""
    monkeypatch.chdir(tmp_path)

    def written(name: str) -> Path:
        (tmp_path / "source").mkdir()
        PUBLISHERS[name](tmp_path / "source", monkeypatch)
        return tmp_path / "source"

    return written


IMAGES, DOWNLOADS = Path("images"), Path("downloads")


def load(name: str, source: Path | None, **changes: Any) -> ImageSet:
    """Download a set or read it from `source`, and return it."""
    data = settings(Path("x"), **changes).model_copy(update={"name": name, "source": str(source or PUBLISHED_FOLDER)})
    download(data, out=IMAGES, downloads=DOWNLOADS)
    return open_images(IMAGES)


def test_every_name_of_a_published_set_has_an_entry() -> None:
    names = get_args(Data.model_fields["name"].annotation)
    assert {*PUBLISHED, "digits", "image_folder"} == set(names)


@pytest.mark.parametrize("name", PUBLISHERS)
def test_publishers_files_are_read(name: str, publish: Publish) -> None:
    images = load(name, publish(name))
    shape, (num_train, num_test) = images.image_shape, (len(images["train"]), len(images["test"]))
    if name == "cifar10":  # five batches of two
        parts = [noise(2, 3072, seed=seed).reshape(2, 3, 32, 32) for seed in range(6)]
        assert np.array_equal(images["train"], np.concatenate(parts[:5]))
        assert np.array_equal(images["test"], parts[5])
    else:
        assert np.array_equal(images["train"], noise(num_train, *shape))
        assert np.array_equal(images["test"], noise(num_test, *shape, seed=1))
    described, entry = images.description, PUBLISHED[name]
    assert (described.title, described.licence) == (entry.title, entry.licence)
    assert (described.published_train, described.published_test) == (num_train, num_test)
    assert (described.split, images.num_levels) == ("as published", 256)
    labels = {
        "fashion_mnist": [*range(10)],
        "cifar10": [0, 9, 1, 9, 2, 9, 3, 9, 4, 9],
        "svhn": [0, 9, 8, 7, 6, 5, 4, 3, 2, 1],  # the publisher's 10 is the digit 0
        "imagenet32": [*range(1200), *range(100)],
    }
    found = open_images(IMAGES).labels("train")
    assert (None if found is None else found.tolist()) == labels.get(name)
    assert sorted(path.name for path in Path().iterdir()) == sorted(
        ["images", "source", *(["downloads"] if "imagenet" not in name else [])]
    )
    assert not [*DOWNLOADS.glob("*")]


def test_validation_images_are_training_images_with_their_labels(publish: Publish) -> None:
    images = load("imagenet32", publish("imagenet32"), validation_fraction=0.2)
    count = len(images["train"]) + len(images["validation"])
    everything = noise(count, *images.image_shape)
    chosen = np.array([place(digest_of(image), "validation", 0) < 0.2 for image in everything])
    assert 0.15 < chosen.mean() < 0.25
    assert np.array_equal(images["validation"], everything[chosen])
    assert np.array_equal(images["train"], everything[~chosen])
    numbers = np.r_[:1200, :100]
    for split, these in (("train", ~chosen), ("validation", chosen)):
        assert np.array_equal(np.asarray(open_images(IMAGES).labels(split)), numbers[these])


@pytest.mark.parametrize("form", ["plain", "in the folder", "unpacked by a browser", "among others"])
def test_a_source_may_hold_its_files_in_other_forms(form: str, publish: Publish) -> None:
    source = publish("cifar10")
    with tarfile.open(source / TAR) as tar:
        contents = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    if form == "unpacked by a browser":
        (source / TAR).write_bytes(gzip.decompress((source / TAR).read_bytes()))
    elif form == "among others":  # entries that lead elsewhere are left in the archive
        (source / TAR).write_bytes(
            packed({"../trace": b"evil", "cifar-10-batches-py/readme.html": b"<html>"} | contents)
        )
    else:
        (source / TAR).unlink()
        for name, content in contents.items():
            place = source / (name if form == "in the folder" else Path(name).name)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
    assert np.array_equal(load("cifar10", source)["test"], noise(2, 3072, seed=5).reshape(2, 3, 32, 32))
    assert not [*Path().rglob("trace")]


def hostile(path: Path) -> None:
    path.with_name("data_batch_1").write_bytes(pickle.dumps(Hostile(path.with_name("trace"))))


def linked(path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(info)
    path.write_bytes(file.getvalue())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_images(path: Path) -> None:
    path.write_bytes(gzip.compress(idx(noise(10, 28, 28, seed=9))))


IDX = "train-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "file", "damage", "message"),
    [
        ("fashion_mnist", IDX, cut, f"{IDX}: truncated or damaged"),
        ("fashion_mnist", IDX, other_images, "train-images-idx3-ubyte has sha256 .*, not .* as published; fetch"),
        ("cifar10", TAR, linked, f"holds no data_batch_1 or data_batch_1.gz or {TAR}"),
        ("cifar10", TAR, hostile, "the uncompressed data_batch_1 has sha256"),
        ("svhn", "test_32x32.mat", cut, "the uncompressed test_32x32.mat has sha256"),
        ("imagenet32", "Imagenet32_val_npz.zip", Path.unlink, "holds no Imagenet32_val_npz.zip; correct data.source"),
        ("imagenet32_2016", "train_32x32.tar", cut, "train_32x32.tar has sha256"),
    ],
)
def test_bad_files_are_named(
    name: str, file: str, damage: Callable[[Path], object], message: str, publish: Publish
) -> None:
    """A hostile pickle is not parsed."""
    source = publish(name)
    damage(source / file)
    with pytest.raises(UserError, match=message) as error:
        load(name, source)
    assert error.value.code is Exit.MISSING
    assert str(source) in str(error.value)
    assert not IMAGES.exists()
    assert not [*Path().rglob("trace"), *DOWNLOADS.glob("*")]


def test_a_missing_source_and_other_counts_are_refused(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    source = publish("fashion_mnist")
    with pytest.raises(UserError, match=r"data\.source: .*gone does not exist"):
        load("fashion_mnist", source / "gone")
    with pytest.raises(
        UserError, match=r"set data\.source in params\.yaml to a folder with Imagenet32_train"
    ) as missing:
        load("imagenet32", None)
    assert missing.value.code is Exit.USAGE
    entry = PUBLISHED["fashion_mnist"]
    for count in (9, 11):
        monkeypatch.setitem(PUBLISHED, "fashion_mnist", replace(entry, num_train=count))
        message = rf"data\.fashion_mnist: 10 images for train, but {count} were expected"
        with pytest.raises(UserError, match=message) as error:
            load("fashion_mnist", source)
        assert error.value.code is Exit.MISSING
    assert not IMAGES.exists()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve the publisher's files, and return the address."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "source"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
    gc.collect()  # answers that torchvision does not close, which warn


def at(address: str, patch: pytest.MonkeyPatch) -> None:
    """Let the publishers' addresses be this one."""
    patch.setattr(datasets.FashionMNIST, "mirrors", [address])
    patch.setattr(datasets.CIFAR10, "url", f"{address}{TAR}")
    for split, (_, name, digest) in dict(datasets.SVHN.split_list).items():
        patch.setitem(datasets.SVHN.split_list, split, [f"{address}{name}", name, digest])


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")  # torchvision's tar file
@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "svhn"])
def test_a_set_is_downloaded(name: str, publish: Publish, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = publish(name)
    load(name, source)
    digest = open_images(IMAGES).data_sha256
    at(server, monkeypatch)
    load(name, None)
    assert open_images(IMAGES).data_sha256 == digest
    assert not [*DOWNLOADS.iterdir()]


UNCLOSED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@UNCLOSED
@pytest.mark.parametrize("trouble", ["no answer", "no file", "cut short"])
def test_a_download_that_fails(trouble: str, publish: Publish, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = publish("cifar10")
    at("http://127.0.0.1:9/" if trouble == "no answer" else server, monkeypatch)
    for path in source.iterdir():
        cut(path) if trouble == "cut short" else path.unlink()
    message = r"could not be downloaded: .*; try again, or name a folder of the publisher's files"
    with pytest.raises(NetworkError, match=message) as error:
        load("cifar10", None)
    assert error.value.code is Exit.MISSING
    assert not IMAGES.exists()
    assert not [*DOWNLOADS.iterdir()]


@UNCLOSED
@pytest.mark.slow
def test_a_server_that_stops_sending_ends_the_download(publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the timeout is made shorter."""
    publish("fashion_mnist")
    monkeypatch.setattr("flows.images.publishers.TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(f"http://127.0.0.1:{silent.getsockname()[1]}/", monkeypatch)
        with pytest.raises(NetworkError, match="timed out"):
            load("fashion_mnist", None)
    assert socket.getdefaulttimeout() is None
    gc.collect()


def test_digits_are_those_of_scikit_learn_with_their_labels() -> None:
    """Each image is in one split, and the validation split takes no test image."""
    images = load("digits", None, test_fraction=0.2, validation_fraction=0.1)
    loaded = load_digits()
    known = {image.astype(np.uint8).tobytes(): label for image, label in zip(loaded.images, loaded.target, strict=True)}
    labels = {split: np.asarray(images.labels(split)) for split in images.splits}
    pairs = [pair for split in images.splits for pair in zip(images[split], labels[split], strict=True)]
    assert len(pairs) == len(known) == 1797
    assert {image.tobytes(): label for image, label in pairs} == known
    assert [len(images[split]) for split in images.splits] == [1269, 163, 365]
    test = np.array(images["test"])
    whole = load("digits", None, test_fraction=0.2, validation_fraction=0)
    assert np.array_equal(whole["test"], test)
    assert not np.array_equal(
        load("digits", None, test_fraction=0.2, validation_fraction=0, split_seed=1)["test"], test
    )


def test_the_digits_of_the_default_run_have_the_digest_of_versions_that_are_registered() -> None:
    load("digits", None, test_fraction=0.2, validation_fraction=0.1)
    assert open_images(IMAGES).data_sha256 == DIGEST


def test_the_digest_is_that_of_the_arrays_levels_and_transforms(tmp_path: Path) -> None:
    images = np.zeros((3, 1, 2, 2), np.uint8)
    save_images(tmp_path, {"train": images, "test": images[:2]}, {"name": "x", "num_levels": 17, "transforms": "gray"})
    files = [sha256((tmp_path / f"{split}.npy").read_bytes()) for split in ("train", "test")]
    content = f"num_levels=17\ntransforms=gray\ntrain {files[0]}\ntest {files[1]}\n"
    assert open_images(tmp_path).data_sha256 == sha256(content.encode())
