"""The whole pipeline under real DVC and real git, on real images."""

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import noise
from PIL import Image
from project import STAGES, Sandbox, cached, in_place_of_a_program, metrics_at, one_line

from flows.core.errors import Exit


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Return a project after `dvc repro`.  Tests that share it must not change it."""
    project = Sandbox(tmp_path_factory.mktemp("project"))
    result = project.new_dvc("repro")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(ran(result.stdout)) == len(STAGES)
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message=Reproduce")
    return project


def ran(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


def test_every_stage_leaves_its_outputs(reproduced: Sandbox) -> None:
    folder = reproduced.folder
    metrics = json.loads((folder / "reports/evaluation/metrics.json").read_text())
    assert 0 < metrics["bpd"] < 8
    assert list((folder / ".vdm" / "trainings").iterdir()) == []
    lock = (folder / "requirements.lock").read_bytes()
    assert metrics["environment"]["requirements_sha256"] == hashlib.sha256(lock).hexdigest()
    assert metrics["environment"]["torch"] == torch.__version__
    for name, count in (("per_image", 365), ("noise_levels", 32)):
        assert len((folder / f"reports/evaluation/{name}.csv").read_text().splitlines()) == 1 + count
    with (folder / "reports/training/curves.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5", "10", "15", "20"]
    with Image.open(folder / "reports/samples/samples.png") as picture:
        assert picture.size == (4 * (32 + 2) + 2, 3 * (32 + 2) + 2)
    samples = np.load(folder / "reports/samples/samples.npy")
    assert (samples.shape, samples.dtype, samples.max() < 17) == ((12, 1, 8, 8), np.uint8, True)
    quality = json.loads((folder / "reports/samples/metrics.json").read_text())
    assert quality["num_images"] == 12
    assert f"fd_{quality['features_sha256'][:8]}" in quality["figures"]


def test_the_card_is_about_the_best_weights_and_its_program_loads_them(reproduced: Sandbox) -> None:
    with (reproduced.folder / "reports/training/curves.csv").open() as file:
        curve = {row["step"]: float(row["validation_bpd"]) for row in csv.DictReader(file)}
    assert [step for step, bpd in curve.items() if np.isfinite(bpd)] == ["10", "20"]
    best = min(("10", "20"), key=curve.__getitem__)
    card = (reproduced.folder / "models/vdm/README.md").read_text()
    kept = f"at step {best}, the best on the validation images, at {curve[best]:.4f} bits/dim."
    assert kept in card.replace("\n", " ")
    program = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert program
    names: dict[str, Any] = {}
    with in_place_of_a_program(reproduced.folder, reproduced.environment):
        exec(program[1], names)
    assert (names["model"].image_shape, names["model"].training) == ((1, 8, 8), False)


def test_outputs_depend_on_nothing_but_their_declared_inputs(reproduced: Sandbox, registry: Sandbox) -> None:
    """Made in another folder, from another commit, at another time, every output of v1.0.0 has the same bytes."""
    ours, theirs = (
        [line for line in project.git("ls-tree", "-r", commit).splitlines() if not line.endswith("\t.dvc/config")]
        for project, commit in ((reproduced, "HEAD"), (registry, "vdm@v1.0.0"))
    )
    assert "dvc.lock" in str(ours)  # which has the digests of what is not in git
    assert ours == theirs


def test_changed_evaluation_parameters_rerun_the_evaluation_and_the_report(reproduced: Sandbox) -> None:
    assert reproduced.up_to_date()
    assert reproduced.git("status", "--porcelain") == ""
    before = json.loads((reproduced.folder / "reports/evaluation/metrics.json").read_text())
    reproduced.edit("params.yaml", **{"times_per_image: 2": "times_per_image: 3"})
    assert ran(reproduced.new_dvc("repro").stdout) == ["evaluate", "report"]
    after = json.loads((reproduced.folder / "reports/evaluation/metrics.json").read_text())
    assert after["times_per_image"] == 3
    assert after["model_sha256"] == before["model_sha256"]
    reproduced.git("checkout", "--quiet", ".")
    assert ran(reproduced.new_dvc("repro").stdout) == []  # the run-cache has it


def test_dvc_shows_metrics_plots_and_the_artifact(reproduced: Sandbox) -> None:
    from dvc.repo import Repo

    repository = Repo(str(reproduced.folder))
    described = reproduced.new_dvc("stage", "list").stdout.splitlines()
    assert [line.split()[0] for line in described] == [stage[0] for stage in STAGES]
    assert not [line for line in described if "Outputs" in line or "Reports" in line or line.endswith("...")]
    shown = repository.metrics.show()[""]["data"]
    assert shown["reports/evaluation/metrics.json"]["data"]["bpd"] > 0
    assert repository.artifacts.read()["dvc.yaml"]["vdm"].path == "models/vdm"
    reproduced.dvc("plots", "show", "--out", "plots")
    page = (reproduced.folder / "plots" / "index.html").read_text()
    shutil.rmtree(reproduced.folder / "plots")
    for words in (
        *("Loss of the training batches and its terms", "Bits/dim of the validation images while training"),
        *("End points of the noise schedule while training", "gamma = -log SNR"),
        *("Bits/dim of each test image", "number of the image"),
        *("Diffusion term at each noise level", "bits/dim per unit of t"),
    ):
        assert words in page
    assert page.count('src="static/workspace_reports_pictures_') == 6


def test_every_split_can_be_evaluated_and_the_metrics_compare_them(reproduced: Sandbox) -> None:
    metrics = json.loads((reproduced.folder / "reports/evaluation/metrics.json").read_text())
    found = {}
    for split, count in (("train", 1269), ("validation", 163), ("test", 365)):
        result = reproduced.vdmctl("evaluate", "--split", split, "models/vdm", "--json")
        found[split] = json.loads(result.stdout)
        assert (found[split]["split"], found[split]["num_images"]) == (split, count)
    figures = metrics["validation"].keys()
    assert metrics["validation"] == {key: found["validation"][key] for key in figures}
    assert {key: metrics[key] for key in figures} == {key: found["test"][key] for key in figures}
    assert metrics["training"]["num_images"] == 365
    assert metrics["generalisation_gap_bpd"] == metrics["bpd"] - metrics["training"]["bpd"]
    both = metrics["bpd_standard_error"], metrics["training"]["bpd_standard_error"]
    assert metrics["generalisation_gap_standard_error"] == pytest.approx(np.hypot(*both))
    assert reproduced.git("status", "--porcelain") == ""


def test_a_failed_stage_leaves_what_dvc_can_restore(reproduced: Sandbox) -> None:
    """The data has one level too many: validation fails, training never starts, and checkout restores everything."""
    images = reproduced.folder / "data" / "images" / "train.npy"
    pixels = np.load(images)
    pixels[0, 0, 0, 0] = 200
    images.unlink()
    np.save(images, pixels)
    failed = reproduced.vdmctl("validate")
    assert failed.returncode == Exit.INVALID_DATA
    assert "no level above 16" in failed.stderr
    refused = reproduced.vdmctl("train")
    assert refused.returncode == 4
    assert "vdmctl validate" in one_line(refused)
    reproduced.dvc("checkout", "--force")
    reproduced.git("checkout", "--quiet", ".")
    assert reproduced.up_to_date()


def test_images_inside_the_output_stay(reproduced: Sandbox) -> None:
    own = reproduced.folder / "data/images/mine"
    own.mkdir()
    for number in range(20):
        Image.fromarray(noise(8, 8, seed=number)).save(own / f"{number}.png")
    source = "source: data/images/mine"
    reproduced.edit("params.yaml", **{"name: digits": "name: image_folder", "source: data/published": source})
    result = reproduced.new_dvc("repro", "download")
    assert result.returncode == 255
    assert "defined as both a dependency and an output in stage: download" in result.stderr
    assert len(list(own.iterdir())) == 20
    reproduced.git("checkout", "--quiet", ".")
    reproduced.dvc("checkout", "--force")


def test_the_report_compares_outputs_with_those_of_the_commit(reproduced: Sandbox) -> None:
    shown = reproduced.vdmctl("report").stdout
    assert re.search(r"\d\.\d{4} \+- \d\.\d{4} bits/dim", shown)
    assert "reports/samples/samples.png" in shown
    line = shown.splitlines()[-1]
    assert "every output is identical to that of commit" in line
    found = json.loads(reproduced.vdmctl("report", "--json").stdout)
    assert found["metrics"] == json.loads((reproduced.folder / "reports/evaluation/metrics.json").read_text())
    assert found["reproduction"] == {"is_equal": True, "line": line, "outdated_stages": []}
    reproduced.edit("params.yaml", **{"times_per_image:": "times_per_image: 3  #"})
    shown = reproduced.vdmctl("report").stdout
    reproduced.git("checkout", "--quiet", "params.yaml")
    assert "report: reports/report.html is older than its inputs; `dvc repro report` makes it again" in shown


def test_a_page_about_versions_is_made_of_their_files_in_git_and_the_remote(registry: Sandbox, tmp_path: Path) -> None:
    project = registry.copy(tmp_path / "project")
    per_image = cached(project, "reports/evaluation/per_image.csv", "", "v1.0.0")
    per_image.chmod(0o644)
    per_image.write_text("image,bpd\n0,1.0\n")
    result = project.vdmctl("report", "v1.0.0", "--out", "page.html")
    assert (result.returncode, "vdm@v1.0.0" in one_line(result)) == (5, True)
    shutil.rmtree(project.folder / ".dvc" / "cache")
    result = project.vdmctl("report", "v1.0.0", "v1.1.0", "--out", "page.html")
    assert result.returncode == 0, result.stderr
    page = (project.folder / "page.html").read_text()
    for version in ("vdm@v1.0.0", "vdm@v1.1.0"):
        assert f"{metrics_at(project, version)['bpd']:.4f}" in page
    assert (
        page.count('class="chart"') == 7
    )  # with the line of versions, and the training log and the schedule, which come from the remote
