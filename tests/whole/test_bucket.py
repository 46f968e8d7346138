"""Pictures that DVC imports from S3, which moto serves; tests/soak has the loop with them."""

from collections.abc import Iterator

import pytest
from bucket import Bucket
from project import Sandbox

from flows.core import bounded_yaml
from flows.core.errors import Exit, NetworkError
from flows.orchestration.due import find_due
from flows.orchestration.workspace import compose_params, workspace
from flows.project.project import Project
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
