"""Compress images to a .vdmz file, and decompress it: both write their output completely or not at all."""

import hashlib
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from flows.compression.coding import Coding, Header, coding_of, machine_of, packed
from flows.compression.images import ARRAY, open_images, write_decoded
from flows.core.checkpoint import load_model, model_sha256
from flows.core.device import find_device
from flows.core.documents import Count, Document, Number, Sha256
from flows.core.errors import Exit, UserError
from flows.core.files import read_bounded, writing
from flows.core.folders import require_replaceable, writing_folder
from flows.evaluation.results import Figure
from flows.images.labels import classes_of, given_class
from flows.process.progress import bar
from vdm.choices import Split
from vdm.evaluation import evaluate

BOUND_TIMES, BOUND_BATCH = 32, 128
"""The noise levels of each image from which the bound is computed, and the evaluations of the network at once."""
MOST_BYTES = 2**32
"""The largest file that is decoded; it is read into memory."""
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
    source: Path,
    *,
    split: Split | None,
    model: Path,
    out: Path,
    num_timesteps: int,
    batch_size: int,
    device: str,
    verify: bool,
    force: bool,
) -> Compressed:
    """Write the images in `source` (see `open_images`) to the file `out`.  With `verify`, first check that it decodes.

    Raises what `open_images` raises, and UserError: exit 2 if the file exists, without `force`, and 5 if it does not
    decode to the images, or if the model's output is not finite.
    """
    require_replaceable(out, source, model, force=force)
    chosen = find_device(device)
    vdm, model_digest = load_model(model, chosen), model_sha256(model)
    with writing(out) as file:  # an unwritable folder is reported before the images are encoded
        images = open_images(source, split, model)
        classes = classes_of(source, split or "test", model) if given_class(model, "auto", source) else None
        pixels = hashlib.sha256(np.ascontiguousarray(images.array).data)
        header = Header(
            num_images=len(images.array),
            num_timesteps=num_timesteps,
            batch_size=batch_size,
            pictures=images.pictures,
            **machine_of(chosen),
            classes=classes is not None,
        )
        coding = Coding(deepcopy(vdm).double(), header, packed(header, model_digest))  # before the slow bound
        bound = evaluate(
            vdm,
            images.array,
            times_per_image=BOUND_TIMES,
            num_timesteps=num_timesteps,
            batch_size=BOUND_BATCH,
            seed=0,
            labels=classes,
            progress=bar("evaluating"),
        )
        with bar("compressing")(range(coding.num_evaluations)) as shown:
            encoded = coding.encode(images.array, pixels.digest(), shown.update, classes)
        if verify:
            require_decodable(encoded.content, out, model=model, device=device)
        file.write(encoded.content)
    file_bytes, pixel_bytes = len(encoded.content), images.array.size
    return Compressed(
        **described(coding, out, model, pixels.hexdigest()),
        batch_size=batch_size,
        pixel_bytes=pixel_bytes,
        file_bytes=file_bytes,
        net_bpd=8 * file_bytes / pixel_bytes,
        code_bpd=encoded.code_bpd,
        initial_bits=encoded.initial_bits,
        classes=header.classes,
        plain_images=len(images.array) - coding.num_modelled,
        bound_bpd=bound.bpd.mean(),
        bound_bpd_standard_error=bound.standard_error,
        verified=verify,
    )


def require_decodable(content: bytes, out: Path, *, model: Path, device: str) -> None:
    """Raise UserError (exit 5) unless the content of `out` decodes to the images, whose sha256 is in it."""
    coding = coding_of(content, str(out), model=model, device=device)
    try:
        with bar("verifying")(range(coding.num_evaluations)) as shown:
            for _ in coding.decode(content, str(out), shown.update):
                pass
    except UserError as error:
        raise UserError(f"{out}: not written, since it does not decode to the images here", Exit.MISSING) from error


def described(coding: Coding, out: Path, model: Path, pixels_digest: str) -> dict[str, Any]:
    """Return the fields of `Decompressed`."""
    return {
        "out": str(out),
        "num_images": coding.header.num_images,
        "image_shape": list(coding.vdm.image_shape),
        "num_levels": coding.vdm.num_levels,
        "num_timesteps": coding.header.num_timesteps,
        "pixels_sha256": pixels_digest,
        "model_sha256": model_sha256(model),
    }


def decompress(file: Path, *, model: Path, out: Path, device: str, force: bool) -> Decompressed:
    """Write the images in a file into the folder `out`, completely or not at all.

    Raises what `coding_of` raises, and UserError: exit 2 for a folder that exists, without `force` or with other files,
    and 5 for a file that cannot be decoded.
    """
    require_replaceable(out, file, model, force=force, names=WRITTEN)
    content = read_bounded(file, MOST_BYTES)
    coding = coding_of(content, str(file), model=model, device=device)
    header, num_levels = coding.header, coding.vdm.num_levels
    with writing_folder(out) as folder, bar("decompressing")(range(coding.num_evaluations)) as shown:
        parts = coding.decode(content, str(file), shown.update)
        write_decoded(parts, folder, count=header.num_images, num_levels=num_levels, pictures=header.pictures)
    return Decompressed(**described(coding, out, model, coding.pixels.hexdigest()))
