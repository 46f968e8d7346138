"""Promotion by evidence: a version becomes the champion when it beats the champion on the same images.

Both are evaluated here and now, on the challenger's test images, at the same times and under the same noise.  The
difference per image is then free of what makes images easy or hard, and its mean has a standard error far below that
of either figure.  With d = challenger - champion in bits/dim, the challenger is promoted when the upper end of d's
confidence interval lies below -min_improvement_bpd.  If the data changed since the champion was made, it is thereby
re-evaluated on the new test images; some of these it may have been trained on, which only favours the champion.
"""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.evaluation.bound import measure
from flows.evaluation.protocols import compare
from flows.images.store import ImageSetError, data_sha256, load_images
from flows.process.ending import finish
from flows.registry.git import identity, locked
from flows.registry.storage import fetch
from flows.registry.verification import require_sound
from flows.registry.versions import (
    CHAMPION,
    Version,
    champion_tag,
    make_champion,
    previous_champion,
    record_refusal,
    resolve,
)
from vdm.checkpoint import read_description

if TYPE_CHECKING:
    from flows.core.params import Evaluate, Promote

PROMOTE, REFUSE, ROLL_BACK = "promote", "refuse", "roll back"


def challenge(root: Path, challenger: Version, *, settings: "Evaluate", rule: "Promote") -> dict[str, Any]:
    """The evidence on which the challenger is promoted or refused, to be handed to `promote`: an object for JSON.

    `decision` is "promote" or "refuse", and `reason` says why in a line.  Figures are in bits/dim.  Raises UserError:
    exit 5 when a digest of the challenger does not verify or the champion's bytes cannot be had, 2 for want of
    a git identity, which a promotion needs.
    """
    identity(root)  # before the work, not after it
    require_sound(root, challenger)
    tag = champion_tag(root)
    champion = resolve(root, CHAMPION) if tag else None
    images = test_images(root, challenger)
    evidence: dict[str, Any] = {
        "challenger": challenger.name,
        "challenger_commit": challenger.commit,
        "champion": champion.name if champion else None,
        "champion_tag": tag.name if tag else None,
        "data_sha256": challenger.metrics["data_sha256"],
        "data_changed": champion is not None
        and champion.metrics.get("data_sha256") != challenger.metrics["data_sha256"],
        "min_improvement_bpd": rule.min_improvement_bpd,
        "confidence": rule.confidence,
        **settings.model_dump(include={"seed", "times_per_image", "num_timesteps"}),
    }
    model = fetch(root, challenger)
    if champion is None:
        alone, _ = measure(settings, model=model, images=images)
        evidence |= figures("challenger", alone) | {"num_images": alone["num_images"]}
    elif champion.commit != challenger.commit and fits(fetch(root, champion), images):
        arguments: dict[str, Any] = {"images": images, "confidence": rule.confidence}
        evidence |= paired(compare(settings, first=fetch(root, champion), second=model, **arguments))
    decision, reason = decide(evidence)
    return {"decision": decision, "reason": reason, **evidence}


def decide(evidence: dict[str, Any]) -> tuple[str, str]:
    """The decision that the figures make, and the reason in a line."""
    challenger, champion = evidence["challenger"], evidence["champion"]
    if challenger == champion:
        return REFUSE, f"{challenger} is the champion already"
    if "challenger_bpd" not in evidence:
        by_hand = f"`gto assign {challenger.replace('@', ' --version ')} --stage {CHAMPION}`"
        return REFUSE, f"the champion {champion} is a model of other images, not to be compared; {by_hand} decides"
    if evidence["challenger_bpd"] is None:
        return REFUSE, f"the bits/dim of {challenger} are not finite"
    if champion is None:
        return PROMOTE, f"{challenger} is the first champion, at {evidence['challenger_bpd']:.4f} bits/dim"
    if evidence["champion_bpd"] is None:
        return PROMOTE, f"{challenger} has finite bits/dim, and the champion {champion} has not"
    low, high = evidence["confidence_interval"]
    if low is None:
        return REFUSE, f"one image tells no interval between {challenger} and {champion}"
    interval = f"{100 * evidence['confidence']:g}% interval [{low:+.4f}, {high:+.4f}] bits/dim against {champion}"
    least = evidence["min_improvement_bpd"]
    if high < -least:
        return PROMOTE, f"{challenger} improves by more than {least:g}: {interval}"
    return REFUSE, f"{challenger} does not surely improve by more than {least:g}: {interval}"


