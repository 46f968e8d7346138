"""Training that begins with the weights of another model: what it takes from it, what it states, what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small import Small, training_json
from test_stages import set_parameters

from flows.cli import run
from flows.core import layout
from flows.core.errors import Exit
from flows.core.model import WEIGHTS, read_config
from flows.core.params_file import read_params
from flows.images.image_set import open_images
from flows.training.fitting import arguments

FROZEN = {"learning_rate: 1e-2": "learning_rate: 1e-12"}
"""With which training leaves the weights as they are."""


def start_from(name: str, **changes: str) -> None:
    """Set `train.start_from`, and replace other texts in params.yaml."""
    text = Path("params.yaml").read_text()
    before, _, after = text.partition("  start_from: ")
    Path("params.yaml").write_text(f"{before}  start_from: {name}\n{after.partition(chr(10))[2]}")
    set_parameters(**changes)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / WEIGHTS)


@pytest.fixture
def unlocked(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, whatever else trains on this machine."""
    monkeypatch.setenv("VDM_LOCK_DIR", str(small.folder))


@pytest.fixture
def first(unlocked: None) -> Path:
    """Return the folder of a model that was trained for 20 steps, with the licence of its images."""
    assert run(["train"]) == Exit.DONE
    layout.TRAINED.rename("first")
    Path("first/training.json").write_text(training_json({}, licence="CC [BY] 4.0"))
    return Path("first")


@pytest.mark.slow
def test_training_begins_with_the_averaged_weights_and_states_the_whole_line(first: Path) -> None:
    set_parameters(**FROZEN)
    for before, place in (("first", "second"), ("second", "third")):
        start_from(before)
        assert run(["train"]) == Exit.DONE
        shutil.copytree(layout.TRAINED, place)
    begun, ended = weights(first), weights(Path("third"))
    assert begun.keys() == ended.keys()
    assert all(np.allclose(begun[name], ended[name], rtol=0, atol=1e-6) for name in begun)
    states = len(list(layout.TRAININGS.iterdir()))
    assert states == 3  # no run went on from a state of another one
    digests = [read_config(Path(name))[1] for name in ("second", "first")]
    line = [{"name": "second", "licence": None}, {"name": "first", "licence": "CC [BY] 4.0"}]
    config = json.loads(Path("third/config.json").read_text())
    stated = [each | {"model_sha256": digest} for each, digest in zip(line, digests, strict=True)]
    assert config["ancestors"] == [{key: each[key] for key in ("name", "model_sha256", "licence")} for each in stated]
    assert "ancestors" not in json.loads((first / "config.json").read_text())

    assert run(["register"]) == Exit.DONE
    row = f"| started from | second, `{digests[0]}`, licence of its images: not stated; before that first"
    assert (
        f"{row}, `{digests[1]}`, licence of its images: CC \\[BY\\] 4.0 |\n| conditioned on |"
        in layout.CARD.read_text()
    )
    assert run(["evaluate"]) == Exit.DONE
    metrics = json.loads(layout.METRICS.read_text())
    assert (metrics["ancestors"], metrics["num_train"]) == (config["ancestors"], 60)
    start_from("first")
    assert run(["register"]) == Exit.USAGE  # it was trained from another model
    shutil.rmtree(layout.REPORTS / "samples")
    layout.FINDINGS.unlink()
    assert run(["report", "--out", "page.html"]) == Exit.DONE
    page = Path("page.html").read_text()
    assert "<dt>Started from</dt> <dd>second</dd>" in page
    assert digests[1] in page


@pytest.mark.slow
def test_only_dropout_may_differ(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start_from("first", **{"dropout: 0.0": "dropout: 0.1", "width: 8": "width: 16"})
    assert run(["train"]) == Exit.USAGE
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vdmctl: ")]
    assert line.startswith("vdmctl: train.start_from: first has width 8 instead of 16; `vdmctl preset --images FOLDER")
    set_parameters(**{"width: 16": "width: 8", "steps: 20": "steps: 2"})
    assert run(["train"]) == Exit.DONE
    assert arguments(read_params(layout.PARAMS).model, open_images(layout.IMAGES))["dropout"] == 0.1


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("champion", Exit.USAGE, "champion: `champion` is for runs of `vdmctl serve`; name a version"),
        ("vdm#champion", Exit.USAGE, "vdm#champion: `champion` is for runs of `vdmctl serve`; name a version"),
        ("models/vdm", Exit.USAGE, "models/vdm: models/vdm is an output of the pipeline, which training replaces"),
        ("nowhere", Exit.MISSING, "nowhere: no such folder, and not a version such as vdm@v1.2.0"),
        ("damaged", Exit.MISSING, "damaged/weights.safetensors: sha256 differs from the one in config.json"),
    ],
)
def test_what_training_cannot_start_from(
    name: str, code: Exit, message: str, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(Path(__file__).parents[2] / "dvc.yaml", "dvc.yaml")
    shutil.copytree(layout.TRAINED, "damaged")
    (Path("damaged") / WEIGHTS).write_bytes(b"")
    start_from(name)
    assert run(["train"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vdmctl: train.start_from: {message}")


@pytest.mark.slow
@pytest.mark.usefixtures("unlocked")
def test_classes_of_other_names_are_refused(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "validation", "test"):
        np.save(layout.IMAGES / f"{split}_labels.npy", np.arange(len(open_images(layout.IMAGES)[split])) % 2)
    described = json.loads((layout.IMAGES / "dataset.json").read_text())
    for names in (["cat", "dog"], ["dog", "cat"]):
        (layout.IMAGES / "dataset.json").write_text(json.dumps(described | {"class_names": names}))
        if names[0] == "cat":
            set_parameters(**{"false\n  classes: null": "false\n  classes: auto", "steps: 20": "steps: 2"})
            assert run(["train"]) == Exit.DONE
            layout.TRAINED.rename("cats")
            start_from("cats")
    assert run(["train"]) == Exit.USAGE
    assert 'cats has class_names ["cat", "dog"] instead of ["dog", "cat"]' in capsys.readouterr().err
