"""Compare a version with the champion, and promote it if it is better.

Both models are evaluated on the challenger's validation images, at the same times and with the same noise.  An image
that is hard for one model is hard for the other, so the mean of the paired differences has a far smaller standard error
than either figure.  With d = challenger - champion in bits/dim, the challenger is promoted when the upper end of d's
confidence interval lies below -min_improvement_bpd.  If the data changed since the champion was trained, the champion
may have been trained on some of the new validation images, which only favours the champion.

The winner of a comparison is partly lucky, so the champion's validation figure becomes a little too good with every
challenger (selection bias).  The test figures decide nothing, so they have no such bias.  Only if the data have no
validation images do the test images decide, and the evidence says so.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.evaluation.bound import compare, evaluate
from flows.evaluation.results import BOTH
from flows.images.image_set import Chosen, ImageSet
from flows.process.ending import finish
from flows.registry.evidence import PROMOTE, REFUSE, ROLL_BACK, Evidence
from flows.registry.git import registry_lock, require_identity
from flows.registry.storage import DamagedVersionError, fetch_images, fetch_model
from flows.registry.verification import require_sound
from flows.registry.versions import (
    CHAMPION,
    REFUSED,
    Registry,
    Version,
    assign,
    open_registry,
)

if TYPE_CHECKING:
    from flows.core.params import Evaluate, Promote


def challenge(registry: Registry, challenger: Version, *, settings: "Evaluate", rule: "Promote") -> Evidence:
    """Compare the challenger with the champion; return the evidence, with the decision that `promote` carries out.

    Raises UserError: exit 5 when a digest of the challenger does not verify or the champion's files cannot be fetched,
    2 without a git identity, which a promotion needs.
    """
    require_identity(registry.root)  # checked first, since the evaluation may take hours
    require_sound(registry.root, challenger)
    tag, champion = registry.champion_tag, registry.champion
    evidence = Evidence(
        decision="",  # follows from the rest
        reason="",
        challenger=challenger.name,
        challenger_commit=challenger.commit,
        champion=champion.name if champion else None,
        champion_tag=tag.name if tag else None,
        champion_commit=tag.commit if tag else None,
        data_sha256=challenger.metrics.data_sha256,
        data_changed=champion is not None and champion.metrics.data_sha256 != challenger.metrics.data_sha256,
        min_improvement_bpd=rule.min_improvement_bpd,
        **evaluated(registry, challenger, champion, settings=settings, rule=rule),
    )
    decision, reason = decide(evidence)
    return evidence.model_copy(update={"decision": decision, "reason": reason})


def evaluated(
    registry: Registry, challenger: Version, champion: Version | None, *, settings: "Evaluate", rule: "Promote"
) -> dict[str, Any]:
    """Return the figures of both models on the challenger's images, or the challenger's if there is no champion.

    They are fields of Evidence.  There are none when the challenger is the champion already or was fitted to the
    validation images, or when the champion is a model of images of another shape or number of levels.
    """
    root = registry.root
    images, model = fetch_images(root, challenger), fetch_model(root, challenger)
    found = deciding_images(registry, challenger, images) | {"challenger_fitted_to": model.fitted_to or "train"}
    deciding = Chosen(images, found["split"])
    places = {"": deciding, "test_": replace(deciding, split="test")}
    if champion is None:
        requirements = root / layout.REQUIREMENTS
        alone = {
            split: evaluate(settings, model, Chosen(images, split), requirements=requirements)
            for split in {each.split for each in places.values()}
        }
        return found | {f"{place}evaluation": alone[each.split] for place, each in places.items()}
    if champion.commit == challenger.commit or found["challenger_fitted_to"] != "train":
        return found
    reigning = fetch_model(root, champion)
    if (reigning.image_shape, reigning.num_levels) != (images.image_shape, images.num_levels):
        return found
    compared = {
        split: compare(settings, reigning, model, Chosen(images, split), confidence=rule.confidence)
        for split in {each.split for each in places.values()}
    }
    found["champion_fitted_to"] = reigning.fitted_to or "train"
    return found | {f"{place}comparison": compared[each.split] for place, each in places.items()}


def deciding_images(registry: Registry, challenger: Version, images: ImageSet) -> dict[str, Any]:
    """Return which images decide, and how many challengers they have judged.  The keys are fields of Evidence."""
    if not len(images["validation"]):
        return {"split": "test"}
    digest = images.array_sha256["validation"]
    num_judged = len(registry.judged_by(digest) | {challenger.name})
    return {"split": "validation", "validation_sha256": digest, "num_judged": num_judged}


def decide(evidence: Evidence) -> tuple[str, str]:
    """Return the decision that follows from the figures, and the reason in one line."""
    challenger, champion = evidence.challenger, evidence.champion
    if challenger == champion:
        return REFUSE, f"{challenger} is the champion already"
    by_hand = f"`gto assign {str(challenger).replace('@', ' --version ')} --stage {CHAMPION} --force` promotes by hand"
    if champion and evidence.challenger_fitted_to == BOTH:
        problem = f"{challenger} was fitted to the validation images (train.images), so they cannot judge it"
        return REFUSE, f"{problem}; {by_hand}"
    compared, alone = evidence.comparison, evidence.evaluation
    if compared is None and alone is None:
        problem = f"the champion {champion} takes images of another shape or number of levels, so it cannot be compared"
        return REFUSE, f"{problem}; {by_hand}"
    bpd = compared.models[1].bpd if compared else alone.bpd if alone else None
    if bpd is None:
        return REFUSE, f"the bits/dim of {challenger} are not finite"
    if compared is None:
        return PROMOTE, f"{challenger} is the first champion, at {bpd:.4f} bits/dim"
    if compared.models[0].bpd is None:
        return PROMOTE, f"{challenger} has finite bits/dim, and the champion {champion} does not"
    low, high = compared.confidence_interval
    if low is None or high is None:
        return REFUSE, f"one image gives no confidence interval between {challenger} and {champion}"
    percent = 100 * compared.confidence
    images = "validation images" if evidence.split == "validation" else "test images, for lack of validation images"
    images += ", given the class" if compared.given == "class" else ""
    interval = f"{percent:g}% interval [{low:+.4f}, {high:+.4f}] bits/dim against {champion} on {images}"
    least = evidence.min_improvement_bpd or 0
    if high < -least:
        return PROMOTE, f"{challenger} improves by more than {least:g}: {interval}"
    reason = f"{challenger} is not shown to improve by more than {least:g}: {interval}"
    # The champion may be better on these images than on others.
    if evidence.champion_fitted_to == BOTH:
        reason += "; the champion was fitted to validation images, too"
    elif evidence.data_changed:
        reason += "; the data changed or is unknown, so the champion may have been trained on some of these images"
    return REFUSE, reason


def promote(root: Path, evidence: Evidence) -> str:
    """Make the challenger the champion if the evidence says so, and return the new tag, such as `vdm#champion#7`.

    Raises UserError: exit 3 when the evidence refuses the challenger, 6 when it or the champion changed since the
    comparison, 5 when its tag is gone, 2 without a git identity.
    """
    with registry_lock(root):
        registry = open_registry(root)
        challenger = registry.resolve(str(evidence.challenger))
        if challenger.commit != evidence.challenger_commit:
            reason = f"{challenger.name} names another commit now"
            raise UserError(f"{reason}; `vdmctl promote {challenger.name}` compares that", Exit.BUSY)
        tag = registry.champion_tag
        found = (tag.name, tag.commit) if tag else (None, None)  # another machine's tag may have taken the name
        if found != (evidence.champion_tag, evidence.champion_commit):
            now = registry.resolve(CHAMPION).name if tag else "none"
            before = evidence.champion or "none"
            raise UserError(
                f"{challenger.name} is not promoted: it was compared with the champion {before}, but now the champion "
                f"is {now}; `vdmctl promote {challenger.name}` compares them",
                Exit.BUSY,
            )
        if evidence.decision == PROMOTE:
            finish()
            return assign(registry, CHAMPION, challenger, evidence.message(f"Promote {challenger.name}"))
        if challenger.name != evidence.champion:
            assign(registry, REFUSED, challenger, evidence.message(f"Refuse {challenger.name}"))
    raise UserError(f"not promoted: {evidence.reason}", Exit.NOT_PROMOTED)


def rollback(root: Path) -> Evidence:
    """Make the previous champion the champion again by adding a tag; return the evidence with the tag.

    Raises UserError: exit 5 when there is no earlier champion or its digests do not verify, 2 without a git identity,
    6 when the champion changed meanwhile.
    """
    registry = open_registry(root)
    before, earlier = registry.champion_tag, registry.previous_champion()
    try:
        require_sound(root, earlier)  # this may take long, so the lock is not held yet
    except DamagedVersionError as error:
        given_up = f"`gto deprecate {earlier.name.replace('@', ' ')}`"
        advice = f"if it cannot be repaired, {given_up} makes the next roll-back pass over it"
        raise DamagedVersionError(f"{error}; {advice}") from error
    evidence = Evidence(
        decision=ROLL_BACK,
        reason=f"rolled back from {registry.resolve(CHAMPION).name} to {earlier.name}",
        champion=earlier.name,
        champion_tag=before.name if before else None,
    )
    with registry_lock(root):
        registry = open_registry(root)
        if registry.champion_tag != before or registry.previous_champion().commit != earlier.commit:
            raise UserError("not rolled back: the champion changed meanwhile; see `vdmctl models`", Exit.BUSY)
        finish()
        tag = assign(registry, CHAMPION, earlier, evidence.message(f"Roll back to {earlier.name}"))
    return evidence.model_copy(update={"tag": tag})
