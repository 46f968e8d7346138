"""In which batches images are coded, and which of them share a checksum.

Images are encoded from the last to the first, so that they are decoded in order.  On the grid of `vdm.codec.CELLS` an
image takes some 17 bits per dimension off the stack before it returns them, and a batch as many for each of its images.
So the first images (one of 256 levels, two of 17) are encoded plainly.  The next ones are encoded on a coarse grid,
which takes half the bits, each alone.  From then on, batches grow with the number of images encoded before them, whose
bits they take.
"""

import math
from collections.abc import Iterator
from itertools import chain, repeat

PLAIN_BITS = 8
"""Bits per dimension that the plainly encoded images leave at least."""
COARSE_CELLS = 4
"""Cells of the coarse grid in a standard deviation."""
COARSE_IMAGES = 24
"""Images that are encoded before the first one on the fine grid."""
GROWTH = 12
"""Images whose bits suffice to encode one more."""
CHECKED_DIMS = 2**12
"""Dimensions after which a batch ends with a checksum of 32 bits."""


def most_plain(num_levels: int) -> int:
    """Return the number of images that are encoded first, without the model, if there are as many."""
    return math.ceil(PLAIN_BITS / math.log2(num_levels))


def is_plain(batch: range, num_images: int, num_levels: int) -> bool:
    """Whether the images of a batch are encoded without the model."""
    return batch.start >= num_images - most_plain(num_levels)


def is_coarse(batch: range, num_images: int) -> bool:
    """Whether the images of a batch that is not plain are encoded on the coarse grid."""
    return batch.stop > num_images - COARSE_IMAGES


def groups(num_images: int, num_dims: int, most: int, *, decoding: bool) -> Iterator[list[range]]:
    """Yield the batches, of at most `most` images, in groups that share a checksum.

    Batches and groups come in the order of encoding, or of decoding.  No list of all is made.
    """
    every = -(-CHECKED_DIMS // num_dims)
    group: list[range] = []
    for batch in batches(num_images, most, decoding=decoding):
        # The batch is the last of its group to be encoded, and the first to be decoded.
        checked = batch.start == 0 or (num_images - batch.stop) // every < (num_images - batch.start) // every
        if decoding and checked and group:
            yield group
            group = []
        group.append(batch)
        if not decoding and checked:
            yield group
            group = []
    if group:
        yield group


def batches(num_images: int, most: int, *, decoding: bool) -> Iterator[range]:
    """Yield the numbers of the images in each batch, in the order of encoding, or of decoding."""
    growing, coded = list[int](), 0
    while coded < num_images and coded // GROWTH < most:
        growing.append(min(num_images - coded, max(1, coded // GROWTH)))
        coded += growing[-1]
    full, rest = divmod(num_images - coded, most)
    last = [rest] if rest else []
    if decoding:
        place = 0
        for size in chain(last, repeat(most, full), reversed(growing)):
            yield range(place, place + size)
            place += size
    else:
        place = num_images
        for size in chain(growing, repeat(most, full), last):
            yield range(place - size, place)
            place -= size
