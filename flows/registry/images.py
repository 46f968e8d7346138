"""The images that a version, and the models from which its training began, were trained on.

An image is known by the digest of its pixels in the source, before any transform, which the stage `download` keeps
beside the arrays.  Versions of which these are lost, and models that are no versions, have no known images.
The digests of the pixels after the transforms find images among those of the same transforms.
"""

from collections.abc import Collection, Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flows.core import layout
from flows.core.ancestry import SeenImages
from flows.core.documents import parse
from flows.core.errors import Exit, NetworkError, UserError
from flows.images.folder import open_source
from flows.images.image_set import DESCRIPTION, SPLITS, Description, digests_of, sources_of
from flows.images.picture import BadImageError, read_images
from flows.images.reading import ROWS
from flows.images.splitting import possible_digests
from flows.registry.versions import Registry, Version, ancestry
from flows.repository.files import read_content
from flows.repository.repository import Repository
from vdm.choices import FITTED_SPLITS, Split

ANY_COLOUR = (0, 0, 0)
"""Pictures with transparency are known by what they are before the background, whatever that is."""


class Kept(NamedTuple):
    """The images that a version was made of, or those of some splits."""

    transforms: str
    digests: Mapping[Split, list[bytes]]
    """Of each image, in the order of the arrays."""


def read_kept_images(
    repository: Repository, version: Version, splits: Collection[Split] = SPLITS, *, transformed: bool = False
) -> Kept | None:
    """Return a version's images of some splits; None if their digests are lost.

    The digests are those of the pixels before the transforms, unless `transformed`.  Raises NetworkError (exit 5).
    """
    digests: dict[Split, list[bytes]] = {}
    try:
        with repository.at(version).files() as files:
            description = parse(Description, read_content(files, layout.IMAGES / DESCRIPTION) or b"", DESCRIPTION)
            place = digests_of if transformed or description.transforms == "none" else sources_of
            counts = {"train": description.num_train, "validation": description.num_validation}
            counts["test"] = description.num_test
            for split in set(description.splits) & set(splits):
                content = read_content(files, place(layout.IMAGES, split)) or b""
                digests[split] = [bytes(row) for row in np.load(BytesIO(content), allow_pickle=False)]
                if len(digests[split]) != counts[split]:
                    return None
    except NetworkError:
        raise
    except (UserError, ValueError, TypeError, EOFError):  # lost or damaged
        return None
    return Kept(description.transforms, digests)


def list_training_images(registry: Registry, version: Version, transforms: str | None = None) -> SeenImages:
    """Return the images that a version and the models of its line were trained on.

    With `transforms` they are the images after these, and models of others count as unknown.  Raises NetworkError
    (exit 5).
    """
    found = SeenImages(set(), {})
    ancestors = version.metrics.ancestors or []
    models = [(version.metrics.model_sha256 or version.name, version.name)]
    models += [(ancestor.model_sha256, ancestor.name) for ancestor in ancestors]
    for each, (digest, name) in zip(ancestry(version, registry.versions), models, strict=True):
        kept = read_kept_images(registry.repository, each, transformed=transforms is not None) if each else None
        if each and kept and transforms in (None, kept.transforms):
            found.digests.update(*(kept.digests.get(split, []) for split in fitted_splits(each)))
        else:
            found.unknown[digest] = name
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


def find_versions_with(registry: Registry, wanted: Collection[bytes]) -> list[Having]:
    """Return the versions that have one of the images, or a model in their line that was trained on it, or may have.

    The images are given by their digests.  Raises NetworkError (exit 5).
    """
    every = registry.versions
    splits = {version.name: splits_with(registry.repository, version, wanted) for version in every}
    found = []
    for version in every:
        chain = ancestry(version, every)
        known = [each for each in chain if each and splits[each.name] is not None]
        through = [each.name for each in known if fitted_splits(each) & set(splits[each.name] or [])]
        ours = splits[version.name] or []
        if len(known) < len(chain) or through or ours:
            found.append(Having(version.name, version.state, len(known) == len(chain), ours, through))
    return found


def splits_with(repository: Repository, version: Version, wanted: Collection[bytes]) -> list[Split] | None:
    """Return the splits of a version's images that have one of the images; None if its images are not known."""
    kept = read_kept_images(repository, version)
    return kept and [split for split, digests in kept.digests.items() if not set(wanted).isdisjoint(digests)]


def digest_pictures(source: Path) -> tuple[set[bytes], dict[str, str]]:
    """Return the digests of the images in a file or a folder, and why other files of it can be no images of a version.

    Raises UserError (exit 5) for a file that is missing or damaged, since nobody can say what it was.
    """
    found, others = set[bytes](), dict[str, str]()
    with open_source(source) as files:
        for name in files.names:
            try:
                picture = read_images(files.folder / name, ANY_COLOUR)
                for part in picture.parts(ROWS):
                    found.update(*map(possible_digests, part.original))
            except BadImageError as error:
                if error.code is Exit.MISSING:
                    raise UserError(f"{files.shown(name)}: {error}", error.code) from error
                others[name] = str(error)
    return found, others


def fitted_splits(version: Version) -> set[Split]:
    """Return the splits of its images that a version was trained on."""
    return set(FITTED_SPLITS[version.metrics.fitted_to or "train"])
