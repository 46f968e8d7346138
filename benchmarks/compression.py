"""Compare the files of `vdmctl compress` with those of general codecs, in bits/dim and seconds on the CPU.

    python -m benchmarks.compression [--model models/vdm] [--images data/images] [--count N] [--steps 50 100 250]

PNG, WebP and JPEG XL are given all images as one picture, a square of tiles; gzip, bzip2 and xz are given the array.
JPEG XL is left out if `cjxl` is not installed.  Our files are decoded and compared with the images.
"""

import bz2
import gzip
import io
import lzma
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import explained, new_parser, positive, show
from flows.compression import files
from flows.core import layout
from flows.core.model import open_model
from flows.images.image_set import open_images
from flows.images.user_files import open_named

Row = dict[str, Any]
BATCH = 32


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, default=layout.REGISTERED, help="a model folder")
    parser.add_argument("--images", type=Path, default=layout.IMAGES, help="the image set; its test images")
    parser.add_argument("--count", type=positive, help="number of images, the first of the set; default: all")
    parser.add_argument("--steps", type=positive, nargs="*", default=[50, 100, 250], help="numbers of steps T")
    arguments = parser.parse_args()
    with explained(parser):
        images = np.array(open_images(arguments.images)["test"][: arguments.count])
        rows = general(images) + [ours(images, arguments.model, steps) for steps in arguments.steps]
    show({"num_images": len(images), "rows": rows}, as_json=arguments.json)


def general(images: np.ndarray) -> list[Row]:
    """Return a row for each general codec."""
    content, picture = images.tobytes(), tiled(images)
    codecs: dict[str, Callable[[], int]] = {
        "PNG, optimised": lambda: saved(picture, format="PNG", optimize=True),
        "WebP, lossless": lambda: saved(picture, format="WEBP", lossless=True, quality=100, method=6),
        "JPEG XL, lossless": lambda: jpeg_xl(picture),
        "gzip -9": lambda: len(gzip.compress(content, 9)),
        "bzip2 -9": lambda: len(bz2.compress(content)),
        "xz -9e": lambda: len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
    }
    if not shutil.which("cjxl"):
        del codecs["JPEG XL, lossless"]
    rows = []
    for name, size in codecs.items():
        begin = cpu_seconds()
        num_bytes = size()
        bpd = 8 * num_bytes / images.size
        rows.append({"codec": name, "bytes": num_bytes, "bpd": bpd, "encode_s": cpu_seconds() - begin})
    return rows


def tiled(images: np.ndarray) -> Image.Image:
    """Return images (N,C,H,W) of one or three channels as one picture, near to a square; missing tiles are zero."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    full = np.zeros((rows * columns, channels, height, width), np.uint8)
    full[:count] = images
    tiles = full.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    return Image.fromarray(tiles.reshape(rows * height, columns * width, channels).squeeze())


def saved(image: Image.Image, **options: Any) -> int:
    """Return the bytes of a picture that Pillow saves."""
    file = io.BytesIO()
    image.save(file, **options)
    return len(file.getvalue())


def jpeg_xl(image: Image.Image) -> int:
    """Return the bytes of a picture that `cjxl` compresses without loss, with its greatest effort."""
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch, "image.ppm"), Path(scratch, "image.jxl")
        image.save(source)
        command = ["cjxl", source, out, "--distance=0", "--effort=10", "--num_threads=0", "--quiet"]
        subprocess.run(command, check=True, capture_output=True)
        return out.stat().st_size


def cpu_seconds() -> float:
    """Return the seconds on the CPU of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def ours(images: np.ndarray, model: Path, num_timesteps: int) -> Row:
    """Compress and decompress images with a model; return the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        source, file, out = Path(scratch, "x.npy"), Path(scratch, "x.vdmz"), Path(scratch, "out")
        np.save(source, images)
        settings: dict[str, Any] = {"num_timesteps": num_timesteps, "batch_size": BATCH, "verify": False}
        begin = cpu_seconds()
        coder = open_model(model)
        with open_named(source, None, coder, transformed=False) as given:
            done = files.compress(given, coder, file, **settings)
        middle = cpu_seconds()
        files.decompress(file, open_model(model), out)
        end = cpu_seconds()
        if not np.array_equal(np.load(out / "images.npy"), images):
            raise AssertionError("the images differ")
    return {
        "codec": f"ours, T = {num_timesteps}",
        "bytes": done.file_bytes,
        "bpd": done.net_bpd,
        "encode_s": middle - begin,
        "decode_s": end - middle,
        **done.model_dump(include={"code_bpd", "bound_bpd", "bound_bpd_standard_error", "initial_bits"}),
    }


if __name__ == "__main__":
    main()
