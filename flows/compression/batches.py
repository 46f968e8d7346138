"""In which batches images are coded, and which of them share a checksum.

Images are encoded from the last to the first, so that they are decoded in order.  The first one needs initial bits, and
a batch needs as many for each of its images.  So the batches begin with one image, and grow with the images whose bits
are already there.
"""

from collections.abc import Iterator
from itertools import chain, repeat

GROWTH = 6
"""Images whose bits suffice to encode one more: until it returns them, an image takes some 8 bits per dimension."""
CHECKED_DIMS = 4096
"""Dimensions after which a batch ends with a checksum of 32 bits."""


def groups(num_images: int, num_dims: int, most: int, *, backwards: bool) -> Iterator[list[int]]:
    """Yield the sizes of the batches, at most `most` each, in groups that share a checksum.

    They come in the order of encoding, or `backwards` in that of decoding, without a list of all.
    """
    every = -(-CHECKED_DIMS // num_dims)
    coded, group = num_images if backwards else 0, list[int]()
    for size in batches(num_images, most, backwards=backwards):
        before, after = (coded - size, coded) if backwards else (coded, coded + size)
        ends = after == num_images or before // every < after // every
        if backwards and ends and group:
            yield group
            group = []
        group.append(size)
        if not backwards and ends:
            yield group
            group = []
        coded = before if backwards else after
    if group:
        yield group


def batches(num_images: int, most: int, *, backwards: bool) -> Iterator[int]:
    """Yield the sizes of the batches in the order of encoding, or `backwards` in that of decoding."""
    growing, coded = list[int](), 0
    while coded < num_images and coded // GROWTH < most:
        growing.append(min(num_images - coded, max(1, coded // GROWTH)))
        coded += growing[-1]
    full, rest = divmod(num_images - coded, most)
    parts = [growing, repeat(most, full), [rest] if rest else []]
    return chain(parts[2], parts[1], reversed(growing)) if backwards else chain(*parts)
