"""Pictures of more than 8 bits: read as they are stored, judged, trained on, drawn and compressed."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from pictures import load, settings, tiff
from PIL import Image
from project import ROOT

from flows import api
from flows.cli import run
from flows.contract.drift import read_reference
from flows.contract.findings import Findings
from flows.contract.inspection import inspect_images, write_findings
from flows.core.errors import Exit, UserError
from flows.core.model import save_model
from flows.core.params_file import read_params
from flows.images.as_png import measure_png
from flows.images.depth import advice, choose_bits
from flows.images.folder import open_source
from flows.images.grids import Stretch, eight_bit, stretch_of
from flows.images.image_set import ImageSet, digests_of, open_images, save_images, sources_of
from flows.images.picture import read_images
from flows.images.transforms import transform
from flows.registry.images import digest_pictures
from flows.sampling.request import read_known, write_drawn
from flows.training.planning_images import choose_for_levels, choose_transforms, estimate_noise
from vdm.model import VDM

# Great Expectations warns about itself and about pandas.
pytestmark = pytest.mark.filterwarnings("ignore")

DEFAULTS = read_params(ROOT / "presets" / "digits.yaml")
DEEP = TINY | {"num_levels": 2**12, "gamma_0": -18.8, "fourier_exponents": [8, 10]}


def scenes(count: int, most: int, side: int = 8) -> np.ndarray:
    """Return smooth pictures (count,side,side) with noise, uint16, of levels from 100 to `most`."""
    random = np.random.default_rng(0)
    slopes = random.uniform(-1, 1, (2, count, 1, 1)) * np.arange(side).reshape(2 * [1] + [side]) / side
    brightness = random.uniform(0.3, 0.7, (count, 1, 1)) + 0.2 * (slopes[0] + slopes[1].swapaxes(1, 2))
    noisy = brightness + 0.01 * random.standard_normal(brightness.shape)
    return np.rint(100 + (most - 100) * noisy.clip(0, 1)).astype(np.uint16)


def save_pictures(folder: Path, pictures: np.ndarray, ending: str = "png") -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03}.{ending}")
    return folder


def found_in(images: ImageSet) -> Findings:
    return inspect_images(DEFAULTS.contract, images, None).findings


@pytest.mark.parametrize("ending", ["png", "tif", "npy"])
def test_nothing_is_shifted_unasked(ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pictures = scenes(20, 60_000)
    if ending == "npy":
        (tmp_path / "pictures").mkdir()
        np.save(tmp_path / "pictures/all.npy", pictures[:, None])
    else:
        save_pictures(tmp_path / "pictures", pictures, ending)
    images = load(tmp_path / "pictures", num_bits=None)
    assert (images.num_levels, images.description.transforms) == (2**16, "none")
    found = np.concatenate([images[split] for split in images.splits])
    assert found.dtype == images.dtype == np.uint16
    assert {image.tobytes() for image in found} == {picture.tobytes() for picture in pictures}
    lowest, highest, used = pictures.min(), pictures.max(), len(np.unique(pictures))
    assert f"levels {lowest:,} to {highest:,} of 65,536 ({used:,} of them)" in caplog.text


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "zstd"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_a_compressed_tiff_has_the_levels_of_a_plain_one(
    white_is_zero: bool, order: str, compression: str, tmp_path: Path
) -> None:
    levels = scenes(1, 60_000, side=20)[0]
    stored = 2**16 - 1 - levels if white_is_zero else levels  # Pillow writes these as they are
    picture = Image.fromarray(stored.astype(f"{order}u2"))
    picture.save(tmp_path / "0.tif", compression=compression, tiffinfo={262: 0 if white_is_zero else 1})
    assert np.array_equal(read_images(tmp_path / "0.tif").pixels[0, 0], levels)


@pytest.mark.parametrize(
    ("order", "bits"), [*(("<", bits) for bits in (1, 2, 4, 8, 16)), *((">", bits) for bits in (1, 2, 4, 8))]
)
def test_a_tiff_of_which_0_is_white_is_the_one_of_which_0_is_black(bits: int, order: str, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 2**bits, (5, 7))
    for name, white_is_zero in (("black", False), ("white", True)):
        (tmp_path / name).write_bytes(tiff(levels, bits, white_is_zero=white_is_zero, order=order))
        found = read_images(tmp_path / name)
        assert (found.num_bits, found.pixels[0, 0].tolist()) == (bits, levels.tolist())


@pytest.mark.parametrize("compression", ["group3", "group4"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_a_fax_of_1_bit_is_read(photometric: int, compression: str, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).random((20, 31)) < 0.3
    Image.fromarray(levels).save(tmp_path / "0.tif", compression=compression, tiffinfo={262: photometric})
    assert np.array_equal(read_images(tmp_path / "0.tif").pixels[0, 0], levels)


@pytest.mark.parametrize("ending", ["png", "npy", "int64"])
@pytest.mark.parametrize(
    ("most", "transforms"),
    [(200, {"stored_bits": 8}), (15, {"stored_bits": 4}), (200, {"stored_bits": 12}), (200, {}), (4000, {})],
)
@pytest.mark.parametrize("pad", [0, 1])
def test_a_picture_is_found_in_a_set_whatever_type_its_levels_have_there(
    most: int, transforms: dict[str, Any], pad: int, ending: str, tmp_path: Path
) -> None:
    pictures = np.random.default_rng(0).integers(0, most + 1, (20, 8, 8)).astype(np.uint16)
    if ending == "png":
        source = save_pictures(tmp_path / "pictures", pictures)
    else:
        source = tmp_path / "pictures.npy"
        np.save(source, pictures[:, None])
    images = load(source, num_bits=None, pad=pad, **transforms)
    place = sources_of if pad else digests_of
    known = {bytes(row) for split in images.splits for row in np.load(place(images.folder, split))}
    if ending == "int64" and most < 256:  # as nobody's set has it, but as somebody may send it
        np.save(source, pictures[:, None].astype(np.int64))
    found, others = digest_pictures(source)
    assert known <= found
    assert not others


def test_a_shift_that_was_asked_for_says_what_it_leaves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = scenes(20, 3618)
    images = load(save_pictures(tmp_path / "pictures", pictures), num_bits=8)
    assert (images.num_levels, images.dtype, images.description.transforms) == (256, np.uint8, "16 bits shifted to 8")
    left = len(np.unique(pictures >> 8))
    assert f"the shift to 8 bits, data.num_bits, leaves {left} levels; null leaves all" in caplog.text


@pytest.mark.parametrize(
    ("shift", "most", "parameters", "num_levels"),
    [
        (0, 1000, {"stored_bits": 10}, 2**10),
        (4, 3900, {"num_bits": 12}, 2**12),
        (2, 900, {"stored_bits": 12, "num_bits": 10}, 2**10),
    ],
)
def test_fewer_bits_than_stored_are_found_and_named(
    shift: int, most: int, parameters: dict[str, int], num_levels: int, tmp_path: Path
) -> None:
    pictures = scenes(60, most) << np.uint16(shift)
    folder = save_pictures(tmp_path / "pictures", pictures)
    assert choose_bits(np.unique(pictures), 2**16) == parameters
    failed = found_in(load(folder, num_bits=None)).failed("critical")
    assert all(f"data.{name}: {value}" in failed[0].words for name, value in parameters.items()), failed[0].words
    with open_source(folder) as listed:
        proposed = choose_transforms(settings(folder, num_bits=None), listed)
    assert {name: proposed[name].value for name in parameters} == parameters
    images = load(folder, **{"num_bits": None} | parameters)
    assert images.num_levels == num_levels
    assert not [result.words for result in found_in(images).failed("critical")]


def test_full_bits_need_no_advice() -> None:
    assert advice(np.array([3, 8, 255]), 256) == ""
    assert advice(np.array([3, 8, 40_000]), 2**16) == ""
    assert advice(np.zeros(0, int), 2**16) == ""


def test_a_level_beyond_the_stored_bits_is_refused(tmp_path: Path) -> None:
    pictures = scenes(5, 3000)
    pictures[2, 3, 3] = 4096
    folder = save_pictures(tmp_path / "pictures", pictures)
    with pytest.raises(UserError, match=r"1 with levels outside 0\.\.4095 \(.*002\.png.*4096") as raised:
        load(folder, num_bits=None, stored_bits=12)
    assert raised.value.code == Exit.INVALID_DATA


def test_deep_images_are_transformed_in_all_their_bits(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 4000, (3, 3, 6, 6), dtype=np.uint16)
    data = settings(tmp_path, grayscale=True, resize=[3, 3], pad=1, num_bits=None)
    found = transform(images, 2**12, data)
    assert (found.shape, found.dtype) == ((3, 1, 5, 5), np.uint16)
    gray = np.rint(images.astype(float).transpose(0, 2, 3, 1) @ [0.299, 0.587, 0.114])
    # A mean of 2x2 pixels and their neighbours: within the range, and the mean of all stays.
    assert found[..., 1:-1, 1:-1].mean() == pytest.approx(gray.mean(), rel=0.05)
    assert not found[..., 0, :].any()
    alone = transform(images, 2**12, settings(tmp_path, grayscale=True, num_bits=10))
    np.testing.assert_array_equal(alone[:, 0], (gray.astype(int) >> 2))


def test_the_contract_of_deep_images_says_what_it_does_not_judge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = load(save_pictures(tmp_path / "pictures", scenes(60, 60_000)), num_bits=None)
    inspection = inspect_images(DEFAULTS.contract, images, None)
    assert inspection.findings.success, inspection.findings.failed("critical")
    meanings = {result.column: result.meaning for result in inspection.findings.expectations}
    assert meanings["gaps"].endswith("(cannot be judged: too few pixels of each level)")
    assert meanings["unused"].endswith("(not judged above 256 levels, of which few images use all)")
    write_findings(inspection, tmp_path)
    profile = read_reference(tmp_path)
    assert (len(profile.histogram), profile.levels_each, profile.height) == (1024, 64, [])
    assert sum(profile.histogram) == images["train"].size
    again = inspect_images(DEFAULTS.contract, images, profile).findings
    assert not [each for each in again.differences if each.first == "reference" and each.reported]


def test_what_was_stretched_to_16_bits_is_refused(tmp_path: Path) -> None:
    """10 bits times 65535 / 1023."""
    pictures = np.rint(scenes(600, 700, 16)[:, None].astype(float) * 65535 / 1023).astype(np.uint16)
    described = {"name": "x", "num_levels": 2**16}
    save_images(tmp_path / "images", {"train": pictures[:500], "test": pictures[500:]}, described)
    failed = found_in(open_images(tmp_path / "images")).failed("critical")
    assert [result.column for result in failed] == ["skipped"]


def test_gamma_0_and_exponents_follow_from_the_levels() -> None:
    proposed = choose_for_levels(DEFAULTS.model, 2**16)
    assert proposed["gamma_0"] == (-24.4, "for 65536 levels")
    assert proposed["fourier_exponents"].value == [4, 6, 8, 10, 12, 14]


def test_they_follow_from_the_noise_of_the_sensor_where_that_is_coarser() -> None:
    """Noise at gamma_0 is a twentieth of the sensor's: that costs 1/2 log2(1 + 1/400) = 0.002 bits/dim at most."""
    random = np.random.default_rng(0)
    images = np.rint(30_000 + 10_000 * random.random((40, 1, 1, 1)) + 80 * random.standard_normal((40, 1, 16, 16)))
    assert estimate_noise(images) == pytest.approx(80, rel=0.05)
    (gamma_0, reason), (exponents, _) = choose_for_levels(DEFAULTS.model, 2**16, images).values()
    assert reason.startswith("for 65536 levels, of which the noise of a pixel is ")
    assert 2**16 / 2 * math.exp(gamma_0 / 2) == pytest.approx(4, rel=0.1)
    assert exponents == [4, 6, 8]
    fine = np.rint(images / 80)
    assert choose_for_levels(DEFAULTS.model, 2**10, fine)["gamma_0"].value == round(-2 * math.log(3 * 2**10), 1)
    assert choose_for_levels(DEFAULTS.model, 256, images) == choose_for_levels(DEFAULTS.model, 256)


