"""The stages `validate`, `train` and `register`: which inputs they refuse, and what the model card states."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from safetensors.numpy import load_file
from small import Small

from flows.cli import run
from flows.core import layout
from flows.core.errors import Exit
from flows.core.model import WEIGHTS, arguments_of, inputs_sha256, open_model, read_config, save_model
from flows.core.params_file import read_params
from flows.images.image_set import open_images, save_images
from flows.training.states import MODEL
from vdm.model import VDM

LAST_FIT = {
    "images: train ": "images: train_and_validation ",
    "keep: best": "keep: last",
    "validate_every_steps: 10": "validate_every_steps: null",
}


def set_parameters(**replacements: str) -> None:
    """Replace texts in params.yaml."""
    text = Path("params.yaml").read_text()
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    Path("params.yaml").write_text(text)


def without_validation_images() -> None:
    """Write the image set anew without validation images, and a report that says that it is valid."""
    images = open_images(layout.IMAGES)
    splits = {"train": images["train"], "validation": images["train"][:0], "test": images["test"]}
    before = images.data_sha256
    save_images(layout.IMAGES, splits, images.description.stated)
    layout.FINDINGS.write_text(layout.FINDINGS.read_text().replace(before, open_images(layout.IMAGES).data_sha256))


@pytest.mark.parametrize(
    ("changes", "kept", "epochs", "judged", "fitted_to"),
    [
        (
            {},
            "at step 10, the best on the validation images, at 6.4000 bits/dim.",
            21,
            "10 validation images cost 6.40",
            "training images",
        ),
        (
            {"keep: best": "keep: last"},
            "at the end of training.",
            21,
            "10 validation images cost 6.60",
            "training images",
        ),
        (
            LAST_FIT,
            "at the end of training.",
            18,
            "60 training images cost 6.50",
            "training and validation images together: 70",
        ),
    ],
)
def test_the_card_states_digests_the_last_loss_and_which_weights_are_kept(
    changes: dict[str, str], kept: str, epochs: int, judged: str, fitted_to: str, small: Small
) -> None:
    layout.CURVES.write_text("step,bpd,validation_bpd\n10,7.5,6.4\n20,6.5,6.6\n")
    set_parameters(**changes)
    assert run(["register"]) == Exit.DONE
    card = layout.CARD.read_text()
    number = sum(array.size for array in load_file(layout.TRAINED / WEIGHTS).values())
    uniform = "and 4.09 if every level is equally likely."
    for text in (
        f"| model sha256 | `{read_config(layout.TRAINED)[1]}` |",
        f"| data sha256 | `{open_images(layout.IMAGES).data_sha256}` |",
        "| 6.5000 bits/dim, a mean over the last steps up to 20 |",
        f"{number:,} parameters. The weights are the moving average {kept}",
        f"| fitted to | {fitted_to} |",
        f"It has learned almost nothing: {epochs} epochs. {judged} bits/dim, {uniform}",
    ):
        assert text in card.replace("\n", " ")


def test_what_is_known_of_a_training_is_read_from_its_own_file(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the version of the package, which card and metrics state, too."""
    made_with = version("vdm-pipeline")
    assert run(["register"]) == run(["evaluate"]) == Exit.DONE
    assert f"| made with | vdm-pipeline {made_with} |" in layout.CARD.read_text()
    assert json.loads(layout.METRICS.read_text())["environment"]["pipeline"] == made_with
    layout.CARD.unlink()
    training, params = open_model(layout.REGISTERED).training, read_params(layout.PARAMS)
    assert training
    assert (training.step, training.bpd, training.contract, training.num_train) == (20, 6.5, "valid", 60)
    assert training.pipeline == made_with
    assert training.parameters == {name: getattr(params, name).model_dump() for name in ("data", "model", "train")}
    Path(layout.REGISTERED, "training.json").write_text("{}")
    assert run(["evaluate"]) == Exit.MISSING
    assert "models/vdm/training.json: damaged: name: Field required; restore the file" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{}, {"steps: 20": "steps: 21"}, {"blocks: 1": "blocks: 2"}])
