"""Documents of the pipeline: a damaged one is an error of one line that names it, and nothing goes on with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import Field

from flows.contract.findings import Verdict, require_valid
from flows.core.documents import Count, Document, Number, Sha256, parse, read_document
from flows.core.errors import Exit, UserError
from flows.images.image_set import open_images, save_images
from flows.training.registering import read_curves


class Figures(Document):
    """A document like those of the pipeline."""

    bpd: Number
    num_images: Count
    data_sha256: Sha256
    labels: dict[str, Count] = Field(default_factory=dict)


FIGURES = {"bpd": 1.7, "num_images": 3, "data_sha256": "a" * 64, "labels": {"0": 5}, "later": [1]}


def test_a_document_keeps_its_unknown_keys() -> None:
    found = parse(Figures, json.dumps(FIGURES).encode(), "metrics.json")
    assert found.model_dump(exclude_unset=True) == FIGURES


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "recursion limit"),
        (b"[]", "Input should be a valid dictionary"),
        (json.dumps(FIGURES | {"bpd": float("nan")}).encode(), "expected value"),
        (json.dumps(FIGURES | {"labels": {"0": -1}}).encode(), "labels.0: Input should be greater than"),
        (json.dumps(FIGURES | {"data_sha256": "x" * 100_000}).encode(), "data_sha256: String should match"),
        (b" " * 2**24 + b"{}", "larger than 16,777,216 bytes, the limit"),
    ],
)
def test_a_damaged_document_is_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: .*{reason}.*; run it again$") as error:
        read_document(Figures, path, "run it again")
    assert error.value.code is Exit.MISSING
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.fixture
def image_set(tmp_path: Path) -> Path:
    """Return a set of twelve small images with labels."""
    pixels = np.arange(12 * 64, dtype=np.uint8).reshape(12, 1, 8, 8) % 17
    save_images(tmp_path / "images", {"train": pixels, "test": pixels}, {"name": "x", "num_levels": 17})
    np.save(tmp_path / "images/train_labels.npy", np.arange(12))
    return tmp_path / "images"


def test_damaged_labels_are_refused(image_set: Path) -> None:
    """test_validate.py has damaged images and descriptions."""
    (image_set / "train_labels.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O'}\n")
    with pytest.raises(UserError, match=r"train_labels\.npy") as error:
        open_images(image_set).labels("train")
    assert error.value.code is Exit.MISSING


@pytest.mark.parametrize("change", [{"success": False}, {"data_sha256": "0" * 64}])
def test_images_that_were_not_found_valid_are_refused(change: dict[str, Any], image_set: Path) -> None:
    images = open_images(image_set)
    described = {"success": True, "data_sha256": images.data_sha256}
    require_valid(images, Verdict(**described), needs_validation_images=False)
    with pytest.raises(UserError, match=r"findings\.json .*; run `vdmctl validate`") as error:
        require_valid(images, Verdict(**described | change), needs_validation_images=False)
    assert error.value.code is Exit.INVALID_DATA


def test_the_end_of_a_training_log_is_read(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text("step,bpd,validation_bpd\n1,3.5,3.2\n2,3.4,3.1\n3,3.3,3.4\n")
    assert read_curves(tmp_path / "curves.csv") == (3, 3.3, [(3.2, 1), (3.1, 2), (3.4, 3)])
