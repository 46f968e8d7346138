"""The page with all results: what it says, what it leaves out, what it never contains, and what Prefect's UI shows."""

import html
import json
import re
import subprocess
from base64 import b64decode
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY
from documents import Document, words
from PIL import Image
from project import ROOT
from results import (
    BPD,
    ORIGIN,
    OUTPUTS,
    Chosen,
    Files,
    changed,
    findings,
    metrics,
    opened,
    part,
    read_results,
    sample_metrics,
    write_results,
)
from ruamel.yaml import YAML

from flows.contract.findings import Findings, Result
from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.core.model import open_model, save_model
from flows.dossier.dossier import Dossier
from flows.dossier.origin import origin_here
from flows.dossier.places import Outputs
from flows.evaluation.results import BoundMetrics, ClassFigures, SampleMetrics
from flows.images.as_png import InPng, measure_png
from flows.images.grids import shades
from flows.images.image_set import spread
from flows.report import charts, markdown
from flows.report.page import (
    Page,
    alike,
    classes,
    epochs,
    extremes,
    guess,
    judge_results,
    page,
    pair_results,
    png_of,
    report,
)
from flows.report.pictures import arrange, grids
from flows.report.words import cautions, latex
from vdm.model import VDM

HOSTILE = "<script>alert(1)</script>\"'><img src=http://a/b onerror=alert(2)> {{ 7 * 7 }} $x^$ ]]> \x1b[2J\u202e"

VERSIONS = pd.DataFrame(
    {
        "version": ["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.2.0"],
        "state": ["former champion", "champion", ""],
        "num_train": [652.0, 1268.0, np.nan],
        "bpd": [1.79, 1.72, np.nan],
        "standard_error": [0.02, 0.02, np.nan],
        "ancestor": ["noise", "vdm@v1.0.0", "noise"],
    }
)
"""The versions of a registry; the last was made when these figures were not yet kept."""


def test_the_page_of_a_version_shows_all_versions_over_their_training_images(files: Files, tmp_path: Path) -> None:
    made = page(changed(read_results(files, ORIGIN, *opened(tmp_path)), versions=VERSIONS))
    (chart,) = [chart for chart in made.charts if chart.name == "growth"]
    assert [name in chart.svg for name in VERSIONS["version"]] == [True, True, False]
    assert "training images</text>" in chart.svg
    text = words(Document(made.html).text)
    assert "vdm@v1.1.0 champion 1,268 1.7200 ± 0.0200 vdm@v1.0.0" in text
    assert "vdm@v1.2.0 not known not known noise" in text


def shown(files: Files, folder: Path) -> str:
    """Return the text of the page about the results in a folder, without charts, which take most of its time."""
    files = files._replace(curves=None, noise_levels=None, per_image=None)
    images, _ = opened(folder)
    return words(Document(page(read_results(files, ORIGIN, images, None)).html).text)


def svg(image: dict[str, str | None]) -> str:
    """Return the SVG of a chart in a page."""
    return b64decode(str(image["src"]).partition(",")[2]).decode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: np.ndarray) -> Page:
    """Return the page about complete results."""
    folder = tmp_path_factory.mktemp("whole")
    return page(read_results(write_results(folder, digits), ORIGIN, *opened(folder)))


def test_the_page_names_relaxed_limits(files: Files, tmp_path: Path) -> None:
    path = files.findings
    assert path
    relaxed = {"success": True, "relaxed": ["max_gaps 1.0 instead of 0.015"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | relaxed))
    text = shown(files, tmp_path)
    assert "Valid with relaxed limits: max_gaps 1.0 instead of 0.015" in text
    assert "is comparable with others" not in text


