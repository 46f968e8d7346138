"""Promotion and roll-back with real git, DVC and processes; the evidence is compared with a calculation by hand."""

import csv
import json
import math
import re
import shutil
import signal
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from forge import Forge, champion, comparison, crown, history
from project import IDENTITY, Sandbox, one_line
from scipy import stats

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.core.params import Promote
from flows.core.params_file import read_params
from flows.dossier.versions import VersionPlace
from flows.evaluation.results import BoundMetrics, Comparison
from flows.images.image_set import ImageSet, open_images, save_images
from flows.orchestration.status import registry as registry_now
from flows.process.ending import STOP, handle_stop, stop_at_once
from flows.process.locks import holder_of
from flows.project.project import Project
from flows.registry import promotion
from flows.registry.evidence import PROMOTE, REFUSE, WAIT, Evidence, evidence_of
from flows.registry.fetching import fetch_images
from flows.registry.images import Kept
from flows.registry.promotion import add_figures, approve, challenge, decide, hold, limits_of, promote, rollback
from flows.registry.versions import add_version, assign
from flows.repository.tags import CHAMPION, REFUSED
from vdm.choices import Split

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(1800)


def evidence_for(project: Sandbox, reference: str, rule: Promote | None = None) -> Evidence:
    params = read_params(project.folder / "params.yaml")
    registry = Project(project.folder).registry
    version = registry.resolve(reference)
    return challenge(registry, version, settings=params.evaluate, rule=rule or params.promote)


def per_image(project: Sandbox, reference: str, folder: Path) -> np.ndarray:
    """Return the bits/dim that `vdmctl evaluate` writes for every validation image of the working tree."""
    result = project.vdmctl("evaluate", reference, "--split", "validation", "--out", str(folder))
    assert result.returncode == 0, result.stderr
    with (folder / "per_image.csv").open() as file:
        return np.array([float(row["bpd"]) for row in csv.DictReader(file)])


def among(images: ImageSet, split: Split, others: ImageSet) -> np.ndarray:
    """Return which images of a split are training images of another set, (N,) bool, by their pixels."""
    training = {image.tobytes() for image in others["train"]}
    return np.array([image.tobytes() in training for image in images[split]])


def test_first_better_worse_and_other_data(copied: Sandbox, tmp_path: Path) -> None:
    """Promote and refuse versions on the command line."""
    first = copied.vdmctl("promote", "v1.0.0", "--json")
    assert first.returncode == 0, first.stderr
    evidence = json.loads(first.stdout)
    assert (evidence["decision"], evidence["champion"], evidence["tag"]) == ("promote", None, "vdm#champion#1")
    assert (evidence["split"], evidence["num_judged"]) == ("validation", 1)
    assert evidence["test_evaluation"]["bpd"] == Project(copied.folder).registry.resolve("v1.0.0").metrics.bpd
    assert evidence["evaluation"]["bpd"] != evidence["test_evaluation"]["bpd"]

    better = copied.vdmctl("promote", "v1.1.0")
    assert better.returncode == 0, better.stderr
    assert better.stdout.startswith("vdm#champion#2: vdm@v1.1.0 improves by more than 0.001: 95% interval [-")

    worse = copied.vdmctl("promote", "v1.0.0", "--json")
    assert worse.returncode == 3
    assert one_line(worse).startswith("vdmctl: not promoted: vdm@v1.0.0 is not shown to improve by more than 0.001")
    assert json.loads(worse.stdout)["decision"] == "refuse"
    assert json.loads(worse.stdout)["num_judged"] == 2  # v1.0.0 for the second time, and v1.1.0
    refusal = json.loads(copied.vdmctl("lineage", "v1.0.0", "--json").stdout)["refusal"]
    assert refusal == json.loads(worse.stdout)
    assert history(copied) == ["vdm@v1.0.0", "vdm@v1.1.0"]

    newest = copied.vdmctl("promote", "--json")  # v1.2.0, on another split
    assert newest.returncode == 0, newest.stderr
    evidence = json.loads(newest.stdout)
    assert evidence["data_changed"]
    assert evidence["data_sha256"] == Project(copied.folder).registry.resolve("v1.2.0").metrics.data_sha256
    # The champion's figures are those on the new images, in the working tree, and not those of its own run.  It was
    # trained on most of them, which do not count.
    on_new = per_image(copied, "v1.1.0", tmp_path / "on_new")
    champions = fetch_images(Project(copied.folder).repository, Project(copied.folder).registry.resolve("v1.1.0"))
    seen = among(open_images(copied.folder / layout.IMAGES), "validation", champions)
    assert (evidence["champion_saw"], evidence["challenger_saw"]) == (seen.sum(), 0)
    assert evidence["num_decided"] == evidence["comparison"]["num_images"] == (~seen).sum() >= 10
    assert f"on {(~seen).sum()} validation images that neither saw" in evidence["reason"]
    assert len(evidence["limits"]) == 3
    (reigning, _), tested = evidence["comparison"]["models"], evidence["test_comparison"]["models"]
    assert (reigning["model"], reigning["bpd"]) == ("vdm@v1.1.0", pytest.approx(on_new[~seen].mean(), abs=1e-6))
    assert tested[0]["bpd"] != Project(copied.folder).registry.resolve("v1.1.0").metrics.bpd
    assert tested[1]["bpd"] == Project(copied.folder).registry.resolve("v1.2.0").metrics.bpd
    assert evidence["num_judged"] == 3  # v1.0.0 and v1.1.0 by some of these validation images

    tag = Project(copied.folder).registry.champion_tag
    assert tag is not None
    assert tag.message.startswith("Promote vdm@v1.2.0\n\n{")
    written = evidence_of(tag.message)
    assert written
    assert written.model_dump(exclude_unset=True) | {"tag": tag.name} == evidence
    assert copied.git("status", "--porcelain") == ""


