"""A preset names what differs from digits.yaml; `vdmctl preset` writes a whole file with its comments."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from pictures import noise
from PIL import Image
from project import ROOT, TINY_PARAMS
from ruamel.yaml import YAML
from small import training_json

from flows.cli import run
from flows.core.errors import Exit, UserError
from flows.core.model import arguments_of, save_model
from flows.core.params import Params, Train
from flows.core.params_file import WHOLE, compose, parse_params, preset_names, read_params, read_preset
from flows.images.image_set import SPLITS, open_images
from flows.process.locks import claim
from flows.training.choice import take_values
from flows.training.planning_minutes import plan_minutes
from vdm.model import VDM

# Great Expectations warns about itself and about pandas.
pytestmark = pytest.mark.filterwarnings("ignore")

PRESETS = ROOT / "presets"
DIGITS = (PRESETS / "digits.yaml").read_text()
OTHERS = sorted(set(preset_names(PRESETS)) - {WHOLE})


@pytest.mark.parametrize("name", OTHERS)
def test_a_preset_has_only_what_differs_with_a_reason_for_each_value(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text()
    whole, changed = YAML(typ="safe").load(DIGITS), YAML(typ="safe").load(text)
    same = [
        f"{section}.{key}"
        for section in changed
        for key, value in changed[section].items()
        if whole[section][key] == value
    ]
    assert same == []
    assert [line for line in text.splitlines() if line.startswith("  ") and "  # " not in line] == []
    composed = parse_params(read_preset(name, PRESETS), name).model_dump()
    for section, values in whole.items():
        assert composed[section] == parse_params(DIGITS, WHOLE).model_dump()[section] | changed.get(section, {})
        assert composed[section].keys() == values.keys()


def test_the_composed_text_is_that_of_digits_but_for_the_changed_lines() -> None:
    text = "# Mine\ndata:\n  resize: [8, 8]  # smaller\ntrain:\n  learning_rate: 2e-4\n  patience: null\n"
    expected = {
        "  resize: null          # [height, width]\n": "  resize: [8, 8]        # [height, width]; smaller\n",
        "  learning_rate: 1e-2\n  warmup": "  learning_rate: 2e-4\n  warmup",
    }
    whole = "# Mine\n" + DIGITS.partition("\n")[2]
    for old, new in expected.items():
        assert old in whole
        whole = whole.replace(old, new)
    assert compose(DIGITS, text) == whole


def test_a_later_preset_replaces_values_and_reasons_of_an_earlier_one() -> None:
    texts = ("train:\n  patience: 3  # first\n  steps: 5  # fast\n", "# Mine\ntrain:\n  patience: 4  # second\n")
    lines = compose(DIGITS, *texts).splitlines()
    assert lines[0] == "# Mine"
    (before,) = (line.partition("null")[2].lstrip(" #") for line in DIGITS.splitlines() if "patience: null" in line)
    assert next(line for line in lines if "patience: 4" in line).endswith(f"# {before}; second")
    assert "  steps: 5              # fast" in lines


@pytest.mark.parametrize("text", ["", "data: 3", "a: [", "unknown:\n  a: 1\n"])
def test_a_preset_that_has_no_sections_of_parameters_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="a preset is not YAML with sections") as refused:
        compose(DIGITS, text)
    assert refused.value.code is Exit.USAGE


def test_an_unknown_parameter_of_a_preset_is_found_when_the_file_is_read() -> None:
    with pytest.raises(UserError, match=r"train\.stepps is not a known parameter"):
        parse_params(compose(DIGITS, "train:\n  stepps: 1  # a slip\n"), "params.yaml")


def test_outside_a_project_the_presets_are_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["preset", "mnist"]) == Exit.DONE
    assert "no dvc.yaml is here, so `vdmctl download`, `validate`, `train`" in capsys.readouterr().out
    assert Path("params.yaml").read_text() == read_preset("mnist", PRESETS)


def test_params_yaml_is_overwritten_only_if_it_is_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("presets").mkdir()
    assert run(["preset", "digits"]) == Exit.USAGE
    assert "no preset 'digits': no files in presets/" in capsys.readouterr().err
    Path("presets").rmdir()
    Path("presets").symlink_to(PRESETS)
    for name in ("mnist", "digits"):
        assert run(["preset", name]) == Exit.DONE
        assert Path("params.yaml").read_text() == read_preset(name)
    Path("params.yaml").write_text(DIGITS.replace("steps: 3400", "steps: 7"))
    assert run(["preset", "mnist"]) == Exit.USAGE
    assert "wrote; --force overwrites it" in capsys.readouterr().err
    assert run(["preset", "mnist", "--force"]) == Exit.DONE
    assert Path("params.yaml").read_text() == read_preset("mnist")


def test_edits_made_while_steps_are_measured_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("presets").symlink_to(PRESETS)

    def edit(*_: object, **__: object) -> str:
        Path("params.yaml").write_text("mine")
        return "planned"

    monkeypatch.setattr("flows.training.planning.plan", edit)
    assert run(["preset", "digits", "--images", "pictures"]) == Exit.USAGE
    assert "params.yaml changed meanwhile, so it stays as it is; run again" in capsys.readouterr().err
    assert run(["preset", "digits", "--images", "pictures", "--force"]) == Exit.DONE
    assert Path("params.yaml").read_text().startswith("planned")
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", "presets"}


def test_a_folder_that_cannot_be_written_is_reported_before_steps_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("presets").symlink_to(PRESETS)
    Path("closed").touch()
    monkeypatch.setattr("flows.core.layout.PARAMS", Path("closed/params.yaml"))
    monkeypatch.setattr("flows.training.planning.plan", Mock(side_effect=AssertionError("measured")))
    assert run(["preset", "digits", "--images", "pictures"]) == Exit.MISSING
    assert "closed" in capsys.readouterr().err


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with a preset that takes milliseconds a step, and return the folder `mine` for images."""
    (tmp_path / "presets").mkdir()
    (tmp_path / "mine").mkdir()
    text = DIGITS
    for old, new in TINY_PARAMS.items():
        text = text.replace(old, new)
    (tmp_path / "presets/digits.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path))
    monkeypatch.setattr("flows.training.planning_minutes.MEASURED_SECONDS", 0.1)
    return Path("mine")


def draw(folder: Path, count: int, *sizes: tuple[int, ...], first: int = 0) -> None:
    """Write pictures of noise into a folder, of these sizes in turn: (H,W) or (H,W,3)."""
    rng = np.random.default_rng(first)
    for number in range(first, first + count):
        pixels = rng.integers(0, 256, sizes[number % len(sizes)], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def planned(*arguments: str) -> Params:
    """Return the parameters that `vdmctl preset digits` writes for the images."""
    assert run(["preset", "digits", "--images=mine", "--minutes=1", *arguments]) == Exit.DONE
    return read_params(Path("params.yaml"))


@pytest.mark.slow
def test_a_preset_for_a_folder_suits_its_images_and_minutes(mine: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(mine, 60, (6, 5, 3))
    params = planned()
    assert (params.data.name, params.data.source) == ("image_folder", "mine")
    assert (params.data.grayscale, params.data.resize) == (False, None)
    assert (params.model.gamma_0, params.model.fourier_exponents) == (-13.3, [5, 6])
    assert params.sample.num_images <= 12  # the test images
    assert {params.train.precision, params.evaluate.precision, params.sample.precision} == {"auto"}
    assert "mine: images of 3x6x5 with 256 levels; 43 for training, 4 for validation, 13 test images" in caplog.text
    assert "s a step of 64 images" in caplog.text
    text = Path("params.yaml").read_text()
    assert text.startswith('# The preset digits for the images in "mine": 1 min of training here\n')
    whole = Path("presets/digits.yaml").read_text().splitlines()[1:]
    assert [line.partition(" # ")[2] for line in whole if line.partition(" # ")[2] not in text] == []
    assert run(["download"]) == Exit.DONE


def start(folder: str, shape: tuple[int, int, int], **known: Any) -> None:
    """Save a model with random weights, and the parameters of its training if they are given."""
    model = parse_params(read_preset(WHOLE), WHOLE).model.model_copy(update={"width": 12, "gamma_0": -13.3})
    config = arguments_of(model, shape, 256)
    save_model(Path(folder), VDM(**config), config)
    if known:
        Path(folder, "training.json").write_text(training_json(known))


@pytest.mark.slow
def test_a_preset_continues_from_a_model(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its network, its transforms and its recipe, a lower rate, and no more steps than suffice."""
    draw(mine, 60, (6, 5, 3))
    whole = parse_params(read_preset(WHOLE), WHOLE)
    data = whole.data.model_dump() | {"grayscale": True, "pad": 1}
    train = whole.train.model_dump() | {"learning_rate": 4e-3, "steps": 30, "weight_decay": 0.2}
    start("known", (1, 8, 7), data=data, train=train)
    command = ["preset", "--images=mine", "--minutes=1", "--start-from"]
    assert run([*command, "known"]) == Exit.DONE
    params = read_params(Path("params.yaml"))
    assert (params.data.name, params.data.grayscale, params.data.pad, params.data.resize) == (
        "image_folder",
        True,
        1,
        None,
    )
    assert (params.model.width, params.model.gamma_0, params.model.blocks) == (12, -13.3, 1)
    found = params.train
    assert (found.start_from, found.learning_rate, found.steps, found.weight_decay) == ("known", 1.6e-3, 15, 0.2)
    assert "# 0.4 of that of known, which suits continuing" in Path("params.yaml").read_text()

    start("bare", (1, 4, 4))
    assert run([*command, "bare"]) == Exit.DONE
    params = read_params(Path("params.yaml"))
    assert (params.data.grayscale, params.data.resize, params.train.learning_rate) == (True, [4, 4], 4e-3)
    assert run(["download"]) == Exit.DONE

    start("coloured", (4, 6, 5))
    for arguments, code, said in (
        (
            [*command, "coloured"],
            Exit.USAGE,
            "coloured is a model of images of 4x6x5 with 256 levels, and those in mine",
        ),
        ([*command, "nowhere"], Exit.MISSING, "train.start_from: nowhere: no such folder"),
        ([*command, "champion"], Exit.USAGE, "train.start_from: champion: `champion` is for runs"),
        (["preset", "digits", *command[1:], "bare"], Exit.USAGE, "--start-from takes the place of a preset"),
        (["preset", "--start-from=bare"], Exit.USAGE, "--start-from needs --images FOLDER"),
        (["preset"], Exit.USAGE, "name a preset: digits"),
    ):
        capsys.readouterr()
        assert run([*arguments, "--force"]) == code
        assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_preset_with_classes_takes_those_of_the_folder(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "cat").mkdir()
    (mine / "dog").mkdir()
    draw(mine / "cat", 60, (6, 5))
    command = ["preset", "classes", "--images=mine", "--minutes=1"]
    Path("presets/classes.yaml").write_text("# Of classes\nmodel:\n  classes: auto  # as many as folders\n")
    assert run(command) == Exit.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine: the preset has classes, which need two or more folders with the images of a class each" in line
    draw(mine / "dog", 20, (6, 5), first=100)
    assert run(command) == Exit.DONE
    assert read_params(Path("params.yaml")).model.classes == "auto"
    assert run(["download"]) == Exit.DONE


@pytest.mark.slow
def test_images_of_several_sizes_are_resized_and_those_without_colours_are_gray(mine: Path) -> None:
    draw(mine, 40, (40, 80), (50, 100))
    draw(mine, 20, (40, 80, 3), first=40)
    data = planned().data
    assert (data.resize, data.crop, data.grayscale, data.gray_as_rgb) == ([16, 32], None, True, False)
    text = Path("params.yaml").read_text()
    assert "  resize: [16, 32]      # [height, width]; they have 40 to 50 by 80 to 100" in text
    assert "colours become gray; 40 of 60 images have no colours" in text


@pytest.mark.slow
def test_transparency_gets_a_background_and_sides_that_differ_are_cropped(mine: Path) -> None:
    draw(mine, 80, (40, 80, 3), (50, 50, 3))
    for number in range(40):
        pixels = noise(40, 40, 4, seed=number)
        pixels[..., :3] //= 8
        Image.fromarray(pixels).convert("LA" if number < 10 else "RGBA").save(mine / f"icon{number}.png")
    data = planned().data
    assert (data.background, data.gray_as_rgb, data.grayscale) == ("white", True, False)
    assert (data.crop, data.resize) == ("center", [32, 32])
    text = Path("params.yaml").read_text()
    assert "40 of 120 are transparent in places, and dark: a mean level of 1" in text
    assert "10 of 120 images are gray" in text
    left_out = 40 * 40 * 40 / (40 * 40 * 80 + 40 * 50 * 50 + 40 * 40 * 40)
    assert f"their sides differ; it leaves out {left_out:.0%} of the pixels" in text
    assert run(["download"]) == Exit.DONE
    assert open_images(Path("data/images")).image_shape == (3, 32, 32)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let a first step take a second and others half a second, in place of networks that take minutes here."""
    seconds = {"first": 1.0, "step": 0.5}
    monkeypatch.setattr("flows.training.planning.measure_steps", lambda *_: (seconds["first"], seconds["step"]))
    return seconds


@pytest.mark.slow
@pytest.mark.parametrize("name", [WHOLE, "digits_classes", "cifar10"])
def test_class_folders_are_counted_and_any_preset_takes_them(
    name: str, mine: Path, unmeasured: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    for kind, count in (("circle", 160), ("square", 120), ("star", 80)):
        (mine / kind).mkdir()
        draw(mine / kind, count, (6, 5), first=1000 * count)
    (Path("presets") / f"{name}.yaml").write_text((PRESETS / f"{name}.yaml").read_text())
    classed = parse_params(read_preset(name), name).model.classes is not None
    assert run(["preset", name, "--images=mine", "--minutes=9"]) == Exit.DONE
    how = "" if classed else "; --classes makes a model that is given the class"
    assert f"mine: 3 classes: circle 160, square 120, star 80{how}\n" in caplog.text
    assert read_params(Path("params.yaml")).model.classes == ("auto" if classed else None)
    assert run(["preset", name, "--images=mine", "--minutes=9", "--classes"]) == Exit.DONE
    params = read_params(Path("params.yaml"))
    assert params.model.classes == "auto"
    batch_size, evaluate = params.train.batch_size, params.evaluate
    assert evaluate.class_images
    calls = 3 * evaluate.class_images * evaluate.class_times
    assert calls <= max(9 * 60 / 4 * 3 * batch_size / 0.5, 6)


def test_minutes_are_doubted_on_a_busy_machine_and_below_an_epoch(
    mine: Path, unmeasured: dict[str, float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    draw(mine, 300, (6, 5))
    cores = os.cpu_count() or 1
    for load in (cores - 0.5, cores + 0.5):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        for unmeasured["step"] in (0.1, 5.0):
            caplog.clear()
            planned()
            busy = f"the machine was busy while steps were measured: a load of {load:.1f} on {cores} cores"
            assert (busy in caplog.text) == (load > cores)
            assert ("1 min are less than an epoch: " in caplog.text) == (unmeasured["step"] == 5.0)


def test_a_file_for_images_is_overwritten_until_somebody_edits_it(
    mine: Path, unmeasured: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    draw(mine, 60, (6, 5))
    planned()
    planned()
    edited = Path("params.yaml").read_text().replace("pad: 0", "pad: 2")
    Path("params.yaml").write_text(edited)
    assert run(["preset", "digits", "--images=mine"]) == Exit.USAGE
    assert "params.yaml differs from every preset, and from what `vdmctl preset --images` wrote; --force" in (
        capsys.readouterr().err
    )
    assert Path("params.yaml").read_text() == edited
    planned("--force")


@pytest.mark.parametrize("name", ["\U0001f600 of \U0001f431", 'a "quoted" one', "two\nlines"])
def test_the_name_of_a_folder_may_have_any_characters(name: str, mine: Path, unmeasured: dict[str, float]) -> None:
    folder = Path(name)
    folder.mkdir()
    draw(folder, 60, (6, 5))
    assert run(["preset", "digits", "--images", name]) == Exit.DONE
    assert read_params(Path("params.yaml")).data.source == name


@pytest.mark.parametrize("parts", [{"": 50}, {"": 40}, {"train": 20, "test": 20}])
def test_small_sets_get_a_seed_that_leaves_each_split_enough_images(
    parts: dict[str, int], mine: Path, unmeasured: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    for number, (part, count) in enumerate(parts.items()):
        (mine / part).mkdir(exist_ok=True)
        draw(mine / part, count, (6, 5), first=1000 * number)
    seed = planned().data.split_seed
    assert seed
    assert f"split_seed: {seed}         # 0 gives a split too few of {sum(parts.values())} images" in (
        Path("params.yaml").read_text()
    )
    assert "validation images, which say little about which weights are best" in caplog.text
    assert run(["download"]) == Exit.DONE
    images = open_images(Path("data/images"))
    assert len(images["test"]) >= 10
    assert len(images["validation"]) >= 1


def test_the_contract_is_asked_before_steps_are_measured(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Copies are left out if asked, and a limit accepts a flat picture, with which the stage finds the set valid."""

    def measured(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("flows.training.planning.measure_steps", measured)
    draw(mine, 60, (6, 5))
    for number in range(4):
        (mine / f"copy{number}.png").write_bytes((mine / "000.png").read_bytes())
    assert run(["preset", "digits", "--images=mine"]) == Exit.INVALID_DATA
    (line,) = capsys.readouterr().err.splitlines()
    assert "no image is twice in a split: 4 of 64 images" in line
    assert line.endswith("; leave copies out with --without-copies")
    monkeypatch.setattr("flows.training.planning.measure_steps", lambda *_: (1.0, 0.5))
    Image.fromarray(np.full((6, 5), 9, np.uint8)).save(mine / "flat.png")
    params = planned("--without-copies")
    assert params.data.without_copies
    assert params.contract.max_constant == 0.017
    assert "no image is of one level: 1 of 61 images" in caplog.text
    assert 'flat.png"); params.yaml accepts it, and results will say so' in caplog.text
    assert run(["download"]) == Exit.DONE
    assert run(["validate"]) == Exit.DONE


@pytest.mark.parametrize("seconds", [0.001, 0.05])
@pytest.mark.parametrize("num_images", [(400, 40, 100), (40_000, 8000, 12_000)])
def test_steps_and_validations_take_the_minutes(seconds: float, num_images: tuple[int, int, int]) -> None:
    preset = parse_params(DIGITS, WHOLE)

    def measure(train: Train) -> tuple[float, float]:
        return 2.0, seconds * train.batch_size

    _, num_validation, num_test = num_images
    chosen = plan_minutes(preset, 600, measure, dict(zip(SPLITS, num_images, strict=True)))
    train = take_values(chosen.train)
    validations = -(-train["steps"] // train["validate_every_steps"])
    evaluations = validations * train["validation_times"] * num_validation * seconds / 3
    assert 590 < 2 + train["steps"] * train["batch_size"] * seconds + evaluations < 610
    assert train["batch_size"] == (64 if seconds == 0.001 else 16)
    assert evaluations < 65 or (validations, train["validation_times"]) == (1, 2)
    assert chosen.sample["num_images"].value <= num_test


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--minutes=1"], Exit.USAGE, "--minutes needs --images FOLDER"),
        (["--classes"], Exit.USAGE, "--classes needs --images FOLDER"),
        (["--images=mine", "--classes"], Exit.USAGE, "mine: --classes needs two or more folders with the images of a"),
        (["--images=mine", "--minutes=0"], Exit.USAGE, "--minutes must be above 0, got 0"),
        (["--images=mine", "--minutes=1e-5"], Exit.USAGE, "--minutes are too few: a step takes "),
        (["--images=none"], Exit.MISSING, "none does not exist, or is not a folder of images"),
        (["--images=presets"], Exit.MISSING, "presets: holds no .bmp,"),
        (["--images=few"], Exit.INVALID_DATA, " test images, but samples are compared with at least 10; add images"),
    ],
)
def test_images_and_minutes_that_make_no_parameters_are_refused(
    arguments: list[str], code: Exit, message: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("few").mkdir()
    draw(mine, 60, (6, 5))
    draw(Path("few"), 15, (6, 5))
    assert run(["preset", "digits", *arguments]) == code
    assert message in capsys.readouterr().err
    assert not Path("params.yaml").exists()


def test_no_speed_is_measured_while_a_training_holds_the_device(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(mine, 60, (6, 5))
    with claim(torch.device("cpu")):
        assert run(["preset", "digits", "--images=mine"]) == Exit.BUSY
    assert "cpu is busy" in capsys.readouterr().err
