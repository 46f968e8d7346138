"""How odd images are: kept features, the command, its table and its page, and the function in Python."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from project import ROOT
from sklearn.datasets import load_digits
from small import Small

from flows.api import load, save, surprise, train
from flows.cli import run
from flows.core.documents import check_value, read_document
from flows.core.errors import Exit, UserError
from flows.core.model import save_model
from flows.evaluation.calibration import Calibration
from flows.evaluation.odd import Labelled, Surprise
from flows.evaluation.surprise import describe_deviations
from flows.images.image_set import save_images
from flows.images.splitting import digest_of
from flows.orchestration.checking import judge_odd
from vdm.model import VDM
from vdm.surprise import STATISTICS, image_features, reference

KEPT = Path("reports/evaluation/calibration.json")


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Return scikit-learn's digits in a random order: in their own, writers follow each other."""
    images = load_digits().images.astype(np.uint8)[:, None]
    return images[np.random.default_rng(0).permutation(len(images))]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, digits: np.ndarray) -> Path:
    """Return a folder with a model that was evaluated on a set with 220 validation images."""
    small = Small(tmp_path_factory.mktemp("surprise") / "small")
    splits = {"train": digits[:60], "validation": digits[100:320], "test": digits[60:70]}
    save_images(small.folder / "data/images", splits, {"name": "digits", "num_levels": 17})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small.folder)
        assert run(["evaluate"]) == Exit.DONE
    return small.folder


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to that folder."""
    monkeypatch.chdir(project)
    return project


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Return the object that `vdmctl surprise` prints."""
    capsys.readouterr()
    assert run(["surprise", *arguments, "--json"]) == Exit.DONE
    return json.loads(capsys.readouterr().out)


def test_evaluate_keeps_the_features_of_validation_images(here: Path, digits: np.ndarray) -> None:
    kept = read_document(Calibration, KEPT)
    assert (kept.split, kept.held_out, len(kept.gamma)) == ("validation", True, 4)
    held_out = digits[100:320]
    assert kept.digests == [digest_of(image).hex() for image in held_out]
    features = image_features(load("models/vdm", "cpu"), held_out, levels=4, seed=0, batch_size=512)
    np.testing.assert_allclose(kept.features, features, rtol=1e-5, atol=1e-5)
    halves = np.argsort(kept.digests)
    first = np.isin(np.arange(220), halves[:110])
    np.testing.assert_array_equal(kept.reference.scores, reference(np.array(kept.features), first).scores)


