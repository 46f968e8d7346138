"""In which batches images are coded, and which of them share a checksum.

Images are encoded from the last to the first, so that they are decoded in order.  On the grid of `vdm.codec.CELLS` an
image takes 16 to 22 bits per dimension off the stack before it returns them, and a batch as many for each of its
images.  So the first images (one of 256 levels, two of 17) are encoded plainly.  The next ones are encoded on a coarse
grid, which takes 8 bits less, each alone.  From then on, batches grow with the number of images encoded before them,
whose bits they take.
"""

import math
from collections.abc import Iterator
from itertools import accumulate, chain, groupby, pairwise, repeat

MOST_TIMESTEPS, MOST_BATCH = 10_000, 1024
PLAIN_BITS = 8
"""Bits per dimension that the plainly encoded images leave at least."""
COARSE_CELLS = 4
"""Cells of the coarse grid in a standard deviation."""
COARSE_IMAGES = 24
"""Images that are encoded before the first one on the fine grid."""
GROWTH = 12
"""Images whose bits suffice to encode one more."""
CHECKED_DIMS = 2**12
"""About how many dimensions share a checksum of 32 bits; see `groups`."""


def most_plain(num_levels: int) -> int:
    """Return the number of images that are encoded first, without the model, if the set has that many."""
    return math.ceil(PLAIN_BITS / math.log2(num_levels))


def groups(num_images: int, num_dims: int, most: int, *, decoding: bool) -> Iterator[list[range]]:
    """Yield the batches, of at most `most` images, in groups that share a checksum.

    A group has the batches that begin within the same `CHECKED_DIMS` dimensions, rounded up to whole images.  Batches
    and groups come in the order of encoding, or with `decoding` of decoding, and are made one at a time.
    """
    every = -(-CHECKED_DIMS // num_dims)
    ordered = batches(num_images, most, decoding=decoding)
    for _, group in groupby(ordered, lambda batch: (num_images - batch.stop) // every):
        yield list(group)


def batches(num_images: int, most: int, *, decoding: bool) -> Iterator[range]:
    """Yield the numbers of the images in each batch, in the order of encoding, or of decoding."""
    growing, coded = list[int](), 0
    while coded < num_images and coded // GROWTH < most:
        growing.append(min(num_images - coded, max(1, coded // GROWTH)))
        coded += growing[-1]
    full, rest = divmod(num_images - coded, most)
    last = [rest] if rest else []
    sizes = chain(last, repeat(most, full), reversed(growing)) if decoding else chain(growing, repeat(most, full), last)
    for first, end in pairwise(accumulate(sizes, initial=0)):
        yield range(first, end) if decoding else range(num_images - end, num_images - first)
