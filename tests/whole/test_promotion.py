"""Promotion and roll-back with real git, DVC and processes; the evidence is compared with a calculation by hand."""

import csv
import json
import math
import re
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from forge import Forge, champion, crown, history
from project import Project, one_line
from scipy import stats

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.core.params import Promote
from flows.core.params_file import read_params
from flows.evaluation.results import BOTH
from flows.images.store import save_images
from flows.process.ending import STOP, on_stop, stop_at_once
from flows.process.locks import holder_of
from flows.registry import promotion
from flows.registry.evidence import PROMOTE, REFUSE, Evidence, evidence_of
from flows.registry.git import registry_lock
from flows.registry.promotion import challenge, decide, fits, promote, rollback
from flows.registry.versions import (
    CHAMPION,
    REFUSED,
    add_version,
    assign,
    champion_tag,
    is_decided,
    judged_by,
    refusal,
    resolve,
)

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(1800)


def evidence_for(project: Project, reference: str, rule: Promote | None = None) -> Evidence:
    params = read_params(project.folder / "params.yaml")
    version = resolve(project.folder, reference)
    return challenge(project.folder, version, settings=params.evaluate, rule=rule or params.promote)


def per_image(project: Project, reference: str, folder: Path) -> np.ndarray:
    """Return the bits/dim that `vdmctl evaluate` writes for every validation image of the working tree."""
    result = project.vdmctl("evaluate", reference, "--split", "validation", "--out", str(folder))
    assert result.returncode == 0, result.stderr
    with (folder / "per_image.csv").open() as file:
        return np.array([float(row["bpd"]) for row in csv.DictReader(file)])


def test_first_better_worse_and_other_data(copied: Project, tmp_path: Path) -> None:
    """Promote and refuse versions on the command line."""
    first = copied.vdmctl("promote", "v1.0.0", "--json")
    assert first.returncode == 0, first.stderr
    evidence = json.loads(first.stdout)
    assert (evidence["decision"], evidence["champion"], evidence["tag"]) == ("promote", None, "vdm#champion#1")
    assert (evidence["split"], evidence["num_judged"]) == ("validation", 1)
    assert evidence["challenger_test_bpd"] == resolve(copied.folder, "v1.0.0").metrics.bpd
    assert evidence["challenger_bpd"] != evidence["challenger_test_bpd"]

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
    assert evidence["data_sha256"] == resolve(copied.folder, "v1.2.0").metrics.data_sha256
    # The champion's figures are those on the new images, in the working tree, and not those of its own run.
    on_new = per_image(copied, "v1.1.0", tmp_path / "on_new")
    assert evidence["champion_bpd"] == pytest.approx(on_new.mean(), abs=1e-6)
    assert evidence["champion_test_bpd"] != resolve(copied.folder, "v1.1.0").metrics.bpd
    assert evidence["challenger_test_bpd"] == resolve(copied.folder, "v1.2.0").metrics.bpd
    assert evidence["num_judged"] == 1  # by these validation images

    tag = champion_tag(copied.folder)
    assert tag is not None
    assert tag.message.startswith("Promote vdm@v1.2.0\n\n{")
    written = evidence_of(tag.message)
    assert written
    assert written.model_dump(exclude_unset=True) | {"tag": tag.name} == evidence
    assert copied.git("status", "--porcelain") == ""


