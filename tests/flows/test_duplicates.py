"""Copies of images in another split are found although they were changed, and images that are similar by chance not."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import set_of

from benchmarks import contract as change
from flows.contract.duplicates import Pairs, lookalikes, search, shares_by_chance
from flows.contract.facts import measure_facts
from flows.contract.inspection import inspect_images
from flows.images.image_set import ImageSet, open_images, save_images

pytestmark = pytest.mark.usefixtures("space_of_one_image")  # which is not compared here

DISTANCE = 0.03


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """Return 1,044 patches (N,3,32,32) of photographs in random order: next ones overlap, as some skies do."""
    images = change.photograph_patches(side=32, step=10)
    return images[np.random.default_rng(0).permutation(len(images))]


def compared(num_levels: int = 256, **splits: np.ndarray) -> Pairs:
    """Return the similar images of the splits."""
    return of_set(set_of(num_levels, **splits))


def of_set(image_set: ImageSet) -> Pairs:
    """Return the similar images of the splits of a set."""
    facts = {split: measure_facts(image_set[split], image_set.num_levels) for split in image_set.splits}
    return lookalikes(search(image_set, facts), DISTANCE)


@pytest.mark.parametrize(
    ("copied", "expected", "moved"),
    [
        (partial(change.one_pixel, num_levels=256), 0.95, "as it is"),
        (partial(change.noisy, sd=2, num_levels=256), 0.9, "as it is"),
        (lambda images: images[..., ::-1], 0.9, "mirrored"),
        (lambda images: change.noisy(images, 2, 256)[..., ::-1], 0.9, "mirrored"),
        (lambda images: np.roll(images, 1, axis=3), 0.9, "as it is"),
        (partial(change.jpeg, quality=95), 0.9, "as it is"),
    ],
    ids=["pixel", "noise", "mirrored", "both", "shifted", "jpeg"],
)
def test_copies_are_found(
    copied: Callable[[np.ndarray], np.ndarray], expected: float, moved: str, patches: np.ndarray
) -> None:
    train, test = patches[:800], patches[800:]
    originals = np.arange(0, 800, 10)
    found = compared(train=train, test=np.concatenate([test, copied(train[originals])]))["train", "test"]
    named = found[found["excess"]].set_index("image")["of_image"]
    right = named.reindex(np.arange(len(test), len(test) + len(originals))).to_numpy() == originals
    assert right.mean() >= expected
    of_copies = found[found["image"] >= len(test)]
    assert (of_copies["moved"] == moved).mean() > 0.8


def test_images_that_are_similar_by_chance_are_listed_and_not_flagged(patches: np.ndarray, digits: np.ndarray) -> None:
    for num_levels, images in ((256, patches), (17, digits[:1000])):
        parts = np.split(images, [700, 850])
        found = compared(num_levels, train=parts[0], validation=parts[1], test=parts[2])
        assert [pair for pair, alike in found.items() if alike["excess"].any()] == []
    assert list(found) == [("train", "validation"), ("train", "test"), ("validation", "test")]
    listed = compared(train=patches[:800], test=patches[800:])["train", "test"]
    assert len(listed) > 10
    assert listed["by_chance"].is_monotonic_increasing


def test_one_mirrored_copy_in_any_pair_of_splits_is_found(digits: np.ndarray, tmp_path: Path) -> None:
    train, validation, test = (np.array(part) for part in np.split(digits, [600, 1200]))
    test[3], test[4], validation[5] = validation[7, :, :, ::-1], train[8, :, :, ::-1], train[9, :, :, ::-1]
    save_images(tmp_path, {"train": train, "validation": validation, "test": test}, {"name": "x", "num_levels": 17})
    found = of_set(open_images(tmp_path))
    flagged = {pair: alike["image"][alike["excess"]].tolist() for pair, alike in found.items()}
    assert flagged == {("train", "validation"): [5], ("train", "test"): [4], ("validation", "test"): [3]}


@pytest.mark.filterwarnings("ignore")  # Great Expectations and its libraries warn on import
def test_of_many_images_a_sample_is_searched_for_and_said_so(
    digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, validation, test = (np.array(part) for part in np.split(digits[:1200], [600, 620]))
    test[:20], test[5] = train[:20], train[30, :, :, ::-1]  # 19 are equal, which the digests find
    splits = {"train": train, "validation": validation, "test": test}
    save_images(tmp_path, splits, {"name": "x", "num_levels": 17})
    images, settings = open_images(tmp_path), change.PARAMS.contract.model_copy(update={"max_leaked": 1.0})
    whole = inspect_images(settings, images, None).findings
    assert "searched" not in json.dumps(whole.model_dump(exclude_unset=True))
    monkeypatch.setattr("flows.contract.duplicates.QUERIES", 50)
    facts = {split: measure_facts(images[split], 17) for split in images.splits}
    pairs = search(images, facts)
    assert [len(pairs[pair]) for pair in (("train", "validation"), ("train", "test"))] == [20, 50]
    chosen = pairs["train", "test"]["image"].to_numpy()
    assert (chosen[0], chosen[-1]) == (5, 579)  # the first and the last that equal no training image
    assert np.ptp(np.diff(chosen[1:])) <= 1
    findings = inspect_images(settings, images, None).findings
    found = {(each.first, each.second): each for each in findings.alike}
    assert {pair: each.searched for pair, each in found.items()} == {
        ("train", "validation"): None,
        ("train", "test"): 50,
        ("validation", "test"): 50,
    }
    assert found["train", "test"].excess == 1
    (warning,) = [each.words for each in findings.failed("warning") if "look like" in each.meaning]
    said = "(of a sample: 50 of test were searched for in train; 50 of test were searched for in validation)"
    assert f"no more often than by chance {said}: 1 of 1200 images" in warning


def test_an_image_in_a_set_that_repeats_itself_is_expected(digits: np.ndarray) -> None:
    """Frames of a film: every image has a near copy in each split, so a test image with one is no surprise."""
    frames = digits[:200].repeat(3, axis=0)
    frames[:, 0, 0, 0] = np.tile([0, 1, 2], 200)
    frames = frames[np.random.default_rng(0).permutation(600)]
    found = compared(17, train=frames[:400], test=frames[400:])["train", "test"]
    assert len(found) > 150
    assert not found["excess"].any()


def test_what_cannot_be_compared_is_left_out(digits: np.ndarray) -> None:
    """test_validate.py has sets of other shapes and types, which are invalid."""
    for train, test in (
        (digits[:50], digits[:20]),
        (digits[:5], digits[5:10]),
        (digits[:50, :, :2], digits[50:70, :, :2]),
        (np.repeat(digits[:1], 50, axis=0), digits[:20]),
        (np.zeros((50, 1, 8, 8), dtype=np.uint8), np.ones((20, 1, 8, 8), dtype=np.uint8)),
    ):
        assert not compared(17, train=train, test=test)["train", "test"]["excess"].any()


def test_chance_is_counted_where_images_are_and_extrapolated_where_none_is() -> None:
    usual = pd.DataFrame({"relative": np.random.default_rng(0).random(20_000) ** (1 / 6), "distance": 0.0})
    difference = np.array([0.1, 0.3, 0.5, 0.8])  # the share below d is d^6
    shares = shares_by_chance(usual, 1, difference)
    assert (shares >= 0.9 * difference**6).all()
    assert shares[0] < 100 * difference[0] ** 6
    assert shares[3] < 1.1 * difference[3] ** 6
    assert (shares_by_chance(usual[:10], 1, difference) == 1).all()


def test_as_many_as_by_chance_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def num_flagged(by_chance: np.ndarray) -> int:
        """Return how many of the closest images chance does not explain, given the expected number up to each."""
        pairs = pd.DataFrame({"relative": np.arange(len(by_chance)), "distance": 0.0})
        monkeypatch.setattr("flows.contract.duplicates.shares_by_chance", lambda *_: by_chance / len(by_chance))
        return int(lookalikes({("a", "a"): pairs, ("a", "b"): pairs}, 1)["a", "b"]["excess"].sum())

    expected = np.arange(1.0, 200)
    assert num_flagged(expected) == 0
    assert num_flagged(expected + 2 * np.sqrt(expected)) == 0
    assert num_flagged(expected / 3) == 199
    assert num_flagged(np.concatenate([np.full(5, 1e-3), 200 + expected])) == 5
    assert num_flagged(np.array([1e-7])) == 1
    assert num_flagged(np.array([1e-3])) == 0
