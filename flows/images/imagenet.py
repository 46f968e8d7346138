"""ImageNet at a low resolution, streamed from the publisher's archives without unpacking them."""

import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from flows.core.errors import Exit, UserError
from flows.core.files import file_sha256
from flows.images.splitting import Batch

if TYPE_CHECKING:
    from flows.images.catalogue import DownsampledImageNet

ROWS = 1000


def read_imagenet(published: "DownsampledImageNet", source: Path | None) -> Iterator[Batch]:
    """Yield the training images, then the test images, from the archives in `source`, whose sha256 is checked first.

    Raises UserError: exit 2 without a source, 5 for an archive that is missing or differs from the published one.
    """
    archives = published.train | published.test
    if source is None:
        reason = f"{published.title} is not downloaded: its publisher asks for an account"
        advice = f"set data.source in params.yaml to a folder with {', '.join(archives)} ({published.homepage})"
        raise UserError(f"{reason}; {advice}", Exit.USAGE)
    for name, expected in archives.items():
        path = source / name
        if not path.is_file():
            raise UserError(f"{source}: holds no {name}; correct data.source", Exit.MISSING)
        if (actual := file_sha256(path)) != expected:
            reason = f"sha256 is {actual}, the published archive has {expected}"
            raise UserError(f"{path}: {reason}; fetch it again", Exit.MISSING)
    read = zipped_batches if published.layout == "npz" else tarred_pictures
    for name in archives:
        yield from read(source / name, published.size)


def zipped_batches(path: Path, size: int) -> Iterator[Batch]:
    """Yield (n,3,H,W) uint8 images and labels from 0, from the npz files in a zip file: batch 10 after batch 9."""
    with zipfile.ZipFile(path) as outer:
        names = [name for name in outer.namelist() if name.endswith(".npz")]
        names.sort(key=lambda name: [int(digits) for digits in re.findall(r"\d+", Path(name).name)])
        for name in names:
            with outer.open(name) as packed, zipfile.ZipFile(packed) as inner:
                with inner.open("labels.npy") as entry:
                    labels = np.lib.format.read_array(entry) - 1
                with inner.open("data.npy") as entry:  # up to 1.6 GB, so not as one array
                    np.lib.format.read_magic(entry)
                    np.lib.format.read_array_header_1_0(entry)
                    for first in range(0, len(labels), ROWS):
                        content = entry.read(3 * size**2 * min(ROWS, len(labels) - first))
                        images = np.frombuffer(content, np.uint8).reshape(-1, 3, size, size)
                        yield Batch(images, labels=labels[first : first + ROWS])


def tarred_pictures(path: Path, size: int) -> Iterator[Batch]:
    """Yield the PNG files in a tar file as (1,3,H,W) uint8 images, in the archive's order, without labels."""
    with tarfile.open(path, "r|") as tar:
        for entry in tar:
            tar.members = []  # type: ignore[attr-defined]  # a million of them would stay in memory
            if entry.isfile() and entry.name.endswith(".png"):
                with Image.open(cast(IO[bytes], tar.extractfile(entry)), formats=["PNG"]) as image:
                    yield Batch(np.asarray(image.convert("RGB")).transpose(2, 0, 1)[None])
