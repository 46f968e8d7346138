"""The line of a version, and the images that its models were trained on, in real git and DVC, without training."""

import json
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from forge import METRICS, Forge
from PIL import Image
from project import Project, one_line

from flows.commands.pipeline import model_to_start_from
from flows.core.errors import Exit, UserError
from flows.core.params_file import read_params
from flows.evaluation.results import BOTH
from flows.images.splitting import digest_of
from flows.registry.images import kept_images, trained_on
from flows.registry.versions import add_version, line, open_registry

KIND = ("none", 17, [1, 8, 8])


def digests(first: int, count: int = 6) -> np.ndarray:
    """Return the digests of `count` images, by numbers that rise from `first`."""
    return np.arange(first, first + count, dtype=np.uint8)[:, None].repeat(16, axis=1)


def known(*firsts: int) -> set[bytes]:
    return {bytes(row) for first in firsts for row in digests(first)}


def kept(
    forge: Forge, number: str, first: int, ancestors: Sequence[str] = (), held_out: int = 200, **figures: object
) -> None:
    """Add a version whose images have these digests; models are known by a digit of their digests."""
    for split, start in (("train", first), ("test", held_out)):
        np.save(forge.files / f"data/images/{split}_digests.npy", digests(start))
    line = [{"name": f"vdm@v1.{digit}.0", "model_sha256": digit * 64, "licence": None} for digit in ancestors]
    lock = forge.lock(number)
    lock["stages"]["all"]["params"] = {
        "params.yaml": {"data": read_params(forge.root / "params.yaml").data.model_dump()}
    }
    documents = {METRICS: json.dumps({"bpd": 2.0, "ancestors": line or None} | figures)}
    forge.version(number, lock, documents)


def test_all_images_of_a_line_are_known_or_none(forge: Forge) -> None:
    kept(forge, "v1.3.0", 0, model_sha256="3" * 64)
    kept(forge, "v1.4.0", 10, ["3"], model_sha256="4" * 64)
    kept(forge, "v1.5.0", 20, ["4", "3"], model_sha256="5" * 64)
    kept(forge, "v1.6.0", 30, ["9"], model_sha256="6" * 64)
    found = {number: open_registry(forge.root).resolve(f"v1.{number}.0") for number in (0, 3, 4, 5, 6)}
    assert [each and each.name for each in line(found[5], open_registry(forge.root).versions)] == [
        f"vdm@v1.{each}.0" for each in (5, 4, 3)
    ]
    assert trained_on(open_registry(forge.root), found[3], KIND) == known(0)
    assert trained_on(open_registry(forge.root), found[5], KIND) == known(0, 10, 20)
    assert line(found[6], open_registry(forge.root).versions) == [found[6], None]
    assert trained_on(open_registry(forge.root), found[6], KIND) is None  # its ancestor is no version
    assert trained_on(open_registry(forge.root), found[0], KIND) is None  # made before digests were kept
    assert trained_on(open_registry(forge.root), found[3], ("pad", 17, [1, 8, 8])) is None
    forge.cached(forge.store((forge.files / "data/images/train_digests.npy").read_bytes())).unlink()
    for stored in forge.remote.rglob("*"):
        if stored.is_file() and stored.read_bytes() == (forge.files / "data/images/train_digests.npy").read_bytes():
            stored.unlink()
    assert kept_images(forge.root, found[6]) is None  # lost
    assert trained_on(open_registry(forge.root), found[5], KIND) == known(0, 10, 20)


def test_a_model_that_was_fitted_to_the_validation_images_saw_them(forge: Forge) -> None:
    images = forge.files / "data/images"
    described = json.loads((images / "dataset.json").read_text())
    (images / "dataset.json").write_text(json.dumps(described | {"num_validation": 6}))
    np.save(images / "validation.npy", np.zeros((6, 1, 8, 8), np.uint8))
    np.save(images / "validation_digests.npy", digests(100))
    kept(forge, "v1.3.0", 0)
    kept(forge, "v1.4.0", 0, fitted_to=BOTH)
    found = [
        trained_on(open_registry(forge.root), open_registry(forge.root).resolve(number), KIND)
        for number in ("v1.3.0", "v1.4.0")
    ]
    assert found == [known(0), known(0, 100)]


