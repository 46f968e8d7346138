"""Give every reader of foreign files damaged and hostile ones.

A reader may only raise the error that it documents, and may take at most 20 seconds and a gigabyte.  `make test`
gives each reader some inputs, `make fuzz` 100,000.
"""

import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import tarfile
import time
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import TINY
from flows.report.tables import integers, read_table
from fuzzing import changed_json, damaged
from PIL import Image
from project import ROOT
from results import ORIGIN, PLACES, write_results

from flows.compression.decoding import Decoder
from flows.compression.files import compress
from flows.compression.header import packed_text, read_header
from flows.compression.words import read_blocks
from flows.core import bounded_yaml
from flows.core.checkpoint import config_sha256, load_model, load_state, model_sha256, save_model, save_state
from flows.core.errors import CheckpointError, UserError
from flows.core.params_file import parse_params, read_params
from flows.core.presets import read_preset
from flows.evaluation.importing import import_checkpoint
from flows.evaluation.results import Metrics
from flows.images import picture_files, publishers
from flows.images.reading import BadImageError
from flows.images.store import (
    data_sha256,
    load_images,
    load_labels,
    read_file_names,
    require_levels,
    save_images,
)
from flows.orchestration.streaming import failure
from flows.registry import lock_file, storage
from flows.registry import versions as registry
from flows.registry.evidence import evidence_of
from flows.registry.versions import Version
from flows.report.page import page
from flows.report.results import Files, read_results
from flows.stages.register import read_curves
from flows.validation.drift import from_reference, read_reference
from flows.validation.report import Profile
from vdm.model import VDM

INPUTS = int(os.environ.get("VDM_FUZZ", "150"))
SECONDS, BYTES = 20.0, 2**30
ORACLES = Path(__file__).parents[1] / "oracles"
SET = {"name": "digits", "num_levels": 17, "title": "Digits", "transforms": "none", "split": "0.2 held out with seed 0"}


class Reader(NamedTuple):
    """A reader to fuzz: good files, the function that reads one, and the errors that it may raise."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], object]
    refusals: tuple[type[Exception], ...]
    is_json: bool = False


def version(content: bytes, name: str) -> Version:
    """Return a version whose commit has the content in a file of that name."""
    lock_file.content_of = lambda root, name: content
    return Version(name, "0" * 40, "", "", (), Metrics())


def short_lock() -> bytes:
    """Return four stages of the project's dvc.lock, with one file of code: all others are alike, and make it long."""
    lock = (ROOT / "dvc.lock").read_bytes()
    lock = re.sub(rb"    - path: (?:flows|vdm)/(?!core/errors)\S+\n(?:      \S.*\n)+", b"", lock)
    start, *stages = re.split(rb"(?m)^(?=  \w+:$)", lock)
    return b"".join([start, *stages[:2], *stages[-2:]])


def short_graph() -> bytes:
    """Return the project's dvc.yaml with one file of code: all others are alike, and make it long."""
    graph = (ROOT / "dvc.yaml").read_bytes()
    return re.sub(rb"    - (?:flows|vdm)/(?!core/errors)\S+\n", b"", graph)


def image_set(folder: Path, **files: bytes) -> Path:
    """Write a small image set to the folder, with some files replaced, and return the folder."""
    images = (np.arange(6 * 64) % 17).astype(np.uint8).reshape(6, 1, 8, 8)
    save_images(folder, {"train": images, "test": images[:2]}, SET)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def read_set(folder: Path) -> None:
    found = load_images(folder)
    for split in ("train", "test"):
        with suppress(UserError):
            require_levels(found, folder, split)
    data_sha256(folder)


def written(save: Callable[[Path], object], name: str = "") -> bytes:
    """Return the bytes of the file that `save` writes, or with a name, of that file in the folder that it writes."""
    folder = Path(os.environ["FUZZ_FOLDER"]) / "seed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(folder if name else folder / "file")
    return (folder / (name or "file")).read_bytes()


@cache
def model_file(name: str) -> bytes:
    torch.manual_seed(0)
    return written(lambda folder: save_model(folder, VDM(**TINY), TINY), name)


