"""Distances between sets of images, the features that they use, and the samples' metrics."""

import json
import math
import pickle
import re
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fuzzing import Hostile
from pictures import set_of
from PIL import Image
from sklearn.datasets import load_digits
from small import Small
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_mmd
from torch_fidelity.metric_prc import prc_features_to_metric

from flows.cli import run
from flows.contract.findings import Verdict
from flows.core.documents import read_document
from flows.core.errors import CheckpointError, Exit, UserError
from flows.core.model import open_model, read_config
from flows.core.params_file import read_params
from flows.evaluation.results import SampleMetrics
from flows.images.image_set import open_images
from flows.sampling import distances, features, measuring
from flows.sampling.features import Embedding, open_features
from flows.sampling.measuring import tables_and_pictures
from vdm.errors import TrainingDiverged


def draws(seed: int, count: int = 300, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (count, 6))


def test_the_frechet_distance_is_that_of_gaussians() -> None:
    """Between N(0, 1) and N(0.5, 4) in 6 dimensions it is 6 (0.5^2 + (2 - 1)^2)."""
    distance = distances.frechet_distance(draws(0, 20_000))(draws(1, 20_000, 0.5, 2.0))
    assert distance == pytest.approx(6 * (0.25 + 1), rel=0.03)
    assert distances.frechet_distance(draws(0))(draws(0)) == pytest.approx(0, abs=1e-9)


def test_the_distances_are_those_of_torch_fidelity() -> None:
    first, second = draws(0), draws(1, shift=0.3)
    statistics = [{"mu": each.mean(0), "sigma": np.cov(each, rowvar=False)} for each in (first, second)]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert distances.frechet_distance(first)(second) == pytest.approx(float(theirs), rel=1e-6)
    kid = kernel_mmd(first, second, kid_kernel="poly", kid_kernel_poly_degree=3, kid_kernel_poly_coef0=1.0)
    assert distances.kernel_distance(first)(second) == pytest.approx(kid, rel=1e-6)
    both = prc_features_to_metric(*map(torch.from_numpy, (first, second)), prc_neighborhood=3, verbose=False)
    assert distances.precision(second)(first) == pytest.approx(both["precision"])
    assert distances.recall(second)(first) == pytest.approx(both["recall"])


def test_copies_are_nearer_than_held_out_images() -> None:
    near, far = np.array([0.0, 0.1, 0.1]), np.array([0.1, 0.3, 0.4])
    for first, second, expected in ((near, far, 8 / 9), (far, near, 1 / 9), (near, near, 0.5)):
        assert distances.probability_nearer(first, second) == pytest.approx(expected)


@pytest.mark.parametrize("size", [3, 11, 400])
def test_the_error_is_that_of_a_mean(size: int) -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size)
    estimate = distances.estimate_error(lambda chosen: float(values[chosen].mean()), size, 20_000, 0)
    assert estimate.value == values.mean()
    assert estimate.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(size), rel=0.02)


def train_features(settings: Any, out: Path) -> Embedding:
    """Train the features of the images of the pipeline, and return what is written."""
    verdict = read_document(Verdict, Path("reports/contract/findings.json"), "")
    features.features(settings, open_images(Path("data/images")), verdict, out)
    return open_features(out)


