"""Results as Markdown with the pictures inside, for Prefect's UI: a page there is readable from any machine."""

import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from flows.contract.findings import Findings, Result
from flows.core.documents import Document, check_value
from flows.core.errors import UserError
from flows.core.escaping import markdown
from flows.core.files import read_bounded
from flows.evaluation.figures import QUALITY, TERMS
from flows.evaluation.odd import Surprise
from flows.evaluation.results import BoundMetrics, Metrics, SampleMetrics, format_figure
from flows.process.progress import TrainingProgress
from flows.report.charts import CHARTS
from flows.report.pictures import data_uri
from flows.report.words import measures, sampler, value

MOST_CHARACTERS = 200
NAME = re.compile(r"(?<![`\w])\w+(?:@v|#\w+#)\d[\d.]*\b")
"""The name of a version or of a champion's tag."""


def report(metrics: BoundMetrics, charts: Path, samples: Path, page: Path) -> str:
    """Return the key figures of a model with its curves and samples.  `page` is the file with all of the report."""
    pictures = [(kind.title, charts / f"{name}.svg") for name, kind in CHARTS.items()]
    pictures.insert(1, ("Samples", samples))
    shown = [f"## {title}\n\n{picture(path, title)}" for title, path in pictures if path.is_file()]
    figures = table_of(("", "bits/dim"), likelihoods(metrics).items())
    return "\n\n".join([figures, *shown, where("The whole report", page)])


def headline(metrics: BoundMetrics) -> str:
    """Return the bits/dim of a model in one line."""
    images = f"{metrics.num_images:,} {metrics.split} images"
    return f"{figure(metrics.bpd, metrics.bpd_standard_error)} bits/dim on {images}"


def likelihoods(metrics: Metrics) -> dict[str, str]:
    """Return the figures of a model in bits/dim by their names; only the first if another pipeline wrote them."""
    try:
        bound = check_value(BoundMetrics, metrics.model_dump(exclude_unset=True), "metrics")
    except UserError:
        return {"test images": figure(metrics.bpd, metrics.bpd_standard_error)}
    found = {f"{bound.split} images": figure(bound.bpd, bound.bpd_standard_error)}
    for name, split in (("validation images", bound.validation), ("training images", bound.training)):
        if split:
            found[name] = figure(split.bpd, split.bpd_standard_error)
    if of := bound.classes:
        found |= {"without the class": figure(of.without.bpd, of.without.bpd_standard_error)}
    if bound.training:
        gap = figure(bound.generalisation_gap_bpd, bound.generalisation_gap_standard_error)
        found[f"{bound.split} - training images"] = gap
    return found | {f"{term.name} term": figure(getattr(bound, key)) for key, term in TERMS.items()}


def samples(metrics: SampleMetrics, drawn: Path, page: Path) -> str:
    """Return the picture `drawn` of samples, and their figures next to those of held-out images."""
    rows = [
        (
            f"{measure.name}: {measure.meaning}",
            shown.of_samples + (", may be copies" if measure.copies[0] else ""),
            shown.of_held_out,
        )
        for measure in measures(metrics)
        if (shown := measure.figures[0])
    ]
    nearer = figure(metrics.nearer_than_held_out, metrics.nearer_than_held_out_standard_error)
    copied = QUALITY["nearer_than_held_out"]
    rows.append((f"{copied.name}: {copied.meaning}", nearer, "0.5"))
    figures = table_of((f"{metrics.num_images:,} samples", "samples", "held-out images"), rows)
    how = f"Drawn in {markdown(sampler(metrics.sampler))}."
    withheld = [f"Distances, precision and recall are withheld: {metrics.withheld}."] if metrics.withheld else []
    return "\n\n".join([picture(drawn, "Samples"), how, *map(markdown, withheld), figures, where("The picture", page)])


