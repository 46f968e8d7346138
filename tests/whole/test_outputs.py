"""On a full disk commands leave whole files or the old ones; names in data stay mere text."""

import json
import logging
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from project import ROOT, one_line, run_vdmctl
from small import Small

from flows.cli import run
from flows.core.errors import Exit, logged_errors
from flows.core.escaping import markdown, visible
from flows.images.store import SPLITS, load_images, save_images

# Great Expectations warns about itself and about pandas.
pytestmark = pytest.mark.filterwarnings("ignore")

GOOGLE = ROOT / "tests/oracles/google_scalar_T0.flax"
SAMPLE = ["sample", "models/vdm", "-n", "4"]
IMPORT = [
    "import-checkpoint",
    str(GOOGLE),
    "--format",
    "google-vdm",
    "--image-size",
    "8",
    "8",
    "--out",
    "models/imported",
    "--force",
]


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
        (["preset", "cifar10", "--force"], 1_000, "params.yaml"),
        (["register"], 10_000, "models/vdm/weights.safetensors"),
        (["register"], 400, "models/vdm/weights.safetensors"),
        (["evaluate"], 100, "reports/evaluation/metrics.json"),
        (["evaluate"], 1300, "reports/evaluation/per_image.csv"),
        (["sample"], 100, "reports/samples/metrics.json"),
        (["sample"], 1700, "reports/samples/neighbours.png"),
        ([*SAMPLE, "--out", "drawn/grid.png"], 100, "drawn/grid.png"),
        ([*SAMPLE, "--out", "drawn/array.npy"], 200, "drawn/array.npy"),
        ([*SAMPLE, "--out", "drawn/pictures"], 50, "drawn/pictures/0.png"),
        ([*SAMPLE, "--film", "drawn/film.gif"], 500, "drawn/film.gif"),
        (["features"], 1000, "models/features/weights.safetensors"),
        (["report", "--out", "reports/report.html"], 10_000, "reports/report.html"),
        (IMPORT, 100, "models/imported/config.json"),
        (IMPORT, 10_000, "models/imported/weights.safetensors"),
        (["validate", "data/images", "--out", "reports/other"], 100, "reports/other/validation.json"),
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


