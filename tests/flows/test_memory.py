"""Sizes in parameters and files that do not fit into memory are refused before anything is allocated."""

import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from project import ROOT, TINY_PARAMS

from benchmarks.speed import SHAPES
from flows.cli import run
from flows.core import memory
from flows.core.checkpoint import config_sha256, load_model, save_model
from flows.core.errors import CheckpointError, Exit, UserError
from flows.core.memory import available
from flows.core.params_file import parse_params, read_params
from flows.core.presets import read_preset
from flows.evaluation import bound
from flows.images import store as images
from flows.images.store import SPLITS, ImageSet, data_sha256, load_images, save_images
from flows.sampling import drawing
from flows.stages import train
from flows.training import fitting
from flows.validation.comb import comb
from flows.validation.facts import measure
from flows.validation.inspection import inspect_images, require_success
from flows.validation.picture import draw
from vdm import evaluation, ode
from vdm.model import VDM, count_parameters

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
PIXELS = np.arange(12 * 64, dtype=np.uint8).reshape(12, 1, 8, 8) % 17
GIB = 2**30


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a folder with small images and a small model; return a function that writes changed parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path))
    save_images(Path("data/images"), dict.fromkeys(SPLITS, PIXELS), {"name": "x", "num_levels": 17})
    torch.manual_seed(0)
    save_model(Path("models/vdm"), VDM(**TINY), TINY)
    report = Path("reports/validation/validation.json")
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"success": True, "data_sha256": data_sha256(Path("data/images"))}))

    def write(**changes: str) -> None:
        text = (ROOT / "presets/digits.yaml").read_text()
        for old, new in (TINY_PARAMS | changes).items():
            assert old in text, old
            text = text.replace(old, new, 1)
        Path("params.yaml").write_text(text)

    return write


