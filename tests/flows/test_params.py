"""params.yaml is checked strictly, and errors say where."""

import re
from pathlib import Path

import pytest
from project import ROOT
from ruamel.yaml import YAML

from flows.commands.arguments import override
from flows.core.errors import Exit, UserError
from flows.core.params import Params
from flows.core.params_file import parse_params, read_params
from flows.core.presets import read_preset

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
DIGITS = (ROOT / "presets" / "digits.yaml").read_text()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid(preset: Path) -> None:
    name = parse_params(read_preset(preset.stem, preset.parent), preset.name).data.name
    assert re.fullmatch(rf"{name}(_\w+)?", preset.stem), f"{preset.name} begins with the name of its data set, {name}"


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    """2e-4 is a number in YAML 1.2 and a string in YAML 1.1."""
    path = tmp_path / "params.yaml"
    path.write_text(DIGITS.replace("learning_rate: 3e-3", "learning_rate: 2e-4"))
    assert read_params(path).train.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 64", "batch_size: 0", "train.batch_size: input should be greater than or equal to 1, got 0"),
        ("batch_size: 64", "batch_size: many", "train.batch_size: input should be a valid integer, got 'many'"),
        ("batch_size: 64", "batch_size: 6.5", "train.batch_size: input should be a valid integer, got 6.5"),
        ("batch_size: 64", "batchsize: 64", "train.batchsize is not a known parameter"),
        ("  steps:", "  stepps: 1\n  steps:", "train.stepps is not a known parameter"),
        ("gamma_0: -9.0", "gamma_0: 7.0", "model: gamma_0 must lie below gamma_1, got 7.0 and 5.0"),
        ("gamma_0: -9.0", "gamma_0: .nan", "model.gamma_0: input should be a finite number, got nan"),
        ("clip: true", "clip: yes", "sample.clip: input should be a valid boolean, got 'yes'"),
        ("name: digits", "name: digit", "data.name: input should be 'digits', 'mnist',"),
        ("name: digits", "name: image_folder", "data: image_folder needs source: the folder of images"),
        ("source: null", "source: /nonexistent", "data: digits needs source: null"),
        ("source: null", "source: ''", "data.source: must name a folder or a file, or be null, got ''"),
        (
            "source: null",
            "source: http://a.b/c",
            "data.source: must name a folder or a file of this machine, got 'http",
        ),
        ("source: null", "source: ' '", "data.source: must name a folder or a file, or be null, got ' '"),
        ("source: null", 'source: "a\\0b"', "data.source: must name a folder or a file, or be null, got 'a\\x00b'"),
        ("source: null", "source: ~nouser/x", "data.source: '~nouser/x' begins with a user who has no home folder"),
        ("source: null", "source: [a]", "data.source: input should be a valid string, got ['a']"),
        ("num_bits: 8", "num_bits: 9", "data.num_bits: input should be less than or equal to 8, got 9"),
        ("resize: null", "resize: [8]", "data.resize: list should have at least 2 items"),
        ("max_leaked: 0.0", "max_leaked: 1.5", "contract.max_leaked: input should be less than or equal to 1, got 1.5"),
        ("learning_rate: 3e-3", "learning_rate: 1e300", "train.learning_rate: input should be less than or equal to 1"),
        ("learning_rate: 3e-3", "learning_rate: true", "train.learning_rate: input should be a valid number, got True"),
        ("learning_rate: 3e-3", "learning_rate: '3e-3'", "train.learning_rate: input should be a valid number"),
        ("betas: [0.9, 0.99]", "betas: [0.9]", "train.betas: list should have at least 2 items"),
        (
            "tolerance: 1e-5",
            "tolerance: 1e-12",
            "ode.tolerance: input should be greater than or equal to 0.000000001",
        ),
        ("betas: [0.9, 0.99]", "betas: [0.9, 1.5]", "train.betas.1: input should be less than 1, got 1.5"),
        ("num_devices: 2", "num_devices: 3", "train: batch_size must be a multiple of num_devices x accumulation = 3"),
        ("device: cpu ", "device: cuda:1 ", "train: device cuda:1 is one device, but num_devices is 2"),
        ("compile: auto", "compile: yes", "train.compile: input should be auto, true or false, got 'yes'"),
        ("augmentation: []", "augmentation: [turn]", "train.augmentation.0: input should be 'flip', 'rotate' or"),
        ("augmentation: []", "augmentation: [flip]", "train.augmentation needs model.augmentation_input: true"),
        ("device: cpu ", "device: gpu ", "train.device: input should be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("validation_fraction: 0.1", "validation_fraction: 0.6", "data.validation_fraction: input should be less"),
        ("validation_fraction: 0.1", "validation_fraction: 0", "data.validation_fraction must be above 0, or train."),
        ("validate_every_steps: 300", "validate_every_steps: null", "train: keep: best and patience need"),
        ("images: train ", "images: train_and_validation ", "train: images: train_and_validation leaves no images for"),
        ("validation_times: 8", "validation_times: 1", "train.validation_times: input should be greater than or equal"),
        ("keep: best", "keep: first", "train.keep: input should be 'best' or 'last', got 'first'"),
        ("patience: null", "patience: 0", "train.patience: input should be greater than or equal to 1, got 0"),
        ("norm_groups: 8", "norm_groups: 7", "model: width must be a multiple of norm_groups, got 32 and 7"),
        ("norm_groups: 8", "norm_groups: 32", "model: norm_groups must be less than width, or the network ignores"),
    ],
)
def test_an_error_names_file_line_and_key(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    assert old in DIGITS
    path.write_text(DIGITS.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        read_params(path)
    assert error.value.code == Exit.USAGE
    assert message in str(error.value)
    line = int(str(error.value).split(":")[1])
    shown = path.read_text().splitlines()[line - 1]
    # A missing key has no line; the error names the line of its section.
    assert new.strip().splitlines()[0].split(":")[0] in shown or shown.rstrip(":") in message


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "vdmctl preset"), ("a: [", "not YAML"), ("", "params.yaml:1"), ("- a", "params.yaml:1")],
)
def test_a_file_that_cannot_be_read_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_params(path)
    assert "\n" not in str(error.value)


