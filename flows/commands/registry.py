"""Commands of the registry: list versions, show their lineage, verify them, and change the champion.

Heavy modules are imported inside the commands.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.arguments import AsJson, parameters
from flows.core import layout
from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.process.streams import say, say_json

if TYPE_CHECKING:
    from flows.evaluation.results import SampleMetrics
    from flows.registry.versions import Version

ROOT = Path()
Model = Annotated[str, typer.Argument(help="A version (vdm@v1.2.0, v1.2.0) or `champion`.")]

commands = typer.Typer()


@commands.command()
def models(as_json: AsJson = False) -> None:
    """List the registry's versions: stage, bits/dim with its standard error, samples' distance, data, commit."""
    from flows.registry.versions import MODEL, versions

    rows = [row_of(version) for version in versions(ROOT)]
    if as_json:
        say_json({"versions": rows})
    elif not rows:
        say(f"no versions of {MODEL} yet")
    else:
        header = ("version", "stage", "bits/dim", "samples (held-out)", "data", "commit", "created")
        say(table(header, [shown(row) for row in rows]))


@commands.command()
def lineage(model: Model, as_json: AsJson = False) -> None:
    """Show the origin of a version: tag, commit, parameters, data, validation report, code, outputs, with digests."""
    from flows.registry.lineage import describe, lineage
    from flows.registry.versions import resolve

    chain = lineage(ROOT, resolve(ROOT, model))
    if as_json:
        say_json(chain.as_json())
    else:
        say(describe(chain))


@commands.command()
def verify(model: Model, as_json: AsJson = False) -> None:
    """Recompute every digest of a version: code, parameters, outputs, model, images; exit 5 if one differs."""
    from flows.registry.verification import verify
    from flows.registry.versions import resolve

    version = resolve(ROOT, model)
    checks = verify(ROOT, version)
    problems = [check for check in checks if check.problem]
    if as_json:
        listed = [check._asdict() for check in checks]
        say_json({"version": version.name, "sound": not problems, "checks": listed})
    else:
        say(table(("digest of", "result"), [(check.subject, check.problem or "agrees") for check in checks]))
    if problems:
        first = f"{problems[0].subject}: {problems[0].problem}"
        raise UserError(f"{version.name}: {len(problems)} of {len(checks)} do not verify; {first}", Exit.MISSING)


@commands.command()
def promote(
    model: Annotated[
        str | None, typer.Argument(help="A version (vdm@v1.2.0, v1.2.0).", show_default="the newest")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if it beats the champion (parameters `evaluate:`, `promote:`), else exit 3.

    Both are evaluated on the same validation images, times and noise.  The confidence interval of their difference
    must show an improvement of more than promote.min_improvement_bpd.  If there is no champion, a version with correct
    digests becomes the champion.
    """
    from flows.registry.versions import newest, resolve

    params = parameters()
    version = resolve(ROOT, model) if model else newest(ROOT)
    from flows.registry.promotion import challenge, promote

    evidence = challenge(ROOT, version, settings=params.evaluate, rule=params.promote)
    try:
        evidence = evidence.model_copy(update={"tag": promote(ROOT, version, evidence)})
    finally:
        if as_json:
            say_json(evidence.model_dump(exclude_unset=True))
    if not as_json:
        say(f"{evidence.tag}: {evidence.reason}")


@commands.command()
def rollback(as_json: AsJson = False) -> None:
    """Make the previous champion the champion again; this adds a tag and removes none."""
    from flows.registry.promotion import rollback

    done = rollback(ROOT)
    if as_json:
        say_json(done.model_dump(exclude_unset=True))
    else:
        say(f"{done.tag}: {done.reason}")


def model_folder(model: str) -> Path:
    """Return the folder of a model: fetch it if the text names a version or `champion`; else the text is the path.

    `./champion` is a folder of that name.
    """
    from flows.registry.versions import REFERENCE

    if not REFERENCE.fullmatch(model):
        return Path(model)
    from flows.registry.storage import locate

    return locate(ROOT, model)


def model_or_ours(model: str | None) -> Path:
    """Return the folder of `model`, by default models/vdm.  Raises UserError (exit 5) if that folder is missing."""
    if model:
        return model_folder(model)
    if not layout.REGISTERED.is_dir():
        raise UserError(f"{layout.REGISTERED}: no model yet; `dvc repro` trains one", Exit.MISSING)
    return layout.REGISTERED


def sample_metrics(model: str, folder: Path) -> "SampleMetrics | None":
    """Return the quality of the samples of a version, or of the model in a folder; None if it was not measured.

    That of a folder's model is known if the last samples in the working tree are of this model.
    """
    from flows.core.checkpoint import model_sha256
    from flows.core.documents import read
    from flows.evaluation.results import SampleMetrics
    from flows.registry.versions import REFERENCE, resolve

    if REFERENCE.fullmatch(model):
        return resolve(ROOT, model).samples
    if not layout.SAMPLE_METRICS.exists():
        return None
    measured = read(SampleMetrics, layout.SAMPLE_METRICS, "run `vdmctl sample`")
    return measured if measured.model_sha256 == model_sha256(folder) else None


def images_for(model: str | None) -> Path:
    """Return the image set to evaluate a model on: data/images, or if that is missing, the version's own."""
    from flows.registry.versions import REFERENCE, resolve

    images = ROOT / layout.IMAGES
    if images.exists() or not model or not REFERENCE.fullmatch(model):
        return images
    from flows.registry.storage import fetch_images

    return fetch_images(ROOT, resolve(ROOT, model))


def row_of(version: "Version") -> dict[str, Any]:
    """Return a version as a JSON object of `vdmctl models`."""
    metrics = version.metrics
    row = {
        "version": version.name,
        "stages": list(version.stages),
        "commit": version.commit,
        "created": version.created,
        "bpd": metrics.bpd,
        "bpd_standard_error": metrics.bpd_standard_error,
        "num_images": metrics.num_images,
        "data_sha256": metrics.data_sha256,
        "model_sha256": metrics.model_sha256,
        "samples": version.samples and version.samples.model_dump(include={"figures"})["figures"],
    }
    if version.problem:
        row["problem"] = version.problem
    return row


def shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row of `vdmctl models`."""
    figure = "unreadable" if "problem" in row else "unknown"
    if row["bpd"] is not None:
        figure = f"{row['bpd']:.4f}"
        if row["bpd_standard_error"] is not None:
            figure += f" +- {row['bpd_standard_error']:.4f}"
    data = (row["data_sha256"] or "unknown")[:12]
    samples = distance(row["samples"] or {})
    return row["version"], ", ".join(row["stages"]), figure, samples, data, row["commit"][:12], row["created"]


def distance(figures: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return FID or else the Frechet distance in the pipeline's features, of samples and of held-out images."""
    for name in ("fid", *figures):
        found = figures.get(name, {})
        samples, held_out = found.get("samples"), found.get("held_out")
        if name.startswith("f") and samples is not None and held_out is not None:
            return f"{name} {samples:.3f} ({held_out:.3f})"
    return "unknown"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as aligned columns of text."""
    lines = [[visible(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
