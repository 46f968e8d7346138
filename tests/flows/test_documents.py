"""Every reader of a document refuses hostile content, and paths that are not files, with its own error of one line."""

import hashlib
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from project import ROOT

from flows.cli import run
from flows.core import documents
from flows.core.checkpoint import config_sha256, load_model, load_state, save_model, save_state
from flows.core.errors import CheckpointError, Exit, UserError
from flows.core.params_file import read_params
from flows.evaluation.bound import load_fitting
from flows.evaluation.results import BoundMetrics
from flows.images.store import (
    SPLITS,
    data_sha256,
    load_array,
    load_images,
    load_labels,
    present,
    save_images,
)
from flows.registry.storage import Stored, files
from flows.stages.register import read_curves
from flows.training import fitting
from flows.validation.drift import differences, read_reference
from flows.validation.facts import Facts, measure
from flows.validation.report import Profile, Validation, require_validated
from flows.validation.tables import split_rows, with_files
from vdm.model import VDM
from vdm.training.trainer import Trainer

CONTRACT = read_params(ROOT / "presets/digits.yaml").contract
SHA = "a" * 64
VALUES: list[Any] = [
    *(None, True, -1, 0, 1.5, 1e308, 10**400, 2**64, -(2**70), float("nan"), float("inf")),
    *("x", "", "\0", "\ud800", "a\nb", "../x", "/etc", "x" * 100_000),
    *([], {}, [1], {"a": 1}, [10**9] * 3, 65537, 2**32, "f" * 64),
]
METRICS = {
    "bpd": 1.7,
    "bpd_standard_error": None,
    "prior_bpd": 0.1,
    "reconstruction_bpd": 0.2,
    "diffusion_bpd": 1.4,
    "num_images": 3,
    "times_per_image": 2,
    "num_timesteps": None,
    "data_sha256": SHA,
    "model_sha256": SHA,
}
PROFILE = {"histogram": [1, 2, 3], "mean": [0.0, 1.0], "deviation": [0.5, 0.5], "labels": {"0": 5, "1": 7}}
LISTING = [{"md5": "a" * 32, "relpath": "x/y"}, {"md5": "b" * 32, "relpath": "z"}]


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a document."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from places(child, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """Return the document with another value at a place."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


def hostile(document: Any) -> Iterator[bytes]:
    """Yield the document with each value replaced by wrong ones, and with its text cut and its bits flipped."""
    for place in places(document):
        for value in VALUES:
            yield json.dumps(replaced(document, place, value)).encode()
        for depth in (40, 20_000):
            nested = json.dumps(replaced(document, place, "HERE"))
            yield nested.replace('"HERE"', "[" * depth + "]" * depth).encode()
    text, chance = json.dumps(document).encode(), random.Random(0)
    for _ in range(30):
        flipped = bytearray(text)
        flipped[chance.randrange(len(text))] ^= 1 << chance.randrange(8)
        yield from (bytes(flipped), text[: chance.randrange(len(text))])
    yield from (b"", b"\xff", b"\xef\xbb\xbf" + text, text.decode().encode("utf-16"), b"1" * 5000)


def survive(read: Callable[[], object], write: Callable[[bytes], object], contents: Iterator[bytes]) -> int:
    """Read every content, and return how many were refused.  Raises any error that is not a known one."""
    refused = 0
    for content in contents:
        write(content)
        try:
            read()
        except (UserError, CheckpointError) as error:
            refused += 1
            if len(" ".join(str(error).split())) > 1000:
                raise
    return refused


def read_evaluated(path: Path) -> None:
    documents.read(BoundMetrics, path)


def read_drift(path: Path) -> None:
    differences({"train": Profile.model_validate(PROFILE)}, read_reference(path), CONTRACT)


def read_validation(path: Path) -> None:
    documents.read(Validation, path)


def read_listing(path: Path) -> None:
    digest = hashlib.md5(path.read_bytes()).hexdigest() + ".dir"
    stored: list[Stored] = list(files(digest, lambda _: path))
    assert not any(file.place.startswith(("/", "..")) for file in stored)


