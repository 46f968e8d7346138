"""Files made to exhaust memory or time are refused in seconds, or read within bounds."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows.core.errors import Exit
from flows.images.picture_files import BadImageError, inspect, read
from flows.images.store import MOST_CHUNK_BYTES, chunks, fitting, load_array

# A program of two parts, run in a child process, which prints the MiB that the second part adds to the peak memory.
MEASURED = """
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
import sys; from pathlib import Path; folder = Path(sys.argv[1])
{before}
base = peak()
{after}
print(peak() - base)
"""


def measured(before: str, after: str, folder: Path) -> list[str]:
    """Run a program in two parts.  Return the lines that it prints; the last is the second part's memory in MiB."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", MEASURED.format(before=before, after=after), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.splitlines()


def part(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *, before: bytes = b"", after: bytes = b"", channels: int = 1) -> bytes:
    """Return a black PNG file of 8 bits, gray or RGB, with other parts before and after its pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    packed = zlib.compressobj(1)
    pixels = b"".join(packed.compress(bytes(width * channels + 1)) for _ in range(height)) + packed.flush()
    parts = part(b"IHDR", head), before, part(b"IDAT", pixels), after, part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(tags: dict[int, tuple[int, int, int | bytes]], content: bytes = b"") -> bytes:
    """Return a TIFF file from type, count and value of each tag.  `content` is at byte 1000, values of bytes follow."""
    entries, extra = b"", b""
    for tag, (kind, count, value) in sorted(tags.items()):
        place = value if isinstance(value, int) else 10_000 + len(content) + len(extra)
        extra += value if isinstance(value, bytes) else b""
        entries += struct.pack("<HHII", tag, kind, count, place)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    return (head.ljust(1000, b"\0") + content).ljust(10_000 + len(content), b"\0") + extra


def gray_tags(width: int, height: int) -> dict[int, tuple[int, int, int | bytes]]:
    return {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 277: (3, 1, 1)}


def many_frames() -> bytes:
    """Return a TIFF file of 30,000 frames, each of which refers to the next."""
    tags = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in ((256, 4), (257, 4), (258, 8), (273, 8)))
    frames = (struct.pack("<H", 4) + tags + struct.pack("<I", 8 + 54 * (i + 1)) for i in range(30_000))
    return struct.pack("<2sHI", b"II", 42, 8) + b"".join(frames)


def many_offsets() -> bytes:
    count = 2**21
    return tiff(gray_tags(1000, 1000) | {273: (4, count, struct.pack("<I", 8) * count), 278: (4, 1, 1)})


def large_tile() -> bytes:
    """Return a TIFF file of 10x10 pixels in a tile of 20,000x20,000."""
    packed = zlib.compressobj(1)
    content = b"".join(packed.compress(bytes(2**20)) for _ in range(400)) + packed.flush()
    tags = gray_tags(10, 10) | {322: (4, 1, 20_000), 323: (4, 1, 20_000), 324: (4, 1, 1000)}
    return tiff(tags | {259: (3, 1, 8), 325: (4, 1, len(content))}, content)


def many_scans() -> bytes:
    """Return a progressive JPEG file that repeats its last scan, a few bytes that change all pixels."""
    file = io.BytesIO()
    Image.new("L", (2000, 2000), 128).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * 3000 + content[-2:]


def exif_of_overlaps() -> bytes:
    """Return a file with 60,000 EXIF tags, each of which refers to the same 5 MB."""
    tags = b"".join(struct.pack("<HHII", 1000 + i, 7, 4_000_000, 8) for i in range(60_000))
    exif = struct.pack("<2sHIH", b"II", 42, 8, 60_000) + tags
    return png(8, 8, before=part(b"eXIf", exif.ljust(5_000_000, b"\0")))


def webp() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(file, "WEBP", lossless=True, method=0)
    return file.getvalue()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "pixels": ("png", lambda: png(10, 10)[:16] + struct.pack(">II", 2**16, 2**16) + png(10, 10)[24:]),
    "parts before the pixels": ("png", lambda: png(9, 9, before=part(b"tEXt", b"a\0b") * 300_000)),
    "parts after the pixels": ("png", lambda: png(9, 9, after=part(b"teSt", b"") * 600_000)),
    "parts after many pixels": ("png", lambda: png(2000, 2000, after=part(b"teSt", b"") * 2_000_000)),
    "a large part": ("png", lambda: png(9, 9, before=part(b"eXIf", bytes(2**24)))),
    "overlapping EXIF": ("png", exif_of_overlaps),
    "frames": ("tif", many_frames),
    "offsets": ("tif", many_offsets),
    "a tile": ("tif", large_tile),
    "scans": ("jpg", many_scans),
    "junk": ("jpg", lambda: b"\xff\xd8\xff\xe0\0\x02" + b"\xff" + bytes(2**24)),
    "a canvas": ("webp", webp),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bombs")
    for name, (suffix, make) in BOMBS.items():
        (folder / f"{name}.{suffix}").write_bytes(make())
    return folder


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str, bombs: Path) -> None:
    path = bombs / f"{name}.{BOMBS[name][0]}"
    with pytest.raises(BadImageError) as error:
        list(read(path))
    assert error.value.code in (Exit.INVALID_DATA, Exit.MISSING)
    assert len(str(error.value)) < 300


@pytest.mark.processes
def test_no_bomb_takes_a_gigabyte(bombs: Path) -> None:
    before = "from flows.images.picture_files import BadImageError, inspect, read"
    after = (
        "for path in sorted(folder.iterdir()):\n"
        "    try: inspect(path), list(read(path))\n"
        "    except BadImageError: pass\n"
    )
    assert int(measured(before, after, bombs)[-1]) < 800


@pytest.mark.processes
def test_images_are_transformed_a_few_at_a_time(tmp_path: Path) -> None:
    """60 images of 8x8 are padded to 2,056x2,056, which are 254 MB, and four photographs of 300 MB are made smaller.

    Without a limit on a batch, the photographs would take twice as much.
    """
    np.save(tmp_path / "a.npy", np.zeros((60, 1, 8, 8), dtype=np.uint8))
    (tmp_path / "photos").mkdir()
    for i in range(4):
        (tmp_path / "photos" / f"{i}.png").write_bytes(png(5000, 5000, channels=3))
    before = (
        "import torch, logging; from torchvision.transforms.v2 import functional\n"
        "from pictures import settings; from flows.stages.download import download"
    )
    after = (
        "download(settings(folder / 'a.npy', pad=1024), out=folder / 'images', downloads=folder / 'none')\n"
        "print(peak() - base)\n"
        "download(settings(folder / 'photos', resize=[8, 8]), out=folder / 'small', downloads=folder / 'none')"
    )
    enlarged, made_smaller = map(int, measured(before, after, tmp_path)[-2:])
    assert enlarged < 120
    assert made_smaller < 350


def test_chunks_are_bounded_in_bytes() -> None:
    assert fitting(1000, 3072) == 1000
    assert fitting(1000, MOST_CHUNK_BYTES // 10) == 10
    assert fitting(1000, 10 * MOST_CHUNK_BYTES) == fitting(1000, 2**80) == 1
    assert fitting(1000, 0) == 1000
    images = np.broadcast_to(np.uint8(1), (7, 3, 3000, 2000))
    assert [(first, len(chunk)) for first, chunk in chunks(images, 1000)] == [(0, 1), (1, 1), (2, 1)] + [
        (first, 1) for first in range(3, 7)
    ]
    assert [len(chunk) for _, chunk in chunks(images[:, :, :1000], 1000)] == [5, 2]


def header(shape: Any, *, dtype: str = "|u1", fortran: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": fortran, "shape": shape})
    return file.getvalue()


def raw_header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("head", "size", "message"),
    [
        (header((1, 1, 10**5, 10**5)), 10**10, "too large: 10,000,000,000 bytes in one image"),
        (header((3, 10**5, 10**5), dtype="<i8"), 8 * 3 * 10**10, "too large: 240,000,000,000 bytes in one image"),
        (header((10**6, 3, 32, 32), fortran=True), 3072 * 10**6, "too large: 3,072,000,000 bytes in Fortran order"),
        (header((10**9, 3, 32, 32)), 1000, r"damaged: 1,000 bytes, but an array of \(1000000000, 3, 32, 32\) uint8"),
        (header((2**32, 2**32)), 0, "damaged: 0 bytes"),
        (header((-1, -1, 4, 4)), 100, "impossible shape"),
        (header((2**70, 0)), 100, "impossible shape"),
        (header((4, 4), dtype="<U100000000"), 1000, "damaged: 1,000 bytes"),
        (header((1, 4, 4), dtype="|O"), 1000, "an array of object, not levels"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", 2**32 + 100, "damaged: EOF: reading array header"),
        (b"\x93NUMPY\x07\x00\x10\x00", 100, "version"),
        (raw_header(b"(" * 9000), 0, "damaged"),
        (raw_header(b"{'shape': (" + b"9" * 5000 + b",)}"), 0, "damaged"),
        (b"PK\x03\x04", 100, "damaged: the magic string"),
        (b"\x80\x04]\x94.", 100, "damaged: the magic string"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_false_header_is_refused(head: bytes, size: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(head)
    os.truncate(path, len(head) + size)  # sparse, takes no space
    with pytest.raises(BadImageError, match=message) as error:
        list(read(path))
    assert len(str(error.value)) < 300
    assert str(error.value).count("\n") == 0


def test_a_large_array_is_read_in_small_chunks(tmp_path: Path) -> None:
    """The file is sparse, of 40 GB."""
    path, head = tmp_path / "a.npy", header((20_000, 3, 800, 800))
    path.write_bytes(head)
    os.truncate(path, len(head) + 20_000 * 3 * 800 * 800)
    assert inspect(path).num_images == 20_000
    images = read(path)
    assert next(images).nbytes <= MOST_CHUNK_BYTES
    images.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["|b1", "|u1", "<u2", ">u2", "<i8", ">i4"])
@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_of_any_integers_in_any_order_are_read(fortran: bool, dtype: str, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 2, (1500, 3, 4, 5)).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(levels) if fortran else levels)
    images = np.concatenate(list(read(tmp_path / "a.npy")))
    assert np.array_equal(images, levels)
    assert images.dtype == (np.uint16 if dtype.endswith("u2") else np.uint8)


def test_an_array_after_the_images_is_refused(tmp_path: Path) -> None:
    """`np.save` on an open file appends; NumPy reads the first array only, and the others would be lost."""
    path = tmp_path / "a.npy"
    with path.open("wb") as file:
        for level in range(2):
            np.save(file, np.full((10, 1, 4, 4), level, np.uint8))
    with pytest.raises(BadImageError, match="more bytes than its array has"):
        inspect(path)
    with pytest.raises(BadImageError, match="more bytes than its array has"):
        list(read(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_chunks_of_a_mapped_array_are_its_images(dtype: type, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 1, 3, 2)).astype(dtype)
    np.save(tmp_path / "images.npy", images)
    found = list(chunks(load_array(tmp_path / "images.npy"), 3))
    assert [first for first, _ in found] == [0, 3, 6]
    assert np.array_equal(np.concatenate([chunk for _, chunk in found]), images)
