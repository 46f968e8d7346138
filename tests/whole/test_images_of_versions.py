"""The line of a version, and the images that its models were trained on, in real git and DVC, without training."""

import json
import shutil
from collections.abc import Sequence

import numpy as np
import pytest
from forge import METRICS, Forge, comparison
from PIL import Image
from project import Sandbox, one_line

from flows.commands.pipeline import model_to_start_from
from flows.core.errors import Exit, NetworkError, UserError
from flows.core.model import open_model
from flows.core.params_file import read_params
from flows.evaluation.results import BOTH
from flows.images.image_set import open_images
from flows.images.splitting import digest_of
from flows.project.project import Project
from flows.registry import promotion
from flows.registry.evidence import REFUSE, Evidence
from flows.registry.images import Kept, list_training_images, read_kept_images
from flows.registry.promotion import add_figures, decide
from flows.registry.versions import Version, add_version, ancestry, assign
from flows.repository.repository import Repository
from flows.repository.tags import REFUSED
from vdm.choices import Split


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
    documents = {METRICS: json.dumps({"bpd": 2.0, "ancestors": line or None} | figures)}
    forge.version(number, documents=documents)


def test_the_images_of_a_line_are_known_and_the_models_of_which_they_are_not(forge: Forge) -> None:
    kept(forge, "v1.3.0", 0, model_sha256="3" * 64)
    kept(forge, "v1.4.0", 10, ["3"], model_sha256="4" * 64)
    kept(forge, "v1.5.0", 20, ["4", "3"], model_sha256="5" * 64)
    kept(forge, "v1.6.0", 30, ["9"], model_sha256="6" * 64)
    found = {number: forge.opened.registry.resolve(f"v1.{number}.0") for number in (3, 4, 5, 6)}
    assert [each and each.name for each in ancestry(found[5], forge.opened.registry.versions)] == [
        f"vdm@v1.{each}.0" for each in (5, 4, 3)
    ]
    assert list_training_images(forge.opened.registry, found[3]) == (known(0), {})
    assert list_training_images(forge.opened.registry, found[5]) == (known(0, 10, 20), {})
    assert ancestry(found[6], forge.opened.registry.versions) == [found[6], None]
    # Its ancestor is no version.
    assert list_training_images(forge.opened.registry, found[6]) == (known(30), {"9" * 64: "vdm@v1.9.0"})
    forge.cached(forge.store((forge.files / "data/images/train_digests.npy").read_bytes())).unlink()
    for stored in forge.remote.rglob("*"):
        if stored.is_file() and stored.read_bytes() == (forge.files / "data/images/train_digests.npy").read_bytes():
            stored.unlink()
    assert read_kept_images(forge.repository, found[6]) is None  # lost
    assert list_training_images(forge.opened.registry, found[5]) == (known(0, 10, 20), {})


def test_a_model_that_was_fitted_to_the_validation_images_saw_them(forge: Forge) -> None:
    images = forge.files / "data/images"
    described = json.loads((images / "dataset.json").read_text())
    (images / "dataset.json").write_text(json.dumps(described | {"num_validation": 6}))
    np.save(images / "validation.npy", np.zeros((6, 1, 8, 8), np.uint8))
    np.save(images / "validation_digests.npy", digests(100))
    kept(forge, "v1.3.0", 0)
    kept(forge, "v1.4.0", 0, fitted_to=BOTH)
    found = [
        list_training_images(forge.opened.registry, forge.opened.registry.resolve(number)).digests
        for number in ("v1.3.0", "v1.4.0")
    ]
    assert found == [known(0), known(0, 100)]


