"""error_curve.json: made of validation images alone, checked before use, and what `vdmctl evaluate` makes of it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from small import Small

from flows.cli import run
from flows.core import layout
from flows.core.documents import read_document
from flows.core.errors import Exit
from flows.core.model import open_model, save_model
from flows.evaluation import error_curve as curve_file
from flows.evaluation.error_curve import NUM_INTERVALS, KeptCurve
from flows.images.image_set import open_images, save_images
from vdm.evaluation import BoundSettings, evaluate
from vdm.fitted_grids import error_curve, fit_grid
from vdm.model import VDM

MODEL, BESIDE = "models/imported", Path("models/imported/evaluation/error_curve.json")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return the object that a command prints."""
    capsys.readouterr()
    assert run([*arguments, "--json"]) == Exit.DONE
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def keep() -> dict[str, Any]:
    """Evaluate the model, and return its error_curve.json."""
    assert run(["evaluate", MODEL, "--out", str(BESIDE.parent)]) == Exit.DONE
    return json.loads(BESIDE.read_text())  # type: ignore[no-any-return]


def test_the_stage_keeps_the_errors_on_validation_images(small: Small) -> None:
    assert run(["evaluate"]) == Exit.DONE
    kept, model = read_document(KeptCurve, layout.ERROR_CURVE), open_model(layout.REGISTERED)
    images = open_images(layout.IMAGES)
    assert (kept.model_sha256, kept.data_sha256) == (model.sha256, images.data_sha256)
    assert (kept.num_images, kept.shape, len(kept.errors)) == (10, [1, 8, 8], NUM_INTERVALS + 1)
    curve = error_curve(model.vdm, images["validation"], levels=NUM_INTERVALS, seed=0, batch_size=512)
    found = kept.curve_of(model)
    assert found is not None
    np.testing.assert_allclose(found.errors, curve.errors, rtol=1e-3)
    assert found.span == pytest.approx(12)
    assert json.loads(layout.METRICS.read_text())["best_bpd"] is None  # in continuous time there is no grid


def test_a_number_of_steps_has_the_papers_bound_and_the_best(
    small: Small, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = printed(capsys, "evaluate", MODEL, "--num-timesteps=3")
    assert before["best_bpd"] is None
    keep()
    sweep = printed(capsys, "evaluate", MODEL, "--num-timesteps=3,9,continuous")["sweep"]
    assert sweep[0] | {"best_bpd": None, "best_bpd_standard_error": None} == before
    assert [each["best_bpd"] is None for each in sweep] == [False, False, True]
    model, images = open_model(Path(MODEL)), open_images(layout.IMAGES)
    curve = read_document(KeptCurve, BESIDE).curve_of(model)
    assert curve is not None
    for each in sweep[:2]:
        grid = fit_grid(curve, each["num_timesteps"])
        settings = BoundSettings(times_per_image=2, batch_size=512, seed=0, grid=grid)
        assert each["best_bpd"] == pytest.approx(evaluate(model.vdm, images["test"], settings).bpd.mean(), rel=1e-5)
        assert each["best_bpd"] < each["bpd"]
    capsys.readouterr()
    assert run(["evaluate", MODEL, "--num-timesteps=3"]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    best, error = sweep[0]["best_bpd"], sweep[0]["best_bpd_standard_error"]
    assert f"best: {best:.4f} +- {error:.4f} bits/dim, with ends and variances" in lines[2]


def test_a_stage_with_a_number_of_steps_states_the_best_of_its_own_errors(small: Small) -> None:
    params = Path("params.yaml")
    before, section, after = params.read_text().partition("\nevaluate:")
    params.write_text(before + section + after.replace("num_timesteps: null", "num_timesteps: 4", 1))
    assert run(["evaluate"]) == Exit.DONE
    found = json.loads(layout.METRICS.read_text())
    assert found["num_timesteps"] == 4
    assert found["best_bpd"] < found["bpd"]


def test_a_model_without_validation_images_says_that_it_has_no_errors(
    small: Small, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {split: open_images(layout.IMAGES)[split] for split in ("train", "test")}
    save_images(layout.IMAGES, splits, {"name": "d", "num_levels": 17})
    (layout.IMAGES / "validation.npy").unlink()
    kept = keep()
    assert (kept["errors"], kept["num_images"], kept["reason"]) == ([], 0, "the set has no validation images")
    assert printed(capsys, "evaluate", MODEL, "--num-timesteps=3")["best_bpd"] is None
    assert "no best bits/dim in 3 steps: the set has no validation images" in caplog.text


def test_a_model_that_was_fitted_to_the_validation_images_has_no_errors_of_them(small: Small) -> None:
    save_model(Path(MODEL), VDM(**TINY), TINY, fitted_to="train_and_validation")
    kept = keep()
    assert (kept["errors"], kept["reason"]) == ([], "the model was fitted to the validation images")


def test_a_broken_model_has_no_errors(small: Small) -> None:
    model = VDM(**TINY)
    for parameter in model.network.parameters():
        torch.nn.init.constant_(parameter, 1e30)
    save_model(Path(MODEL), model, TINY)
    assert keep()["reason"] == "the network's output is not finite"


def test_images_of_many_dimensions_have_one_error_for_all(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    every = np.array(keep()["errors"])
    monkeypatch.setattr(curve_file, "MOST_NUMBERS", 1000)
    kept = keep()
    assert kept["shape"] == [1, 1, 1]
    np.testing.assert_allclose(np.array(kept["errors"])[:, 0], every.mean(1), rtol=1e-3)
    assert run(["evaluate", MODEL, "--num-timesteps=3"]) == Exit.DONE


def test_an_exported_model_keeps_its_errors(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    kept = keep()
    assert run(["export", MODEL, "--out", "out"]) == Exit.DONE
    assert json.loads(Path("out/evaluation/error_curve.json").read_text()) == kept
    ours, theirs = (printed(capsys, "evaluate", model, "--num-timesteps=3") for model in ("out", MODEL))
    assert ours["best_bpd"] == theirs["best_bpd"]


def test_damaged_errors_are_refused(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    document = keep()
    rows = document["errors"]
    for damage, said in (
        ({"errors": rows[:1]}, "a curve of 1 levels by 10 images"),
        ({"errors": []}, "a curve of 0 levels by 10 images"),
        ({"num_images": 0}, "a curve of 65 levels by 0 images"),
        ({"errors": [row[1:] for row in rows]}, "a level has not 64 errors"),
        ({"errors": [*rows[:-1], [-1e-3, *rows[0][1:]]]}, "errors.64.0: Input should be greater than or equal to 0"),
        ({"errors": [[1e300] * 64] * 65}, "errors.0.0: Input should be less than or equal to 1000000000"),
        ({"errors": [["x"] * 64] * 65}, "errors.0.0: Input should be a valid number"),
        ({"span": 0}, "span: Input should be greater than 0"),
        ({"span": 1e9}, "span: Input should be less than or equal to 200"),
        ({"shape": [8, 8]}, "shape: List should have at least 3 items"),
        ({"shape": [1, 4, 16]}, "error_curve.json is about another model than models/imported"),
        ({"given": "cat"}, "given: Input should be"),
    ):
        BESIDE.write_text(json.dumps(document | damage))
        capsys.readouterr()
        assert run(["evaluate", MODEL, "--num-timesteps=3"]) == Exit.MISSING, said
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert re.search(re.escape(said), line), line
    BESIDE.write_text(BESIDE.read_text().replace(document["model_sha256"], "0" * 64))
    assert printed(capsys, "evaluate", MODEL, "--num-timesteps=3")["best_bpd"] is None