@pytest.mark.parametrize(
    ("read", "document"),
    [
        (read_evaluated, METRICS),
        (read_drift, {"profile": PROFILE}),
        (read_validation, {"success": True, "data_sha256": SHA}),
        (read_listing, LISTING),
    ],
)
def test_hostile_json_is_refused_or_read(read: Callable[[Path], None], document: Any, tmp_path: Path) -> None:
    path = tmp_path / "document.json"
    path.write_text(json.dumps(document))
    read(path)
    assert survive(lambda: read(path), path.write_bytes, hostile(document)) > 50


@pytest.fixture
def image_set(tmp_path: Path) -> Path:
    """Return a set of twelve small images with labels and names of files."""
    folder = tmp_path / "images"
    pixels = np.arange(12 * 64, dtype=np.uint8).reshape(12, 1, 8, 8) % 17
    described = {"name": "x", "num_levels": 17, "transforms": "none", "formats": "PNG"}
    described |= {"published_train": 12, "published_validation": 12}
    save_images(folder, {"train": pixels, "validation": pixels, "test": pixels}, described)
    np.save(folder / "train_labels.npy", np.arange(12))
    (folder / "train_files.txt").write_text("".join(f'"{number}.png"\n' for number in range(12)))
    return folder


def use(folder: Path, facts: dict[str, Facts] | None = None) -> None:
    """Read everything in an image set, its pixels only if the facts about them are not given."""
    images = load_images(folder)
    if facts is None:
        facts = {split: measure(getattr(images, split), images.num_levels) for split in present(images.description)}
    split_rows(images, folder, facts)
    data_sha256(folder)
    rows = with_files([{"split": "train", "image": number} for number in (0, 3)], folder)
    json.dumps(rows, ensure_ascii=False).encode()


@pytest.mark.slow
def test_a_hostile_description_of_images_is_refused_or_read(image_set: Path) -> None:
    use(image_set)
    path = image_set / "dataset.json"
    assert survive(lambda: use(image_set), path.write_bytes, hostile(json.loads(path.read_text()))) > 100


HEADERS = [
    *("(12, 1, 8, 9)", "(12, 1, 8)", "(-12, 1, 8, 8)", "(12.0, 64)", "(True, 768)", "None", "()", "[12, 64]"),
    *("(4611686018427387904, 4)", "(1099511627776, 0)", f"({'1, ' * 100}768)", "(768L,)", "(" * 5000),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.npy", "train_labels.npy"])
def test_a_hostile_array_is_refused_or_read(name: str, image_set: Path) -> None:
    path, chance = image_set / name, random.Random(0)
    content, whole = path.read_bytes(), load_images(image_set)
    facts = {split: measure(getattr(whole, split), 17) for split in SPLITS} if name == "train_labels.npy" else None

    def contents() -> Iterator[bytes]:
        for shape in HEADERS:
            yield with_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}", content[128:])
        for descr in ("'|O'", "'<M8[s]'", "'|V8'", "[('a', 'u1')]", "5", "'<u9'", "'<f4,<f4'", "'\\d'"):
            yield with_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': (12,), }}", content[128:])
        for header in ("{" * 3000, "-" * 9000 + "1", "[1is, 1]", "9" * 9000, "{}"):
            yield with_header(header, content[128:])
        for _ in range(300):
            changed = bytearray(content)
            changed[chance.randrange(128)] = chance.randrange(256)
            yield from (bytes(changed), content[: chance.randrange(len(content))])
        yield from (b"", content + b"x")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert survive(lambda: use(image_set, facts), path.write_bytes, contents()) > 300


