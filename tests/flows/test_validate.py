"""Images that break the discretization contract are refused, with the broken rule named."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FASHION_MNIST
from pictures import load, noise
from PIL import Image, ImageDraw
from project import ROOT

from benchmarks import contract as change
from flows.contract.checks import Check, list_checks
from flows.contract.drift import read_reference
from flows.contract.facts import measure_facts, num_redundant
from flows.contract.findings import Findings
from flows.contract.inspection import inspect_images, require_success, validate
from flows.contract.limits import Limit
from flows.core.errors import Exit, UserError
from flows.core.params_file import parse_params, read_params, read_preset
from flows.images.download import download
from flows.images.image_set import open_images, save_images

# Great Expectations warns about itself and about pandas.
pytestmark = pytest.mark.filterwarnings("ignore")

CONTRACT = read_params(ROOT / "presets" / "digits.yaml").contract
Splits = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def image_set(tmp_path: Path, digits: np.ndarray) -> Path:
    write_set(tmp_path / "images", digits[:50], digits[50:70])
    return tmp_path / "images"


def write_set(folder: Path, train: np.ndarray, test: np.ndarray, **description: Any) -> None:
    stated = {"name": "digits", "num_levels": 17, "image_shape": [1, 8, 8]}
    counts = {"num_train": len(train), "num_test": len(test)}
    save_images(folder, {"train": train, "test": test}, stated | counts | description)


def digits_of(image_set: Path) -> Splits:
    loaded = open_images(image_set)
    return np.array(loaded["train"]), np.array(loaded["test"])


def inspected(images: Path, reference: Path | None = None, **changes: Any) -> Findings:
    """Return the findings on images that may be invalid."""
    expected = read_reference(reference) if reference else None
    return inspect_images(CONTRACT.model_copy(update=changes), open_images(images), expected).findings


def run(images: Path, reference: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Check the images as the stage does, and return the findings, without their files."""
    findings = inspected(images, reference, **changes)
    require_success(findings, str(images), None)
    return findings.model_dump()


def find_check(images: Path, meaning: str) -> Check:
    """Return the check of the images whose meaning contains the text."""
    (found,) = [check for check in list_checks(open_images(images), CONTRACT) if meaning in check.meaning]
    return found


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, digits: np.ndarray) -> Path:
    """Run the stage on valid images, and return its folder, with `images` and `report`, which tests only read."""
    folder = tmp_path_factory.mktemp("good")
    write_set(folder / "images", digits[:50], digits[50:70])
    validate(CONTRACT, images=open_images(folder / "images"), out=folder / "report")
    return folder


@pytest.fixture(scope="module")
def leaking(good: Path, tmp_path_factory: pytest.TempPathFactory, digits: np.ndarray) -> tuple[Path, UserError]:
    """Run the stage, after valid images, on two that are in both splits; return its report's folder and its error."""
    folder = tmp_path_factory.mktemp("leaking")
    shutil.copytree(good / "report", folder / "report")
    write_set(folder / "images", digits[:50], np.concatenate([digits[50:70], digits[3:5]]))
    with pytest.raises(UserError) as error:
        validate(CONTRACT, images=open_images(folder / "images"), out=folder / "report")
    return folder / "report", error.value


@pytest.mark.slow
def test_good_images_pass_and_the_report_has_their_digest(good: Path) -> None:
    report = json.loads((good / "report/findings.json").read_text())
    assert report["success"]
    assert report["data_sha256"] == open_images(good / "images").data_sha256
    assert all(entry["success"] for entry in report["expectations"])
    checks = list_checks(open_images(good / "images"), CONTRACT, ["gaps", "peaks"])  # which 17 levels do not show
    meanings = [check.meaning for check in checks if check.table != "drift"]  # without a reference
    assert [entry["meaning"] for entry in report["expectations"]] == meanings


