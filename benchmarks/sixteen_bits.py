"""Pictures of more than 8 bits: a radiograph of 15 bits beside lossless codecs, and the time of 65,536 levels.

    python -m benchmarks.sixteen_bits pictures --dicom FILE [--out data/radiograph]
    python -m benchmarks.sixteen_bits codecs --dicom FILE
    python -m benchmarks.sixteen_bits time

`pictures` writes patches of 16x16 pixels, cut from the rows for training, validation and test, for the preset
`radiograph`.  `codecs` prints what lossless codecs need for the test region as one image, for it as patches below each
other, and for patches in files of their own (`pip install imagecodecs pydicom pydicom-data`).  The file is
RG1_UNCR.dcm of pydicom-data: a radiograph of 1955x1841 pixels with 25,084 levels, of 15 bits.

`time`: the reconstruction term of 64 images of 32x32 with its gradient, and its memory, at 256 and at 65,536 levels.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import profile

from benchmarks import explained, new_parser, positive, show
from flows.core.errors import Exit, UserError
from flows.core.files import replace_folder
from vdm.vlb import reconstruction_loss

SIDE = 16
ROWS = {"test": [(800, 1184)], "validation": [(1184, 1376)], "train": [(0, 800), (1376, 1952)]}
"""The rows of the radiograph that each part has."""
COLUMNS = 1840
MOST_ALONE = 500
"""Patches that are compressed alone, evenly spread."""
Row = dict[str, Any]
Encode = Callable[[np.ndarray], bytes]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("what", choices=["pictures", "codecs", "time"])
    parser.add_argument("--dicom", type=Path, help="RG1_UNCR.dcm of pydicom-data")
    parser.add_argument("--out", type=Path, default=Path("data/radiograph"), help="the folder for the pictures")
    parser.add_argument("--repeats", type=positive, default=20, help="times that the term is computed")
    arguments = parser.parse_args()
    with explained(parser):
        if arguments.what == "time":
            rows = [timed(num_levels, arguments.repeats) for num_levels in (256, 2**16)]
        elif arguments.what == "pictures":
            rows = write_patches(regions(arguments.dicom), arguments.out)
        else:
            rows = codecs(regions(arguments.dicom)["test"])
    show({"rows": rows}, as_json=arguments.json)


def regions(file: Path | None) -> dict[str, np.ndarray]:
    """Return the pixels of each part, (H,W) uint16, one below the other.  Raises UserError without the file."""
    if file is None or not file.exists():
        raise UserError("--dicom must name RG1_UNCR.dcm, which pydicom-data has in data_store/data", Exit.USAGE)
    import pydicom

    pixels = pydicom.dcmread(file).pixel_array
    return {part: np.concatenate([pixels[first:end, :COLUMNS] for first, end in rows]) for part, rows in ROWS.items()}


def patches(region: np.ndarray) -> np.ndarray:
    """Return a region (H,W) in patches (N,1,SIDE,SIDE), row by row."""
    down, across = (length // SIDE for length in region.shape)
    return region.reshape(down, SIDE, across, SIDE).swapaxes(1, 2).reshape(-1, 1, SIDE, SIDE)


def write_patches(found: dict[str, np.ndarray], out: Path) -> list[Row]:
    """Write the patches of each part as an array in a folder of its name; return how many they are."""
    with replace_folder(out) as folder:
        for part, region in found.items():
            (folder / part).mkdir()
            np.save(folder / part / "patches.npy", patches(region))
    return [
        {"part": part, "patches": len(patches(region)), "levels": len(np.unique(region))}
        for part, region in found.items()
    ]


def codecs(region: np.ndarray) -> list[Row]:
    """Return the bits/dim of the region by each codec: whole, as patches below each other, as patches alone."""
    import imagecodecs

    encoders: dict[str, Encode] = {
        "PNG": lambda x: imagecodecs.png_encode(x, level=9),
        "JPEG XL": lambda x: imagecodecs.jpegxl_encode(x, lossless=True, effort=7),
        "JPEG XL, effort 9": lambda x: imagecodecs.jpegxl_encode(x, lossless=True, effort=9),
        "JPEG-LS": imagecodecs.jpegls_encode,
        "JPEG 2000": lambda x: imagecodecs.jpeg2k_encode(x, level=0, reversible=True),
        "HTJ2K": lambda x: imagecodecs.htj2k_encode(x, reversible=True),
        "Rice (FITS)": imagecodecs.rcomp_encode,
        "CCSDS 121 (AEC)": imagecodecs.aec_encode,
        "zstd -22": lambda x: imagecodecs.zstd_encode(x.tobytes(), level=22),
    }
    alone = patches(region)[:, 0]
    column, some = alone.reshape(-1, SIDE), alone[:: -(-len(alone) // MOST_ALONE)]
    rows = []
    for name, encode in encoders.items():
        of_some = [8 * len(encode(np.ascontiguousarray(patch))) / patch.size for patch in some]
        rows.append({
            "codec": name,
            "whole": 8 * len(encode(np.ascontiguousarray(region))) / region.size,
            "column": 8 * len(encode(np.ascontiguousarray(column))) / column.size,
            "alone": float(np.mean(of_some)),
        })  # fmt: skip
    return rows


def timed(num_levels: int, repeats: int) -> Row:
    """Return the milliseconds and the megabytes of the reconstruction term with its gradient, and without."""
    gamma_0 = torch.tensor(-2 * math.log(3 * num_levels), requires_grad=True)
    pixels = torch.randint(num_levels, (64, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(torch.uint8 if num_levels <= 256 else torch.uint16)

    def milliseconds(compute: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            compute()
            times.append(1000 * (time.perf_counter() - begin))
        return float(np.median(times))

    def with_gradient() -> None:
        reconstruction_loss(pixels, gamma_0, num_levels).sum().backward()

    with torch.no_grad():
        alone = milliseconds(lambda: reconstruction_loss(pixels, gamma_0, num_levels))
    with_gradient()
    with profile(profile_memory=True) as profiled:
        with_gradient()
    events = sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns())  # type: ignore[union-attr]
    most = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max()
    return {"levels": num_levels, "ms": milliseconds(with_gradient), "ms_without_gradient": alone, "mb": most / 1e6}


if __name__ == "__main__":
    sys.exit(main())
