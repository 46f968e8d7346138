"""The bound and the ODE likelihood of a split as metrics and tables, and what can be compared."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from project import ROOT
from results import sample_metrics

from flows.commands.summary import summary
from flows.core.errors import Exit, UserError
from flows.core.model import open_model, save_model
from flows.core.params_file import read_params
from flows.evaluation import bound
from flows.evaluation.ode import NUM_REPEATED, largest_error, ode
from flows.evaluation.results import SampleMetrics, common_figures
from flows.evaluation.terms import bound_settings, bounds
from flows.images.image_set import SPLITS, Chosen, ImageSet, open_images, save_images, spread
from vdm.choices import Split
from vdm.evaluation import image_terms
from vdm.model import VDM
from vdm.ode import Derivative, OdeState, evaluate_ode
from vdm.schedule import sigma


@pytest.fixture
def folder(digits: np.ndarray, tmp_path: Path) -> Path:
    """Return a folder with a model, and training images whose first half is of one class."""
    save_model(tmp_path / "model", VDM(**TINY), TINY)
    train = np.concatenate([np.zeros_like(digits[:20]), digits[:20]])
    description = {"name": "digits", "title": "Digits", "num_levels": 17}
    save_images(tmp_path / "images", {"train": train, "test": digits[20:40]}, description)
    return tmp_path


def test_some_images_of_a_sorted_set_are_of_all_its_classes(folder: Path, digits: np.ndarray) -> None:
    settings = read_params(ROOT / "params.yaml").evaluate
    settings = settings.model_copy(update={"device": "cpu", "precision": "float32", "times_per_image": 2})

    model, images = open_model(folder / "model"), open_images(folder / "images")

    (found,) = bounds(model, Chosen(images, "train", 5), settings, [None])

    five = np.concatenate([np.zeros_like(digits[:2]), digits[[0, 9, 19]]])
    prior, reconstruction, diffusion = image_terms(model.vdm, five, range(5), bound_settings(settings))
    np.testing.assert_allclose(found.bpd, (prior + reconstruction + diffusion).mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (2, [0, 6]), (3, [0, 3, 6]), (7, range(7)), (9, range(7))])
def test_spread_images_include_both_ends(count: int, kept: list[int]) -> None:
    np.testing.assert_array_equal(spread(np.arange(7), count), list(kept))


def exactly(derivative: Derivative, start: OdeState, times: torch.Tensor) -> OdeState:
    """Solve the ODE of the predictor eps_hat = z = sigma y, which is dy/dgamma = 1/2 (sigma - 1) y."""
    gammas = torch.linspace(*times.tolist(), 20_001, dtype=torch.float64)
    growth = torch.trapezoid(0.5 * (sigma(gammas) - 1), gammas)
    return start[0] * growth.exp(), start[1] + growth


@pytest.mark.slow
def test_the_reported_error_is_that_of_the_figure(digits: np.ndarray, tmp_path: Path) -> None:
    num_images = NUM_REPEATED + 1
    network = VDM(**TINY)
    torch.nn.init.zeros_(network.network.conv_out.weight)
    torch.nn.init.zeros_(network.network.conv_out.bias)
    save_model(tmp_path / "model", network, TINY)
    description = {"name": "digits", "title": "Digits", "num_levels": 17}
    save_images(tmp_path / "images", {"train": digits[:20], "test": digits[20:40]}, description)
    settings = read_params(ROOT / "params.yaml").ode
    settings = settings.model_copy(update={"tolerance": 1e-3, "num_images": num_images, "device": "cpu"})

    model, images = open_model(tmp_path / "model"), open_images(tmp_path / "images")

    figures = ode(settings, model, Chosen(images, "test", num_images))

    options = settings.model_dump(exclude={"device", "num_images", "tolerance", "given"})
    true = evaluate_ode(model.vdm, spread(digits[20:40], num_images), solve=exactly, **options).mean()
    assert figures.bpd is not None
    assert figures.bpd_numerical_error is not None
    assert figures.bpd_numerical_error == pytest.approx(figures.bpd - true, rel=0.5, abs=1e-7)
    assert figures.num_repeated == min(num_images, NUM_REPEATED)
    assert f"numerical error {figures.bpd_numerical_error:+.4f} bits/dim" in summary(figures)


@pytest.mark.parametrize(("split", "code"), [("validation", Exit.USAGE), ("test", Exit.INVALID_DATA)])
def test_an_empty_split_is_not_evaluated(split: Split, code: Exit, digits: np.ndarray, tmp_path: Path) -> None:
    """Sets without validation images are valid."""
    splits = {name: digits[: 0 if name == split else 5] for name in SPLITS}
    save_images(tmp_path, splits, {"name": "digits", "num_levels": 17})
    with pytest.raises(UserError, match=r"validation images; set|test\.npy holds 0") as raised:
        Chosen(open_images(tmp_path), split).require_valid()
    assert raised.value.code is code


def test_the_first_level_that_a_set_does_not_have_is_a_fault(folder: Path) -> None:
    image_set = open_images(folder / "images")
    assert int(image_set["test"].max()) == 16
    Chosen(image_set, "test").require_valid()
    description = image_set.description.model_copy(update={"num_levels": 16})
    found = ImageSet(image_set.name, description, image_set.arrays, folder=image_set.folder)
    with pytest.raises(UserError, match=r"test\.npy holds level 16; run `vdmctl validate`") as raised:
        Chosen(found, "test").require_valid()
    assert raised.value.code is Exit.INVALID_DATA


def test_metrics_and_tables_have_every_figure_under_its_name(folder: Path) -> None:
    settings = read_params(ROOT / "params.yaml").evaluate
    settings = settings.model_copy(update={"device": "cpu", "precision": "float32", "times_per_image": 2})
    model, images = open_model(folder / "model"), Chosen(open_images(folder / "images"), "test")
    out = folder / "out"
    metrics = bound.evaluate(settings, model, images, requirements=folder / "none")
    (result,) = bounds(model, images, settings, [None])
    terms = {
        "bpd": result.bpd,
        "prior_bpd": result.prior,
        "reconstruction_bpd": result.reconstruction,
        "diffusion_bpd": result.diffusion,
    }
    assert {name: getattr(metrics, name) for name in terms} == {name: each.mean() for name, each in terms.items()}
    out.mkdir()
    bound.write_evaluation(out, metrics, result, {}, model, images, calibration=None)
    levels = result.noise_levels(seed=settings.seed, num_timesteps=settings.num_timesteps)
    gamma = model.vdm.schedule(torch.from_numpy(levels.t).float()).detach().numpy()
    of_levels = {
        "t": levels.t,
        "gamma": gamma,
        "diffusion_bpd": levels.diffusion,
        "standard_error": levels.standard_error,
    }
    for name, columns in (("per_image.csv", terms), ("noise_levels.csv", of_levels)):
        with (out / name).open() as file:
            rows = list(csv.DictReader(file))
        for column, values in columns.items():
            np.testing.assert_allclose([float(row[column]) for row in rows], values, atol=2e-6, err_msg=column)


def test_samples_are_compared_only_if_they_were_measured_alike() -> None:
    one = SampleMetrics(**sample_metrics("b" * 64))
    better = one.figures["precision"].model_copy(update={"samples": 0.5})
    other = one.model_copy(update={"model_sha256": "c" * 64, "figures": {"precision": better}})
    found = common_figures(one, other)
    assert found is not None
    assert {name: [each.samples for each in both] for name, both in found.items()} == {"precision": [1.25, 0.5]}
    assert common_figures(one, None) is None
    digest = "d" * 64
    changes = {"features_sha256": digest, "data_sha256": digest, "num_images": 15, "num_training_images": 59}
    for change in ({name: value} for name, value in changes.items()):
        assert common_figures(one, other.model_copy(update=change)) is None
    seeded, shorter = (one.sampler.model_copy(update=change) for change in ({"seed": 7}, {"num_timesteps": 7}))
    assert common_figures(one, other.model_copy(update={"sampler": seeded})) is not None
    assert common_figures(one, other.model_copy(update={"sampler": shorter})) is None


def test_the_error_of_a_step_is_that_of_the_worst_image() -> None:
    y, gain = torch.zeros(3, 1, 2, 2), torch.zeros(3)
    y[1] = 2
    assert largest_error((y, gain)) == 2
    gain[2] = -3
    assert largest_error((y, gain)) == 3