def test_the_evidence_is_the_paired_difference_on_the_challengers_images(copied: Sandbox, tmp_path: Path) -> None:
    """The working tree holds other images than the challenger's, which are fetched from the remote."""
    crown(copied, "v1.0.0")
    shutil.rmtree(copied.folder / ".dvc" / "cache")
    rule = Promote(min_improvement_bpd=0.002, confidence=0.9, max_frechet=None, approval=None)
    evidence = evidence_for(copied, "v1.1.0", rule)
    compared, tested = evidence.comparison, evidence.test_comparison
    assert compared
    assert tested
    copied.git("checkout", "--quiet", "vdm@v1.1.0")
    copied.dvc("pull", "--force")
    old, new = (per_image(copied, name, tmp_path / name) for name in ("v1.0.0", "v1.1.0"))
    difference, error = (new - old).mean(), (new - old).std(ddof=1) / math.sqrt(len(new))
    assert (evidence.split, compared.split, compared.num_images) == ("validation", "validation", len(new))
    assert compared.difference_bpd == pytest.approx(difference, abs=1e-6)
    assert compared.difference_standard_error == pytest.approx(error, abs=1e-6)
    quantile = stats.t.ppf(0.95, len(new) - 1)
    tail = 4 * stats.skew(new - old, bias=False) * (1 + 2 * quantile**2) / (6 * math.sqrt(len(new)))
    ends = [-quantile + min(0, tail), quantile + max(0, tail)]
    assert compared.confidence_interval == pytest.approx([difference + end * error for end in ends], abs=1e-5)
    assert (evidence.min_improvement_bpd, compared.confidence) == (0.002, 0.9)
    assert not evidence.data_changed
    assert (evidence.champion_saw, evidence.challenger_saw, evidence.num_decided) == (0, 0, len(new))
    assert [model.model for model in compared.models] == ["vdm@v1.0.0", "vdm@v1.1.0"]
    assert [model.bpd for model in tested.models] == [
        Project(copied.folder).registry.resolve(name).metrics.bpd for name in ("v1.0.0", "v1.1.0")
    ]
    assert [model.bpd for model in compared.models] == pytest.approx([old.mean(), new.mean()], abs=1e-6)


def test_after_a_roll_back_the_challenger_is_also_compared_with_the_version_that_went(copied: Sandbox) -> None:
    crown(copied, "v1.0.0", "v1.1.0")
    rollback(Project(copied.folder).repository, "wrong labels")
    evidence = evidence_for(copied, "v1.2.0", Promote.model_validate(LIMITED))
    assert (evidence.hold, evidence.champion, evidence.rolled_back_from) == ("wrong labels", "vdm@v1.0.0", "vdm@v1.1.0")
    assert evidence.rolled_back_comparison
    assert [each.model for each in evidence.rolled_back_comparison.models] == ["vdm@v1.1.0", "vdm@v1.2.0"]
    assert evidence.frechet is not None
    error = evidence.frechet.samples_standard_error
    assert evidence.frechet_high == pytest.approx(evidence.frechet.samples + 1.645 * error, rel=1e-3)


