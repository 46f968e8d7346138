"""Measure what the data contract finds: python -m benchmarks.contract --fashion-mnist FOLDER

Corrupts clean sets (8x8 digits, 32x32 patches of photographs, and Fashion-MNIST if a folder is given) in every way
that data/README.md names.  Prints for each whether validation ends with an error, warns or misses it, and the share of
copied images that it finds.
"""

import logging
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

from benchmarks import explained, new_parser, positive, show
from flows.contract.duplicates import QUERIES, lookalikes, search
from flows.contract.facts import measure_facts
from flows.contract.findings import Findings, Profile
from flows.contract.inspection import inspect_images
from flows.core.params_file import read_params
from flows.images.download import write_images
from flows.images.image_set import (
    SPLITS,
    Description,
    ImageSet,
    open_images,
    save_images,
    write_array,
    write_description,
)
from vdm.choices import Split

ROOT = Path(__file__).parents[1]
PARAMS = read_params(ROOT / "params.yaml")
QUALITIES = (75, 85, 90, 95)
Change = Callable[[np.ndarray], np.ndarray]


class CleanSet(NamedTuple):
    """Images and labels by split."""

    num_levels: int
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=("digits", "photographs"), default=["digits", "photographs"])
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="also this set: the publisher's files")
    parser.add_argument("--rows", default="", help="only the corruptions with this in their names")
    parser.add_argument("--images", type=positive, help="also measure time and memory for this many of 32x32x3")
    arguments = parser.parse_args()
    figures: dict[str, Any] = cost(arguments.images) if arguments.images else {}
    logging.disable(logging.WARNING)
    with explained(parser), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Great Expectations warns about itself and about pandas
        sets = {name: patches() if name == "photographs" else prepared(name, None) for name in arguments.sets}
        if arguments.fashion_mnist:
            sets["fashion_mnist"] = prepared("fashion_mnist", arguments.fashion_mnist)
        for name, known in sets.items():
            figures[f"clean {name}"] = ", ".join(broken(inspected(known))) or "nothing found"
        figures["corruptions"] = by_row("corruption", {name: verdicts(sets[name], arguments.rows) for name in sets})
        figures["copies"] = by_row("copies", {name: recall(known) for name, known in sets.items()})
    logging.disable(logging.NOTSET)
    show(figures, as_json=arguments.json)