def test_a_model_that_was_trained_with_other_inputs_is_not_registered(
    changes: dict[str, str], small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    params = read_params(layout.PARAMS)
    image_set = open_images(layout.IMAGES)
    config: dict[str, Any] = arguments_of(params.model, image_set.image_shape, image_set.num_levels)
    inputs = inputs_sha256(config, params.train.model_dump(), image_set.data_sha256)
    save_model(layout.TRAINED, VDM(**TINY), TINY, inputs=inputs)
    set_parameters(**changes)
    assert run(["register"]) == (Exit.USAGE if changes else Exit.DONE)
    assert ("was trained with other parameters" in capsys.readouterr().err) == bool(changes)
    assert (layout.CARD.read_text() == "old") == bool(changes)
    assert (read_config(layout.REGISTERED)[1] != read_config(layout.TRAINED)[1]) == bool(changes)


def test_the_card_names_relaxed_limits(small: Small) -> None:
    assert run(["register"]) == Exit.DONE
    assert "| data contract | valid |" in layout.CARD.read_text()
    report = json.loads(layout.FINDINGS.read_text()) | {"relaxed": ["max_gaps 1.0 instead of 0.015"]}
    layout.FINDINGS.write_text(json.dumps(report))
    assert run(["register"]) == Exit.DONE
    assert "| data contract | valid with relaxed limits: max_gaps 1.0 instead of 0.015 |" in layout.CARD.read_text()


def test_a_damaged_log_is_refused(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    layout.CURVES.write_text("step,bpd,validation_bpd\n10,many,6.4\n")
    assert run(["register"]) == Exit.MISSING
    assert "curves.csv: missing or damaged; run `vdmctl train`" in capsys.readouterr().err
    assert layout.CARD.read_text() == "old"


def test_an_experiments_copy_deletes_the_states_in_the_project(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC runs the stages of `dvc exp run --temp` in a copy in .dvc/tmp/exps.

    With its own states, a forced rerun would continue a run that has finished.
    """
    copy = small.folder.parent / "project/.dvc/tmp/exps/copy"
    copy.parent.mkdir(parents=True)
    small.folder.rename(copy)
    monkeypatch.chdir(copy)
    states = small.folder.parent / "project" / layout.TRAININGS
    (states / "own").mkdir(parents=True)
    (states / "own" / MODEL).write_text(read_config(layout.TRAINED)[1])
    assert run(["register"]) == Exit.DONE
    assert list(states.iterdir()) == []


@pytest.mark.parametrize("last_fit", [False, True])
def test_training_that_needs_validation_images_says_how_to_make_them(
    last_fit: bool, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without them, the model card of a last fit would state images that the model was not fitted to."""
    without_validation_images()
    if last_fit:
        set_parameters(**LAST_FIT)
    assert run(["train"]) == Exit.USAGE
    advice = "data/images has no validation images; set data.validation_fraction and run `dvc repro`"
    assert advice in capsys.readouterr().err


def test_the_stage_validate_reads_the_reference(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "--reference", "nowhere"]) == Exit.MISSING
    assert "nowhere: " in capsys.readouterr().err


@pytest.mark.parametrize("started", [1, 3])
def test_torchrun_must_start_the_processes_that_the_parameters_name(
    started: int, small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_parameters(**{"num_devices: 1 ": "num_devices: 2 "})
    for name, value in (("TORCHELASTIC_RUN_ID", "a"), ("WORLD_SIZE", "6"), ("LOCAL_WORLD_SIZE", str(started))):
        monkeypatch.setenv(name, value)
    assert run(["train"]) == Exit.USAGE
    assert f"torchrun started {started} processes, but train.num_devices is 2" in capsys.readouterr().err