def evaluation(bpd: float | None = 2.0) -> BoundMetrics:
    """Return the challenger's figures alone."""
    terms: dict[str, Any] = {"prior_bpd": 0.0, "reconstruction_bpd": 0.0, "diffusion_bpd": bpd}
    settings: dict[str, Any] = {"num_images": 359, "times_per_image": 1, "num_timesteps": None}
    return BoundMetrics(bpd=bpd, bpd_standard_error=0.1, **terms, **settings)


LIMITED = {"min_improvement_bpd": 0.002, "confidence": 0.9, "max_frechet": 5.0, "approval": None}
BASE = {
    "decision": "",
    "reason": "",
    "challenger": "vdm@v1.1.0",
    "champion": "vdm@v1.0.0",
    "comparison": comparison(),
    "min_improvement_bpd": 0.01,
}
FIRST = {"champion": None, "comparison": None, "evaluation": evaluation()}
FRECHET = {
    "samples": 0.4,
    "samples_standard_error": 0.04,
    "held_out": 0.1,
    "held_out_standard_error": 0.01,
}
UNDECIDED = comparison(interval=[-0.2, 0.1])


def compared_on(num_images: int) -> Comparison:
    """Return a comparison by so many images, of which the challenger is better."""
    return comparison().model_copy(update={"num_images": num_images})


KNOWN = {"split": "validation", "champion_saw": 5, "challenger_saw": 0, "num_decided": 12}


@pytest.mark.parametrize(
    ("changes", "decision", "reason"),
    [
        ({}, "promote", "improves by more than 0.01: 95% interval [-0.2000, -0.0500] bits/dim against vdm@v1.0.0"),
        ({"comparison": comparison(interval=[-0.2, -0.01])}, "refuse", "is not shown to improve"),
        ({"comparison": UNDECIDED}, "refuse", "is not shown to improve"),
        (
            {"comparison": comparison(interval=[0.0, 0.0]), "min_improvement_bpd": 0.0},
            "refuse",
            "is not shown to improve",
        ),
        ({"comparison": comparison(interval=[None, None])}, "refuse", "one image gives no confidence interval"),
        ({"comparison": comparison(challenger_bpd=None)}, "refuse", "are not finite"),
        (FIRST | {"evaluation": evaluation(None)}, "refuse", "are not finite"),
        (
            {"comparison": comparison(champion_bpd=None, interval=[None, None])},
            "promote",
            "the champion vdm@v1.0.0 does not",
        ),
        (FIRST, "promote", "is the first champion, at 2.0000 bits/dim"),
        ({"champion": "vdm@v1.1.0"}, "refuse", "is the champion already"),
        ({"split": "validation"}, "promote", "against vdm@v1.0.0 on validation images"),
        ({"split": "test"}, "promote", "against vdm@v1.0.0 on test images, for lack of validation images"),
        (KNOWN, "promote", "against vdm@v1.0.0 on 12 validation images that neither saw"),
        (KNOWN | {"comparison": UNDECIDED, "data_changed": True}, "refuse", "validation images that neither saw"),
        (
            KNOWN | {"champion_unknown": ["vdm@v0.9.0"], "comparison": UNDECIDED},
            "refuse",
            "on 12 validation images that neither is known to have seen; it is not known on which images vdm@v0.9.0 was"
            " trained, which may favour the champion",
        ),
        (KNOWN | {"champion_unknown": ["vdm@v0.9.0"]}, "promote", "neither is known to have seen"),
        (
            KNOWN | {"challenger_unknown": ["pretrained/digits"]},
            "refuse",
            "it is not known on which images pretrained/digits was trained, so the validation images of vdm@v1.1.0 may"
            " be among them, and cannot judge it; `gto assign vdm --version v1.1.0 --stage champion --force`",
        ),
        (
            KNOWN | {"comparison": None, "num_decided": 9},
            "refuse",
            "vdm@v1.0.0 saw 5 and vdm@v1.1.0 0 of its validation images, so 9 are left, and 10 are needed to decide; ",
        ),
        (
            {"comparison": UNDECIDED.model_copy(update={"given": "class"}), "split": "validation"},
            "refuse",
            "against vdm@v1.0.0 on validation images, given the class",
        ),
        (
            {"comparison": UNDECIDED.model_copy(update={"classes_differ": "a has 2 classes, and b 3"})},
            "refuse",
            ", not given the class, since a has 2 classes, and b 3",
        ),
        (
            {"challenger_fitted_to": "train_and_validation", "comparison": None},
            "refuse",
            "vdm@v1.1.0 was fitted to the validation images (train.images), so they cannot judge it; `gto assign vdm",
        ),
        (FIRST | {"challenger_fitted_to": "train_and_validation"}, "promote", "is the first champion"),
        (FIRST | {"approval": "few_images"}, "promote", "is the first champion"),
        (KNOWN | {"approval": "few_images"}, "promote", "improves by more than 0.01"),
        (
            {"comparison": compared_on(89), "approval": "few_images"},
            "wait",
            "; it waits, since promote.approval is few_images, and if 5% of pictures were much worse, 89 images would"
            " miss that in 1.0% of cases; `vdmctl promote --approve vdm@v1.1.0` promotes it",
        ),
        ({"comparison": compared_on(90), "approval": "few_images"}, "promote", "improves by more than 0.01"),
        ({"comparison": compared_on(10)}, "promote", "improves by more than 0.01"),
        ({"comparison": compared_on(10), "approval": "few_images", "hold": "why"}, "wait", "champion is held: why"),
        (FIRST | {"approval": "person"}, "wait", "`vdmctl promote --approve vdm@v1.1.0` promotes it"),
        ({"comparison": UNDECIDED, "approval": "person"}, "refuse", "is not shown to improve"),
        ({"max_frechet": 0.5, "frechet": FRECHET, "frechet_high": 0.48}, "promote", "improves by more than 0.01"),
        (
            {"max_frechet": 0.45, "frechet": FRECHET, "frechet_high": 0.48},
            "refuse",
            "the Frechet distance of its samples is 0.4000 +- 0.0400, so up to 0.48, and promote.max_frechet is 0.45",
        ),
        ({"max_frechet": 0.45}, "refuse", "there is no distance of its samples with an error"),
    ],
)
def test_the_decision(changes: dict[str, Any], decision: str, reason: str) -> None:
    decided, why = decide(Evidence.model_validate(BASE | changes))
    assert decided == decision
    assert reason in why


