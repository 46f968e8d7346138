"""Compare a version with the champion, and promote it if it is better, or let it wait for a person.

Both models are evaluated on the challenger's validation images, at the same times and with the same noise.  An image
that is hard for one model is hard for the other, so the mean of the paired differences has a far smaller standard error
than either figure.  With d = challenger - champion in bits/dim, the challenger is promoted when the upper end of d's
confidence interval lies below -min_improvement_bpd.  Images on which one of the two, or a model from which its training
began, was trained would favour it: they are left out, as far as they are known.  A challenger of whose line they are
not all known is refused, unless the champion's line has the same model, which favours neither.

The winner of a comparison is partly lucky, so the champion's validation figure becomes a little too good with every
challenger (selection bias).  The test figures decide nothing, so they have no such bias.  Only if the data have no
validation images do the test images decide, and the evidence says so.
"""

import logging
from datetime import UTC, datetime
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.core.model import TrainedModel
from flows.evaluation.bound import compare, evaluate
from flows.evaluation.results import BOTH
from flows.images.image_set import Chosen
from flows.process.ending import finish
from flows.registry.costs import known_costs
from flows.registry.evidence import HOLD, PROMOTE, REFUSE, RELEASE, ROLL_BACK, WAIT, Evidence, evidence_of
from flows.registry.fetching import fetch_images, fetch_model
from flows.registry.images import Kept, list_training_images, read_kept_images
from flows.registry.verification import require_sound
from flows.registry.versions import Registry, Version, assign, open_registry
from flows.repository.files import DamagedVersionError
from flows.repository.repository import Repository
from flows.repository.tags import CHAMPION, REFUSED, WAITING, Tag

if TYPE_CHECKING:
    from flows.core.params import Evaluate, Promote

FEWEST_DECIDING = 10
"""Images that neither model saw."""
PROMOTED_OF_EQUAL = 0.13
"""About how often one of 20 equal challengers in a row is promoted, if the differences are normal.

`benchmarks.judging` finds 0.19 without a margin, and 0.07 if the margin is half of a standard error.
"""
HARMED, MOST_MISSED = 0.05, 0.01
"""A share of harmed images, and the probability above which a draw without one of them is too likely: below 90."""

log = logging.getLogger(__name__)


def challenge(registry: Registry, challenger: Version, *, settings: "Evaluate", rule: "Promote") -> Evidence:
    """Compare the challenger with the champion; return the evidence, with the decision that `promote` carries out.

    Raises UserError: exit 5 when a digest of the challenger does not verify or the champion's files cannot be fetched,
    2 without a git identity, which a promotion needs.
    """
    registry.repository.require_identity()  # checked first, since the evaluation may take hours
    require_sound(registry.repository, challenger)
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
    )
    add_conditions(evidence, registry, challenger, rule)
    add_figures(evidence, registry, challenger, champion, settings=settings, rule=rule)
    evidence.decision, evidence.reason = decide(evidence)
    if evidence.comparison:
        evidence.limits = limits_of(evidence)
    return evidence


def add_conditions(evidence: Evidence, registry: Registry, challenger: Version, rule: "Promote") -> None:
    """Add what else decides: the samples' quality, a hold, a person's approval; and what the run cost."""
    if rule.max_frechet is not None:
        frechet = challenger.samples.frechet if challenger.samples else None
        evidence.max_frechet, evidence.frechet = rule.max_frechet, frechet
        if frechet and frechet.samples is not None and frechet.samples_standard_error is not None:
            errors = NormalDist().inv_cdf((1 + rule.confidence) / 2)
            evidence.frechet_high = frechet.samples + errors * frechet.samples_standard_error
    if rule.approval:
        evidence.approval = rule.approval
    if registry.hold:
        evidence.hold = registry.hold
    if costs := known_costs(registry.repository.folder):
        evidence.costs = costs