@pytest.mark.slow
def test_the_page_says_everything_in_the_order_of_its_readers_questions(whole: Page) -> None:
    text = words(Document(whole.html).text)
    parts = (
        "2.0000 ± 0.0946 bits/dim on 40 test images",
        "16 samples, not selected; 25 steps of DPM-Solver++(2M)",
        "16 test images",
        "Learned end points gamma -8.50 to 3.50; at first -7 to 5",
        "30 steps of 12 images, 6.0 epochs; weights of step 20, the best on the validation images",
        "The same images in one PNG",
        "From noise to images",
        "with seed 0",
        "reconstruction finding the levels of the pixels from z_0 0.0300",
        "noise levels per image 2 time continuous",
        "validation 2.1000 ± 0.050010 images",
        "test \N{MINUS SIGN} training +0.1000 ± 0.0200",
        "Loss while training",
        "Gradient norm",
        "Learning rate",
        "Noise schedule",
        "Loss at each noise level",
        "How many images have which bits/dim",
        "Easiest images",
        "1.000",
        "Hardest images",
        "3.000",
        "class 1, 20 images 2.0256 ± 0.1357",
        "class 0, 20 images 1.9744 ± 0.1357",
        "Fréchet distance fd_0a1b2c3d",
        "1.2500 ± 0.0500 0.7500 ± 0.0400",
        "0.4800 ± 0.0300 0.5",
        "sample 3, train 3: 0.000",
        "Not valid:",
        "Broken: no image is of one level (critical)",
        "test image 3, a.png",
        "test image 1000000000",
        "2 expectations, 1 broken",
        "betas [0.9, 0.99]",
        "model, sha256 ",
        "processor x86_64 AVX2",
        "make repro",
    )
    places = [text.find(part) for part in parts]
    assert [part for part, place in zip(parts, places, strict=True) if place < 0] == []
    assert places == sorted(places)
    assert "left out" not in text


