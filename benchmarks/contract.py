"""Measure what the data contract finds: python -m benchmarks.contract --fashion-mnist FOLDER

Corrupts clean sets (8x8 digits, 32x32 patches of photographs, and Fashion-MNIST if a folder is given) in every way
that data/README.md names.  Prints for each whether validation ends with an error, warns or misses it, and the share of
copied images that it finds.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import corruptions as change
from benchmarks.machine import describe
from benchmarks.options import explained, new_parser, positive
from benchmarks.validate import PRESET, measure
from flows.core.params_file import parse_params
from flows.core.presets import read_preset
from flows.images.preparing import write_images
from flows.images.store import SPLITS, ImageSet, load_images, load_labels, save_images
from flows.validation import facts
from flows.validation.duplicates import all_lookalikes, leaked
from flows.validation.inspection import inspect_images

Splits = dict[str, np.ndarray]
CONTRACT = parse_params(read_preset(PRESET.stem, PRESET.parent), PRESET.stem).contract


class CleanSet(NamedTuple):
    """Images and labels by split."""

    num_levels: int
    images: Splits
    labels: Splits


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=("digits", "photographs"), default=["digits", "photographs"])
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="also this set: the publisher's files")
    parser.add_argument("--copies", type=positive, default=300, help="images that are copied into the test images")
    parser.add_argument("--rows", default="", help="only the corruptions with this in their names")
    parser.add_argument("--images", type=positive, help="also measure time and memory for this many of 32x32x3")
    arguments = parser.parse_args()
    if arguments.images == 1:
        parser.error("--images must be at least 2: one to train and one to test")
    if not any(arguments.rows in entry.name for entry in corruptions()):
        parser.error(f"--rows: no corruption has {arguments.rows!r} in its name; data/README.md lists the names")
    # First, because a process starts with the peak memory of the one that started it.
    cost = measure(arguments.images) if arguments.images else {}
    with explained(parser):
        sets = clean_sets(arguments.sets, arguments.fashion_mnist)
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # Great Expectations warns about itself and about pandas
        figures = {
            **describe(),
            "clean": {name: verdict(known, None) for name, known in sets.items()},
            "corruptions": table(sets, arguments.rows),
            "recall": {name: recall(known, arguments.copies) for name, known in sets.items()},
            "cost": cost,
        }
    print(json.dumps(figures, indent=2) if arguments.json else text(figures))


@contextmanager
def quiet() -> Iterator[None]:
    """Do not log warnings."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def clean_sets(names: list[str], fashion: Path | None) -> dict[str, CleanSet]:
    """Return the clean sets: those of the pipeline as it splits them, and patches of photographs in random splits."""
    sets = {name: patches() if name == "photographs" else prepared(name, None) for name in names}
    return sets | ({"fashion_mnist": prepared("fashion_mnist", fashion)} if fashion else {})


def prepared(preset: str, source: Path | None) -> CleanSet:
    """Return the images that `vdmctl download` writes with a preset."""
    data = parse_params(read_preset(preset, PRESET.parent), preset).data
    data = data.model_copy(update={"source": source and str(source)})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        write_images(data, source=source, out=folder, downloads=Path(scratch, "downloads"))
        stored = load_images(folder)
        images = {name: np.array(getattr(stored, name)) for name in SPLITS}
        labels = {name: np.array(load_labels(folder, name)) for name in SPLITS}
    return CleanSet(stored.num_levels, images, labels)


def patches() -> CleanSet:
    """Return 32x32 patches of photographs in random order, 10% of them for validation and 20% for testing."""
    images = change.photograph_patches(side=32, step=6)
    images = images[np.random.default_rng(0).permutation(len(images))]
    ends = [round(0.7 * len(images)), round(0.8 * len(images))]
    return CleanSet(256, dict(zip(SPLITS, np.split(images, ends), strict=True)), {})


def smaller(known: CleanSet) -> CleanSet:
    """Return at most 9,000 training, 1,000 validation and 2,000 test images: enough for the corruptions."""
    most = {"train": 9_000, "validation": 1_000, "test": 2_000}
    first = {name: slice(0, count) for name, count in most.items()}
    return CleanSet(
        known.num_levels,
        {name: images[first[name]] for name, images in known.images.items()},
        {name: labels[first[name]] for name, labels in known.labels.items()},
    )


