"""Compress images to a .vdmz file, and decompress it: both write their output completely or not at all."""

import re
from pathlib import Path
from typing import NoReturn

import numpy as np

from flows.compression.decoding import Decoder, codec_of
from flows.compression.encoding import write_file
from flows.compression.images import ARRAY, Images, open_images, require_fitting, write_decoded
from flows.core.checkpoint import load_model, model_sha256
from flows.core.device import find_device
from flows.core.documents import Count, Document, Number, Sha256
from flows.core.errors import Exit, UserError
from flows.core.files import open_regular, remove, scratch_folder, writing, writing_folder
from flows.evaluation.results import Figure, Split
from flows.process.ending import finish
from flows.process.progress import bar

WRITTEN = re.compile(rf"\d+\.png|{re.escape(ARRAY)}")


class Compressed(Document):
    """What `compress` has written, in bytes and in bits/dim.

    `net_bpd` counts every bit of the file.  `net_bpd_without_initial_bits` leaves out the initial bits alone.
    `bound_bpd` is the bound of the same images in as many steps, with the noise of the code; its standard error is over
    images.
    """

    out: str
    num_images: Count
    image_shape: list[Count]
    num_levels: Count
    num_timesteps: Count
    batch_size: Count
    file_bytes: Count
    pixel_bytes: Count
    net_bpd: Number
    initial_bits: Count
    net_bpd_without_initial_bits: Number
    bound_bpd: Figure
    bound_bpd_standard_error: Figure
    verified: bool
    pixels_sha256: Sha256
    model_sha256: Sha256


class Decompressed(Document):
    """What `decompress` has written."""

    out: str
    num_images: Count
    image_shape: list[Count]
    num_levels: Count
    num_timesteps: Count
    pixels_sha256: Sha256
    model_sha256: Sha256


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
    """Write the images in `source` (see `open_images`) to the file `out`, and decode it before it gets this name.

    Raises what `open_images` and `require_fitting` raise, and UserError: exit 2 if the file exists, without `force`,
    and 5 if it does not decode to the images, or if the model's output is not finite.
    """
    require_new_file(out, force=force)
    vdm = load_model(model, find_device(device)).double()
    codec, given = codec_of(vdm, num_timesteps), model_sha256(model)
    with scratch_folder() as scratch, writing(out) as file:
        images = open_images(source, split, scratch)
        digest = require_fitting(images, vdm, source, model)
        with bar("compressing")(range(images.number * num_timesteps)) as shown:
            written = write_file(
                file,
                images,
                codec,
                num_timesteps=num_timesteps,
                batch_size=batch_size,
                model_sha256=given,
                pixels_sha256=digest,
                scratch=scratch,
                tick=shown.update,
            )
        if verify:
            require_same(Path(file.name), images, out, model=model, device=device)
        finish()
    dims = images.number * vdm.num_dims
    bits = 8 * written.num_bytes
    return Compressed(
        out=str(out),
        num_images=images.number,
        image_shape=list(vdm.image_shape),
        num_levels=vdm.num_levels,
        num_timesteps=num_timesteps,
        batch_size=batch_size,
        file_bytes=written.num_bytes,
        pixel_bytes=dims,
        net_bpd=bits / dims,
        initial_bits=written.initial_bits,
        net_bpd_without_initial_bits=(bits - written.initial_bits) / dims,
        bound_bpd=written.bounds.mean,
        bound_bpd_standard_error=written.bounds.standard_error,
        verified=verify,
        pixels_sha256=digest.hex(),
        model_sha256=given,
    )


def require_new_file(out: Path, *, force: bool) -> None:
    """Raise UserError (exit 2) if `out` is a folder, or if it exists, without `force`."""
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file", Exit.USAGE)
    if out.exists() and not force:
        raise UserError(f"{out} exists; name another file, or replace it with --force", Exit.USAGE)


def require_same(file: Path, images: Images, out: Path, *, model: Path, device: str) -> None:
    """Raise UserError (exit 5) unless the file decodes to the images; errors call it `out`."""
    with open_regular(file) as opened:
        decoder = Decoder(opened, str(out), model=model, device=device)
        with bar("verifying")(range(images.number * decoder.header.num_timesteps)) as shown:
            for part in decoder.images(shown.update):
                first = decoder.num_decoded - len(part)
                if not np.array_equal(part, images.rows(first, decoder.num_decoded)):
                    decoder.reason = f"images {first} to {decoder.num_decoded - 1} differ"
                    break
    if decoder.reason:
        raise UserError(f"{out}: not written, since it does not decode to the images: {decoder.reason}", Exit.MISSING)


def decompress(file: Path, *, model: Path, out: Path, device: str, force: bool) -> Decompressed:
    """Write the images in a file into the folder `out`, completely or not at all.

    The images before a damaged part go to the folder `OUT.recovered`.  Raises what `Decoder` raises, and UserError:
    exit 2 for folders that exist, without `force` or with other files, and 5 for a file that cannot be decoded.
    """
    recovered = out.with_name(f"{out.name}.recovered")
    for folder in (out, recovered):
        require_new_folder(folder, force=force)
    with open_regular(file) as opened:
        decoder = Decoder(opened, str(file), model=model, device=device)
        header = decoder.header
        with writing_folder(out) as folder:
            with bar("decompressing")(range(header.num_images * header.num_timesteps)) as shown:
                write_decoded(decoder.images(shown.update), folder, count=header.num_images, pictures=header.pictures)
            finish()
            if decoder.reason:
                keep(folder, recovered, decoder, file)
    return Decompressed(
        out=str(out),
        num_images=decoder.num_decoded,
        image_shape=header.image_shape,
        num_levels=header.num_levels,
        num_timesteps=header.num_timesteps,
        pixels_sha256=decoder.pixels.hexdigest(),
        model_sha256=model_sha256(model),
    )


def require_new_folder(out: Path, *, force: bool) -> None:
    """Raise UserError (exit 2) if `out` exists, without `force` or with other files than `decompress` writes."""
    if not out.exists():
        return
    if not force:
        raise UserError(f"{out} exists; name another folder, or replace it with --force", Exit.USAGE)
    if not out.is_dir() or not all(WRITTEN.fullmatch(path.name) for path in out.iterdir()):
        raise UserError(f"{out} holds other files than decoded images; name another folder", Exit.USAGE)


def keep(folder: Path, recovered: Path, decoder: Decoder, file: Path) -> NoReturn:
    """Move a folder with the images before a damaged part to its place, and raise UserError (exit 5)."""
    all_images, count = decoder.header.num_images, decoder.num_decoded
    where = ""
    if count:
        remove(recovered)
        folder.rename(recovered)
        where = f", in {recovered}"
    raise UserError(f"{file}: {decoder.reason}; recovered {count} of {all_images} images{where}", Exit.MISSING)
