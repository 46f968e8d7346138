"""Splits and sets that differ are reported, and those that differ by chance alone are not."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from project import ROOT
from sklearn.datasets import load_digits

from benchmarks import corruptions as change
from flows.core.errors import UserError
from flows.core.params_file import read_params
from flows.validation.drift import differences, from_reference, link, profile, read_reference, shifts
from flows.validation.facts import measure
from flows.validation.report import Profile
from flows.validation.tables import difference_rows

pytestmark = pytest.mark.usefixtures("space_of_one_image")  # which is not compared here

CONTRACT = read_params(ROOT / "presets" / "digits.yaml").contract
LABELS = load_digits().target


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    """Return 1,000 patches (N,3,32,32) of photographs in random order."""
    images = change.photograph_patches(side=32, step=10)
    return images[np.random.default_rng(0).permutation(len(images))][:1000]


def of(images: np.ndarray, labels: np.ndarray | None = None) -> Profile:
    return profile(measure(images, 256 if images.shape[1] == 3 else 17), labels)


def named(first: Profile, second: Profile) -> set[str]:
    """Return the statistics in which two splits differ."""
    return {shift.statistic for shift in shifts(first, second, CONTRACT.max_shift) if shift.distance > shift.limit}


def drifted(reference: Profile, ours: Profile) -> set[str]:
    """Return the statistics in which images differ from a reference."""
    return {shift.statistic for shift in from_reference(reference, ours, CONTRACT) if shift.distance > shift.limit}


@pytest.mark.parametrize("seed", range(3))
def test_splits_that_were_drawn_at_random_do_not_differ(seed: int, patches: np.ndarray, digits: np.ndarray) -> None:
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(patches))
    assert named(of(patches[order[:700]]), of(patches[order[700:]])) == set()
    order = generator.permutation(len(digits))
    first, second = (of(digits[part], LABELS[part]) for part in np.split(order, [1300]))
    assert named(first, second) == set()
    assert drifted(first, second) == set()


@pytest.mark.parametrize(("odd", "found"), [(90, set()), (400, {"image mean"}), (0, {"image mean"})])
def test_one_percent_of_odd_images_do_not_differ_by_chance(odd: int, found: set[str]) -> None:
    generator = np.random.default_rng(0)
    levels = generator.normal(4, 0.3, 20_000)
    levels[:110] = levels[10_000 : 10_000 + odd] = 14  # 1.1% of the first half
    images = np.clip(levels[:, None, None, None] + generator.normal(0, 1, (20_000, 1, 8, 8)), 0, 16)
    first, second = (of(part.round().astype(np.uint8)) for part in np.split(images, 2))
    assert named(first, second) & {"image mean"} == found


@pytest.mark.parametrize("count", [10, 20, 60])
def test_few_images_do_not_drift_by_chance(count: int, patches: np.ndarray) -> None:
    for part in np.split(patches[:960], 8):
        assert drifted(of(part[:60]), of(part[60 : 60 + count])) == set()
    assert "histogram of channel 2" in drifted(of(patches[:60]), of(255 - patches[60 : 60 + count]))


def test_a_limit_of_zero_allows_no_drift(patches: np.ndarray) -> None:
    exact = CONTRACT.model_copy(update={"max_drift": 0.0})
    limits = {shift.limit for shift in from_reference(of(patches[:60]), of(patches[60:80]), exact)[:4]}
    assert limits == {0.0}


def test_splits_of_a_few_images_do_not_differ_by_chance(patches: np.ndarray, digits: np.ndarray) -> None:
    for images in (patches, digits):
        for first in range(0, 700, 70):
            parts = map(of, np.split(images[first : first + 20], [1, 3, 10]))
            assert all(named(one, other) == set() for one, other in combinations(parts, 2))
    assert "image mean" in named(of(patches[:10]), of(255 - patches[:10] // 4))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (lambda images: images[:, ::-1], {"histogram of channel 2"}),
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
    reference, ours = of(patches[:600]), of(changed(patches[:600]))
    assert expected <= drifted(reference, ours)
    assert named(of(patches[600:]), ours)


def test_contrast_that_was_changed_in_some_images_is_named(patches: np.ndarray) -> None:
    train, test = patches[:700], patches[700:]
    known = of(test)
    for factor in (0.97, 1.03, 1.3):
        assert "levels that stand out" in named(of(train), of(change.contrast(test, factor)))
    for factor in (0.9, 1.1):
        changed = change.in_a_tenth(train, partial(change.contrast, factor=factor))
        assert "levels that stand out" in named(of(changed), known)


def test_labels_of_other_images_are_named(digits: np.ndarray) -> None:
    reference = of(digits, LABELS)
    assert named(of(digits, change.shuffled(LABELS)), reference) == {"link of labels and images"}
    assert "link of labels and images" in named(of(digits[:1400], LABELS[:1400]), of(digits[1400:], LABELS[:-1400]))


def test_missing_and_rare_labels_are_named(digits: np.ndarray) -> None:
    train, test = slice(0, 1400), slice(1400, None)
    whole, kept = of(digits[train], LABELS[train]), LABELS[test] != 3
    without = of(digits[test][kept], LABELS[test][kept])
    assert "label 3 missing in the second" in named(whole, without)
    assert "label 3 missing in the first" in named(without, whole)
    half = (LABELS != 3) | (np.arange(len(LABELS)) % 2 == 0)
    assert named(of(digits, LABELS), of(digits[half], LABELS[half])) <= {"shares of labels"}
    few = LABELS[train] != 3
    few[:40] = True
    assert "shares of labels" in named(whole, of(digits[train][few], LABELS[train][few]))
    assert named(whole, of(digits[test][:20], LABELS[test][:20])) == set(), "twenty images may lack a label"


@pytest.mark.parametrize("num_labels", [10, 100, 300])
def test_labels_of_any_number_do_not_differ_by_chance(num_labels: int, patches: np.ndarray) -> None:
    labels = np.random.default_rng(num_labels).integers(num_labels, size=len(patches))
    train, test = slice(0, 780), slice(780, None)
    assert named(of(patches[train], labels[train]), of(patches[test], labels[test])) == set()


def test_labels_of_one_image_each_have_no_link_to_images(digits: np.ndarray) -> None:
    assert link(of(digits, np.arange(len(digits))), of(digits, LABELS)) == []


@pytest.mark.parametrize(("number", "missing"), [(1, False), (4, False), (5, True), (12, True)])
def test_a_label_of_a_few_images_that_are_all_in_a_small_split(number: int, missing: bool, digits: np.ndarray) -> None:
    """Of 2,100 images, four are all among the 100 of the test with a probability of 5e-6, five with 2e-7."""
    train, test = np.resize(digits, (2000, 1, 8, 8)), digits[:100]
    labels = LABELS[:100].copy()
    labels[:number] = 10
    found = named(of(train, np.resize(LABELS, 2000)), of(test, labels))
    assert ("label 10 missing in the first" in found) == missing


def test_a_reference_of_an_older_version_is_compared_by_what_it_has(patches: np.ndarray) -> None:
    ours = of(patches)
    old = Profile(histogram=ours.histogram[::-1], mean=ours.mean, deviation=ours.deviation)
    assert {shift.statistic for shift in from_reference(old, ours, CONTRACT)} == {"pixel histogram"}
    assert of(patches).model_dump() == Profile.model_validate(ours.model_dump()).model_dump()


def test_a_reference_of_another_shape_is_named(patches: np.ndarray) -> None:
    ours = of(patches)
    for other in (ours.model_copy(update={"image_shape": shape}) for shape in ([3, 16, 4], [1, 8, 8])):
        assert {shift.statistic for shift in from_reference(other, ours, CONTRACT)} == {"shape of images"}


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((0, 1, 8, 8)),
        np.full((9, 1, 8, 8), np.nan),
        np.zeros((9, 0, 8, 8), dtype=np.uint8),
        np.zeros(9),
        np.zeros((9, 1, 2, 2, 2)),
    ],
)
def test_what_is_no_image_has_no_differences(images: np.ndarray) -> None:
    found = profile(measure(images, 17), np.arange(len(images)))
    assert named(found, found) == set()


def test_a_limit_of_zero_names_a_few_pixels_of_millions(digits: np.ndarray) -> None:
    exact = CONTRACT.model_copy(update={"max_drift": 0.0})
    ours = of(digits)
    many = [1000 * count for count in ours.histogram]
    changed = list(many)
    changed[3] += 30
    changed[4] -= 30
    reference, other = (ours.model_copy(update={"histogram": counts}) for counts in (many, changed))
    for train, differs in ((reference, False), (other, True)):
        rows = difference_rows(differences({"train": train}, reference, exact))
        assert (max(rows["times_the_limit"]) > 1) == differs


def test_the_command_that_makes_a_reference_quotes_its_folder(tmp_path: Path) -> None:
    (tmp_path / "My Photos").mkdir()
    with pytest.raises(UserError, match=r"`vdmctl validate '.*/My Photos' --out FOLDER` writes"):
        read_reference(tmp_path / "My Photos")
