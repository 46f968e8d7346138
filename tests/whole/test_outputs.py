"""On a full disk commands leave whole files or the old ones; names in data stay mere text."""

import json
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from project import ROOT
from small import Small

from flows.cli import run
from flows.core.errors import Exit
from flows.core.escaping import markdown, visible
from flows.images.image_set import SPLITS, open_images, save_images

# Great Expectations warns about itself and about pandas.
pytestmark = pytest.mark.filterwarnings("ignore")

GOOGLE = ROOT / "tests/oracles/google_scalar_T0.flax"
SAMPLE = ["sample", "models/vdm", "-n", "4"]
IMPORT = ["import-checkpoint", str(GOOGLE), "--format", "google-vdm", "--image-size", "8", "8", "--out"]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let writes fail that would make a file larger than the limit, as on a full disk.

    Python writes no bytecode meanwhile: it would keep the truncated files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("command", "size", "written"),
    [
        (["register"], 10_000, "models/vdm/weights.safetensors"),
        (["evaluate"], 1500, "reports/evaluation/per_image.csv"),
        (["sample"], 100, "reports/samples/metrics.json"),
        ([*SAMPLE, "--out", "drawn/pictures"], 50, "drawn/pictures/0.png"),
        (["compress", "data/images", "--num-timesteps", "2", "--out", "images.vdmz"], 100, "images.vdmz"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_a_full_disk_keeps_the_old_outputs_and_names_the_file(
    command: list[str], size: int, written: str, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    before = small.outputs()
    with no_file_above(size):
        code = run(command)
    captured = capsys.readouterr()
    assert (code, captured.err) == (Exit.MISSING, f"vdmctl: {written}: File too large\n")
    assert small.outputs() == before
    assert run(command) == Exit.DONE
    assert small.outputs() != before


def test_no_command_writes_into_an_output_of_the_pipeline(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC would remove the file when it runs the stage again, also one that has not run yet."""
    shutil.copy(ROOT / "dvc.yaml", small.folder)
    Path("images.vdmz").touch()
    before = small.outputs()
    for command, place, output in (
        ([*SAMPLE, "--out"], "reports/pictures/mine.png", "reports/pictures"),
        ([*SAMPLE, "--film"], "data/images/film.gif", "data/images"),
        ([*SAMPLE, "--force", "--out"], "reports/samples/samples.png", "reports/samples/samples.png"),
        (["compress", "data/images", "--out"], "data/images/test.vdmz", "data/images"),
        (["decompress", "images.vdmz", "--out"], "models/vdm/decoded", "models/vdm"),
        (["report", "--out"], "reports/pictures/page.html", "reports/pictures"),
        (["evaluate", "models/vdm", "--out"], "models", "models/trained"),
        (IMPORT, "models/vdm", "models/vdm"),
    ):
        assert run([*command, place]) == Exit.USAGE
        line = f"vdmctl: {place}: {output} is an output of the pipeline; choose another place\n"
        assert capsys.readouterr().err == line
    assert small.outputs() == before


HOSTILE = "a|b\n\n# Forged\n<script>alert(1)</script> ![x](http://a/b.png) `code` *bold* &lt; \x1b[31mred\u202e\x07"


def test_a_title_is_only_text_in_card_site_and_log(small: Small) -> None:
    loaded = open_images(Path("data/images"))
    hostile = dict.fromkeys(("title", "name", "homepage", "licence", "split", "transforms"), HOSTILE)
    splits = {split: loaded[split] for split in SPLITS}
    save_images(Path("data/images"), splits, loaded.description.stated | hostile)
    for command in ("validate", "register"):
        assert run([command]) == Exit.DONE
    card = Path("models/vdm/README.md").read_text()
    assert visible(card.replace("\n", "")) == card.replace("\n", "")
    prose = card.partition("## Load it")[0]
    assert not re.search(r"(?<!\\)[<!]|(?<!\\)\*|\n# Forged", prose.replace("!\\[", ""))
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in prose.splitlines() if line.startswith("|")] == [3] * 12
    pages = list(Path("reports/contract/data_docs").rglob("*.html"))
    assert pages
    for page in pages:
        assert "alert(1)" not in page.read_text()


def test_markdown_shows_the_text_and_leaves_good_names_alone() -> None:
    assert markdown("fashion_mnist (http://a/b_c), 8 bits shifted to 4") == (
        "fashion_mnist (http://a/b_c), 8 bits shifted to 4"
    )
    assert markdown("a|b") == r"a\|b"
    assert markdown("_a_ [b](c) <i>") == r"\_a\_ \[b\](c) \<i\>"
    assert markdown("a\nb") == r"a\\u000ab"
    assert markdown(17) == "17"


def test_what_a_terminal_would_act_on_is_escaped() -> None:
    assert visible("\x1b[31m\n\x07\u202e\x7f\x9b") == r"\u001b[31m\u000a\u0007\u202e\u007f\u009b"
    assert visible("grün 数字 +- 0.1") == "grün 数字 +- 0.1"
    assert visible("\udcff") == r"\udcff"
    assert json.loads(visible(json.dumps({"a": HOSTILE}))) == {"a": HOSTILE}