@pytest.mark.slow
def test_relaxed_limits_are_named(image_set: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {"max_leaked": 0.01, "max_skipped": 1.0, "max_gaps": 0.01, "max_shift": 1.0}
    relaxed = CONTRACT.model_copy(update=changes)
    with caplog.at_level("INFO"):
        validate(relaxed, images=open_images(image_set), out=image_set.parent / "report")
    limits = ["max_leaked 0.01 instead of 0.0", "max_skipped 1.0 instead of 0.25"]
    report = Findings.model_validate_json((image_set.parent / "report/findings.json").read_bytes())
    assert report.relaxed == limits
    count = len(report.expectations)
    assert f"valid with relaxed limits: {', '.join(limits)}: {count} of {count} expectations hold" in caplog.text
    (page,) = (image_set.parent / "report/data_docs").rglob("pandas-histogram.html")
    assert f"empty between the lowest and the highest (relaxed: {limits[1]})" in page.read_text()
    assert "almost empty between full ones (cannot be judged: too few levels are in use)" in page.read_text()
    assert "almost empty between full ones (cannot be judged: too few levels are in use)" in caplog.text


def test_the_limit_of_a_check_has_the_name_of_its_column_and_the_usual_one_is_that_of_the_digits(good: Path) -> None:
    known = {name: value for name, value in CONTRACT if name.startswith("max_")}
    others = {name: (place + 1) / 100 for place, name in enumerate(known)}
    checks = list_checks(open_images(good / "images"), CONTRACT.model_copy(update=others))
    limits = {f"max_{check.column}": check.expects for check in checks if isinstance(check.expects, Limit)}
    assert {name: limit.most for name, limit in limits.items()} == {name: others[name] for name in limits}
    usual = {name: limit.usual for name, limit in limits.items() if limit.usual is not None}
    assert usual == {name: known[name] for name in usual}
    stopping = {f"max_{check.column}" for check in checks if check.severity == "critical"}
    assert limits.keys() & stopping <= usual.keys(), "a limit that stops the pipeline is named if it is relaxed"


@pytest.mark.slow
def test_images_in_two_splits_are_named_and_replace_the_report_on_valid_ones(leaking: tuple[Path, UserError]) -> None:
    report, error = leaking
    assert error.code == Exit.INVALID_DATA
    assert "no image is in two splits: 2 of 72 images" in str(error)
    assert str(error).endswith(f"; see {report / 'data_docs/index.html'}")
    assert not json.loads((report / "findings.json").read_text())["success"]


@pytest.mark.slow
def test_the_site_says_what_failed_and_why_and_the_picture_shows_it(
    good: Path, leaking: tuple[Path, UserError]
) -> None:
    site = leaking[0] / "data_docs"
    index = (site / "index.html").read_text()
    pages = list((site / "validations").rglob("*.html"))  # the older report's are gone
    assert {page.stem for page in pages} == {
        f"pandas-{table}" for table in ("images", "splits", "histogram", "differences")
    }
    assert all(str(page.relative_to(site)) in index for page in pages)
    (images,) = [page.read_text() for page in pages if page.stem == "pandas-images"]
    assert "no image is in two splits" in images
    assert "2 unexpected values found" in images
    assert "the model may know it by heart" in (site / "expectations/images.html").read_text()
    with Image.open(good / "report/findings.png") as valid, Image.open(leaking[0] / "findings.png") as invalid:
        assert invalid.height > valid.height


@pytest.mark.processes
def test_two_processes_write_the_same_bytes(leaking: tuple[Path, UserError], tmp_path: Path) -> None:
    """The time, the folder, the time zone and the seed of hashes differ."""
    report = leaking[0]
    program = (
        "import sys; from pathlib import Path; from flows.core.params_file import read_params; "
        "from flows.contract.inspection import inspect_images, write_findings; "
        "from flows.images.image_set import open_images; images, out = map(Path, sys.argv[1:]); "
        "contract = read_params(Path('presets/digits.yaml')).contract; "
        "write_findings(inspect_images(contract, open_images(images), None), out)"
    )
    environment = os.environ | {"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "2"}
    command = [sys.executable, "-c", program, str(report.parent / "images"), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    for name in ("findings.json", "findings.png"):
        assert (report / name).read_bytes() == (tmp_path / name).read_bytes()


def with_values(dtype: str, *values: float) -> Callable[[np.ndarray, np.ndarray], Splits]:
    """Return a function that gives the training images another type, and one of them each of the values."""

    def break_it(train: np.ndarray, test: np.ndarray) -> Splits:
        train = train.astype(dtype)
        for image, value in enumerate(values, 7):
            train[image, 0, 3, 3] = value
        return train, test

    return break_it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "reasons"),
    [
        (
            lambda train, test: with_values("uint8", 17)(train, test[:, :, :7]),
            ["no level above 16: 1 of 70 images, such as 17", "shape of every image: 20 of 70 images, such as 1x7x8"],
        ),
        (with_values("int64", -1), ["no level below 0: 1 of 70 images, such as -1"]),
        (
            with_values("float64", np.nan, 0.5),
            ["no pixel is NaN: 1 of 70 images", "pixels are uint8 integers: 50 of 70 images, such as float64"],
        ),
        (lambda train, test: (train[:0], test[:0]), ["no empty split"]),
        (lambda train, test: (train, test[:, :, :0]), ["shape of every image: 20 of 70 images, such as 1x0x8"]),
    ],
    ids=["level and shape", "negative", "nan and float", "nothing", "no pixels"],
)
def test_a_broken_contract_is_named(break_it: Callable[..., Splits], reasons: list[str], image_set: Path) -> None:
    write_set(image_set, *break_it(*digits_of(image_set)))
    with pytest.raises(UserError) as error:
        run(image_set)
    assert error.value.code == Exit.INVALID_DATA
    assert [reason for reason in reasons if reason not in str(error.value)] == []


def test_redundant_channels_are_counted(digits: np.ndarray) -> None:
    """The channels a, b and c are different digits, and 1 is of one level."""
    sources = {"a": digits[:80], "b": digits[200:280], "c": digits[400:480], "1": np.full_like(digits[:80], 16)}

    def number(channels: str) -> int:
        pixels = np.concatenate([sources[channel] for channel in channels], axis=1)
        return num_redundant([measure_facts(pixels[:50], 17), measure_facts(pixels[50:], 17)])

    found = {channels: number(channels) for channels in ("aaa", "abb", "abab", "aa1", "abc1", "abc", "a")}
    assert found == {"aaa": 2, "abb": 1, "abab": 2, "aa1": 2, "abc1": 1, "abc": 0, "a": 0}
    colours, gray = (
        measure_facts(digits[:90].reshape(30, 3, 8, 8), 17),
        measure_facts(np.repeat(digits[:20], 3, axis=1), 17),
    )
    assert num_redundant([colours, gray]) == 0, "gray images of one split"
    assert num_redundant([gray, measure_facts(digits[:20], 17)]) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "train.npy").unlink(),
        lambda folder: (folder / "train.npy").write_bytes((folder / "train.npy").read_bytes()[:100]),
        lambda folder: (folder / "dataset.json").write_text("{}"),
        lambda folder: np.save(folder / "test.npy", np.array([{}], dtype=object), allow_pickle=True),
    ],
    ids=["missing", "truncated", "keys", "pickle"],
)
def test_a_damaged_file_is_named(damage: Callable[[Path], object], image_set: Path) -> None:
    damage(image_set)
    with pytest.raises(UserError, match=r"no such file|damaged|must be|not images"):
        run(image_set)


