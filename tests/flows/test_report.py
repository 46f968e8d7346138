"""The page with all results: what it says, what it leaves out, and what it never contains."""

import html
import io
import json
import re
import shutil
import subprocess
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from documents import Document, words
from PIL import Image
from project import ROOT
from results import BPD, MODEL, ORIGIN, PLACES, metrics, sample_metrics, validation, write_results
from ruamel.yaml import YAML

from flows.commands.reporting import WORKSPACE
from flows.core.errors import Exit, UserError
from flows.evaluation.results import BoundMetrics, SampleMetrics
from flows.images.store import data_sha256, spread
from flows.report import charts, markdown, pictures
from flows.report.charts import PALETTE
from flows.report.checks import MOST_EXPECTATIONS, alike
from flows.report.comparison import comparison
from flows.report.page import Page, extremes, grids, lineage, page
from flows.report.quality import sampler
from flows.report.results import Files, disagreements, origin_here, read_results
from flows.report.tables import read_table
from flows.stages.report import report

HOSTILE = "<script>alert(1)</script>\"'><img src=http://a/b onerror=alert(2)> {{ 7 * 7 }} $x^$ ]]> \x1b[2J\u202e\ud800"


def shown(files: Files) -> str:
    """Return the text of the page about the results in files."""
    return words(Document(page(read_results(files, ORIGIN)).html).text)


def without_charts(files: Files) -> Files:
    """Return the files without those of which the page shows charts, which take most of its time."""
    return files._replace(curves=None, noise_levels=None, per_image=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: np.ndarray) -> Page:
    """Return the page about complete results."""
    return page(read_results(write_results(tmp_path_factory.mktemp("whole"), digits), ORIGIN))


@pytest.mark.slow
def test_the_page_says_everything_in_the_order_of_its_readers_questions(whole: Page) -> None:
    text = words(Document(whole.html).text)
    places = [
        text.find(part)
        for part in (
            "2.0000 ± 0.0946 bits/dim on 40 test images",
            "at 2 noise levels each, in continuous time, with seed 0",
            "reconstruction finding the levels of the pixels from z_0 0.0300",
            "validation 10 2.1000 ± 0.0500",
            "test \N{MINUS SIGN} training +0.1000 ± 0.0200",
            "Loss while training",
            "Noise schedule",
            "Loss at each noise level",
            "How many images have which bits/dim",
            "Easiest images",
            "1.000",
            "Hardest images",
            "3.000",
            "16 samples, not selected",
            "16 test images",
            "Fréchet distance fd_0a1b2c3d",
            "1.2500 ± 0.0500 0.7500 ± 0.0400",
            "with probability 0.4800 ± 0.0300",
            "sample 3, train 3: 0.000",
            "Not valid:",
            "Broken: no image is of one level (critical)",
            "test image 3, a.png",
            "test image 1000000000",
            "2 expectations, 1 broken",
            "betas [0.9, 0.99]",
            f"model, sha256 {MODEL}",
            "processor x86_64 AVX2",
            "make repro",
        )
    ]
    assert -1 not in places
    assert places == sorted(places)
    assert "left out" not in text


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
    assert {link["href"] for link in document.all("a")} <= {f"#{name}" for name in ids}
    assert all(image["alt"] and str(image["src"]).startswith("data:image/png;base64,") for image in document.all("img"))
    assert all(header["scope"] in ("row", "col") for header in document.all("th"))
    charts = [attributes for _, attributes in document.tags if attributes.get("role") == "img"]
    assert [str(chart["aria-label"]).partition(" ")[0] for chart in charts] == ["Line"] * 3 + ["Histogram"]
    assert not {"script", "link", "iframe", "object", "image", "form"} & {tag for tag, _ in document.tags}
    assert "http" not in re.sub(r'xmlns(:xlink)?="http[^"]*"|http-equiv', "", whole.html)


