"""What is known of a model: one answer for the page, the comparison and the app, each file read once."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from make_golden import ARCHIVE
from project import Sandbox
from results import Files, opened, sample_metrics

from flows.cli import run
from flows.commands.arguments import project
from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.dossier import versions as of_versions
from flows.dossier.opening import dossier_of, open_dossier
from flows.project.project import Project
from flows.registry import versions
from flows.repository.commit import Commit


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a project with three versions."""
    shutil.unpack_archive(ARCHIVE, tmp_path / "golden", filter="data")
    sandbox = Sandbox.at(tmp_path / "golden")
    sandbox.git("checkout", "--quiet", "--force", "HEAD")
    monkeypatch.chdir(sandbox.folder)
    yield sandbox.folder
    project.cache_clear()


def test_the_quality_of_samples_in_a_model_folder_is_the_same_for_page_comparison_and_app(
    files: Files, tmp_path: Path
) -> None:
    """Those in the folder are of its model; those of the outputs are of another one."""
    images, model = opened(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(tmp_path / layout.REGISTERED, folder)
    stated = sample_metrics(images.data_sha256, model.sha256) | {"nearer_than_held_out": 0.25}
    (folder / "samples").mkdir()
    (folder / "samples/metrics.json").write_text(json.dumps(stated))
    assert files.sample_metrics
    files.sample_metrics.write_text(json.dumps(stated | {"model_sha256": "b" * 64}))
    here = Project(tmp_path)
    for dossier in (open_dossier(here, str(folder)), dossier_of(here, here.model(str(folder)))):
        assert dossier.sample_metrics
        assert dossier.sample_metrics.nearer_than_held_out == 0.25
        assert dossier.metrics.model_sha256 == model.sha256  # which only the outputs have
        assert dossier.samples is None  # the outputs' are another model's
    (folder / "samples/metrics.json").write_text(json.dumps(stated | {"model_sha256": "b" * 64}))
    assert open_dossier(here, str(folder)).sample_metrics is None


@pytest.mark.processes
@pytest.mark.parametrize(
    "command",
    [
        ["report", "v1.2.0", "--out", "page.html"],
        ["compare", "v1.0.0", "v1.2.0"],
        ["export", "v1.2.0", "--out", "exported"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_reads_the_tags_once_and_each_file_of_a_version_once(
    command: list[str], golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter[str]()
    read_tags, fetch_files, content = versions.read_tags, of_versions.fetch_files, Commit.content

    def counted_tags(repository: Any) -> Any:
        read["tags"] += 1
        return read_tags(repository)

    def counted_files(repository: Any, version: Any, paths: list[str], folder: Path) -> None:
        read.update(f"{version.name} {path}" for path in paths)
        fetch_files(repository, version, paths, folder)

    def counted_content(commit: Commit, path: Path | str) -> bytes | None:
        found = content(commit, path)
        read[f"{commit.name} {path}"] += found is not None
        return found

    monkeypatch.setattr(versions, "read_tags", counted_tags)
    monkeypatch.setattr(of_versions, "fetch_files", counted_files)
    monkeypatch.setattr(Commit, "content", counted_content)
    assert run(command) == Exit.DONE
    assert read["tags"] == 1
    assert len(read) > 1
    assert max(read.values()) == 1, read


@pytest.mark.processes
def test_metrics_that_were_edited_after_the_run_are_not_shown(golden: Path) -> None:
    """As a commit on top of the run's, tagged as a version."""
    sandbox = Sandbox.at(golden)
    sandbox.git("checkout", "--quiet", "vdm@v1.2.0")
    metrics = golden / layout.METRICS
    found = json.loads(metrics.read_text())
    metrics.write_text(json.dumps(found | {"bpd": 0.5}))
    sandbox.git("commit", "--quiet", "--all", "--message=Better")
    sandbox.git("tag", "--annotate", "--message=Better", "vdm@v1.3.0")
    with pytest.raises(UserError, match=r"^vdm@v1\.3\.0: reports/evaluation/metrics\.json differs from its md5 in dvc"):
        _ = open_dossier(Project(golden), "v1.3.0").metrics