def test_images_are_known_before_their_transforms_or_after_the_same(forge: Forge) -> None:
    """Without those of the source there are only the digests after the transforms, which others would change."""
    images = forge.files / "data/images"
    described = json.loads((images / "dataset.json").read_text()) | {"transforms": "padded by 2"}
    (images / "dataset.json").write_text(json.dumps(described))
    kept(forge, "v1.3.0", 0, model_sha256="3" * 64)
    for split in ("train", "test"):
        np.save(images / f"{split}_sources.npy", digests(60))
    kept(forge, "v1.4.0", 10, model_sha256="4" * 64)
    before, after = (forge.resolve(number) for number in ("v1.3.0", "v1.4.0"))
    assert list_training_images(forge.opened.registry, before) == (set(), {"3" * 64: "vdm@v1.3.0"})
    assert list_training_images(forge.opened.registry, after) == (known(60), {})
    assert list_training_images(forge.opened.registry, before, "padded by 2") == (known(0), {})
    assert list_training_images(forge.opened.registry, after, "padded by 3") == (set(), {"4" * 64: "vdm@v1.4.0"})
    (images / "train_sources.npy").write_bytes(b"")
    kept(forge, "v1.5.0", 10)
    assert read_kept_images(forge.repository, forge.resolve("v1.5.0")) is None  # damaged