def test_the_evidence_is_the_paired_difference_on_the_challengers_images(copied: Project, tmp_path: Path) -> None:
    """The working tree holds other images than the challenger's, which are fetched from the remote."""
    crown(copied, "v1.0.0")
    shutil.rmtree(copied.folder / ".dvc" / "cache")
    rule = Promote(min_improvement_bpd=0.002, confidence=0.9)
    evidence = evidence_for(copied, "v1.1.0", rule).model_dump()
    copied.git("checkout", "--quiet", "vdm@v1.1.0")
    copied.dvc("pull", "--force")
    old, new = (per_image(copied, name, tmp_path / name) for name in ("v1.0.0", "v1.1.0"))
    difference, error = (new - old).mean(), (new - old).std(ddof=1) / math.sqrt(len(new))
    assert (evidence["split"], evidence["num_images"], len(new)) == ("validation", 144, 144)
    assert evidence["difference_bpd"] == pytest.approx(difference, abs=1e-6)
    assert evidence["difference_standard_error"] == pytest.approx(error, abs=1e-6)
    half = stats.t.ppf(0.95, len(new) - 1) * error
    assert evidence["confidence_interval"] == pytest.approx([difference - half, difference + half], abs=1e-5)
    assert (evidence["min_improvement_bpd"], evidence["confidence"]) == (0.002, 0.9)
    assert not evidence["data_changed"]
    assert evidence["champion_test_bpd"] == resolve(copied.folder, "v1.0.0").metrics.bpd
    assert evidence["challenger_test_bpd"] == resolve(copied.folder, "v1.1.0").metrics.bpd
    for role, images in (("champion", old), ("challenger", new)):
        assert evidence[f"{role}_bpd"] == pytest.approx(images.mean(), abs=1e-6)


BASE = {
    "decision": "",
    "reason": "",
    "challenger": "vdm@v1.1.0",
    "champion": "vdm@v1.0.0",
    "challenger_bpd": 2.0,
    "champion_bpd": 2.1,
    "confidence": 0.95,
    "confidence_interval": [-0.2, -0.05],
    "min_improvement_bpd": 0.01,
    "num_images": 359,
}


@pytest.mark.parametrize(
    ("changes", "decision", "reason"),
    [
        ({}, "promote", "improves by more than 0.01: 95% interval [-0.2000, -0.0500] bits/dim against vdm@v1.0.0"),
        ({"confidence_interval": [-0.2, -0.01]}, "refuse", "is not shown to improve"),
        ({"confidence_interval": [-0.2, 0.1]}, "refuse", "is not shown to improve"),
        (
            {"confidence_interval": [-0.2, 0.1], "data_changed": True},
            "refuse",
            "the data changed or is unknown, so the champion may have been trained on some of these images",
        ),
        (
            {"confidence_interval": [-0.2, 0.1], "data_changed": True, "champion_fitted_to": BOTH},
            "refuse",
            "; the champion was fitted to validation images, too",
        ),
        ({"confidence_interval": [0.0, 0.0], "min_improvement_bpd": 0.0}, "refuse", "is not shown to improve"),
        ({"confidence_interval": [None, None]}, "refuse", "one image gives no confidence interval"),
        ({"challenger_bpd": None}, "refuse", "are not finite"),
        ({"challenger_bpd": None, "champion": None}, "refuse", "are not finite"),
        ({"champion_bpd": None, "confidence_interval": [None, None]}, "promote", "the champion vdm@v1.0.0 does not"),
        ({"champion": None}, "promote", "is the first champion, at 2.0000 bits/dim"),
        ({"champion": "vdm@v1.1.0"}, "refuse", "is the champion already"),
        ({"split": "validation"}, "promote", "against vdm@v1.0.0 on validation images"),
        ({"split": "test"}, "promote", "against vdm@v1.0.0 on test images, for lack of validation images"),
        (
            {"challenger_fitted_to": "train_and_validation", "num_images": None},
            "refuse",
            "vdm@v1.1.0 was fitted to the validation images (train.images), so they cannot judge it; `gto assign vdm",
        ),
        ({"challenger_fitted_to": "train_and_validation", "champion": None}, "promote", "is the first champion"),
    ],
)
def test_the_decision(changes: dict[str, Any], decision: str, reason: str) -> None:
    decided, why = decide(Evidence.model_validate(BASE | changes))
    assert decided == decision
    assert reason in why


