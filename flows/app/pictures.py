"""The pictures in a request, read as `vdmctl evaluate --images` reads them; images on their way back."""

import base64
import binascii
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from flows.app.answers import Example, Refused
from flows.app.questions import MOST_IMAGES, Sent
from flows.core.errors import Exit, FileError, UserError
from flows.core.escaping import visible
from flows.core.files import scratch_folder
from flows.core.model import TrainedModel
from flows.core.params import Data
from flows.images.folder import ENDINGS, open_source
from flows.images.grids import as_8_bits, png
from flows.images.image_set import Chosen
from flows.images.made_to_fit import MOST_PIXELS, read_to_fit, takes_pictures
from flows.images.picture import Picture, read_size
from flows.images.user_files import (
    LARGE,
    make_set,
    read_files,
    read_made_to_fit,
    require_fitting,
    require_size,
    transforms_of,
)


class SentImages(NamedTuple):
    """The images that fit the model, the picture of each, and the files that do not fit."""

    images: Chosen
    pictures: list[Picture]
    refused: list[Refused]


class NothingFits(UserError):
    """None of the pictures fits the model (exit 4)."""

    def __init__(self, message: str, code: Exit = Exit.INVALID_DATA, refused: Sequence[Refused] = ()) -> None:
        super().__init__(message, code)
        self.refused = refused


class Allowance:
    """The pixels that the pictures of a request may still have, which bounds the time and the memory of decoding."""

    def __init__(self) -> None:
        self.left = MOST_PIXELS

    def take(self, path: Path) -> None:
        """Take the pixels of a picture that is about to be decoded.  Raises UserError (exit 4) if too few are left."""
        size = read_size(path)
        if size and size.cost > self.left:
            reason = f"the pictures of a request have at most {MOST_PIXELS:,} pixels together"
            advice = "those with transparency count twice; send it alone, or make it smaller"
            raise UserError(f"{reason}, and {advice}", Exit.INVALID_DATA)
        self.left -= size.cost if size else 0


def read_sent(sent: Sequence[Sent], model: TrainedModel, pause: Callable[[], None]) -> SentImages:
    """Return the images, transformed as the model's card says; pause after each file.

    Raises NothingFits, and UserError (exit 5) for a card that is damaged.
    """
    transforms, allowance = transforms_of(model), Allowance()
    found: list[Picture] = []
    refused = []
    for one in sent:
        try:
            with a_file(one) as path, open_source(path) as files:
                if one.fit and path.suffix != ".npy":
                    allowance.take(path)
                    read = read_made_to_fit(files, model, transforms)
                else:
                    require_size(path, transforms, model, small=True, shown=one.name)
                    allowance.take(path)
                    read = read_files(files, transforms, most=MOST_IMAGES - len(found))
                    require_fitting(read, one.name, model)
            found += [
                each.part(slice(row, row + 1))._replace(name=one.name)
                for each in read
                for row in range(len(each.pixels))
            ]
        except UserError as error:
            fit = None if one.fit else what_fits(one, model, transforms, allowance)
            refused.append(Refused(name=one.name, error=str(error), fit=fit))
        pause()
    if not found:
        reason, more = refused[0].error, len(refused) - 1
        raise NothingFits(f"{reason}; and {more} more" if more else reason, refused=refused)
    return SentImages(Chosen(make_set(found, "what was sent", model), "test"), found, refused)


def what_fits(
    sent: Sent, model: TrainedModel, transforms: Data | None, allowance: Allowance
) -> Literal["shades", "size"] | None:
    """Return what would make a picture fit, of a large one by its header; None if nothing would."""
    try:
        with a_file(sent) as path:
            size = read_size(path)
            if (
                size
                and size.num_pixels >= LARGE
                and size.cost <= MOST_PIXELS
                and not (transforms and transforms.resize)
            ):
                return "size" if takes_pictures(model) else None
            allowance.take(path)
            return "size" if read_to_fit(path, model, transforms).is_resized else "shades"
    except UserError:
        return None


@contextmanager
def a_file(sent: Sent) -> Iterator[Path]:
    """Yield a file of this content, which exists while the block runs; errors inside the block name what was sent.

    All of them are of exit 4, also that of another ending than those of images, and of text that is no base64.
    """
    name, ending = visible(sent.name), Path(sent.name).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{name}: not a picture by its name, which must end in {', '.join(ENDINGS)}", Exit.INVALID_DATA)
    try:
        content = base64.b64decode(sent.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{name}: its data is no base64", Exit.INVALID_DATA) from error
    with scratch_folder() as folder:
        path = folder / f"image{ending}"
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, which tell the log what is in the file
                yield path
        except FileError as error:
            raise FileError(name, error.reason, Exit.INVALID_DATA) from error
        except UserError as error:
            raise FileError(name, str(error), Exit.INVALID_DATA) from error


def example(name: str, image: np.ndarray, model: TrainedModel) -> Example:
    """Return an image (C,H,W) of the model as it can be sent, under this name, and as it looks."""
    return Example(name=name, data=npy_base64(image), seen=png_base64(image, model.num_levels))


def png_base64(image: np.ndarray, num_levels: int) -> str:
    """Return an image (C,H,W) of levels as a PNG file in base64: gray or in colour, else its channels side by side."""
    if len(image) not in (1, 3):
        image = np.concatenate(list(image), axis=1)[None]
    return base64.b64encode(png(as_8_bits(image[None], num_levels)[0])).decode()


def npy_base64(images: np.ndarray) -> str:
    """Return an array as an .npy file in base64."""
    content = BytesIO()
    np.save(content, images, allow_pickle=False)
    return base64.b64encode(content.getvalue()).decode()
