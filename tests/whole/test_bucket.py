"""Models and pictures in S3, which moto serves: DVC fetches and imports them.  tests/soak has the loop with them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket import Bucket
from forge import Forge, crown
from project import ROOT, Sandbox

from flows.api import load
from flows.core import bounded_yaml
from flows.core.errors import Exit, NetworkError
from flows.orchestration.due import find_due
from flows.orchestration.workspace import compose_params, workspace
from flows.project.project import Project
from flows.registry.publishing import publish
from flows.repository.sources import update_import


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """Return a bucket with 20 pictures."""
    with Bucket(tmp_path_factory.mktemp("bucket")) as bucket:
        bucket.put(range(20))
        yield bucket


@pytest.fixture(scope="module")
def project(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Return a project with the pictures as its source."""
    project = Sandbox(tmp_path_factory.mktemp("project"))
    bucket.import_pictures(project)
    return project


def test_dvc_gets_the_champion_of_a_bare_repository_without_a_clone(bucket: Bucket, tmp_path: Path) -> None:
    """By the command of the README: the tags are in the repository, and the files in the bucket."""
    forge = Forge(tmp_path / "forge")
    bucket.be_remote(forge.project)
    forge.git("commit", "--all", "--quiet", "--message=The bucket")
    forge.git("push", "--quiet", "--set-upstream", "origin", "main")
    for number in ("v1.0.0", "v1.1.0"):
        forge.version(number)
    crown(forge.project, "v1.0.0")
    publish(forge.repository)
    shutil.rmtree(forge.remote)  # the files are in the bucket, and nowhere else
    shutil.rmtree(forge.cache)
    command = [sys.executable, "-m", "dvc", "artifacts", "get", f"file://{forge.folder}/origin.git", "vdm"]
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for options, number in ((["--stage", "champion"], "v1.0.0"), ([], "v1.1.0"), (["--rev", "v1.0.0"], "v1.0.0")):
        done = subprocess.run(
            [*command, *options, "--force", "--out", number],
            cwd=elsewhere,
            env=os.environ | keys,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert (elsewhere / number / "README.md").read_text() == number
        assert load(elsewhere / number).image_shape == (1, 8, 8)
    shown = (ROOT / "README.md").read_text()
    assert "dvc artifacts get URL vdm --stage champion" in shown


def test_an_import_is_brought_up_to_date_and_a_server_that_does_not_answer_is_one_line(
    bucket: Bucket, project: Sandbox
) -> None:
    root = project.folder
    params, base = compose_params(Project(root), "HEAD"), project.git("rev-parse", "HEAD").strip()
    found = find_due(Project(root), base, bounded_yaml.parse(params))
    assert found.images == "imported"
    bucket.put(range(20, 24))
    with workspace(Project(root), params, base) as place:
        update_import(place.project.repository, found.source, found.newest)
        assert len(list((place.folder / found.source).iterdir())) == 24
        made = place.commit("Retrain: 1.0")
    left = bounded_yaml.parse(project.git("show", f"{made}:data/pictures.dvc"))
    assert left["outs"][0]["nfiles"] == 24
    bucket.stop()
    with workspace(Project(root), params, base) as place, pytest.raises(NetworkError) as raised:
        update_import(place.project.repository, found.source, found.newest)
    assert raised.value.code is Exit.MISSING
    assert str(raised.value).startswith("data/pictures cannot be brought up to date: Could not connect to the endpoint")
