"""Pictures with transparency and palettes are read as what they show, over the background that is named."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import load, noise, png, settings
from PIL import Image
from small import Small, training_json

from flows.cli import run
from flows.core.errors import Exit, UserError
from flows.images.folder import open_source
from flows.images.picture import BadImageError, read_images
from flows.images.user_files import read_files

WHITE = (255, 255, 255)
RED = (255, 0, 0)


def pillow(colours: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Return colours (H,W,3) over a background as Pillow pastes them, (3,H,W)."""
    under = Image.new("RGB", alpha.shape[::-1], background)
    under.paste(Image.fromarray(colours), mask=Image.fromarray(alpha))
    return np.asarray(under).transpose(2, 0, 1)


@pytest.mark.parametrize("background", [WHITE, (0, 0, 0), RED])
@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_a_picture_is_laid_over_the_background(ending: str, background: tuple[int, int, int], tmp_path: Path) -> None:
    pixels = noise(9, 7, 4)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", lossless=True, exact=True)
    found = read_images(tmp_path / f"a.{ending}", background)
    assert np.array_equal(found.pixels[0], pillow(pixels[..., :3], np.ascontiguousarray(pixels[..., 3]), background))
    assert (found.num_bits, found.pixels.dtype) == (8, np.uint8)
    assert (background == found.pixels[0, :, 0].T).all()
    with pytest.raises(BadImageError, match=r"set data\.background .* may show colours that transp"):
        read_images(tmp_path / f"a.{ending}")


def test_a_gray_picture_takes_the_gray_of_the_background_and_is_rgb_over_another_colour(tmp_path: Path) -> None:
    pixels = noise(9, 7, 2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    over = {background: read_images(tmp_path / "a.png", background).pixels[0] for background in (WHITE, (9, 9, 9), RED)}
    assert [len(pixels) for pixels in over.values()] == [1, 1, 3]
    for background, found in over.items():
        rgb = np.repeat(pixels[..., :1], 3, axis=2)
        expected = pillow(rgb, np.ascontiguousarray(pixels[..., 1]), background)
        assert np.array_equal(found, expected[: len(found)])


@pytest.mark.parametrize("background", [None, WHITE])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_an_opaque_alpha_channel_changes_nothing(
    mode: str, background: tuple[int, int, int] | None, tmp_path: Path
) -> None:
    picture = Image.fromarray(noise(9, 7, 3)).convert("L" if mode == "LA" else "P" if mode == "P" else "RGB")
    expected = np.asarray(picture.convert("RGB") if mode == "P" else picture)
    options = {"transparency": b"\xff" * 256} if mode == "P" else {}
    picture.convert(mode).save(tmp_path / "a.png", **options)
    found = read_images(tmp_path / "a.png", background)
    assert np.array_equal(found.pixels[0], expected[None] if mode == "LA" else expected.transpose(2, 0, 1))
    assert (found.num_bits, found.format, found.lightness) == (8, "PNG", None)


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_palette_is_read_as_the_colours_that_it_names(ending: str, colours: int, tmp_path: Path) -> None:
    """A PNG file of few colours has 1, 2 or 4 bits for each pixel."""
    palette, indices = noise(colours, 3, seed=1), noise(9, 7).astype(int) % colours
    picture = Image.fromarray(indices.astype(np.uint8), "P")
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / f"a.{ending}")
    found = read_images(tmp_path / f"a.{ending}")
    assert np.array_equal(found.pixels[0], palette[indices].transpose(2, 0, 1))
    assert (found.num_bits, found.lightness) == (8, None)