def with_header(header: str, numbers: bytes) -> bytes:
    """Return a .npy file of version 1 with any header."""
    padded = header.encode() + b" " * (-(11 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + numbers


@pytest.mark.parametrize(
    "content",
    [b"", b'"a"\n', b"[]\n" * 12, b'"\\udcff"\n', b"\xff\n" * 12, b"[" * 50_000, b'"' + b"x" * 100_000 + b'"\n', b"\n"],
)
def test_hostile_names_of_files_are_refused(content: bytes, image_set: Path) -> None:
    (image_set / "train_files.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"train_files\.txt: missing or damaged: "):
        use(image_set)


def test_a_large_description_is_refused(image_set: Path) -> None:
    """A description is read several times in a run, and takes a hundred times its size."""
    described = json.loads((image_set / "dataset.json").read_text())
    (image_set / "dataset.json").write_text(json.dumps(described | {"more": "x" * 2**20}))
    with pytest.raises(UserError, match=r"dataset\.json: larger than 1,048,576 bytes, the limit; `vdmctl download`"):
        use(image_set)


def test_labels_of_a_wrong_shape_or_type_are_refused(image_set: Path) -> None:
    for labels in (np.zeros((12, 2), int), np.zeros(12)):
        np.save(image_set / "train_labels.npy", labels)
        with pytest.raises(UserError, match="not labels"):
            load_labels(image_set, "train")


@pytest.mark.slow
def test_a_hostile_model_whose_digests_agree_is_refused_or_read(tmp_path: Path, image_set: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "model", VDM(**TINY), TINY)
    path = tmp_path / "model/config.json"
    whole = json.loads(path.read_text())

    def contents() -> Iterator[bytes]:
        yield from hostile(whole)
        for place in places(whole["model"]):
            for value in VALUES[:-1]:
                model = replaced(whole["model"], place, value)
                yield json.dumps(whole | {"model": model, "model_sha256": config_sha256(model)}).encode()

    def fit() -> None:
        load_fitting(tmp_path / "model", image_set, torch.device("cpu"), "test")

    fit()
    assert survive(fit, path.write_bytes, contents()) > 500


def test_hostile_weights_whose_digest_agrees_are_refused_or_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path / "model", VDM(**TINY), TINY)
    weights, config = tmp_path / "model/weights.safetensors", tmp_path / "model/config.json"
    content, described = weights.read_bytes(), json.loads(config.read_text())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])

    def contents() -> Iterator[bytes]:
        for name in list(header)[:2]:
            for key, value in [("dtype", "I64"), ("dtype", "C64"), ("shape", [2**63]), ("shape", [0, 10**12])]:
                text = json.dumps(header | {name: header[name] | {key: value}}).encode()
                yield len(text).to_bytes(8, "little") + text + content[8 + length :]
        yield from (b"", b"\xff" * 16, content[:-1], content + b"x", (10**4).to_bytes(8, "little") + b"[" * 10_000)

    def write(changed: bytes) -> None:
        weights.write_bytes(changed)
        config.write_text(json.dumps(described | {"weights_sha256": hashlib.sha256(changed).hexdigest()}))

    assert survive(lambda: load_model(tmp_path / "model"), write, contents()) == 13


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"step,bpd,validation_bpd\n",
        b"step,bpd,validation_bpd\n1,nan,nan\n",
        b"step,bpd,validation_bpd\n1,1e999,nan\n",
        b"step,bpd,validation_bpd\n-1,2,nan\n",
        b"step,bpd,validation_bpd\n" + b"9" * 5000 + b",1,nan\n",
        b"\xff\n",
        b'step,bpd,validation_bpd\n"' + b"x" * 200_000,
        b"step\n1\n",
        b"step,bpd\n1,2\n",
        b"step,bpd,validation_bpd\n1,2,good\n",
    ],
)
def test_a_hostile_training_log_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"curves\.csv: missing or damaged; run `vdmctl train`"):
        read_curves(tmp_path / "curves.csv")


def test_the_end_of_a_long_training_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    path.write_text("step,bpd,validation_bpd\n" + "".join(f"{step},{2 + 1 / step},nan\n" for step in range(1, 20_001)))
    assert read_curves(path) == (20_000, 2 + 1 / 20_000, None)
    with path.open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="missing or damaged"):
        read_curves(path)
    path.write_text("step,bpd,validation_bpd\n1,3.5,3.2\n2,3.4,3.1\n3,3.3,3.4\n")
    assert read_curves(path) == (3, 3.3, (3.1, 2))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_report_that_calls_impossible_levels_valid_is_refused(split: str, image_set: Path) -> None:
    report = image_set.parent / "validation.json"
    pixels = np.array(getattr(load_images(image_set), split))
    pixels[3, 0, 0, 0] = 99
    np.save(image_set / f"{split}.npy", pixels)
    report.write_text(json.dumps({"success": True, "data_sha256": data_sha256(image_set)}))
    with pytest.raises(UserError, match=rf"{split}\.npy holds level 99; run `vdmctl validate`") as raised:
        require_validated(image_set, report, needs_validation_images=split == "validation")
    assert raised.value.code is Exit.INVALID_DATA