@pytest.mark.slow
def test_the_page_is_accessible_and_needs_nothing_else(whole: Page) -> None:
    document = Document(whole.html)
    assert document.all("html") == [{"lang": "en"}]
    (policy,) = [meta["content"] for meta in document.all("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    headings = [int(tag[1]) for tag, _ in document.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in document.all("a") if "download" not in link} <= {f"#{name}" for name in ids}
    assert all(image["alt"] and str(image["src"]).startswith("data:image/") for image in document.all("img"))
    assert all(header["scope"] in ("row", "col") for header in document.all("th"))
    assert not {"script", "link", "iframe", "object", "image", "form"} & {tag for tag, _ in document.tags}
    assert "http" not in re.sub(r'base64,[^"]*', "", whole.html.replace("http-equiv", ""))
    drawn = [image for image in document.all("img") if image.get("class") == "chart"]
    assert [svg(image) for image in drawn] == [chart.svg for chart in whole.charts]


@pytest.mark.slow
def test_what_is_missing_is_left_out_with_a_sentence(files: Files) -> None:
    for path in files[1:]:
        path.unlink()
    text = words(Document(page(read_results(files, ORIGIN, None, None)).html).text)
    sentences = [
        "There is no training log",
        "The model is not here",
        "There are no figures for each noise level",
        "There are no figures for each image",
        "The easiest and hardest images are left out",
        "Samples are left out",
        "The quality of samples was not measured",
        "nearest training images of the samples are left out",
        "There is no report of the contract",
    ]
    assert [sentence for sentence in sentences if sentence not in text] == []
    assert "2.0000 ± 0.0946 bits/dim" in text


def test_withheld_figures_are_told_with_the_reason(files: Files, tmp_path: Path) -> None:
    assert files.sample_metrics
    found = json.loads(files.sample_metrics.read_text()) | {"figures": {}, "withheld": "no better than <a> guess"}
    found |= {"features_accuracy": 0.11, "features_accuracy_standard_error": 0.02, "features_guess": 0.1}
    files.sample_metrics.write_text(json.dumps(found))
    text = shown(files, tmp_path)
    assert "Distances, precision and recall are withheld: no better than <a> guess." in text
    assert "is right for about 0.1100 ± 0.0200 of the test images, where a guess would be about 0.1000; its" in text
    assert "0.4800 ± 0.0300" in text
    drawn = files.sample_metrics.with_name("samples.png")
    Image.new("L", (4, 4)).save(drawn)
    text = markdown.samples(SampleMetrics(**found), drawn, drawn)
    assert "Distances, precision and recall are withheld: no better than " in text


def test_figures_of_samples_that_may_be_copies_say_so(files: Files, tmp_path: Path) -> None:
    """A memoriser has a better Frechet distance than new images have.  Its recall is no better for it."""
    assert files.sample_metrics
    measured = sample_metrics(json.loads(files.metrics.read_text())["data_sha256"])
    measured["figures"]["recall"] = measured["figures"]["precision"]
    found = []
    for nearer in (0.55, 0.97):
        of_copies = measured | {"nearer_than_held_out": nearer}  # with the error 0.03
        files.sample_metrics.write_text(json.dumps(of_copies))
        text = shown(files, tmp_path)
        drawn = files.sample_metrics.with_name("samples.png")
        Image.new("L", (4, 4)).save(drawn)
        in_prefect = markdown.samples(SampleMetrics(**of_copies), drawn, drawn)
        in_page = text.count("1.2500 ± 0.0500 may be copies")
        found.append((in_page, in_prefect.count("may be copies"), "may be copies, or" in text))
        assert "1.2500 ± 0.0500 0.7500" in text  # the recall
        assert "recall share of real images that lie among samples; 1 is best, but only beside a high precision" in text
    assert found == [(0, 0, False), (2, 2, True)]


def test_classes_have_their_names(files: Files, tmp_path: Path, digits: np.ndarray) -> None:
    """Of the images, or of the model where the images are missing; else they are numbered."""
    results = read_results(files, ORIGIN, *opened(tmp_path))
    assert results.model
    assert sorted(name for name, *_ in classes(results)) == ["class 0", "class 1"]
    of_model = changed(results, model=results.model._replace(class_names=["even", "odd"]))
    assert sorted(name for name, *_ in classes(of_model)) == ["even", "odd"]
    named = write_results(tmp_path / "named", digits, class_names=["Ankle boot", "Bag"])
    of_images = read_results(named, ORIGIN, *opened(tmp_path / "named"))
    assert sorted(name for name, *_ in classes(of_images)) == ["Ankle boot", "Bag"]


@pytest.mark.slow
def test_a_class_of_one_image_has_no_error_and_a_long_list_of_names_is_folded(
    tmp_path: Path, digits: np.ndarray
) -> None:
    names = [f"class {number}" for number in range(30)]
    files = write_results(tmp_path, digits, class_names=names)
    labels = tmp_path / layout.IMAGES / "test_labels.npy"
    np.save(labels, np.where(np.arange(40) == 0, 29, np.load(labels)))
    results = read_results(files, ORIGIN, *opened(tmp_path))
    assert [figures for label, *figures in classes(results) if label == "class 29"] == [[1, 1.0, None]]
    made = page(results).html
    assert "class 29, 1 image</dt> <dd>1.0000</dd>" in made
    assert "<summary>30 of them</summary>" in made


def test_results_that_do_not_belong_together_are_named(files: Files, tmp_path: Path, digits: np.ndarray) -> None:
    other_files = write_results(tmp_path / "other", digits[::-1])._replace(metrics=files.metrics)
    text = shown(other_files, tmp_path / "other")
    assert "The image set is not the one that was evaluated, so no images are shown." in text
    assert "What the contract found is about other images than the metrics." in text
    assert "The quality of samples was measured with another model or other images" in text
    files.metrics.write_text(
        files.metrics.read_text().replace(open_model(tmp_path / layout.REGISTERED).sha256, "c" * 64)
    )
    (of_samples, of_model) = read_results(files, ORIGIN, *opened(tmp_path)).notes
    assert of_samples == "The quality of samples was measured with another model or other images than the metrics."
    save_model(tmp_path / "model", VDM(**TINY), TINY)
    results = read_results(files._replace(sample_metrics=None), ORIGIN, None, open_model(tmp_path / "model"))
    assert results.schedule is None
    assert results.notes == [of_model]
    assert of_model == "The model is not the one that was evaluated, so its noise schedule is left out."


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("metrics", "{", "damaged"),
        ("findings", '{"success": 1}', "damaged: success"),
        ("per_image", "image,bpd\n0,1\n", "damaged: 1 rows, but the metrics are about 40 images"),
        ("per_image", "image,bpd\n" + 40 * "40,1\n", "damaged: there is no image 40"),
        ("curves", "step,bpd\n1,<script>\n", "damaged: could not convert string"),
        ("noise_levels", "\xff\xfe", "damaged: "),
        ("neighbours", "sample,train_image,distance\n16,0,0\n", "damaged: there is no sample 16"),
        ("samples", "\x93NUMPY", "damaged"),
        ("images", "dataset.json", "damaged"),
        ("model", "config.json", "damaged"),
    ],
)
def test_a_damaged_file_is_one_line(name: str, content: str, reason: str, files: Files, tmp_path: Path) -> None:
    folders = {"images": tmp_path / layout.IMAGES, "model": tmp_path / layout.REGISTERED}
    path = folders[name] / content if name in folders else getattr(files, name)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as error:
        Dossier(Outputs(tmp_path, dict)).read_all()
    assert error.value.code == Exit.MISSING
    assert str(error.value).startswith(str(path))
    assert reason in str(error.value)


