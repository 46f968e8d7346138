"""params.yaml is checked strictly, and an error is one line with the key; YAML of others is bounded."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from project import ROOT, one_line, run_vdmctl
from ruamel.yaml import YAML

from flows.commands.arguments import override
from flows.commands.vdmctl import app
from flows.core.bounded_yaml import dump, load, parse, sections
from flows.core.errors import Exit, UserError
from flows.core.params import Params
from flows.core.params_file import parse_params, read_params

HOME = Path.home()
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
DIGITS = (ROOT / "presets" / "digits.yaml").read_text()
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(30))


def refusal(text: str) -> str:
    """Return the error of one line for params.yaml with this content."""
    with pytest.raises(UserError) as error:
        parse_params(text, "params.yaml")
    assert error.value.code is Exit.USAGE
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
    return str(error.value)


def test_numbers_are_read_as_dvc_reads_them() -> None:
    """2e-4 is a number in YAML 1.2 and a string in YAML 1.1."""
    assert parse_params(DIGITS.replace("learning_rate: 1e-2", "learning_rate: 2e-4"), "").train.learning_rate == 2e-4
    content = "a: 2e-4\nb: yes\nc: 0o17\nd: null\ne: ~\nf: 'x'\ng: |\n  y\nh: [1, {i: .inf}]\nj: true\n"
    found = {"a": 2e-4, "b": "yes", "c": 15, "d": None, "e": None, "f": "x", "g": "y\n", "j": True}
    assert parse(content) == found | {"h": [1, {"i": float("inf")}]}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 64", "batch_size: 0", "train.batch_size: input should be greater than or equal to 1, got 0"),
        ("batch_size: 64", "batchsize: 64", "train.batchsize is not a known parameter"),
        ("gamma_0: -9.0", "gamma_0: 7.0", "model: gamma_0 must lie below gamma_1, got 7.0 and 5.0"),
        ("clip: true", "clip: yes", "sample.clip: input should be a valid boolean, got 'yes'"),
        ("name: digits", "name: image_folder", "data: image_folder needs source: the folder of images"),
        ("source: data/published", "source: http://a.b/c", "data.source: must name a folder or a file of this machine"),
        ("betas: [0.9, 0.99]", "betas: [0.9, 1.5]", "train.betas.1: input should be less than 1, got 1.5"),
        ("num_devices: 2", "num_devices: 3", "train: batch_size must be a multiple of num_devices x accumulation = 3"),
        ("device: cpu ", "device: cuda:1 ", "train: device cuda:1 is one device, but num_devices is 2"),
        ("compile: auto", "compile: yes", "train.compile: input should be 'auto', True, False or 'graphs', got 'yes'"),
        ("source: data/published", "source: null", "data.source: input should be a valid string"),
        ("tracker: null", "tracker: mlflow", "train.tracker: input should be 'tensorboard', got 'mlflow'"),
        ("augmentation: []", "augmentation: [flip]", "train.augmentation needs model.augmentation_input: true"),
        ("validation_fraction: 0.1", "validation_fraction: 0", "data.validation_fraction must be above 0, or train."),
        ("validate_every_steps: 500", "validate_every_steps: null", "train: keep: best and patience need"),
        ("images: train ", "images: train_and_validation ", "train: images: train_and_validation leaves no images for"),
        ("norm_groups: 8", "norm_groups: 32", "model: norm_groups must be less than width, or the network ignores"),
        ("inception_weights: null", "inception_weights: a", "sample: inception_weights and inception_sha256 belong"),
        ("max_odd: null", "max_odd: 2", "contract.max_odd"),
        ("surprise_images: 2000", "surprise_images: 1", "evaluate.surprise_images"),
        ("surprise_levels: 4", "surprise_levels: 0", "evaluate.surprise_levels"),
    ],
)
def test_an_error_names_the_key_and_what_is_wrong(old: str, new: str, message: str) -> None:
    assert old in DIGITS
    assert refusal(DIGITS.replace(old, new, 1)).startswith(f"params.yaml: {message}")


def test_a_source_in_the_home_folder_is_refused_with_its_path() -> None:
    """DVC would seek a folder named ~."""
    text = DIGITS.replace("name: digits", "name: image_folder").replace("source: data/published", "source: ~/pictures")
    assert f"data.source must be a path as DVC reads it; write {HOME}/pictures" in refusal(text)


def test_missing_parameters_are_counted_and_the_files_that_have_them_are_named() -> None:
    text = DIGITS.replace("  grayscale: false", "", 1).replace("  num_bits: null", "", 1)
    text = re.sub(r"^promote:.*", "", text, flags=re.DOTALL | re.MULTILINE)
    advice = "presets/ has files with every parameter"
    assert refusal(text) == f"params.yaml: data.grayscale is missing, and 2 more; {advice}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB, "anchors and aliases are not supported"),
        ("data: !!python/object:os.system {}\n", "the tag "),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("#" * 10_000_000, "larger than 262,144 bytes"),
        ("a: 1\nb: [\n", "line 3: "),
        ("a: 1\na: 2\n", "line 2: found duplicate key"),
    ],
)
def test_hostile_yaml_gives_an_error_of_one_line(content: str | bytes, reason: str) -> None:
    with pytest.raises(UserError, match=f"^params.yaml: not YAML: {reason}") as error:
        parse_params(content, "params.yaml")
    assert error.value.code is Exit.USAGE
    assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match=r"."):
        load(content)
    assert sections(content if isinstance(content, bytes) else content.encode()) == {}


@pytest.mark.parametrize("content", ["", "- a", "text"])
def test_a_file_without_sections_is_refused(content: str) -> None:
    assert refusal(content).startswith("params.yaml: must hold sections such as `data:`")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("params.yaml", "No such file"), ("fifo", "not a regular file"), (".", "Is a directory")):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: {reason}") as error:
            read_params(tmp_path / name)
        assert error.value.code is Exit.USAGE


def test_a_document_keeps_its_quotes_comments_and_nulls() -> None:
    text = "h: \"q\"  # why\nk: '1'\nn: plain\no: null\n"
    assert dump(load(text)) == text
    assert dump(load(DIGITS)) == DIGITS


def test_the_option_device_names_one_device() -> None:
    evaluate = parse_params(DIGITS, "params.yaml").evaluate.model_copy(update={"num_devices": 2})
    assert override(evaluate, {"device": "cuda:1"}).num_devices == 1
    assert override(evaluate, {"seed": 3}).num_devices == 2


def test_no_command_takes_an_empty_text(tmp_path: Path) -> None:
    """An unset variable of a shell leaves one: `promote --hold "$WHY"` must not promote."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command, parameter in ((name, each) for name in commands for each in commands[name].params):
        if getattr(parameter, "is_flag", False):
            continue
        for empty in ("", " "):
            given = [empty] * parameter.nargs
            if parameter.param_type_name == "argument":
                before = [each for each in commands[command].params if each.param_type_name == "argument"]
                given = ["x"] * before.index(parameter) + given
            else:
                given = [parameter.opts[-1], *given]
            result = run_vdmctl(tmp_path, {}, command, *given)
            named = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
            assert (result.returncode, result.stdout) == (Exit.USAGE, ""), (command, given)
            assert re.match(f"vdmctl: Invalid value for '.*{named}.*': it is empty", one_line(result)), (command, given)
    assert not [*tmp_path.iterdir()]


def test_the_parameters_are_in_the_order_of_the_file() -> None:
    """The model card has them in the order of the fields, and its bytes are those of an output."""
    written: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")
    order = "flows/core/params.py and params.yaml differ in the order of"
    assert list(written) == list(Params.model_fields), f"{order} the sections"
    for name, section in Params.model_fields.items():
        assert section.annotation
        assert list(written[name]) == list(section.annotation.model_fields), f"{order} {name}"