READERS: dict[str, Callable[[Path], object]] = {
    "validation.json": read_validation,
    "reference.json": read_reference,
    "metrics.json": read_evaluated,
    "curves.csv": read_curves,
    "train.npy": load_array,
    "labels": lambda path: load_labels(path.parent, "train"),
    "dataset.json": lambda path: load_images(path.parent),
    "config.json": lambda path: load_model(path.parent),
    "step.state": load_state,
}
FILES = {"labels": "train_labels.npy"}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["fifo", "device", "sparse"])
def test_a_fifo_a_device_and_a_huge_file_are_never_read(name: str, kind: str, tmp_path: Path) -> None:
    """A FIFO would block, /dev/zero never ends, and a sparse file of 100 TB is larger than any memory."""
    path = tmp_path / FILES.get(name, name)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "sparse":
            with path.open("wb") as file:
                try:
                    file.truncate(10**14)
                except OSError:
                    file.truncate(2**43)  # ext4 allows files of up to 16 TB
    with pytest.raises((UserError, CheckpointError)):
        READERS[name](path)


def test_a_state_of_another_run_gives_an_error_of_one_line(tmp_path: Path, tiny_model: Callable[..., VDM]) -> None:
    """The file is whole and has the required keys, but belongs to another network or has impossible values."""
    arguments = read_params(ROOT / "presets/digits.yaml").train
    settings = fitting.resolve(arguments, torch.device("cpu"))
    trainer = Trainer(tiny_model(), torch.zeros(4, 1, 8, 8, dtype=torch.uint8), settings)
    state = trainer.state()
    fitting.resume(trainer, state, tmp_path)
    other = Trainer(tiny_model(width=16), torch.zeros(4, 1, 8, 8, dtype=torch.uint8), settings).state()
    changes: list[dict[str, Any]] = [{key: value} for key in state for value in (None, 3j, "x", [1])]
    changes = [change for change in changes if change != {"validation": None}]
    changes += [{"log": {"sums": [1.0], "count": 1}}, {"log": {"sums": ["x"] * 4, "count": 1}}]
    for change in [other, *changes]:
        with pytest.raises(UserError, match=r"its newest state is of another run: .*; delete this folder") as raised:
            fitting.resume(trainer, state | change, tmp_path)
        assert raised.value.code is Exit.MISSING
        assert change is not other or "size mismatch" in str(raised.value)


def test_a_state_is_still_read(tmp_path: Path) -> None:
    save_state(tmp_path / "step.state", {"done": 3})
    assert load_state(tmp_path / "step.state", keys=["done"]) == {"done": 3}


def test_the_report_says_what_is_wrong_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "reports/evaluation/metrics.json"
    path.parent.mkdir(parents=True)
    for content in (b"[" * 100_000, json.dumps(METRICS | {"bpd": "low"}).encode()):
        path.write_bytes(content)
        assert run(["report"]) == 5
        assert capsys.readouterr().err.count("\n") == 1
    path.write_text(json.dumps(METRICS | {"bpd": None}))
    assert run(["report"]) == 0
    assert capsys.readouterr().out.startswith("not finite bits/dim = 0.1000 prior")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"success": False}, r"validation\.json says that .* is not valid; run `vdmctl validate`"),
        ({"data_sha256": "0" * 64}, r"validation\.json is about data 0{64}, but .* is [0-9a-f]{64}; run `vdmctl val"),
    ],
)
def test_images_that_were_not_found_valid_are_refused(change: dict[str, Any], message: str, image_set: Path) -> None:
    report = image_set.parent / "validation.json"
    report.write_text(json.dumps({"success": True, "data_sha256": data_sha256(image_set)} | change))
    with pytest.raises(UserError, match=message) as raised:
        require_validated(image_set, report, needs_validation_images=False)
    assert raised.value.code is Exit.INVALID_DATA


@pytest.mark.parametrize("name", ["", ".", "/etc/passwd", "../up", "a/../../up", "a/..", "nul\0"])
def test_no_path_in_a_document_leads_out_of_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        documents.relative_path(name)
    assert documents.relative_path("a/b..c") == "a/b..c"
