"""Compare the files of `vdmctl compress` with those of general codecs, in bits/dim and seconds on the CPU.

    python -m benchmarks.compression [--model models/vdm] [--images data/images] [--count N] [--steps 50 100 250]

PNG, WebP and JPEG XL are given the images one by one, as in a folder of pictures, and all as one picture, a square of
tiles.  gzip, bzip2 and xz are given the array.  JPEG XL is left out if `cjxl` is not installed.  Our files are decoded
and compared with the images.
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
from flows.core.errors import Exit, UserError
from flows.images.store import load_images

Row = dict[str, Any]


def picture(pixels: np.ndarray) -> Image.Image:
    """Return an image (C,H,W) as a picture."""
    if len(pixels) not in (1, 3):
        raise UserError(f"images of {len(pixels)} channels are no pictures", Exit.USAGE)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def tiled(images: np.ndarray) -> np.ndarray:
    """Return images (N,C,H,W) as one (C, rows H, columns W), near to a square; missing tiles are zero."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    full = np.zeros((rows * columns, channels, height, width), np.uint8)
    full[:count] = images
    return (
        full.reshape(rows, columns, channels, height, width)
        .transpose(2, 0, 3, 1, 4)
        .reshape(channels, rows * height, -1)
    )


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


PICTURES: dict[str, Callable[[Image.Image], int]] = {
    "PNG, optimised": lambda image: saved(image, format="PNG", optimize=True),
    "WebP, lossless": lambda image: saved(image, format="WEBP", lossless=True, quality=100, method=6),
    "JPEG XL, lossless": jpeg_xl,
}
ARRAYS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda content: gzip.compress(content, 9),
    "bzip2 -9": bz2.compress,
    "xz -9e": lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
}


def general(images: np.ndarray) -> list[Row]:
    """Return a row for each general codec."""
    rows = []
    for name, size in PICTURES.items():
        if size is jpeg_xl and not shutil.which("cjxl"):
            continue
        for what, pictures in (("each image", images), ("one picture", [tiled(images)])):
            begin = cpu_seconds()
            num_bytes = sum(size(picture(pixels)) for pixels in pictures)
            rows.append(row(name, what, num_bytes, images, begin))
    for name, compressed in ARRAYS.items():
        begin = cpu_seconds()
        num_bytes = len(compressed(images.tobytes()))
        rows.append(row(name, "the array", num_bytes, images, begin))
    return rows


def row(codec: str, what: str, num_bytes: int, images: np.ndarray, begin: float) -> Row:
    """Return the figures of a codec that began to encode at `begin` and has just ended."""
    seconds = cpu_seconds() - begin
    return {"codec": codec, "of": what, "bytes": num_bytes, "bpd": 8 * num_bytes / images.size, "encode_s": seconds}


def cpu_seconds() -> float:
    """Return the seconds on the CPU of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def ours(images: np.ndarray, model: Path, num_timesteps: int, batch_size: int) -> Row:
    """Compress and decompress images with a model; return the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        source, file, out = Path(scratch, "x.npy"), Path(scratch, "x.vdmz"), Path(scratch, "out")
        np.save(source, images)
        begin = cpu_seconds()
        done = files.compress(
            source,
            split=None,
            model=model,
            out=file,
            num_timesteps=num_timesteps,
            batch_size=batch_size,
            device="cpu",
            verify=False,
            force=False,
        )
        middle = cpu_seconds()
        files.decompress(file, model=model, out=out, device="cpu", force=False)
        end = cpu_seconds()
        if not np.array_equal(np.load(out / "images.npy"), images):
            raise AssertionError("the images differ")
    return {
        "codec": f"ours, T = {num_timesteps}",
        "of": "all images",
        "bytes": done.file_bytes,
        "bpd": done.net_bpd,
        "encode_s": middle - begin,
        "decode_s": end - middle,
        **done.model_dump(include={"code_bpd", "bound_bpd", "bound_bpd_standard_error", "initial_bits"}),
    }


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/vdm"), help="a model folder")
    parser.add_argument("--images", type=Path, default=Path("data/images"), help="the image set; its test images")
    parser.add_argument("--count", type=positive, help="number of images, the first of the set; default: all")
    parser.add_argument("--steps", type=positive, nargs="*", default=[50, 100, 250], help="numbers of steps T")
    parser.add_argument("--batch-size", type=positive, default=32)
    arguments = parser.parse_args()
    with explained(parser):
        images = np.array(load_images(arguments.images).test[: arguments.count])
        rows = general(images)
        rows += [ours(images, arguments.model, steps, arguments.batch_size) for steps in arguments.steps]
    show({"num_images": len(images), "rows": rows}, as_json=arguments.json)


if __name__ == "__main__":
    main()
