"""The page of `vdmctl app` in a real browser, as a visitor uses it."""

import base64
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import App, npy, png, run_app
from conftest import TINY
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from project import ROOT
from sklearn.datasets import load_digits

from flows.app.champion import Served
from flows.core.model import open_model, save_model
from vdm.model import VDM

pytestmark = pytest.mark.needs("Chromium")
expect.set_options(timeout=30_000)  # on a busy machine

TIMES = "\N{MULTIPLICATION SIGN}"
TABS = ("draw", "score", "fill-in", "classify", "model")
WIDER = "document.documentElement.scrollWidth > innerWidth"
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}
DROP = """(panel, files) => {
  const dataTransfer = new DataTransfer();
  for (const {name, data} of files) {
    dataTransfer.items.add(new File([Uint8Array.from(atob(data), letter => letter.charCodeAt(0))], name));
  }
  panel.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """Return an app of the digits with classes; a step and a noise level take milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("VDM_LOCK_DIR", str(tmp_path_factory.mktemp("locks")))
        with run_app() as running:
            yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return Debian's Chromium."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(app: App, browser: Browser) -> Iterator[Page]:
    """Return the page, which must ask nothing of other addresses and run without an error."""
    visited, requests, problems = browser.new_page(), list[str](), list[str]()
    here = str(app.client.base_url)
    visited.on("request", lambda asked: requests.append(asked.url))
    visited.on("pageerror", lambda error: problems.append(str(error)))
    visited.on("console", lambda said: problems.append(said.text))
    visited.clock.install()
    visited.goto(here)
    expect(visited.locator("#about")).to_contain_text(f"8 {TIMES} 8, 1 channel")
    yield visited
    visited.close()
    assert [url for url in requests if not url.startswith((f"{here}/", "data:", "blob:"))] == []
    assert [problem for problem in problems if "422" not in problem] == []  # of pictures that do not fit


def drop(page: Page, tab: str, *files: dict[str, str]) -> None:
    """Drop files on the panel of a tab."""
    page.locator(f"#{tab}").evaluate(DROP, list(files))


def saved(page: Page, click: Callable[[], None]) -> tuple[str, bytes]:
    """Return the name and the content of the file that a click saves."""
    with page.expect_download() as download:
        click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


@contextmanager
def another(page: Page, app: App, model: VDM, config: dict[str, Any], folder: Path) -> Iterator[None]:
    """Let the app answer with another model, and the page notice it, while the block runs."""
    before = app.following.served
    save_model(folder, model, config)
    app.following.served = Served(ROOT, open_model(folder, name="vdm@v2.0.0"), None)
    try:
        page.clock.fast_forward(11_000)
        expect(page.locator("#changed")).to_contain_text("vdm@v2.0.0 is the champion now")
        yield
    finally:
        app.following.served = before


def levels(content: bytes) -> np.ndarray:
    """Return the array in an .npy file."""
    return np.asarray(np.load(BytesIO(content), allow_pickle=False))


def digit(number: int) -> np.ndarray:
    """Return an image (1,8,8) of a digit."""
    return np.asarray(load_digits().images[number].astype(np.uint8)[None])


def test_a_visitor_draws(page: Page, app: App) -> None:
    panel = page.locator("#draw")
    panel.get_by_text("Settings").click()
    panel.get_by_label("Pictures", exact=True).fill("3")
    panel.get_by_label("Seed").fill("7")
    panel.get_by_label("Class").select_option("3")
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.locator(".counter")).to_have_text(
        re.compile(r"3 pictures in 3 steps and .* s, seed 7, by pretrained/digits_classes\.")
    )
    tiles = panel.get_by_role("img")
    assert [tile.get_attribute("alt") for tile in tiles.all()] == [f"Picture {n} of class 3" for n in (1, 2, 3)]
    finished = [tile.get_attribute("src") for tile in tiles.all()]
    expected = app.post("/sample", num_images=3, seed=7, classes=[3], guidance=1.0)
    assert finished == [f"data:image/png;base64,{image}" for image in expected["images"]]

    name, content = saved(page, panel.get_by_role("button", name="Save as .npy").click)
    assert (name, content) == ("drawings.npy", base64.b64decode(expected["npy"]))
    name, content = saved(page, panel.get_by_role("button", name="Picture 2").click)
    assert (name, content) == ("drawings-2.png", base64.b64decode(expected["images"][1]))
    _, content = saved(page, panel.get_by_role("button", name="Save all as one PNG").click)
    assert Image.open(BytesIO(content)).size == (2 * 66 + 2, 2 * 66 + 2)  # two in a row, each 8 times as large

    slider = panel.get_by_role("slider", name="Film")
    slider.fill("0")
    expect(panel.locator("output")).to_contain_text("step 1")
    assert tiles.first.get_attribute("src") != finished[0]
    panel.get_by_role("button", name="Play").click()
    page.clock.run_for(1000)
    expect(panel.locator("output")).to_have_text("finished")
    assert [tile.get_attribute("src") for tile in tiles.all()] == finished