@pytest.mark.slow
def test_wrong_counts_and_labels_are_named(image_set: Path) -> None:
    write_set(image_set, *digits_of(image_set), published_train=60_000, num_train=20, num_test=51)
    np.save(image_set / "train_labels.npy", np.arange(49))
    with pytest.raises(UserError) as error:
        run(image_set)
    for reason in (
        "number of images: 70",
        "as many images as were published: 1 of 2 splits, such as -59950 (train)",
        "as many images in every split as stated: 2 of 2 splits, such as 30, -31",
        "a label for every image, or none for any: 2 of 2 splits, such as -1, -20 (train, test)",
    ):
        assert reason in str(error.value)


@pytest.mark.slow
def test_repeated_constant_and_leaked_images_are_allowed_up_to_a_share(image_set: Path) -> None:
    """Leakage is a share of the test images."""
    train, test = digits_of(image_set)
    train[7], train[9], test[3] = train[3], 5, train[5]
    write_set(image_set, train, test)
    with pytest.raises(UserError) as error:
        run(image_set, max_leaked=0.99 / 20)
    limits = {"max_duplicates": 0.015, "max_constant": 0.015, "max_leaked": 0.05}
    for text in (
        "no image is twice in a split: 1 of 70 images, which contract.max_duplicates: 0.015 would accept (train 7)",
        "no image is of one level: 1 of 70 images, which contract.max_constant: 0.015 would accept (train 9)",
        "(relaxed: max_leaked 0.0495 instead of 0.0): 1 of 70 images, which contract.max_leaked: 0.05 would accept (te",
    ):
        assert text in str(error.value)
    assert run(image_set, **limits)["success"]
    accepted = {result.column: result.accepted_by for result in inspected(image_set).failed("critical")}
    assert {f"max_{column}": limit for column, limit in accepted.items()} == limits


