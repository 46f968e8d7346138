"""The page about two models: what is compared, and what is not."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from documents import Document, words
from results import BPD, ORIGIN, metrics, sample_metrics, write_results

from flows.evaluation.results import SampleMetrics
from flows.images.store import data_sha256
from flows.report.comparison import cautions, comparison, difference
from flows.report.results import Files, read_results
from vdm.evaluation import PairedDifference


@pytest.mark.slow
def test_two_models_are_compared_image_by_image(files: Files, tmp_path: Path, digits: np.ndarray) -> None:
    first = read_results(files, ORIGIN)
    other = write_results(tmp_path / "other", digits)
    change = np.random.default_rng(0).normal(-0.1, 0.05, 40)
    assert other.per_image
    rows = "".join(f"{i},{bpd:.6f}\n" for i, bpd in enumerate(BPD + change))
    other.per_image.write_text(f"image,bpd\n{rows}")
    origin = ORIGIN._replace(name="other", parameters={"data": {"name": "digits"}, "train": {"betas": [0.9, 0.999]}})
    second = read_results(other, origin)
    found = difference(first, second)
    assert isinstance(found, PairedDifference)
    assert found.difference == pytest.approx(change.mean(), abs=1e-6)
    assert found.standard_error == pytest.approx(change.std(ddof=1) / np.sqrt(40), abs=1e-6)
    # Student's t with 39 degrees of freedom exceeds 2.0227 with probability 0.025.
    assert found.interval[1] - found.difference == pytest.approx(2.0227 * found.standard_error, rel=1e-4)
    text = words(Document(comparison(first, second).html).text)
    shown = f"\N{MINUS SIGN}{-found.difference:.4f} ± {found.standard_error:.4f}"
    assert f"{shown} bits/dim from models/vdm to other" in text
    assert "other is better on these images" in text
    assert "train.betas [0.9, 0.99] [0.9, 0.999]" in text
    assert "data.name" not in text
    assert "Not compared" not in text
    assert "two different networks" not in text
    first, other = first._replace(curves=None, noise_levels=None), other._replace(curves=None, noise_levels=None)
    assert other.sample_metrics
    other.sample_metrics.write_text(other.sample_metrics.read_text().replace("0a1b2c3d", "ffffffff"))
    assert "two different networks" in comparison(first, read_results(other, origin)).html
    text = words(Document(comparison(first, first._replace(origin=ORIGIN._replace(parameters={}))).html).text)
    assert "None of the parameters that are known of both differ" in text
    assert "known of one model only: data, train" in text
    other.per_image.write_text(f"image,bpd\n{rows}".replace(f"39,{BPD[39] + change[39]:.6f}", "39,inf"))
    text = words(Document(comparison(first, read_results(other, origin)).html).text)
    assert "No paired difference: not all figures are finite" in text
    assert "is better on these images" not in text


@pytest.mark.slow
def test_a_curve_of_one_of_two_models_has_its_name_and_its_colour(files: Files) -> None:
    results = read_results(files, ORIGIN)
    second = results._replace(origin=ORIGIN._replace(name="other"))
    charts = {chart.name: chart for chart in comparison(results._replace(curves=None), second).charts}
    assert "other, training: from " in charts["loss"].alt
    assert ">other, training<" in charts["loss"].svg
    assert "var(--second)" in charts["loss"].svg
    assert "var(--first)" not in charts["loss"].svg
    assert "var(--first)" in charts["schedule"].svg


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("/home/anna/projects/diffusion/models/wide", "/home/anna/projects/diffusion/models/deep"),
        ("/first/models/of/the/same/name/in/two/folders", "/second/models/of/the/same/name/in/two/folders"),
        ("_old", "new"),
        ("models/vdm", "models/vdm"),
    ],
)
def test_every_curve_of_two_models_has_a_name_in_the_legend(names: tuple[str, str], files: Files) -> None:
    results = read_results(files, ORIGIN)._replace(per_image=None, noise_levels=None)  # other charts
    first, second = (results._replace(origin=ORIGIN._replace(name=name)) for name in names)
    charts = {chart.name: chart for chart in comparison(first, second).charts}
    legend = re.findall(r">([^<>]*), training<", charts["loss"].svg)
    assert len(set(legend)) == 2, legend


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, "they were evaluated with different seeds"),
        ({"times_per_image": 3}, "they were evaluated at different numbers of times"),
        ({"num_timesteps": 100}, "they were evaluated with different numbers of steps"),
        ({"data_sha256": "b" * 64}, "they were evaluated on different images"),
        ({"split": "train"}, "they were evaluated on different splits"),
        ({"precision": "bfloat16"}, "they were evaluated in different precisions"),
    ],
)
def test_figures_that_are_not_paired_are_not_subtracted(
    changes: dict[str, object], reason: str, files: Files, tmp_path: Path, digits: np.ndarray
) -> None:
    other = write_results(tmp_path / "other", digits)
    assert other.images
    other.metrics.write_text(json.dumps(metrics(data_sha256(other.images)) | changes))
    assert difference(read_results(files, ORIGIN), read_results(other, ORIGIN)) == reason


@pytest.mark.slow
def test_the_page_says_why_figures_are_not_paired(files: Files) -> None:
    first = read_results(files._replace(curves=None, noise_levels=None), ORIGIN)
    second = first._replace(metrics=first.metrics.model_copy(update={"seed": 1}))
    text = words(Document(comparison(first, second).html).text)
    assert "No paired difference: they were evaluated with different seeds." in text
    assert "95% interval" not in text


def test_figures_of_different_numbers_of_images_are_not_subtracted(files: Files) -> None:
    first = read_results(files, ORIGIN)
    assert first.per_image
    fewer = {name: column[:39] for name, column in first.per_image.items()}
    second = first._replace(metrics=first.metrics.model_copy(update={"num_images": 39}), per_image=fewer)
    assert difference(first, second) == "they were evaluated on different numbers of images"


@pytest.mark.slow
def test_two_models_of_one_image_are_not_said_to_have_infinite_figures(files: Files) -> None:
    assert files.per_image
    files.per_image.write_text("image,bpd\n0,1.5\n")
    described = json.loads(files.metrics.read_text()) | {"num_images": 1, "bpd": 1.5, "bpd_standard_error": None}
    files.metrics.write_text(json.dumps(described))
    results = read_results(files._replace(curves=None, noise_levels=None), ORIGIN)
    text = words(Document(comparison(results, results).html).text)
    assert "No paired difference: one image has no standard error." in text
    assert "not all figures are finite" not in text


@pytest.mark.slow
def test_samples_of_different_numbers_are_not_compared_without_a_word(
    files: Files, tmp_path: Path, digits: np.ndarray
) -> None:
    first = read_results(files._replace(curves=None, noise_levels=None), ORIGIN)
    assert cautions(first.sample_metrics, first.sample_metrics) == []
    other = write_results(tmp_path / "other", digits)._replace(curves=None, noise_levels=None)
    assert other.sample_metrics
    other.sample_metrics.write_text(other.sample_metrics.read_text().replace('"num_images": 16', '"num_images": 12'))
    text = words(Document(comparison(first, read_results(other, ORIGIN)).html).text)
    assert "16 samples with 60 training images, and 12 samples with 60 training images" in text


def test_samples_of_another_sampler_are_not_compared_without_a_word() -> None:
    first = SampleMetrics(**sample_metrics("a" * 64))
    settings = first.sampler.model_copy(update={"num_timesteps": 7})
    (caution,) = cautions(first, first.model_copy(update={"sampler": settings}))
    assert caution.startswith("The samples were drawn differently: ")
    assert "; and 7 steps of " in caution