def promote(root: Path, challenger: Version, evidence: dict[str, Any]) -> str:
    """Make the challenger the champion on that evidence, and return the tag that says so, `vdm#champion#7`.

    Raises UserError: exit 3 when the evidence refuses it, 6 when the champion is no longer the one that it met, 2
    for want of a git identity.
    """
    if evidence["challenger_commit"] != challenger.commit:
        raise UserError(f"the evidence is of {evidence['challenger']}, not of {challenger.name}", Exit.USAGE)
    if evidence["decision"] != PROMOTE:
        if challenger.name != evidence["champion"]:
            record_refusal(root, challenger, message(f"Refuse {challenger.name}", evidence))
        raise UserError(f"not promoted: {evidence['reason']}", Exit.NOT_PROMOTED)
    with locked(root):
        tag = champion_tag(root)
        if (tag.name if tag else None) != evidence["champion_tag"]:
            now = resolve(root, CHAMPION).name if tag else "none"
            met = evidence["champion"] or "none"
            raise UserError(
                f"{challenger.name} is not promoted: it met the champion {met}, and meanwhile the champion is {now}; "
                f"`vdmctl promote {challenger.name}` lets them meet",
                Exit.BUSY,
            )
        finish()
        return make_champion(root, challenger, message(f"Promote {challenger.name}", evidence))


def rollback(root: Path) -> dict[str, Any]:
    """Make the champion before this one champion again, by one more tag; returns what that tag says.

    Raises UserError: exit 5 when there is no earlier champion or its digests do not verify, 2 for want of an identity,
    6 when the champion changed meanwhile.
    """
    before, earlier = champion_tag(root), previous_champion(root)
    # A roll-back to bytes that are gone would leave no champion that works.  They may be many, so not under the lock.
    require_sound(root, earlier)
    evidence: dict[str, Any] = {
        "decision": ROLL_BACK,
        "reason": f"rolled back from {resolve(root, CHAMPION).name} to {earlier.name}",
        "champion": earlier.name,
        "champion_tag": before.name if before else None,
    }
    with locked(root):
        if champion_tag(root) != before:
            raise UserError("not rolled back: the champion changed meanwhile; see `vdmctl models`", Exit.BUSY)
        finish()
        tag = make_champion(root, earlier, message(f"Roll back to {earlier.name}", evidence))
    return evidence | {"tag": tag}


def test_images(root: Path, version: Version) -> Path:
    """The images of the version: those of the working tree when they are the same, else fetched.

    Raises UserError (exit 5).
    """
    expected = version.metrics.get("data_sha256", "unknown")
    with suppress(ImageSetError):
        if data_sha256(root / layout.IMAGES) == expected:
            return root / layout.IMAGES
    folder = fetch(root, version, str(layout.IMAGES))
    if data_sha256(folder) != expected:
        raise UserError(f"{folder} is damaged; delete it to fetch it again", Exit.MISSING)
    return folder


def fits(model: Path, images: Path) -> bool:
    """Whether the model is one of such images: same shape, same number of levels."""
    config, image_set = read_description(model)["model"], load_images(images)
    return (tuple(config["image_shape"]), config["num_levels"]) == (image_set.image_shape, image_set.num_levels)


def paired(comparison: dict[str, Any]) -> dict[str, Any]:
    """A comparison as evidence: the champion came first."""
    champion, challenger = comparison["models"]
    result = figures("champion", champion) | figures("challenger", challenger)
    difference = finite(comparison["difference_bpd"])
    error = finite(comparison["difference_standard_error"])
    interval = [finite(end) for end in comparison["confidence_interval"]]
    result |= {"difference_bpd": difference, "difference_standard_error": error, "confidence_interval": interval}
    return result | {"num_images": comparison["num_images"]}


def figures(role: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """A model's figures under the role's name."""
    return {
        f"{role}_bpd": finite(metrics["bpd"]),
        f"{role}_standard_error": finite(metrics["bpd_standard_error"]),
        f"{role}_model_sha256": metrics["model_sha256"],
    }


def finite(value: float | None) -> float | None:
    """A number for JSON, which has neither NaN nor infinity: None in their place."""
    return value if value is not None and math.isfinite(value) else None


def message(title: str, evidence: dict[str, Any]) -> str:
    """A tag's message: a line for people, the evidence below it."""
    return f"{title}\n\n{json.dumps(evidence, indent=2, allow_nan=False)}\n"
