"""`vdmctl compress` and `decompress`: every pixel comes back; damage, other models and machines are named."""

import io
import json
import math
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from flows import cli
from flows.compression import batches, coding, encoding, files, words
from flows.compression.decoding import Decoder
from flows.compression.files import Compressed
from flows.compression.header import packed, read_header
from flows.compression.images import Images, write_decoded
from flows.compression.words import Stack
from flows.core import memory
from flows.core.checkpoint import load_model, save_model
from flows.core.errors import Exit, UserError
from flows.images.store import SPLITS, save_images
from vdm.codec import Codec
from vdm.evaluation import evaluate
from vdm.model import VDM

SHAPE = (1, 6, 5)
SMALL = TINY | {"image_shape": SHAPE}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of two models of the same images."""
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("one", "other")):
        torch.manual_seed(number)
        model = VDM(**SMALL)  # type: ignore[arg-type]
        for parameter in model.network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        save_model(folder / name, model, SMALL)
    return folder / "one", folder / "other"


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "BOUND_TIMES", 2)
        patch.setattr(batches, "CHECKED_DIMS", 180)  # six images
        patch.setattr(words, "BLOCK_BYTES", 256)
        yield


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Return 40 images (N,C,H,W) of levels 0..16."""
    return np.random.default_rng(0).integers(0, 17, (40, *SHAPE), dtype=np.uint8)


@pytest.fixture
def write(tmp_path: Path, models: tuple[Path, Path], pixels: np.ndarray) -> Callable[..., Compressed]:
    """Return a function that compresses the images to `images.vdmz`."""
    np.save(tmp_path / "images.npy", pixels)

    def run(source: str = "images.npy", **changes: Any) -> Compressed:
        options = OPTIONS | {"model": models[0], "out": tmp_path / "images.vdmz"}
        return files.compress(tmp_path / source, **options | changes)

    return run


OPTIONS: dict[str, Any] = {
    "split": None,
    "num_timesteps": 2,
    "batch_size": 4,
    "device": "cpu",
    "verify": False,
    "force": True,
}