def add_figures(
    evidence: Evidence,
    registry: Registry,
    challenger: Version,
    champion: Version | None,
    *,
    settings: "Evaluate",
    rule: "Promote",
) -> None:
    """Add the figures of both models on the challenger's images, or the challenger's if there is no champion.

    There are none when the challenger is the champion already or was fitted to the validation images, when the champion
    is a model of images of another shape or number of levels, or when too few images are left that neither was trained
    on.
    """
    repository = registry.repository
    images, model = fetch_images(repository, challenger), fetch_model(repository, challenger)
    kept = read_kept_images(repository, challenger)
    if kept is None:
        raise UserError(f"{challenger.name}: its images have no digests; make it by `dvc repro`", Exit.MISSING)
    evidence.challenger_fitted_to = model.fitted_to or "train"
    if images.description.damaged:
        evidence.damaged = images.description.damaged
    deciding, test = Chosen(images, "validation"), Chosen(images, "test")
    if not len(deciding):
        deciding = test
    evidence.split = deciding.split
    if deciding is not test:
        evidence.validation_sha256 = images.array_sha256["validation"]
        evidence.num_judged = num_judged(registry, challenger, evidence.validation_sha256, kept)
    if champion is None:
        alone = partial(evaluate, settings, model, requirements=repository.folder / layout.REQUIREMENTS)
        evidence.evaluation = alone(deciding)
        evidence.test_evaluation = evidence.evaluation if deciding is test else alone(test)
        return
    if champion.commit == challenger.commit or evidence.challenger_fitted_to != "train":
        return
    reigning = fetch_model(repository, champion)
    if (reigning.image_shape, reigning.num_levels) != (images.image_shape, images.num_levels):
        return
    evidence.champion_fitted_to = reigning.fitted_to or "train"
    # Given the class where both have the same classes: a class folder may have come since the champion was trained.
    alike = settings.model_copy(update={"given": "auto" if settings.given == "class" else settings.given})
    against = partial(compare, alike, reigning, model, confidence=rule.confidence)
    by_champion, by_challenger = list_training_images(registry, champion), list_training_images(registry, challenger)
    evidence.champion_unknown = [*by_champion.unknown.values()]
    unknown = by_challenger.unknown.items()
    evidence.challenger_unknown = [name for digest, name in unknown if digest not in by_champion.unknown]
    digests = kept.digests[deciding.split]
    saw, other_saw = are_known(digests, by_champion.digests), are_known(digests, by_challenger.digests)
    unseen = ~(saw | other_saw)
    evidence.champion_saw, evidence.challenger_saw = int(saw.sum()), int(other_saw.sum())
    evidence.num_decided = int(unseen.sum())
    add_withdrawn(evidence, registry, model, deciding, kept, by_challenger.digests, alike, rule.confidence)
    if evidence.num_decided >= FEWEST_DECIDING:
        evidence.comparison = against(deciding, counting=unseen)
    evidence.test_comparison = (evidence.comparison if deciding is test else None) or against(test)


def add_withdrawn(
    evidence: Evidence,
    registry: Registry,
    model: TrainedModel,
    deciding: Chosen,
    kept: Kept,
    saw: set[bytes],
    settings: "Evaluate",
    confidence: float,
) -> None:
    """Add the comparison with the version that was rolled back from, on the images that neither saw.

    There is none if nobody rolled back to the champion, or if the two cannot be compared, since it only informs.
    """
    if not (left := find_rolled_back(registry.champion_tag)):
        return
    evidence.rolled_back_from = left
    try:
        withdrawn = registry.resolve(left)
        other = fetch_model(registry.repository, withdrawn)
        unseen = ~are_known(kept.digests[deciding.split], saw | list_training_images(registry, withdrawn).digests)
        alike = (other.image_shape, other.num_levels) == (model.image_shape, model.num_levels)
        if alike and withdrawn.name != model.name and unseen.sum() >= FEWEST_DECIDING:
            compared = compare(settings, other, model, deciding, confidence=confidence, counting=unseen)
            evidence.rolled_back_comparison = compared
    except UserError as error:
        log.warning("not compared with %s, which was rolled back from: %s", left, error)


