"""Commands of the registry: list versions, show their lineage, verify them, and change the champion."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.arguments import AsJson, project
from flows.core.errors import Exit, UserError
from flows.process.streams import say, say_json, say_result

if TYPE_CHECKING:
    from flows.evaluation.results import SampleMetrics
    from flows.registry.versions import Version

VersionArgument = Annotated[str, typer.Argument(help="A version (vdm@v1.2.0, v1.2.0) or `champion`.")]

commands = typer.Typer()
log = logging.getLogger(__name__)


@commands.command()
def models(as_json: AsJson = False) -> None:
    """List the registry's versions: state, bits/dim, training images and ancestor, samples' distance, data, commit.

    Bits/dim are those of the test images, and in brackets of the validation images. The distance of the samples is fid,
    or else fd_<8 hex>, and in brackets that of held-out images. 0 is best.
    """
    from flows.core.tables import table
    from flows.registry.versions import no_version

    registry = project().registry
    versions = registry.versions
    if as_json:
        costs = {commit: of.model_dump() for commit, of in registry.costs.items()}
        say_json({"versions": [row_of(each) | {"costs": costs.get(each.commit)} for each in versions]})
    elif not versions:
        say(no_version(project().repository))
    else:
        bpd = "bits/dim (validation)"
        header = ("version", "stage", bpd, "images", "from", "samples (held-out)", "data", "commit", "created")
        say(table(header, [cells_of(version) for version in versions]))


@commands.command()
def lineage(
    model: Annotated[
        str | None, typer.Argument(help="A version (vdm@v1.2.0, v1.2.0) or `champion`.", show_default=False)
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Pictures, a file or a folder: list the versions that have one of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the origin of a version: tag, commit, parameters, data, ancestors, code, outputs, with digests.

    With --image instead of MODEL, list the versions that were trained on one of these pictures, or began with a model
    that was, and those that have one among their other images. It is found by its pixels before any transform.
    """
    if (model is None) == (image is None):
        raise UserError("lineage needs either a version or --image FILE", Exit.USAGE)
    if image:
        show_having(image, as_json)
        return
    from flows.core import bounded_yaml
    from flows.registry.lineage import trace_lineage

    registry = project().registry
    found = trace_lineage(registry, registry.resolve(str(model))).model_dump(exclude_unset=True)
    say_result(found, bounded_yaml.dump(found).rstrip(), as_json)  # YAML is easier to read


def show_having(image: Path, as_json: bool) -> None:
    """Print the versions that have a picture, or a model that was trained on it in their line."""
    from flows.core.tables import table
    from flows.registry.images import digest_pictures, find_versions_with

    registry = project().registry
    wanted, others = digest_pictures(image)
    for name, reason in others.items():
        log.warning("%s can be no image of a version: %s", name, reason)
    found = find_versions_with(registry, wanted)
    rows = [
        (
            each.version,
            each.state,
            ", ".join(each.splits) or "none",
            ", ".join(each.through) or "none",
            "all" if each.is_known else "not all, so it may have it",
        )
        for each in found
    ]
    text = table(("version", "stage", "in its images", "trained on it", "known images"), rows)
    if not found:
        text = f"no version has {image}, and all are known"
    versions = [each._asdict() for each in found]
    say_result({"image": str(image), "versions": versions, "no_images": others}, text, as_json)


@commands.command()
def verify(model: VersionArgument, as_json: AsJson = False) -> None:
    """Recompute every digest of a version: code, parameters, outputs, model, images; exit 5 if one differs.

    Also say by whom its tags are signed; exit 5 if git refuses a signature.
    """
    from flows.core.tables import table
    from flows.registry.verification import signatures, verify

    registry = project().registry
    version = registry.resolve(model)
    checks, signed = verify(project().repository, version), signatures(registry, version)
    problems = [check for check in checks if check.problem]
    refused = [tag for tag in signed if tag.problem]
    text = f"{version.name}: all {len(checks)} digests agree"
    if problems:
        text = table(("digest of", "problem"), problems)
    shown = [(tag.tag, f"signed by {tag.signer}" if tag.signer else tag.problem or "not signed") for tag in signed]
    found = {
        "version": version.name,
        "sound": not problems and not refused,
        "checks": [check._asdict() for check in checks],
        "signatures": [tag._asdict() for tag in signed],
    }
    say_result(found, f"{text}\n{table(('tag', 'signature'), shown)}", as_json)
    if problems:
        first = f"{problems[0].subject}: {problems[0].problem}"
        raise UserError(f"{version.name}: {len(problems)} of {len(checks)} do not verify; {first}", Exit.MISSING)
    if refused:
        raise UserError(f"{version.name}: the signature of {refused[0].tag}: {refused[0].problem}", Exit.MISSING)