def by_row(title: str, columns: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """Return a table with a column for each set; `-` where a row does not apply to it."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return [{title: name} | {key: column.get(name, "-") for key, column in columns.items()} for name in names]


def cost(count: int) -> dict[str, float]:
    """Return the seconds and the peak memory of `vdmctl validate` on `count` images of noise, imports included."""
    with tempfile.TemporaryDirectory() as scratch:
        counts = {"train": count - count // 10, "test": count // 10}
        for seed, (split, number) in enumerate(counts.items()):
            write_array(Path(scratch, "images", f"{split}.npy"), noise(seed, number))
        shapes = {split: (number, 3, 32, 32) for split, number in counts.items()}
        write_description(Path(scratch, "images"), shapes, {"name": "noise", "num_levels": 256})
        shutil.copyfile(ROOT / "params.yaml", Path(scratch, "params.yaml"))
        command = [sys.executable, "-c", "from flows.cli import main; main()", "validate", "images", "--out", "report"]
        begin = time.perf_counter()
        subprocess.run(command, cwd=scratch, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
        seconds = time.perf_counter() - begin
    return {"images": count, "seconds": seconds, "mib": getrusage(RUSAGE_CHILDREN).ru_maxrss / 1024}


def noise(seed: int, count: int) -> Iterator[np.ndarray]:
    """Yield `count` random images in chunks (n,3,32,32): a new process would start with this one's peak memory."""
    generator = np.random.default_rng(seed)
    for first in range(0, count, 1000):
        yield generator.integers(0, 256, (min(1000, count - first), 3, 32, 32), np.uint8)


# Clean sets


def prepared(name: str, source: Path | None) -> CleanSet:
    """Return a set of the catalogue as `vdmctl download` splits it."""
    data = PARAMS.data.model_copy(update={"name": name, "source": source and str(source)})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        write_images(data, source=source, out=folder, downloads=Path(scratch, "downloads"))
        stored = open_images(folder)
        images = {split: np.array(stored[split]) for split in SPLITS}
        labels = {split: np.array(stored.labels(split)) for split in SPLITS}
    return CleanSet(stored.num_levels, images, labels)


def patches() -> CleanSet:
    """Return 32x32 patches of photographs in random order, 10% of them for validation and 20% for testing."""
    images = photograph_patches(side=32, step=6)
    images = images[np.random.default_rng(0).permutation(len(images))]
    ends = [round(0.7 * len(images)), round(0.8 * len(images))]
    return CleanSet(256, dict(zip(SPLITS, np.split(images, ends), strict=True)), {})


def photograph_patches(side: int, step: int) -> np.ndarray:
    """Return patches (N,3,side,side) of scikit-learn's two photographs, which overlap if `step` is less than `side`.

    The photographs were JPEG files.  They are halved by averaging 2x2 pixels, which removes the traces of that.
    """
    parts = []
    for photograph in load_sample_images().images:
        height, width = photograph.shape[0] // 2, photograph.shape[1] // 2
        sums = photograph[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).sum((1, 3), dtype=int)
        halves = ((sums + 2) // 4).astype(np.uint8)
        windows = np.lib.stride_tricks.sliding_window_view(halves, (side, side), axis=(0, 1))[::step, ::step]
        parts.append(windows.reshape(-1, 3, side, side))
    return np.concatenate(parts)


def smaller(known: CleanSet) -> CleanSet:
    """Return at most 9,000 training, 1,000 validation and 2,000 test images: enough for the corruptions."""
    most = {"train": 9_000, "validation": 1_000, "test": 2_000}
    parts = ({split: part[: most[split]] for split, part in of.items()} for of in (known.images, known.labels))
    return CleanSet(known.num_levels, *parts)


# Ways to corrupt images (N,C,H,W), with Pillow where people use it


def pictures(images: np.ndarray, function: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Return the images after a function that changes one of Pillow's pictures."""
    result = [function(Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))) for image in images]
    arrays = np.stack([np.asarray(picture) for picture in result])
    return arrays[:, None] if arrays.ndim == 3 else np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))


def resized(picture: Image.Image, kind: str, factor: float) -> Image.Image:
    """Return a picture of another size; if none of its levels is above 16, none of the new ones is."""
    size = (round(picture.width * factor), round(picture.height * factor))
    larger = picture.resize(size, Image.Resampling[kind.upper()])
    return larger if np.asarray(picture).max() > 16 else larger.point(lambda level: min(level, 16))


def enlarged(images: np.ndarray, kind: str, factor: float = 2) -> np.ndarray:
    """Return images that are `factor` times as high and wide."""
    return pictures(images, lambda picture: resized(picture, kind, factor))


def halved(images: np.ndarray, kind: str) -> np.ndarray:
    """Return images of the same size that were made half as large in between."""
    return pictures(images, lambda picture: resized(resized(picture, kind, 0.5), kind, 2))


def blurred(images: np.ndarray, sd: float) -> np.ndarray:
    """Return images that were blurred by a Gaussian of `sd` pixels, computed from floats."""
    smooth = gaussian_filter(images.astype(np.float32), sd, mode="nearest", radius=4, axes=(2, 3))
    return np.rint(smooth).astype(np.uint8)


def jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """Return images that were saved as JPEG."""

    def compressed(picture: Image.Image) -> Image.Image:
        file = BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file).convert(picture.mode)

    return pictures(images, compressed)


def contrast(images: np.ndarray, factor: float) -> np.ndarray:
    """Return images whose levels were multiplied."""
    return np.clip(np.rint(images * np.float32(factor)), 0, 255).astype(np.uint8)