def test_text_has_enough_contrast_in_light_and_dark() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for name, shades in PALETTE.items():
        for paper, shade in zip(PALETTE["paper"], shades, strict=True):
            dark, light = sorted((luminance(paper), luminance(shade)))
            assert name in ("paper", "line") or (light + 0.05) / (dark + 0.05) >= 4.5, name


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(tmp_path: Path, digits: np.ndarray, whole: Page) -> None:
    again = page(read_results(write_results(tmp_path / "elsewhere", digits), ORIGIN))
    assert again == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "sentences"),
    [
        (
            ["curves", "noise_levels", "sample_metrics", "validation"],
            [
                "There is no training log",
                "There are no figures for each noise level",
                "The quality of samples was not measured",
                "There is no report of the data validation",
            ],
        ),
        (
            ["per_image", "neighbours"],
            [
                "There are no figures for each image",
                "The easiest and hardest images are left out",
                "nearest training images of the samples are left out",
            ],
        ),
        (
            ["samples"],
            ["Samples beside real images are left out", "nearest training images of the samples are left out"],
        ),
        (["images"], ["The easiest and hardest images are left out", "Samples beside real images are left out"]),
    ],
)
def test_what_is_missing_is_left_out_with_a_sentence(missing: list[str], sentences: list[str], files: Files) -> None:
    for name in missing:
        path = getattr(files, name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = shown(files if "curves" in missing else files._replace(curves=None, noise_levels=None))  # fewer charts
    assert [sentence for sentence in sentences if sentence not in text] == []
    assert "2.0000 ± 0.0946 bits/dim" in text


@pytest.mark.slow
def test_results_that_do_not_belong_together_are_named(files: Files, tmp_path: Path, digits: np.ndarray) -> None:
    assert files.images
    other = write_results(tmp_path / "other", digits[::-1])
    text = shown(without_charts(other)._replace(metrics=files.metrics))
    assert "The image set is not the one that was evaluated, so no images are shown." in text
    assert "The data validation is about other images than the metrics." in text
    assert "The quality of samples was measured with another model or other images" in text
    assert "Easiest" not in text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("metrics", "{", "damaged"),
        ("metrics", '{"bpd": "<b>"}', "damaged: bpd"),
        ("validation", '{"success": 1}', "damaged: success"),
        ("sample_metrics", "[]", "damaged"),
        ("per_image", "image,bpd\n0,1\n", "damaged: 1 rows, but the metrics are about 40 images"),
        ("per_image", "image,bpd\n", "damaged: no rows"),
        ("per_image", "image,bpd\n\n \n", "damaged: no rows"),
        ("per_image", "", "damaged: no rows"),
        ("curves", "step,loss\n1,2\n", "damaged: no column bpd"),
        ("curves", "step,bpd\n1,2\n3\n", "damaged: the number of columns changed"),
        ("curves", "step,bpd\n1,2,3\n", "damaged: 3 columns under 2 names"),
        ("curves", "step,bpd\n1,<script>\n", "damaged: could not convert string"),
        ("noise_levels", "\xff\xfe", "damaged: "),
        ("neighbours", "sample,train_image,distance\n16,0,0\n", "damaged: there is no sample 16"),
        ("neighbours", "sample,train_image,distance\n1,0.5,0\n", "damaged: there is no train_image 0.5"),
        ("neighbours", "sample,train_image,distance\n1,nan,0\n", "damaged: there is no train_image nan"),
        ("samples", "\x93NUMPY", "damaged"),
        ("images", "dataset.json", "damaged"),
    ],
)
def test_a_damaged_file_is_one_line(name: str, content: str, reason: str, files: Files) -> None:
    path = getattr(files, name)
    path = path / content if name == "images" else path
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as error:
        read_results(files, ORIGIN)
    assert error.value.code == Exit.MISSING
    assert str(error.value).startswith(str(path))
    assert reason in str(error.value)


@pytest.mark.slow
def test_numbers_beyond_all_charts_are_not_finite(files: Files) -> None:
    """A model that was not trained can have them."""
    assert files.noise_levels
    files.noise_levels.write_text("t,gamma,diffusion_bpd,standard_error\n0,0,1e300,0\n1,1,2.5,0\n")
    results = read_results(files._replace(curves=None, per_image=None), ORIGIN)
    assert results.noise_levels
    assert results.noise_levels["diffusion_bpd"] == pytest.approx([np.nan, 2.5], nan_ok=True)
    assert "How to reproduce" in page(results).html


def test_tall_images_stay_small_on_the_page() -> None:
    tall = np.zeros((1, 1000, 4), np.uint8)
    assert (pictures.tile(tall, 17, "x").width, pictures.tile(tall, 17, "x").height) == (1, 250)
    assert (pictures.tile(tall[:, :8], 17, "x").width, pictures.tile(tall[:, :8], 17, "x").height) == (64, 128)
    png = io.BytesIO()
    Image.new("L", (50, 8018)).save(png, "png")
    with Image.open(io.BytesIO(markdown.fitted(png.getvalue())[0])) as shown:
        assert shown.height == 8018


