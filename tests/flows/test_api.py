"""The functions for Python: the README's program runs, and its results are those of `vdmctl`."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from project import ROOT
from small import Small
from trainings import same_bits

from flows.api import continued, evaluate, fill_in, load, sample
from flows.cli import run
from flows.core.errors import Exit, UserError
from flows.images.image_set import open_images


@pytest.mark.slow
def test_the_program_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    program = re.search(r"## In Python\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert program
    assert program[1].count("\n") <= 10
    names: dict[str, Any] = {}
    exec(program[1].replace("model, 16", "model, 4"), names)
    assert re.fullmatch(r"[1-4]\.\d{3} \+- 0\.\d{3} bits/dim\n", capsys.readouterr().out)
    assert (names["images"].shape, names["images"].dtype) == ((4, 1, 28, 28), np.uint8)
    (known,) = names["images"][:1, :, ~names["missing"]]
    assert (names["filled"][:, :, ~names["missing"]] == known).all()
    assert (names["filled"][0] != names["images"][0]).any()


def test_the_results_are_those_of_vdmctl(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = load("models/vdm", device="cpu"), open_images(Path("data/images"))
    assert run(["evaluate", "models/vdm", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["bpd"] == evaluate(model, images["test"], times_per_image=2).bpd.mean()
    options = ["-n", "5", "--steps", "25", "--seed", "3", "--device", "cpu", "--force", "--out"]
    assert run(["sample", "models/vdm", *options, "drawn.npy"]) == Exit.DONE
    np.testing.assert_array_equal(sample(model, 5, seed=3), np.load("drawn.npy"))
    np.save("known.npy", images["test"][0, 0])
    np.save("mask.npy", np.tri(8, dtype=np.uint8))
    assert run(["sample", "models/vdm", "--known", "known.npy", "--mask", "mask.npy", *options, "drawn.npy"]) == 0
    filled = fill_in(model, images["test"][0], np.tri(8, dtype=bool), 5, seed=3)
    np.testing.assert_array_equal(filled, np.load("drawn.npy"))


@pytest.mark.slow
def test_training_goes_on_from_a_model_and_leaves_it_as_it_is(small: Small) -> None:
    model, images = load("models/vdm", device="cpu"), open_images(Path("data/images"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    as_it_is = continued(model, images["train"], steps=2, learning_rate=1e-12)
    further = continued(model, images["train"], steps=60)
    assert same_bits(model.state_dict(), before)
    assert all(torch.allclose(value, before[name], rtol=0, atol=1e-6) for name, value in as_it_is.state_dict().items())
    bpd = [evaluate(each, images["test"], times_per_image=2).bpd.mean() for each in (model, as_it_is, further)]
    assert bpd[0] == pytest.approx(bpd[1], abs=1e-4)
    assert bpd[2] < bpd[0] - 1
    with pytest.raises(ValueError, match="images"):
        continued(model, images["train"][:, :, :4])


def test_a_model_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="nowhere: no such folder, and not a version such as") as error:
        load("nowhere")
    assert error.value.code is Exit.MISSING