@pytest.mark.slow
def test_figures_that_are_not_finite_are_left_out_of_charts(files: Files, tmp_path: Path) -> None:
    """A model that was not trained, or that diverged, has them, and numbers too large for a chart."""
    assert files.per_image
    assert files.noise_levels
    assert files.curves
    files.metrics.write_text(files.metrics.read_text().replace(f'"bpd": {BPD.mean()}', '"bpd": null'))
    files.per_image.write_text("image,bpd\n" + "".join(f"{i},{'nan' if i else 'inf'}\n" for i in range(40)))
    files.noise_levels.write_text("t,gamma,diffusion_bpd,standard_error\n0.5,nan,1e300,nan\n")
    files.curves.write_text("step,bpd\n1,nan\n")
    made = page(changed(read_results(files, ORIGIN, *opened(tmp_path)), versions=VERSIONS.assign(bpd=np.nan)))
    assert "not finite bits/dim on 40 test images" in words(Document(made.html).text)
    assert len(made.charts) == len(charts.CHARTS)


@pytest.mark.slow
def test_text_from_files_is_only_text(tmp_path: Path, digits: np.ndarray) -> None:
    stated = dict.fromkeys(("title", "name", "homepage", "licence", "split", "transforms"), HOSTILE)
    files = write_results(tmp_path, digits, **stated)._replace(curves=None, noise_levels=None)
    images, model = opened(tmp_path)
    assert files.findings
    assert files.sample_metrics
    files.findings.write_text(json.dumps(findings(images.data_sha256, meaning=HOSTILE, file=HOSTILE)))
    for path in (files.metrics, files.sample_metrics):
        path.write_text(path.read_text().replace("2.13.0", json.dumps(HOSTILE)[1:-1]).replace("precision", "$^<i>$", 1))
    origin = ORIGIN._replace(name=HOSTILE, parameters={HOSTILE: {HOSTILE: [HOSTILE]}}, commands=[HOSTILE])
    results = read_results(files, origin, images, model)
    for made in (page(results), page(results, results)):
        document = Document(made.html)
        assert {tag for tag, _ in document.tags} & {"script", "i", "b"} == set()
        assert {name for _, attributes in document.tags for name in attributes if name.startswith("on")} == set()
        assert all(str(image["src"]).startswith("data:") for image in document.all("img"))
        assert "<script>alert(1)</script>" in html.unescape(made.html)
        assert "{{ 7 * 7 }}" in document.text
        assert not re.search("[\x1b\u202e]", made.html)


@pytest.mark.slow
def test_the_stage_writes_page_and_charts_that_stand_alone(files: Files, tmp_path: Path) -> None:
    places = {"out": tmp_path / "out/report.html", "pictures": tmp_path / "out/pictures"}
    places["pictures"].mkdir(parents=True)
    (places["pictures"] / "old.svg").write_text("old")
    origin = origin_here(Path("models/vdm"), {"train": {"betas": [0.9, 0.99]}})
    report(Chosen(files, origin, *opened(tmp_path)), **places)
    text = places["out"].read_text()
    assert "betas" in text
    assert "vdmctl evaluate models/vdm" in text
    assert {path.stem for path in places["pictures"].iterdir()} == set(charts.CHARTS) - {"growth"}  # of a version
    for path in places["pictures"].iterdir():
        content = path.read_text()
        ElementTree.fromstring(content)
        assert "prefers-color-scheme:dark" in content
        assert charts.INK not in content
        assert "currentColor" in content


def test_the_stage_declares_every_file_that_it_shows() -> None:
    stage = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["report"]
    shown = {str(path) for path in (*OUTPUTS, layout.IMAGES, layout.REGISTERED, layout.NETWORKS)}
    assert shown == {dep for dep in stage["deps"] if not dep.startswith(("flows", "vdm"))}


