"""Divide images into training, validation and test images: by the names of folders, or by the images themselves.

The split of an image that is drawn is a function of its pixels in the source, before any transform, and of
`data.split_seed`: a hash of both, from 0 to 1, lies below the share or not.  So adding, removing, renaming and
reordering images moves none of them to another split, nor do other transforms, and exact copies are in one split.  The
shares are approximate.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flows.core.errors import Exit, UserError
from flows.core.escaping import list_names
from flows.images.image_set import SPLITS
from vdm.choices import Split

if TYPE_CHECKING:
    from flows.core.params import Data
    from flows.images.source import Source

NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval"),
}
"""The names of the parts of a folder, by split."""
DIGEST_BYTES = 16


def digest_of(image: np.ndarray) -> bytes:
    """Return the digest of an image's pixels.  That of the pixels in the source says in which sets the image is."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()[:DIGEST_BYTES]


def possible_digests(image: np.ndarray) -> set[bytes]:
    """Return the digests that an image of levels may have in a set: `data.stored_bits` says whether it is uint8."""
    types = [np.uint8, np.uint16] if image.max() < 256 else [np.uint16]
    return {digest_of(image.astype(each)) for each in types}


def place(digest: bytes, what: Split, seed: int) -> float:
    """Return a number in [0, 1) that depends on the image, on the split that is drawn and on the seed alone."""
    drawn = hashlib.blake2b(digest, digest_size=8, key=f"{what} {seed}".encode()).digest()
    return int.from_bytes(drawn) / 2**64


def split_of(digest: bytes, given: Split | None, source: "Source", data: "Data") -> Split:
    """Return the split of an image: the source's own, or the one that is drawn."""
    if given is None and place(digest, "test", data.split_seed) < data.test_fraction:
        return "test"
    may_validate = given in (None, "train") and "validation" not in source.given
    if may_validate and place(digest, "validation", data.split_seed) < data.validation_fraction:
        return "validation"
    return given or "train"


def require_splits(source: "Source", counts: dict[Split, int], data: "Data") -> None:
    """Raise UserError unless every split has the images that it needs.

    Its exit code is 5 if the source does not have as many images as it should, and 4 if a drawn split or what is left
    for training is empty, or if there are more validation images than training images.
    """
    for split, expected in source.counts.items():
        found = counts[split] + (counts["validation"] if split == "train" else 0)
        if found != expected:
            reason = f"{found:,} images for {split}, but {expected:,} were expected"
            raise UserError(f"{source.name}: {reason}; fetch the files again", Exit.MISSING)
    drawn: dict[Split, float] = {"test": data.test_fraction, "validation": data.validation_fraction}
    for split, share in drawn.items():
        if split not in source.given and share and not (counts[split] and counts["train"]):
            reason = f"{counts[split]} {split} images and {counts['train']} training images"
            how = f"are left by data.{split}_fraction {share:g} and data.split_seed {data.split_seed}"
            advice = "both splits need images, so add some, or change the share or the seed"
            raise UserError(f"{source.name}: {reason} {how}; {advice}", Exit.INVALID_DATA)
    if "validation" in source.given and counts["validation"] > counts["train"]:
        reason = f"{counts['validation']} validation images, but only {counts['train']} training images"
        raise UserError(f"{source.name}: {reason}; exchange the folders, or move images", Exit.INVALID_DATA)


def division(data: "Data", given: str | None = None, *, has_validation: bool = False) -> str:
    """Describe how the images were divided; `given` says how the source divides training and test images."""
    how = f"by digests of pixels and seed {data.split_seed}"
    test = given or f"a share of {data.test_fraction:g} held out {how}"
    if has_validation or not data.validation_fraction:
        return test
    return f"{test}; {data.validation_fraction:g} of the training images held out for validation {how}"


def parts_of(folder: Path, names: list[str], source: Path) -> dict[str, Split]:
    """Return the split of each part of a folder, such as {"train": "train", "val": "test"}; {} if it has no parts.

    A validation part is the test split if the only other part is a training part, as in ImageNet.  Raises UserError
    (exit 4), which names the source, if a part is empty, and if parts do not divide the whole folder.
    """
    parts = {part: split_named(part) for part in sorted({part_of(name) for name in names})}
    splits, named = set(parts.values()), {part: split for part, split in parts.items() if split}
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if empty := [name for name in folders if split_named(part_of(name)) not in {None, *splits}]:
        raise UserError(
            f"{source}: no images in {list_names(empty)}; add them, or remove that folder", Exit.INVALID_DATA
        )
    if not named:
        return {}
    if "train" not in splits or None in splits or not 2 <= len(parts) == len(splits):
        train, validation, test = (", ".join(NAMES[split]) for split in SPLITS)
        found = sorted({name.partition("/")[0] for name in names})
        wanted = f"parts for training ({train}), test ({test}) and perhaps validation ({validation}), and no others"
        advice = "name one part as the source, or add, rename or remove parts"
        raise UserError(f"{source}: needs {wanted}; there is {list_names(found[:5])}; {advice}", Exit.INVALID_DATA)
    return {part: split if split == "train" or "test" in splits else "test" for part, split in named.items()}


def split_named(part: str) -> Split | None:
    """Return the split that a part of a folder is named after."""
    return next((split for split, names in NAMES.items() if part in names), None)


def part_of(name: str) -> str:
    """Return the first part of a name, in lower case: `train` of Train/cat/1.png and of train.npy."""
    return name.partition("/")[0].lower().removesuffix(".npy")
