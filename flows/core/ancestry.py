"""The models from which a training began, as the config.json and the metrics.json of its result state them."""

from typing import NamedTuple

from flows.core.documents import Document, Sha256


class Ancestor(Document):
    """A model from whose averaged weights a training began."""

    name: str
    """The version, or the folder that `train.start_from` named."""
    model_sha256: Sha256
    licence: str | None = None
    """Of the images that it was trained on; null if it is not stated."""


class SeenImages(NamedTuple):
    """The images that the models of a line were trained on, as far as they are known."""

    digests: set[bytes]
    unknown: dict[str, str]
    """The models of the line whose images are not known: their names by their digests."""