def verdict(known: CleanSet, reference: Path | None, keep: Path | None = None) -> dict[str, str]:
    """Return the expectations that do not hold, with their severity; write the report to `keep`."""
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "images")
        save_images(images, known.images, {"name": "benchmark", "num_levels": known.num_levels})
        for name, labels in known.labels.items():
            np.save(images / f"{name}_labels.npy", labels)
        report = inspect_images(CONTRACT, images=images, reference=reference).report
    if keep:
        keep.write_text(report.model_dump_json())
    return {result.meaning: result.severity for result in report.expectations if not result.success}


class Corruption(NamedTuple):
    """A change of a set; `compare` gives the report on the clean set as the reference."""

    name: str
    change: Callable[[CleanSet], CleanSet]
    compare: bool = False
    applies: Callable[[CleanSet], bool] = lambda known: True


def images(function: Callable[[np.ndarray], np.ndarray], *splits: str) -> Callable[[CleanSet], CleanSet]:
    """Return a change of the images of some splits, or of all."""

    def changed(known: CleanSet) -> CleanSet:
        parts = {name: function(known.images[name]) for name in splits or SPLITS}
        return known._replace(images=known.images | parts)

    return changed


def shuffled_labels(known: CleanSet, *splits: str) -> CleanSet:
    """Return the set with a fifth of the labels of some splits, or of all, exchanged."""
    parts = {name: change.shuffled(known.labels[name]) for name in splits or SPLITS}
    return known._replace(labels=known.labels | parts)


def without_label(known: CleanSet, *splits: str) -> CleanSet:
    """Return the set without the images of label 3 in some splits, or in all."""
    kept = {name: (labels != 3) | (name not in (splits or SPLITS)) for name, labels in known.labels.items()}
    return known._replace(
        images={name: part[kept[name]] for name, part in known.images.items()},
        labels={name: part[kept[name]] for name, part in known.labels.items()},
    )


def has_bytes(known: CleanSet) -> bool:
    """Whether the set has 256 levels."""
    return known.num_levels == 256


def has_colours(known: CleanSet) -> bool:
    """Whether the set has three channels."""
    return known.images["train"].shape[1] == 3


def has_labels(known: CleanSet) -> bool:
    """Whether the set has labels."""
    return bool(known.labels)


def corruptions() -> list[Corruption]:
    """Return the rows of the table."""
    return [*of_space(), *of_some_images(), *of_labels_channels_and_axes()]


def of_space() -> list[Corruption]:
    """Return the rows of images that were resampled, blurred or compressed."""
    kernels, qualities, blurs = ("nearest", "bilinear", "bicubic"), (75, 85, 90, 95), (0.5, 0.7, 1)
    cut = lambda part: change.jpeg(part, quality=90)[:, :, 3:, 3:]  # noqa: E731
    return [
        *(Corruption(f"enlarged 2x, {kind}", images(partial(change.enlarged, kind=kind))) for kind in kernels),
        Corruption("enlarged 1.5x, bicubic", images(partial(change.enlarged, kind="bicubic", factor=1.5))),
        *(
            Corruption(f"halved and enlarged, {kind}", images(partial(change.halved, kind=kind)))
            for kind in kernels[1:]
        ),
        *(Corruption(f"blurred, sd {sd} pixels", images(partial(change.blurred, sd=sd))) for sd in blurs),
        *(
            Corruption(f"blurred, sd {sd} pixels, reference", images(partial(change.blurred, sd=sd)), True)
            for sd in blurs
        ),
        *(
            Corruption(f"JPEG, quality {q}", images(partial(change.jpeg, quality=q)), False, has_bytes)
            for q in qualities
        ),
        Corruption("JPEG, quality 90, then cut by 3 pixels", images(cut), False, has_bytes),
    ]


def of_some_images() -> list[Corruption]:
    """Return the rows of sets with changes only in the test images, or in a random tenth of the training images."""
    kinds = {
        "JPEG, quality 90": partial(change.jpeg, quality=90),
        "contrast x 0.97": partial(change.contrast, factor=0.97),
        "contrast x 1.03": partial(change.contrast, factor=1.03),
        "contrast x 1.3": partial(change.contrast, factor=1.3),
    }
    rows = []
    for name, function in kinds.items():
        tenth = partial(change.in_a_tenth, function=function)
        rows.append(Corruption(f"{name}, test images only", images(function, "test"), False, has_bytes))
        rows.append(Corruption(f"{name}, a tenth of the training images", images(tenth, "train"), False, has_bytes))
    return rows


