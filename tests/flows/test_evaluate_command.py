"""`vdmctl evaluate` and `vdmctl compare`: their options reach the evaluation, and what they refuse."""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from pictures import claiming, settings
from PIL import Image
from small import Small, training_json

from flows.cli import run
from flows.core.errors import Exit
from flows.core.model import open_model, read_config, save_model
from flows.images.as_png import measure_png
from flows.images.grids import eight_bit
from flows.images.image_set import open_images, save_images
from flows.images.transforms import transform

MODEL, OTHER = "models/vdm", "models/other"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the object that a command prints."""
    capsys.readouterr()
    assert run([*arguments, "--json"]) == Exit.DONE
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def other_model() -> None:
    """Write a model with other weights of its last layer."""
    model = open_model(Path(MODEL))
    model.vdm.network.conv_out.weight.data.fill_(0.1)
    save_model(Path(OTHER), model.vdm, model.description.model)


def test_options_of_the_ode_replace_its_parameters_also_with_zero(
    small: Small,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    solved = Mock(side_effect=lambda model, pixels, **_: np.zeros(len(pixels)))  # exactly, it takes seconds
    monkeypatch.setattr("flows.evaluation.ode.evaluate_ode", solved)
    before, section, after = Path("params.yaml").read_text().partition("\node:")
    assert "\n  seed: 0\n" in after
    Path("params.yaml").write_text(before + section + after.replace("seed: 0", "seed: 5", 1))
    given = {"seed": 0, "num_draws": 2, "num_probes": 0, "dequantisation": "uniform"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    found = printed(capsys, "evaluate", MODEL, "--protocol=ode", "--num-images=2", *options)
    assert {name: found[name] for name in given} == given
    assert {name: solved.call_args.kwargs[name] for name in given} == given
    assert found["num_images"] == 2
    assert "2 images take about 0.0 minutes or less, all 40 about 0.0" in caplog.text


def test_options_of_the_bound_replace_its_parameters_also_with_zero(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small.edit(seed=5)
    for steps in (["3"], ["3", "4"]):
        given = ["--seed=0", "--times-per-image=1", f"--num-timesteps={','.join(steps)}"]
        found = printed(capsys, "evaluate", MODEL, *given)
        for each, number in zip(found.get("sweep", [found]), steps, strict=True):
            assert (each["seed"], each["times_per_image"], each["num_timesteps"]) == (0, 1, int(number))


def test_a_model_that_is_worse_than_png_is_named(
    small: Small, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    printed(capsys, "evaluate", MODEL, "--times-per-image=1")
    taken = measure_png(open_images(Path("data/images"))["test"])
    said = "worse than PNG: train longer; in one PNG"
    assert f"{said} the same images take {taken.bpd:.4f} bits/dim" in caplog.text
    caplog.clear()
    printed(capsys, "evaluate", MODEL, "--times-per-image=1", "--images=data/images/test.npy", "--num-images=3")
    assert said in caplog.text
    assert taken.is_better(taken.bpd + 1e-6)
    assert not taken.is_better(taken.bpd - 1e-6)
    assert not taken.is_better(None)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_only_the_metrics_of_the_test_images_compare_the_splits(
    split: str, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(capsys, "evaluate", MODEL, "--times-per-image=1", f"--split={split}", "--out=new")
    assert json.loads(Path("new/metrics.json").read_text()) == found
    for name in ("training", "validation", "generalisation_gap_bpd"):
        assert (found[name] is not None) == (split == "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", MODEL, "--protocol=ode", "--out=new"], "--num-timesteps and --out need --protocol vlb"),
        (["evaluate", MODEL, "--protocol=ode", "--num-timesteps=3"], "--num-timesteps and --out need --protocol vlb"),
        (["evaluate", MODEL, "--num-draws=3"], "--num-draws needs --protocol ode"),
        (["evaluate", MODEL, "--num-timesteps=1,2", "--out=new"], "several values of --num-timesteps write no files"),
        (["evaluate", "--num-timesteps=1,2"], "several values of --num-timesteps write no files: name a MODEL"),
        (["compare", MODEL, MODEL, "--confidence=95"], "--confidence must lie between 0 and 1, got 95"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    arguments: list[str], message: str, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    before = small.outputs()
    assert run(arguments) == Exit.USAGE
    assert message in capsys.readouterr().err
    assert small.outputs() == before


def pictures_of(images: np.ndarray) -> Path:
    """Write images (N,C,H,W) as PNG files into the folder `mine`, and return it."""
    Path("mine").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(f"mine/{number}.png")
    return Path("mine")


def test_pictures_have_the_figures_of_the_same_images_in_a_set_and_their_names(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    images = open_images(Path("data/images"))
    pictures_of(images["test"][:9])
    few = {"train": images["train"], "test": images["test"][:9]}
    save_images(Path("few"), few, images.description.stated | {"num_validation": 0, "num_test": 9})
    before = small.outputs()
    of_set = printed(capsys, "evaluate", MODEL, "--images=few")
    of_pictures = printed(capsys, "evaluate", "--images=mine")
    assert small.outputs() == before
    different = {name for name in of_set if of_set[name] != of_pictures[name]}
    assert different == {"split", "data_sha256", "num_train"}
    assert (of_pictures["split"], of_pictures["num_images"]) == ("other", 9)
    assert printed(capsys, "evaluate", "--images=mine", "--num-images=3", "--out=new")["num_images"] == 3
    rows = list(csv.DictReader(Path("new/per_image.csv").read_text().splitlines()))
    assert [(row["image"], row["file"]) for row in rows] == [("0", "0.png"), ("4", "4.png"), ("8", "8.png")]
    assert json.loads(Path("new/metrics.json").read_text())["validation"] is None
    assert run(["evaluate", MODEL, "--images=mine"]) == Exit.DONE
    assert "\n9 other images, 2 noise levels each" in capsys.readouterr().out


def test_only_the_figures_of_the_images_of_the_pipeline_are_written_where_the_report_reads_them(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    images = open_images(Path("data/images"))
    save_images(Path("few"), {"train": images["train"], "test": images["test"][:9]}, {"name": "few", "num_levels": 17})
    before = small.outputs()
    assert printed(capsys, "evaluate", "--images=few")["num_images"] == 9
    assert small.outputs() == before
    found = printed(capsys, "evaluate", f"--images={small.folder}/data/images")
    assert json.loads(Path("reports/evaluation/metrics.json").read_text()) == found


def test_pictures_are_transformed_as_those_of_the_training_were(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = np.random.default_rng(0).integers(0, 17, (4, 3, 12, 16), dtype=np.uint8)
    pictures_of(colours)
    assert run(["evaluate", MODEL, "--images=mine"]) == Exit.USAGE
    assert "images of 1x8x8 with 17 levels; mine holds 3x12x16, transforms: none; --fit" in capsys.readouterr().err
    known = Path(MODEL, "training.json")
    data = settings(Path("mine"), grayscale=True, resize=[8, 8])
    known.write_text(training_json({"data": data.model_dump()}))
    np.save("transformed.npy", transform(colours, 256, data))
    of_pictures = printed(capsys, "evaluate", MODEL, "--images=mine")
    known.write_text(known.read_text().replace("false", "0").replace("true", "1"))
    assert run(["evaluate", MODEL, "--images=mine"]) == Exit.MISSING
    assert f"{known}: parameters.data: damaged: without_copies" in capsys.readouterr().err
    known.unlink()
    assert printed(capsys, "evaluate", MODEL, "--images=transformed.npy")["bpd"] == of_pictures["bpd"]


def test_ordinary_pictures_are_made_to_fit_where_it_is_asked(
    small: Small, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A model of 17 levels: shades become levels, and photographs of any size their middle in gray."""
    images = open_images(Path("data/images"))["test"][:3]
    np.save("levels.npy", images)
    pictures_of(eight_bit(images, 17))
    assert run(["evaluate", MODEL, "--images=mine"]) == Exit.USAGE
    assert "; --fit changes pictures to what the model takes\n" in capsys.readouterr().err
    of_levels = printed(capsys, "evaluate", MODEL, "--images=levels.npy")
    assert printed(capsys, "evaluate", MODEL, "--images=mine", "--fit")["bpd"] == of_levels["bpd"]
    assert "mine: pictures were changed to fit: 3 of 3: its shades are the 17 levels" in caplog.text

    photograph = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(photograph).save("mine/photograph.jpg")
    clear = np.dstack([photograph[:8, :8], np.zeros((8, 8), np.uint8)])
    Image.fromarray(clear).save("mine/clear.png")
    assert run(["evaluate", MODEL, "--images=mine"]) == Exit.INVALID_DATA
    assert "; --fit changes pictures to what the model takes\n" in capsys.readouterr().err
    assert printed(capsys, "evaluate", MODEL, "--images=mine", "--fit")["num_images"] == 5
    assert "1 of 5: its middle, shrunk from 40x24 to 8x8 pixels, gray, 17 levels" in caplog.text
    assert "1 of 5: laid over black, gray, 17 levels" in caplog.text

    Path("mine/text.png").write_bytes(b"no picture")
    for options in ([], ["--fit"]):
        assert run(["evaluate", MODEL, "--images=mine", *options]) == Exit.MISSING
        error = capsys.readouterr().err
        assert "text.png" in error
        assert "--fit changes" not in error


