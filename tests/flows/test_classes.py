"""Models with classes by the commands: trained, evaluated, compared, sampled, as classifier and codec; refusals."""

import csv
import json
import os
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from results import ORIGIN, Files, changed, read_results
from small import Small
from test_evaluate_command import printed

from flows.cli import run
from flows.core import layout
from flows.core.errors import Exit
from flows.core.model import open_model, read_config, save_model
from flows.core.params_file import read_params
from flows.evaluation.classes import classify, losses_of_classes
from flows.images.grids import eight_bit
from flows.images.image_set import Chosen, about_classes, open_images, spread
from flows.report.page import page, pair_results
from flows.sampling.measuring import quality_by_class
from vdm.model import VDM

MODEL, PLAIN, NAMES = "models/vdm", "models/plain", ["Zero", "one", "2nd"]
COUNTS = {"train": 60, "validation": 10, "test": 40}


def edit(**changes: str) -> None:
    """Replace values in params.yaml."""
    text = Path("params.yaml").read_text()
    for key, value in changes.items():
        old = next(line for line in text.splitlines() if line.strip().startswith(f"{key}: "))
        text = text.replace(old, f"  {key}: {value}")
    Path("params.yaml").write_text(text)


def label(**changes: np.ndarray) -> None:
    """Write the labels of the images, three classes in turn."""
    for split, count in COUNTS.items():
        np.save(layout.IMAGES / f"{split}_labels.npy", changes.get(split, np.arange(count) % 3))