def num_judged(registry: Registry, challenger: Version, validation_sha256: str, kept: Kept) -> int:
    """Return how many challengers some of these validation images have judged, with this one."""
    known = {version.name: version for version in registry.versions}
    names, answers = {challenger.name}, True
    for other, judged_names in registry.judged.items():
        theirs = [known[name] for name in sorted(judged_names) if name in known]
        overlaps = other == validation_sha256
        if not overlaps and answers and theirs:
            try:
                overlaps = overlap(kept, read_kept_images(registry.repository, theirs[0], ["validation"]))
            except NetworkError as error:  # it only informs
                log.warning("judged images that are not here are not counted: %s", error)
                answers = False
        if overlaps:
            names |= judged_names
    return len(names)


def overlap(ours: Kept, theirs: Kept | None) -> bool:
    """Whether validation images of one version are among those of another, as far as they are known."""
    return theirs is not None and not set(ours.digests["validation"]).isdisjoint(theirs.digests.get("validation", []))


def are_known(digests: list[bytes], known: set[bytes]) -> np.ndarray:
    """Return which of the digests are known, (N,) bool."""
    return np.array([digest in known for digest in digests], bool)


def decide(evidence: Evidence) -> tuple[str, str]:
    """Return the decision, and the reason in one line: a winner waits if a person is to approve it."""
    decision, reason = judge(evidence)
    if decision == PROMOTE and evidence.max_frechet is not None:
        limit = f"promote.max_frechet is {evidence.max_frechet:g}"
        if evidence.frechet is None or evidence.frechet_high is None:
            return REFUSE, f"{reason}; but {limit}, and there is no distance of its samples with an error"
        if evidence.frechet_high > evidence.max_frechet:
            found = f"the Frechet distance of its samples is {evidence.frechet.of_samples}"
            return REFUSE, f"{reason}; but {found}, so up to {evidence.frechet_high:.4g}, and {limit}"
    if decision == PROMOTE and (why := explain_waiting(evidence)):
        return WAIT, f"{reason}; it waits, since {why}; `vdmctl promote --approve {evidence.challenger}` promotes it"
    return decision, reason


def explain_waiting(evidence: Evidence) -> str:
    """Return why a winner waits for a person, "" if it does not."""
    if evidence.hold:
        return f"the champion is held: {evidence.hold}"
    if evidence.approval == "person":
        return "promote.approval is person"
    if evidence.approval and evidence.comparison and chance_to_miss(evidence.comparison.num_images) > MOST_MISSED:
        return f"promote.approval is {evidence.approval}, and {describe_missed(evidence.comparison.num_images)}"
    return ""


def chance_to_miss(num_images: int) -> float:
    """Return the probability that none of so many images is among the HARMED: no interval of theirs can see these."""
    return float((1 - HARMED) ** num_images)


def describe_missed(num_images: int) -> str:
    """Return what so many images cannot see."""
    missed = chance_to_miss(num_images)
    share = f"{missed:.1%}" if missed >= 0.001 else "less than 0.1%"
    return f"if {HARMED:.0%} of pictures were much worse, {num_images:,} images would miss that in {share} of cases"


