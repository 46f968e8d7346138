"""Compress images to a .vdmz file, and decompress it: both write their output completely or not at all."""

import re
from copy import deepcopy
from pathlib import Path
from typing import NoReturn

import numpy as np

from flows.compression.batches import most_plain
from flows.compression.coding import Coding
from flows.compression.decoding import Decoder
from flows.compression.encoding import header_of, mean_bound, write_file
from flows.compression.header import MAGIC
from flows.compression.images import ARRAY, Images, open_images, require_fitting, write_decoded
from flows.core.checkpoint import load_model, model_sha256
from flows.core.device import find_device
from flows.core.documents import Count, Document, Number, Sha256
from flows.core.errors import Exit, UserError
from flows.core.files import open_regular, scratch_folder, writing
from flows.core.folders import contains, has_only, remove, writing_folder
from flows.evaluation.results import Figure
from flows.images.store import rows
from flows.process.ending import finish
from flows.process.progress import bar
from vdm.choices import Split

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

    Raises what `open_images` and `require_fitting` raise, and UserError: exit 2 if the file exists, without `force`,
    and 5 if it does not decode to the images, or if the model's output is not finite.
    """
    require_new_file(out, source, model, force=force)
    vdm, model_digest = load_model(model, find_device(device)), model_sha256(model)
    with scratch_folder() as scratch, writing(out) as file:
        images = open_images(source, split, scratch, vdm, model)
        pixels_digest = require_fitting(images, vdm, source, model)
        header = header_of(images, vdm, num_timesteps, batch_size)
        coding = Coding(deepcopy(vdm).double(), header)  # refuses options before the slow bound
        bound, error = mean_bound(vdm, images, num_timesteps)
        with bar("compressing")(range(header.num_evaluations)) as shown:
            written = write_file(file, images, coding, model_digest, pixels_digest, tick=shown.update)
        if verify:
            require_same(Path(file.name), images, out, model=model, device=device)
        finish()
    pixel_bytes = len(images.array) * vdm.num_dims
    return Compressed(
        out=str(out),
        **header.model_dump(include=set(Compressed.model_fields)),
        pixel_bytes=pixel_bytes,
        net_bpd=8 * written.file_bytes / pixel_bytes,
        **written._asdict(),
        plain_images=min(most_plain(vdm.num_levels), len(images.array)),
        bound_bpd=bound,
        bound_bpd_standard_error=error,
        verified=verify,
        pixels_sha256=pixels_digest.hex(),
        model_sha256=model_digest,
    )


def require_new_file(out: Path, source: Path, model: Path, *, force: bool) -> None:
    """Raise UserError (exit 2) if `out` is a folder, lies in the folder `model`, or exists, without `force`.

    Even with `force`, it may replace no file in `source` (or `source` itself) but an earlier compressed file.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file", Exit.USAGE)
    if out.exists() and not force:
        raise UserError(f"{out} exists; name another file, or replace it with --force", Exit.USAGE)
    if out.exists() and contains(source, out) and not is_compressed(out):
        raise UserError(f"{out} would replace the images that it is made from; name another file", Exit.USAGE)
    if contains(model, out):
        raise UserError(f"{out} lies in the folder of the model; name another file", Exit.USAGE)


def is_compressed(file: Path) -> bool:
    """Whether a file begins like those that `compress` writes.  Raises OSError."""
    with open_regular(file) as opened:
        return opened.read(len(MAGIC)) == MAGIC


def require_same(file: Path, images: Images, out: Path, *, model: Path, device: str) -> None:
    """Raise UserError (exit 5) unless the file decodes to the images; errors call it `out`."""
    with open_regular(file) as opened:
        decoder = Decoder(opened, str(out), model=model, device=device)
        with bar("verifying")(range(decoder.header.num_evaluations)) as shown:
            for part in decoder.images(shown.update):
                first = decoder.num_decoded - len(part)
                if not np.array_equal(part, rows(images.array, first, decoder.num_decoded)):
                    decoder.reason = f"images {first} to {decoder.num_decoded - 1} differ"
                    break
    if decoder.reason:
        raise UserError(f"{out}: not written, since it does not decode to the images: {decoder.reason}", Exit.MISSING)


def decompress(file: Path, *, model: Path, out: Path, device: str, force: bool) -> Decompressed:
    """Write the images in a file into the folder `out`, completely or not at all.

    The images before a damaged part go to the folder `OUT.recovered`.
    Raises what `Decoder` raises, and UserError: exit 2 for folders that exist, without `force` or with other files, and
    5 for a file that cannot be decoded.
    """
    require_new_folder(out, force=force)
    recovered = out.with_name(f"{out.name}.recovered")
    require_new_folder(recovered, force=force)
    with open_regular(file) as opened:
        decoder = Decoder(opened, str(file), model=model, device=device)
        header = decoder.header
        with writing_folder(out) as folder:
            with bar("decompressing")(range(header.num_evaluations)) as shown:
                described = header.model_dump(include={"num_levels", "pictures"})
                write_decoded(decoder.images(shown.update), folder, count=header.num_images, **described)
            finish()
            if decoder.reason:
                keep(folder, recovered, decoder, file)
    return Decompressed(
        out=str(out),
        **header.model_dump(include=set(Decompressed.model_fields)),
        pixels_sha256=decoder.pixels.hexdigest(),
        model_sha256=model_sha256(model),
    )


def require_new_folder(out: Path, *, force: bool) -> None:
    """Raise UserError (exit 2) if `out` exists, without `force` or with other files than `decompress` writes."""
    if not out.name:
        raise UserError(f"{out} cannot be replaced; name another folder", Exit.USAGE)
    if not out.exists():
        return
    if not force:
        raise UserError(f"{out} exists; name another folder, or replace it with --force", Exit.USAGE)
    if not out.is_dir() or not has_only(out, WRITTEN):
        raise UserError(f"{out} holds other files than decoded images; name another folder", Exit.USAGE)


def keep(folder: Path, recovered: Path, decoder: Decoder, file: Path) -> NoReturn:
    """Move `folder`, which has the images before the damaged part, to `recovered`, and raise UserError (exit 5).

    A link called `recovered` is replaced, not followed.
    """
    all_images, count = decoder.header.num_images, decoder.num_decoded
    where = ""
    if count:
        remove(recovered)
        folder.rename(recovered)
        where = f", in {recovered}"
    raise UserError(f"{file}: {decoder.reason}; recovered {count} of {all_images} images{where}", Exit.MISSING)