@pytest.fixture(autouse=True)
def own_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for trainings of this machine."""
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path / "locks"))


@pytest.fixture
def classed(small: Small) -> Small:
    """Give the images three classes with names, and write a model that has learned a little of them."""
    label()
    description = json.loads((layout.IMAGES / "dataset.json").read_text())
    (layout.IMAGES / "dataset.json").write_text(json.dumps(description | {"class_names": NAMES}))
    torch.manual_seed(0)
    config = TINY | {"classes": 3, "schedule": "learned_monotone"}
    model = VDM(**config)  # type: ignore[arg-type]
    for parameter in (*model.network.parameters(), *model.schedule.shape_parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    save_model(Path(MODEL), model, config, **about_classes(open_images(layout.IMAGES)))
    save_model(Path(PLAIN), VDM(**TINY), TINY)  # type: ignore[arg-type]
    small.edit(class_times=2)
    return small


def test_training_counts_the_classes_and_states_their_labels(small: Small) -> None:
    before = open_images(layout.IMAGES).data_sha256
    label()
    assert open_images(layout.IMAGES).data_sha256 == before
    edit(classes="auto")
    assert run(["train"]) == run(["register"]) == Exit.DONE
    found, _ = read_config(layout.REGISTERED)
    assert found.model["classes"] == 3
    assert found.labels_sha256 == open_images(layout.IMAGES).labels_sha256
    assert "| conditioned on | its class, one of 3; left out in 10% of training; labels `" in (layout.CARD.read_text())
    label(test=np.zeros(40, int))
    assert run(["register"]) == Exit.USAGE  # trained with other labels


def test_a_model_without_classes_states_none(small: Small) -> None:
    """Else its digest would change with the labels, or with a parameter that it does not use."""
    assert run(["train"]) == Exit.DONE
    before = (layout.TRAINED / "config.json").read_bytes()
    stated = json.loads(before)
    assert {"classes", "class_names", "labels_sha256"}.isdisjoint(stated | stated["model"])
    label()
    edit(class_dropout="0.3")
    assert run(["train"]) == run(["register"]) == Exit.DONE
    assert (layout.TRAINED / "config.json").read_bytes() == before


def test_evaluation_tells_what_the_classes_are_worth_and_finds_them(
    classed: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(capsys, "evaluate", MODEL, "--out", "out")
    classes, nothing = found["classes"], printed(capsys, "evaluate", MODEL, "--given", "nothing")
    assert (found["given"], nothing["given"], nothing["classes"]) == ("class", "nothing", None)
    assert classes["without"]["bpd"] == nothing["bpd"] != found["bpd"]
    assert classes["gain_bpd"] == pytest.approx(nothing["bpd"] - found["bpd"])
    assert (classes["num_classes"], classes["num_classified"], classes["class_times"]) == (3, 40, 2)
    table = np.genfromtxt("out/per_image.csv", delimiter=",", names=True)
    assert classes["accuracy"] == pytest.approx((table["label"] == table["best"]).mean())
    assert (table["label"] == np.arange(40) % 3).all()
    each = printed(capsys, "classify", "data/images", MODEL)
    assert each["margin"][0] == pytest.approx(table["margin"][0], abs=1e-6)  # the others have times of their own there
    assert each["names"] == [NAMES[best] for best in each["best"]]
    assert run(["classify", "data/images", MODEL]) == Exit.DONE
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["0", each["names"][0]]
    run(["evaluate", MODEL])
    text = capsys.readouterr().out
    assert ", given the class\nwithout the class: " in text
    assert re.search(r"\naccuracy: [^,]*, by chance 0\.\d{4}, ", text)
    assert "\nmixture over the classes: " in text
    files = Files(Path("out/metrics.json"), Path("out/per_image.csv"))
    results = read_results(files, ORIGIN, open_images(layout.IMAGES), None)
    shown = page(results).html
    assert "Images by their class (rows) and the class that is found (columns)</p>" in shown
    for number, name in enumerate(NAMES):
        counts = [int(((table["label"] == number) & (table["best"] == best)).sum()) for best in range(3)]
        kinds = ["number good" if best == number else "number" for best in range(3)]
        cells = "".join(f'<td class="{kind}">{count or ""}</td>' for kind, count in zip(kinds, counts, strict=True))
        assert f'<th scope="row">{name}</th>{cells}' in shown
    hardest = int(table["margin"].argmin())
    assert f'alt="test image {hardest}"' in shown
    other = changed(results, metrics=results.metrics.model_copy(update={"given": "nothing"}))
    assert pair_results(results, other) == "they differ in given: class and nothing"
    swept = printed(capsys, "evaluate", MODEL, "--num-timesteps", "1,2")["sweep"]
    assert [(each["given"], each["classes"]["accuracy"]) for each in swept] == [("class", None)] * 2


def test_an_evaluation_classifies_each_image_at_its_own_times(
    classed: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    found = printed(capsys, "evaluate", MODEL)["classes"]
    settings, images = read_params(layout.PARAMS).evaluate, Chosen(open_images(layout.IMAGES), "test")
    losses = losses_of_classes(settings, open_model(Path(MODEL)), images, 2)
    likelihoods = -losses.mean(2).T
    assert found["accuracy"] == np.mean(likelihoods.argmax(1) == np.arange(40) % 3)
    mixture = -np.log(np.exp(likelihoods - likelihoods.max(1, keepdims=True)).mean(1)) - likelihoods.max(1)
    assert found["mixture_bpd"] == pytest.approx(mixture.mean() / (64 * np.log(2)), rel=1e-12)


def test_a_picture_has_the_same_classes_wherever_it_stands(classed: Small, capsys: pytest.CaptureFixture[str]) -> None:
    images = open_images(layout.IMAGES)["test"]
    np.save("images.npy", images[:3])
    np.save("image.npy", images[2])
    for option in ([], ["--until-sure"]):
        several, one = (printed(capsys, "classify", name, MODEL, *option) for name in ("images.npy", "image.npy"))
        assert several["times"][2] == one["times"][0]
        for key in ("log_likelihoods", "probabilities", "margin", "margin_standard_error"):
            np.testing.assert_allclose(several[key][2], one[key][0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.processes
def test_two_processes_classify_as_one(classed: Small, capsys: pytest.CaptureFixture[str]) -> None:
    classed.edit(batch_size=6)
    one = printed(capsys, "classify", "data/images", MODEL)
    classed.edit(num_devices=2)
    with patch.dict(os.environ):  # the processes of a job have variables of their own
        assert printed(capsys, "classify", "data/images", MODEL) == one


def test_a_class_without_a_name_is_a_number(classed: Small, capsys: pytest.CaptureFixture[str]) -> None:
    config: dict[str, Any] = TINY | {"classes": 4}
    torch.manual_seed(0)
    model = VDM(**config)
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_model(Path(MODEL), model, config, class_names=NAMES)
    found = printed(capsys, "classify", "data/images", MODEL)
    assert [NAMES.index(name) if name in NAMES else int(name) for name in found["names"]] == found["best"]
    assert "3" in found["names"]
    assert run(["evaluate", MODEL, "--out", "out"]) == Exit.DONE
    files = Files(Path("out/metrics.json"), Path("out/per_image.csv"))
    results = read_results(files, ORIGIN, open_images(layout.IMAGES), None)
    assert '<th scope="row">3</th>' in page(results).html


def test_pictures_without_labels_are_evaluated_without_them_and_classified(
    classed: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("images.npy", open_images(layout.IMAGES)["test"])
    assert printed(capsys, "evaluate", MODEL, "--images", "images.npy")["given"] == "nothing"
    of_set, of_file = (printed(capsys, "classify", images, MODEL) for images in ("data/images", "images.npy"))
    assert (of_set.pop("files"), of_file.pop("files")) == (None, ["images.npy"] * 40)
    assert of_file == of_set
    some = printed(capsys, "evaluate", MODEL, "--num-images", "7", "--out", "out")
    assert some["classes"]["num_classified"] == 7
    table = np.genfromtxt("out/per_image.csv", delimiter=",", names=True)
    assert (table["label"] == spread(np.arange(40) % 3, 7)).all()


def test_ordinary_pictures_are_classified_as_the_levels_that_they_show(
    classed: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    image = open_images(layout.IMAGES)["test"][:1]
    np.save("levels.npy", image)
    Image.fromarray(eight_bit(image, 17)[0, 0]).save("shades.png")
    of_levels = printed(capsys, "classify", "levels.npy", MODEL)
    assert run(["classify", "shades.png", MODEL]) == Exit.USAGE
    assert "--fit" in capsys.readouterr().err
    assert printed(capsys, "classify", "shades.png", MODEL, "--fit") == of_levels | {"files": ["shades.png"]}


def test_pictures_are_classified_by_name(classed: Small, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a cat.png", "new\nline.png", "sub/2.png"]
    for name, image in zip(names, open_images(layout.IMAGES)["test"], strict=False):
        Path("mine", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(Path("mine", name))
    found = printed(capsys, "classify", "mine", MODEL)
    assert found["files"] == names
    assert run(["classify", "mine", MODEL]) == Exit.DONE
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["image", "file", "class"]
    shown = [f"{number}      {name}" for number, name in enumerate(("a cat.png", r"new\u000aline.png", "sub/2.png"))]
    assert [row.startswith(start) for row, start in zip(rows, shown, strict=True)] == [True] * 3
    assert run(["evaluate", MODEL, "--images=mine", "--out=out"]) == Exit.DONE
    with Path("out/per_image.csv").open(newline="") as table:
        assert [row["file"] for row in csv.DictReader(table)] == names


def test_images_that_are_not_sure_get_more_times(classed: Small, capsys: pytest.CaptureFixture[str]) -> None:
    keys, command = ("margin", "margin_standard_error", "times"), ["classify", "data/images", MODEL, "--times", "4"]
    once, sure = (printed(capsys, *command, *option) for option in ([], ["--until-sure"]))
    for before, after in zip(*(zip(*map(found.get, keys), strict=True) for found in (once, sure)), strict=True):
        assert (after == before) == (before[0] >= 3 * before[1])
        assert after[2] in (4, 8, 16, 32, 64)
        assert after[0] >= 3 * after[1] or after[2] == 64
    assert set(once["times"]) < set(sure["times"])


def test_images_that_are_not_sure_get_no_more_times_than_allowed(classed: Small) -> None:
    settings, images = read_params(layout.PARAMS).evaluate, Chosen(open_images(layout.IMAGES), "test", 5)
    settings = settings.model_copy(update={"class_times": 4})
    found = classify(settings, open_model(Path(MODEL)), images, until_sure=True, most_times=15)
    assert set(found.times) == {4, 8}


def test_models_are_compared_by_what_both_have(classed: Small, capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        (PLAIN, MODEL): "nothing",
        (MODEL, MODEL): "class",
        (MODEL, MODEL, "--given", "nothing"): "nothing",
        (PLAIN, MODEL, "--given", "class"): "class",
    }
    found = {arguments: printed(capsys, "compare", *arguments) for arguments in given}
    assert {arguments: result["given"] for arguments, result in found.items()} == given
    figures = {arguments: result["models"][1]["bpd"] for arguments, result in found.items()}
    assert len(set(figures.values())) == 2
    assert {found[key]["models"][0]["bpd"] for key in given if key[0] == PLAIN} == {
        printed(capsys, "evaluate", PLAIN)["bpd"]
    }


@pytest.mark.parametrize(
    ("classes", "names", "reason"),
    [
        (4, [*NAMES, "four"], "models/vdm has 3 classes, and models/other 4"),
        (3, ["one", "two", "three"], 'have other classes: "Zero", "one", "2nd" and "one", "two", "three"'),
    ],
)
def test_models_of_other_classes_are_compared_without(
    classes: int, names: list[str], reason: str, classed: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class folder came, went or was renamed: a comparison must be possible all the same."""
    config: dict[str, Any] = TINY | {"classes": classes}
    save_model(Path("models/other"), VDM(**config), config, class_names=names)
    found = printed(capsys, "compare", MODEL, "models/other")
    assert found["given"] == "nothing"
    assert reason in found["classes_differ"]
    assert found == printed(capsys, "compare", MODEL, "models/other", "--given", "nothing") | {
        "classes_differ": found["classes_differ"]
    }
    assert run(["compare", MODEL, "models/other"]) == Exit.DONE
    assert "\nnot given the class: models/vdm " in capsys.readouterr().out


