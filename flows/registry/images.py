"""The images that a version, and the models from which its training began, were trained on.

An image is known by the digest of its pixels after the transforms, which the stage `download` keeps beside the arrays.
Versions that were made before it did, and models that are no versions, have no known images.
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flows.core import layout
from flows.core.documents import checked, parse
from flows.core.errors import NetworkError, UserError
from flows.core.params import Data
from flows.evaluation.results import BOTH
from flows.images.folder import find_images
from flows.images.given import read_files
from flows.images.image_set import DESCRIPTION, Description, digests_of
from flows.images.splitting import digest_of
from flows.registry.lock_file import read_lock
from flows.registry.storage import content_in, files_of
from flows.registry.versions import Registry, Version, line
from vdm.choices import Split


class Kept(NamedTuple):
    """The images that a version was made of."""

    kind: tuple[str, int, list[int]]
    """Transforms, number of levels and shape: digests of images of another kind say nothing about these."""
    digests: Mapping[Split, list[bytes]]
    """Of each image, in the order of the arrays."""


def kept_images(root: Path, version: Version) -> Kept | None:
    """Return a version's images; None if their digests were not kept or are lost.  Raises NetworkError (exit 5)."""
    digests: dict[Split, list[bytes]] = {}
    try:
        with files_of(root, version) as files:
            described = content_in(files, layout.IMAGES / DESCRIPTION)
            if described is None:
                return None
            description = parse(Description, described, DESCRIPTION)
            for split in description.splits:
                content = content_in(files, digests_of(layout.IMAGES, split))
                if content is None:
                    return None
                digests[split] = [bytes(row) for row in np.load(BytesIO(content), allow_pickle=False)]
            counts = {"train": description.num_train, "validation": description.num_validation}
            counts["test"] = description.num_test
            if any(len(found) != counts[split] for split, found in digests.items()):
                return None
    except NetworkError:
        raise
    except (UserError, ValueError, TypeError):  # lost or damaged
        return None
    return Kept((description.transforms, description.num_levels, description.image_shape), digests)


def trained_on(registry: Registry, version: Version, kind: tuple[str, int, list[int]]) -> set[bytes] | None:
    """Return the digests of all images of a kind that a version or a model of its line was trained on.

    None if those of one of them are not known or of another kind.  Raises NetworkError (exit 5).
    """
    found: set[bytes] = set()
    for each in line(version, registry.versions):
        kept = kept_images(registry.root, each) if each else None
        if each is None or kept is None or kept.kind != kind:
            return None
        found.update(*(kept.digests.get(split, []) for split in fitted(each)))
    return found


class Having(NamedTuple):
    """What a version has to do with some pictures."""

    version: str
    state: str
    is_known: bool
    """Whether the images of the version and of its whole line are known; if not, it may have one of the pictures."""
    splits: list[Split]
    """The splits of its images that have one of the pictures."""
    through: list[str]
    """Which of the version itself and the others of its line were trained on one of the pictures."""


def having(registry: Registry, pictures: Path) -> list[Having]:
    """Return the versions that have one of the pictures, or a model in their line that was trained on it, or may have.

    They are a file or a folder, and are found by their pixels after the transforms of each version.  Raises UserError,
    such as exit 5 for a file that is missing or damaged, and NetworkError (exit 5).
    """
    find_images(pictures)
    every = registry.versions
    splits = {version.name: splits_with(registry.root, version, pictures) for version in every}
    found = []
    for version in every:
        chain = line(version, every)
        known = [each for each in chain if each and splits[each.name] is not None]
        through = [each.name for each in known if fitted(each) & set(splits[each.name] or [])]
        ours = splits[version.name] or []
        if len(known) < len(chain) or through or ours:
            found.append(Having(version.name, version.state, len(known) == len(chain), ours, through))
    return found


def splits_with(root: Path, version: Version, pictures: Path) -> list[Split] | None:
    """Return the splits of a version's images that have one of the pictures; None if its images are not known."""
    stated = read_lock(root, version).parameters.get("data")
    kept = kept_images(root, version)
    if kept is None or stated is None:
        return None
    data = checked(Data, stated, f"{version.name}: {layout.DVC_LOCK}: data")
    wanted = {digest_of(image) for image in read_files(pictures, data).array}
    return [split for split, digests in kept.digests.items() if not wanted.isdisjoint(digests)]


def fitted(version: Version) -> set[Split]:
    """Return the splits of its images that a version was trained on."""
    return {"train", "validation"} if version.metrics.fitted_to == BOTH else {"train"}