def test_a_visitor_stops_a_drawing(page: Page, app: App) -> None:
    """The server gives it up, too, and the page draws again."""
    panel = page.locator("#draw")
    panel.get_by_text("Settings").click()
    panel.get_by_role("spinbutton", name="Steps").fill("1000")
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.locator(".counter")).to_contain_text("of 1000")
    panel.get_by_role("button", name="Stop").click()
    expect(panel.get_by_role("alert")).to_have_text("Stopped.")
    app.wait_until_idle(2)
    panel.get_by_role("spinbutton", name="Steps").fill("2")
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.locator(".counter")).to_contain_text("16 pictures in 2 steps")
    expect(panel.get_by_role("alert")).to_be_hidden()


def test_a_visitor_drops_pictures_and_reads_their_bits(page: Page, app: App) -> None:
    """A picture that holds shades is read in levels, as it says; one of another size only if it is asked for."""
    page.get_by_role("tab", name="Score").click()
    panel = page.locator("#score")
    noise = np.random.default_rng(0).integers(17, size=(1, 8, 8), dtype=np.uint8)
    shades = np.rint(digit(0)[0] * (255 / 16)).astype(np.uint8)
    files = [npy(noise, "noise.npy"), png(shades, "shades.png"), png(np.zeros((28, 40), np.uint8), "large.png")]
    drop(page, "score", *files, {"name": "text.png", "data": base64.b64encode(b"no picture").decode()})
    expect(panel.locator(".counter")).to_have_text("2 pictures scored.")

    scored = [app.post("/score", pictures=[npy(image)])["images"][0]["bpd"] for image in (noise, digit(0))]
    cards = panel.locator(".card")
    assert cards.get_by_role("heading").all_inner_texts() == ["noise.npy", "shades.png"]
    figures = [float(text.split()[0]) for text in cards.locator(".figure").all_inner_texts()]
    assert figures == pytest.approx(scored, abs=0.05)  # as far as the page rounds them
    assert figures[0] > figures[1]
    expect(cards.first).to_contain_text(re.compile(r"surprise \d+\.\d: .*\+\d"))
    expect(cards.nth(1)).to_contain_text("its shades are the 17 levels")
    assert [card.get_by_role("img").count() for card in cards.all()] == [2, 2]  # what the model sees, and the chart
    panel.get_by_label("Sorted by").select_option("-surprise")
    expect(cards.first).to_contain_text("shades.png")

    refused = panel.locator(".refused li")
    expect(refused).to_have_count(2)
    expect(refused.nth(1)).to_contain_text("text.png: damaged")
    refused.first.get_by_role("button", name="Make it fit").click()
    expect(panel.locator(".counter")).to_have_text("3 pictures scored.")
    expect(cards.filter(has_text="large.png")).to_contain_text("shrunk from 40x28 to 8x8 pixels")


def test_pictures_are_made_to_fit_one_after_the_other(page: Page) -> None:
    """Also while the page does something else: none is dropped."""
    page.get_by_role("tab", name="Score").click()
    panel = page.locator("#score")
    sizes = (9, 10, 11)
    drop(page, "score", *(png(np.zeros((side, side), np.uint8), f"{side}.png") for side in sizes))
    buttons = panel.get_by_role("button", name="Make it fit")
    expect(buttons).to_have_count(3)
    page.evaluate("for (const button of document.querySelectorAll('#score .refused button')) button.click()")
    expect(panel.locator(".counter")).to_have_text("3 pictures scored.")
    expect(buttons).to_have_count(0)
    assert sorted(panel.locator(".card h3").all_inner_texts()) == ["10.png", "11.png", "9.png"]