def test_versions_without_validation_images_or_fitted_to_them(copied: Project) -> None:
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
        found.append(evidence_for(copied, add_version(copied.folder, "HEAD", "Retrained").name))
    fitted, unvalidated = found
    assert (fitted.decision, fitted.challenger_fitted_to) == ("refuse", "train_and_validation")
    assert fitted.challenger_bpd is None
    assert "they cannot judge it" in fitted.reason
    assert fitted.validation_sha256
    version = resolve(copied.folder, str(fitted.challenger))
    with registry_lock(copied.folder):
        assign(copied.folder, REFUSED, version, fitted.message("Refuse"))
    assert version.name not in judged_by(copied.folder, fitted.validation_sha256)
    assert (unvalidated.split, unvalidated.num_images, unvalidated.num_judged) == ("test", 359, None)
    assert "on test images, for lack of validation images" in unvalidated.reason
    assert unvalidated.challenger_bpd == unvalidated.challenger_test_bpd
    assert (unvalidated.champion_fitted_to, unvalidated.challenger_fitted_to) == ("train", "train")


def shows_no_figure_of_the_images_it_was_fitted_to(project: Project) -> None:
    metrics = json.loads((project.folder / layout.METRICS).read_text())
    assert (metrics["fitted_to"], metrics["validation"]) == ("train_and_validation", None)
    assert "they are left out" in (project.folder / layout.PAGE).read_text()
    evaluated = project.vdmctl("evaluate", "--split", "validation")
    assert "models/vdm was fitted to the validation images, too" in evaluated.stderr
    assert "validation: no figure, since the model was fitted to these images" in project.vdmctl("report").stdout


def test_a_champion_of_other_images_is_not_compared(registry: Project, tmp_path: Path) -> None:
    model = registry.folder / "models" / "vdm"
    assert fits(model, registry.folder / "data" / "images")
    for shape, levels in (((1, 8, 8), 256), ((3, 8, 8), 17)):
        pixels = np.zeros((2, *shape), np.uint8)
        description = {"name": "x", "num_levels": levels, "image_shape": shape, "num_train": 2, "num_test": 2}
        save_images(tmp_path, {"train": pixels, "test": pixels}, description)
        assert not fits(model, tmp_path)
    decision, reason = decide(Evidence.model_validate(BASE | {"num_images": None}))
    assert decision == "refuse"
    assert "takes images of another shape or number of levels" in reason
    assert "`gto assign vdm --version v1.1.0 --stage champion --force`" in reason


def test_figures_that_are_not_finite_become_null() -> None:
    evidence = Evidence(decision=REFUSE, reason="", challenger_bpd=math.nan, confidence_interval=[math.nan, -math.inf])
    assert (evidence.challenger_bpd, evidence.confidence_interval) == (None, [None, None])
    assert evidence_of(evidence.message("Refuse")) == evidence


# Tags, locks and roll-backs, with versions that were never trained


def compared(forge: Forge, reference: str, decision: str = PROMOTE) -> Evidence:
    """Return the evidence of a comparison with the present champion."""
    version, tag = resolve(forge.root, reference), champion_tag(forge.root)
    return Evidence(
        decision=decision,
        reason="measured",
        challenger=version.name,
        challenger_commit=version.commit,
        champion=resolve(forge.root, "champion").name if tag else None,
        champion_tag=tag.name if tag else None,
        champion_commit=tag.commit if tag else None,
    )


def test_a_refusal_is_a_stage_of_gto_with_the_evidence_as_its_message(forge: Forge) -> None:
    crown(forge.project, "v1.0.0")
    evidence = compared(forge, "v1.1.0", REFUSE)
    with pytest.raises(UserError, match="not promoted: measured") as raised:
        promote(forge.root, evidence)
    assert raised.value.code is Exit.NOT_PROMOTED
    message = forge.git("for-each-ref", "--format=%(contents)", "refs/tags/vdm#refused#2")
    assert message.startswith("Refuse vdm@v1.1.0\n\n{")
    assert evidence_of(message) == evidence
    assert refusal(forge.root, resolve(forge.root, "v1.1.0").commit) == evidence
    shown = json.loads(forge.project.run("gto", "show", "vdm#refused", "--json").stdout)
    assert [each["version"] for each in shown] == ["v1.1.0"]
    assert [is_decided(forge.root, resolve(forge.root, name).commit) for name in ("v1.1.0", "v1.2.0")] == [True, False]


