"""Splits and sets that differ are reported, and those that differ by chance alone are not."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from pictures import set_of
from project import ROOT
from sklearn.datasets import load_digits

from benchmarks import contract as change
from flows.contract.drift import agreement, compare_profiles, profile
from flows.contract.duplicates import search
from flows.contract.facts import Facts, measure_facts
from flows.contract.findings import Profile
from flows.core.params_file import read_params
from vdm.choices import Split

pytestmark = pytest.mark.usefixtures("space_of_one_image")  # which is not compared here

CONTRACT = read_params(ROOT / "presets" / "digits.yaml").contract
LABELS = load_digits().target


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """Return 1,000 patches (N,3,32,32) of photographs in random order."""
    images = change.photograph_patches(side=32, step=10)
    return images[np.random.default_rng(0).permutation(len(images))][:1000]


def of(images: np.ndarray) -> Profile:
    return profile(measure_facts(images, 256 if images.shape[1] == 3 else 17), None, [0, 0])


def named(first: Profile, second: Profile) -> set[str]:
    """Return the statistics in which two splits differ."""
    found = compare_profiles({"train": first, "test": second}, {("train", "test"): [0, 0]}, None, CONTRACT)
    return {each.statistic for each in found if each.reported}


def drifted(reference: Profile, ours: Profile, **changes: Any) -> set[str]:
    """Return the statistics in which images differ from a reference."""
    found = compare_profiles({"train": ours}, {}, reference, CONTRACT.model_copy(update=changes))
    return {each.statistic for each in found if each.reported}


def labelled(images: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray) -> set[str]:
    """Return the statistics in which two labelled splits differ."""
    facts: dict[Split, Facts] = {"train": measure_facts(images, 17), "test": measure_facts(others, 17)}
    found = search(set_of(17, train=images, test=others), facts)
    agreements = {("train", "test"): agreement(found["train", "test"], labels, other_labels)}
    profiles = {
        "train": profile(facts["train"], labels, agreement(found["train", "train"], labels, labels)),
        "test": profile(facts["test"], other_labels, [0, 0]),
    }
    return {each.statistic for each in compare_profiles(profiles, agreements, None, CONTRACT) if each.reported}


@pytest.mark.parametrize("seed", range(3))
def test_splits_that_were_drawn_at_random_do_not_differ(seed: int, patches: np.ndarray, digits: np.ndarray) -> None:
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(patches))
    assert named(of(patches[order[:700]]), of(patches[order[700:]])) == set()
    first, second = np.split(generator.permutation(len(digits)), [1300])
    assert labelled(digits[first], LABELS[first], digits[second], LABELS[second]) == set()
    assert drifted(of(digits[first]), of(digits[second])) == set()


def test_few_images_do_not_differ_by_chance(patches: np.ndarray, digits: np.ndarray) -> None:
    for count in (10, 20, 60):
        for part in np.split(patches[:960], 8):
            assert drifted(of(part[:60]), of(part[60 : 60 + count])) == set()
        assert drifted(of(patches[:60]), of(255 - patches[60 : 60 + count])) != set()
    for images in (patches, digits):
        for first in range(0, 700, 70):
            parts = map(of, np.split(images[first : first + 20], [1, 3, 10]))
            assert all(named(one, other) == set() for one, other in combinations(parts, 2))
    assert "image mean" in named(of(patches[:20]), of(255 - patches[:20] // 4))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (lambda images: images[:, ::-1], {"channel 2"}),
        (lambda images: images.swapaxes(2, 3), {"direction"}),
        (partial(change.blurred, sd=0.5), {"sharpness"}),
        (lambda images: images[:, :, ::-1], {"balance down"}),
        (lambda images: 255 - images, {"image mean"}),
    ],
    ids=["bgr", "transposed", "blurred", "upside down", "inverted"],
)
def test_what_was_exchanged_or_blurred_is_named(
    changed: Callable[[np.ndarray], np.ndarray], expected: set[str], patches: np.ndarray
) -> None:
    images = np.concatenate([patches, patches])
    first, second = of(images), of(changed(images))
    assert expected <= drifted(first, second)
    assert named(first, second)


def test_contrast_that_was_changed_in_some_images_is_named(patches: np.ndarray) -> None:
    train, test = patches[:700], patches[700:]
    known = of(test)
    for factor in (0.97, 1.03, 1.3):
        assert "levels that stand out" in named(of(train), of(change.contrast(test, factor)))
    for factor in (0.9, 1.1):
        changed = change.in_a_tenth(train, partial(change.contrast, factor=factor))
        assert "levels that stand out" in named(of(changed), known)


def test_labels_of_other_images_are_named(digits: np.ndarray) -> None:
    train, test = slice(0, 1400), slice(1400, None)
    mixed = change.shuffled(LABELS[test])
    assert labelled(digits[train], LABELS[train], digits[test], mixed) == {"labels of similar images"}
    shifted = LABELS[1399:-1]
    assert "labels of similar images" in labelled(digits[train], LABELS[train], digits[test], shifted)


def test_missing_and_rare_labels_are_named(digits: np.ndarray) -> None:
    train, test = slice(0, 1400), slice(1400, None)
    kept = LABELS[test] != 3
    sets = (digits[train], LABELS[train]), (digits[test][kept], LABELS[test][kept])
    assert labelled(*sets[0], *sets[1]) == {"shares of labels"}
    assert "shares of labels" in labelled(*sets[1], *sets[0])
    few = LABELS[train] != 3
    few[:40] = True
    assert "shares of labels" in labelled(*sets[0], digits[train][few], LABELS[train][few])
    assert labelled(*sets[0], digits[test][:20], LABELS[test][:20]) == set(), "twenty images may lack a label"


def test_labels_of_any_number_do_not_differ_by_chance(digits: np.ndarray) -> None:
    for num_labels in (10, 100, 300):
        labels = np.random.default_rng(num_labels).integers(num_labels, size=len(digits))
        train, test = slice(0, 1300), slice(1300, None)
        assert labelled(digits[train], labels[train], digits[test], labels[test]) == set()


def test_images_of_another_shape_are_not_compared_further(patches: np.ndarray) -> None:
    ours = of(patches)
    assert drifted(ours.model_copy(update={"image_shape": [3, 16, 4]}), ours) == {"shape of images"}


def test_a_limit_of_zero_allows_no_pixel_of_millions_to_change(digits: np.ndarray) -> None:
    ours = of(digits)
    many = 1000 * np.array(ours.histogram)
    changed = many + 30 * np.eye(17, dtype=int)[3] - 30 * np.eye(17, dtype=int)[4]
    reference, other = (ours.model_copy(update={"histogram": counts.tolist()}) for counts in (many, changed))
    assert drifted(reference, reference, max_drift=0.0) == set()
    assert drifted(reference, other, max_drift=0.0) == {"pixel histogram"}
    assert drifted(reference, other) == set()