def test_many_pictures_are_scored_and_the_first_are_shown(page: Page) -> None:
    """The highest of all their levels is found, and a file of images has a request of its own."""
    page.get_by_role("tab", name="Score").click()
    panel = page.locator("#score")
    found = page.evaluate(
        """async count => (await import("/page/score.js")).highest(
          Array.from({length: count}, (_, number) => ({level_bpd: Array(32).fill(number)})))""",
        4352,
    )
    assert found == 4351
    panel.get_by_text("Settings").click()
    panel.get_by_label("Noise levels").fill("2")
    drop(page, "score", *(npy(np.zeros((count, 8, 8), np.uint8)[:, None], f"{count}.npy") for count in (70, 5)))
    expect(panel.locator(".counter")).to_have_text("75 pictures scored.")
    expect(panel.locator(".refused li")).to_have_count(0)
    expect(panel.locator(".card")).to_have_count(60)
    panel.get_by_role("button", name="Show more: 60 of 75 pictures are shown").click()
    expect(panel.locator(".card")).to_have_count(75)


def test_a_visitor_without_pictures_tries_test_images(page: Page, app: App) -> None:
    assert len(app.following.served.examples) == 10
    for tab, name in (("score", "Score"), ("classify", "Classify")):
        page.get_by_role("tab", name=name).click()
        panel = page.locator(f"#{tab}")
        panel.get_by_text("Settings").click()
        panel.get_by_label("Noise levels").fill("2")
        panel.get_by_role("button", name="Test image 4").click()
        expect(panel.locator(".card h3")).to_have_text(["test image 4.npy"])
        panel.get_by_role("button", name="Try all of them").click()
        expect(panel.locator(".card")).to_have_count(10)
    page.get_by_role("tab", name="Fill in").click()
    page.locator("#fill-in").get_by_role("button", name="Test image 4").click()
    expect(page.locator("#fill-in canvas")).to_be_visible()


@pytest.mark.parametrize("channels", [2, 4])
def test_all_channels_are_shown(
    channels: int, page: Page, app: App, tiny_model: Callable[..., VDM], tmp_path: Path
) -> None:
    """Side by side, since no picture has two or four; what is painted over one is covered in all."""
    shape = (channels, 8, 8)
    images = np.random.default_rng(0).integers(0, 17, (2, *shape), dtype=np.uint8)
    config = TINY | {"image_shape": shape}
    with another(page, app, tiny_model(image_shape=shape), config, tmp_path / "channels"):
        panel = page.locator("#draw")
        panel.get_by_role("button", name="Draw", exact=True).click()
        expect(panel.locator(".counter")).to_contain_text("16 pictures in")
        drawn = panel.locator(".tiles img").first
        assert drawn.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [8 * channels, 8]
        assert drawn.evaluate("image => image.width / image.height") == channels

        page.get_by_role("tab", name="Score").click()
        drop(page, "score", npy(images, "two.npy"))
        expect(page.locator("#score .card")).to_have_count(2)
        assert "PNG" not in page.locator("#score .cards").inner_text()

        page.get_by_role("tab", name="Fill in").click()
        panel = page.locator("#fill-in")
        drop(page, "fill-in", npy(images[0], "one.npy"))
        canvas = panel.locator("canvas")
        expect(canvas).to_be_visible()
        box = canvas.bounding_box()
        assert box
        panel.get_by_role("slider", name="Brush").fill("1")
        page.mouse.click(box["x"] + box["width"] - 2, box["y"] + 2)  # the last channel's last column
        expect(panel.locator(".covered")).to_have_text("Covered: 1 of 64 pixels.")
        right = """([canvas, channels]) => {
          const {data, width} = canvas.getContext("2d").getImageData(0, 2, canvas.width, 1);
          const ends = [...Array(channels).keys()].map(pane => 4 * ((pane + 1) * width / channels - 2));
          return ends.map(place => data.slice(place, place + 3).join());
        }"""
        assert page.evaluate(right, [canvas.element_handle(), channels]) == ["232,62,140"] * channels
        panel.get_by_role("button", name="Fill in", exact=True).click()
        expect(panel.locator(".film .counter")).to_contain_text("4 pictures in")
        _, content = saved(page, panel.get_by_role("button", name="Save as .npy").click)
        known = np.ones((8, 8), bool)
        known[0, 7] = False
        assert (levels(content)[:, :, known] == images[0][:, known]).all()


