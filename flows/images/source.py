"""A source: it yields pictures with names, labels and splits, whatever contains them."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flows.images.picture import Picture
from vdm.choices import Split


class Source(NamedTuple):
    """All pictures of a source, to be read once."""

    name: str
    """For messages."""
    pictures: Iterable[Picture]
    """Their pixels are levels, uint8 or uint16."""
    origin: dict[str, Any]
    """What `dataset.json` says of the source; complete when all pictures were read."""
    given: frozenset[Split] = frozenset()
    """The splits that the source has.  Others are drawn: test images from all, validation images from the training."""
    counts: Mapping[Split, int] = MappingProxyType({})
    """How many images the source must have in its own splits, if that is known."""
