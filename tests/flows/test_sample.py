"""`vdmctl sample MODEL`: its outputs by their endings, its film, filling in, and what it refuses."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image, ImageSequence
from project import ROOT
from small import Small

from flows.cli import run
from flows.core.errors import Exit
from flows.core.model import open_model, save_model
from flows.core.params_file import read_params
from flows.images.grids import as_8_bits, grid
from flows.sampling import film
from flows.sampling.drawing import Drawing
from flows.sampling.request import read_mask, write_drawn
from vdm.model import VDM
from vdm.samplers import SAMPLERS, sampler_name
from vdm.sampling import Step

MODEL = "models/vdm"


def drawn(*options: str) -> np.ndarray:
    """Return the levels that `vdmctl sample MODEL` draws."""
    assert run(["sample", MODEL, "--out", "drawn.npy", "--force", *options]) == Exit.DONE
    return np.load("drawn.npy")  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_ending_chooses_the_output(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    levels = drawn("-n", "5")
    assert (levels.shape, levels.dtype) == ((5, 1, 8, 8), np.uint8)
    assert capsys.readouterr().out == "5 images in drawn.npy\n"
    assert run(["sample", MODEL, "-n", "5", "--out", "out/grid.png"]) == Exit.DONE
    with Image.open("out/grid.png") as picture:
        assert picture.size == (3 * 34 + 2, 2 * 34 + 2)
    assert run(["sample", MODEL, "-n", "5", "--out", "pictures"]) == Exit.DONE
    assert sorted(path.name for path in Path("pictures").iterdir()) == [f"{number}.png" for number in range(5)]
    with Image.open("pictures/3.png") as picture:
        np.testing.assert_array_equal(np.rint(np.asarray(picture) * (16 / 255)), levels[3, 0])


def test_the_samplers_are_known_by_their_names(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name in SAMPLERS:
        found[name] = drawn("-n", "2", "--steps", "4", "--sampler", name, "--json")
        said = json.loads(capsys.readouterr().out)
        assert sampler_name(said["order"], said["eta"]) == name
        assert (said["num_timesteps"], said["num_images"]) == (4, 2)
    assert len({images.tobytes() for images in found.values()}) == len(SAMPLERS)


@pytest.mark.slow
def test_the_film_shows_noise_and_prediction_and_stays_if_its_images_cannot_be_written(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sample", MODEL, "-n", "3", "--steps", "7", "--force", "--film"]
    assert run([*command, "film.gif"]) == run([*command, "film.png"]) == Exit.DONE
    with Image.open("film.gif") as picture:
        assert picture.n_frames == 7  # type: ignore[attr-defined]
        assert picture.size == (2 * (2 * 66 + 2) + 4, 16 + 2 * 66 + 2)
        labels = [np.asarray(frame)[:16].tobytes() for frame in ImageSequence.Iterator(picture)]
        assert len(set(labels)) == 7
        assert picture.info["duration"] == film.LAST_MS
    with Image.open("film.png") as picture:
        assert picture.size == (7 * 66 + 2, 32 + 2 * 3 * 66 + 2)
    before = Path("film.png").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "samples.png")

    monkeypatch.setattr("flows.sampling.request.write_drawn", full)
    assert run([*command, "film.png", "--seed", "5"]) == Exit.MISSING
    assert Path("film.png").read_bytes() == before


@pytest.mark.slow
def test_missing_pixels_are_filled_in(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    known = np.load("data/images/test.npy")[0]
    np.save("known.npy", known)
    missing = np.zeros((8, 8), np.uint8)
    missing[4:] = 255
    Image.fromarray(missing).save("mask.png")
    filled = drawn("-n", "4", "--known", "known.npy", "--mask", "mask.png", "--json", "--film", "film.png")
    assert (filled[:, :, :4] == known[:, :4]).all()
    assert (filled[0, :, 4:] != filled[1, :, 4:]).any()
    done = json.loads(capsys.readouterr().out)
    assert (done["approximate"], done["order"], done["eta"]) == (True, 1, 1.0)
    Image.fromarray(np.rint(known[0] * (255 / 16)).astype(np.uint8)).save("known.png")
    np.testing.assert_array_equal(drawn("-n", "4", "--known", "known.png", "--mask", "mask.png"), filled)
    command = ["sample", MODEL, "-n", "1", "--known", "known.npy", "--mask", "mask.png", "--out", "beside.png"]
    assert run(command) == Exit.DONE  # the original, the mask and the result side by side
    with Image.open("beside.png") as picture:
        expected = np.stack([known, missing[None] // 255 * 16, filled[0]])
        np.testing.assert_array_equal(np.asarray(picture), grid(expected, 17, 3))
    # White is the highest level of one bit, too.
    Image.fromarray(missing).convert("1").save("bit.png")
    np.testing.assert_array_equal(drawn("-n", "4", "--known", "known.npy", "--mask", "bit.png"), filled)
    Image.fromarray(255 - missing).save("mask.png")
    assert (drawn("-n", "1", "--known", "bit.png", "--mask", "mask.png")[0, 0, 4:] == 16).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("schedule.span", 0, "no images can be drawn from this model: the noise schedule does not increase"),
        ("network.conv_out.weight", 1e38, "no images can be drawn from this model: the network's output is not finite"),
    ],
)
def test_a_model_without_images_is_an_error(
    name: str, value: float, message: str, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    vdm = VDM(**TINY)
    vdm.get_parameter(name).data.fill_(value)
    save_model(Path(MODEL), vdm, TINY)
    assert run(["sample", MODEL, "-n", "2"]) == Exit.MISSING
    assert message in capsys.readouterr().err
    assert not Path("samples.png").exists()


def pictures() -> None:
    """Write files of which some do not fit the model."""
    for name, size, level in (("fits", (8, 8), 255), ("large", (9, 8), 255), ("dark", (8, 8), 0)):
        Image.fromarray(np.full(size, level, np.uint8)).save(f"{name}.png")
    np.save("bright.npy", np.full((1, 8, 8), 17, np.uint8))
    np.save("several.npy", np.zeros((2, 1, 8, 8), np.uint8))
    Path("cut.png").write_bytes(Path("fits.png").read_bytes()[:40])
    Path("text").write_text("not a folder")
    Path("photos").mkdir()
    Path("photos/wedding.png").write_text("mine")
    Path("there.png").write_text("old")


REFUSED: list[tuple[list[str], int, str]] = [
    (["-n", "0"], 2, "greater than or equal to 1"),
    (["--sampler", "euler"], 2, "'euler' is not one of"),
    (["--device", "abacus"], 2, "must be auto, cpu, cuda or cuda:N, got 'abacus'"),
    (["--out", "a.jpg"], 2, "a.jpg: unknown ending; choose .png or .npy or no ending, for a folder"),
    (["--out", "there.png"], 2, "there.png exists; name another output, or replace it with --force"),
    (["--out", "photos", "--force"], 2, "photos is no folder of files that this command writes; name another"),
    (["--out", "text", "--force"], 2, "text is no folder of files that this command writes; name another"),
    (["--out", "text/a.png"], 5, "text"),
    (["--film", "film.mp4"], 2, "film.mp4: unknown ending; choose .png or .gif"),
    (["--film", "photos/../samples.png"], 2, "--out and --film are both samples.png"),
    (
        ["--out", "fits.png", "--force", "--known", "fits.png", "--mask", "fits.png"],
        2,
        "fits.png would replace the input fits.png; name another output",
    ),
    (["--known", "fits.png"], 2, "--known and --mask must be given together"),
    (["--known", "fits.png", "--mask", "fits.png", "--sampler", "ddim"], 2, "--sampler does not apply to --known"),
    (["--known", "fits.png", "--mask", "large.png"], 2, "large.png: it is 9 x 8, but the model's images are 8 x 8"),
    (["--known", "large.png", "--mask", "fits.png"], 2, "large.png: it is 1 x 9 x 8, but the model's images are"),
    (["--known", "several.npy", "--mask", "fits.png"], 2, "several.npy: it holds 2 images; give a file with one"),
    (["--known", "fits.png", "--mask", "dark.png"], 2, "dark.png: no pixel of the mask is white"),
    (["--known", "bright.npy", "--mask", "fits.png"], 2, "bright.npy: it holds level 17, but the model's levels are"),
    (["--known", "absent.png", "--mask", "fits.png"], 5, "absent.png: "),
    (["--known", "cut.png", "--mask", "fits.png"], 5, "cut.png: "),
]


@pytest.mark.slow
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures()
    before = small.outputs()
    for options, code, message in REFUSED:
        assert run(["sample", MODEL, *options]) == code, options
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert small.outputs() == before


def test_options_without_a_model_are_refused(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["-n", "3"], ["--seed", "0"], ["--film", "a.gif"], ["--mask", "a.png"], ["--force"]):
        assert run(["sample", *options]) == Exit.USAGE
        assert "options need a MODEL, such as models/vdm; without it the stage runs" in capsys.readouterr().err


def test_a_model_of_other_images_is_no_model_for_the_stage(small: Small, capsys: Any) -> None:
    description = Path("data/images/dataset.json")
    description.write_text(description.read_text().replace('"num_levels": 17', '"num_levels": 20'))
    assert run(["sample"]) == Exit.USAGE
    assert "models/vdm is no model of images like those in data/images; run `vdmctl train`" in capsys.readouterr().err


def test_levels_above_255_are_written_as_they_are(tmp_path: Path) -> None:
    images = np.array([0, 256, 1023]).reshape(3, 1, 1, 1)
    write_drawn(tmp_path / "a.npy", images, 1024)
    assert np.load(tmp_path / "a.npy").tolist() == images.tolist()


def test_a_mask_is_bright_where_one_of_its_channels_is(tmp_path: Path, tiny_model: Callable[..., VDM]) -> None:
    mask = np.zeros((8, 8, 3), np.uint8)
    for channel in range(3):
        mask[channel, :, channel] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", tiny_model()).all(1).tolist() == [True] * 3 + [False] * 5


@pytest.mark.parametrize("number", [59, 60, 62, 131])
def test_a_film_ends_with_the_last_step(
    number: int, tiny_model: Callable[..., VDM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, tiny_model(), TINY)
    steps = [Step(*torch.full((2, 1, 1, 1, 1), step / 130)) for step in range(number)]
    settings = read_params(ROOT / "params.yaml").sample.model_copy(update={"num_timesteps": number})
    monkeypatch.setattr(Drawing, "steps", lambda *_: iter(steps))
    recorded = film.record(Drawing(open_model(tmp_path), settings))
    assert recorded.gammas[-1] == pytest.approx(-7)
    assert len(recorded.gammas) == len(recorded.z)
    assert len(recorded.z) <= film.MOST_FRAMES
    assert recorded.z[-1].tolist() == film.pixels(steps[-1].z).tolist()


def test_pictures_have_all_shades_and_colours() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)
    assert np.array_equal(as_8_bits(colours[None], 256)[0], colours.transpose(1, 2, 0))
    assert as_8_bits(np.array([[[[0, 8, 16]]]]), 17).tolist() == [[[0, 128, 255]]]


def test_images_of_a_grid_are_in_rows() -> None:
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1).repeat(40, 2).repeat(50, 3)
    picture = grid(images, 256)
    tiles = [picture[2 + 42 * row :, 2 + 52 * column :][:40, :50] for row, column in np.ndindex(3, 3)]
    assert [np.unique(tile).tolist() for tile in tiles] == [*([number] for number in range(7)), [128], [128]]


def test_the_strip_of_a_film_has_noise_above_predictions() -> None:
    z, x_hat = (np.arange(first, first + 6, dtype=np.uint8).reshape(3, 2, 1, 1, 1) for first in (0, 10))
    strip = film.strip(film.Film(z, x_hat, [2.0, 0.0, -2.0]))
    tiles = strip[52::66, 20::66]
    assert strip[:16].max() == strip[16:32].max() == 255
    assert tiles.tolist() == [[0, 2, 4], [10, 12, 14], [1, 3, 5], [11, 13, 15]]
