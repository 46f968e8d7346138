"""`vdmctl validate PATH`, run as a user does."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from project import ROOT, run_vdmctl

from flows.core.errors import Exit


@pytest.fixture
def folder(tmp_path: Path, digits: np.ndarray) -> Path:
    """Return a folder with params.yaml and, in `pictures`, digits as 8-bit PNG images that use every 17th level."""
    shutil.copyfile(ROOT / "presets" / "digits.yaml", tmp_path / "params.yaml")
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(digits[:400, 0]):
        Image.fromarray(np.minimum(image, 15) * 17).save(tmp_path / "pictures" / f"{i:03}.png")
    return tmp_path


def vdmctl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_vdmctl(folder, dict(os.environ), *arguments)


def test_a_folder_outside_the_pipeline(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    result = vdmctl(folder, "validate", "pictures", "--json")
    assert result.returncode == Exit.INVALID_DATA
    report = json.loads(result.stdout)
    assert not report["success"]
    broken = [e["meaning"] for e in report["expectations"] if not e["success"] and e["severity"] == "critical"]
    assert broken == [
        "levels are not spread: almost empty between full ones",
        "levels are used: empty between the lowest and the highest",
    ]
    assert "pictures: transforms: none" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("vdmctl: pictures: broken expectation: levels are not spread")
    assert sorted(folder.rglob("*")) == before


def test_transforms_of_the_parameters_apply_and_the_report_is_a_reference(folder: Path) -> None:
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("num_bits: null", "num_bits: 4").replace("pad: 0", "pad: 1"))
    shutil.copytree(folder / "pictures", folder / "report/data_docs/mine")
    result = vdmctl(folder, "validate", "pictures", "--json", "--out", "report")
    assert result.returncode == Exit.DONE, result.stderr
    assert json.loads(result.stdout)["transforms"] == "padded by 1, 8 bits shifted to 4"
    assert sorted(path.name for path in (folder / "report").iterdir()) == [
        "data_docs",
        "findings.json",
        "findings.png",
    ]
    assert (folder / "report/data_docs/index.html").is_file()
    assert len(list((folder / "report/data_docs/mine").iterdir())) == 400, "other files beside the site stay"
    again = vdmctl(folder, "validate", "pictures", "--reference", "report", "--json")
    assert again.returncode == Exit.DONE, again.stderr
    assert [e["observed"] for e in json.loads(again.stdout)["expectations"] if e["table"] == "drift"] == ["as expected"]


def test_bad_arguments_are_refused_before_anything_is_read(folder: Path) -> None:
    (folder / "report").mkdir()
    (folder / "report/findings.json").write_text("mine")
    for arguments, code, message in (
        (["nowhere"], 5, "nowhere does not exist"),
        (["--json"], 2, "--out and --json need PATH"),
        (["pictures", "--reference", "nowhere"], 5, "nowhere: No such file or directory; a reference is"),
        (["pictures", "--out", "pictures/report"], 2, "--out pictures/report lies in pictures, whose"),
        (["pictures", "--reference", "pictures/../report", "--out", "report"], 2, "--out report would replace --refer"),
        ([], 5, "data/images/dataset.json: No such file"),
    ):
        result = vdmctl(folder, "validate", *arguments)
        assert (result.returncode, result.stdout) == (code, "")
        assert message in result.stderr.splitlines()[-1]
        assert "transforms: " not in result.stderr
    assert (folder / "report/findings.json").read_text() == "mine"