def read_model(folder: Path, config: bytes | None = None, weights: bytes | None = None) -> None:
    """Load a model whose digests agree with its damaged files."""
    folder.mkdir(exist_ok=True)
    weights = model_file("weights.safetensors") if weights is None else weights
    description = json.loads(model_file("config.json"))
    if config is not None:
        try:
            description["model"] = json.loads(config)["model"]
        except (ValueError, LookupError, TypeError, RecursionError):
            (folder / "config.json").write_bytes(config)
            load_model(folder)
            return
    description |= {
        "model_sha256": config_sha256(description["model"]),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(description))
    load_model(folder)


def compressed() -> bytes:
    """Return the description of a compressed file, a line break, and its words."""
    folder = Path(os.environ["FUZZ_FOLDER"])
    save_model(folder / "model", VDM(**TINY), TINY)
    np.save(folder / "x.npy", (np.arange(4 * 64) % 17).astype(np.uint8).reshape(4, 1, 8, 8))
    options = {"num_timesteps": 1, "batch_size": 2, "device": "cpu", "verify": False, "force": True}
    compress(folder / "x.npy", split=None, model=folder / "model", out=folder / "x.vdmz", **options)
    with (folder / "x.vdmz").open("rb") as file:
        header, _, checksum = read_header(file, "x.vdmz")
        (words,) = read_blocks(file, header.num_words, checksum)
    return header.model_dump_json().encode() + b"\n" + np.array(words[::-1], "<u4").tobytes()


def read_compressed(content: bytes, path: Path) -> None:
    """Decode a file whose checksums agree with its damaged description and words."""
    description, _, code = content.partition(b"\n")
    model = path.with_name("model")
    file = path.open("w+b")
    header = packed_text(description, model_sha256(model))
    file.write(header)
    file.write(code + zlib.crc32(code, zlib.crc32(header[:-4])).to_bytes(4, "little"))
    file.seek(0)
    with file:
        decoder = Decoder(file, "images.vdmz", model=model, device="cpu")
        deque(decoder.images(id), maxlen=0)


def read_state(content: bytes, path: Path) -> None:
    path.write_bytes(hashlib.sha256(content).digest() + content)
    load_state(path, keys=["done"])