def test_a_full_disk_leaves_no_part_of_decoded_images(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress", "data/images", "--num-timesteps", "1", "--no-verify", "--out", "images.vdmz"]) == Exit.DONE
    capsys.readouterr()
    with no_file_above(200):
        assert run(["decompress", "images.vdmz", "--out", "decoded"]) == Exit.MISSING
    assert capsys.readouterr().err == "vdmctl: decoded/images.npy: File too large\n"
    assert not list(small.folder.glob("*decoded*"))


def test_great_expectations_says_nothing_of_a_full_disk_itself(small: Small) -> None:
    with no_file_above(40 * 1024):
        result = run_vdmctl(small.folder, small.environment, "validate")
    assert result.returncode == Exit.MISSING
    assert one_line(result) == "vdmctl: reports/validation/data_docs: File too large"


def test_errors_that_are_only_logged_are_collected(caplog: pytest.LogCaptureFixture) -> None:
    with logged_errors("some.library") as errors:
        try:
            raise OSError(28, "full")
        except OSError:
            logging.getLogger("some.library.module").error("An unexpected Exception occurred")
        logging.getLogger("some.library").error("of a thread", exc_info=OSError(28, "full"))
        logging.getLogger("some.library").error("no exception")
        logging.getLogger("some.library").warning("nothing")
    assert [repr(error) for error in errors] == [*["OSError(28, 'full')"] * 2, "RuntimeError('no exception')"]
    assert caplog.records == []


def test_a_folder_that_cannot_be_made_is_named_before_the_work(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (small.folder / "file").write_text("")
    monkeypatch.setattr("flows.commands.inspecting.inspect_images", lambda *_, **__: pytest.fail("validates"))
    monkeypatch.setattr("flows.evaluation.bound.evaluate_split", lambda *_, **__: pytest.fail("evaluates"))
    for command in (["validate", "data/images"], ["evaluate", "models/vdm"]):
        assert run([*command, "--out", "file"]) == Exit.MISSING
        assert capsys.readouterr().err == "vdmctl: file: File exists\n"


def test_outputs_of_stages_that_have_not_run_yet_are_no_place_for_other_results(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "dvc.yaml", small.folder)
    for folder, output in (
        ("reports/evaluation", "reports/evaluation/noise_levels.csv"),
        ("reports/samples", "reports/samples/samples.npy"),
        ("models", "models/trained"),
        ("models/vdm/new", "models/vdm"),
    ):
        assert run(["evaluate", "models/vdm", "--out", folder]) == Exit.USAGE
        line = f"vdmctl: {folder}: {output} is an output of the pipeline; choose another place\n"
        assert capsys.readouterr().err == line


HOSTILE = "a|b\n\n# Forged\n<script>alert(1)</script> ![x](http://a/b.png) `code` *bold* &lt; \x1b[31mred\u202e\x07"


def test_a_title_is_only_text_in_card_site_and_log(small: Small) -> None:
    loaded = load_images(Path("data/images"))
    hostile = dict.fromkeys(("title", "name", "homepage", "licence", "split", "transforms"), HOSTILE)
    splits = {split: getattr(loaded, split) for split in SPLITS}
    save_images(Path("data/images"), splits, loaded.description | hostile)
    for command in ("validate", "register"):
        assert run([command]) == Exit.DONE
    card = Path("models/vdm/README.md").read_text()
    assert visible(card.replace("\n", "")) == card.replace("\n", "")
    prose = card.partition("## Load it")[0]
    assert not re.search(r"(?<!\\)[<!]|(?<!\\)\*|\n# Forged", prose.replace("!\\[", ""))
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in prose.splitlines() if line.startswith("|")] == [3] * 9
    pages = list(Path("reports/validation/data_docs").rglob("*.html"))
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


def test_a_tag_message_is_only_text_on_the_terminal(tmp_path: Path) -> None:
    """The JSON in a champion's tag can contain any character as an escape."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    lock = f"stages:\n  a:\n    cmd: a\n    outs:\n    - path: a\n      md5: {'a' * 32}\n"
    metrics = json.dumps({"bpd": 2.0, "bpd_standard_error": 0.1, "num_images": 3})
    message = "Promote\n\n" + json.dumps({"decision": "promote", "reason": f"\x1b[2J{HOSTILE}\nforged"})
    who = "Test <test@example.org> 1700000000 +0000"
    stream = f"commit refs/heads/main\nmark :1\ncommitter {who}\ndata 0\n"
    for name, content in (("dvc.lock", lock), ("reports/evaluation/metrics.json", metrics)):
        stream += f"M 100644 inline {name}\ndata {len(content)}\n{content}\n"
    for tag in ("vdm@v1.0.0", "vdm#champion#1"):
        stream += f"tag {tag}\nfrom :1\ntagger {who}\ndata {len(message)}\n{message}\n"
    subprocess.run(["git", "fast-import", "--quiet"], input=stream, text=True, cwd=tmp_path, check=True)
    for command in (["lineage", "champion"], ["lineage", "champion", "--json"]):
        program = [sys.executable, "-m", "flows.cli", *command]
        result = subprocess.run(
            program, cwd=tmp_path, env=Small.environment_of(tmp_path), capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert all(line.isprintable() for line in lines), command
        assert not any(line.startswith(("forged", "# Forged", "b")) for line in lines)
        assert r"\u001b[2J" in result.stdout


def test_no_command_writes_into_an_output_of_the_pipeline(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    """DVC would remove the file when it runs the stage again."""
    shutil.copy(ROOT / "dvc.yaml", small.folder)
    Path("images.vdmz").touch()
    before = small.outputs()
    for command, option, place, output in (
        (SAMPLE, "--out", "reports/pictures/mine.png", "reports/pictures"),
        (SAMPLE, "--film", "data/images/film.gif", "data/images"),
        ([*SAMPLE, "--force"], "--out", "reports/samples/samples.png", "reports/samples/samples.png"),
        (["compress", "data/images"], "--out", "data/images/test.vdmz", "data/images"),
        (["decompress", "images.vdmz"], "--out", "models/vdm/decoded", "models/vdm"),
        (["report"], "--out", "reports/pictures/page.html", "reports/pictures"),
    ):
        assert run([*command, option, place]) == Exit.USAGE
        line = f"vdmctl: {place}: {output} is an output of the pipeline; choose another place\n"
        assert capsys.readouterr().err == line
    assert small.outputs() == before


def test_a_report_says_what_is_missing(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report"]) == Exit.DONE
    assert "missing" not in capsys.readouterr().out
    Path("reports/samples/samples.png").unlink()
    Path("reports/training/curves.csv").unlink()
    assert run(["report"]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    assert "samples: reports/samples/samples.png is missing; `dvc repro sample` makes it" in lines
    assert "model card: models/vdm/README.md" in lines
    assert "curves: reports/training/curves.csv is missing; `dvc repro train` makes it" in lines


def test_an_imported_model_is_not_written_into_an_output_of_the_pipeline(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """DVC would remove it, or it would replace the model that was trained."""
    shutil.copy(ROOT / "dvc.yaml", small.folder)
    before = small.outputs()
    for place, output in (
        ("models/vdm", "models/vdm"),
        ("reports/pictures/model", "reports/pictures"),
        ("reports/evaluation", "reports/evaluation/noise_levels.csv"),
    ):
        assert run([*IMPORT[:-3], "--out", place, "--force"]) == Exit.USAGE
        line = f"vdmctl: {place}: {output} is an output of the pipeline; choose another place\n"
        assert capsys.readouterr().err == line
    assert small.outputs() == before


def test_a_preset_replaces_another_and_no_parameters_of_ones_own(small: Small) -> None:
    params, presets = Path("params.yaml"), Path("presets")
    own = params.read_bytes()
    assert run(["preset", "cifar10"]) == Exit.USAGE
    assert params.read_bytes() == own
    for arguments in (["digits", "--force"], ["cifar10"]):
        assert run(["preset", *arguments]) == Exit.DONE
        assert params.read_bytes() == (presets / f"{arguments[0]}.yaml").read_bytes()