def settings(**changes: Any) -> Any:
    defaults = {"seed": 0, "device": "cpu", "task": "auto", "width": 8, "steps": 150, "batch_size": 64}
    return SimpleNamespace(**{**defaults, "learning_rate": 1e-2, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_the_classifier_learns_its_task(
    labelled: bool, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = Path("data/images"), tmp_path / "features"
    if labelled:
        for split, part in (("train", slice(60)), ("test", slice(60, 100))):
            np.save(images / f"{split}_labels.npy", load_digits().target[part] * 7)  # numbered anew from 0
    _, network, config, digest = train_features(settings(), out)
    assert config.task == ("labels" if labelled else "symmetries")
    assert config.num_classes == (10 if labelled else 4)
    assert config.accuracy > (0.6 if labelled else 0.45)
    embedded = features.embed(network, open_images(images)["test"])
    assert embedded.shape == (40, 32)
    monkeypatch.setattr(features, "EMBEDDING_BATCH", 3)
    assert features.embed(network, open_images(images)["test"]) == pytest.approx(embedded, rel=1e-5)
    digests = set[str]()
    for name in ("short", "again"):
        digests.add(train_features(settings(steps=10), tmp_path / name).sha256)
    assert len(digests) == 1
    assert digests != {digest}


def test_labels_that_a_set_does_not_have_are_an_error(small: Small, tmp_path: Path) -> None:
    """None, of one class, and of other images."""
    out, none = tmp_path / "features", r"has no labels of two classes; set features\.task to auto or symmetries"
    for labels, task, message, code in (
        (None, "labels", none, Exit.USAGE),
        (np.ones(40, np.int64), "labels", none, Exit.USAGE),
        (np.arange(39) % 2, "auto", "the number of labels is not that of the images", Exit.MISSING),
    ):
        if labels is not None:
            np.save("data/images/train_labels.npy", np.resize(labels, 60))
            np.save("data/images/test_labels.npy", labels)
        with pytest.raises(UserError, match=message) as error:
            train_features(settings(task=task), out)
        assert error.value.code is code
    np.save("data/images/test_labels.npy", np.ones(40, np.int64))
    np.save("data/images/train_labels.npy", np.ones(60, np.int64))
    assert train_features(settings(steps=1), out).config.task == "symmetries"


@pytest.mark.slow
@pytest.mark.parametrize(("task", "learned"), [("auto", "symmetries"), ("labels", "labels")])
def test_labels_that_cannot_be_learned_leave_the_symmetries(
    task: str, learned: str, small: Small, tmp_path: Path
) -> None:
    """They are random.  Who asks for labels alone gets them, and no figures.  The best guess is the frequent label."""
    for split, count in (("train", 60), ("test", 40)):
        labels = np.random.default_rng(0).integers(2, size=count)
        np.save(f"data/images/{split}_labels.npy", labels)
    config = train_features(settings(task=task), Path("models/features")).config
    assert (config.task, config.guess) == (learned, max(np.bincount(labels)) / 40 if learned == "labels" else 0.25)
    assert run(["sample"]) == Exit.DONE
    metrics = SampleMetrics.model_validate_json(Path("reports/samples/metrics.json").read_text())
    assert (metrics.withheld is None) == (learned == "symmetries") == bool(metrics.figures)


@pytest.mark.parametrize(
    ("right", "guess", "expected"),
    [
        (0.9, 0.25, True),
        (0.45, 0.25, False),  # three standard errors of a guess, 0.068 each, are 0.21
        (0.46, 0.25, True),
        (1.0, 0.9, False),
    ],
)
def test_features_of_a_network_that_only_guesses_give_no_figures(
    right: float, guess: float, expected: bool, small: Small, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path("models/features/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": right, "guess": guess}))
    assert run(["sample"]) == Exit.DONE
    metrics = SampleMetrics.model_validate_json(Path("reports/samples/metrics.json").read_text())
    assert bool(metrics.figures) == expected
    assert ("not clearly better than a guess" in caplog.text) == (not expected)
    assert metrics.features_guess == guess
    assert metrics.features_accuracy_standard_error == pytest.approx(math.sqrt(right * (1 - right) / 40))


def test_a_classifier_that_diverges_is_an_error(small: Small, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"lower features\.learning_rate"):
        train_features(settings(steps=20, learning_rate=1e30), tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_the_metrics_name_the_features_and_stand_beside_held_out_images(small: Small) -> None:
    assert run(["sample"]) == Exit.DONE
    metrics = SampleMetrics.model_validate_json(Path("reports/samples/metrics.json").read_text())
    name = metrics.features_sha256[:8]
    assert list(metrics.figures) == [f"fd_{name}", f"kd_{name}", "precision", "recall"]
    for figure in metrics.figures.values():
        assert None not in (figure.samples, figure.held_out, figure.samples_standard_error)
    assert (metrics.num_images, metrics.num_training_images) == (12, 60)
    assert metrics.sampler.num_timesteps == 3


def test_images_that_cannot_be_compared_are_refused_before_any_is_drawn(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.sampling.measuring.draw", lambda *_: pytest.fail("images are drawn"))
    params = Path("params.yaml")
    text = params.read_text()
    inception = f"inception_weights: missing.pth\n  inception_sha256: {'a' * 64}"
    for old, new, code, message in (
        ("num_images: 12", "num_images: 9", Exit.USAGE, "needs 10 of each, got 9 samples, "),
        (r"auto\n  num_images", "cuda\n  num_images", Exit.USAGE, "torch finds no CUDA device"),
        (r"inception_weights.*\n.*null", inception, Exit.MISSING, "missing.pth: No such file"),
    ):
        changed, count = re.subn(old, new, text)
        assert count
        params.write_text(changed)
        assert run(["sample"]) == code
        assert message in capsys.readouterr().err
    params.write_text(text)
    path = Path("models/features/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_sha256": "0" * 64}))
    assert run(["sample"]) == Exit.USAGE
    assert "was trained on other images than data/images; run `vdmctl features`" in capsys.readouterr().err


def test_training_images_in_place_of_samples_are_found(small: Small) -> None:
    params = read_params(Path("params.yaml"))
    model, embedding = open_model(Path("models/vdm")), open_features(Path("models/features"))
    images = open_images(Path("data/images"))
    samples = np.array(images["train"][20:40])
    metrics, neighbours = measuring.measure_quality(params.sample, params.quality, samples, model, embedding, images)
    assert metrics.nearer_than_held_out == 1
    assert neighbours["train_image"].tolist() == list(range(20, 40))
    assert neighbours["distance"].tolist() == [0.0] * 20
    assert metrics.model_sha256 == read_config(Path("models/vdm"))[1]
    assert metrics.data_sha256 == images.data_sha256


def test_the_files_about_samples_show_them_and_their_nearest_training_images(small: Small) -> None:
    """The samples are training images, so that both images of a pair are the same."""
    images = open_images(Path("data/images"))
    samples = np.array(images["train"][[50, 51, 52, *range(47), *range(20)]])
    table = pd.DataFrame({"sample": [2, 0, 1, 4, 3], "train_image": [52, 50, 51, 1, 0], "distance": [0.0] * 5})
    found = tables_and_pictures(samples, table, images)
    with Image.open(BytesIO(found["neighbours.png"])) as picture:
        above, below = np.asarray(picture)[2:34], np.asarray(picture)[36:68]
    assert above.shape == (32, 5 * 34 + 2)
    np.testing.assert_array_equal(above, below)
    assert (above[:, 2:34] != above[:, 36:68]).any()  # of different samples
    with Image.open(BytesIO(found["samples.png"])) as picture:
        assert picture.size == (8 * 34 + 2, 8 * 34 + 2)
    np.testing.assert_array_equal(np.load(BytesIO(found["samples.npy"])), samples)
    assert found["neighbours.csv"].startswith(b"sample,train_image,distance\n2,52,0.0\n")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "models/features/config.json: damaged: "),
        ("weights.safetensors", "", "sha256 differs from the one in config.json; restore the file"),
    ],
)
def test_damaged_features_are_refused(file: str, content: str, message: str, small: Small, capsys: Any) -> None:
    Path("models/features", file).write_text(content)
    assert run(["sample"]) == Exit.MISSING
    assert message.lower() in capsys.readouterr().err.lower()