def judge(evidence: Evidence) -> tuple[str, str]:
    """Return the decision that follows from the bits/dim, and the reason in one line."""
    challenger, champion = evidence.challenger, evidence.champion
    if challenger == champion:
        return REFUSE, f"{challenger} is the champion already"
    by_hand = f"`gto assign {str(challenger).replace('@', ' --version ')} --stage {CHAMPION} --force` promotes by hand"
    if champion and evidence.challenger_fitted_to == BOTH:
        problem = f"{challenger} was fitted to the validation images (train.images), so they cannot judge it"
        return REFUSE, f"{problem}; {by_hand}"
    compared, alone = evidence.comparison, evidence.evaluation
    kind = f"{evidence.split} images"
    if evidence.challenger_unknown:
        known = f"it is not known on which images {', '.join(evidence.challenger_unknown)} was trained"
        return REFUSE, f"{known}, so the {kind} of {challenger} may be among them, and cannot judge it; {by_hand}"
    if compared is None and evidence.num_decided is not None:
        saw = f"{champion} saw {evidence.champion_saw} and {challenger} {evidence.challenger_saw} of its {kind}"
        problem = f"{saw}, so {evidence.num_decided} are left, and {FEWEST_DECIDING} are needed to decide"
        return REFUSE, f"{problem}; {by_hand}"
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
    neither = "neither is known to have seen" if evidence.champion_unknown else "neither saw"
    images = kind if evidence.num_decided is None else f"{evidence.num_decided} {kind} that {neither}"
    images += ", for lack of validation images" if evidence.split == "test" else ""
    images += ", given the class" if compared.given == "class" else ""
    images += f", not given the class, since {compared.classes_differ}" if compared.classes_differ else ""
    interval = f"{percent:g}% interval [{low:+.4f}, {high:+.4f}] bits/dim against {champion} on {images}"
    least = evidence.min_improvement_bpd or 0
    if high < -least:
        return PROMOTE, f"{challenger} improves by more than {least:g}: {interval}"
    reason = f"{challenger} is not shown to improve by more than {least:g}: {interval}"
    if evidence.champion_unknown:
        names = ", ".join(evidence.champion_unknown)
        reason += f"; it is not known on which images {names} was trained, which may favour the champion"
    return REFUSE, reason


def limits_of(evidence: Evidence) -> list[str]:
    """Return what a comparison with the champion cannot show, in sentences."""
    assert evidence.comparison
    num_images = evidence.comparison.num_images
    said = [
        f"Harm in fewer than {3 / max(num_images, 3):.1%} of the images may be in none of those that decided, and then"
        f" no test sees it: {describe_missed(num_images)}."
    ]
    if evidence.num_judged:
        said.append(
            f"These images have judged {evidence.num_judged} challengers, for which nothing is corrected: of 20 equal"
            f" challengers in a row one is promoted with a probability of about {PROMOTED_OF_EQUAL} if the differences"
            " are normal, and maybe with a far higher one if few images are far worse."
        )
    said.append(
        "A better model is no better recipe: after a tiny training, another one by another seed is truly better in 38"
        " of 100 cases."
    )
    return said


def promote(repository: Repository, evidence: Evidence) -> str:
    """Make the challenger the champion if the evidence says so, and return the new tag, such as `vdm#champion#7`.

    Raises UserError: exit 3 when the evidence refuses the challenger, 6 when it or the champion changed since the
    comparison, 5 when its tag is gone, 2 without a git identity.
    """
    with repository.registry_lock():
        registry = open_registry(repository)
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
        if evidence.decision == WAIT:
            assign(registry, WAITING, challenger, evidence.message(f"Let {challenger.name} wait"))
        elif challenger.name != evidence.champion:
            assign(registry, REFUSED, challenger, evidence.message(f"Refuse {challenger.name}"))
    raise UserError(f"not promoted: {evidence.reason}", Exit.NOT_PROMOTED)