@commands.command()
def promote(
    model: Annotated[
        str | None, typer.Argument(help="A version (vdm@v1.2.0, v1.2.0).", show_default="the newest")
    ] = None,
    approve: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Promote the version that waits for a person; ends a hold.")
    ] = None,
    hold: Annotated[
        str | None, typer.Option(metavar="REASON", help="Hold the champion: winners wait for a person.")
    ] = None,
    release: Annotated[bool, typer.Option("--release", help="End a hold; the next winner is promoted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if it beats the champion (parameters `evaluate:`, `promote:`), else exit 3.

    Both are evaluated on the same validation images, times and noise.  The confidence interval of their difference
    must show an improvement of more than promote.min_improvement_bpd.  If there is no champion, a version with correct
    digests and finite bits/dim becomes the champion.  A winner waits, also with exit 3, if the champion is held,
    promote.approval is `person`, or it is `few_images` and fewer than 90 images judged the winner.
    """
    if sum(map(bool, (model, approve, hold, release))) > 1:
        raise UserError("promote takes one of MODEL, --approve, --hold and --release", Exit.USAGE)
    if approve or hold or release:
        from flows.registry import promotion

        repository = project().repository
        done = promotion.approve(repository, approve) if approve else promotion.hold(repository, hold)
        say_result(done.model_dump(exclude_unset=True), f"{done.tag}: {done.reason}", as_json)
        return
    params = project().params
    registry = project().registry
    version = registry.resolve(model) if model else registry.newest()
    from flows.registry.promotion import challenge, promote

    evidence = challenge(registry, version, settings=params.evaluate, rule=params.promote)
    try:
        evidence = evidence.model_copy(update={"tag": promote(project().repository, evidence)})
    finally:
        if as_json:
            say_json(evidence.model_dump(exclude_unset=True))
    if not as_json:
        say("\n".join([f"{evidence.tag}: {evidence.reason}", *(evidence.limits or [])]))


@commands.command()
def rollback(
    hold: Annotated[
        str | None, typer.Option(metavar="REASON", help="Also hold the champion: winners wait for a person.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again; this adds a tag and removes none."""
    from flows.registry.promotion import rollback

    done = rollback(project().repository, hold)
    held = "" if done.hold else "; nothing holds it: the next winner is promoted, unless `vdmctl promote --hold REASON`"
    say_result(done.model_dump(exclude_unset=True), f"{done.tag}: {done.reason}{held}", as_json)


def row_of(version: "Version") -> dict[str, Any]:
    """Return a version as a JSON object of `vdmctl models`."""
    samples = version.samples and version.samples.model_dump()["figures"]
    row: dict[str, Any] = {
        "version": version.name,
        "stages": list(version.stages),
        "state": version.state,
        "commit": version.commit,
        "created": version.created,
    }
    row |= version.metrics.model_dump(
        include={"bpd", "bpd_standard_error", "num_images", "data_sha256", "model_sha256", "given"}
    )
    validation, ancestors = version.metrics.validation, version.metrics.ancestors
    row |= {
        "num_train": version.metrics.num_train,
        "validation_bpd": validation and validation.bpd,
        "validation_standard_error": validation and validation.bpd_standard_error,
        "ancestor": ancestors[0].model_dump() if ancestors else None,
    }
    return row | {"samples": samples} | ({"problem": version.problem} if version.problem else {})


def cells_of(version: "Version") -> tuple[str, ...]:
    """Return the cells of a row of `vdmctl models`."""
    from flows.evaluation.results import format_figure

    metrics, validation = version.metrics, version.metrics.validation
    figure = "unreadable" if version.problem else "unknown"
    if metrics.bpd is not None:
        figure = format_figure(metrics.bpd, metrics.bpd_standard_error)
        if validation and validation.bpd is not None:
            figure += f" ({format_figure(validation.bpd, validation.bpd_standard_error)})"
        figure += ", given the class" if metrics.given == "class" else ""
    data = (metrics.data_sha256 or "unknown")[:12]
    images = "unknown" if metrics.num_train is None else f"{metrics.num_train:,}"
    ancestor = metrics.ancestors[0].name if metrics.ancestors else "noise"
    line = images, ancestor
    samples = distance(version.samples)
    return version.name, version.state, figure, *line, samples, data, version.commit[:12], version.created


def distance(samples: "SampleMetrics | None") -> str:
    """Return FID or else the Frechet distance in the pipeline's features, of samples and of held-out images."""
    figures = {"fid": samples.figures.get("fid"), samples.frechet_name: samples.frechet} if samples else {}
    for name, found in figures.items():
        if found and found.samples is not None and found.held_out is not None:
            return f"{name} {found.samples:.3f} ({found.held_out:.3f})"
    return "unknown"
