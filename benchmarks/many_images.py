"""Measure what the pipeline costs with many images: seconds, processor seconds, peak memory and bytes read by stage.

A set is one .npy file of 32x32x3 for the training images and one of 200 test images, or a folder of small PNG files.
The images are made from a seed: soft blobs below noise, which the contract accepts.  Each stage is a process of its own
and finds none of the images in memory.  The model is tiny, and is trained for 20 steps.

    python -m benchmarks.many_images [--images 100000 1000000] [--pictures 100000] [--code FOLDER ...] [--json]

--code names checkouts of this project, one table for each, so that two commits are compared on the same images.

`own` is the largest memory of the process, and `with files` adds what it has mapped of files, which the system takes
back when it needs memory.  `read` are the bytes that calls read from files, among them Python's own, and `from disk`
those that the disk gave, also for files that are mapped.
"""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks import PRESETS, explained, new_parser, positive, show
from benchmarks.registry import HERE, TINY
from flows.core import bounded_yaml, layout

STAGES = ["download", "validate", "train", "register", "evaluate", "features", "sample", f"report --out {layout.PAGE}"]
OF_ARRAYS = {stage.split()[0]: f"flows.cli {stage}" for stage in STAGES}
OF_PICTURES = {
    "download": "flows.cli download",
    "validate": "flows.cli validate",
    "dvc repro download": "dvc repro --force download",
    "the same again": "dvc repro download",
}
TEST_IMAGES = 200
VALIDATION = 0.001
"""The share of the training images that is drawn for validation."""
ROWS = 10_000
"""Images that are made at a time."""
CELLS = 5
"""Cells of the grid whose values a soft blob joins, along each side of an image."""
SIDE, PICTURE = 32, 16
"""Pixels along each side of an image in an array, and in a PNG file."""
MEGABYTE = 10**6


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("--images", type=positive, nargs="*", default=[100_000, 1_000_000])
    options.add_argument("--pictures", type=positive, nargs="*", default=[100_000])
    options.add_argument("--code", type=Path, nargs="+", default=[HERE], metavar="FOLDER")
    options.add_argument("--folder", type=Path, help="where the images are made, and removed; 7 GB for a million")
    chosen = options.parse_args()
    figures: dict[str, Any] = {}
    with explained(options):
        for counts, write, commands in (
            (chosen.images, write_arrays, OF_ARRAYS),
            (chosen.pictures, write_pictures, OF_PICTURES),
        ):
            for count in counts:
                with TemporaryDirectory(dir=chosen.folder) as place:
                    folder = Path(place)
                    write(folder / "source", count)
                    for code in chosen.code:
                        title = f"{count:,} {'images' if write is write_arrays else 'files'}, {code}"
                        figures[title] = list(measured(folder, folder / "source", commands, code))
    show(figures, as_json=chosen.json)


def images(count: int, side: int, channels: int, seed: int) -> Iterator[np.ndarray]:
    """Yield images (n,channels,side,side) uint8, at most ROWS at a time: the sum of soft blobs and of noise."""
    ends = np.linspace(0, CELLS - 1, side, dtype=np.float32)
    soft = np.maximum(0, 1 - abs(ends[:, None] - np.arange(CELLS, dtype=np.float32)))  # bilinear
    for first in tqdm(range(0, count, ROWS), "making images", disable=None, leave=False):
        random = np.random.default_rng([seed, first])
        size = (min(ROWS, count - first), channels)
        cells = random.normal(128, 40, (size[0], 1, CELLS, CELLS)) + random.normal(0, 20, (*size, CELLS, CELLS))
        values = soft @ cells.astype(np.float32) @ soft.T
        values += 6 * random.standard_normal((*size, side, side), np.float32)
        yield values.clip(0, 255).astype(np.uint8)


def write_arrays(source: Path, count: int) -> None:
    """Write the parts `train.npy` with as many images, and `test.npy`."""
    source.mkdir()
    for seed, (part, number) in enumerate({"train": count, "test": TEST_IMAGES}.items()):
        shape = (number, 3, SIDE, SIDE)
        array = np.lib.format.open_memmap(source / f"{part}.npy", "w+", np.uint8, shape)
        for first, chunk in zip(range(0, number, ROWS), images(number, SIDE, 3, seed), strict=True):
            array[first : first + len(chunk)] = chunk
        array.flush()


def write_pictures(source: Path, count: int) -> None:
    """Write gray PNG files, a thousand in each folder."""
    number = 0
    for chunk in images(count, PICTURE, 1, 0):
        for image in chunk[:, 0]:
            path = source / f"{number // 1000:04d}" / f"{number:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            number += 1


def measured(folder: Path, source: Path, commands: dict[str, str], code: Path) -> Iterator[dict[str, Any]]:
    """Run the commands in a new project with these images, with the code of a folder, and yield the figures of each."""
    with TemporaryDirectory(dir=folder) as place:
        project = Path(place)
        subprocess.run(["git", "clone", "--quiet", str(HERE), str(project)], check=True)
        data = {"name": "image_folder", "source": str(source), "validation_fraction": VALIDATION}
        values = bounded_yaml.sections((PRESETS / "digits.yaml").read_bytes())
        changed = {name: each | TINY.get(name, {}) | (data if name == "data" else {}) for name, each in values.items()}
        (project / layout.PARAMS).write_text(bounded_yaml.dump(changed))
        for name, command in commands.items():
            for path in [*source.rglob("*"), *project.rglob("*.npy")]:
                forget(path)
            yield {"command": name} | figures_of(command.split(), project, code.resolve())


def forget(path: Path) -> None:
    """Drop a file from the system's cache, so that it is read from the disk again."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def figures_of(command: list[str], project: Path, code: Path) -> dict[str, float]:
    """Run a module in a project with the code of a folder; return its figures.  Raises ValueError if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    mine = {"PATH": path, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "VDM_LOCK_DIR": str(project)}
    began, own, with_files = time.monotonic(), 0, 0
    with (project / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=project, env=os.environ | mine, stdout=log, stderr=log
        )
        # The system's own record of the peak would begin with the memory of this process.
        while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            memory = dict(re.findall(r"(\w+):\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text()))
            own, with_files = max(own, int(memory.get("RssAnon", 0))), max(with_files, int(memory.get("VmHWM", 0)))
            time.sleep(0.02)
        seconds = time.monotonic() - began
        accounts = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        failed = process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        log.seek(0)
        if failed:
            raise ValueError(f"{' '.join(command)}: {log.read()[-500:]}")
    return {
        "seconds": seconds,
        "processor s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "own, MB": own * 1024 / MEGABYTE,
        "with files, MB": with_files * 1024 / MEGABYTE,
        "read, MB": int(accounts["rchar"]) / MEGABYTE,
        "from disk, MB": int(accounts["read_bytes"]) / MEGABYTE,
    }


if __name__ == "__main__":
    main()