def test_pictures_are_shown_between_the_levels_that_they_fill() -> None:
    pictures = scenes(30, 2000)[:, None]
    black, white = stretch = stretch_of(pictures, 2**16)
    assert 100 <= black < white <= 2000
    assert stretch.words == f"shown from black to white: levels {black:,} to {white:,}"
    found = eight_bit(pictures, 2**16)
    assert found.min() == 0
    assert found.max() == 255
    assert stretch_of(pictures >> 4, 256) == Stretch(0, 255)
    assert np.array_equal(eight_bit(pictures, 2**16, Stretch(0, 65535)), np.rint(pictures / 257).astype(np.uint8))


def test_a_png_of_16_bits_is_the_comparison() -> None:
    random = np.random.default_rng(0).integers(0, 2**16, (4, 1, 32, 32), dtype=np.uint16)
    assert 16 < measure_png(random).bpd < 16.5
    assert measure_png(random.repeat(3, axis=1)).bpd < 16.5  # colours, which Pillow writes with 8 bits alone


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of 12 bits and pictures of its kind."""
    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(0)
    model = VDM(**DEEP)  # type: ignore[arg-type]
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_model(folder / "model", model, DEEP)
    save_pictures(folder / "pictures", scenes(12, 4000))
    return folder


def test_a_file_of_12_bits_comes_back(deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(tmp_path / "file.vdmz"), tmp_path / "out"
    options = ["--num-timesteps", "3", "--batch-size", "4", "--json"]
    assert run(["compress", str(deep / "pictures"), str(deep / "model"), "--out", file, *options]) == Exit.DONE
    said = json.loads(capsys.readouterr().out)
    assert said["pixel_bytes"] == 2 * 12 * 64
    assert said["net_bpd"] == pytest.approx(8 * said["file_bytes"] / (12 * 64))
    assert run(["decompress", file, str(deep / "model"), "--out", str(out)]) == Exit.DONE
    for picture in sorted((deep / "pictures").iterdir()):
        with Image.open(picture) as before, Image.open(out / picture.name[1:]) as after:
            np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


def test_samples_are_pictures_of_16_bits(deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, params = str(deep / "model"), ["-n", "2", "--steps", "3"]
    (tmp_path / "params.yaml").write_text((ROOT / "presets/digits.yaml").read_text())
    assert run(["sample", model, "--out", str(tmp_path / "drawn.npy"), *params]) == Exit.DONE
    drawn = np.load(tmp_path / "drawn.npy")
    assert drawn.dtype == np.uint16
    assert run(["sample", model, "--out", str(tmp_path / "drawn"), *params]) == Exit.DONE
    with Image.open(tmp_path / "drawn/1.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), drawn[1, 0])
    write_drawn(tmp_path / "as_files", drawn, 2**12, shift=4)  # which hold the upper 12 of 16 bits
    with Image.open(tmp_path / "as_files/1.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), drawn[1, 0] << 4)
    stated = settings(tmp_path, num_bits=12)
    assert (read_known(tmp_path / "as_files/1.png", VDM(**DEEP), stated).numpy() == drawn[1]).all()
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    known = deep / "pictures/003.png"
    options = ["--known", str(known), "--mask", str(tmp_path / "mask.png"), "--out", str(tmp_path / "filled.npy")]
    assert run(["sample", model, *options, *params]) == Exit.DONE
    with Image.open(known) as picture:
        np.testing.assert_array_equal(np.load(tmp_path / "filled.npy")[0, 0, 4:], np.asarray(picture)[4:])


@pytest.mark.parametrize("kind", ["8 bits known", "8 bits", "other levels", "colours"])
def test_what_cannot_take_them_is_one_line(
    kind: str, deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(deep / "model")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "gray.png")
    Image.fromarray(np.full((8, 8), 4096, np.uint16)).save(tmp_path / "bright.png")
    match kind:
        case "8 bits known":
            files = ["--known", str(tmp_path / "gray.png"), "--mask", str(tmp_path / "gray.png")]
            command, message = ["sample", model, *files, "--out", str(tmp_path / "x.npy")], "has 8 bits"
        case "8 bits":
            command, message = ["compress", str(tmp_path / "gray.png"), model], "holds pictures of 256 levels"
        case "other levels":
            command, message = ["compress", str(tmp_path / "bright.png"), model], "holds level 4096"
        case _:
            config: dict[str, Any] = DEEP | {"image_shape": (3, 8, 8)}
            save_model(tmp_path / "colours", VDM(**config), config)
            command, message = ["sample", str(tmp_path / "colours"), "--out", str(tmp_path / "x")], "name an .npy file"
    if command[0] == "compress":
        command += ["--out", str(tmp_path / "x.vdmz")]
    assert run(command) == Exit.USAGE
    assert message in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_model_of_16_bits_in_python() -> None:
    images = scenes(40, 60_000)[:, None]
    model = api.train(images, steps=3, num_levels=2**16, device="cpu")
    assert float(model.schedule.gamma_0) == pytest.approx(2 * math.log(0.1 * estimate_noise(images) / 2**16), abs=0.1)
    result = api.evaluate(model, images[:4], times_per_image=2)
    assert np.isfinite(result.bpd).all()
    by_steps = api.evaluate(model, images[:4], times_per_image=2, num_timesteps=10)
    assert np.isfinite(by_steps.bpd).all()
    content = api.compress(model, images[:4], num_timesteps=4)
    decoded = api.decompress(model, content)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, images[:4])
    assert api.sample(model, 2).dtype == np.uint16
    missing = np.zeros((8, 8), bool)
    missing[:2] = True
    np.testing.assert_array_equal(api.fill_in(model, images[0], missing)[0, :, 2:], images[0, :, 2:])