# Shows the page in frames of two widths and reports what a reader would miss.
HARNESS = """<!DOCTYPE html><html><head><meta charset="utf-8"></head><body>
<iframe id="phone" width="320" height="800"></iframe><iframe id="desktop" width="1200" height="800"></iframe>
<pre id="found"></pre><script>
const page = PAGE;
const loaded = [...document.querySelectorAll("iframe")].map(frame => new Promise(done => {
  frame.onload = () => done([frame.id, frame.contentDocument]); frame.srcdoc = page; }));
Promise.all(loaded).then(frames => { found.textContent = JSON.stringify(Object.fromEntries(frames.map(([id, shown]) =>
  [id, {pictures: shown.images.length, broken: [...shown.images].filter(image => !image.naturalWidth).length,
    wider: shown.documentElement.scrollWidth - shown.documentElement.clientWidth,
    charts: [...shown.querySelectorAll(".chart")].filter(chart => chart.getBoundingClientRect().height > 100).length,
    paper: getComputedStyle(shown.body).backgroundColor,
    smooth: [...shown.images].filter(image => getComputedStyle(image).imageRendering != "pixelated").length}])));
}); </script></body></html>"""


NAMES = ["Ankle boot", *(f"a class with a long name {number}" for number in range(1, 11))]


def classified(files: Files) -> Files:
    """Return the files with the figures of a model of eleven classes."""
    assert files.per_image
    rows = [f"{image},{bpd:.6f},{image % 11},{image % 10},{image}" for image, bpd in enumerate(BPD)]
    files.per_image.write_text("\n".join(["image,bpd,label,best,margin", *rows]) + "\n")
    found = json.loads(files.metrics.read_text())
    of = {"num_classes": 11, "without": part(2.1, 40), "gain_bpd": 0.1, "gain_standard_error": 0.01}
    of |= {"num_classified": 40, "class_times": 4, "accuracy": 0.9, "mixture_bpd": 2.0, "mixture_bias_bpd": 0.0}
    files.metrics.write_text(json.dumps(found | {"classes": of}))
    return files


