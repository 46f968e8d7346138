"""`vdmctl compress` and `decompress`: every pixel comes back; damage, other models and machines end in one line."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from flows import cli
from flows.compression import coding, files
from flows.compression.coding import Header, coding_of, exactly, pack_header, seal, unpack_header
from flows.compression.files import Compressed, Decompressed, write_decoded
from flows.compression.rans import Rans, initial_word
from flows.core.errors import Exit, UserError
from flows.core.model import open_model, save_model
from flows.images.grids import eight_bit
from flows.images.image_set import SPLITS, save_images
from flows.images.user_files import open_named
from vdm.choices import Split
from vdm.codec import TOTAL, Codec, encode_plainly
from vdm.evaluation import BoundSettings, evaluate
from vdm.grids import Grid
from vdm.model import VDM

SHAPE = (1, 6, 5)
SMALL = TINY | {"image_shape": SHAPE}
PIXELS = np.random.default_rng(0).integers(0, 17, (16, *SHAPE), dtype=np.uint8)
FILE, ONE, OTHER = Path("images.vdmz"), Path("models/one"), Path("models/other")
OPTIONS: dict[str, Any] = {"num_timesteps": 2, "batch_size": 4, "verify": False}
HEADER = Header(
    num_images=359,
    num_timesteps=100,
    batch_size=32,
    pictures=False,
    threads=2,
    torch="2.13.0+cpu",
    numpy="2.4.6",
    processor="x86_64 AuthenticAMD AVX512",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models of the same images, `one` and `other`."""
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(("one", "other")):
        torch.manual_seed(number)
        model = VDM(**SMALL)  # type: ignore[arg-type]
        for parameter in model.network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        save_model(folder / name, model, SMALL)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with the models and `images.npy`, and return it."""
    monkeypatch.setattr(files, "BOUND_TIMES", 2)
    monkeypatch.chdir(tmp_path)
    Path("models").symlink_to(models)
    np.save("images.npy", PIXELS)
    return tmp_path


def write(source: str = "images.npy", split: Split | None = None, model: Path = ONE, **changes: Any) -> Compressed:
    """Compress images to `images.vdmz`."""
    coder = open_model(model)
    with open_named(Path(source), split, coder, transformed=False) as images:
        return files.compress(images, coder, FILE, **OPTIONS | changes)


def read_back(model: Path = ONE) -> Decompressed:
    """Decompress `images.vdmz` to `out`."""
    return files.decompress(FILE, open_model(model), Path("out"))


def content() -> bytes:
    """Return the content of a file of 4 images."""
    np.save("few.npy", PIXELS[:4])
    write("few.npy")
    return FILE.read_bytes()


def read(content: bytes, model: Path = ONE) -> np.ndarray:
    """Return the images that a file of this content decodes to."""
    decoder = coding_of(content, "images.vdmz", open_model(model))
    return np.concatenate(list(decoder.decode(content, "images.vdmz", id)))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_pixel_comes_back(batch_size: int) -> None:
    done = write(batch_size=batch_size, verify=True)
    written = FILE.read_bytes()
    assert done.net_bpd == 8 * done.file_bytes / PIXELS.size == 8 * len(written) / PIXELS.size
    assert (done.num_images, done.plain_images, done.verified) == (16, 2, True)
    code_bytes = len(written) - unpack_header(written, "x")[2]
    others = done.initial_bits + 256 + 2 * 30 * math.log2(17)  # the sha256, and the images that are encoded plainly
    assert done.code_bpd is not None
    assert done.code_bpd * 14 * 30 == pytest.approx(8 * code_bytes - others, abs=16)
    assert read_back().pixels_sha256 == done.pixels_sha256 == hashlib.sha256(PIXELS.data).hexdigest()
    assert (np.load("out/images.npy") == PIXELS).all()
    settings = BoundSettings(times_per_image=2, grid=Grid(2), batch_size=128, seed=0)
    bound = evaluate(open_model(ONE).vdm, PIXELS, settings)
    assert done.bound_bpd == pytest.approx(bound.bpd.mean(), rel=1e-6)
    assert done.bound_bpd_standard_error == pytest.approx(bound.standard_error, rel=1e-6)
    write(batch_size=batch_size)
    assert FILE.read_bytes() == written


@pytest.mark.slow
def test_pictures_come_back_as_pictures_and_a_split_as_an_array(folder: Path) -> None:
    Path("pictures").mkdir()
    for number, image in enumerate(PIXELS[:11]):
        Image.fromarray(image[0]).save(f"pictures/{number:02}.png")
    np.save("pictures/11.npy", PIXELS[11])
    splits = dict.fromkeys(SPLITS, PIXELS[:5]) | {"test": PIXELS[:9]}
    save_images(Path("set"), splits, {"name": "x", "num_levels": 17})
    array = ["images.npy"]
    pictures = [f"{number:02}.png" for number in range(12)]
    for source, split, names in (("pictures", None, pictures), ("set", None, array), ("set", "train", array)):
        done = write(source, split=split)
        read_back()
        assert sorted(path.name for path in (folder / "out").iterdir()) == names
        found = (
            np.load("out/images.npy")[:, 0] if names == array else [np.asarray(Image.open(f"out/{n}")) for n in names]
        )
        assert (np.array(found) == PIXELS[: done.num_images, 0]).all()
    with pytest.raises(UserError, match="has no splits; leave out --split"):
        write(split="test")


@pytest.mark.parametrize("num_bits", [1, 4])
def test_pictures_of_few_bits_come_back_in_their_shades(num_bits: int) -> None:
    num_levels = 2**num_bits
    described = SMALL | {"num_levels": num_levels}
    save_model(Path("model"), VDM(**described), described)  # type: ignore[arg-type]
    Path("pictures").mkdir()
    levels = np.random.default_rng(0).integers(0, num_levels, (3, 6, 5), dtype=np.uint8)
    for number, image in enumerate(levels):
        shades = Image.fromarray(image * np.uint8(255 // (num_levels - 1)))
        (shades.convert("1") if num_bits == 1 else shades).save(f"pictures/{number}.png", bits=num_bits)
    write("pictures", model=Path("model"))
    read_back(Path("model"))
    for number in range(3):
        with Image.open(f"pictures/{number}.png") as before, Image.open(f"out/{number}.png") as after:
            assert (np.asarray(before.convert("L")) == np.asarray(after.convert("L"))).all()


def test_colours_come_back(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 4, 5), dtype=np.uint8)
    write_decoded(iter([images[:2], images[2:]]), folder, count=3, num_levels=256, pictures=True)
    found = [np.asarray(Image.open(f"{number}.png")).transpose(2, 0, 1) for number in range(3)]
    assert np.array_equal(found, images)


@pytest.mark.slow
def test_damage_is_found_wherever_it_is_and_leaves_nothing() -> None:
    """A bit flipped in the header or in the code, bytes at the end that are missing, or too many."""
    whole = content()
    assert (read(whole) == PIXELS[:4]).all()
    random, code = np.random.default_rng(0), unpack_header(whole, "x")[2]
    for place in [*range(0, code, 3), *range(code, len(whole), 700)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        with pytest.raises(UserError) as raised:
            read(bytes(damaged))
        assert raised.value.code == (Exit.USAGE if 5 <= place < 9 else Exit.MISSING), place  # of another model
    for other in (whole[:-100], whole + b"x", whole + bytes(4)):
        with pytest.raises(UserError, match=r"images\.vdmz: damaged, or decoded differently: "):
            read(other)
    FILE.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"images\.vdmz: damaged, or decoded differently: "):
        read_back()
    assert not [*Path().glob("*out*"), *Path().glob(".vdm*")]


def test_another_model_another_version_and_another_file_are_named() -> None:
    whole = content()
    for changed, model, message, code in (
        (whole, OTHER, "encoded with the model ", Exit.USAGE),
        (whole[:4] + b"\x02" + whole[5:], ONE, "version 2 of the format, and this program", Exit.MISSING),
        (b"PK" + whole, ONE, "not a .vdmz file", Exit.MISSING),
        (b"", ONE, "not a .vdmz file", Exit.MISSING),
        (whole[:40], ONE, "its header is damaged or cut short", Exit.MISSING),
    ):
        with pytest.raises(UserError, match=f"^images.vdmz: {message}") as raised:
            read(changed, model)
        assert raised.value.code == code


def test_a_file_that_asks_for_many_threads_starts_none() -> None:
    whole = content()
    header, _, end = unpack_header(whole, "x")
    many = pack_header(header.model_copy(update={"threads": 1024}), "0" * 64)
    changed = many[:5] + whole[5:9] + many[9:] + whole[end:]
    before, threads = torch.get_num_threads(), len([*Path("/proc/self/task").iterdir()])
    with pytest.raises(UserError, match=r"encoded with 1,024 threads, and this machine has .*; decode it on the machi"):
        read(changed)
    assert (torch.get_num_threads(), len([*Path("/proc/self/task").iterdir()])) == (before, threads)


def test_a_machine_that_computes_other_means_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, original = content(), Codec.backward_mean
    monkeypatch.setattr(Codec, "backward_mean", lambda self, *given: original(self, *given) * 1.01)
    with pytest.raises(UserError, match=r"decoded differently: .*; it was made with torch 2\..*, NumPy 2\..* on "):
        read(whole)


def test_compress_refuses_a_file_that_does_not_decode_here(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Codec.decode
    monkeypatch.setattr(Codec, "decode", lambda self, *given, **options: original(self, *given, **options) ^ 1)
    with pytest.raises(UserError, match=r"images.vdmz: not written, since it does not decode to the images") as raised:
        write(verify=True)
    assert raised.value.code == Exit.MISSING
    assert {path.name for path in Path().iterdir()} == {"images.npy", "models"}


def test_images_that_do_not_fit_the_model_are_refused() -> None:
    np.save("large.npy", np.zeros((3, 1, 9, 9), np.uint8))
    np.save("bright.npy", np.where(np.arange(16)[:, None, None, None] == 13, 17, PIXELS))
    Image.fromarray(PIXELS[0, 0].astype(np.uint16)).save("deep.png")
    Path("bits").mkdir()
    Image.new("1", (5, 6)).save("bits/0.png")
    for name, message, code in (
        ("large.npy", "is a model of images of 1x6x5 with 17 levels; .*large.npy holds 1x9x9", Exit.USAGE),
        ("bright.npy", r"bright\.npy: image 13 holds level 17, and the levels of .* are 0 to 16", Exit.USAGE),
        ("deep.png", "is a model of 17 levels; deep.png holds pictures of 65536 levels", Exit.USAGE),
        ("bits", "is a model of 17 levels; .* holds pictures of 2 levels", Exit.USAGE),
        ("nothing", "nothing does not exist", Exit.MISSING),
    ):
        with pytest.raises(UserError, match=message) as raised:
            write(name)
        assert raised.value.code == code
    assert not FILE.exists()


def test_a_set_of_more_levels_than_the_model_has_is_compressed_if_its_images_have_none_of_those() -> None:
    for name, images in (("few", PIXELS[:2]), ("all", np.full((2, *SHAPE), 17, np.uint8))):
        save_images(Path(name), {"train": images, "test": images}, {"name": "x", "num_levels": 20})
    write("few")
    read_back()
    assert (np.load("out/images.npy") == PIXELS[:2]).all()
    with pytest.raises(UserError, match=r"^all: image 0 holds level 17, and the levels of .* are 0 to 16$") as raised:
        write("all")
    assert raised.value.code == Exit.USAGE


def test_outputs_that_exist_are_replaced_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("images.npy", PIXELS[:2])  # encoded plainly, without the model
    compress = ["compress", "images.npy", str(ONE), "--device=cpu", "--num-timesteps=2", "--no-verify"]
    decompress = ["decompress", str(FILE), str(ONE), "--device=cpu", "--out=out"]
    assert cli.run([*compress, f"--out={FILE}"]) == cli.run([*compress, f"--out={FILE}", "--force"]) == Exit.DONE
    for options, message in (
        ([f"--out={FILE}"], "exists; name another output, or replace it with --force"),
        (["--out=models", "--force"], "is a folder; name a file"),
        ([f"--out={ONE}/config.json", "--force"], r"config\.json would replace the input .*; name another output"),
    ):
        assert cli.run([*compress, *options]) == Exit.USAGE
        assert re.search(message, capsys.readouterr().err)
    assert cli.run(decompress) == Exit.DONE
    assert cli.run(decompress) == Exit.USAGE
    assert "exists; name another output, or replace it with --force" in capsys.readouterr().err
    assert cli.run([*decompress, "--force"]) == Exit.DONE
    Path("out/mine.txt").write_text("precious")
    assert cli.run([*decompress, "--force"]) == Exit.USAGE
    assert "is no folder of files that this command writes; name another" in capsys.readouterr().err
    assert Path("out/mine.txt").read_text() == "precious"


@pytest.mark.slow
def test_ordinary_pictures_are_compressed_as_what_they_are_changed_to(capsys: pytest.CaptureFixture[str]) -> None:
    """The levels of a model of 17 come back as an array: in a PNG they would be almost black."""
    Image.fromarray(eight_bit(PIXELS[:1], 17)[0, 0]).save("shades.png")
    command = ["compress", "shades.png", str(ONE), "--num-timesteps=2", "--device=cpu", f"--out={FILE}"]
    assert cli.run(command) == Exit.USAGE
    assert "--fit" in capsys.readouterr().err
    assert cli.run([*command, "--fit"]) == Exit.DONE
    read_back()
    assert (np.load("out/images.npy") == PIXELS[:1]).all()


def test_the_options_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    splits = {"train": PIXELS[:5], "validation": PIXELS[5:12], "test": PIXELS[12:15]}
    save_images(Path("images"), splits, {"name": "x", "num_levels": 17})
    command = ["compress", "images", str(ONE), "--out=images.vdmz", "--device=cpu", "--num-timesteps=3"]
    assert cli.run([*command, "--split=validation", "--batch-size=5", "--no-verify", "--json"]) == Exit.DONE
    done = json.loads(capsys.readouterr().out)
    expected = {"num_images": 7, "num_timesteps": 3, "batch_size": 5, "verified": False}
    assert {name: done[name] for name in expected} == expected
    assert cli.run(["decompress", "images.vdmz", str(ONE), "--out=decoded", "--device=cpu"]) == Exit.DONE
    np.testing.assert_array_equal(np.load("decoded/images.npy"), PIXELS[5:12])
    capsys.readouterr()
    assert cli.run([*command, "--force"]) == Exit.DONE
    size = FILE.stat().st_size
    assert capsys.readouterr().out.startswith(f"images.vdmz: 3 images, 90 -> {size:,} bytes, verified\n")


def random_table(rows: int, symbols: int) -> np.ndarray:
    """Return a table of random cumulative frequencies for each row, from 0 to TOTAL."""
    cuts = np.sort(np.random.default_rng(0).integers(1, TOTAL, (rows, symbols - 1)), axis=1)
    return np.concatenate([np.zeros((rows, 1)), cuts, np.full((rows, 1), TOTAL)], axis=1).astype(np.int64)


@pytest.mark.parametrize("scattered", [True, False])
def test_the_coder_returns_symbols_in_their_optimal_number_of_bits(scattered: bool) -> None:
    random, table = np.random.default_rng(1), random_table(5, 9)
    rows = random.integers(0, 5, 3000)
    symbols = np.array([np.searchsorted(table[row], random.integers(TOTAL), side="right") - 1 for row in rows])
    start, frequency = table[rows, symbols], table[rows, symbols + 1] - table[rows, symbols]
    coder = Rans([], encoding=True)
    before, bits = coder.flushed(), coder.bits
    assert before == [initial_word(1), initial_word(0), 1]
    coder.push(np.array([0, 17, TOTAL - 1]), np.ones(3, np.int64))
    coder.push(start, frequency, scattered=scattered)
    assert coder.bits - bits == pytest.approx((32 - np.log2(frequency)).sum() + 3 * 32, abs=1e-3)
    read_again = Rans(coder.flushed(), encoding=False)
    assert (read_again.pop(table, rows, scattered=scattered) == symbols).all()
    assert read_again.pop_plain(3).tolist() == [0, 17, TOTAL - 1]
    assert read_again.flushed() == before
    with pytest.raises(ArithmeticError, match="ends before its last image"):
        read_again.pop_plain(2)


def test_noise_that_is_drawn_from_scattered_bits_does_not_follow_what_was_pushed() -> None:
    table, rows = np.array([[0, TOTAL // 2, TOTAL]]), np.zeros(1000, np.int64)
    means = []
    for scattered in (False, True):
        coder = Rans([], encoding=True)
        # Of 4096 symbols always one of the last 256, as under a wrong model.
        symbols = np.random.default_rng(0).integers(4096 - 256, 4096, 4000)
        coder.push(symbols * (TOTAL // 4096), np.full(4000, TOTAL // 4096))
        means.append(coder.pop(table, rows, scattered=scattered).mean())
    biased, fair = means
    assert abs(fair - 0.5) < 4 * 0.5 / math.sqrt(1000) < abs(biased - 0.5)


def test_a_file_of_this_version_has_the_batches_and_the_code_that_its_readers_expect() -> None:
    """Others need another version in the header, or files that exist could no longer be decoded."""
    sizes = [len(batch) for batch in coding.batches(61, 3, decoding=False)]
    assert sizes == [*[1] * 24, *[2] * 6, *[3] * 8, 1]
    assert [coding.most_plain(levels) for levels in (2, 17, 256)] == [8, 2, 1]
    start = pack_header(HEADER, "ab" * 32)
    assert len(start) == 62
    assert unpack_header(start + b"code", "x") == (HEADER, "ab" * 4, len(start))
    coder = Rans(seal(start, bytes(32)), encoding=True)
    encode_plainly(coder, np.arange(90, dtype=np.uint8).reshape(3, 1, 6, 5) % 17, 17)
    coder.push(np.arange(50) * 2**20, np.full(50, 2**20), scattered=True)
    assert hashlib.sha256(start + np.array(coder.flushed(), "<u4").tobytes()).hexdigest()[:16] == "c0ecd326c20bdee2"


def test_sums_are_computed_with_the_threads_of_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before, flags = torch.get_num_threads(), (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    with exactly(before + 1):
        assert torch.get_num_threads() == before + 1
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    assert torch.get_num_threads() == before
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == flags