def test_sizes_that_the_weights_do_not_have_take_no_memory(small: Small) -> None:
    path = Path("models/features/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"width": 2**40}))
    with pytest.raises(CheckpointError, match=r"weights and config\.json do not describe one network: "):
        open_features(path.parent)


class Inception(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """Inception with the random weights that its layers start with."""

    def load_state_dict(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of random weights in the format of torch-fidelity."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Inception("random", ["2048"], feature_extractor_weights_path=str(path)).state_dict(), path)
    return path


@pytest.mark.slow
def test_inceptions_features_come_from_the_given_file(weights: Path) -> None:
    images = np.random.default_rng(0).integers(17, size=(2, 1, 8, 8), dtype=np.uint8)
    network = measuring.inception_network(weights)
    embedded = measuring.inception_features(images, 17, network, torch.device("cpu"))
    assert embedded.shape == (2, 2048)
    assert np.isfinite(embedded).all()
    with pytest.raises(UserError, match=r"its sha256 is [0-9a-f]{64}, sample.inception_sha256 says 000") as error:
        measuring.require_inception(1, weights, "0" * 64)
    assert error.value.code is Exit.MISSING


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(UserError, match="not the weights of torch-fidelity's Inception"):
        measuring.inception_network(path)
    assert not (tmp_path / "ran").exists()


def test_every_figure_is_that_of_its_name_and_of_its_images() -> None:
    quality: Any = SimpleNamespace(resamples=3, seed=0)
    samples, held_out, training = draws(1, 40, 0.5), draws(2, 40), draws(0, 60)
    found = measuring.feature_figures(samples, held_out, training, name="ab", quality=quality)
    measures = {
        "fd_ab": distances.frechet_distance(training),
        "kd_ab": distances.kernel_distance(training),
        "precision": distances.precision(training),
        "recall": distances.recall(training),
    }
    assert found.keys() == measures.keys()
    for name, measure in measures.items():
        figure = found[name]
        assert (figure.samples, figure.held_out) == pytest.approx((measure(samples), measure(held_out)), rel=1e-8), name
        errors = [
            distances.estimate_error(
                lambda chosen, of=of, measure=measure: measure(of[chosen]), 40, 3, 0
            ).standard_error
            for of in (samples, held_out)
        ]
        assert (figure.samples_standard_error, figure.held_out_standard_error) == pytest.approx(errors, rel=1e-8), name


def test_the_nearest_training_image_is_found_in_every_chunk_and_the_nearest_pairs_come_first(
    digits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Levels of three, one and two of 64 pixels are off by one of 16, which are 2/16 apart in [-1, 1]."""
    monkeypatch.setattr(measuring, "CHUNK", 7)
    samples = np.array(digits[[3, 30, 59]])
    for number, differing in enumerate((3, 1, 2)):
        samples[number, 0, 0, :differing] ^= 1
    images = set_of(17, train=digits[:60], test=digits[60:100])
    quality: Any = SimpleNamespace(resamples=2, seed=0)
    _, table = measuring.memorisation(measuring.Pictures(samples, digits[60:63], digits[:60]), images, quality)
    assert table["sample"].tolist() == [1, 2, 0]
    assert table["train_image"].tolist() == [30, 59, 3]
    assert table["distance"].tolist() == pytest.approx([2 / 16 * math.sqrt(number / 64) for number in (1, 2, 3)])


def test_fid_and_kid_are_distances_from_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "inception_network", lambda _: torch.nn.Identity())
    monkeypatch.setattr(measuring, "inception_features", lambda images, *_: images)
    samples, held_out, training = draws(1, 40, 0.5), draws(2, 40), draws(0, 60)
    sample: Any = SimpleNamespace(inception_weights="weights.pth", inception_sha256="0" * 64)
    quality: Any = SimpleNamespace(device="cpu", resamples=2, seed=0)
    found = measuring.inception_figures(sample, quality, measuring.Pictures(samples, held_out, training), 17)
    for name, measure in (("fid", distances.frechet_distance(training)), ("kid", distances.kernel_distance(training))):
        figure = found[name]
        assert (figure.samples, figure.held_out) == pytest.approx((measure(samples), measure(held_out)), rel=1e-8)


def test_as_many_images_are_compared_as_there_are_from_all_of_a_sorted_split() -> None:
    numbers = np.arange(100, dtype=np.uint8).reshape(-1, 1, 1, 1)
    splits = {"train": numbers[:50], "validation": numbers[50:60], "test": numbers[60:]}
    images = set_of(256, **splits)
    chosen = measuring.choose(numbers[::-1][:30], images, 20)
    assert chosen.samples.ravel().tolist() == list(range(99, 79, -1))
    for part, first, last in ((chosen.held_out, 60, 99), (chosen.training, 0, 49)):
        assert (len(part), part.min(), part.max()) == (20, first, last)
    with pytest.raises(UserError, match="needs 4 training images, got 3"):
        measuring.num_compared(12, set_of(256, **splits | {"train": numbers[:3]}), 100)
    assert measuring.num_compared(12, set_of(256, **splits | {"train": numbers[:4]}), 100) == 12
    assert measuring.num_compared(50, images, 100) == 40
    assert measuring.num_compared(50, images, 30) == 30


def test_the_classifier_sees_images_of_few_levels_in_full_contrast() -> None:
    of_two = features.Classifier(1, 2, 3, 4)
    of_256 = features.Classifier(1, 256, 3, 4)
    of_256.load_state_dict(of_two.state_dict())
    levels = torch.randint(2, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(of_two.features(levels), of_256.features(255 * levels))
