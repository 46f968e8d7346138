"""The labels of an image set as the classes of a model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flows.core.checkpoint import read_description
from flows.core.errors import Exit, UserError
from flows.core.escaping import listed
from flows.core.files import file_sha256
from flows.images import store
from flows.images.store import DESCRIPTION, SPLITS, load_images, load_labels, present
from vdm.choices import Given


def number_of_classes(images: Path, wanted: int | Literal["auto"] | None) -> int | None:
    """Return the number of classes of a model that is trained on the set: `auto` is as many as it has.

    Raises UserError: exit 2 for a set of one class, without labels or with more classes, and what `classes_of` raises.
    """
    if wanted is None:
        return None
    found = 1 + max(int(classes_of(images, split, None).max(initial=0)) for split in SPLITS)
    if found < 2 or (wanted != "auto" and found > wanted):
        advice = "set it to auto, or to null for a set of one class"
        raise UserError(f"{images} has {found} classes, but model.classes is {wanted}; {advice}", Exit.USAGE)
    return found if wanted == "auto" else wanted


def given_class(model: Path, given: Literal["auto", Given], images: Path) -> bool:
    """Whether a model is given the classes of images; `auto` is yes if it has classes, and the images have labels.

    Raises UserError (exit 2) for `class` and a model without classes.
    """
    if read_description(model)["model"].get("classes") is not None:
        return given == "class" or (given == "auto" and any(images.glob("*_labels.npy")))
    if given == "class":
        raise UserError(f"{model} has no classes; train one with model.classes: auto", Exit.USAGE)
    return False


def classes_of(images: Path, split: str, model: Path | None) -> np.ndarray:
    """Return the class of every image of a split, (N,) int64, which must be one of the model's.

    Raises UserError: exit 2 for a set without labels and for classes that are not the model's, 5 for labels that do not
    fit the images.
    """
    found, count = load_labels(images, split), len(getattr(load_images(images), split))
    if not count:
        return np.zeros(0, np.int64)
    if found is None:
        advice = "set model.classes to null; a model with classes is evaluated without them by --given nothing"
        raise UserError(f"{images} has no labels of its {split} images, which classes need; {advice}", Exit.USAGE)
    if found.shape != (count,) or found.dtype.kind not in "ui" or found.min() < 0:
        reason = f"{found.dtype} of shape {found.shape}, not a class from 0 for each of {count} images"
        raise UserError(f"{images}/{split}_labels.npy: {reason}; run `vdmctl download`", Exit.MISSING)
    if model:
        stated = read_description(model)
        known, count = stated.get("class_names"), stated["model"]["classes"]
        ours = store.read_description(images / DESCRIPTION).get("class_names")
        if (known and ours and known != ours) or found.max() >= count:
            theirs = listed(known) if known else f"0 to {count - 1}"
            here = listed(ours) if ours else f"0 to {found.max()}"
            raise UserError(f"{images} has other classes than the model: {here}, not {theirs}", Exit.USAGE)
    return np.array(found, np.int64)


def described(images: Path) -> dict[str, Any]:
    """Return what a model states of its classes: a digest of all labels, which `data_sha256` leaves out, and the names.

    Raises UserError (exit 5), and OSError for a file that cannot be read.
    """
    description = store.read_description(images / DESCRIPTION)
    lines = (f"{split} {file_sha256(images / f'{split}_labels.npy')}\n" for split in present(description))
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    return {"labels_sha256": digest} | {key: value for key, value in description.items() if key == "class_names"}


def class_numbers(text: str, count: int | None, names: Sequence[str] | None) -> list[int]:
    """Return the classes in a list such as `3,7` or `cat,dog`; the number `count` for `none`, "no class".

    Raises UserError (exit 2) for one that is neither a name nor a number below `count`, and for a model without any.
    """
    if count is None:
        raise UserError(f"the model has no classes, such as {text}; train one with model.classes: auto", Exit.USAGE)
    known = {name.lower(): number for number, name in reversed(list(enumerate(names or [])))}
    known = {"none": count} | {str(number): number for number in range(count)} | known
    wanted = [part.strip().lower() for part in text.split(",")]
    if unknown := [part for part in wanted if part not in known]:
        some = f", or by name: {listed(list(names))}" if names else ""
        reason = f"{listed(unknown[:1])} is none of the model's classes, 0 to {count - 1}{some}"
        raise UserError(f"{reason}; `none` is no class", Exit.USAGE)
    return [known[part] for part in wanted]