def read_listing(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    list(storage.files(f"{hashlib.md5(content).hexdigest()}.dir", lambda digest: path))


def read_profile(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    found = from_reference(read_reference(path), Profile.model_validate(PROFILE), CONTRACT)
    assert np.isfinite([(shift.distance, shift.limit) for shift in found]).all()


def read_checkpoint(content: bytes, path: Path, kind: Any, config: bytes | None = None) -> None:
    path.write_bytes(content)
    if config is not None:
        path.with_name("config.yaml").write_bytes(config)
    import_checkpoint(path, kind, out=path.with_name("out"), image_size=(8, 8), num_levels=256, averaged=True)


def read_picture(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    picture_files.inspect(path)
    for _ in picture_files.read(path):
        pass


def unpack(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    folder = path.with_name("batches")
    folder.mkdir(exist_ok=True)
    publishers.unpack(path, folder, {"data_batch_1": "0" * 64})


def shown_results(folder: Path) -> Files:
    """Return documents and images for a page without charts, which would take too long; write them if necessary."""
    folder = folder / "results"
    if not folder.exists():
        write_results(folder, (np.arange(110 * 64) % 17).astype(np.uint8).reshape(110, 1, 8, 8))
    files = Files(*(folder / path for path in PLACES if path))
    return files._replace(per_image=None, noise_levels=None, curves=None)


def shown(name: str) -> Reader:
    """Return the reader that shows one document of a model's results in a page."""

    def read(content: bytes, path: Path) -> None:
        files = shown_results(path.parent)
        place = path.with_suffix(".damaged")
        place.write_bytes(content)
        assert "<script" not in page(read_results(files._replace(**{name: place}), ORIGIN)).html

    def seeds() -> list[bytes]:
        return [getattr(shown_results(Path(os.environ["FUZZ_FOLDER"])), name).read_bytes()]

    return Reader(seeds, read, (UserError,), True)


def text_file(read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """Convert a reader of a path to a reader of content."""

    def read_content(content: bytes, path: Path) -> object:
        path.write_bytes(content)
        return read(path)

    return read_content


def picture(name: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(stream, name)
    return stream.getvalue()


def array(shape: tuple[int, ...], dtype: str = "uint8") -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(shape, dtype))
    return stream.getvalue()


def tar(name: str, content: bytes, count: int = 1) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz" if count == 1 else "w") as archive:
        for number in range(count):
            entry = tarfile.TarInfo(name.format(number))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def state() -> bytes:
    return written(lambda path: save_state(path, {"done": 3, "model": {"w": torch.ones(3)}, "log": [1.0]}))[32:]


def presets() -> list[bytes]:
    return [read_preset(name, ROOT / "presets").encode() for name in ("cifar10", "cifar10_aug", "digits")]


def report(name: str) -> list[bytes]:
    return [(ROOT / "reports" / name).read_bytes()]


EVIDENCE = {"decision": "promote", "reason": "better", "challenger": "vdm@v1.1.0", "confidence_interval": [-0.2, -0.1]}
CONTRACT = read_params(ROOT / "params.yaml").contract
PROFILE = {
    "histogram": [5] * 17,
    "mean": [1.0] * 101,
    "deviation": [2.0] * 101,
    "num_images": 20,
    "statistics": {"direction": [0.5] * 101},
    "channels": [[1] * 17, [4] * 17],
    "height": [0.1] * 17,
    "height_error": [0.2] * 17,
    "labels": {"0": 12, "1": 8},
    "label_link": 0.5,
    "label_link_error": 0.1,
}
VALIDATION = {"success": True, "data_sha256": "0" * 64, "profile": PROFILE}
LISTING = [{"md5": "0" * 32, "relpath": "a/b.npy"}, {"md5": "1" * 32, "relpath": "c.json"}]
ADDTT = ORACLES / "addtt_learned"

READERS = {
    "params.yaml": Reader(presets, lambda content, _: parse_params(content, "params.yaml"), (UserError,)),
    "yaml": Reader(
        lambda: [*presets()[0].split(b"\n\n"), b"a: &a [1, 2]\nb: [*a, *a, {c: *a}]\n"],  # sections
        lambda content, _: bounded_yaml.parse(content),
        (ValueError,),
    ),
    "dvc.lock": Reader(
        lambda: [short_lock()],
        lambda content, _: lock_file.read_lock(Path(), version(content, "dvc.lock")),
        (UserError,),
    ),
    "dvc.yaml": Reader(
        lambda: [short_graph()],
        lambda content, _: lock_file.model_path(Path(), version(content, "dvc.yaml")),
        (UserError,),
    ),
    "metrics.json": Reader(
        lambda: report("evaluation/metrics.json"),
        lambda content, _: registry.found_in(Metrics, content, Path()),
        (),
        True,
    ),
    "evidence": Reader(
        lambda: [json.dumps(EVIDENCE).encode()],
        lambda content, _: evidence_of(f"Promote\n\n{content.decode(errors='replace')}"),
        (),
        True,
    ),
    "validation.json": Reader(lambda: [json.dumps(VALIDATION).encode()], read_profile, (UserError,), True),
    "reason.json": Reader(
        lambda: [b'{"message": "no", "code": 5, "network": false}'],
        text_file(lambda path: failure(path, ["last"], 1)),
        (),
        True,
    ),
    "dataset.json": Reader(
        lambda: [written(image_set, "dataset.json")],
        lambda content, path: read_set(image_set(path, dataset__json=content)),
        (UserError,),
        True,
    ),
    "train.npy": Reader(
        lambda: [array((6, 1, 8, 8)), array((6, 1, 8, 8), "int64"), array((6, 64), "float32")],
        lambda content, path: read_set(image_set(path, train__npy=content)),
        (UserError,),
    ),
    "train_labels.npy": Reader(
        lambda: [array((6,), "int64")],
        lambda content, path: load_labels(image_set(path, train_labels__npy=content), "train"),
        (UserError,),
    ),
    "train_files.txt": Reader(
        lambda: [b'"a.png"\n"b\\u00fc/c.png"\n"d.png"\n' * 3],
        lambda content, path: read_file_names(image_set(path, train_files__txt=content), "train", {0, 2, 5}),
        (UserError,),
    ),
    "config.json": Reader(
        lambda: [model_file("config.json")],
        lambda content, path: read_model(path, config=content),
        (CheckpointError,),
        True,
    ),
    "weights.safetensors": Reader(
        lambda: [model_file("weights.safetensors")],
        lambda content, path: read_model(path, weights=content),
        (CheckpointError,),
    ),
    "images.vdmz": Reader(lambda: [compressed()], read_compressed, (UserError,)),
    "step.state": Reader(lambda: [state()], read_state, (CheckpointError,)),
    "listing.dir": Reader(lambda: [json.dumps(LISTING).encode()], read_listing, (UserError,), True),
    "google.flax": Reader(
        lambda: [(ORACLES / "google_scalar_T0.flax").read_bytes()],
        lambda content, path: read_checkpoint(content, path, "google-vdm"),
        (CheckpointError, UserError),
    ),
    "model.pt": Reader(
        lambda: [(ADDTT / "model.pt").read_bytes()],
        lambda content, path: read_checkpoint(content, path, "addtt", (ADDTT / "config.yaml").read_bytes()),
        (CheckpointError, UserError),
    ),
    "config.yaml": Reader(
        lambda: [(ADDTT / "config.yaml").read_bytes()],
        lambda content, path: read_checkpoint(
            (ADDTT / "model.pt").read_bytes(), path.with_name("model.pt"), "addtt", content
        ),
        (CheckpointError, UserError),
    ),
    "curves.csv": Reader(
        lambda: [b"step,bpd,validation_bpd\n1,2.5,nan\n2,2.25,2.5\n"], text_file(read_curves), (UserError,)
    ),
    "per_image.csv": Reader(
        lambda: [b"image,bpd\n0,2.5\n1,nan\n"],
        text_file(lambda path: integers(path, read_table(path, ("image", "bpd")), "image", 2)),
        (UserError,),
    ),
    "shown metrics.json": shown("metrics"),
    "shown validation.json": shown("validation"),
    "shown samples.json": shown("sample_metrics"),
    "picture.png": Reader(
        lambda: [picture("PNG"), picture("PNG", "L"), picture("PNG", "1")], read_picture, (BadImageError,)
    ),
    "picture.jpg": Reader(lambda: [picture("JPEG")], read_picture, (BadImageError,)),
    "picture.webp": Reader(lambda: [picture("WEBP")], read_picture, (BadImageError,)),
    "picture.tif": Reader(lambda: [picture("TIFF"), picture("TIFF", "L")], read_picture, (BadImageError,)),
    "picture.npy": Reader(
        lambda: [array((3, 1, 8, 8)), array((8, 8)), array((2, 3, 8, 8), "uint16")], read_picture, (BadImageError,)
    ),
    "cifar.tar.gz": Reader(lambda: [tar("batches/data_batch_1", b"x" * 2000)], unpack, (UserError,)),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUZZ_FOLDER", str(tmp_path))
    monkeypatch.setattr(lock_file, "content_of", lock_file.content_of)  # restores it at the end


def too_slow(*_: object) -> None:
    raise AssertionError(f"more than {SECONDS} seconds")


@pytest.mark.timeout(0 if INPUTS > 1000 else 600)
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = READERS[name]
    seeds, random_ = reader.seeds(), random.Random(name)
    for seed in seeds[:1]:
        if name != "cifar.tar.gz":  # its content is not the published one
            reader.read(seed, tmp_path / name)  # a good file is read
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    peak = memory_peak()
    signal.signal(signal.SIGPROF, too_slow)
    refused, longest = 0, 0.0
    for number in range(INPUTS):
        change = changed_json if reader.is_json and number % 2 else damaged
        content = change(random_.choice(seeds), random_)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        started = time.monotonic()
        try:
            reader.read(content, tmp_path / name)
        except reader.refusals:
            refused += 1
        except Exception as error:
            (tmp_path / "input").write_bytes(content)
            what = f"{type(error).__name__}: {error}"
            raise AssertionError(f"input {number} of {name}, kept in {tmp_path / 'input'}: {what}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        longest = max(longest, time.monotonic() - started)
    grown = memory_peak() - peak
    assert grown < BYTES
    assert refused or not reader.refusals
    with capsys.disabled():
        if INPUTS > 1000:
            print(f"\n| {name} | {INPUTS:,} | {refused:,} | {longest:.2f} s | {grown / 2**20:.0f} MiB |", end="")


def memory_peak() -> int:
    """Return the largest memory that this process has used, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