def test_a_sampler_without_a_name_is_that_of_the_parameters(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path))
    with run_app(sampling={"eta": 0.5}) as app, browser.new_page() as visited:
        visited.goto(str(app.client.base_url))
        panel = visited.locator("#draw")
        panel.get_by_role("button", name="Draw", exact=True).click()
        expect(panel.locator(".counter")).to_contain_text("16 pictures in 3 steps")
        expect(panel.locator("select[name=sampler] option").first).to_have_text("as in params.yaml")


def test_bits_of_a_png_are_those_of_its_pixels(page: Page) -> None:
    """A file of 8x8 pixels is mostly frame, and says nothing."""
    line = """async ([bpd, shape]) => (await import("/page/score.js")).pngLine(bpd, shape)?.textContent ?? null"""
    assert page.evaluate(line, [8 * 130 / 64, [1, 8, 8]]) is None
    assert (
        page.evaluate(line, [8 * 557 / 784, [1, 28, 28]]) == f"Its pixels take {8 * 500 / 784:.2f} bits/dim in a PNG."
    )
    assert page.evaluate(line, [None, [4, 28, 28]]) is None


def test_whoever_hears_the_page_finds_all_of_it(page: Page) -> None:
    """Landmarks hold everything, headings skip no level, and no head of a column is empty."""
    for tab, name in (("score", "Score"), ("classify", "Classify"), ("model", "Model")):
        page.get_by_role("tab", name=name).click()
        if tab != "model":
            page.locator(f"#{tab}").get_by_role("button", name="Test image 1", exact=False).first.click()
            page.locator(f"#{tab} .card").first.wait_for()
        assert page.locator("main").get_by_role("tablist").count() == 1
        shown = page.locator("h1, h2, h3, h4, h5, h6").evaluate_all(
            "all => all.filter(one => one.checkVisibility()).map(one => Number(one.tagName[1]))"
        )
        assert shown[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(shown)), (tab, shown)
        assert page.locator("th").evaluate_all("all => all.filter(one => !one.textContent.trim()).length") == 0


def test_results_stand_before_settings(page: Page) -> None:
    """On a phone the first drawings are on the first screen; a wrong setting shows itself."""
    page.set_viewport_size({"width": 390, "height": 844})
    panel = page.locator("#draw")
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(panel.locator(".counter")).to_contain_text("16 pictures")
    box = panel.locator(".tiles img").first.bounding_box()
    assert box
    assert box["y"] + box["height"] < 844
    steps = panel.get_by_role("spinbutton", name="Steps")
    expect(steps).to_be_hidden()
    panel.locator("input[name=steps]").evaluate("field => { field.value = 0; }")
    panel.get_by_role("button", name="Draw", exact=True).click()
    expect(steps).to_be_visible()


def test_the_sampler_is_not_cut_on_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#draw").get_by_text("Settings").click()
    room, needed = page.locator("#draw select[name=sampler]").evaluate(
        """select => {
          const context = document.createElement("canvas").getContext("2d");
          context.font = getComputedStyle(select).font;
          const widths = [...select.options].map(option => context.measureText(option.text).width);
          return [select.clientWidth - 40, Math.max(...widths)];  // an arrow and the padding
        }"""
    )
    assert needed <= room