def test_the_evidence_says_what_it_cannot_show() -> None:
    """The comparison is of 359 images."""
    judged = limits_of(Evidence.model_validate(BASE | {"num_judged": 21}))
    assert [said.partition(" ")[0] for said in judged] == ["Harm", "These", "A"]
    assert "fewer than 0.8% of the images" in judged[0]
    assert "if 5% of pictures were much worse, 359 images would miss that in less than 0.1% of cases." in judged[0]
    few = limits_of(Evidence.model_validate(BASE | {"comparison": compared_on(30)}))
    assert "30 images would miss that in 21.5% of cases." in few[0]
    assert "have judged 21 challengers" in judged[1]
    assert "one is promoted with a probability of about 0.13 if the differences are normal, and maybe" in judged[1]
    assert "by another seed is truly better in 38 of 100 cases" in judged[2]
    assert limits_of(Evidence.model_validate(BASE)) == [judged[0], judged[2]]  # test images decided


def test_versions_without_validation_images_or_fitted_to_them(copied: Sandbox) -> None:
    """Test images decide where there are no validation images; these do not judge a model that was fitted to them."""
    crown(copied, "v1.1.0")
    last_fit = {"validate_every_steps: 10": "validate_every_steps: null", "keep: best": "keep: last"}
    last_fit |= {"images: train ": "images: train_and_validation "}
    no_validation = {
        "images: train_and_validation ": "images: train ",
        "validation_fraction: 0.1": "validation_fraction: 0",
    }
    copied.edit("params.yaml", **{"steps: 80": "steps: 20"})
    found = []
    of_model = ("train", "register", "evaluate")
    for changes, stages in ((last_fit, (*of_model, "report")), (no_validation, ("download", "validate", *of_model))):
        copied.edit("params.yaml", **changes)
        copied.reproduce(*stages)
        if changes is last_fit:
            shows_no_figure_of_the_images_it_was_fitted_to(copied)
        copied.git("add", "--all")
        copied.git("commit", "--quiet", "--message=Reproduce")
        found.append(evidence_for(copied, add_version(Project(copied.folder).repository, "HEAD", "Retrained").name))
    fitted, unvalidated = found
    assert (fitted.decision, fitted.challenger_fitted_to) == ("refuse", "train_and_validation")
    assert not fitted.is_measured
    assert "they cannot judge it" in fitted.reason
    assert fitted.validation_sha256
    version = Project(copied.folder).registry.resolve(str(fitted.challenger))
    with Project(copied.folder).repository.registry_lock():
        assign(Project(copied.folder).registry, REFUSED, version, fitted.message("Refuse"))
    assert version.name not in Project(copied.folder).registry.judged.get(fitted.validation_sha256, set())
    assert unvalidated.comparison
    assert (unvalidated.split, unvalidated.num_judged, unvalidated.challenger_saw) == ("test", None, 0)
    assert unvalidated.num_decided == unvalidated.comparison.num_images
    assert f"on {unvalidated.num_decided} test images that neither saw, for lack of validation" in unvalidated.reason
    assert unvalidated.comparison == unvalidated.test_comparison
    assert (unvalidated.champion_fitted_to, unvalidated.challenger_fitted_to) == ("train", "train")