def test_samples_of_another_shape_are_refused(files: Files) -> None:
    assert files.samples
    for samples in (np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 1, 8, 8)), np.zeros(5, np.uint8)):
        np.save(files.samples, samples)
        with pytest.raises(UserError, match=r"samples.npy: damaged: .* not samples of images of shape"):
            read_results(files, ORIGIN)


@pytest.mark.slow
def test_figures_that_are_not_finite_are_left_out_of_charts(files: Files) -> None:
    assert files.per_image
    assert files.noise_levels
    assert files.curves
    text = files.metrics.read_text()
    files.metrics.write_text(text.replace(f'"bpd": {BPD.mean()}', '"bpd": null'))
    files.per_image.write_text("image,bpd\n" + "".join(f"{i},{'nan' if i else 'inf'}\n" for i in range(40)))
    files.noise_levels.write_text("t,gamma,diffusion_bpd,standard_error\n0.5,nan,nan,nan\n")
    files.curves.write_text("step,bpd\n1,nan\n")
    made = page(read_results(files, ORIGIN))
    assert "not finite bits/dim on 40 test images" in words(Document(made.html).text)
    assert [chart.alt.count("no finite value") for chart in made.charts] == [1, 1, 1, 1]


@pytest.mark.slow
def test_bits_per_dim_that_hardly_differ_have_a_histogram(files: Files) -> None:
    assert files.per_image
    files.per_image.write_text("image,bpd\n" + "".join(f"{i},{3 if i else np.nextafter(3, 4)}\n" for i in range(40)))
    made = page(read_results(files._replace(curves=None, noise_levels=None), ORIGIN))
    assert made.charts[-1].alt == "Histogram in bits/dim. images: 3 to 3, mean 3."


@pytest.mark.slow
def test_of_many_expectations_the_broken_ones_are_shown(files: Files) -> None:
    assert files.validation
    report = json.loads(files.validation.read_text())
    held = next(each for each in report["expectations"] if each["success"])
    broken = held | {"success": False, "meaning": "the last one"}
    files.validation.write_text(json.dumps(report | {"expectations": [held] * MOST_EXPECTATIONS + [broken]}))
    assert "Broken: the last one" in shown(without_charts(files))


def test_a_report_of_an_older_version_without_severity_and_rows_is_shown(files: Files) -> None:
    assert files.validation
    document = json.loads(files.validation.read_text())
    broken = next(each for each in document["expectations"] if not each["success"])
    for result in document["expectations"]:
        del result["severity"], result["rows"]
    files.validation.write_text(json.dumps({key: document[key] for key in ("success", "data_sha256", "expectations")}))
    assert f"Broken: {broken['meaning']} (critical)" in shown(without_charts(files))


@pytest.mark.slow
def test_images_that_look_alike_are_named_also_without_the_images(files: Files) -> None:
    assert re.search(
        r"test image \d+.*; train image \d+.*: as it is, distance", shown(without_charts(files)._replace(images=None))
    )


def test_text_from_files_is_only_text(tmp_path: Path, digits: np.ndarray) -> None:
    hostile = HOSTILE[:-1]  # JSON with a lone surrogate is refused
    stated = dict.fromkeys(("title", "name", "homepage", "licence", "split", "transforms"), hostile)
    files = write_results(tmp_path, digits, **stated)
    assert files.images
    assert files.validation
    assert files.sample_metrics
    data = data_sha256(files.images)
    files.validation.write_text(json.dumps(validation(data, meaning=hostile, file=hostile)))
    for path in (files.metrics, files.sample_metrics):
        path.write_text(path.read_text().replace("2.13.0", json.dumps(hostile)[1:-1]).replace("precision", "$^<i>$", 1))
    origin = ORIGIN._replace(name=HOSTILE, parameters={HOSTILE: {HOSTILE: [HOSTILE]}}, commands=[HOSTILE])
    results = read_results(files, origin)
    for made in (page(results), comparison(results, results)):
        document = Document(made.html)
        assert {tag for tag, _ in document.tags} & {"script", "i", "b"} == set()
        assert {name for _, attributes in document.tags for name in attributes if name.startswith("on")} == set()
        assert all(str(image["src"]).startswith("data:") for image in document.all("img"))
        assert "<script>alert(1)</script>" in html.unescape(made.html)
        assert "{{ 7 * 7 }}" in document.text
        assert not re.search("[\x1b\u202e\ud800]", made.html)


