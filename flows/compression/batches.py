"""In which batches images are coded.

Images are encoded from the last to the first, so that they are decoded in order.  On the grid of `vdm.codec.CELLS` an
image takes 16 to 22 bits per dimension off the stack before it returns them, and a batch as many for each of its
images.  So the first images (one of 256 levels, two of 17) are encoded plainly.  The next ones are encoded on a coarse
grid, which takes 8 bits less, each alone.  From then on, batches grow with the number of images encoded before them,
whose bits they take.
"""

import math
from collections.abc import Iterator
from itertools import accumulate, chain, pairwise, repeat

MOST_TIMESTEPS, MOST_BATCH = 10_000, 1024
PLAIN_BITS = 8
"""Bits per dimension that the plainly encoded images leave at least."""
COARSE_CELLS = 4
"""Cells of the coarse grid in a standard deviation."""
COARSE_IMAGES = 16
"""Images that are encoded before the first one on the fine grid."""
GROWTH = 12
"""Images whose bits suffice to encode one more."""


def most_plain(num_levels: int) -> int:
    """Return the number of images that are encoded first, without the model, if the set has that many."""
    return math.ceil(PLAIN_BITS / math.log2(num_levels))


def batches(num_images: int, most: int, *, decoding: bool) -> Iterator[range]:
    """Yield the numbers of the images in each batch of at most `most`, in the order of encoding, or of decoding.

    They are made one at a time: a damaged file may claim any number of images.
    """
    growing, coded = list[int](), 0
    while coded < num_images and coded // GROWTH < most:
        growing.append(min(num_images - coded, max(1, coded // GROWTH)))
        coded += growing[-1]
    full, rest = divmod(num_images - coded, most)
    last = [rest] if rest else []
    sizes = chain(last, repeat(most, full), reversed(growing)) if decoding else chain(growing, repeat(most, full), last)
    for first, end in pairwise(accumulate(sizes, initial=0)):
        yield range(first, end) if decoding else range(num_images - end, num_images - first)
