"""Folders of pictures, for tests of how they are read."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flows.core.params import Data
from flows.images.download import download
from flows.images.image_set import Description, ImageSet, open_images


def settings(source: Path, **changes: Any) -> Data:
    defaults = {
        "name": "image_folder",
        "source": str(source),
        "test_fraction": 0.25,
        "validation_fraction": 0,
        "split_seed": 0,
        "without_copies": False,
        "max_damaged": 0,
    }
    transforms = {
        "background": None,
        "grayscale": False,
        "gray_as_rgb": False,
        "crop": None,
        "resize": None,
        "pad": 0,
        "stored_bits": None,
        "num_bits": 8,
    }
    return Data(**(defaults | transforms | changes))


def load(source: Path, **changes: Any) -> ImageSet:
    out = source.parent / "images"
    download(settings(source, **changes), out=out, downloads=source.parent / "downloads")
    return open_images(out)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray, bits: int, colour: int = 0, size: tuple[int, int] | None = None) -> bytes:
    """Return a PNG file of `bits` per sample, gray (colour 0) or RGB (2); its header may claim another size."""
    rows = pixels.reshape(len(pixels), -1)
    if bits < 8:
        wide = np.unpackbits(rows[..., None].astype(np.uint8), axis=-1)[..., 8 - bits :]
        packed = np.packbits(wide.reshape(len(rows), -1), axis=1)
    else:
        packed = rows.astype(">u2").view(np.uint8) if bits == 16 else rows
    raw = b"".join(b"\0" + row.tobytes() for row in packed)

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = size or pixels.shape
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(raw)) + part(b"IEND", b"")


def tiff(pixels: np.ndarray, bits: int, *, white_is_zero: bool = False, order: str = "<") -> bytes:
    """Return an uncompressed gray TIFF file of `bits` a level; `order` is that of its bytes, < or >."""
    stored = 2**bits - 1 - pixels.astype(int) if white_is_zero else pixels.astype(int)
    wide = np.unpackbits(stored.astype(">u2").view(np.uint8).reshape(*pixels.shape, 2), axis=-1)[..., 16 - bits :]
    packed = np.packbits(wide.reshape(len(pixels), -1), axis=1)
    rows = stored.astype(f"{order}u2").tobytes() if bits == 16 else packed.tobytes()
    height, width = pixels.shape
    short, long = 3, 4
    tags = [
        (256, long, width),
        (257, long, height),
        (258, short, bits),
        (259, short, 1),
        (262, short, not white_is_zero),
    ]
    tags += [(273, long, 8), (277, short, 1), (278, long, height), (279, long, len(rows))]
    content = struct.pack(f"{order}H", len(tags))
    for tag, kind, value in tags:
        form = f"{order}HHIHH" if kind == short else f"{order}HHII"
        content += struct.pack(form, tag, kind, 1, int(value), *([0] if kind == short else []))
    rows += b"\0" * (len(rows) % 2)
    return struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(rows)) + rows + content + bytes(4)


def set_of(num_levels: int, **splits: np.ndarray) -> ImageSet:
    """Return an image set of arrays (N,C,H,W) by split that lie in no folder."""
    counts = {f"num_{split}": len(images) for split, images in splits.items()}
    shape = list(splits["train"].shape[1:])
    description = Description(name="x", num_levels=num_levels, image_shape=shape, **counts)
    return ImageSet("x", description, splits)


def claiming(width: int, height: int, mode: str = "RGB") -> bytes:
    """Return a WebP file of some 34 bytes whose picture is said to have this size."""
    content = BytesIO()
    Image.new(mode, (1, 1)).save(content, "webp", lossless=True)
    data = bytearray(content.getvalue())
    size = int.from_bytes(data[21:25], "little") & ~0xFFFFFFF | (height - 1) << 14 | width - 1
    data[21:25] = size.to_bytes(4, "little")
    return bytes(data)