@pytest.fixture(scope="module")
def content(
    quick: None, models: tuple[Path, Path], pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """Return the file that `write()` writes."""
    folder = tmp_path_factory.mktemp("content")
    np.save(folder / "images.npy", pixels)
    files.compress(folder / "images.npy", model=models[0], out=folder / "images.vdmz", **OPTIONS)
    return (folder / "images.vdmz").read_bytes()


def read(content: bytes, model: Path) -> tuple[np.ndarray, str]:
    """Return the images that a file of this content decodes to, and why not more."""
    decoder = Decoder(io.BytesIO(content), "images.vdmz", model=model, device="cpu")
    parts = list(decoder.images(id))
    return np.concatenate(parts) if parts else np.zeros((0, *SHAPE), np.uint8), decoder.reason


def other_grid(content: bytes) -> bytes:
    """Return a file as a program with other grids would write it."""
    file = io.BytesIO(content)
    header, _, _ = read_header(file, "x")
    return packed(header.model_copy(update={"grid": [4, 32, 64]}), content[5:13].hex())[0] + file.read()


def with_words_below(content: bytes, added: list[int]) -> bytes:
    """Return a file with words below its own, the lowest first, and with the checksums of all."""
    file = io.BytesIO(content)
    header, _, checksum = read_header(file, "x")
    stack = Stack(io.BytesIO(), bytes(32))
    stack.put(added)
    for block in reversed(list(words.read_blocks(file, header.num_words, checksum))):
        stack.put(block)
    start, checksum = packed(header.model_copy(update={"num_words": stack.num_words}), content[5:13].hex())
    longer = io.BytesIO()
    longer.write(start)
    words.write_blocks(longer, stack, checksum)
    return longer.getvalue()


def test_the_images_are_not_replaced_by_their_file(tmp_path: Path) -> None:
    (tmp_path / "images.npy").touch()
    with pytest.raises(UserError, match=r"images\.npy would replace the images"):
        files.require_new_file(tmp_path / "images.npy", tmp_path / "images.npy", tmp_path / "model", force=True)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_pixel_comes_back(
    batch_size: int, write: Callable[..., Compressed], pixels: np.ndarray, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    done = write(batch_size=batch_size, verify=True)
    content = (tmp_path / "images.vdmz").read_bytes()
    assert done.file_bytes == len(content)
    assert done.net_bpd == 8 * len(content) / pixels.size
    assert (done.num_images, done.plain_images, done.verified) == (40, 2, True)
    header, _, _ = read_header(io.BytesIO(content), "x")
    others = done.initial_bits + 256 + 2 * 30 * math.log2(17)  # the sha256, and the images that are encoded plainly
    assert done.code_bpd is not None
    assert done.code_bpd * 38 * 30 == pytest.approx(32 * header.num_words - others, abs=64)
    again = files.decompress(tmp_path / "images.vdmz", model=models[0], out=tmp_path / "out", device="cpu", force=False)
    assert again.pixels_sha256 == done.pixels_sha256
    assert (np.load(tmp_path / "out/images.npy") == pixels).all()
    write(batch_size=batch_size)
    assert (tmp_path / "images.vdmz").read_bytes() == content


@pytest.mark.parametrize(("count", "uses_model"), [(1, False), (2, False), (3, True), (25, True)])
def test_a_few_images_come_back(
    count: int, uses_model: bool, write: Callable[..., Compressed], pixels: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "few.npy", pixels[:count])
    done = write("few.npy", verify=True)
    assert done.num_images == count
    assert isinstance(done.code_bpd, float) == uses_model


@pytest.mark.slow
def test_pictures_come_back_as_pictures_and_a_split_as_an_array(
    write: Callable[..., Compressed], pixels: np.ndarray, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    (tmp_path / "pictures").mkdir()
    for number, image in enumerate(pixels[:12]):
        Image.fromarray(image[0]).save(tmp_path / f"pictures/{number:02}.png")
    splits = dict.fromkeys(SPLITS, pixels[:5]) | {"test": pixels[:9]}
    save_images(tmp_path / "set", splits, {"name": "x", "num_levels": 17})
    out, one = tmp_path / "out", models[0]
    for source, split, names in (
        ("pictures", None, [f"{number:02}.png" for number in range(12)]),
        ("set", None, ["images.npy"]),
        ("set", "train", ["images.npy"]),
    ):
        done = write(source, split=split, verify=True)
        files.decompress(tmp_path / "images.vdmz", model=one, out=out, device="cpu", force=True)
        assert sorted(path.name for path in out.iterdir()) == names
        array = names == ["images.npy"]
        found = np.load(out / "images.npy")[:, 0] if array else [np.asarray(Image.open(out / name)) for name in names]
        assert (np.array(found) == pixels[: done.num_images, 0]).all()
    with pytest.raises(UserError, match="has no splits; leave out --split"):
        write(split="test")


@pytest.mark.parametrize("num_bits", [1, 2, 4])
def test_pictures_of_few_bits_come_back_in_their_shades(num_bits: int, tmp_path: Path) -> None:
    num_levels = 2**num_bits
    described = SMALL | {"num_levels": num_levels}
    torch.manual_seed(0)
    save_model(tmp_path / "model", VDM(**described), described)  # type: ignore[arg-type]
    (tmp_path / "pictures").mkdir()
    levels = np.random.default_rng(0).integers(0, num_levels, (3, 6, 5), dtype=np.uint8)
    for number, image in enumerate(levels):
        shades = Image.fromarray(image * np.uint8(255 // (num_levels - 1)))
        (shades.convert("1") if num_bits == 1 else shades).save(tmp_path / f"pictures/{number}.png", bits=num_bits)
    options: dict[str, Any] = {"num_timesteps": 2, "batch_size": 4, "verify": True, "split": None}
    options |= {"device": "cpu", "force": False}
    file, out = tmp_path / "images.vdmz", tmp_path / "out"
    files.compress(tmp_path / "pictures", model=tmp_path / "model", out=file, **options)
    files.decompress(file, model=tmp_path / "model", out=out, device="cpu", force=False)
    for number in range(3):
        with Image.open(tmp_path / f"pictures/{number}.png") as before, Image.open(out / f"{number}.png") as after:
            assert (np.asarray(before.convert("L")) == np.asarray(after.convert("L"))).all()


def test_pictures_of_few_bits_need_a_model_of_as_many_levels(write: Callable[..., Compressed], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("1", (5, 6)).save(tmp_path / "pictures/0.png")
    with pytest.raises(UserError, match=r"is a model of 17 levels; .* holds pictures of 2 levels") as error:
        write("pictures")
    assert error.value.code == Exit.USAGE


@pytest.mark.slow
def test_a_file_that_is_cut_short_returns_the_images_before_the_cut(
    content: bytes, pixels: np.ndarray, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    counts = []
    for length in range(len(content) - 1, 60, -467):
        found, reason = read(content[:length], models[0])
        assert (found == pixels[: len(found)]).all()
        assert reason == f"cut short after {length:,} bytes"
        counts.append(len(found))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 30
    assert len(set(counts)) > 4
    short = tmp_path / "short.vdmz"
    short.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError) as raised:
        files.decompress(short, model=models[0], out=tmp_path / "out", device="cpu", force=False)
    recovered = np.load(tmp_path / "out.recovered/images.npy")
    assert len(recovered) > 5
    assert (recovered == pixels[: len(recovered)]).all()
    message = f"cut short after {short.stat().st_size:,} bytes; recovered {len(recovered)} of 40 images, in"
    assert str(raised.value) == f"{short}: {message} {tmp_path / 'out.recovered'}"
    assert raised.value.code == Exit.MISSING
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("leads_to", ["elsewhere", "nowhere"])
def test_a_link_in_place_of_recovered_images_is_replaced_and_not_followed(
    leads_to: str, content: bytes, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    (tmp_path / "short.vdmz").write_bytes(content[:-467])
    (tmp_path / "elsewhere").mkdir()
    recovered = tmp_path / "out.recovered"
    recovered.symlink_to(leads_to)
    with pytest.raises(UserError, match=r"recovered \d+ of 40 images, in"):
        files.decompress(tmp_path / "short.vdmz", model=models[0], out=tmp_path / "out", device="cpu", force=True)
    assert [path.name for path in recovered.iterdir()] == ["images.npy"]
    assert not recovered.is_symlink()
    assert not list((tmp_path / "elsewhere").iterdir())
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_recovered_images_lie_beside_the_folder_to_which_a_link_leads(
    content: bytes, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    """The link may lead to another file system, from which no folder can be renamed."""
    (tmp_path / "short.vdmz").write_bytes(content[:-467])
    (tmp_path / "large/disk").mkdir(parents=True)
    (tmp_path / "out").symlink_to("large/disk")
    with pytest.raises(UserError, match=r"recovered \d+ of 40 images, in .*/large/out.recovered"):
        files.decompress(tmp_path / "short.vdmz", model=models[0], out=tmp_path / "out", device="cpu", force=True)
    assert [path.name for path in (tmp_path / "large/out.recovered").iterdir()] == ["images.npy"]


@pytest.mark.slow
def test_a_flipped_bit_is_found_wherever_it_is(content: bytes, pixels: np.ndarray, models: tuple[Path, Path]) -> None:
    header = io.BytesIO(content)
    read_header(header, "x")
    random = np.random.default_rng(0)
    for place in [*range(header.tell()), *range(header.tell(), len(content), 307)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        if place < header.tell():
            with pytest.raises(UserError):
                read(bytes(damaged), models[0])
            continue
        found, reason = read(bytes(damaged), models[0])
        assert reason.startswith("damaged between bytes "), place
        assert (found == pixels[: len(found)]).all()
        assert len(found) < 40
    found, reason = read(content + b"x", models[0])
    assert (len(found), reason) == (40, "damaged: it does not end with its code")


@pytest.mark.slow
@pytest.mark.parametrize("plain_bits", [8, 0])
def test_words_below_the_last_image_are_found_and_take_no_memory(
    plain_bits: int,
    write: Callable[..., Compressed],
    pixels: np.ndarray,
    tmp_path: Path,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "PLAIN_BITS", plain_bits)
    np.save(tmp_path / "few.npy", pixels[:4])
    depth = write("few.npy").initial_bits // 32
    assert (depth > 0) == (plain_bits == 0)
    content = (tmp_path / "images.vdmz").read_bytes()
    assert with_words_below(content, []) == content
    initial = [words.initial_word(place) for place in reversed(range(depth, depth + 2**14))]
    for added in (initial, [7] * 2**14):
        longer = with_words_below(content, added)
        tracemalloc.start()
        found, reason = read(longer, models[0])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (found == pixels[:4]).all()
        assert reason == "damaged: its code goes on after its last image"
        assert peak < 2**19
    _, reason = read(with_words_below(content, [7]), models[0])
    assert reason.startswith("its next images decode differently on this machine: ")


def test_another_model_another_version_and_another_file_are_named(content: bytes, models: tuple[Path, Path]) -> None:
    for changed, model, message, code in (
        (content, models[1], "encoded with the model ", Exit.USAGE),
        (content[:4] + b"\x01" + content[5:], models[0], "version 1 of the format", Exit.MISSING),
        (other_grid(content), models[0], r"written on the grid \[4, 32, 64\], and this version ", Exit.MISSING),
        (b"PK" + content, models[0], "not a .vdmz file", Exit.MISSING),
        (b"", models[0], "not a .vdmz file", Exit.MISSING),
        (content[:3], models[0], "cut short in its header", Exit.MISSING),
        (content[:40], models[0], "cut short in its header", Exit.MISSING),
    ):
        with pytest.raises(UserError, match=f"^images.vdmz: {message}") as raised:
            read(changed, model)
        assert raised.value.code == code


def test_a_machine_that_computes_other_means_is_named_and_no_wrong_image_is_returned(
    content: bytes,
    pixels: np.ndarray,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = Codec.backward_mean, 0

    def other(self: Codec, z_t: torch.Tensor, t: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(self, z_t, t) + (1e-3 if calls == 11 else 0)

    monkeypatch.setattr(Codec, "backward_mean", other)
    found, reason = read(content, models[0])
    assert reason.startswith("its next images decode differently on this machine: it was made with torch ")
    assert 0 < len(found) < 40
    assert (found == pixels[: len(found)]).all()
    calls = -10_000
    monkeypatch.setattr(torch, "__version__", "9.9")
    monkeypatch.setattr(Codec, "backward_mean", lambda self, z_t, t: original(self, z_t, t) * 1.01)
    found, reason = read(content, models[0])
    assert len(found) == 0
    assert "this machine has torch 9.9, NumPy" in reason


def test_compress_refuses_a_file_that_does_not_decode_here(
    write: Callable[..., Compressed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Codec.decode

    def other(self: Codec, *arguments: Any) -> np.ndarray:
        return original(self, *arguments) ^ 1

    monkeypatch.setattr(Codec, "decode", other)
    with pytest.raises(UserError, match=r"images.vdmz: not written, since it does not decode to the images") as raised:
        write(verify=True)
    assert raised.value.code == Exit.MISSING
    assert [path.name for path in tmp_path.iterdir()] == ["images.npy"]


def test_images_that_do_not_fit_the_model_are_refused(
    write: Callable[..., Compressed], pixels: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "large.npy", np.zeros((3, 1, 9, 9), np.uint8))
    np.save(tmp_path / "bright.npy", np.where(np.arange(40)[:, None, None, None] == 33, 17, pixels))
    np.save(tmp_path / "deep.npy", pixels.astype(np.uint16))
    np.save(tmp_path / "floats.npy", pixels / 16)
    for name, message, code in (
        ("large.npy", "is a model of images of 1x6x5 with 17 levels; .*large.npy holds 1x9x9", Exit.USAGE),
        ("bright.npy", r"image 33 \(bright.npy\) holds level 17, and the levels of .* are 0 to 16", Exit.USAGE),
        ("deep.npy", "images of 16 bits", Exit.INVALID_DATA),
        ("floats.npy", "not levels", Exit.INVALID_DATA),
        ("nothing", "nothing does not exist", Exit.MISSING),
    ):
        with pytest.raises(UserError, match=message) as raised:
            write(name)
        assert raised.value.code == code
    assert not (tmp_path / "images.vdmz").exists()


def test_options_are_refused_before_the_bound_is_computed(
    write: Callable[..., Compressed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "mean_bound", lambda *_: pytest.fail("the bound is computed"))
    free = chain([10**9], repeat(1000))  # the first question is that of loading the model
    monkeypatch.setattr(memory, "available", lambda: next(free))
    with pytest.raises(UserError, match=r"^batches of 4 images, set by --batch-size of `vdmctl compress`: this needs"):
        write()


@pytest.mark.slow
def test_outputs_that_exist_are_replaced_only_when_asked(
    write: Callable[..., Compressed], tmp_path: Path, models: tuple[Path, Path]
) -> None:
    file, out = tmp_path / "images.vdmz", tmp_path / "out"
    write(force=False)
    with pytest.raises(UserError, match="exists; name another file, or replace it with --force"):
        write(force=False)
    with pytest.raises(UserError, match="is a folder; name a file"):
        write(out=tmp_path)
    with pytest.raises(UserError, match="lies in the folder of the model; name another file"):
        write(out=models[0] / "config.json", force=True)

    def decompress(*, force: bool, out: Path = out) -> None:
        files.decompress(file, model=models[0], out=out, device="cpu", force=force)

    decompress(force=False)
    with pytest.raises(UserError, match="exists; name another folder, or replace it with --force"):
        decompress(force=False)
    decompress(force=True)
    for mine in (out / "mine.txt", out / "0.png" / "mine.txt"):  # the name of a decoded image, but a folder
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("precious")
        with pytest.raises(UserError, match="holds other files than decoded images"):
            decompress(force=True)
        assert mine.read_text() == "precious"
        mine.unlink()
    with pytest.raises(UserError, match=r"\. cannot be replaced"):
        decompress(force=True, out=Path())


@pytest.fixture
def command(
    models: tuple[Path, Path], pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Return the arguments that compress a set of 15 training, 15 validation and 10 test images in one step."""
    monkeypatch.chdir(tmp_path)
    splits = {"train": pixels[:15], "validation": pixels[15:30], "test": pixels[30:]}
    save_images(Path("images"), splits, {"name": "x", "num_levels": 17})
    return ["compress", "images", str(models[0]), "--out=images.vdmz", "--num-timesteps=1", "--device=cpu"]


def test_the_options_of_compress_decide_what_is_written(
    command: list[str], models: tuple[Path, Path], pixels: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--split=validation", "--num-timesteps=3", "--batch-size=5", "--no-verify", "--json"]
    assert cli.run([*command, *given]) == Exit.DONE
    done = json.loads(capsys.readouterr().out)
    expected = {"num_images": 15, "num_timesteps": 3, "batch_size": 5, "verified": False}
    assert {name: done[name] for name in expected} == expected
    assert cli.run(["decompress", "images.vdmz", str(models[0]), "--out=decoded", "--device=cpu"]) == Exit.DONE
    np.testing.assert_array_equal(np.load("decoded/images.npy"), pixels[15:30])


@pytest.mark.slow
def test_neither_command_replaces_its_output_without_force(
    command: list[str], models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    decompress = ["decompress", "images.vdmz", str(models[0]), "--out=decoded", "--device=cpu"]
    for arguments, out in ((command, "images.vdmz"), (decompress, "decoded")):
        assert cli.run(arguments) == Exit.DONE
        assert cli.run(arguments) == Exit.USAGE
        assert f"{out} exists; " in capsys.readouterr().err
        assert cli.run([*arguments, "--force"]) == Exit.DONE


def test_compress_says_how_large_the_file_is(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(command) == Exit.DONE
    first, second, _ = capsys.readouterr().out.splitlines()
    size = Path("images.vdmz").stat().st_size
    assert first == f"images.vdmz: 10 images, 300 -> {size:,} bytes, verified"
    assert second.startswith(f"{8 * size / 300:.4f} bits/dim for the whole file")


@pytest.mark.parametrize("arguments", [["compress", "images.npy", "model"], ["decompress", "a.vdmz", "model"]])
@pytest.mark.parametrize("device", ["gpu", "cuda:-1", "mps"])
def test_an_unknown_device_is_named(arguments: list[str], device: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*arguments, "--out=out", f"--device={device}"]) == Exit.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "'--device'" in line
    assert "auto, cpu, cuda or cuda:N" in line


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(
    write: Callable[..., Compressed],
    pixels: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(words, "SPILLED", 256)
    monkeypatch.setattr(encoding, "SPOOLED_BYTES", 256)
    peaks = []
    for count in (40, 160):
        np.save(tmp_path / "many.npy", np.tile(pixels, (count // 40, 1, 1, 1)))
        tracemalloc.start()
        write("many.npy", num_timesteps=1, batch_size=8, verify=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_no_image_of_a_folder_is_replaced_by_the_file(write: Callable[..., Compressed], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    mine = tmp_path / "pictures" / "0.png"
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(mine)
    before = mine.read_bytes()
    with pytest.raises(UserError, match=r"0\.png would replace the images that it is made from") as raised:
        write("pictures", out=mine)
    assert raised.value.code == Exit.USAGE
    assert mine.read_bytes() == before


@pytest.mark.slow
def test_a_compressed_file_in_the_folder_of_its_images_is_replaced(
    write: Callable[..., Compressed], tmp_path: Path, pixels: np.ndarray
) -> None:
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "images.npy", pixels)
    out = tmp_path / "arrays" / "all.vdmz"
    write("arrays", out=out)
    write("arrays", out=out)  # with force
    assert out.is_file()


def test_the_code_is_spilled_to_the_disk_of_its_file(
    write: Callable[..., Compressed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a full temporary folder would name the file, whose disk has space."""
    monkeypatch.setattr(words, "SPILLED", 256)
    monkeypatch.setattr(encoding, "SPOOLED_BYTES", 16)
    opened = Mock(wraps=tempfile.SpooledTemporaryFile)
    monkeypatch.setattr(encoding, "SpooledTemporaryFile", opened)
    write(verify=True)
    assert [call.kwargs for call in opened.call_args_list] == [{"dir": str(tmp_path)}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npy", "images.vdmz"]


@pytest.mark.slow
def test_too_large_batches_of_a_file_name_the_command_that_chose_them(
    content: bytes, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images.vdmz").write_bytes(content)
    free = chain([10**9], repeat(1000))  # the first question is that of loading the model
    monkeypatch.setattr(memory, "available", lambda: next(free))
    with pytest.raises(UserError, match=r"^batches of 4 images, set by --batch-size of `vdmctl compress`: this needs"):
        files.decompress(tmp_path / "images.vdmz", model=models[0], out=tmp_path / "out", device="cpu", force=False)


def test_the_bound_is_that_of_as_many_steps(
    models: tuple[Path, Path], pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "BOUND_BATCH", 4)  # two images at a time
    model = load_model(models[0])
    mean, error = encoding.mean_bound(model, Images(pixels[:5], 17, False), 3)
    options: dict[str, Any] = {"times_per_image": 2, "num_timesteps": 3, "batch_size": 4}
    bounds = [evaluate(model, pixels[first : min(first + 2, 5)], seed=first, **options).bpd for first in (0, 2, 4)]
    assert mean == pytest.approx(np.concatenate(bounds).mean(), rel=1e-6)
    assert error == pytest.approx(np.concatenate(bounds).std(ddof=1) / math.sqrt(5), rel=1e-6)


def test_pictures_of_several_kinds_are_refused_without_advice_on_parameters(
    write: Callable[..., Compressed], pixels: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "mixed").mkdir()
    Image.fromarray(pixels[0, 0]).save(tmp_path / "mixed" / "0.png")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "mixed" / "1.png")
    with pytest.raises(UserError, match=r'images of 2 kinds: "0.png" is 1x6x5 .*"1.png" is 3x9x9 ') as raised:
        write("mixed")
    assert raised.value.code == Exit.INVALID_DATA
    assert "data." not in str(raised.value).partition("kinds")[2]


def test_pictures_of_another_size_are_refused_before_they_are_copied(
    write: Callable[..., Compressed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "photos" / "0.png")
    monkeypatch.setattr("flows.compression.images.write_array", lambda *_: pytest.fail("they are copied"))
    with pytest.raises(UserError, match=r"is a model of images of 1x6x5 with 17 levels; .*photos holds 1x9x9"):
        write("photos")


def test_a_folder_of_pictures_and_arrays_comes_back_as_pictures(
    write: Callable[..., Compressed], pixels: np.ndarray, tmp_path: Path, models: tuple[Path, Path]
) -> None:
    (tmp_path / "mixed").mkdir()
    Image.fromarray(pixels[0, 0]).save(tmp_path / "mixed" / "0.png")
    np.save(tmp_path / "mixed" / "1.npy", pixels[1])
    write("mixed")
    files.decompress(tmp_path / "images.vdmz", model=models[0], out=tmp_path / "out", device="cpu", force=False)
    found = [np.asarray(Image.open(tmp_path / "out" / name)) for name in ("0.png", "1.png")]
    assert (np.array(found) == pixels[:2, 0]).all()


def test_initial_bits_are_no_bits_of_the_images(
    write: Callable[..., Compressed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PLAIN_BITS", 1)  # one image
    monkeypatch.setattr(coding, "COARSE_IMAGES", 0)
    done = write()
    header, _, _ = read_header(io.BytesIO((tmp_path / "images.vdmz").read_bytes()), "x")
    others = done.initial_bits + 256 + 30 * math.log2(17)  # the sha256, and the image that is encoded plainly
    assert done.initial_bits > 64
    assert done.code_bpd is not None
    assert done.code_bpd * 39 * 30 == pytest.approx(32 * header.num_words - others, abs=64)


def test_colours_come_back(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 5), dtype=np.uint8)
    write_decoded(iter([images[:2], images[2:]]), tmp_path, count=3, num_levels=256, pictures=True)
    found = [np.asarray(Image.open(tmp_path / f"{number}.png")).transpose(2, 0, 1) for number in range(3)]
    assert np.array_equal(found, images)
