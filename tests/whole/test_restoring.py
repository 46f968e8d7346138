"""Results that were made before are restored by DVC's cache and run cache; no stage is repeated for them."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from project import Sandbox, cached
from ruamel.yaml import YAML

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.orchestration.workspace import Instructions, Run, compose_params, workspace
from flows.project.project import Project
from flows.repository import stages
from flows.repository.commit import Commit
from flows.repository.sources import check_out_source, is_tracked, update_import
from flows.repository.stages import restore_outputs, restore_stage
from flows.train_vdm import find_results

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(1800)


def tried(project: Sandbox, base: str, *, shared: bool = False, **overrides: int) -> tuple[bool, str | None]:
    """Return whether a run from the commit would have nothing to run, and the commit that has its results."""
    given = Instructions(overrides={f"train.{key}": value for key, value in overrides.items()})
    params = compose_params(Project(project.folder), base, given)
    with workspace(Project(project.folder), params, project.git("rev-parse", base).strip()) as place:
        complete = restore_outputs(place.project.repository, shared=shared)
        return complete, find_results(place) if complete else None


def restored(place: Run) -> str:
    """Restore the results of an earlier version, and commit them as a run does."""
    assert restore_outputs(place.project.repository, shared=False)
    return place.commit("Retrain: 1.0")


def edit_lock(project: Sandbox, edit: str) -> None:
    """Commit a dvc.lock without the stages after `download`, or with outputs of `train` that nobody has."""
    path, yaml = project.folder / layout.DVC_LOCK, YAML()
    lock = yaml.load(path)
    if edit == "emptied":
        lock["stages"] = {}
    else:
        for out in lock["stages"]["train"]["outs"]:
            out["md5"] = "0" * 32 + out["md5"][32:]
    yaml.dump(lock, path)
    project.git("commit", "--quiet", "--all", "--message=Lock")


def test_the_results_of_the_commit_itself_are_found_and_none_of_other_parameters_or_code(copied: Sandbox) -> None:
    head = copied.git("rev-parse", "HEAD").strip()
    assert tried(copied, "HEAD") == (True, head)
    assert copied.git("branch", "--list", "runs/*") == ""
    assert tried(copied, "HEAD", steps=7) == (False, None)
    copied.edit("flows/training/fitting.py", **{'"""The stage': '"""A stage'})
    copied.git("commit", "--quiet", "--all", "--message=Code")
    assert tried(copied, "HEAD") == (False, None)


@pytest.mark.parametrize("edit", ["emptied", "foreign"])
def test_results_of_an_earlier_run_are_restored_whatever_the_lock_says(edit: str, copied: Sandbox) -> None:
    """DVC itself would train again where the lock has outputs that are not in this cache."""
    edit_lock(copied, edit)
    params = compose_params(Project(copied.folder), "HEAD")
    with workspace(Project(copied.folder), params, copied.git("rev-parse", "HEAD").strip()) as place:
        made = restored(place)
        assert (place.folder / layout.TRAINED / "weights.safetensors").is_file()
        assert (place.folder / layout.METRICS).is_file()
    assert tried(copied, "HEAD") == (True, made)


def test_the_images_of_an_earlier_run_are_not_read_anew(copied: Sandbox) -> None:
    """`download` is not in the run cache: v1.1.0 has the images of v1.0.0, and the checkout has others."""
    params = copied.git("show", "vdm@v1.1.0:params.yaml")
    with workspace(Project(copied.folder), params, copied.git("rev-parse", "HEAD").strip()) as place:
        assert restore_outputs(place.project.repository, shared=False)
        assert find_results(place) == copied.git("rev-parse", "vdm@v1.1.0^{commit}").strip()


def test_files_that_only_the_remote_has_are_pulled(copied: Sandbox) -> None:
    cache = copied.folder / ".dvc" / "cache" / "files"
    cache.rename(copied.folder.parent / "lost")
    assert tried(copied, "HEAD")[0]


def test_a_silent_remote_matters_to_machines_that_share_versions(
    copied: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may have made what would take hours here."""
    monkeypatch.setattr(stages, "pull", Mock(side_effect=NetworkError("DVC's remote cannot be read")))
    assert tried(copied, "HEAD", steps=7) == (False, None)
    with pytest.raises(NetworkError):
        tried(copied, "HEAD", shared=True, steps=7)