def test_the_stage_writes_page_and_charts_that_stand_alone(files: Files, tmp_path: Path) -> None:
    places = {"out": tmp_path / "out/report.html", "pictures": tmp_path / "out/pictures"}
    places["pictures"].mkdir(parents=True)
    (places["pictures"] / "old.svg").write_text("old")
    report({"train": {"betas": [0.9, 0.99]}}, files=files, model_folder=Path("models/vdm"), **places)
    text = places["out"].read_text()
    assert "betas" in text
    assert "vdmctl evaluate models/vdm" in text
    assert sorted(path.name for path in places["pictures"].iterdir()) == [
        *("loss.svg", "noise_levels.svg", "per_image.svg", "schedule.svg")
    ]
    for path in places["pictures"].iterdir():
        content = path.read_text()
        ElementTree.fromstring(content)
        assert "prefers-color-scheme:dark" in content
        assert "#00000" not in content


def test_the_stage_declares_every_file_that_it_shows() -> None:
    stage = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["report"]
    assert WORKSPACE == PLACES
    assert {str(path) for path in WORKSPACE} == {dep for dep in stage["deps"] if not dep.startswith(("flows", "vdm"))}


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
    charts: [...shown.querySelectorAll("svg")].filter(chart => chart.getBoundingClientRect().height > 100).length,
    paper: getComputedStyle(shown.body).backgroundColor,
    smooth: [...shown.images].filter(image => getComputedStyle(image).imageRendering != "pixelated").length}])));
}); </script></body></html>"""


@pytest.mark.processes
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize(
    ("scheme", "paper"), [(1, "rgb(255, 255, 255)"), (0, "rgb(20, 23, 26)")], ids=["light", "dark"]
)
def test_a_browser_without_a_network_shows_everything(
    scheme: int, paper: str, whole: Page, tmp_path: Path, digits: np.ndarray
) -> None:
    """In light and dark, on a phone and on a desktop: no error, every picture, and nothing wider than the screen.

    In dark the page is a comparison, with names too long for a line.
    """
    made = whole
    if not scheme:
        long = "W" * 300
        results = read_results(write_results(tmp_path, digits, title=long, split=long), ORIGIN._replace(name=long))
        made = comparison(results, results._replace(origin=ORIGIN))
    (tmp_path / "page.html").write_text(HARNESS.replace("PAGE", json.dumps(made.html).replace("</", "<\\/")))
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--disable-background-networking"]
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}", *offline]
    command += ["--virtual-time-budget=5000", "--dump-dom", (tmp_path / "page.html").as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in result.stderr
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', result.stdout)
    expected = {"pictures": made.html.count("<img"), "broken": 0, "wider": 0, "charts": 4, "paper": paper, "smooth": 0}
    assert json.loads(html.unescape(found)) == {"phone": expected, "desktop": expected}


@pytest.mark.parametrize("first", [13.0, 400.0, 1e5])
def test_a_first_loss_far_above_the_rest_does_not_flatten_the_chart(first: float) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    table = {"step": np.arange(31.0), "bpd": np.array([first, *np.linspace(3, 2, 30)])}
    list(charts.loss(axes, {charts.Model("", charts.MODELS[0]): table}))
    low, high = axes.get_ylim()
    assert 1.5 < low < 2
    assert 3 < high < 6


def test_images_from_a_source_are_restored_before_the_stages_run() -> None:
    commands = origin_here(Path("models/vdm"), {"data": {"source": "/pictures"}}).commands
    names = [command.partition("    ")[0] for command in commands]
    restored = names.index(".venv/bin/dvc checkout data/images || .venv/bin/dvc pull data/images")
    assert names.index("make .venv/installed") < restored < names.index("make repro")
    without = origin_here(Path("models/vdm"), {"data": {"source": None}}).commands
    assert not any("data/images" in command for command in without)


def test_samples_of_another_model_are_named() -> None:
    data, samples = "b" * 64, SampleMetrics(**sample_metrics("b" * 64))
    found = [
        list(disagreements(BoundMetrics(**metrics(data) | change), data, None, samples))
        for change in ({}, {"model_sha256": "c" * 64})
    ]
    said = "The quality of samples was measured with another model or other images than the metrics."
    assert found == [[], [said]]


def test_integers_and_equal_floats_are_the_same_parameters(files: Files) -> None:
    """dvc.lock has the number as it was written, and the parsed parameters have a float."""
    results = read_results(files, ORIGIN)
    whole, real = (
        results._replace(origin=ORIGIN._replace(parameters={"train": {"checkpoint_every_minutes": minutes}}))
        for minutes in (5, 5.0)
    )
    assert lineage(whole) == lineage(real)


def test_the_easiest_and_the_hardest_images_are_those_of_the_rows(files: Files) -> None:
    """The rows may be in any order, and rows that are not finite are left out."""
    assert files.per_image
    bpd = [1.5, 1.0, 4.0, 2.0, 3.0] + [2.0] * 35
    rows = [f"{39 - row},{value}" for row, value in enumerate(bpd)]
    files.per_image.write_text("\n".join(["image,bpd", rows[0], "38,inf", *rows[2:]]) + "\n")
    (_, easiest), (_, hardest) = extremes(read_results(files, ORIGIN))
    found = [(image.picture.alt, image.caption) for image in (easiest[0], *hardest[:2]) if image.picture]
    assert found == [("test image 39", "1.500"), ("test image 37", "4.000"), ("test image 35", "3.000")]
    assert (len(easiest), len(hardest)) == (8, 8)


@pytest.mark.parametrize(("order", "eta", "name"), [(1, 1, "ancestral sampling"), (1, 0, "DDIM"), (2, 0.5, "order 2")])
def test_the_sampler_has_its_name(order: int, eta: float, name: str) -> None:
    settings = SampleMetrics(**sample_metrics("b" * 64)).sampler.model_copy(update={"order": order, "eta": eta})
    assert re.match(rf"\d+ steps of {name}[, ]", sampler(settings))


def test_neighbours_are_training_images(files: Files) -> None:
    """There are 60 of them, and 40 test images."""
    assert files.neighbours
    files.neighbours.write_text("sample,train_image,distance\n15,59,0.25\n")
    assert read_results(files, ORIGIN).neighbours == [(15, 59, 0.25)]
    files.neighbours.write_text("sample,train_image,distance\n15,60,0.25\n")
    with pytest.raises(UserError, match="there is no train_image 60"):
        read_results(files, ORIGIN)


def test_the_pairs_that_are_least_likely_by_chance_come_first(files: Files) -> None:
    assert files.validation
    described = json.loads(files.validation.read_text())
    (pair,) = described["alike"][0]["pairs"]
    described["alike"][0]["pairs"] = [pair | {"image": image, "by_chance": image / 10} for image in (5, 1, 3)]
    files.validation.write_text(json.dumps(described))
    found = [(image.caption, how) for image, _, how in alike(read_results(files, ORIGIN))]
    assert [caption for caption, _ in found] == ["test image 1", "test image 3", "test image 5"]
    assert "0.1 as close by chance" in found[0][1]


def test_charts_draw_the_errors_and_the_mean() -> None:
    from matplotlib.figure import Figure

    table = {
        "t": np.array([0.25, 0.75]),
        "diffusion_bpd": np.array([1.5, 2.0]),
        "standard_error": np.array([0.5, 0.25]),
    }
    axes = Figure().subplots()
    list(charts.noise_levels(axes, {charts.Model("", "red"): table}))
    drawn: Any = axes.containers[0]
    bars = drawn.lines[2][0].get_segments()
    assert [[y for _, y in bar] for bar in bars] == [[1.0, 2.0], [1.75, 2.25]]
    axes = Figure().subplots()
    list(charts.histogram(axes, {charts.Model("", "red"): {"bpd": np.array([1.0, 1.0, 4.0])}}))
    (mean,) = axes.lines
    assert list(np.asarray(mean.get_xdata())) == [2.0, 2.0]


def test_real_images_beside_the_samples_are_of_all_of_a_sorted_split(files: Files) -> None:
    results = read_results(files, ORIGIN)
    assert results.images
    assert results.samples is not None
    both = grids(results)
    assert both
    assert both.samples.src == pictures.grid(results.samples, 17, "").src
    assert both.held_out.src == pictures.grid(spread(results.images.test, 16), 17, "").src


def test_a_picture_has_all_shades_of_its_levels() -> None:
    assert pictures.shades(np.array([[[0, 8, 16]]]), 17).tolist() == [[[shade] * 3 for shade in (0, 128, 255)]]


def test_a_table_of_short_rows_takes_little_memory(tmp_path: Path) -> None:
    """Lines of a few bytes would take twenty times as much memory as the file if all were kept."""
    table = tmp_path / "table.csv"
    table.write_text("image,bpd\n" + "0,0\n" * 2**18)
    tracemalloc.start()
    found = read_table(table, ("image", "bpd"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found["bpd"]) == 2**18
    assert peak < 14 * table.stat().st_size
