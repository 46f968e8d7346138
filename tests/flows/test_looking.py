"""What a run has to do: which run is the newest one, and whether its images are those at the source now."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from forge import GRAPH, Forge
from pictures import load, noise
from PIL import Image

from flows.core import bounded_yaml
from flows.core.errors import Exit, UserError
from flows.images.image_set import ImageSet
from flows.orchestration.arrivals import count_arrivals, damaged_files, has_same_images
from flows.orchestration.due import find_due, find_due_now, list_results
from flows.repository import sources
from flows.repository.commit import Commit
from flows.repository.sources import compare_source, md5_of
from flows.repository.stages import record_images


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """Return a repository whose source `pictures` is tracked by git, and `elsewhere`, which is not, outside."""
    forge = Forge(tmp_path)
    forge.write("pictures/0.png", "first")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/0.png").write_text("first")
    forge.git("add", "--all")
    forge.git("commit", "--quiet", "--message=Pictures")
    return forge


def version(forge: Forge, number: str, source: Path, **data: Any) -> str:
    """Make a version of the images at a source with these parameters; return its commit."""
    lock = forge.lock(number)
    path = str(source)
    lock["stages"]["all"]["deps"].append(
        {"path": path, "hash": "md5", "md5": md5_of(forge.repository, forge.root / source)}
    )
    lock["stages"]["all"]["params"] = {"params.yaml": {"data": {"source": path} | data}}
    forge.version(number, lock)
    return forge.git("rev-parse", "HEAD").strip()


def newest(forge: Forge) -> Commit:
    """Return the commit of the newest run."""
    return Commit(forge.repository, list_results(forge.repository)[0], "the newest run")


def test_a_withdrawn_version_is_no_newer_run(forge: Forge) -> None:
    first = version(forge, "v1.1.0", Path("pictures"))
    second = version(forge, "v1.2.0", Path("pictures"))
    forge.git("tag", "--annotate", "--message=withdrawn", "vdm@v1.1.0!", first)
    assert list_results(forge.repository)[0] == second


def test_the_branch_of_a_run_that_made_nothing_is_no_run(forge: Forge) -> None:
    """It is at the commit from which the run started, which may be what another run made."""
    forge.git("branch", "runs/failed")
    assert list_results(forge.repository) == []
    made = forge.commit("v1.0.0", run="made")
    forge.git("branch", "runs/failed-later", made)
    forge.commit("by hand")
    forge.git("branch", "runs/failed-last")
    assert list_results(forge.repository) == [made]


@pytest.fixture
def shot(forge: Forge) -> Path:
    """Return a folder of pictures of two classes, of which a version was made; 0 and 1 are the same picture."""
    source = forge.folder / "shot"
    for label, numbers in (("a", range(8)), ("b", range(8, 16))):
        (source / label).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(noise(8, 8, seed=max(number, 1))).save(source / label / f"{number:02}.png")
    shutil.rmtree(forge.files / "data/images")
    load(source).folder.rename(forge.files / "data/images")
    text = (forge.root / "params.yaml").read_text()
    for old, new in {"name: digits": "name: image_folder", "source: data/published": f"source: {source}"}.items():
        assert old in text
        text = text.replace(old, new)
    forge.write("params.yaml", text)
    forge.git("commit", "--quiet", "--all", "--message=Parameters")
    version(forge, "v1.0.0", source)
    return source


def test_what_came_and_went_is_counted_as_a_run_counts_it(forge: Forge, shot: Path) -> None:
    """Of two equal pictures one may go, and a file without a byte is no picture yet."""
    assert find_due_now(forge.opened).state == "same"
    for name in ("a/00.png", "b/08.png"):
        (shot / name).unlink()
    (shot / "a/20.png").touch()
    Image.fromarray(noise(8, 8, seed=21)).save(shot / "a/21.png")
    found = find_due_now(forge.opened)
    assert (found.state, found.added, found.empty, found.removed) == ("changed", 2, 1, 1)
    (shot / "a/20.png").unlink()
    arrived = count_arrivals(load(shot), newest(forge))
    assert arrived == (1, 1, "vdm@v1.0.0")


def test_a_damaged_file_that_a_run_left_out_has_not_arrived(forge: Forge, shot: Path) -> None:
    (shot / "a/20.png").touch()
    shutil.rmtree(forge.files / "data/images")
    load(shot, max_damaged=1).folder.rename(forge.files / "data/images")
    version(forge, "v1.1.0", shot)
    assert damaged_files(newest(forge)) == {"a/20.png"}
    Image.fromarray(noise(8, 8, seed=21)).save(shot / "a/21.png")
    found = find_due_now(forge.opened)
    assert (found.state, found.added, found.empty, found.damaged) == ("changed", 1, 0, 1)


def test_renamed_files_hold_the_same_images_and_a_moved_one_does_not(forge: Forge, shot: Path) -> None:
    before = load(shot)

    def is_same(images: ImageSet) -> bool:
        return has_same_images(images, newest(forge))

    assert is_same(before)
    digest = before.data_sha256
    (shot / "a/00.png").rename(shot / "a/99.png")
    (shot / "a/02.png").rename(shot / "a/98.png")
    renamed = load(shot)
    assert renamed.data_sha256 != digest
    assert is_same(renamed)
    (shot / "a/99.png").rename(shot / "b/99.png")
    assert not is_same(load(shot))
    (shot / "b/99.png").unlink()
    assert not is_same(load(shot))


def test_a_version_without_the_stage_that_reads_images_gives_none(forge: Forge) -> None:
    version(forge, "v1.0.0", Path("pictures"))
    with pytest.raises(UserError, match=r"vdm@v1\.0\.0 records no images of the stage download") as error:
        record_images(forge.repository, newest(forge))
    assert error.value.code is Exit.MISSING


def test_a_source_that_git_tracks_is_that_of_the_commit(forge: Forge) -> None:
    """A file that nobody committed changes nothing, and one that was committed is seen before it is checked out."""
    version(forge, "v1.0.0", Path("pictures"))

    def state() -> str:
        parameters = {"data": {"source": "pictures"}}
        return find_due(forge.opened, forge.git("rev-parse", "HEAD").strip(), parameters).images

    assert state() == "same"
    forge.write("pictures/1.png", "second")
    assert state() == "same"
    forge.git("add", "--all")
    forge.git("commit", "--quiet", "--message=More")
    (forge.root / "pictures/1.png").unlink()
    assert state() == "changed"
    with pytest.raises(UserError, match="neither git nor DVC tracks other") as error:
        compare_source(forge.repository, "HEAD", Path("other"), None)
    assert error.value.code is Exit.MISSING


def test_a_source_elsewhere_is_found_however_its_path_is_written(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = forge.folder / "elsewhere"
    version(forge, "v1.0.0", Path(f"{forge.folder}//elsewhere/."))

    def state() -> str:
        return compare_source(forge.repository, "HEAD", folder, newest(forge))

    assert state() == "same"
    (folder / "1.png").write_text("second")
    assert state() == "changed"

    def vanished(*_: object) -> str:
        raise FileNotFoundError(2, "gone", "1.png")

    monkeypatch.setattr(sources, "md5_of", vanished)
    assert state() == "changed"  # while somebody copies
    folder.rename(forge.folder / "gone")
    assert state() == "missing"


def test_the_images_of_the_newest_run_are_those_of_the_same_code_and_parameters(forge: Forge) -> None:
    """Else a machine without the source would train on images of another preset."""
    folder = forge.folder / "elsewhere"
    stages = {"download": {"cmd": "true", "deps": ["code.py", "${data.source}"]}}
    forge.write("dvc.yaml", bounded_yaml.dump(GRAPH | {"stages": GRAPH["stages"] | stages}))
    version(forge, "v1.0.0", folder, resize=None)
    forge.write("dvc.yaml", bounded_yaml.dump(GRAPH | {"stages": GRAPH["stages"] | stages}))
    forge.git("commit", "--quiet", "--all", "--message=Graph")

    def prepared_alike(**data: Any) -> bool:
        parameters = {"data": {"source": str(folder)} | data}
        return find_due(forge.opened, forge.git("rev-parse", "HEAD").strip(), parameters).same_preparation

    assert prepared_alike(resize=None)
    assert not prepared_alike(resize=[8, 8])
    forge.write("code.py", "other")
    forge.git("commit", "--quiet", "--all", "--message=Code")
    assert not prepared_alike(resize=None)


@pytest.mark.parametrize(
    ("stated", "recorded", "start_from", "same"),
    [
        ("champion", "vdm@v1.0.0", "champion", True),  # after a promotion it always is another one
        ("champion", None, "champion", True),  # there was none
        ("null", None, "champion", False),
        ("champion", "vdm@v1.0.0", "vdm@v1.0.0", True),
        ("champion", "vdm@v1.0.0", "vdm@v0.9.0", False),
        ("champion", "vdm@v1.0.0", None, False),
        ("null", None, None, True),
        ("null", None, "pretrained/digits_classes", False),
        ("pretrained/digits_classes", "pretrained/digits_classes", "champion", False),
    ],
)
def test_another_start_is_a_reason_to_run_unless_the_champion_is_another_one(
    stated: str, recorded: str | None, start_from: str | None, same: bool, forge: Forge
) -> None:
    text = (forge.root / "params.yaml").read_text()
    forge.write("params.yaml", text.replace("start_from: null ", f"start_from: {stated} "))
    forge.git("commit", "--quiet", "--all", "--allow-empty", "--message=Start")
    lock = forge.lock("v1.0.0")
    lock["stages"]["all"]["params"] = {"params.yaml": {"train": {"start_from": recorded, "steps": 1}}}
    forge.version("v1.0.0", lock)
    base = forge.git("rev-parse", "HEAD").strip()
    parameters = {"data": {"source": "pictures"}, "train": {"start_from": start_from, "steps": 1}}
    assert find_due(forge.opened, base, parameters).same_parameters is same
    assert not find_due(
        forge.opened, base, parameters | {"train": {"start_from": start_from, "steps": 2}}
    ).same_parameters