def test_a_picture_is_found_in_the_versions_and_through_their_line(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(forge.root / "person.png")
    digest = np.frombuffer(digest_of(pixels[None]), np.uint8)
    plain = digests

    def with_the_picture(first: int, count: int = 6) -> np.ndarray:
        found = plain(first, count)
        found[0] = digest if first in (0, 220) else found[0]
        return found

    monkeypatch.setitem(globals(), "digests", with_the_picture)
    kept(forge, "v1.3.0", 0, model_sha256="3" * 64)
    kept(forge, "v1.4.0", 10, ["3"], model_sha256="4" * 64)
    kept(forge, "v1.5.0", 20, held_out=220, model_sha256="5" * 64)
    kept(forge, "v1.6.0", 30, model_sha256="6" * 64)
    kept(forge, "v1.7.0", 40, ["9"], model_sha256="7" * 64)
    result = forge.vdmctl("lineage", "--image", "person.png", "--json")
    assert result.returncode == 0, result.stderr
    found = {each.pop("version"): each for each in json.loads(result.stdout)["versions"]}
    before = dict.fromkeys(["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.2.0"], (False, [], []))
    assert {name: (each["is_known"], each["splits"], each["through"]) for name, each in found.items()} == before | {
        "vdm@v1.3.0": (True, ["train"], ["vdm@v1.3.0"]),
        "vdm@v1.4.0": (True, [], ["vdm@v1.3.0"]),
        "vdm@v1.5.0": (True, ["test"], []),
        "vdm@v1.7.0": (False, [], []),
    }
    lines = forge.vdmctl("lineage", "--image", "person.png").stdout.splitlines()
    assert lines[4].split() == ["vdm@v1.3.0", "train", "vdm@v1.3.0", "all"]
    assert lines[1].endswith("not all, so it may have it")
    for arguments, code, said in (
        (["--image", "nobody.png"], Exit.MISSING, "nobody.png does not exist"),
        ([], Exit.USAGE, "lineage needs either a version or --image FILE"),
        (["v1.3.0", "--image", "person.png"], Exit.USAGE, "lineage needs either a version or --image FILE"),
    ):
        refused = forge.vdmctl("lineage", *arguments)
        assert refused.returncode == code
        assert said in one_line(refused)


def test_training_does_not_begin_from_a_version_that_is_damaged_or_lost(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(forge.root)
    start = model_to_start_from("v1.0.0")
    assert start
    assert start.name == "vdm@v1.0.0"
    (weights,) = [each["md5"] for each in forge.listing("models/vdm") if each["relpath"] == "weights.safetensors"]
    forge.damage(weights)
    with pytest.raises(
        UserError, match=r"^train\.start_from: vdm@v1\.1\.0: models/vdm/weights.* is damaged"
    ) as damaged:
        model_to_start_from("v1.1.0")
    shutil.rmtree(forge.cache)
    shutil.rmtree(forge.remote)
    with pytest.raises(UserError, match=r"^train\.start_from: vdm@v1\.2\.0: .* neither in DVC's cache nor in") as lost:
        model_to_start_from("v1.2.0")
    with pytest.raises(UserError, match=r"^train\.start_from: there is no version vdm@v9\.0\.0") as unknown:
        model_to_start_from("v9.0.0")
    assert {error.value.code for error in (damaged, lost, unknown)} == {Exit.MISSING}


@pytest.mark.timeout(1800)
def test_a_version_that_continued_names_its_ancestor_wherever_versions_are_shown(copied: Project) -> None:
    copied.edit("params.yaml", **{"steps: 80": "steps: 10", "start_from: null": "start_from: v1.2.0"})
    copied.reproduce("train", "register", "evaluate")
    copied.git("add", "--all")
    copied.git("commit", "--quiet", "--message=Continue")
    made, start = add_version(copied.folder, "HEAD", "Continued"), open_registry(copied.folder).resolve("v1.2.0")
    assert made.metrics.ancestors
    assert [each.name for each in made.metrics.ancestors] == ["vdm@v1.2.0"]
    found = json.loads(copied.vdmctl("lineage", made.name, "--json").stdout)
    assert found["ancestors"] == [
        {
            "name": "vdm@v1.2.0",
            "version": "vdm@v1.2.0",
            "model_sha256": start.metrics.model_sha256,
            "data_sha256": start.metrics.data_sha256,
            "licence": "CC BY 4.0",
        }
    ]
    assert found["data"]["licence"] == "CC BY 4.0"
    first, *_, last = json.loads(copied.vdmctl("models", "--json").stdout)["versions"]
    assert (first["ancestor"], last["ancestor"]["name"]) == (None, "vdm@v1.2.0")
    assert last["num_train"] == start.metrics.num_train
    assert last["validation_bpd"] == made.metrics.validation.bpd  # type: ignore[union-attr]
    header, row, *_, newest = copied.vdmctl("models").stdout.splitlines()
    assert header.split()[:6] == ["version", "stage", "bits/dim", "(validation)", "images", "from"]
    assert (row.count(" noise "), newest.count(" vdm@v1.2.0 ")) == (1, 1)
    assert copied.vdmctl("report", made.name, "--out", "page.html").returncode == 0
    page = (copied.folder / "page.html").read_text()
    assert "<caption>The versions, with the bits/dim of the validation images of each</caption>" in page
    assert "Chart of bits/dim over the number of training images" in page
    evidence = json.loads(copied.vdmctl("promote", "v1.2.0", "--json").stdout)
    assert "champion_saw" not in evidence
    evidence = json.loads(copied.vdmctl("promote", made.name, "--json").stdout)
    assert (evidence["champion_saw"], evidence["challenger_saw"]) == (0, 0)