@pytest.mark.slow
def test_leakage_is_found_between_any_two_splits(tmp_path: Path, digits: np.ndarray) -> None:
    train, validation, test = (np.array(part) for part in np.split(digits[:80], [50, 60]))
    validation[1], test[3], test[4] = train[2], validation[2], train[5]
    splits = {"train": train, "validation": validation, "test": test}
    save_images(tmp_path / "images", splits, {"name": "digits", "num_levels": 17})
    report = inspected(tmp_path / "images")
    with pytest.raises(UserError, match=r"two splits: 3 of 80 images, .* \(validation 1, test 3, test 4\)"):
        require_success(report, str(tmp_path / "images"), None)
    assert [(alike.first, alike.second) for alike in report.alike] == [*combinations(splits, 2)]
    assert {(difference.first, difference.second) for difference in report.differences} == {*combinations(splits, 2)}


@pytest.mark.slow
def test_resampled_and_compressed_images_fail_unless_that_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = change.enlarged(change.photograph_patches(side=16, step=20), "bilinear")
    test = change.jpeg(change.photograph_patches(side=32, step=32), 90)
    write_set(tmp_path / "images", train, test, num_levels=256, image_shape=[3, 32, 32])
    found = "(share without detail): 1 of 2 splits", "(how much they lie on its grid): 1 of 2 splits"
    with pytest.raises(UserError) as error:
        run(tmp_path / "images")
    assert [text in str(error.value) for text in found] == [True, True]
    for formats in ("100 JPEG", "99 PNG, 1 lossy TIFF"):
        known = {"formats": formats, "transforms": "resized to 32x32"}
        write_set(tmp_path / "images", train, test, num_levels=256, image_shape=[3, 32, 32], **known)
        assert find_check(tmp_path / "images", "JPEG (how").severity == "warning"
    caplog.clear()
    assert run(tmp_path / "images")["success"]
    assert [text in caplog.text for text in found] == [True, True]
    assert "no image comes from a lossy file, whose pixels are the decoder's: 2 of 2 splits" in caplog.text


@pytest.mark.parametrize(("num_bits", "severity"), [(5, "critical"), (4, "warning")])
def test_images_of_few_levels_may_lack_detail(num_bits: int, severity: str, tmp_path: Path) -> None:
    """Of five bits, images that were not enlarged have enough of it."""
    images = change.enlarged(change.photograph_patches(side=16, step=20), "bilinear") >> (8 - num_bits)
    write_set(tmp_path, images[::2], images[1::2], image_shape=[3, 32, 32], num_levels=2**num_bits)
    detail = find_check(tmp_path, "enlarged")
    assert detail.severity == severity
    image_set = open_images(tmp_path)
    lost = [measure_facts(image_set[split], 2**num_bits).lost_detail for split in image_set.splits]
    assert min(lost) > detail.rule.arguments["max_value"]