@pytest.fixture(autouse=True)
def nothing_large() -> Iterator[None]:
    """Require that the test allocates less than half a gigabyte."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIB // 2 // 1024


@pytest.mark.parametrize(
    ("changes", "command", "message"),
    [
        ({"blocks: 1": "blocks: 100000"}, ["train"], "model.blocks: input should be less than or equal to 1024"),
        ({"width: 8": "width: 1000000000"}, ["train"], "model.width: input should be less than or equal to 16384"),
        (
            {"width: 8": "width: 16384", "blocks: 1": "blocks: 1024"},
            ["train"],
            "train: lower model.blocks, model.width",
        ),
        ({"batch_size: 64": "batch_size: 1000000", "width: 8": "width: 128"}, ["train"], "train.batch_size"),
        ({"batch_size: 64": "batch_size: 4096", "num_devices: 1 ": "num_devices: 4096 "}, ["train"], "num_devices"),
        ({"validation_times: 2": "validation_times: 1000000", "width: 8": "width: 128"}, ["train"], "validation_times"),
        ({"times_per_image: 2": "times_per_image: 100000000"}, ["evaluate"], "lower evaluate.times_per_image"),
        ({"times_per_image: 2": "times_per_image: 100000000"}, ["compare", "models/vdm"], "evaluate.times_per_image"),
        ({"batch_size: 128": "batch_size: 1000000", "width: 16": "width: 1024"}, ["features"], "features: lower"),
        ({}, ["sample", "models/vdm", "-n", "1000000000"], "sample: lower sample.num_images"),
        ({}, ["evaluate", "--times-per-image", "1000000000000"], "lower evaluate.times_per_image"),
        ({}, ["evaluate", "--protocol", "ode", "--num-draws", "100000000"], "ode.num_draws"),
        ({}, ["evaluate", "--protocol", "ode", "--num-probes", "1000000000"], "ode: lower ode.batch_size"),
        ({}, ["evaluate", "--num-timesteps", ",".join(["10"] * 101)], "a sweep has at most 100"),
        ({}, ["evaluate", "--num-timesteps", "9" * 5000], "is not like 10,100,continuous"),
    ],
)
def test_the_error_for_a_size_that_does_not_fit_says_what_to_lower(
    changes: dict[str, str],
    command: list[str],
    message: str,
    project: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    project(**changes)
    name, *options = command
    model = ["models/vdm"] if name in ("evaluate", "compare") else []
    assert run([name, *model, *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert len(shown) < 500


def images_of(preset: Path, data: str) -> tuple[list[int], int]:
    """Return the shape and the number of levels of the images of a preset."""
    assert data in SHAPES, f"benchmarks/speed.py: SHAPES lacks {data}, the data set of {preset.name}"
    *shape, num_levels = SHAPES[data]
    return shape, num_levels


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_trains_with_80_gib_and_does_the_rest_with_24(
    preset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system takes part of the memory.  On a card compiling saves what ImageNet 64x64 does not find here."""
    monkeypatch.setattr(memory, "available", lambda: 76 * GIB)
    params = parse_params(read_preset(preset.stem, preset.parent), preset.name)
    shape, num_levels = images_of(preset, params.data.name)
    pixels = np.broadcast_to(np.uint8(0), (1_281_167, *shape))
    described = {"num_levels": num_levels, "image_shape": shape}
    image_set = ImageSet(described, pixels, pixels[:0], pixels)
    parts = {"accumulation": 8} if preset.stem == "imagenet64" else {}
    train.require_memory(params.model, params.train.model_copy(update=parts), image_set, torch.device("cpu"), 1)
    monkeypatch.setattr(memory, "available", lambda: 20 * GIB)
    with torch.device("meta"):
        model = VDM(image_shape=shape, num_levels=num_levels, **params.model.model_dump())
    memory.require(drawing.memory_needed(model, params.sample, params.sample.num_images), torch.device("cpu"), "sample")
    sizes = params.evaluate.model_dump(include={"times_per_image", "batch_size"})
    network = {"num_dims": model.num_dims, "network_bytes": model.inference_bytes("float32")}
    memory.require(evaluation.memory_needed(**network, num_images=50_000, **sizes), torch.device("cpu"), "evaluate")
    sizes = params.ode.model_dump(include={"num_draws", "num_probes", "batch_size"})
    memory.require(ode.memory_needed(model, num_images=10_000, **sizes), torch.device("cpu"), "ode")


def test_a_model_that_cannot_be_built_for_the_images_is_one_line(project: Callable[..., None]) -> None:
    project()
    params = read_params(Path("params.yaml"))
    model = params.model.model_copy(update={"norm_groups": 8})
    pixels = np.zeros((2, 1, 1, 1), np.uint8)
    one_pixel = ImageSet({"num_levels": 17, "image_shape": (1, 1, 1)}, pixels, pixels[:0], pixels)
    with pytest.raises(UserError, match=r"^model: norm_groups 8 normalises single numbers") as raised:
        train.require_memory(model, params.train, one_pixel, torch.device("cpu"), 1)
    assert raised.value.code is Exit.USAGE


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "processes", "advice"),
    [
        (64, 1, 1, "train.accumulation: 2 or "),
        (100, 4, 1, "train.accumulation: 20 or "),
        (9, 1, 1, "train.accumulation: 3 or "),
        (7, 7, 1, "a smaller model or "),
        (6, 1, 2, "train.accumulation: 3 or "),  # one device on each of two machines
    ],
)
def test_the_advice_after_a_step_without_memory_is_possible(
    batch_size: int, accumulation: int, processes: int, advice: str
) -> None:
    settings = read_params(ROOT / "params.yaml").train.model_copy(update={"num_devices": 1})
    settings = settings.model_copy(update={"batch_size": batch_size, "accumulation": accumulation})
    message = f"; set {advice}train.activation_checkpointing: true"
    assert fitting.advice_on_memory(settings, processes).endswith(message)