def of_labels_channels_and_axes() -> list[Corruption]:
    """Return the rows of sets whose labels, channels or axes were exchanged."""
    rows = [
        Corruption("20% of the labels shuffled, reference", shuffled_labels, True, has_labels),
        Corruption(
            "20% of the labels shuffled, test images only",
            lambda known: shuffled_labels(known, "test"),
            False,
            has_labels,
        ),
        Corruption("a class missing, reference", without_label, True, has_labels),
        Corruption("a class missing, test images only", lambda known: without_label(known, "test"), False, has_labels),
    ]
    kinds = {
        "BGR": (lambda part: part[:, ::-1], has_colours),
        "transposed": (lambda part: part.swapaxes(2, 3), lambda known: True),
        "mirrored": (lambda part: part[..., ::-1], lambda known: True),
        "upside down": (lambda part: part[:, :, ::-1], lambda known: True),
    }
    for name, (function, applies) in kinds.items():
        rows.append(Corruption(f"{name}, reference", images(function), True, applies))
        rows.append(Corruption(f"{name}, test images only", images(function, "test"), False, applies))
    return rows


def table(sets: dict[str, CleanSet], wanted: str) -> dict[str, dict[str, str]]:
    """Return error, warning or missed for each corruption and set: what the report on the clean set does not have."""
    entries = [entry for entry in corruptions() if wanted in entry.name]
    rows: dict[str, dict[str, str]] = {entry.name: {} for entry in entries}
    for name, whole in sets.items():
        known = smaller(whole)
        with tempfile.TemporaryDirectory() as scratch:
            reference = Path(scratch, "reference.json")
            clean = verdict(known, None, keep=reference)
            for entry in entries:
                if entry.applies(known):
                    found = verdict(entry.change(known), reference if entry.compare else None)
                    new = {severity for meaning, severity in found.items() if meaning not in clean}
                    rows[entry.name][name] = "error" if "critical" in new else "warning" if new else "missed"
    return rows


def recall(known: CleanSet, count: int) -> dict[str, float]:
    """Return the share of copies of training images, added to the test images, that are equal or flagged."""
    generator = np.random.default_rng(0)
    train, test = known.images["train"], known.images["test"]
    chosen = generator.choice(len(train), min(count, len(test) // 4), replace=False)
    level = (known.num_levels - 1) / 255
    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "one pixel inverted": partial(change.one_pixel, num_levels=known.num_levels),
        "noise of sd 1 of 255": partial(change.noisy, sd=level, num_levels=known.num_levels),
        "noise of sd 2 of 255": partial(change.noisy, sd=2 * level, num_levels=known.num_levels),
        "mirrored": lambda images: images[..., ::-1],
        "shifted by a pixel": lambda images: np.roll(images, 1, axis=3),
        "mirrored, noise of sd 2": lambda images: change.noisy(images, 2 * level, known.num_levels)[..., ::-1],
        "shifted by two pixels": lambda images: np.roll(images, 2, axis=3),
    }
    if known.num_levels == 256:
        kinds |= {f"JPEG, quality {q}": partial(change.jpeg, quality=q) for q in (95, 85, 75)}
    return {name: found(known, test, function(train[chosen])) for name, function in kinds.items()}


def found(known: CleanSet, test: np.ndarray, copies: np.ndarray) -> float:
    """Return the share of the copies that the contract names when they are added to the test images."""
    both = ImageSet({"num_levels": known.num_levels}, known.images["train"], test[:0], np.concatenate([test, copies]))
    measured = {name: facts.measure(getattr(both, name), known.num_levels) for name in ("train", "test")}
    alike = all_lookalikes(both, measured, CONTRACT.near_duplicate_distance)["train", "test"]
    named = leaked(measured["train"].digest, measured["test"].digest)
    named[alike.image[: alike.excess]] = True
    return float(named[len(test) :].mean())


def text(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    sets = list(figures["clean"])
    lines = [f"{key}: {figures[key]}" for key in ("device", "threads", "python", "commit")]
    lines += ["", *(f"clean {name}: {found or 'nothing found'}" for name, found in figures["clean"].items()), ""]
    lines += [row("corruption", sets), row("---", ["---"] * len(sets))]
    lines += [row(name, [found.get(one, "-") for one in sets]) for name, found in figures["corruptions"].items()]
    kinds = list(dict.fromkeys(kind for found in figures["recall"].values() for kind in found))
    lines += ["", row("copies", sets), row("---", ["---"] * len(sets))]
    for kind in kinds:
        shares = [figures["recall"][one].get(kind) for one in sets]
        lines.append(row(kind, ["-" if share is None else f"{share:.0%}" for share in shares]))
    return "\n".join([*lines, "", *(f"{key}: {value:.0f}" for key, value in figures["cost"].items())])


def row(name: str, cells: list[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join([name, *cells])} |"


if __name__ == "__main__":
    main()