def data_docs(found: Findings, drawn: Path, page: Path) -> str:
    """Return a table of the expectations of images, broken ones first, and the picture `drawn` of the images."""
    results = sorted(found.expectations, key=lambda result: result.success)
    rows = table_of(("expectation", "result", "observed"), map(expectation, results))
    pictures = [picture(drawn, "The images")] if drawn.is_file() else []
    about = f"Transforms of the source's pixels: {markdown(found.transforms)}."
    docs = [where("The Data Docs", page)] if page.is_file() else []
    return "\n\n".join([about, rows, *pictures, *docs])


def odd(found: Surprise, drawn: Path, page: Path, most: int) -> str:
    """Return what is said of images all together, the picture `drawn` of the oddest, and a table of them."""
    rows = [
        (
            each.file or f"image {each.number}",
            figure(each.score, form=".2f"),
            "" if each.p is None else f"{each.p:.4f}",
            each.words,
        )
        for each in found.images[:most]
    ]
    header = ("image", "score", "p", "far from usual, in standard deviations")
    said = [quote(markdown(f"{sentence}.")) for sentence in found.sentences]
    return "\n\n".join([*said, picture(drawn, "The oddest images"), table_of(header, rows), where("The page", page)])


def verdict(found: Findings) -> str:
    """Return what the contract found in one line."""
    held = sum(result.success for result in found.expectations)
    return f"{found.words}: {held} of {len(found.expectations)} expectations hold"


def expectation(result: Result) -> tuple[str, str, str]:
    """Return what was expected, whether it holds, and what was observed."""
    warns = " (warns only)" if result.severity == "warning" else ""
    observed = "" if result.observed == "as expected" else value(result.observed)
    shown = observed if len(observed) <= MOST_CHARACTERS else f"{observed[:MOST_CHARACTERS]}..."
    return result.meaning, ("holds" if result.success else "BROKEN") + warns, shown


def figure(number: float | None, error: float | None = None, form: str = ".4f") -> str:
    """Return a figure with its standard error, if there is one, such as "1.7091 ± 0.0130"."""
    return format_figure(number, error, form).replace("+-", "±")


def table_of(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells are text."""
    # A figure and its error stay on one line.
    lines = [
        [quote(markdown(cell.replace("+-", "±"))).replace(" ± ", "\xa0±\xa0") for cell in line]
        for line in (names, *rows)
    ]
    lines.insert(1, ["---"] * len(names))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quote(content: str) -> str:
    """Put names of versions between backquotes: `vdm@v1.0.0` would become a link to an e-mail address."""
    return NAME.sub(r"`\g<0>`", content)


def progress(training: TrainingProgress) -> str:
    """Return how far a training is, with its last loss, its last validation and the time left."""
    said = [f"{training.step} of {training.steps} steps"]
    if training.has_ended and training.step < training.steps:
        said.append("training ends, since validation no longer improves")
    if training.bpd is not None:
        said.append(f"{training.bpd:.4f} bits/dim")
    if training.validation_step is not None:
        error = training.validation_monte_carlo_standard_error
        said.append(f"validation {figure(training.validation_bpd, error)} at step {training.validation_step}")
    if training.seconds_left is not None and not training.has_ended:
        said.append(f"{timedelta(seconds=round(training.seconds_left))} left")
    return ", ".join(said)


def flat(document: Document, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the fields of a document that were set, and those of the documents in it, by name, with their values."""
    for name in type(document).model_fields:
        if name not in document.model_fields_set:
            continue
        inner = getattr(document, name)
        for key, one in enumerate(inner) if isinstance(inner, list) else [("", inner)]:
            label = f"{place}{name}{f' {key + 1}' if isinstance(key, int) else ''}"
            if isinstance(one, Document):
                yield from flat(one, f"{label} ")
            else:
                yield label, value(one)


def where(what: str, path: Path) -> str:
    """Return the line that says on which machine a file is."""
    return f"{what}: {markdown(path)} on {markdown(platform.node())}."


def picture(path: Path, title: str) -> str:
    """Return an SVG or PNG file as a picture."""
    return f"![{title}]({data_uri(read_bounded(path), 'png' if path.suffix == '.png' else 'svg+xml')})"