def in_a_tenth(images: np.ndarray, function: Change) -> np.ndarray:
    """Return the images, a random tenth of which was changed."""
    chosen = np.random.default_rng(1).choice(len(images), len(images) // 10, replace=False)
    result = images.copy()
    result[chosen] = function(images[chosen])
    return result


def shuffled(labels: np.ndarray) -> np.ndarray:
    """Return the labels, a random fifth of which were exchanged among one another."""
    generator = np.random.default_rng(1)
    chosen = generator.choice(len(labels), len(labels) // 5, replace=False)
    result = labels.copy()
    result[chosen] = labels[generator.permutation(chosen)]
    return result


def one_pixel(images: np.ndarray, num_levels: int) -> np.ndarray:
    """Return images with one pixel inverted in all channels."""
    generator, result = np.random.default_rng(2), images.copy()
    rows, columns = (generator.integers(0, side, len(images)) for side in images.shape[2:])
    every = np.arange(len(images))
    result[every, :, rows, columns] = num_levels - 1 - result[every, :, rows, columns]
    return result


def noisy(images: np.ndarray, sd: float, num_levels: int) -> np.ndarray:
    """Return images with Gaussian noise of `sd` levels."""
    noise = np.random.default_rng(3).normal(0, sd, images.shape)
    return np.clip(np.rint(images + noise), 0, num_levels - 1).astype(np.uint8)


# The table


class Corruption(NamedTuple):
    """A change of a set that has what it `needs`; `compare` makes the clean set the reference."""

    name: str
    change: Callable[[CleanSet], CleanSet]
    needs: str = ""
    compare: bool = False


def changed(known: CleanSet, function: Change, splits: Collection[str] = SPLITS) -> CleanSet:
    """Return the set after a change of the images of some splits."""
    return known._replace(images=known.images | {split: function(known.images[split]) for split in splits})


def shuffled_labels(known: CleanSet, splits: Collection[str] = SPLITS) -> CleanSet:
    """Return the set with a fifth of the labels of some splits exchanged."""
    return known._replace(labels=known.labels | {split: shuffled(known.labels[split]) for split in splits})


def without_label(known: CleanSet, splits: Collection[str] = SPLITS) -> CleanSet:
    """Return the set without the images of label 3 in some splits."""
    kept = {split: (labels != 3) | (split not in splits) for split, labels in known.labels.items()}
    parts = ({split: part[kept[split]] for split, part in of.items()} for of in (known.images, known.labels))
    return CleanSet(known.num_levels, *parts)


def applies(known: CleanSet, needs: str) -> bool:
    """Whether the set has what a corruption needs: 256 levels, colours or labels."""
    colours = known.images["train"].shape[1] == 3
    return {"": True, "bytes": known.num_levels == 256, "colours": colours, "labels": bool(known.labels)}[needs]


def corruptions() -> Iterator[Corruption]:
    """Yield the rows of the table."""
    blurs = {f"blurred, sd {sd} pixels": partial(blurred, sd=sd) for sd in (0.5, 0.7, 1)}
    of_all: dict[str, Change] = {
        **{f"enlarged 2x, {kind}": partial(enlarged, kind=kind) for kind in ("nearest", "bilinear", "bicubic")},
        "enlarged 1.5x, bicubic": partial(enlarged, kind="bicubic", factor=1.5),
        **{f"halved and enlarged, {kind}": partial(halved, kind=kind) for kind in ("bilinear", "bicubic")},
        **blurs,
    }
    for name, function in of_all.items():
        yield Corruption(name, partial(changed, function=function))
    for name, function in blurs.items():
        yield Corruption(f"{name}, reference", partial(changed, function=function), compare=True)
    of_bytes: dict[str, Change] = {f"JPEG, quality {quality}": partial(jpeg, quality=quality) for quality in QUALITIES}
    of_bytes["JPEG, quality 90, then cut by 3 pixels"] = lambda part: jpeg(part, 90)[:, :, 3:, 3:]
    for name, function in of_bytes.items():
        yield Corruption(name, partial(changed, function=function), "bytes")
    of_some: dict[str, Change] = {"JPEG, quality 90": partial(jpeg, quality=90)}
    of_some |= {f"contrast x {factor}": partial(contrast, factor=factor) for factor in (0.97, 1.03, 1.3)}
    for name, function in of_some.items():
        in_test = partial(changed, function=function, splits=["test"])
        in_train = partial(changed, function=partial(in_a_tenth, function=function), splits=["train"])
        yield Corruption(f"{name}, test images only", in_test, "bytes")
        yield Corruption(f"{name}, a tenth of the training images", in_train, "bytes")
    of_sets: dict[str, tuple[Callable[..., CleanSet], str]] = {
        "20% of the labels shuffled": (shuffled_labels, "labels"),
        "a class missing": (without_label, "labels"),
        "BGR": (partial(changed, function=lambda part: part[:, ::-1]), "colours"),
        "transposed": (partial(changed, function=lambda part: part.swapaxes(2, 3)), ""),
        "mirrored": (partial(changed, function=lambda part: part[..., ::-1]), ""),
        "upside down": (partial(changed, function=lambda part: part[:, :, ::-1]), ""),
    }
    for name, (change, needs) in of_sets.items():
        yield Corruption(f"{name}, reference", change, needs, compare=True)
        yield Corruption(f"{name}, test images only", partial(change, splits=["test"]), needs)


def inspected(known: CleanSet, reference: Profile | None = None) -> Findings:
    """Return the findings on a set."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "images")
        save_images(folder, known.images, {"name": "benchmark", "num_levels": known.num_levels})
        for split, labels in known.labels.items():
            np.save(folder / f"{split}_labels.npy", labels)
        return inspect_images(PARAMS.contract, open_images(folder), reference).findings


def broken(findings: Findings) -> dict[str, str]:
    """Return the expectations that do not hold, with their severity."""
    return {result.meaning: result.severity for result in findings.expectations if not result.success}


def verdicts(whole: CleanSet, wanted: str) -> dict[str, str]:
    """Return error, warning or missed for each corruption: what the findings on the clean set do not have."""
    known, found = smaller(whole), {}
    clean = inspected(known)
    for entry in corruptions():
        if wanted in entry.name and applies(known, entry.needs):
            of_entry = inspected(entry.change(known), clean.profile if entry.compare else None)
            new = {severity for meaning, severity in broken(of_entry).items() if meaning not in broken(clean)}
            found[entry.name] = "error" if "critical" in new else "warning" if new else "missed"
    return found


def recall(known: CleanSet) -> dict[str, str]:
    """Return the share of copies of training images, added to the test images, that are equal or flagged."""
    train, test, num_levels = known.images["train"], known.images["test"], known.num_levels
    chosen = np.random.default_rng(0).choice(len(train), min(300, len(test) // 4), replace=False)
    level = (num_levels - 1) / 255
    kinds: dict[str, Change] = {
        "one pixel inverted": partial(one_pixel, num_levels=num_levels),
        "noise of sd 1 of 255": partial(noisy, sd=level, num_levels=num_levels),
        "noise of sd 2 of 255": partial(noisy, sd=2 * level, num_levels=num_levels),
        "mirrored": lambda part: part[..., ::-1],
        "shifted by a pixel": lambda part: np.roll(part, 1, axis=3),
        "mirrored, noise of sd 2": lambda part: noisy(part, 2 * level, num_levels)[..., ::-1],
        "shifted by two pixels": lambda part: np.roll(part, 2, axis=3),
    }
    if num_levels == 256:
        kinds |= {f"JPEG, quality {quality}": partial(jpeg, quality=quality) for quality in (95, 85, 75)}
    return {name: f"{found(known, function(train[chosen])):.0%}" for name, function in kinds.items()}


def found(known: CleanSet, copies: np.ndarray) -> float:
    """Return the share of the copies that the contract names when they are added to the test images."""
    # All of them are searched for.
    train, test = known.images["train"], np.concatenate([known.images["test"][: QUERIES - len(copies)], copies])
    splits: dict[Split, np.ndarray] = {"train": train, "test": test}
    counts: dict[str, Any] = {f"num_{split}": len(images) for split, images in splits.items()}
    shape = list(train.shape[1:])
    description = Description(name="benchmark", num_levels=known.num_levels, image_shape=shape, **counts)
    both = ImageSet("benchmark", description, splits)
    facts = {split: measure_facts(images, known.num_levels) for split, images in splits.items()}
    limit = PARAMS.contract.near_duplicate_distance
    alike = lookalikes(search(both, facts), limit)["train", "test"]
    named = np.isin(facts["test"].digest, facts["train"].digest)
    named[alike["image"][alike["excess"]]] = True
    return float(named[-len(copies) :].mean())


if __name__ == "__main__":
    main()
