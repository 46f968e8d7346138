"""The cards of the models in pretrained/: their code runs, and they say what the files beside them say."""

import re
from pathlib import Path
from typing import Any

import pytest
from project import ROOT

from flows.core.card import CARD, card
from flows.core.documents import read_document
from flows.core.judgement import Cost, judgement
from flows.core.model import TrainedModel, open_model
from flows.evaluation.results import BoundMetrics

FITTED = {"train": "training images", "train_and_validation": "training and validation images together"}


@pytest.fixture(scope="module", params=sorted(path.name for path in (ROOT / "pretrained").iterdir()))
def trained(request: pytest.FixtureRequest) -> TrainedModel:
    """Return each model of pretrained/."""
    return open_model(ROOT / "pretrained" / request.param)


def test_the_code_of_a_card_runs(trained: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", (trained.folder / CARD).read_text(), re.DOTALL | re.MULTILINE):
        exec(code, found)
    assert found["model"].image_shape == trained.image_shape


def test_a_card_says_what_the_metrics_beside_it_say(trained: TrainedModel) -> None:
    metrics = read_document(BoundMetrics, Path(trained.folder, "evaluation/metrics.json"))
    assert metrics.fitted_to
    (judged, *_) = judgement(Cost(metrics.bpd, f"{metrics.num_images:,} test images", num_levels=trained.num_levels))
    text = (trained.folder / CARD).read_text()
    for said in (
        f"{judged.text}\n",
        f"| fitted to | {FITTED[metrics.fitted_to]} |",
        f"`{metrics.data_sha256}`",
        f"`{metrics.model_sha256}`",
    ):
        assert said in text
    assert metrics.model_sha256 == trained.sha256


def test_a_card_says_what_is_known_of_the_training(trained: TrainedModel) -> None:
    """And more, which people wrote."""
    assert trained.training
    text = (trained.folder / CARD).read_text()
    place = trained.folder.relative_to(ROOT)
    assert [line for line in card(trained, trained.training, str(place)).splitlines() if line not in text] == []