@pytest.mark.slow
def test_warnings_do_not_fail(image_set: Path, digits: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    train, test = np.minimum(digits[:400], 15), np.minimum(digits[400:450], 15)
    test[2] = train[5, :, :, ::-1]
    write_set(image_set, train, test)
    np.save(image_set / "train_labels.npy", np.repeat([0, 1], [391, 9]))
    np.save(image_set / "test_labels.npy", np.repeat([0, 1], 25))
    report = run(image_set)
    assert report["success"]
    (pair,) = report["alike"][0]["pairs"]
    assert pair["by_chance"] < 1e-4
    assert (pair["image"], pair["of_image"], pair["moved"], pair["distance"]) == (2, 5, "mirrored", 0)
    for warning in (
        "images look like one of an earlier split no more often than by chance: 1 of 450 images (test 2)",
        "every level is used: 2 of 34 levels (train 16, test 16)",
        "frequent: 1 of 2 splits, such as 43.4444, which contract.max_label_ratio: 43.445 would accept (train)",
        "splits differ by chance alone: 2 of 9 statistics (train/test shares of labels by 0.477 of the images",
    ):
        assert warning in caplog.text


@pytest.mark.slow
def test_a_gray_and_a_colour_copy_are_the_same_image(tmp_path: Path) -> None:
    for part, mode in (("train", "L"), ("test", "RGB")):
        (tmp_path / "set" / part).mkdir(parents=True)
        for i in range(3):
            seed = i if i == 1 else len(mode) * 10 + i
            Image.fromarray(noise(16, 16, seed=seed)).convert(mode).save(tmp_path / "set" / part / f"{i}.png")
    load(tmp_path / "set", grayscale=True)
    with pytest.raises(UserError, match=r"in two splits: 1 of 6 images, .* \(test 1 \"test/1.png\"\)") as error:
        run(tmp_path / "images")
    assert error.value.code == Exit.INVALID_DATA


@pytest.mark.slow
def test_a_folder_of_drawings_is_valid_and_a_class_of_one_image_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are files in folders of classes, as a user has them."""
    generator = np.random.default_rng(0)
    for number in range(200):
        picture, kind = Image.new("RGB", (16, 16), "white"), "only" if number == 0 else ["even", "odd"][number % 2]
        box = [*generator.uniform(0, 6, 2), *generator.uniform(8, 15, 2)]
        draw = ImageDraw.Draw(picture)
        colour = tuple(generator.integers(0, 256, 3).tolist())
        (draw.ellipse if kind == "odd" else draw.rectangle)(box, fill=colour)
        (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "set" / kind / f"{number}.png")
    load(tmp_path / "set")
    with caplog.at_level("INFO"):
        assert run(tmp_path / "images")["success"]
    assert "per image of the least frequent: 1 of 2 splits, such as " in caplog.text
    assert "which contract.max_label_ratio: " in caplog.text
    assert "much fuller than their neighbours (cannot be judged: too few levels are in use)" in caplog.text


@pytest.mark.slow
def test_drift_from_a_reference_is_reported(good: Path, image_set: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, test = digits_of(image_set)
    reference = Path(shutil.copy(good / "report/findings.json", image_set.parent / "reference.json"))
    assert run(image_set, reference=reference, on_drift="fail")["success"]
    write_set(image_set.parent / "same", train, test)
    write_set(image_set, 16 - train, 16 - test)
    assert run(image_set, reference=reference)["success"]
    assert "broken expectation: images are like the reference's" in caplog.text
    with pytest.raises(UserError, match=r"the reference's: 2 of 8 statistics \(reference/train pixel histogram by "):
        run(image_set, reference=image_set.parent / "same", on_drift="fail", max_drift=0.01)
    write_set(image_set, train, test, num_levels=18)
    with pytest.raises(UserError, match=r"reference's: 1 of 1 statistics \(reference/train number of levels"):
        run(image_set, reference=reference, on_drift="fail")
    reference.write_text("{}")
    with pytest.raises(UserError, match=r"reference.json: damaged: profile: Field required") as error:
        run(image_set, reference=reference)
    assert error.value.code == Exit.MISSING


@pytest.mark.slow
@pytest.mark.needs("Fashion-MNIST")
def test_debians_recompressed_fashion_mnist_has_the_published_bytes_and_a_part_of_it_is_valid(tmp_path: Path) -> None:
    data = parse_params(read_preset("fashion_mnist", ROOT / "presets"), "fashion_mnist").data
    source = {"source": str(FASHION_MNIST)}
    download(data.model_copy(update=source), out=tmp_path / "images", downloads=tmp_path / "downloads")
    found = open_images(tmp_path / "images")
    assert found.description.published_train == len(found["train"]) + len(found["validation"]) == 60_000
    assert found["test"].shape == (10_000, 1, 28, 28)
    part = {"train": found["train"][:4000], "test": found["test"][:1000]}
    save_images(tmp_path / "part", part, {"name": "x", "num_levels": 256})
    assert [result.words for result in inspected(tmp_path / "part").expectations if not result.success] == []


def test_wrong_levels_are_critical(image_set: Path) -> None:
    """Seven bits in a set of eight have no gap and no peak: only the highest level shows them."""
    checks = [check for check in list_checks(open_images(image_set), CONTRACT) if check.table == "histogram"]
    critical = {check.column: check.rule.arguments for check in checks if check.severity == "critical"}
    assert critical.keys() == {None, "count", "level_in_use", "gaps", "peaks", "skipped"}
    assert critical["level_in_use"]["min_value"] == 9  # of 17 levels
    assert min(critical[flag]["mostly"] for flag in ("gaps", "peaks", "skipped")) > 1 - 1e-6