def test_a_picture_that_is_much_too_large_is_not_decoded(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    Path("large.webp").write_bytes(claiming(9400, 9400))
    assert run(["evaluate", MODEL, "--images=large.webp"]) == Exit.USAGE
    assert capsys.readouterr().err.endswith("; large.webp holds 9400x9400 pixels\n")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("large.webp", [], "; set.zip/large.webp holds 9400x9400 pixels"),
        ("large.webp", ["--fit"], "set.zip/large.webp: too large"),
        ("high.npy", ["--fit"], "set.zip/high.npy: image 0 holds level 17"),
        ("damaged.npy", ["--fit"], "set.zip/damaged.npy: damaged ("),
    ],
)
def test_a_file_that_does_not_fit_is_named_inside_its_zip(
    name: str, options: list[str], message: str, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("large.webp").write_bytes(claiming(9400, 9400))
    np.save("high.npy", np.full((8, 8), 17, np.uint8))
    Path("damaged.npy").touch()
    with zipfile.ZipFile("set.zip", "w") as archive:
        archive.write(name, f"icons/{name}")
    assert run(["evaluate", MODEL, "--images=set.zip", *options]) != Exit.DONE
    assert message in capsys.readouterr().err


def test_what_is_no_picture_is_not_made_to_fit(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    for options, advice in (([], "name them with --images"), (["--images=data/images"], "leave out --fit")):
        assert run(["evaluate", MODEL, "--fit", *options]) == Exit.USAGE
        assert advice in capsys.readouterr().err
    np.save("high.npy", np.full((8, 8), 17, np.uint8))
    for options in ([], ["--fit"]):
        assert run(["evaluate", MODEL, "--images=high.npy", *options]) == Exit.USAGE
        error = capsys.readouterr().err
        assert "image 0 holds level 17" in error
        assert "--fit changes" not in error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--split=test"], Exit.USAGE, "mine is not an image set, so it has no splits; leave out --split"),
        ([], Exit.USAGE, "mine: image 1 holds level 17, and the levels of models/vdm are 0 to 16"),
        (["--images=none"], Exit.MISSING, "none does not exist, or is not a folder of images"),
    ],
)
def test_pictures_that_are_no_images_of_the_model_are_refused(
    arguments: list[str], code: Exit, message: str, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures_of(np.array([16, 17], np.uint8).reshape(2, 1, 1, 1).repeat(8, 2).repeat(8, 3))
    assert run(["evaluate", MODEL, "--images=mine", *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_comparison_is_about_the_given_images_split_and_confidence(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    other_model()
    loaded = open_images(Path("data/images"))
    splits = {"train": loaded["train"], "validation": loaded["validation"][:7], "test": loaded["test"]}
    save_images(Path("few"), splits, loaded.description.stated)
    half, most = (
        printed(capsys, "compare", MODEL, OTHER, "--images=few", "--split=validation", f"--confidence={confidence}")
        for confidence in (0.5, 0.95)
    )
    assert (half["split"], half["num_images"], half["confidence"]) == ("validation", 7, 0.5)
    assert {model["data_sha256"] for model in half["models"]} == {open_images(Path("few")).data_sha256}
    (low, high), (lowest, highest) = half["confidence_interval"], most["confidence_interval"]
    assert lowest < low < half["difference_bpd"] < high < highest


@pytest.mark.slow
def test_a_comparison_has_the_samples_of_the_model_that_drew_them(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    other_model()
    path = Path("reports/samples/metrics.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_sha256": read_config(Path(MODEL))[1]}))
    assert printed(capsys, "compare", MODEL, MODEL)["samples"] is not None
    assert printed(capsys, "compare", MODEL, OTHER)["samples"] is None


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (["evaluate", MODEL], "flows.evaluation.terms.image_terms"),
        (["evaluate", MODEL, "--protocol=ode"], "flows.evaluation.ode.evaluate_ode"),
        (["compare", MODEL, MODEL], "flows.evaluation.terms.image_terms"),
    ],
)
def test_the_stated_images_are_those_that_were_evaluated_though_others_take_their_place(
    command: list[str],
    place: str,
    small: Small,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = open_images(Path("data/images"))
    digest, others = images.data_sha256, {split: images[split][::-1] for split in images.splits}

    def computed(model: object, pixels: np.ndarray, part: range | None = None, *_: object, **__: object) -> np.ndarray:
        save_images(images.folder, others, images.description.stated)
        return np.zeros((3, len(part), 2) if part else len(pixels))

    monkeypatch.setattr(place, computed)
    found = printed(capsys, *command)
    assert {each["data_sha256"] for each in found.get("models", [found])} == {digest}
    assert open_images(images.folder).data_sha256 != digest


def test_the_bound_as_text(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate"]) == Exit.DONE
    found = json.loads(Path("reports/evaluation/metrics.json").read_text())
    terms = " + ".join(f"{found[f'{name}_bpd']:.4f} {name}" for name in ("prior", "reconstruction", "diffusion"))
    validation = f"{found['validation']['bpd']:.4f} +- {found['validation']['bpd_standard_error']:.4f} bits/dim"
    gap = f"{found['generalisation_gap_bpd']:+.4f} +- {found['generalisation_gap_standard_error']:.4f}"
    assert capsys.readouterr().out.splitlines() == [
        f"{found['bpd']:.4f} +- {found['bpd_standard_error']:.4f} bits/dim = {terms}",
        "40 test images, 2 noise levels each, continuous time",
        f"validation: {validation}, 10 images",
        f"test - training: {gap} bits/dim",
    ]