def test_a_remote_that_fails_after_it_answered_is_an_error_of_the_network(
    copied: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the run tries again, and on a machine alone goes on without the remote."""
    cached(copied, "models/trained", "weights.safetensors", "v1.2.0").unlink()
    copied.dvc("remote", "modify", "--local", "store", "url", "/dev/null")
    monkeypatch.setattr(stages, "pull", Mock())
    with pytest.raises(NetworkError, match="DVC's remote cannot be read: "):
        tried(copied, "HEAD")
    monkeypatch.setattr(stages, "pull", Mock(side_effect=NetworkError("no answer")))
    assert tried(copied, "HEAD") == (False, None)


def test_a_stage_that_another_machine_made_is_restored_and_an_outage_is_an_error_of_the_network(
    copied: Sandbox,
) -> None:
    head = copied.git("rev-parse", "HEAD").strip()
    with workspace(Project(copied.folder), copied.git("show", "HEAD:params.yaml"), head) as place:
        assert restore_outputs(place.project.repository, shared=True)
        lost = cached(copied, "models/trained", "weights.safetensors", "v1.2.0")
        weights = place.folder / layout.TRAINED / "weights.safetensors"
        for file in (lost, weights):
            file.unlink()
        restore_stage(place.project.repository, "train")
        assert weights.is_file()
        restore_stage(place.project.repository, "register")  # it is there
        for file in (lost, weights):
            file.unlink()
        Sandbox.at(place.folder).dvc("remote", "modify", "--local", "store", "url", "/dev/null")
        with pytest.raises(NetworkError, match="DVC's remote cannot be read: "):
            restore_stage(place.project.repository, "train")


def test_a_source_that_dvc_tracks_is_there_or_said_to_be_missing(copied: Sandbox) -> None:
    """Also on a machine whose cache lacks it."""
    pictures = copied.folder / "data" / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"a")
    copied.dvc("add", "data/pictures")
    copied.dvc("push", "data/pictures.dvc")
    copied.git("add", "data")
    copied.git("commit", "--quiet", "--message=Pictures")
    source, cache = Path("data/pictures"), copied.folder / ".dvc" / "cache"
    with workspace(Project(copied.folder), copied.git("show", "HEAD:params.yaml"), "HEAD") as place:
        assert is_tracked(place.project.repository, source)
        assert not is_tracked(place.project.repository, Path("data/published"))
        for _ in ("from the cache", "from the remote"):
            check_out_source(place.project.repository, source)
            assert (place.folder / source / "a.png").read_bytes() == b"a"
            shutil.rmtree(place.folder / source)
            shutil.rmtree(cache)
        Sandbox.at(place.folder).dvc("remote", "modify", "--local", "store", "url", str(cache))
        with pytest.raises(
            UserError, match=r"^data.source: not all files of data/pictures .*; `dvc push data/"
        ) as raised:
            check_out_source(place.project.repository, source)
        assert raised.value.code is Exit.MISSING


def test_an_import_goes_on_from_where_the_newest_run_left_it_unless_it_is_another_one(copied: Sandbox) -> None:
    """The second update downloads nothing; a person's import from elsewhere stays."""
    parent = copied.folder.parent
    for name, content in (("there", b"a"), ("elsewhere", b"b")):
        (parent / name).mkdir()
        (parent / name / "a.png").write_bytes(content)
    source, params = Path("data/pictures"), copied.git("show", "HEAD:params.yaml")
    copied.dvc("import-url", str(parent / "there"), "data/pictures")
    copied.git("add", "data")
    copied.git("commit", "--quiet", "--message=Pictures")
    (parent / "there" / "b.png").write_bytes(b"c")
    with workspace(Project(copied.folder), params, "HEAD") as place:
        update_import(place.project.repository, source, None)
        newest = place.commit("Retrain: 1.0")
    assert copied.git("diff", "--name-only", "HEAD", newest).split() == ["data/pictures.dvc"]
    with workspace(Project(copied.folder), params, "HEAD") as place:
        update_import(place.project.repository, source, Commit(place.project.repository, newest, "the newest run"))
        left = copied.git("show", f"{newest}:data/pictures.dvc")
        assert (place.folder / "data" / "pictures.dvc").read_text() == left
        assert (place.folder / source / "b.png").read_bytes() == b"c"
    shutil.rmtree(copied.folder / source)
    copied.dvc("import-url", "--force", str(parent / "elsewhere"), "data/pictures")
    copied.git("commit", "--quiet", "--all", "--message=Others")
    with workspace(Project(copied.folder), params, "HEAD") as place:
        update_import(place.project.repository, source, Commit(place.project.repository, newest, "the newest run"))
        assert (place.folder / source / "a.png").read_bytes() == b"b"


def test_a_change_of_the_parameters_is_committed_although_dvc_writes_gits_index(copied: Sandbox) -> None:
    """The new file has the size of the old one, and may be of the same second."""
    params = compose_params(Project(copied.folder), "HEAD", Instructions(overrides={"train.steps": 81}))
    with workspace(Project(copied.folder), params, copied.git("rev-parse", "HEAD").strip()) as place:
        restore_outputs(place.project.repository, shared=False)
        made = place.commit("Retrain: 1.0")
    assert "steps: 81" in copied.git("show", f"{made}:params.yaml")