def shows_no_figure_of_the_images_it_was_fitted_to(project: Sandbox) -> None:
    metrics = json.loads((project.folder / layout.METRICS).read_text())
    assert (metrics["fitted_to"], metrics["validation"]) == ("train_and_validation", None)
    assert "they are left out" in (project.folder / layout.PAGE).read_text()
    evaluated = project.vdmctl("evaluate", "--split", "validation")
    assert "models/vdm was fitted to the validation images, too" in evaluated.stderr
    assert "validation: no figure, since the model was fitted to these images" in project.vdmctl("report").stdout


def test_a_champion_of_other_images_is_not_compared(
    forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, found = read_params(forge.root / "params.yaml"), []
    registry = forge.opened.registry
    versions = [registry.resolve(name) for name in ("v1.1.0", "v1.0.0")]
    monkeypatch.setattr(promotion, "compare", Mock(return_value=comparison()))
    for shape, levels in (((1, 8, 8), 17), ((1, 8, 8), 256), ((3, 8, 8), 17)):
        pixels = np.zeros((promotion.FEWEST_DECIDING, *shape), np.uint8)
        save_images(tmp_path / "other", {"train": pixels, "test": pixels}, {"name": "x", "num_levels": levels})
        monkeypatch.setattr(promotion, "fetch_images", lambda *_: open_images(tmp_path / "other"))
        monkeypatch.setattr(
            promotion, "read_kept_images", lambda *_: Kept("none", {"test": [b""] * promotion.FEWEST_DECIDING})
        )
        evidence = Evidence(decision="", reason="")
        add_figures(evidence, registry, *versions, settings=params.evaluate, rule=params.promote)
        found.append({"comparison", "test_comparison", "champion_fitted_to"} <= evidence.model_fields_set)
        assert "evaluation" not in evidence.model_fields_set
    assert found == [True, False, False]
    decision, reason = decide(Evidence.model_validate(BASE | {"comparison": None}))
    assert decision == "refuse"
    assert "takes images of another shape or number of levels" in reason
    assert "`gto assign vdm --version v1.1.0 --stage champion --force`" in reason


def test_figures_that_are_not_finite_become_null() -> None:
    measured = comparison(challenger_bpd=math.nan, interval=[math.nan, -math.inf])
    assert (measured.models[1].bpd, measured.confidence_interval) == (None, [None, None])
    evidence = Evidence(decision=REFUSE, reason="", comparison=measured)
    assert evidence_of(evidence.message("Refuse")) == evidence


# Tags, locks and roll-backs, with versions that were never trained


def compared(forge: Forge, reference: str, decision: str = PROMOTE) -> Evidence:
    """Return the evidence of a comparison with the present champion."""
    registry = forge.opened.registry
    version, tag = registry.resolve(reference), registry.champion_tag
    return Evidence(
        decision=decision,
        reason="measured",
        challenger=version.name,
        challenger_commit=version.commit,
        champion=registry.resolve("champion").name if tag else None,
        champion_tag=tag.name if tag else None,
        champion_commit=tag.commit if tag else None,
    )


def test_a_refusal_is_a_stage_of_gto_with_the_evidence_as_its_message(forge: Forge) -> None:
    crown(forge.project, "v1.0.0")
    evidence = compared(forge, "v1.1.0", REFUSE)
    with pytest.raises(UserError, match="not promoted: measured") as raised:
        promote(forge.repository, evidence)
    assert raised.value.code is Exit.NOT_PROMOTED
    message = forge.git("for-each-ref", "--format=%(contents)", "refs/tags/vdm#refused#2")
    assert message.startswith("Refuse vdm@v1.1.0\n\n{")
    assert evidence_of(message) == evidence
    registry = forge.opened.registry
    assert registry.refusal(registry.resolve("v1.1.0").commit) == evidence
    shown = json.loads(forge.project.run("gto", "show", "vdm#refused", "--json").stdout)
    assert [each["version"] for each in shown] == ["v1.1.0"]
    assert [registry.is_decided(registry.resolve(name).commit) for name in ("v1.1.0", "v1.2.0")] == [True, False]


def test_the_challengers_that_the_same_images_judged_are_counted(forge: Forge) -> None:
    others = {"comparison": comparison()}
    measured = others | {"validation_sha256": "a" * 64}
    for name, changes in {"v1.0.0": measured, "v1.1.0": measured, "v1.2.0": others}.items():
        with forge.repository.registry_lock():
            message = compared(forge, name).model_copy(update=changes).message("Compared")
            registry = forge.opened.registry
            assign(registry, CHAMPION if name == "v1.0.0" else REFUSED, registry.resolve(name), message)
    assert forge.opened.registry.judged == {"a" * 64: {"vdm@v1.0.0", "vdm@v1.1.0"}}


def test_a_damaged_challenger_or_champion_stops_the_challenge(forge: Forge) -> None:
    forge.write("params.yaml", (forge.root / "params.yaml").read_text())
    (weights,) = [each["md5"] for each in forge.listing("models/vdm") if each["relpath"] == "weights.safetensors"]
    forge.damage(weights)
    result = forge.vdmctl("promote", "v1.0.0")
    assert result.returncode == Exit.MISSING
    assert "vdm@v1.0.0 does not verify: models/vdm: " in one_line(result)
    assert history(forge.project) == []


def test_what_changed_since_the_comparison_is_noticed(forge: Forge) -> None:
    """Another machine's tag may have taken the name of the champion's tag."""
    first = compared(forge, "v1.0.0", PROMOTE)
    crown(forge.project, "v1.2.0")
    with pytest.raises(UserError, match="with the champion none, but now the champion is") as raised:
        promote(forge.repository, first)
    assert raised.value.code is Exit.BUSY
    second = compared(forge, "v1.1.0", REFUSE)
    forge.git("tag", "--delete", "vdm#champion#1")
    crown(forge.project, "v1.0.0")
    with pytest.raises(UserError, match=r"the champion vdm@v1.2.0, but now the champion is vdm@v1.0.0") as raised:
        promote(forge.repository, second)
    forge.git("tag", "--force", "--annotate", "--message=Moved", "vdm@v1.1.0", "vdm@v1.2.0^{commit}")
    with pytest.raises(UserError, match=r"vdm@v1.1.0 names another commit now") as raised:
        promote(forge.repository, second)
    assert raised.value.code is Exit.BUSY
    assert history(forge.project) == ["vdm@v1.0.0"]
    assert "refused" not in forge.git("tag")


def test_nothing_comes_between_the_check_and_the_tag(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 75 means "run again", which would then be refused: the version is the champion already."""
    handlers: list[Any] = []

    def tag(*_: object) -> str:
        assert holder_of(forge.root / ".git/vdm-registry.lock") is not None
        handlers.extend(map(signal.getsignal, STOP))
        return "vdm#champion#1"

    monkeypatch.setattr(promotion, "assign", tag)
    with handle_stop(stop_at_once):
        assert promote(forge.repository, compared(forge, "v1.0.0")) == "vdm#champion#1"
        assert handlers == [signal.SIG_IGN] * len(STOP)
    handlers.clear()
    crown(forge.project, "v1.0.0", "v1.1.0")
    with handle_stop(stop_at_once):
        rollback(forge.repository)
    assert handlers == [signal.SIG_IGN] * len(STOP)


def test_rolling_back_goes_back_one_champion_at_a_time(forge: Forge) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0", "v1.2.0")
    once = forge.vdmctl("rollback")
    assert once.returncode == 0, once.stderr
    assert once.stdout.startswith("vdm#champion#4: rolled back from vdm@v1.2.0 to vdm@v1.1.0; nothing holds it")
    twice = json.loads(forge.vdmctl("rollback", "--json").stdout)
    assert (twice["champion"], twice["tag"]) == ("vdm@v1.0.0", "vdm#champion#5")
    thrice = forge.vdmctl("rollback")
    assert thrice.returncode == Exit.MISSING
    advice = "`gto deprecate vdm v1.0.0 champion` leaves the project without a champion"
    assert one_line(thrice) == f"vdmctl: there is no earlier champion to go back to; {advice}"
    assert history(forge.project) == [f"vdm@v1.{minor}.0" for minor in (0, 1, 2, 1, 0)]
    crown(forge.project, "v1.2.0")
    assert rollback(forge.repository).champion == "vdm@v1.0.0"
    forge.project.gto(*["deprecate", "vdm", "v1.0.0", "champion"])
    assert "no version is the champion; `vdmctl promote`" in one_line(forge.vdmctl("rollback"))


def judged(forge: Forge, reference: str, **changes: Any) -> Evidence:
    """Return the evidence of a version that is better than the present champion."""
    registry = forge.opened.registry
    found = compared(forge, reference).model_copy(update=BASE | {"comparison": comparison()})
    named = compared(forge, reference).model_dump(include={"challenger", "champion"})
    evidence = found.model_copy(update=named | ({"hold": registry.hold} if registry.hold else {}) | changes)
    decision, reason = decide(evidence)
    return evidence.model_copy(update={"decision": decision, "reason": reason})


def test_a_roll_back_that_is_held_lets_winners_wait_until_a_person_releases_it(forge: Forge) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0")
    held = rollback(forge.repository, "wrong labels")
    assert (held.hold, held.rolled_back_from) == ("wrong labels", "vdm@v1.1.0")
    assert forge.opened.registry.hold == "wrong labels"
    assert registry_now(forge.opened).hold == "wrong labels"
    winner = judged(forge, "v1.2.0")
    assert winner.decision == WAIT
    assert "it waits, since the champion is held: wrong labels; `vdmctl promote --approve vdm@v1.2.0`" in winner.reason
    with pytest.raises(UserError, match=r"not promoted: .* it waits") as caught:
        promote(forge.repository, winner)
    assert caught.value.code is Exit.NOT_PROMOTED
    assert champion(forge.project) == "vdm@v1.0.0"
    assert registry_now(forge.opened).waiting == "vdm@v1.2.0"
    waits = "vdm@v1.2.0 waits for a person: `vdmctl promote --approve vdm@v1.2.0` makes it the champion."
    is_held = "Promotions are held: wrong labels; `vdmctl promote --release` ends this."
    pages = {name: VersionPlace(forge.opened, forge.resolve(name)).notes() for name in ("v1.1.0", "v1.2.0")}
    assert pages == {"v1.1.0": [is_held], "v1.2.0": [waits, is_held]}
    assert forge.opened.registry.is_decided(str(winner.challenger_commit))
    released = hold(forge.repository, None)
    assert (released.decision, released.rolled_back_from) == ("release", "vdm@v1.1.0")
    assert (champion(forge.project), forge.opened.registry.hold) == ("vdm@v1.0.0", None)
    assert forge.resolve("v1.2.0").state == "waiting"
    with pytest.raises(UserError, match="nobody holds the champion"):
        hold(forge.repository, None)
    promote(forge.repository, judged(forge, "v1.2.0"))
    assert champion(forge.project) == "vdm@v1.2.0"
    made = VersionPlace(forge.opened, forge.resolve("v1.0.0")).origin().lineage
    decisions = ["promoted, vdm#champion#1", "champion again, vdm#champion#3", "released, vdm#champion#5"]
    assert [*made][-3:] == decisions
    hold(forge.repository, "wrong labels")
    made = VersionPlace(forge.opened, forge.resolve("v1.2.0")).origin().lineage
    assert [*made][-2:] == ["promoted, vdm#champion#6", "held, vdm#champion#7"]


def test_the_page_says_what_the_images_that_judged_a_version_cannot_see(forge: Forge) -> None:
    crown(forge.project, "v1.0.0")
    assert VersionPlace(forge.opened, forge.resolve("v1.0.0")).notes() == []
    winner = judged(forge, "v1.1.0", split="validation", num_judged=2)
    promote(forge.repository, winner.model_copy(update={"limits": limits_of(winner)}))
    hold(forge.repository, "wrong labels")
    held, said = VersionPlace(forge.opened, forge.resolve("v1.1.0")).notes()
    assert held.startswith("Promotions are held: wrong labels")
    assert said.startswith("vdm@v1.1.0 was judged by 359 validation images. Harm in fewer than 0.8% of the images")
    assert "of about 0.13 if the differences are normal" in said


def test_a_second_roll_back_keeps_the_hold_of_the_first(forge: Forge) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0", "v1.2.0")
    rollback(forge.repository, "wrong labels")
    assert rollback(forge.repository).hold == "wrong labels"


def test_a_winner_waits_for_a_person_and_a_newer_one_replaces_it(forge: Forge) -> None:
    crown(forge.project, "v1.0.0")
    for reference in ("v1.1.0", "v1.2.0"):
        with pytest.raises(UserError, match=r"since promote\.approval is person"):
            promote(forge.repository, judged(forge, reference, approval="person"))
    assert [forge.resolve(name).state for name in ("v1.1.0", "v1.2.0")] == ["", "waiting"]
    replaced = forge.vdmctl("promote", "--approve", "v1.1.0")
    assert replaced.returncode == Exit.USAGE
    assert "vdm@v1.1.0 does not wait for approval, and vdm@v1.2.0 does; `vdmctl promote" in one_line(replaced)
    approved = forge.vdmctl("promote", "--approve", "v1.2.0", "--json")
    assert approved.returncode == 0, approved.stderr
    found = json.loads(approved.stdout)
    assert (found["decision"], found["tag"]) == ("promote", "vdm#champion#4")
    person = f"{IDENTITY['NAME']} <{IDENTITY['EMAIL']}>"
    assert (found["approved_by"], found["reason"].endswith(f"; approved by {person}")) == (person, True)
    assert datetime.fromisoformat(found["approved_at"]).tzinfo
    assert forge.opened.registry.waiting_tag is None
    assert champion(forge.project) == "vdm@v1.2.0"


def test_an_approval_ends_a_hold_and_another_champion_ends_the_waiting(forge: Forge) -> None:
    crown(forge.project, "v1.0.0")
    hold(forge.repository, "wrong labels")
    with pytest.raises(UserError, match="it waits"):
        promote(forge.repository, judged(forge, "v1.1.0"))
    evidence = approve(forge.repository, "v1.1.0")
    assert "hold" not in evidence.model_dump(exclude_unset=True)
    assert forge.opened.registry.hold is None
    with pytest.raises(UserError, match="it waits"):
        promote(forge.repository, judged(forge, "v1.2.0", approval="person"))
    assert forge.opened.registry.waiting_tag
    forge.project.gto("deprecate", "vdm", "v1.2.0", "waiting")
    assert forge.opened.registry.waiting_tag is None
    with pytest.raises(UserError, match="it waits"):
        promote(forge.repository, judged(forge, "v1.2.0", approval="person"))
    rollback(forge.repository)
    with pytest.raises(UserError, match=r"vdm@v1\.2\.0 does not wait for approval, and none does"):
        approve(forge.repository, "v1.2.0")


def test_a_roll_back_to_damaged_files_names_the_command_that_passes_over_them(forge: Forge) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0", "v1.2.0")
    forge.damage(forge.store(b"v1.1.0"))
    line = one_line(forge.vdmctl("rollback"))
    assert "vdm@v1.1.0 does not verify: models/vdm: models/vdm/README.md is damaged" in line
    (command,) = re.findall("`(gto .*?)`", line)
    assert champion(forge.project) == "vdm@v1.2.0"
    forge.project.gto(*command.split()[1:])
    assert rollback(forge.repository).champion == "vdm@v1.0.0"


@pytest.mark.parametrize("error", [NetworkError("no answer"), UserError("a file is lost", Exit.MISSING)], ids=str)
def test_a_roll_back_needs_digests_that_differ(error: UserError, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0")
    monkeypatch.setattr(promotion, "require_sound", Mock(side_effect=error))
    with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
        rollback(forge.repository)


def test_a_champion_that_came_meanwhile_is_not_rolled_back(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0")
    monkeypatch.setattr(promotion, "require_sound", lambda *_: crown(forge.project, "v1.2.0"))
    with pytest.raises(UserError, match="not rolled back: the champion changed meanwhile") as raised:
        rollback(forge.repository)
    assert raised.value.code is Exit.BUSY
    assert champion(forge.project) == "vdm@v1.2.0"
