"""Give the readers of parameters, models and pictures damaged files.

A reader may only raise the errors that it documents, within 20 seconds.  `make test` gives each reader some inputs,
`make fuzz` 100,000.
"""

import hashlib
import io
import json
import os
import random
import signal
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import TINY
from fuzzing import damaged
from pictures import load
from PIL import Image
from project import ROOT
from pyarrow import parquet

from flows.core.errors import CheckpointError, UserError
from flows.core.model import config_sha256, open_model, save_model
from flows.core.params_file import parse_params
from flows.exchange.importing import import_checkpoint
from vdm.model import VDM

INPUTS = int(os.environ.get("VDM_FUZZ", "50"))
SECONDS = 20.0
ORACLES = ROOT / "tests/oracles"


class Reader(NamedTuple):
    """A reader to fuzz: good files, and the function that reads one, which gets the path of a file to write."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], object]


@cache
def model() -> tuple[bytes, bytes]:
    """Return the weights and the description of a small model."""
    folder = Path(os.environ["FUZZ_FOLDER"]) / "model"
    torch.manual_seed(0)
    save_model(folder, VDM(**TINY), TINY)
    return (folder / "weights.safetensors").read_bytes(), (folder / "config.json").read_bytes()


def read_model(weights: bytes, config: bytes, folder: Path) -> None:
    """Load a model whose digests agree with its damaged files."""
    folder.mkdir(exist_ok=True)
    try:
        description = json.loads(config)
        description["model_sha256"] = config_sha256(description["model"])
        description["weights_sha256"] = hashlib.sha256(weights).hexdigest()
        config = json.dumps(description).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        pass  # no longer a description
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "config.json").write_bytes(config)
    open_model(folder)


def read_foreign(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    import_checkpoint(path, "google-vdm", out=path.with_name("out"), image_size=(8, 8), num_levels=256, averaged=True)


def picture(name: str, mode: str = "RGB", seed: int = 0) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, name)
    return stream.getvalue()


def read_picture(content: bytes, path: Path) -> None:
    """Read a folder of four pictures, one of which is damaged."""
    folder = path.with_suffix(".folder")
    folder.mkdir(exist_ok=True)
    for number in range(3):
        Image.fromarray(np.full((9, 8, 3), number, np.uint8)).save(folder / f"{number}.png")
    (folder / path.name).write_bytes(content)
    load(folder)


def parquet_file() -> bytes:
    file = io.BytesIO()
    rows = [{"bytes": picture("PNG", seed=number), "path": str(number)} for number in range(4)]
    parquet.write_table(pa.table({"image": rows, "label": ["a", "b", "a", "b"]}), file)
    return file.getvalue()


def zip_file(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for number in range(4):
            archive.writestr(f"set/{number}.png", picture("PNG", seed=number))
        archive.writestr("set/labels.csv", "file,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n")
    return file.getvalue()


def read_container(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    load(path)


READERS = {
    "params.yaml": Reader(
        lambda: [(ROOT / "presets/digits.yaml").read_bytes()],
        lambda content, path: parse_params(content, path.name),
    ),
    "weights.safetensors": Reader(
        lambda: [model()[0]], lambda content, path: read_model(content, model()[1], path.parent / "read")
    ),
    "config.json": Reader(
        lambda: [model()[1]], lambda content, path: read_model(model()[0], content, path.parent / "read")
    ),
    "google.flax": Reader(lambda: [(ORACLES / "google_scalar_T0.flax").read_bytes()], read_foreign),
    "picture.png": Reader(lambda: [picture("PNG"), picture("PNG", "L")], read_picture),
    "picture.jpg": Reader(lambda: [picture("JPEG")], read_picture),
    "set.parquet": Reader(lambda: [parquet_file()], read_container),
    "set.zip": Reader(
        lambda: [zip_file(each) for each in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)],
        read_container,
    ),
}


def too_slow(*_: object) -> None:
    raise AssertionError(f"more than {SECONDS} seconds")


@pytest.mark.timeout(0 if INPUTS > 1000 else 600)
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_FOLDER", str(tmp_path))
    signal.signal(signal.SIGPROF, too_slow)
    seeds, random_ = READERS[name].seeds(), random.Random(name)
    READERS[name].read(seeds[0], tmp_path / name)  # a good file is read
    refused = 0
    for number in range(INPUTS):
        content = damaged(random_.choice(seeds), random_)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            READERS[name].read(content, tmp_path / name)
        except (UserError, CheckpointError) as error:
            refused += str(error).isprintable()
        except Exception as error:
            (tmp_path / "input").write_bytes(content)
            what = f"{type(error).__name__}: {error}"
            raise AssertionError(f"input {number} of {name}, kept in {tmp_path / 'input'}: {what}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    assert refused