def test_models_are_compared_without_the_classes_of_images_that_have_others(
    classed: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    other_names()
    found = printed(capsys, "compare", MODEL, MODEL)
    assert found["given"] == "nothing"
    assert "data/images has other classes than the model" in found["classes_differ"]
    assert run(["compare", MODEL, MODEL, "--given", "class"]) == Exit.USAGE


def test_samples_have_the_classes_that_are_named(classed: Small, capsys: pytest.CaptureFixture[str]) -> None:
    def drawn(*options: str) -> np.ndarray:
        found = printed(capsys, "sample", MODEL, "--steps=3", "--out=drawn.npy", "--force", *options)
        assert found["classes"] == wanted
        return np.load("drawn.npy")  # type: ignore[no-any-return]

    wanted = [0, 1, 2]
    every = drawn("-n", "6")
    wanted = [2, 0]
    np.testing.assert_array_equal(
        drawn("-n", "6", "--class", "2ND,zero")[[1, 2]], drawn("-n", "3", "--class", "2,0")[[1, 2]]
    )
    wanted = [1]
    one = drawn("-n", "6", "--class", "One")
    assert (one[[1, 4]] == every[[1, 4]]).all()
    assert (one != every).any()
    wanted = [3]
    assert (
        drawn("-n", "6", "--class", "none") == (guided := drawn("-n", "6", "--class", "none", "--guidance", "3"))
    ).all()
    wanted = [1]
    assert (drawn("-n", "6", "--class", "1", "--guidance", "0") == guided).all()
    assert (drawn("-n", "6", "--class", "1", "--guidance", "3") != one).any()
    assert (
        run(["sample", MODEL, "-n", "5", "--class", "0,1", "--steps", "2", "--out", "grid.png", "--film", "f.png"]) == 0
    )
    with Image.open("grid.png") as picture:
        assert picture.size == (3 * 34 + 2, 2 * (34 + 2))
    capsys.readouterr()


def test_the_stage_draws_the_classes_of_the_test_images(classed: Small) -> None:
    """Of all classes, too, if the set is sorted and there are fewer samples."""
    label(train=np.arange(60) // 30, test=np.arange(40) // 20)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("num_images: 12", "num_images: 20"))
    assert run(["sample"]) == Exit.DONE
    metrics = json.loads(layout.SAMPLE_METRICS.read_text())
    assert metrics["by_class"].keys() == {"0", "1"}
    assert {"precision", "recall"} < metrics["by_class"]["0"].keys()


def test_held_out_images_are_in_the_figures_of_their_own_class(classed: Small) -> None:
    label(train=np.arange(60) % 2, test=np.arange(40) % 2)
    quality = read_params(Path("params.yaml")).quality.model_copy(update={"num_images": 33})
    classes = [spread(np.arange(count) % 2, most) for count, most in ((40, 25), (60, 33))]
    embedded = [np.random.default_rng(0).normal(100.0 * each[:, None], 1.0, (len(each), 3)) for each in classes]
    found = quality_by_class([embedded[0], *embedded], classes[0].tolist(), open_images(layout.IMAGES), "x", quality)
    assert found.keys() == {"0", "1"}
    assert max(figures["fd_x"].held_out or 0 for figures in found.values()) < 100


def test_classes_are_in_the_compressed_file(classed: Small, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-timesteps=2", "--device=cpu", "--no-verify"]
    assert printed(capsys, "compress", "data/images", MODEL, "--out", "with.vdmz", *options)["classes"]
    assert not printed(capsys, "compress", "data/images", PLAIN, "--out", "without.vdmz", *options)["classes"]
    assert run(["decompress", "with.vdmz", MODEL, "--out", "decoded", "--device=cpu"]) == Exit.DONE
    np.testing.assert_array_equal(np.load("decoded/images.npy"), open_images(layout.IMAGES)["test"])
    np.save("images.npy", open_images(layout.IMAGES)["test"])
    assert not printed(capsys, "compress", "images.npy", MODEL, "--out", "array.vdmz", *options)["classes"]


def many_classes() -> None:
    config: dict[str, Any] = TINY | {"classes": 2}
    save_model(Path(MODEL), VDM(**config), config)


def other_names() -> None:
    model = open_model(Path(MODEL))
    save_model(Path(MODEL), model.vdm, model.description.model, class_names=["cat", "dog", "mouse"])


def classes_to_sample(classes: str) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("  classes: null         # with", f"  classes: {classes}  # with"))


def no_labels() -> None:
    for path in layout.IMAGES.glob("*_labels.npy"):
        path.unlink()


SAMPLE = ["sample", MODEL, "--out", "drawn.png", "--class"]


@pytest.mark.parametrize(
    ("change", "command", "code", "message"),
    [
        (None, [*SAMPLE, "3"], Exit.USAGE, '"3" is none of the model\'s classes, 0 to 2, or by name: "Zero",'),
        (None, [*SAMPLE, "0,cat"], Exit.USAGE, '"cat" is none of the model\'s classes'),
        (None, ["sample", PLAIN, "--class", "1"], Exit.USAGE, "the model has no classes, such as 1; train one"),
        (
            None,
            ["classify", "data/images", PLAIN],
            Exit.USAGE,
            "models/plain has no classes; train one with model.classes",
        ),
        (None, ["evaluate", PLAIN, "--given", "class"], Exit.USAGE, "models/plain has no classes"),
        (None, ["classify", "data/images", MODEL, "--times", "0"], Exit.USAGE, "--times"),
        (None, ["compare", PLAIN, PLAIN, "--given", "class"], Exit.USAGE, "neither model has classes"),
        (no_labels, ["compare", MODEL, MODEL, "--given", "class"], Exit.USAGE, "or data/images no labels"),
        (no_labels, ["train"], Exit.USAGE, "data/images has no labels of its train images"),
        (
            no_labels,
            ["evaluate", MODEL, "--given", "class"],
            Exit.USAGE,
            "has no labels of its test images",
        ),
        (
            lambda: label(train=np.zeros(59, int)),
            ["train"],
            Exit.MISSING,
            "train_labels.npy: int64 of shape (59,), not",
        ),
        (
            lambda: label(test=np.arange(41) % 3),
            ["evaluate", MODEL],
            Exit.MISSING,
            "test_labels.npy: int64 of shape (41,)",
        ),
        (lambda: label(test=np.arange(40) - 1), ["evaluate", MODEL], Exit.MISSING, "not a class from 0"),
        (many_classes, ["evaluate", MODEL], Exit.USAGE, "has other classes than the model: "),
        (other_names, ["evaluate", MODEL], Exit.USAGE, 'not "cat", "dog", "mouse"'),
        (
            lambda: label(**{split: np.zeros(COUNTS[split], int) for split in COUNTS}),
            ["train"],
            Exit.USAGE,
            "has 1 classes",
        ),
        (lambda: edit(classes="2"), ["train"], Exit.USAGE, "data/images has 3 classes, but model.classes is 2"),
        (lambda: classes_to_sample("[3]"), ["sample"], Exit.USAGE, '"3" is none of the model\'s classes'),
        (lambda: edit(classes="1"), ["train"], Exit.USAGE, "model.classes"),
    ],
)
def test_what_does_not_fit_is_one_line(
    change: Any, command: list[str], code: Exit, message: str, classed: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(classes="auto")
    if change:
        change()
    assert run(command) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