def test_transparent_entries_of_a_palette_show_the_background(tmp_path: Path) -> None:
    palette, opacity, indices = noise(16, 3, seed=1), noise(16, seed=2), noise(9, 7) % 16
    picture = Image.fromarray(indices.astype(np.uint8), "P")
    picture.putpalette(palette.tobytes())
    picture.save(tmp_path / "a.png", transparency=opacity.tobytes())
    assert np.array_equal(
        read_images(tmp_path / "a.png", RED).pixels[0], pillow(palette[indices], opacity[indices], RED)
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("used", [True, False])
def test_one_transparent_level_shows_the_background(bits: int, used: bool, tmp_path: Path) -> None:
    """Without a pixel of that level the picture keeps its levels."""
    key = 2**bits - 1 if bits == 1 else 2**bits // 2
    levels = (noise(9, 7) % np.uint16(2**bits)).astype(np.uint8)
    levels[levels == key] = key if used else 0
    plain = png(levels, bits, size=(9, 7))
    name_of_part = plain.index(b"IDAT") - 4
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "key.png", transparency=key)
    content = (tmp_path / "key.png").read_bytes()
    start = content.index(b"tRNS") - 4
    assert struct.unpack(">H", content[start + 8 : start + 10]) == (key,)
    (tmp_path / "a.png").write_bytes(plain[:name_of_part] + content[start : start + 14] + plain[name_of_part:])
    found = read_images(tmp_path / "a.png", WHITE)
    shades = levels.astype(int) * 255 // (2**bits - 1)
    assert found.num_bits == (8 if used else bits)
    assert np.array_equal(found.pixels[0, 0], np.where(levels == key, 255, shades) if used else levels)


def test_pictures_of_16_bits_with_alpha_are_read_in_8(tmp_path: Path) -> None:
    """Half of the opacity of black over white is gray; without a background, an opaque one is refused like RGB."""
    pixels = np.zeros((4, 4, 4), np.uint16)
    pixels[..., 3] = 0x80FF
    (tmp_path / "a.png").write_bytes(png(pixels, 16, 6, size=(4, 4)))
    assert (read_images(tmp_path / "a.png", WHITE).pixels == 127).all()
    pixels[..., 3] = 0xFFFF
    pixels[..., 0] = 0x12EE
    (tmp_path / "a.png").write_bytes(png(pixels, 16, 6, size=(4, 4)))
    found = read_images(tmp_path / "a.png", WHITE)
    assert (found.num_bits, found.pixels[0, :, 0, 0].tolist()) == (8, [0x12, 0, 0])
    with pytest.raises(BadImageError, match="in colour with 16 bits"):
        read_images(tmp_path / "a.png")


def icons(folder: Path, count: int, size: int = 8) -> Path:
    """Write pictures with transparency into the folder, a third of them gray and a third with a palette."""
    folder.mkdir()
    for number in range(count):
        pixels = noise(size, size, 4, seed=number)
        picture = Image.fromarray(pixels)
        match number % 3:
            case 0:
                picture.save(folder / f"{number:02}.png")
            case 1:
                picture.convert("LA").save(folder / f"{number:02}.png")
            case _:
                Image.fromarray(pixels[..., :3]).quantize(8).save(folder / f"{number:02}.png", transparency=0)
    return folder


def test_the_background_is_recorded_and_any_spelling_of_it_is_one_digest(tmp_path: Path) -> None:
    icons(tmp_path / "set", 24)
    found = {
        colour: load(tmp_path / "set", background=colour, gray_as_rgb=True)
        for colour in ("white", "#ffffff", "#FFFFFF", "black")
    }
    assert found["white"].image_shape == (3, 8, 8)
    text = "transparency laid over #ffffff, in 8 bits, gray as RGB"
    assert [found[colour].description.transforms for colour in ("white", "#ffffff", "#FFFFFF")] == [text] * 3


def test_gray_pictures_over_a_colour_need_no_other_transform(tmp_path: Path) -> None:
    icons(tmp_path / "set", 24)
    assert load(tmp_path / "set", background="#102030").image_shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"8 gray .* data.grayscale \(or data.gray_as_rgb\) for the pipeline"):
        load(tmp_path / "set", background="white")


