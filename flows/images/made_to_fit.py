"""Pictures changed to what a model takes: the one rule behind `--fit`, and behind "Make it fit" in the app.

A picture is laid over black where it is transparent, unless the card of the model names a background.  It becomes gray
or RGB.  Its middle, in the proportions of the model's images, is resized.  The transforms of the card come next.  Then
each shade becomes the nearest of the model's levels.  Arrays hold levels, and are never changed to fit.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flows.core.errors import Exit, FileError
from flows.core.params import Data
from flows.images.grids import eight_bit
from flows.images.picture import BadImageError, Picture, levels, read_images, read_size
from flows.images.transforms import describe_transforms, drop_low_bits, gray, levels_left, resize, transform

if TYPE_CHECKING:
    from flows.core.model import TrainedModel

BLACK = (0, 0, 0)
MOST_PIXELS = 2**25
"""Of a picture that is made to fit, which takes ten bytes of memory a pixel."""
MOST_NAMED = 3


def read_to_fit(path: Path, model: "TrainedModel", data: Data | None, shown: Path | None = None) -> Picture:
    """Return the picture in a file, made to fit; `data` has the transforms of the model's card.

    Messages call the file `shown`, if that is given.
    Raises FileError: exit 2 for a picture that cannot be made to fit, 4 and 5 for a file that cannot be used.
    """
    shown = shown or path
    if not takes_pictures(model) or path.suffix.lower() == ".npy":
        raise FileError(shown, f"it cannot be made to fit {model.name}", Exit.USAGE)
    try:
        require_small(path)
        return make_fit(read_images(path, (data and data.background_colour) or BLACK), model, data)
    except BadImageError as error:
        raise FileError(shown, str(error), error.code) from error


def require_small(path: Path) -> None:
    """Raise BadImageError for a picture of more pixels than `MOST_PIXELS`, before they are read."""
    if (size := read_size(path)) and size.num_pixels > MOST_PIXELS:
        raise BadImageError("too large", "make smaller", detail=f"{size.width}x{size.height} pixels")


def takes_pictures(model: "TrainedModel") -> bool:
    """Whether pictures can be made to fit the model."""
    return model.num_levels <= 256 and model.image_shape[0] in (1, 3)


def make_fit(picture: Picture, model: "TrainedModel", data: Data | None) -> Picture:
    """Return a picture, made to fit: its levels are the model's.

    Raises BadImageError for one whose pixels are out of range.
    """
    (channels, height, width), num_levels, pad = model.image_shape, model.num_levels, data.pad if data else 0
    found, most = levels(picture.pixels, picture.num_bits), 2**picture.num_bits
    images = eight_bit(found, most) if most < 256 else drop_low_bits(found, most, 8).astype(np.uint8, copy=False)
    changes = [] if picture.lightness is None or (data and data.background) else ["laid over black"]
    size, before = [height - 2 * pad, width - 2 * pad], [*images.shape[2:]]
    is_resized = size != before and not (data and data.resize)
    if is_resized:
        images = resize(middle(images, size), size, 256)
        verb = "shrunk" if size < before else "enlarged"
        changes.append(f"its middle, {verb} from {before[1]}x{before[0]} to {size[1]}x{size[0]} pixels")
    if images.shape[1] != channels and not (data and (data.grayscale or data.gray_as_rgb)):
        images = gray(images) if channels == 1 else images.repeat(3, axis=1)
        changes.append("gray" if channels == 1 else "gray as RGB")
    most = 256
    if data:
        images, most = transform(images, most, data), levels_left(most, data.num_bits)
    if most != num_levels:
        shades, images = images, np.rint(images * ((num_levels - 1) / (most - 1))).astype(np.uint8)
        is_exact = not changes and np.array_equal(eight_bit(images, num_levels), eight_bit(shades, most))
        changes.append(f"its shades are the {num_levels} levels" if is_exact else f"{num_levels} levels")
    words = describe_transforms(256, data) if data else "none"
    made = picture._replace(pixels=images, num_levels=num_levels, before=None, transforms=words)
    return made._replace(changes=", ".join(changes), is_resized=is_resized)


def middle(images: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the middle of images (N,C,H,W) in the proportions of `size` (H,W)."""
    height, width = images.shape[2:]
    factor = min(height / size[0], width / size[1])
    rows, columns = (max(1, round(factor * side)) for side in size)
    top, left = (height - rows) // 2, (width - columns) // 2
    return images[..., top : top + rows, left : left + columns]


def describe_changes(pictures: Sequence[Picture]) -> str:
    """Return how pictures were made to fit, in words: the most frequent changes first; "" if none was changed."""
    made = [each.changes for each in pictures if each.changes is not None]
    counts = Counter(filter(None, made))
    said = [f"{count} of {len(made)}: {words}" for words, count in counts.most_common(MOST_NAMED)]
    return "; ".join([*said, "..."] if len(counts) > MOST_NAMED else said)
