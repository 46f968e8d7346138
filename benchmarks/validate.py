"""Measure seconds and memory of reading and validating images: python -m benchmarks.validate --images 60000 1000000

The images are noise in a temporary folder, 3 GB for a million.  One process reads them as a folder of images; another
validates them.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.machine import show
from benchmarks.options import new_parser, positive
from flows.core.params_file import parse_params
from flows.core.presets import read_preset

PRESET = Path(__file__).parents[1] / "presets" / "cifar10.yaml"


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--images", type=positive, nargs="+", default=[60_000])
    parser.add_argument("--folder", type=Path, help="run this step in this process")
    parser.add_argument("--step", choices=["download", "validate"])
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(run_step(arguments.step, arguments.folder)))
        return
    if min(arguments.images) < 2:
        parser.error("--images must be at least 2: one to train and one to test")
    runs = [measure(count) for count in arguments.images]
    show({"runs": runs}, as_json=arguments.json)


def measure(count: int) -> dict[str, float]:
    """Measure both steps on `count` images of 32x32x3, each in a new process, imports included."""
    from flows.images.store import write_array

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "source").mkdir()
        num_test = max(1, count // 10)
        write_array(Path(scratch, "source/train.npy"), noise(count - num_test, seed=0))
        write_array(Path(scratch, "source/test.npy"), noise(num_test, seed=1))
        figures: dict[str, float] = {"images": count}
        for step in ("download", "validate"):
            command = [sys.executable, "-m", "benchmarks.validate", "--folder", scratch, "--step", step]
            begin = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures[f"{step}_s"] = time.perf_counter() - begin
            figures |= {f"{step}_{name}": figure for name, figure in json.loads(done.stdout).items()}
        return figures


def noise(count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `count` random images in chunks (n,3,32,32)."""
    generator = np.random.default_rng(seed)
    for first in range(0, count, 1000):
        yield generator.integers(0, 256, (min(1000, count - first), 3, 32, 32), dtype=np.uint8)


def run_step(step: str, folder: Path) -> dict[str, float]:
    """Run one stage on the files in the folder; return the process's seconds on the CPU and its peak memory in MiB."""
    params = parse_params(read_preset(PRESET.stem, PRESET.parent), PRESET.stem)
    if step == "download":
        from flows.stages.download import download

        data = params.data.model_copy(update={"name": "image_folder", "source": str(folder / "source")})
        download(data, out=folder / "images", downloads=folder / "downloads")
    else:
        from flows.stages.validate import validate

        validate(params.contract, images=folder / "images", out=folder / "report")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"cpu_s": time.process_time(), "peak_memory_mib": peak}


if __name__ == "__main__":
    main()