def test_a_visitor_paints_and_gets_completions(page: Page) -> None:
    page.get_by_role("tab", name="Fill in").click()
    panel, picture = page.locator("#fill-in"), digit(3)
    fill_in = panel.get_by_role("button", name="Fill in", exact=True)
    expect(fill_in).to_be_disabled()
    drop(page, "fill-in", npy(picture, "three.npy"))
    canvas = panel.locator("canvas")
    expect(canvas).to_be_visible()
    assert canvas.evaluate("canvas => [canvas.width, canvas.height]") == [320, 320]  # 40 times as large
    box = canvas.bounding_box()
    assert box
    panel.get_by_role("slider", name="Brush").fill("1")
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 20)
    page.mouse.up()
    expect(panel.locator(".covered")).to_have_text("Covered: 8 of 64 pixels.")
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    expect(panel.locator(".covered")).to_have_text("Brush in column 5, row 6. Covered: 9 of 64 pixels.")

    panel.get_by_text("Settings").click()
    panel.get_by_label("Completions").fill("2")
    fill_in.click()
    expect(panel.locator(".film .counter")).to_contain_text("2 pictures in")
    _, content = saved(page, panel.get_by_role("button", name="Save as .npy").click)
    known = np.ones((8, 8), bool)
    known[0], known[5, 4] = False, False
    completions = levels(content)
    assert completions.shape == (2, 1, 8, 8)
    assert (completions[:, 0, known] == picture[0, known]).all()


def test_a_visitor_classifies_and_spends_more_on_what_is_unsure(page: Page) -> None:
    page.get_by_role("tab", name="Classify").click()
    panel = page.locator("#classify")
    panel.get_by_text("Settings").click()
    panel.get_by_label("Noise levels").fill("4")
    between = (digit(3).astype(int) + digit(8)) // 2  # a 3 and an 8
    drop(page, "classify", npy(np.stack([digit(0), between.astype(np.uint8)]), "two.npy"))
    expect(panel.locator(".counter")).to_have_text("2 pictures classified.")
    cards = panel.locator(".card")
    expect(cards.first.locator(".figure")).to_have_text("class 0")
    expect(cards.first.get_by_role("row")).to_have_count(11)  # ten classes below their heads
    expect(cards.nth(1)).to_contain_text("Not sure")
    unsure = cards.nth(1).locator(".number").all_inner_texts()
    ranges = [text for text in unsure if re.fullmatch(r"\d+\N{EN DASH}\d+%", text)]
    assert len(ranges) == 2  # of the two best classes, which one alone would look sure
    assert "> 99.9%" not in unsure
    cards.nth(1).get_by_role("button", name="Spend more").click()
    expect(cards.nth(1)).not_to_contain_text("at 4 noise levels")
    expect(cards.nth(1).get_by_role("button")).to_have_count(0)


def test_a_visitor_reads_about_the_model(page: Page, app: App) -> None:
    page.get_by_role("tab", name="Draw").press("End")
    panel = page.locator("#model")
    expect(panel).to_contain_text(app.following.served.model.sha256)
    page.clock.fast_forward(11_000)  # its results are read meanwhile
    expect(panel).to_contain_text("1.629 ± 0.013")
    expect(page.locator("#judgement")).to_contain_text("365 test images cost 1.63 bits/dim")
    expect(panel.get_by_role("img", name="Line chart of gamma")).to_be_visible()
    expect(panel.get_by_role("heading", name="Load it")).to_be_visible()
    frame = panel.locator("iframe")
    frame.scroll_into_view_if_needed()
    expect(panel.frame_locator("iframe").locator(".headline")).to_contain_text("1.6286 ± 0.0126")
    page.get_by_role("link", name="HTTP interface").click()
    expect(page.get_by_role("heading", name="POST /score")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_a_phone_and_a_desktop(scheme: Any, page: Page) -> None:
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[scheme]
    drop(page, "score", npy(digit(1)))
    drop(page, "classify", npy(digit(1)))
    drop(page, "fill-in", npy(digit(1)))
    for tab in TABS:
        page.locator(f"#tab-{tab}").click()
        if tab not in ("draw", "model"):
            page.locator(f"#{tab}").locator(".card, .easel").first.wait_for()
        for width in (1200, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert not page.evaluate(WIDER), (tab, width)


def test_the_page_changes_to_another_model(
    page: Page, app: App, tiny_model: Callable[..., VDM], tmp_path: Path
) -> None:
    """One without classes has no tab for them."""
    page.get_by_role("tab", name="Classify").click()
    with another(page, app, tiny_model(), TINY, tmp_path / "other"):
        expect(page.get_by_role("tab", name="Classify")).to_be_hidden()
        panel = page.locator("#draw")
        expect(panel).to_be_visible()
        expect(panel.get_by_label("Guidance")).to_be_hidden()
        panel.get_by_role("button", name="Draw", exact=True).click()
        expect(panel.locator(".counter")).to_contain_text("by vdm@v2.0.0")