def sparse(path: Path, *shape: int) -> None:
    """Write a sparse .npy file of zeros, which takes no space on the disk."""
    with path.open("wb") as file:
        images.write_header(file, shape, np.dtype(np.uint8))
        file.truncate(file.tell() + int(np.prod(shape, dtype=object)))


@pytest.mark.parametrize("shape", [(40 * GIB, 1, 1, 1), (40 * GIB // 64, 1, 8, 8), (1, 1, 2**18, 2**18)])
def test_images_larger_than_memory_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Every reader of the set refuses too many images, a file too large to map, and an image that is too large."""
    save_images(tmp_path, {"train": PIXELS, "test": PIXELS}, {"name": "x", "num_levels": 17})
    sparse(tmp_path / "test.npy", *shape)
    with pytest.raises(UserError, match=r"test\.npy: .*(memory|map)"):
        load_images(tmp_path)
    with pytest.raises(UserError, match=r"test\.npy: .*(memory|map)"):
        data_sha256(tmp_path)


@pytest.mark.filterwarnings("ignore")  # Great Expectations warns about itself
def test_labels_larger_than_memory_are_refused(
    project: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    project()
    sparse(Path("data/images/train_labels.npy"), 2**33)
    assert run(["validate"]) == 5
    assert "train_labels.npy" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # Great Expectations warns about itself
def test_a_header_that_claims_more_than_the_file_has_is_refused(project: Callable[..., None]) -> None:
    project()
    with Path("data/images/train.npy").open("wb") as file:
        images.write_header(file, (10**9, 1, 8, 8), np.dtype(np.uint8))
    for command in ("validate", "train"):
        assert run([command]) == 5


def test_accumulation_bounds_the_memory_of_validations_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 24 * GIB)
    params = parse_params(read_preset("cifar10_aug", ROOT / "presets"), "cifar10_aug")
    pixels = np.broadcast_to(np.uint8(0), (50_000, 3, 32, 32))
    image_set = ImageSet({"num_levels": 256, "image_shape": [3, 32, 32]}, pixels, pixels[:1000], pixels)
    settings = params.train.model_copy(update={"accumulation": 64})
    train.require_memory(params.model, settings, image_set, torch.device("cpu"), 1)
    validation = fitting.validation_of(settings, image_set)
    assert validation is not None
    assert validation.options["batch_size"] == 1024 // 64


def test_large_images_are_read_a_few_at_a_time() -> None:
    large = np.broadcast_to(np.uint8(1), (40, 1, 2048, 2048))
    sizes = [len(chunk) for _, chunk in images.chunks(large, 2000)]
    assert (sum(sizes), max(sizes)) == (40, 8)
    assert [len(chunk) for _, chunk in images.chunks(PIXELS, 5)] == [5, 5, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Great Expectations warns about itself
@pytest.mark.parametrize(
    ("of_train", "of_test"),
    [(np.float32("inf"), np.int64(2**62)), (1e300, -1e300), (np.float16(3), np.uint8(3))],
)
def test_pixels_of_any_type_are_refused_without_a_warning(
    of_train: Any, of_test: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    splits = {}
    for split, value in (("train", of_train), ("test", of_test)):
        splits[split] = PIXELS.astype(np.asarray(value).dtype)
        splits[split][3, 0, 0, 0] = value
    save_images(tmp_path / "set", splits, {"name": "x", "num_levels": 17})
    contract = read_params(ROOT / "presets/digits.yaml").contract
    inspection = inspect_images(contract, images=tmp_path / "set", reference=None)
    assert draw(inspection.image_set, inspection.histograms, inspection.report)
    with pytest.raises(UserError, match="pixels are uint8 integers") as raised:
        require_success(inspection.report, tmp_path / "set", None)
    assert raised.value.code is Exit.INVALID_DATA
    assert "Warning" not in capfd.readouterr().err


def test_more_levels_than_bytes_have_are_counted() -> None:
    facts = measure(PIXELS, 2**16)
    assert facts.histogram.sum() == PIXELS.size
    assert not comb(facts.histogram).gaps.any()


def test_a_configuration_of_more_weights_than_the_file_has_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path, VDM(**TINY), TINY)
    described = json.loads((tmp_path / "config.json").read_text())
    many = "bytes cannot hold [0-9,]+ weights"
    for change, reason in (
        ({"blocks": 100}, many),
        ({"width": 2**20}, many),
        ({"fourier_exponents": [1] * 100_000}, many),
        ({"blocks": 10**12}, "blocks 1000000000000 must be between 1 and 1024"),
    ):
        model = described["model"] | change
        text = json.dumps(described | {"model": model, "model_sha256": config_sha256(model)})
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            load_model(tmp_path)


def test_weights_larger_than_their_configuration_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(tmp_path, VDM(**TINY), TINY)
    with (tmp_path / "weights.safetensors").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: larger than [0-9,]+ bytes"):
        load_model(tmp_path)


def test_the_memory_of_this_machine_is_found() -> None:
    assert 2**20 < available() < 2**50


def test_the_processes_of_a_stage_share_the_memory_of_a_cpu(
    project: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    project()
    params = read_params(Path("params.yaml"))
    shared = {"num_devices": 12, "device": "cpu"}
    monkeypatch.setattr("flows.training.distributed.results_of", None)  # no process is started
    monkeypatch.setattr(memory, "available", lambda: GIB)
    with pytest.raises(UserError, match=r"^sample: lower .*, or lower num_devices: this needs at least"):
        drawing.draw(Path("models/vdm"), params.sample.model_copy(update=shared))
    settings = params.evaluate.model_copy(update=shared | {"batch_size": 2})
    with pytest.raises(UserError, match=r"^evaluate: lower .*, or lower num_devices: this needs at least"):
        bound.evaluate_split(settings, Path("models/vdm"), Path("data/images"), "test")
    monkeypatch.setattr(train, "launch", None)
    out = {name: Path("new") for name in ("out", "curves", "runs")}
    with pytest.raises(UserError, match=r"^train: lower .*num_devices: this needs at least"):
        train.train(
            params.model,
            params.train.model_copy(update=shared),
            images=Path("data/images"),
            validation=Path("reports/validation/validation.json"),
            **out,
        )


def test_fewer_devices_are_advised_only_where_they_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer cards take larger parts of the batch each."""
    params = read_params(ROOT / "params.yaml")
    settings = params.train.model_copy(update={"num_devices": 2, "precision": "float32", "compile": False})
    image_set = ImageSet({"num_levels": 17, "image_shape": (1, 8, 8)}, PIXELS, PIXELS, PIXELS)
    monkeypatch.setattr(memory, "available", lambda: 2**10)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**10, 80 * GIB))
    for device, advised in (("cpu", True), ("cuda", False)):
        with pytest.raises(UserError, match=r"^train: lower") as raised:
            fitting.require_memory(params.model, settings, image_set, torch.device(device), 2)
        assert ("num_devices" in str(raised.value)) is advised


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_states_the_number_of_its_parameters(preset: Path) -> None:
    params = parse_params(read_preset(preset.stem, preset.parent), preset.name)
    shape, num_levels = images_of(preset, params.data.name)
    count = count_parameters(image_shape=shape, num_levels=num_levels, **params.model.model_dump())
    for stated in re.findall(r"([\d.]+) million\s+(?:#\s+)?parameters", preset.read_text()):
        assert stated == f"{count / 1e6:.1f}"


@pytest.mark.parametrize(("free", "fits"), [(3 * 100 + 2 * 256, True), (3 * 100 + 2 * 256 - 1, False)])
def test_each_process_on_a_cpu_takes_its_own_memory(free: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: free * 2**20)
    with ExitStack() as stack:
        if not fits:
            stack.enter_context(pytest.raises(UserError, match="lower num_devices: this needs at least"))
        memory.require(100 * 2**20, torch.device("cpu"), "lower num_devices", processes=3)