@pytest.mark.processes
@pytest.mark.needs("Chromium")
@pytest.mark.parametrize(
    ("scheme", "paper"), [(1, "rgb(255, 255, 255)"), (0, "rgb(20, 23, 26)")], ids=["light", "dark"]
)
def test_a_browser_without_a_network_shows_everything(
    scheme: int, paper: str, whole: Page, tmp_path: Path, digits: np.ndarray
) -> None:
    """In light and dark, on a phone and on a desktop: no error, every picture, and nothing wider than the screen.

    In dark the page is a comparison, with names too long for a line, and with eleven classes.
    """
    made = whole
    if not scheme:
        long = "W" * 300
        files = classified(write_results(tmp_path, digits, title=long, split=long, class_names=NAMES))
        results = read_results(files, ORIGIN._replace(name=long), *opened(tmp_path))
        made = page(results, changed(results, origin=ORIGIN))
    (tmp_path / "page.html").write_text(HARNESS.replace("PAGE", json.dumps(made.html).replace("</", "<\\/")))
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--disable-background-networking"]
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}", *offline]
    command += ["--virtual-time-budget=5000", "--dump-dom", (tmp_path / "page.html").as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in result.stderr
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', result.stdout)
    expected = {"pictures": made.html.count("<img"), "broken": 0, "wider": 0, "charts": 6, "paper": paper, "smooth": 6}
    assert json.loads(html.unescape(found)) == {"phone": expected, "desktop": expected}


def axes() -> Any:
    """Return empty axes."""
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_a_first_loss_far_above_the_rest_does_not_flatten_the_chart() -> None:
    drawn = axes()
    table = pd.DataFrame({"step": np.arange(31.0), "bpd": np.array([400.0, *np.linspace(3, 2, 30)])})
    charts.draw_loss(drawn, {"": table})
    low, high = drawn.get_ylim()
    assert 1.5 < low < 2
    assert 3 < high < 6


def test_charts_draw_the_errors_and_the_mean() -> None:
    drawn = axes()
    levels = pd.DataFrame({"t": [0.25, 0.75], "diffusion_bpd": [1.5, 2.0], "standard_error": [0.5, 0.25]})
    charts.draw_noise_levels(drawn, {"": levels})
    bars = drawn.containers[0].lines[2][0].get_segments()
    assert [[y for _, y in bar] for bar in bars] == [[1.0, 2.0], [1.75, 2.25]]
    drawn = axes()
    charts.draw_histogram(drawn, {"": pd.DataFrame({"bpd": [1.0, 1.0, 4.0]})})
    (mean,) = drawn.lines
    assert list(np.asarray(mean.get_xdata())) == [2.0, 2.0]
    charts.draw_histogram(axes(), {"": pd.DataFrame({"bpd": [3.0, 3.0]})})


def test_the_schedule_is_the_models_and_not_that_of_the_times_of_the_evaluation(files: Files, tmp_path: Path) -> None:
    """A straight line through two times would hide what the model learned."""
    images, model = opened(tmp_path)
    table = read_results(files, ORIGIN, images, model).schedule
    assert table is not None
    with torch.no_grad():
        gamma = model.vdm.schedule(torch.linspace(0, 1, len(table)))
    np.testing.assert_allclose(table["gamma"], gamma, rtol=1e-6)
    np.testing.assert_allclose(table["initial"], -7 + 12 * table["t"], atol=1e-6)
    drawn = axes()
    charts.draw_schedule(drawn, {"": table})
    assert [line.get_label() for line in drawn.lines] == ["gamma: -8.50 to 3.50", "at first: -7.00 to 5.00"]
    (curve, _) = drawn.lines
    assert np.abs(np.diff(np.asarray(curve.get_ydata()), 2)).max() > 1e-4


def test_the_png_has_the_evaluated_images(files: Files, tmp_path: Path) -> None:
    results = read_results(files, ORIGIN, *opened(tmp_path))
    assert results.images
    few = changed(results, metrics=results.metrics.model_copy(update={"num_images": 4}))
    assert png_of(few) == measure_png(spread(results.images["test"], 4))


def test_epochs_count_all_images_that_a_model_was_fitted_to(files: Files, tmp_path: Path) -> None:
    results = read_results(files, ORIGIN, *opened(tmp_path))
    both = changed(results, metrics=results.metrics.model_copy(update={"fitted_to": "train_and_validation"}))
    assert results.images
    seen = 30 * 12
    num_train, num_validation = (len(results.images[split]) for split in ("train", "validation"))
    assert num_validation
    assert (epochs(results), epochs(both)) == (seen / num_train, seen / (num_train + num_validation))
    assert epochs(changed(both, images=None)) is None


def test_the_page_says_first_what_the_figures_mean(files: Files, tmp_path: Path) -> None:
    results = read_results(files, ORIGIN, *opened(tmp_path))
    png = InPng(40, complete=True, bpd=2.5)
    quality = "Its samples can be told from real images: a Fréchet distance of 1.25, and 0.75 for real images; drawn in"
    for bpd, first in (
        (png.bpd - 0.01, "Better than PNG by"),
        (png.bpd + 0.01, "Worse than PNG: train longer than 6 epoch"),
    ):
        found = changed(results, metrics=results.metrics.model_copy(update={"bpd": bpd}))
        said = [remark.text for remark in judge_results(found, png)]
        assert said[0].startswith(first)
        assert said[-1].startswith(quality)
    classes = {"num_classes": 10, "without": part(2.1, 40), "gain_bpd": 0.1, "gain_standard_error": 0.01}
    classes |= {"num_classified": 40, "class_times": 4, "accuracy": 0.75}
    found = changed(results, metrics=results.metrics.model_copy(update={"classes": ClassFigures(**classes)}))
    assert guess(found) == 0.5  # there are two labels, each of every second image
    assert guess(changed(found, labels=None)) == 0.1
    assert "It finds the class of 75% of the images, where a guess finds 50%." in [
        one.text for one in judge_results(found, png)
    ]
    images, _ = opened(tmp_path)
    made = page(read_results(files._replace(curves=None, noise_levels=None, per_image=None), ORIGIN, images, None)).html
    assert f"<p>{quality}" in made  # no colour says that this is good
    text = words(Document(made).text)
    assert text.index("bits/dim on 40 test images") < text.index("drawn in 25 steps.") < text.index("not selected")


@pytest.mark.slow
def test_figures_can_be_copied(whole: Page) -> None:
    document = Document(whole.html)
    links = {link["download"]: str(link["href"]).partition(",") for link in document.all("a") if "download" in link}
    assert links.keys() == {f"{chart.name}.{kind}" for chart in whole.charts for kind in ("png", "svg")}
    for chart in whole.charts:
        assert b64decode(links[f"{chart.name}.svg"][2]).decode() == chart.svg
        picture = Image.open(BytesIO(b64decode(links[f"{chart.name}.png"][2])))
        assert (picture.width, picture.getpixel((0, 0))) == (1000, (255, 255, 255, 255))
    columns = "% model & bits/dim & prior & reconstruction & diffusion & images & Fréchet distance & precision"
    row = (
        r"models/vdm & $2.000 \pm 0.095$ & $0.001$ & $0.030$ & $1.969$ & 40 & $1.250 \pm 0.050$ & $1.250 \pm 0.050$ \\"
    )
    assert f"{columns} {row}" in words(document.text)


def test_a_row_for_latex_is_only_text() -> None:
    bound = BoundMetrics(**metrics("a" * 64) | {"bpd": None})
    columns, row = latex([("50%_of{a}\\b", bound, None)])
    assert columns == "% model & bits/dim & prior & reconstruction & diffusion & images"
    assert row == r"50\%\_of\{a\}\textbackslash{}b & -- & $0.001$ & $0.030$ & $1.969$ & 40 \\"


@pytest.mark.slow
def test_a_window_that_is_narrower_than_the_strip_says_that_it_scrolls(whole: Page) -> None:
    """The strip of these results is 128 pixels wide."""
    assert "@container (max-width: 127px) { .hint1 { display: block; } }" in whole.html
    assert "Scroll the strip sideways" in Document(whole.html).text


def test_a_png_takes_at_least_the_bits_of_noise() -> None:
    """Noise of 4 bits costs at least 4 bits/dim, and images of one level almost nothing."""
    images = np.random.default_rng(0).integers(0, 16, (200, 3, 8, 8), dtype=np.uint8)
    noise, plain = (measure_png(each).bpd for each in (images, images * 0))
    assert 4 < noise < 6
    assert plain < 0.3


def test_images_from_a_source_are_restored_before_the_stages_run() -> None:
    commands = origin_here(Path("models/vdm"), {"data": {"source": "/pictures"}}).commands
    names = [command.partition("    ")[0] for command in commands]
    restored = names.index(".venv/bin/dvc checkout data/images || .venv/bin/dvc pull data/images")
    assert names.index("make .venv/installed") < restored < names.index("make repro")
    without = origin_here(Path("models/vdm"), {"data": {"source": "data/published"}}).commands
    assert not any("data/images" in command for command in without)


def test_the_easiest_and_the_hardest_images_are_those_of_the_rows(files: Files, tmp_path: Path) -> None:
    """The rows may be in any order, and rows that are not finite are left out."""
    assert files.per_image
    bpd = [1.5, 1.0, 4.0, 2.0, 3.0] + [2.0] * 35
    rows = [f"{39 - row},{value}" for row, value in enumerate(bpd)]
    files.per_image.write_text("\n".join(["image,bpd", rows[0], "38,inf", *rows[2:]]) + "\n")
    (_, easiest), (_, hardest) = extremes(read_results(files, ORIGIN, *opened(tmp_path)))
    found = [(image.picture.alt, image.caption) for image in (easiest[0], *hardest[:2]) if image.picture]
    assert found == [("test image 39", "1.500"), ("test image 37", "4.000"), ("test image 35", "3.000")]
    assert (len(easiest), len(hardest)) == (8, 8)


def test_the_pairs_that_are_least_likely_by_chance_come_first(files: Files, tmp_path: Path) -> None:
    assert files.findings
    described = json.loads(files.findings.read_text())
    (pair,) = described["alike"][0]["pairs"]
    described["alike"][0]["pairs"] = [pair | {"image": image, "by_chance": image / 10} for image in (5, 1, 3)]
    files.findings.write_text(json.dumps(described))
    found = [(image.caption, how) for image, _, how in alike(read_results(files, ORIGIN, *opened(tmp_path)))]
    assert [caption for caption, _ in found] == ["test image 1", "test image 3", "test image 5"]
    assert "0.1 as close by chance" in found[0][1]


def test_pictures_have_all_shades_and_the_real_ones_are_of_the_whole_split(files: Files, tmp_path: Path) -> None:
    assert shades(np.array([[[0, 8, 16]]]), 17).tolist() == [[[shade] * 3 for shade in (0, 128, 255)]]
    results = read_results(files, ORIGIN, *opened(tmp_path))
    assert results.images
    assert results.samples is not None
    both = grids(results)
    assert both
    assert both.samples.src == arrange(results.samples, 17, "").src
    assert both.held_out.src == arrange(spread(results.images["test"], 16), 17, "").src


@pytest.mark.slow
def test_two_models_stand_side_by_side(files: Files, tmp_path: Path, digits: np.ndarray) -> None:
    second = write_results(tmp_path / "other", digits)
    assert second.per_image
    second.per_image.write_text("image,bpd\n" + "".join(f"{i},{bpd - 0.5:.6f}\n" for i, bpd in enumerate(BPD)))
    origins = [
        ORIGIN._replace(name=name, parameters={"train": {"steps": steps, "seed": 0}})
        for name, steps in (("vdm@v1.0.0", 100), ("vdm@v1.1.0", 200))
    ]
    first = read_results(files, origins[0], *opened(tmp_path))
    made = page(first, read_results(second, origins[1], *opened(tmp_path / "other")))
    text = words(Document(made.html).text)
    for said in (
        "\N{MINUS SIGN}0.5000 ± 0.0000 bits/dim from vdm@v1.0.0 to vdm@v1.1.0",
        "vdm@v1.1.0 is better on these images.",
        "16 samples of vdm@v1.0.0, not selected",
        "train.steps 100 200",
    ):
        assert said in text
    assert "train.seed" not in text
    legends = {chart.name: re.findall(r">([^<>]*, [^<>]*)<", chart.svg) for chart in made.charts}
    assert {"vdm@v1.0.0, training", "vdm@v1.1.0, training"} <= set(legends["loss"])


def test_figures_that_are_not_paired_are_not_subtracted(files: Files, tmp_path: Path) -> None:
    first = read_results(files, ORIGIN, *opened(tmp_path))
    settings = {"seed": 1, "times_per_image": 3, "num_timesteps": 100, "data_sha256": "b" * 64, "split": "train"}
    for field, value in (settings | {"precision": "bfloat16", "num_images": 7}).items():
        second = changed(first, metrics=first.metrics.model_copy(update={field: value}))
        assert pair_results(first, second) == f"they differ in {field}: {getattr(first.metrics, field)} and {value}"


def test_samples_that_differ_in_more_than_the_model_are_not_compared_without_a_word() -> None:
    first = SampleMetrics(**sample_metrics("a" * 64))
    assert cautions(first, first) == []
    steps = first.sampler.model_copy(update={"num_timesteps": 7})
    for change, said in (
        ({"sampler": steps}, "The samples were drawn differently: "),
        ({"num_images": 12}, "Different numbers of images were compared: 16 samples"),
        ({"data_sha256": "b" * 64}, "The samples were compared with different images"),
        ({"features_sha256": "b" * 64}, "The features are those of two different networks"),
    ):
        (caution,) = cautions(first, first.model_copy(update=change))
        assert caution.startswith(said)


def test_prefect_shows_broken_expectations_first_and_text_from_files_only_as_text(tmp_path: Path) -> None:
    def result(meaning: str, *, success: bool, severity: str = "critical") -> Result:
        found = {"table": "images", "expectation": "x", "arguments": {}, "meaning": meaning, "rows": []}
        observed = "as expected" if success else {"rows": [hostile] * 50}
        return Result.model_validate({**found, "severity": severity, "success": success, "observed": observed})

    hostile = "<script>alert(1)</script> | ![x](http://a/b) `c` +- \n# d \x1b[2J me@example.org"
    warning = result("b", success=False, severity="warning")
    results = [result("a", success=True), result(hostile, success=False), warning]
    found = Findings.model_construct(success=False, transforms=hostile, expectations=results)
    assert markdown.verdict(found) == "not valid: 1 of 3 expectations hold"
    docs = tmp_path / "index.html"
    about, table = markdown.data_docs(found, tmp_path / "none.png", docs).split("\n\n")
    header, _, first, second, last = table.splitlines()
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in (header, first, second, last)] == [4] * 4
    assert last == "| a | holds |  |"
    assert " | BROKEN | " in first
    assert second.startswith("| b | BROKEN (warns only) | ")
    assert len(first) < 1000
    for text in (about, first):
        assert not re.search(r"(?<!\\)[<`\[]", text)
        assert text.replace("\N{NO-BREAK SPACE}", "").isprintable()
    docs.touch()
    assert markdown.data_docs(found, tmp_path / "none.png", docs).split("\n\n")[2].startswith("The Data Docs: ")
    assert markdown.quote("`vdmctl lineage` of vdm@v1.0.0.") == "`vdmctl lineage` of `vdm@v1.0.0`."
