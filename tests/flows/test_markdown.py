"""What Prefect's UI shows of results: text that is only text, and pictures that suit the page."""

import base64
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from results import metrics, sample_metrics

from flows.evaluation.results import BoundMetrics, SampleMetrics
from flows.report import markdown
from flows.validation.report import Report, Result

HOSTILE = "<script>alert(1)</script> | ![x](http://a/b) `c` +- \n# d \x1b[2J\ud800 me@example.org"


def result(meaning: str, *, success: bool, severity: str = "critical") -> Result:
    found = {"table": "images", "expectation": "x", "arguments": {}, "meaning": meaning, "rows": []}
    observed = "as expected" if success else {"rows": [HOSTILE] * 50}
    return Result.model_validate({**found, "severity": severity, "success": success, "observed": observed})


def test_broken_expectations_come_first_and_text_from_files_is_only_text(tmp_path: Path) -> None:
    warning = result("b", success=False, severity="warning")
    results = [result("a", success=True), result(HOSTILE, success=False), warning]
    report = Report.model_construct(success=False, transforms=HOSTILE, expectations=results)
    assert markdown.verdict(report) == "not valid: 1 of 3 expectations hold"
    page = markdown.data_docs(report, tmp_path / "none.png", tmp_path / "index.html")
    about, table, place = page.split("\n\n")
    header, _, first, second, last = table.splitlines()
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in (header, first, second, last)] == [4] * 4
    assert last == "| a | holds |  |"
    assert " | BROKEN | " in first
    assert second.startswith("| b | BROKEN (warns only) | ")
    assert len(first) < 1000
    for text in (about, first):
        assert not re.search(r"(?<!\\)[<`\[]", text)
        assert text.replace("\N{NO-BREAK SPACE}", "").isprintable()
    assert place.startswith("The Data Docs: ")


def decoded(page: str) -> Image.Image:
    """Return the picture in a page."""
    found = re.search(r"!\[Samples\]\(data:image/(png|jpeg);base64,([^)]+)\)", page)
    assert found
    return Image.open(BytesIO(base64.b64decode(found[2])))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "shown", "kind"),
    [(10, 640, "PNG"), (138, 552, "PNG"), (682, 682, "JPEG"), (1400, 1280, "JPEG")],
)
def test_a_picture_is_as_wide_as_its_page_and_not_large(side: int, shown: int, kind: str, tmp_path: Path) -> None:
    """Of noise, whose PNG file is as large as its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "samples.png")
    page = markdown.picture(tmp_path / "samples.png", "Samples")
    picture = decoded(page)
    assert (picture.size, picture.format) == ((shown, shown), kind)
    assert len(page) < 2**21  # Prefect's older UI shows nothing of a page with several MB
    if kind == "PNG":
        factor = shown // side
        assert np.array_equal(np.asarray(picture)[::factor, ::factor], pixels)


def test_names_of_versions_are_not_addresses() -> None:
    assert (
        markdown.text("vdm@v1.0.0 +- vdm#champion#2: x")
        == "`vdm@v1.0.0`\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}`vdm#champion#2`: x"
    )
    assert markdown.quoted("`vdmctl lineage` of vdm@v1.0.0.") == "`vdmctl lineage` of `vdm@v1.0.0`."


def test_every_likelihood_has_its_own_error() -> None:
    bound = BoundMetrics(**metrics("b" * 64))
    assert markdown.likelihoods(bound) == {
        "test images": "2.0000 ± 0.0946",
        "validation images": "2.1000 ± 0.0500",
        "training images": "1.9000 ± 0.0500",
        "test - training images": "0.1000 ± 0.0200",
        "prior term": "0.0010",
        "reconstruction term": "0.0300",
        "diffusion term": "1.9690",
    }


def test_figures_of_samples_stand_before_those_of_held_out_images(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "samples.png")
    measured = SampleMetrics(**sample_metrics("b" * 64))
    page = markdown.samples(measured, tmp_path / "samples.png", tmp_path / "index.html")
    figure = measured.figures["precision"]
    shown = (figure.of_samples, figure.of_held_out)
    both = " | ".join(each.replace(" +- ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}") for each in shown)
    assert shown[0] != shown[1]
    assert f" | {both} |" in page