def test_missing_parameters_are_counted_and_the_files_that_have_them_are_named() -> None:
    text = DIGITS.replace("  grayscale: false", "", 1).replace("  num_bits: 8", "", 1)
    text = re.sub(r"^promote:.*", "", text, flags=re.DOTALL | re.MULTILINE)
    with pytest.raises(UserError) as error:
        parse_params(text, "params.yaml")
    advice = "presets/ has files with every parameter"
    assert str(error.value) == f"params.yaml:2: data.grayscale is missing, and 2 more; {advice}"


def test_weights_of_inception_that_name_no_file_are_refused() -> None:
    text = DIGITS.replace("inception_weights: null", 'inception_weights: ""', 1)
    text = text.replace("inception_sha256: null", f'inception_sha256: "{"0" * 64}"', 1)
    with pytest.raises(UserError, match=r"sample.inception_weights: must name a folder or a file"):
        parse_params(text, "params.yaml")
    text = text.replace('inception_weights: ""', "inception_weights: https://example.org/weights.pth", 1)
    with pytest.raises(UserError, match=r"got 'https://example.org/weights.pth'; download it first"):
        parse_params(text, "params.yaml")


@pytest.mark.parametrize("device", ["cuda:01", "cuda:200", "cuda:256"])
def test_a_card_whose_number_torch_would_misread_is_refused(device: str) -> None:
    text = DIGITS.replace("device: cpu ", f"device: {device} ", 1)
    with pytest.raises(UserError, match=rf"train.device: input should be auto, cpu, cuda or cuda:N, got '{device}'"):
        parse_params(text, "params.yaml")


def test_the_option_device_names_one_device() -> None:
    evaluate = parse_params(DIGITS, "params.yaml").evaluate.model_copy(update={"num_devices": 2})
    assert override(evaluate, {"device": "cuda:1"}).num_devices == 1
    assert override(evaluate, {"seed": 3}).num_devices == 2


def test_the_parameters_are_in_the_order_of_the_file() -> None:
    """The model card has them in the order of the fields, and its bytes are those of an output."""
    written = YAML(typ="safe").load(ROOT / "params.yaml")
    order = "flows/core/params.py and params.yaml differ in the order of"
    assert list(written) == list(Params.model_fields), f"{order} the sections"
    for name, section in Params.model_fields.items():
        assert section.annotation
        assert list(written[name]) == list(section.annotation.model_fields), f"{order} {name}"
