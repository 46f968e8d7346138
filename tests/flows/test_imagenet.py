"""Both versions of the downsampled ImageNet, on small files in the publishers' formats."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.images.catalogue import IMAGENET32, IMAGENET32_2016, DownsampledImageNet
from flows.images.imagenet import read_imagenet

NONE = np.zeros(0, dtype=np.int64)


def pixels(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def zip_of_batches(path: Path, batches: dict[str, np.ndarray], *, compressed: bool) -> None:
    """Write a zip archive of npz files with rows and labels from 1, as the publisher does."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, images in batches.items():
            content = io.BytesIO()
            save = np.savez_compressed if compressed else np.savez
            rows: dict[str, Any] = {"data": images.reshape(len(images), -1), "mean": images.mean(0)}
            save(content, labels=np.arange(len(images)) + 1, **rows)
            archive.writestr(name, content.getvalue())


@pytest.fixture(params=[True, False], ids=["compressed", "stored"])
def batches(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[DownsampledImageNet, Path]:
    """Return the 2017 version's entry with the checksums of a few random images, and the folder of the archives."""
    compressed = request.param
    train = pixels(2300)
    parts = {"d/train_data_batch_10.npz": train[2200:], "d/train_data_batch_9.npz": train[:2200]}
    zip_of_batches(tmp_path / "Imagenet32_train_npz.zip", parts, compressed=compressed)
    zip_of_batches(tmp_path / "Imagenet32_val_npz.zip", {"val_data.npz": pixels(5, seed=1)}, compressed=compressed)
    checksums = [{name: sha256(tmp_path / name)} for name in ("Imagenet32_train_npz.zip", "Imagenet32_val_npz.zip")]
    return replace(IMAGENET32, train=checksums[0], test=checksums[1], num_train=2300, num_test=5), tmp_path


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[DownsampledImageNet, Path]:
    """Return the same for the 2016 version."""
    for name, images in (("train_32x32.tar", pixels(7)), ("valid_32x32.tar", pixels(3, seed=1))):
        with tarfile.open(tmp_path / name, "w") as tar:
            for i, image in enumerate(images):
                content = io.BytesIO()
                Image.fromarray(image.transpose(1, 2, 0)).save(content, "PNG")
                info = tarfile.TarInfo(f"{name[:-4]}/{i}.png")
                info.size = len(content.getvalue())
                tar.addfile(info, io.BytesIO(content.getvalue()))
    checksums = [{name: sha256(tmp_path / name)} for name in ("train_32x32.tar", "valid_32x32.tar")]
    return replace(IMAGENET32_2016, train=checksums[0], test=checksums[1], num_train=7, num_test=3), tmp_path


def read(published: DownsampledImageNet, source: Path) -> tuple[np.ndarray, np.ndarray]:
    splits = read_imagenet(published, source, source / "downloads", validation=NONE)
    train, test = (np.concatenate([chunk.images for chunk in chunks]) for chunks in splits.values())
    return train, test


@pytest.mark.slow
def test_batches_stream_in_the_order_of_their_numbers(batches: tuple[DownsampledImageNet, Path]) -> None:
    train, test = read(*batches)
    assert np.array_equal(train, pixels(2300))
    assert np.array_equal(test, pixels(5, seed=1))
    splits = read_imagenet(*batches, batches[1], validation=NONE)
    chunks = list(splits["train"])
    assert [len(chunk.images) for chunk in chunks] == [1000, 1000, 200, 100]
    assert chunks[1].labels is not None
    assert chunks[1].labels[0] == 1000


def test_pictures_stream_in_the_order_of_the_archive(pictures: tuple[DownsampledImageNet, Path]) -> None:
    train, test = read(*pictures)
    assert np.array_equal(train, pixels(7))
    assert np.array_equal(test, pixels(3, seed=1))


def test_the_versions_are_distinguished(pictures: tuple[DownsampledImageNet, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no Imagenet32_train_npz.zip; correct data.source$"):
        read_imagenet(IMAGENET32, pictures[1], tmp_path / "downloads", validation=NONE)
    published, source = pictures
    wrong = replace(published, train={"train_32x32.tar": "0" * 64})
    with pytest.raises(UserError, match=r"train_32x32.tar: sha256 is .*, the published archive has 000") as error:
        read_imagenet(wrong, source, tmp_path / "downloads", validation=NONE)
    assert error.value.code == Exit.MISSING


def test_of_the_downloads_only_the_wrong_one_is_removed(
    pictures: tuple[DownsampledImageNet, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is downloaded again, and the server has the same wrong file."""
    published, downloads = pictures
    content = (downloads / "valid_32x32.tar").read_bytes()

    def receive(address: str, part: Path, most: int) -> bool:
        part.write_bytes(content)
        return False

    monkeypatch.setattr("flows.images.fetching.receive", receive)
    wrong = replace(published, test={"valid_32x32.tar": "0" * 64})
    with pytest.raises(UserError, match=r"valid_32x32.tar: sha256 is"):
        read_imagenet(wrong, None, downloads, validation=NONE)
    assert [path.name for path in downloads.iterdir()] == ["train_32x32.tar"]