def test_the_challengers_that_the_same_images_judged_are_counted(forge: Forge) -> None:
    measured = {"num_images": 6, "validation_sha256": "a" * 64}
    for name, changes in {"v1.0.0": measured, "v1.1.0": measured, "v1.2.0": {"num_images": 6}}.items():
        with registry_lock(forge.root):
            message = compared(forge, name).model_copy(update=changes).message("Compared")
            assign(forge.root, CHAMPION if name == "v1.0.0" else REFUSED, resolve(forge.root, name), message)
    assert judged_by(forge.root, "a" * 64) == {"vdm@v1.0.0", "vdm@v1.1.0"}


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
        promote(forge.root, first)
    assert raised.value.code is Exit.BUSY
    second = compared(forge, "v1.1.0", REFUSE)
    forge.git("tag", "--delete", "vdm#champion#1")
    crown(forge.project, "v1.0.0")
    with pytest.raises(UserError, match=r"the champion vdm@v1.2.0, but now the champion is vdm@v1.0.0") as raised:
        promote(forge.root, second)
    forge.git("tag", "--force", "--annotate", "--message=Moved", "vdm@v1.1.0", "vdm@v1.2.0^{commit}")
    with pytest.raises(UserError, match=r"vdm@v1.1.0 names another commit now") as raised:
        promote(forge.root, second)
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
    with on_stop(stop_at_once):
        assert promote(forge.root, compared(forge, "v1.0.0")) == "vdm#champion#1"
        assert handlers == [signal.SIG_IGN] * len(STOP)
    handlers.clear()
    crown(forge.project, "v1.0.0", "v1.1.0")
    with on_stop(stop_at_once):
        rollback(forge.root)
    assert handlers == [signal.SIG_IGN] * len(STOP)


def test_rolling_back_goes_back_one_champion_at_a_time(forge: Forge) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0", "v1.2.0")
    once = forge.vdmctl("rollback")
    assert once.returncode == 0, once.stderr
    assert once.stdout == "vdm#champion#4: rolled back from vdm@v1.2.0 to vdm@v1.1.0\n"
    twice = json.loads(forge.vdmctl("rollback", "--json").stdout)
    assert (twice["champion"], twice["tag"]) == ("vdm@v1.0.0", "vdm#champion#5")
    thrice = forge.vdmctl("rollback")
    assert thrice.returncode == Exit.MISSING
    advice = "`gto deprecate vdm v1.0.0 champion` leaves the project without a champion"
    assert one_line(thrice) == f"vdmctl: there is no earlier champion to go back to; {advice}"
    assert history(forge.project) == [f"vdm@v1.{minor}.0" for minor in (0, 1, 2, 1, 0)]
    crown(forge.project, "v1.2.0")
    assert rollback(forge.root).champion == "vdm@v1.0.0"
    forge.project.gto(*["deprecate", "vdm", "v1.0.0", "champion"])
    assert "no version is the champion; `vdmctl promote`" in one_line(forge.vdmctl("rollback"))


def test_a_roll_back_to_damaged_files_names_the_command_that_passes_over_them(forge: Forge) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0", "v1.2.0")
    forge.damage(forge.store(b"v1.1.0"))
    line = one_line(forge.vdmctl("rollback"))
    assert "vdm@v1.1.0 does not verify: models/vdm: models/vdm/README.md is damaged" in line
    (command,) = re.findall("`(gto .*?)`", line)
    assert champion(forge.project) == "vdm@v1.2.0"
    forge.project.gto(*command.split()[1:])
    assert rollback(forge.root).champion == "vdm@v1.0.0"


@pytest.mark.parametrize("error", [NetworkError("no answer"), UserError("a file is lost", Exit.MISSING)], ids=str)
def test_a_roll_back_needs_digests_that_differ(error: UserError, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0")
    monkeypatch.setattr(promotion, "require_sound", Mock(side_effect=error))
    with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
        rollback(forge.root)


def test_a_champion_that_came_meanwhile_is_not_rolled_back(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0")
    monkeypatch.setattr(promotion, "require_sound", lambda *_: crown(forge.project, "v1.2.0"))
    with pytest.raises(UserError, match="not rolled back: the champion changed meanwhile") as raised:
        rollback(forge.root)
    assert raised.value.code is Exit.BUSY
    assert champion(forge.project) == "vdm@v1.2.0"