def test_a_crop_that_would_leave_one_pixel_is_refused(tmp_path: Path) -> None:
    write = icons(tmp_path / "set", 4)
    Image.fromarray(noise(1, 8, 3)).save(write / "line.png")
    with pytest.raises(UserError, match=r'1 a pixel wide or high \("line.png"\): remove, or leave out data.crop'):
        load(tmp_path / "set", background="white", gray_as_rgb=True, crop="center", resize=[8, 8])


def test_without_a_background_the_refusal_is_one_group(tmp_path: Path) -> None:
    icons(tmp_path / "set", 24)
    with pytest.raises(UserError) as error:
        load(tmp_path / "set")
    assert error.value.code is Exit.INVALID_DATA
    assert str(error.value).count("with transparency") == str(error.value).count("data.background") == 1


@pytest.mark.parametrize("colour", ["red", "#fff", "ffffff", "#gggggg", "white ", ""])
def test_a_background_that_is_no_colour_is_refused(colour: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='must be white, black or "#rrggbb"'):
        settings(tmp_path, background=colour)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mnist", "background": "white"}, "background needs name: image_folder"),
        ({"grayscale": True, "gray_as_rgb": True}, "grayscale and gray_as_rgb exclude each other"),
        ({"crop": "middle"}, "crop"),
    ],
)
def test_transforms_that_do_not_fit_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


def test_given_pictures_get_what_the_card_says(tmp_path: Path) -> None:
    """Transparency, gray pictures and sides that differ, as `vdmctl evaluate --images` reads them."""
    given = icons(tmp_path / "given", 6, 12)
    Image.fromarray(noise(20, 12, 4)).save(given / "tall.png")
    Image.fromarray(noise(20, 12)).save(given / "plain.png")
    declared = settings(tmp_path, background="#fafafa", gray_as_rgb=True, crop="center", resize=[8, 8])
    with open_source(given) as listed:
        read = {picture.name: picture for picture in read_files(listed, declared)}
    assert [picture.pixels.shape for picture in read.values()] == [(1, 3, 8, 8)] * 8
    assert read["plain.png"].transforms == (
        "transparency laid over #fafafa, in 8 bits, gray as RGB, cropped to the middle square,"
        " resized to 8x8 (bicubic, antialiased)"
    )
    crop = noise(20, 12)[4:16]
    Image.fromarray(crop).save(tmp_path / "crop.png")
    with open_source(tmp_path / "crop.png") as listed:
        (alone,) = read_files(listed, settings(tmp_path, gray_as_rgb=True, resize=[8, 8]))
    assert np.array_equal(read["plain.png"].pixels, alone.pixels)


def test_the_background_of_the_models_images_is_that_of_pictures_named_for_it(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the likelihood, and for the pixels around those to fill in."""
    pixels = noise(8, 8, 2)
    pixels[..., 0] //= 16
    for folder in ("clear", "laid"):
        Path(folder).mkdir()
    Image.fromarray(pixels).save("clear/0.png")
    laid = read_images(Path("clear/0.png"), (0, 0, 0)).pixels[0, 0]
    Image.fromarray(laid).save("laid/0.png")
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save("mask.png")
    assert run(["evaluate", "models/vdm", "--images=clear"]) == Exit.INVALID_DATA
    assert "1 with transparency" in capsys.readouterr().err
    data = settings(Path("mine"), background="black").model_dump()
    Path("models/vdm/training.json").write_text(training_json({"data": data}))
    figures, filled = [], []
    for folder in ("clear", "laid"):
        capsys.readouterr()
        assert run(["evaluate", "models/vdm", f"--images={folder}", "--json"]) == Exit.DONE
        figures.append(json.loads(capsys.readouterr().out)["bpd"])
        command = ["sample", "models/vdm", "-n", "1", "--steps", "2", "--out", f"{folder}.npy"]
        assert run([*command, f"--known={folder}/0.png", "--mask=mask.png"]) == Exit.DONE
        filled.append(Path(f"{folder}.npy").read_bytes())
    assert figures[0] == figures[1]
    assert filled[0] == filled[1]
