"""download: an image set, checked against its published checksums, as arrays on disk."""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flows.image_sets import CIFAR10, FASHION_MNIST, MNIST, PublishedSet, Splits, read_digits, read_published
from vdm.images import save_images

if TYPE_CHECKING:
    from flows.params import Data

log = logging.getLogger(__name__)


def download(data: "Data", *, out: Path) -> None:
    """Write `train.npy`, `test.npy` and `dataset.json` into `out`.

    Raises UserError (exit 5) for a missing, damaged or unexpected file.
    """
    origin: dict[str, str | int]
    match data.name:
        case "digits":
            splits = read_digits(data.test_fraction, data.split_seed)
            origin = {
                "title": "Optical recognition of handwritten digits (scikit-learn's copy of the test part)",
                "homepage": "https://archive.ics.uci.edu/dataset/80",
                "licence": "CC BY 4.0",
                "num_levels": 17,
            }
        case "mnist":
            splits, origin = published_splits(MNIST, data.source)
        case "fashion_mnist":
            splits, origin = published_splits(FASHION_MNIST, data.source)
        case "cifar10":
            splits, origin = published_splits(CIFAR10, data.source)
    description = {
        **origin,
        "name": data.name,
        "image_shape": list(splits.train.shape[1:]),
        "num_train": len(splits.train),
        "num_test": len(splits.test),
    }
    save_images(out, splits._asdict(), description)
    log.info("%s: %d training and %d test images in %s", data.name, len(splits.train), len(splits.test), out)


def published_splits(published: PublishedSet, source: str | None) -> tuple[Splits, dict[str, str | int]]:
    """The splits of a published set and what is said of it in `dataset.json`."""
    with tempfile.TemporaryDirectory() as scratch:
        splits = read_published(published, Path(source).expanduser() if source else None, Path(scratch))
    origin = {key: getattr(published, key) for key in ("title", "homepage", "licence", "num_levels")}
    return splits, origin