def approve(repository: Repository, reference: str) -> Evidence:
    """Promote the version that waits, for the person whom git's identity names; return the evidence with the tag.

    It ends a hold.  Raises UserError: exit 2 if this version does not wait, or without a git identity, 5 if its digests
    do not verify.
    """
    repository.require_identity()
    person = repository.git_text("var", "GIT_COMMITTER_IDENT").rpartition(">")[0] + ">"
    require_sound(repository, open_registry(repository).resolve(reference))  # long, so the lock is not held yet
    with repository.registry_lock():
        registry = open_registry(repository)
        version, tag = registry.resolve(reference), registry.waiting_tag
        if tag is None or tag.commit != version.commit:
            waits = f"{registry.version_of(tag).name} does" if tag else "none does"
            compares = f"`vdmctl promote {version.name}` compares it with the champion"
            raise UserError(f"{version.name} does not wait for approval, and {waits}; {compares}", Exit.USAGE)
        found = evidence_of(tag.message)
        assert found  # or it would not wait
        won = found.reason.partition("; it waits")[0]
        done = {"approved_by": person, "approved_at": datetime.now(UTC).isoformat(timespec="seconds")}
        reason = f"{won}; approved by {person}"
        evidence = found.model_copy(update={"decision": PROMOTE, "reason": reason, **done})
        if "hold" in evidence.model_fields_set:  # the hold ends
            evidence = Evidence.model_validate(evidence.model_dump(exclude_unset=True, exclude={"hold"}))
        finish()
        made = assign(registry, CHAMPION, version, evidence.message(f"Promote {version.name}"))
    return evidence.model_copy(update={"tag": made})


def hold(repository: Repository, reason: str | None) -> Evidence:
    """Hold the champion, so that winners wait for a person, or with None release it; return the evidence with the tag.

    It is one more tag of the same champion.  Raises UserError: exit 5 without a champion, 2 if nobody holds it, or
    without a git identity.
    """
    with repository.registry_lock():
        registry = open_registry(repository)
        champion, tag = registry.resolve(CHAMPION), registry.champion_tag
        if reason is None and not registry.hold:
            raise UserError(f"nobody holds the champion {champion.name}, so there is nothing to release", Exit.USAGE)
        evidence = Evidence(
            decision=HOLD if reason else RELEASE,
            reason=f"{champion.name} is held: {reason}" if reason else f"{champion.name} is held no longer",
            champion=champion.name,
            champion_tag=tag.name if tag else None,
        )
        if left := find_rolled_back(tag):
            evidence.rolled_back_from = left
        if reason:
            evidence.hold = reason
        finish()
        made = assign(registry, CHAMPION, champion, evidence.message(f"{evidence.decision.title()} {champion.name}"))
    return evidence.model_copy(update={"tag": made})


def find_rolled_back(tag: Tag | None) -> str | None:
    """Return the version from which a champion's tag went back; None if it did not."""
    evidence = evidence_of(tag.message) if tag else None
    return evidence.rolled_back_from if evidence else None


def rollback(repository: Repository, reason: str | None = None) -> Evidence:
    """Make the previous champion the champion again by adding a tag; return the evidence with the tag.

    With a reason, or if a person held the champion before, it is held: winners wait.  Raises UserError: exit 5 when
    there is no earlier champion or its digests do not verify, 2 without a git identity, 6 when the champion changed
    meanwhile.
    """
    registry = open_registry(repository)
    before, earlier = registry.champion_tag, registry.previous_champion()
    reason = reason or registry.hold
    try:
        require_sound(repository, earlier)  # this may take long, so the lock is not held yet
    except DamagedVersionError as error:
        given_up = f"`gto deprecate {earlier.name.replace('@', ' ')}`"
        advice = f"if it cannot be repaired, {given_up} makes the next roll-back pass over it"
        raise DamagedVersionError(f"{error}; {advice}") from error
    present = registry.resolve(CHAMPION).name
    evidence = Evidence(
        decision=ROLL_BACK,
        reason=f"rolled back from {present} to {earlier.name}" + (f", and held: {reason}" if reason else ""),
        rolled_back_from=present,
        champion=earlier.name,
        champion_tag=before.name if before else None,
    )
    if reason:
        evidence.hold = reason
    with repository.registry_lock():
        registry = open_registry(repository)
        if registry.champion_tag != before or registry.previous_champion().commit != earlier.commit:
            raise UserError("not rolled back: the champion changed meanwhile; see `vdmctl models`", Exit.BUSY)
        finish()
        tag = assign(registry, CHAMPION, earlier, evidence.message(f"Roll back to {earlier.name}"))
    return evidence.model_copy(update={"tag": tag})
