"""Compress images to a .vdmz file, and decompress it: both write their output completely or not at all."""

import hashlib
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flows.compression.coding import Coding, coding_of, new_coding
from flows.core.documents import Count, Document, Figure, Number, Sha256
from flows.core.errors import Exit, UserError
from flows.core.files import name_in_errors, read_bounded, replace_file, replace_folder
from flows.core.model import TrainedModel
from flows.images.image_set import Chosen, is_given_class, write_array
from flows.images.picture import Picture
from flows.images.user_files import SHADES, require_fitting
from flows.process.streams import bar
from vdm.evaluation import BoundSettings, evaluate
from vdm.grids import Grid

BOUND_TIMES, BOUND_BATCH = 32, 128
"""The noise levels of each image from which the bound is computed, and the evaluations of the network at once."""
MOST_BYTES = 2**32
"""The largest file that is decoded; it is read into memory."""
ARRAY = "images.npy"
WRITTEN = rf"\d+\.png|{re.escape(ARRAY)}"


class Decompressed(Document):
    """What `decompress` has written."""

    out: str
    num_images: Count
    image_shape: list[Count]
    num_levels: Count
    num_timesteps: Count
    pixels_sha256: Sha256
    model_sha256: Sha256


class Compressed(Decompressed):
    """What `compress` has written, in bytes and in bits/dim.

    `net_bpd` counts every byte of the file.  `code_bpd` is what the images added that were encoded with the model: all
    but `plain_images`, which are encoded first.  The noise that is drawn makes it vary around the bound; in few steps
    it may be shorter (docs/codec.md).  `initial_bits` are pseudo-random bits in the file.  `bound_bpd` is the bound of
    all images in as many steps, from 32 noise levels each; its standard error is over images.
    """

    batch_size: Count
    pixel_bytes: Count
    file_bytes: Count
    net_bpd: Number
    code_bpd: Figure
    initial_bits: Count
    classes: bool
    """Whether the classes of the images are in the file, too, and all figures given them."""
    plain_images: Count
    bound_bpd: Figure
    bound_bpd_standard_error: Figure
    verified: bool


def compress(
    images: Chosen, model: TrainedModel, out: Path, *, num_timesteps: int, batch_size: int, verify: bool
) -> Compressed:
    """Write the images to the file `out`.  With `verify`, first check that it decodes.

    Raises UserError: exit 2 for images that do not fit the model, 5 if the file does not decode to the images, or if
    the model's output is not finite.
    """
    with replace_file(out) as file:  # an unwritable folder is reported before the images are encoded
        array = images.pixels
        images.require_valid()
        # Of the levels of a set, its images may have only those that the model has.
        require_fitting([Picture(array, images.set.num_levels, "NPY")], images.set.name, model)
        classes = images.classes(model) if is_given_class(model, "auto", images.set) else None
        pixels = hashlib.sha256(np.ascontiguousarray(array).data)
        coding = new_coding(  # before the slow bound
            model,
            num_images=len(array),
            num_timesteps=num_timesteps,
            batch_size=batch_size,
            pictures=images.set.description.pictures,
            classes=classes is not None,
        )
        settings = BoundSettings(times_per_image=BOUND_TIMES, grid=Grid(num_timesteps), batch_size=BOUND_BATCH, seed=0)
        bound = evaluate(model.vdm, array, settings, labels=classes, progress=bar("evaluating"))
        with bar("compressing")(range(coding.num_evaluations)) as shown:
            encoded = coding.encode(array, pixels.digest(), shown.update, classes)
        if verify:
            require_decodable(encoded.content, out, model)
        file.write(encoded.content)
    file_bytes = len(encoded.content)
    return Compressed(
        **describe_decompressed(coding, out, model, pixels.hexdigest()),
        batch_size=batch_size,
        pixel_bytes=array.nbytes,
        file_bytes=file_bytes,
        net_bpd=8 * file_bytes / array.size,
        code_bpd=encoded.code_bpd,
        initial_bits=encoded.initial_bits,
        classes=coding.header.classes,
        plain_images=len(array) - coding.num_modelled,
        bound_bpd=bound.bpd.mean(),
        bound_bpd_standard_error=bound.standard_error,
        verified=verify,
    )


def require_decodable(content: bytes, out: Path, model: TrainedModel) -> None:
    """Raise UserError (exit 5) unless the content of `out` decodes to the images, whose sha256 is in it."""
    coding = coding_of(content, str(out), model)
    try:
        with bar("verifying")(range(coding.num_evaluations)) as shown:
            for _ in coding.decode(content, str(out), shown.update):
                pass
    except UserError as error:
        raise UserError(f"{out}: not written, since it does not decode to the images here", Exit.MISSING) from error


def describe_decompressed(coding: Coding, out: Path, model: TrainedModel, pixels_digest: str) -> dict[str, Any]:
    """Return the fields of `Decompressed`."""
    return {
        "out": str(out),
        "num_images": coding.header.num_images,
        "image_shape": list(coding.vdm.image_shape),
        "num_levels": coding.vdm.num_levels,
        "num_timesteps": coding.header.num_timesteps,
        "pixels_sha256": pixels_digest,
        "model_sha256": model.sha256,
    }


def decompress(file: Path, model: TrainedModel, out: Path) -> Decompressed:
    """Write the images in a file into the folder `out`, completely or not at all.

    Raises what `coding_of` raises, and UserError (exit 5) for a file that cannot be decoded.
    """
    content = read_bounded(file, MOST_BYTES)
    coding = coding_of(content, str(file), model)
    header, num_levels = coding.header, coding.vdm.num_levels
    with replace_folder(out) as folder, bar("decompressing")(range(coding.num_evaluations)) as shown:
        parts = coding.decode(content, str(file), shown.update)
        write_decoded(parts, folder, count=header.num_images, num_levels=num_levels, pictures=header.pictures)
    return Decompressed(**describe_decompressed(coding, out, model, coding.pixels.hexdigest()))


def write_decoded(parts: Iterator[np.ndarray], folder: Path, *, count: int, num_levels: int, pictures: bool) -> None:
    """Write images into a folder: as numbered PNG files, or as `images.npy`.  Raises OSError that names the file."""
    if not pictures:
        write_array(folder / ARRAY, parts)
        return
    step, digits = SHADES.get(num_levels, np.uint8(1)), len(str(count - 1))
    for number, image in enumerate(step * image for image in chain.from_iterable(parts)):
        path = folder / f"{number:0{digits}d}.png"
        with name_in_errors(path, path):
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path)