def test_a_picture_is_found_in_the_versions_and_through_their_line(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(forge.root / "person.png")
    (forge.root / "people").mkdir()
    Image.fromarray(pixels).save(forge.root / "people/b.png")
    Image.new("CMYK", (8, 8)).save(forge.root / "people/a.tif")
    Image.new("RGB", (9, 7)).save(forge.root / "people/c.png")
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
    assert {name: (each["is_known"], each["splits"], each["through"]) for name, each in found.items()} == {
        "vdm@v1.3.0": (True, ["train"], ["vdm@v1.3.0"]),
        "vdm@v1.4.0": (True, [], ["vdm@v1.3.0"]),
        "vdm@v1.5.0": (True, ["test"], []),
        "vdm@v1.7.0": (False, [], []),
    }
    several = forge.vdmctl("lineage", "--image", "people", "--json")
    assert json.loads(several.stdout)["versions"] == json.loads(result.stdout)["versions"]
    assert json.loads(several.stdout)["no_images"] == {"a.tif": "in CMYK; convert to RGB"}
    assert "a.tif can be no image of a version: in CMYK" in one_line(several)
    lines = forge.vdmctl("lineage", "--image", "person.png").stdout.splitlines()
    assert lines[1].split() == ["vdm@v1.3.0", "train", "vdm@v1.3.0", "all"]
    assert lines[-1].endswith("not all, so it may have it")
    (forge.root / "half.png").write_bytes((forge.root / "person.png").read_bytes()[:40])
    for arguments, code, said in (
        (["--image", "nobody.png"], Exit.MISSING, "nobody.png does not exist"),
        (["--image", "half.png"], Exit.MISSING, "half.png: damaged"),
        ([], Exit.USAGE, "lineage needs either a version or --image FILE"),
        (["v1.3.0", "--image", "person.png"], Exit.USAGE, "lineage needs either a version or --image FILE"),
    ):
        refused = forge.vdmctl("lineage", *arguments)
        assert refused.returncode == code
        assert said in one_line(refused)


def judged(forge: Forge, number: str, first: int, ancestors: Sequence[str], held_out: int, count: int = 16) -> None:
    """Add a version with so many validation images, which have these digests and levels of their own."""
    images = forge.files / "data/images"
    described = json.loads((images / "dataset.json").read_text()) | {"num_validation": count}
    (images / "dataset.json").write_text(json.dumps(described))
    np.save(images / "validation.npy", np.full((count, 1, 8, 8), held_out % 17, np.uint8))
    np.save(images / "validation_digests.npy", digests(held_out, count))
    stated = {"model_sha256": number[3] * 64, "data_sha256": open_images(images).data_sha256}
    kept(forge, number, first, ancestors, **stated)


def decided(
    forge: Forge, monkeypatch: pytest.MonkeyPatch, challenger: str, champion: str, **settings: object
) -> Evidence:
    """Return the evidence for and against a challenger; all models are the same."""
    params, registry = read_params(forge.root / "params.yaml"), forge.opened.registry
    monkeypatch.setattr(promotion, "fetch_model", lambda *_: open_model(forge.files / "models/vdm"))
    versions = {"challenger": registry.resolve(challenger), "champion": registry.resolve(champion)}
    names = {role: version.name for role, version in versions.items()}
    evaluate = params.evaluate.model_copy(update={"times_per_image": 2} | settings)
    evidence = Evidence(decision="", reason="", **names)
    add_figures(evidence, registry, *versions.values(), settings=evaluate, rule=params.promote)
    evidence.decision, evidence.reason = decide(evidence)
    return evidence


def test_a_challenger_of_unknown_ancestors_is_refused_unless_the_champion_has_them(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the line counts in any case."""
    judged(forge, "v1.3.0", 98, [], held_out=60)
    judged(forge, "v1.4.0", 98, ["9"], held_out=60)
    judged(forge, "v1.5.0", 10, ["9"], held_out=100)
    refused = decided(forge, monkeypatch, "v1.5.0", "v1.3.0")
    assert (refused.champion_unknown, refused.challenger_unknown) == ([], ["vdm@v1.9.0"])
    assert (refused.champion_saw, refused.challenger_saw, refused.num_decided) == (4, 0, 12)
    assert (refused.decision, refused.comparison is None) == (REFUSE, False)
    assert "it is not known on which images vdm@v1.9.0 was trained, so the validation images" in refused.reason
    alike = decided(forge, monkeypatch, "v1.5.0", "v1.4.0", given="class")  # which these models cannot be given
    assert (alike.champion_unknown, alike.challenger_unknown) == (["vdm@v1.9.0"], [])
    assert (alike.champion_saw, alike.num_decided) == (4, 12)
    assert "on 12 validation images that neither is known to have seen" in alike.reason


def test_fewer_than_ten_images_decide_nothing_also_if_these_are_all(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(forge, "v1.3.0", 0, [], held_out=60)
    judged(forge, "v1.4.0", 10, [], held_out=100, count=9)
    found = decided(forge, monkeypatch, "v1.4.0", "v1.3.0")
    assert (found.num_decided, found.comparison, found.decision) == (9, None, REFUSE)
    assert "so 9 are left, and 10 are needed to decide" in found.reason


def test_what_only_informs_is_left_out_if_it_is_out_of_reach(
    forge: Forge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judged(forge, "v1.3.0", 0, [], held_out=60)
    judged(forge, "v1.4.0", 10, [], held_out=80)
    judged(forge, "v1.5.0", 20, [], held_out=70)
    first = {"challenger": "vdm@v1.3.0", "validation_sha256": "a" * 64, "comparison": comparison()}
    with forge.repository.registry_lock():
        message = Evidence(decision=REFUSE, reason="", **first).message("Refuse")
        assign(forge.opened.registry, REFUSED, forge.resolve("v1.3.0"), message)

    def away(repository: Repository, version: Version, *splits: list[Split]) -> Kept | None:
        if version.name != "vdm@v1.5.0":
            raise NetworkError(f"{version.name}: the remote does not answer")
        return read_kept_images(repository, version, *splits)

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "read_kept_images", away)
        alone = decided(forge, monkeypatch, "v1.5.0", "v1.4.0")
    assert alone.num_judged == 1
    assert "judged images that are not here are not counted: vdm@v1.3.0: the remote" in caplog.text
    reached = decided(forge, monkeypatch, "v1.5.0", "v1.4.0")
    assert reached.comparison == alone.comparison
    assert reached.num_judged == 2  # v1.3.0 by some of these images


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
def test_a_version_that_continued_names_its_ancestor_wherever_versions_are_shown(copied: Sandbox) -> None:
    copied.edit("params.yaml", **{"steps: 80": "steps: 10", "start_from: null": "start_from: v1.2.0"})
    copied.reproduce("train", "register", "evaluate")
    copied.git("add", "--all")
    copied.git("commit", "--quiet", "--message=Continue")
    made, start = (
        add_version(Project(copied.folder).repository, "HEAD", "Continued"),
        Project(copied.folder).registry.resolve("v1.2.0"),
    )
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