def test_images_are_sorted_by_score_with_the_p_of_their_rank(
    here: Path, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = np.random.default_rng(0).integers(0, 17, (2, 1, 8, 8), np.uint8)
    np.save("some.npy", np.concatenate([digits[400:408], foreign]))
    found = printed(capsys, "some.npy")
    images = found["images"]
    assert {each["number"] for each in images[:2]} == {8, 9}
    assert [each["file"] for each in images] == ["some.npy"] * 10
    scores = [each["score"] for each in images]
    assert scores == sorted(scores, reverse=True)
    calibrated = read_document(Calibration, KEPT).reference.scores
    assert found["num_calibrated"] == 110
    for each in images:
        assert each["p"] == pytest.approx((1 + (calibrated >= each["score"]).sum()) / 111)
        assert len(each["deviations"]) == len(found["names"]) == 2 * 4 + len(STATISTICS)
    assert found["batch"]["num_odd"] == sum(each["p"] <= 0.01 for each in images) >= 2
    assert run(["surprise", "some.npy"]) == Exit.DONE
    text = capsys.readouterr().out
    assert "against 110 held-out images" in text
    assert text.splitlines()[1].split()[0] in ("8", "9")


def test_foreign_images_are_the_oddest_of_900_and_digits_alarm_nobody(
    here: Path, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine pictures of clothes, of which no feature was chosen to tell them from digits."""
    np.save("arrived.npy", digits[400:1300])
    found = check_value(Surprise, printed(capsys, "arrived.npy"), "printed")
    assert found.batch
    assert not found.batch.alarms
    said = judge_odd(found, 0.0, Path("odd.html"))
    assert said == f"{found.batch.num_odd} of 900 new images are odd to models/vdm, by chance about 8"
    clothes = np.load(ROOT / "pretrained/fashion_mnist_cpu/examples.npy")[:9, 0]
    shrunk = [np.asarray(Image.fromarray(each).resize((8, 8), Image.Resampling.BOX)) // 15 for each in clothes]
    foreign = np.stack(shrunk)[:, None].clip(0, 16).astype(np.uint8)
    np.save("arrived.npy", np.concatenate([digits[400:1291], foreign]))
    found = check_value(Surprise, printed(capsys, "arrived.npy"), "printed")
    assert sum(each.number >= 891 for each in found.images[:15]) >= 7


def test_too_many_odd_images_are_refused_if_the_contract_says_so(
    here: Path, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 17, (40, 1, 8, 8), np.uint8)
    np.save("arrived.npy", np.concatenate([digits[400:420], noise]))
    found = check_value(Surprise, printed(capsys, "arrived.npy"), "printed")
    assert found.batch
    assert found.batch.alarms
    assert "60 new images are odd to models/vdm, by chance about 1; the oddest: arrived.npy" in judge_odd(
        found, 0.8, Path("odd.html")
    )
    with pytest.raises(UserError, match=r"more than contract\.max_odd 0\.5 allows: .*; look at odd\.html") as refused:
        judge_odd(found, 0.5, Path("odd.html"))
    assert refused.value.code is Exit.INVALID_DATA


def test_the_table_and_the_page_have_the_images(
    here: Path, tmp_path: Path, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("more.npy", digits[400:404])
    found = printed(capsys, "more.npy", "--out", str(tmp_path / "odd.csv"))
    rows = list(csv.DictReader((tmp_path / "odd.csv").read_text().splitlines()))
    assert [int(row["image"]) for row in rows] == [each["number"] for each in found["images"]]
    np.testing.assert_allclose([float(row["p"]) for row in rows], [each["p"] for each in found["images"]], rtol=1e-5)
    assert run(["surprise", "more.npy", "--out", str(tmp_path / "odd.html")]) == Exit.DONE
    page = (tmp_path / "odd.html").read_text()
    assert page.count("data:image/png") == 4
    assert run(["surprise", "more.npy", "--out", str(tmp_path / "odd.html")]) == Exit.USAGE
    assert run(["surprise", "more.npy", "--out", "odd.txt"]) == Exit.USAGE
    assert "must end in .csv or .html" in capsys.readouterr().err


def test_images_that_the_model_has_seen_have_no_p(
    here: Path, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "validation"):
        found = printed(capsys, "data/images", "--split", split, "--num-images", "5")
        assert (found["batch"], found["num_seen"]) == (None, 5)
    assert printed(capsys, "data/images")["num_seen"] == 0
    np.save("seen.npy", digits[[100, 500]])  # of the calibration, and new
    found = printed(capsys, "seen.npy")
    assert [each["p"] is None for each in sorted(found["images"], key=lambda each: each["number"])] == [True, False]
    digests = np.stack([np.frombuffer(digest_of(image), np.uint8) for image in digits[:60]])
    np.save("data/images/train_digests.npy", digests)
    np.save("seen.npy", digits[[7, 500]])  # of the training images, and new
    found = printed(capsys, "seen.npy")
    assert [each["p"] is None for each in sorted(found["images"], key=lambda each: each["number"])] == [True, False]
    assert (found["num_seen"], found["batch"]["num_images"]) == (1, 1)


def test_few_held_out_images_or_none_give_an_order_and_no_p(
    small: Small, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate"]) == Exit.DONE  # ten validation images
    found = printed(capsys, "data/images", "models/vdm")
    assert found["without_p"] == "5 held-out images are fewer than 99"
    save_images(
        small.folder / "data/images", {"train": digits[:60], "test": digits[60:70]}, {"name": "d", "num_levels": 17}
    )
    (small.folder / "data/images/validation.npy").unlink()
    assert run(["evaluate"]) == Exit.DONE
    kept = read_document(Calibration, KEPT)
    assert (kept.split, kept.held_out, len(kept.digests)) == ("train", False, 60)
    found = printed(capsys, "data/images", "models/vdm")
    assert (found["batch"], {each["p"] for each in found["images"]}) == (None, {None})
    assert found["without_p"] == "the model was fitted to the train images with which others are compared"
    save_model(small.folder / "models/both", VDM(**TINY), TINY, fitted_to="train_and_validation")
    save_images(
        small.folder / "both",
        {"train": digits[:9], "validation": digits[9:19], "test": digits[60:70]},
        {"name": "d", "num_levels": 17},
    )
    assert run(["evaluate", "models/both", "--images", "both", "--out", "models/both/evaluation"]) == Exit.DONE
    assert not read_document(Calibration, Path("models/both/evaluation/calibration.json")).held_out


def test_a_model_without_kept_images_says_how_to_get_them(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["surprise", "data/images", "models/imported"]) == Exit.MISSING
    assert "`vdmctl evaluate models/imported --out models/imported/evaluation` makes it" in capsys.readouterr().err
    assert run(["evaluate", "models/imported", "--out", "models/imported/evaluation"]) == Exit.DONE
    assert run(["surprise", "data/images", "models/imported"]) == Exit.DONE
    kept = Path("models/imported/evaluation/calibration.json")
    document = json.loads(kept.read_text())
    for damage, said in (
        ({"digests": document["digests"][1:]}, "9 digests and features of 10 images"),
        ({"gamma": document["gamma"][1:]}, "an image has not 2 x 3 + 7 features"),
        ({"features": [[None] * 15] * 10}, "no image can be compared"),
        ({"features": [[1e308] * 13] * 10}, r"features.0.0: Input should be less than or equal to 1000000"),
        ({"features": [[-1e308] * 13] * 10}, "features.0.0: Input should be greater than or equal to -1000000"),
        ({"gamma": [0.0] * 4000}, "gamma: List should have at most 64 items"),
        ({"seed": 2**70}, "seed: Input should be less than or equal to 1000000000000"),
        ({"seed": "1"}, "seed: Input should be a valid integer"),
        ({"held_out": None}, "held_out: Input should be a valid boolean"),
        ({"digests": [*document["digests"][:9], ""]}, "digests.9: String should match pattern"),
    ):
        kept.write_text(json.dumps(document | damage))
        assert run(["surprise", "data/images", "models/imported"]) == Exit.MISSING
        assert said in capsys.readouterr().err


def test_a_broken_model_is_evaluated_and_has_nothing_to_compare_with(small: Small) -> None:
    model = VDM(**TINY)
    for parameter in model.network.parameters():
        torch.nn.init.constant_(parameter, 1e30)
    for folder in ("models/vdm", "models/imported"):
        save_model(small.folder / folder, model, TINY)
    assert run(["evaluate"]) == Exit.DONE
    assert run(["surprise", "data/images"]) == Exit.MISSING


def test_the_words_name_the_bands_and_the_statistics_that_are_far(here: Path) -> None:
    gamma, usual = [-9.0, -6.0, -2.0, 3.0], [0.0] * len(STATISTICS)
    assert describe_deviations(gamma, np.array([0, 0, 0, 0, 0, 0, 0, 0, *usual])) == ""
    assert (
        describe_deviations(gamma, np.array([1, -7, 0, 1.9, 0, 0, 2.5, 0, *usual])) == "fine texture -7.0, parts +2.5"
    )
    brighter = np.array([0, 0, 0, 4, 0, 0, 0, 0, 9, *usual[1:]])
    assert describe_deviations(gamma, brighter) == "brightness +9.0, composition +4.0"


def test_python_has_the_scores_of_the_command(
    here: Path, digits: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("six.npy", digits[600:606])
    listed = sorted(printed(capsys, "six.npy", "models/vdm")["images"], key=lambda each: each["number"])
    model = load("models/vdm", "cpu")
    found = surprise(model, digits[600:606])
    np.testing.assert_allclose(found.scores, [each["score"] for each in listed], rtol=1e-4)
    np.testing.assert_allclose(found.p, [each["p"] for each in listed])
    assert found.words == [each["words"] for each in listed]
    again = surprise(model, digits[600:606], digits[100:320])
    np.testing.assert_allclose(again.scores, found.scores, rtol=1e-3)
    few = surprise(model, digits[600:606], digits[100:110])
    assert all(map(math.isnan, few.p))


def test_images_that_share_brightness_contrast_and_variety_are_not_all_odd(here: Path, digits: np.ndarray) -> None:
    """They have the same pixels in other orders, whose statistics differ by rounding alone."""
    rng = np.random.default_rng(0)
    images = np.stack([rng.permutation(digits[5].ravel()).reshape(1, 8, 8) for _ in range(320)])
    found = surprise(load("models/vdm", "cpu"), images[220:], images[:220])
    assert (found.p <= 0.01).sum() <= 5
    assert np.abs(found.deviations).max() < 20


def test_a_model_in_memory_needs_held_out_images(digits: np.ndarray, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model = train(digits[:40], steps=2, num_levels=17, device="cpu")
    with pytest.raises(ValueError, match="give `held_out`"):
        surprise(model, digits[40:42])
    assert len(surprise(model, digits[40:42], digits[50:60]).scores) == 2
    with pytest.raises(UserError, match="both halves need images"):
        surprise(model, digits[40:42], digits[50:51])


def test_python_gives_no_p_of_images_that_a_model_was_trained_on(
    digits: np.ndarray, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    model = train(digits[:40], steps=2, num_levels=17, device="cpu")
    some = np.concatenate([digits[38:42], digits[50:51]])  # two of the training images, two others, and one held out
    for dtype in (np.uint8, np.int64):
        found = surprise(model, some.astype(dtype), digits[50:247])
        assert np.isnan(found.p).tolist() == [True, True, False, False, True]
        assert np.isnan(surprise(model, some, digits[50:247].astype(dtype)).p).tolist() == np.isnan(found.p).tolist()
    assert "p rests" not in caplog.text
    assert np.isnan(surprise(model, digits[40:42], digits[51:247]).p).all()  # 98 in one half
    assert np.isnan(surprise(model, digits[600:602], digits[39:300]).p).all()
    assert "no p: the model was trained on 1 of the 261 held-out images" in caplog.text
    later = train(digits[300:340], steps=2, start_from=model, device="cpu")
    assert np.isnan(surprise(later, digits[[10, 310, 600]], digits[50:247]).p).tolist() == [True, True, False]
    assert "p rests" not in caplog.text
    save(later, "later")
    loaded = load("later", "cpu")
    assert np.isfinite(surprise(loaded, digits[600:602], digits[50:247]).p).all()
    assert "p rests on your word that the model saw none of these images" in caplog.text
    with pytest.raises(ValueError, match="pixels must be 0 to 16"):
        surprise(model, digits[40:42].astype(np.int64) + 256, digits[50:247])


def test_python_knows_the_images_of_a_model_of_this_folder(
    here: Path, digits: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    digests = np.stack([np.frombuffer(digest_of(image), np.uint8) for image in digits[:60]])
    np.save("data/images/train_digests.npy", digests)
    model = load("models/vdm", "cpu")
    assert np.isnan(surprise(model, digits[[7, 100, 500]]).p).tolist() == [True, True, False]
    assert "p rests" not in caplog.text
    (here / "data/images/train_digests.npy").unlink()
    assert np.isnan(surprise(model, digits[[7, 100, 500]]).p).tolist() == [False, True, False]
    assert "rests on your word" in caplog.text


@pytest.mark.slow
def test_wrong_labels_are_found_among_images_that_the_model_has_not_seen(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 100 validation images, five get another label: an average precision of at least 0.95."""
    loaded = load_digits()
    kept = read_document(Calibration, ROOT / "pretrained/digits_classes/evaluation/calibration.json")
    validation = set(kept.digests)
    unseen = [number for number, image in enumerate(loaded.images) if digest(image) in validation][:100]
    images, labels = loaded.images[unseen].astype(np.uint8)[:, None], loaded.target[unseen]
    wrong = np.random.default_rng(0).permutation(100)[:5]
    labels[wrong] = (labels[wrong] + np.arange(1, 6)) % 10
    save_images(small.folder / "set", {"train": images[:0], "test": images}, {"name": "digits", "num_levels": 17})
    np.save("set/test_labels.npy", labels)
    small.edit(class_times=8)
    found = check_value(
        Labelled, printed(capsys, "set", str(ROOT / "pretrained/digits_classes"), "--labels"), "printed"
    )
    is_wrong = np.isin([each.number for each in found.images], wrong)
    precision = np.cumsum(is_wrong) / np.arange(1, 101)
    assert precision[is_wrong].mean() >= 0.95
    worst = found.images[0]
    assert (worst.label, worst.p_label) != (worst.likeliest, worst.p_likeliest)
    assert run(["surprise", "set", "models/vdm", "--labels"]) == Exit.USAGE  # a model without classes


def digest(image: np.ndarray) -> str:
    """Return the digest of a digit as calibration.json has it."""
    return digest_of(image.astype(np.uint8)[None]).hex()
