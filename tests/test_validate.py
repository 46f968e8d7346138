"""The discretization contract: each way to break it is found, named, and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.errors import Exit, UserError
from flows.stages.validate import validate
from vdm.images import ImageSetError, data_sha256, load_images, save_images

# Great Expectations warns about itself and about pandas.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def image_set(tmp_path: Path, digits: np.ndarray) -> Path:
    write_set(tmp_path / "images", digits[:50], digits[50:70])
    return tmp_path / "images"


def write_set(folder: Path, train: np.ndarray, test: np.ndarray, **description: Any) -> None:
    stated = {"name": "digits", "num_levels": 17, "image_shape": [1, 8, 8]}
    counts = {"num_train": len(train), "num_test": len(test)}
    save_images(folder, {"train": train, "test": test}, stated | counts | description)


def run(images: Path) -> dict[str, Any]:
    report = images.parent / "report" / "validation.json"
    validate(images=images, out=report, data_docs=images.parent / "report" / "data_docs")
    return json.loads(report.read_text())  # type: ignore[no-any-return]


def test_good_images_pass_and_the_report_vouches_for_them(image_set: Path) -> None:
    report = run(image_set)
    assert report["success"]
    assert report["data_sha256"] == data_sha256(image_set)
    assert all(entry["success"] for entry in report["expectations"])
    site = image_set.parent / "report" / "data_docs"
    assert (site / "index.html").is_file()
    pages = [page.read_text() for page in (site / "validations").rglob("*.html")]
    assert len(pages) == 2


def test_the_report_is_canonical(image_set: Path) -> None:
    report = image_set.parent / "report" / "validation.json"
    run(image_set)
    first = report.read_bytes()
    run(image_set)
    assert report.read_bytes() == first


def with_value(value: float, dtype: str) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    def break_it(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        train = train.astype(dtype)
        train[7, 0, 3, 3] = value
        return train, test

    return break_it


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (with_value(17, "uint8"), "no level above 16: 1 of 70 rows, such as 17"),
        (with_value(-1, "int64"), "no level below 0: 1 of 70 rows, such as -1"),
        (with_value(np.nan, "float32"), "no pixel is NaN: 1 of 70 rows"),
        (with_value(0.5, "float64"), "pixels are uint8 integers: 50 of 70 rows, such as float64"),
        (lambda train, test: (train, test[:0]), "no empty split"),
        (lambda train, test: (train[:0], test[:0]), "no empty split"),
        (lambda train, test: (train, np.concatenate([test, train[3:5]])), "is a training image too: 2 of 72 rows"),
        (lambda train, test: (train, train.copy()), "is a training image too: 50 of 100 rows"),
        (lambda train, test: (train, test[:, :, :7]), "shape of every image: 20 of 70 rows, such as 1x7x8"),
        (lambda train, test: (train, test[:, :, :0]), "shape of every image: 20 of 70 rows, such as 1x0x8"),
    ],
    ids=["level", "negative", "nan", "float", "no test", "nothing", "leak", "same", "shape", "no pixels"],
)
def test_a_broken_contract_is_named(
    break_it: Callable[..., tuple[np.ndarray, np.ndarray]], reason: str, image_set: Path
) -> None:
    loaded = load_images(image_set)
    write_set(image_set, *break_it(np.array(loaded.train), np.array(loaded.test)))
    with pytest.raises(UserError) as error:
        run(image_set)
    assert error.value.code == Exit.INVALID_DATA
    assert reason in str(error.value)
    report = json.loads((image_set.parent / "report" / "validation.json").read_text())
    assert not report["success"]
    assert (image_set.parent / "report" / "data_docs" / "index.html").is_file()


def test_a_wrong_number_of_images_is_named(image_set: Path) -> None:
    loaded = load_images(image_set)
    write_set(image_set, np.array(loaded.train), np.array(loaded.test), num_train=60_000)
    with pytest.raises(UserError, match="number of images: 70"):
        run(image_set)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "train.npy").unlink(),
        lambda folder: (folder / "train.npy").write_bytes((folder / "train.npy").read_bytes()[:100]),
        lambda folder: (folder / "test.npy").write_bytes(b""),
        lambda folder: (folder / "dataset.json").write_text("{"),
        lambda folder: (folder / "dataset.json").write_text("{}"),
        lambda folder: write_set(folder, *load_images(folder)[1:], num_levels="many"),
        lambda folder: write_set(folder, *load_images(folder)[1:], image_shape=[8, 8]),
        lambda folder: np.save(folder / "test.npy", np.array(["a"])),
        lambda folder: np.save(folder / "test.npy", np.array(3)),
        lambda folder: np.save(folder / "test.npy", np.array([{}], dtype=object), allow_pickle=True),
    ],
    ids=["missing", "truncated", "empty", "description", "keys", "levels", "size", "text", "number", "pickle"],
)
def test_a_damaged_file_is_named(damage: Callable[[Path], object], image_set: Path) -> None:
    damage(image_set)
    with pytest.raises(ImageSetError, match=r"missing or damaged|must be|not images"):
        run(image_set)


def test_the_digest_covers_pixels_and_levels(image_set: Path) -> None:
    loaded, first = load_images(image_set), data_sha256(image_set)
    train, test = np.array(loaded.train), np.array(loaded.test)
    write_set(image_set, train, test)
    assert data_sha256(image_set) == first
    write_set(image_set, train, test, num_levels=16)
    assert data_sha256(image_set) != first
    train[0, 0, 0, 0] ^= 1
    write_set(image_set, train, test)
    assert data_sha256(image_set) != first
