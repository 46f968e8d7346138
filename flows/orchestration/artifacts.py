"""Show a run in Prefect's UI: progress, metrics, samples, report, model card, Data Docs, and promotion."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.contract.findings import Findings
from flows.core import layout
from flows.core.documents import read_document
from flows.core.errors import brief
from flows.evaluation.odd import Surprise
from flows.evaluation.results import BoundMetrics, Metrics, SampleMetrics
from flows.images.image_set import Chosen, ImageSet
from flows.process.progress import read_progress
from flows.registry.evidence import Evidence
from flows.report import markdown
from flows.report.odd import picture_of

EVERY_SECONDS = 5.0
MOST_ODD = 12


@contextmanager
def dispensable() -> Iterator[None]:
    """Log a warning if an artifact cannot be made, whatever Prefect's client raises: the run matters more."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("an artifact is missing in Prefect's UI, and the run goes on: %s", brief(error))


class ProgressBar:
    """The progress bar of a training in the run's folder, which follows the document that the training writes."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / layout.PROGRESS
        self.artifact: Any = None
        self.shown = -EVERY_SECONDS

    def look(self) -> None:
        """Update the bar and its description at most every EVERY_SECONDS, and at the end."""
        progress = read_progress(self.file)
        if progress is None or (time.monotonic() - self.shown < EVERY_SECONDS and not progress.has_ended):
            return
        percent = 100.0 if progress.has_ended else 100 * progress.step / progress.steps
        with dispensable():
            if self.artifact:
                update_progress_artifact(self.artifact, percent, markdown.progress(progress))
            else:
                self.artifact = create_progress_artifact(
                    percent, key="training", description=markdown.progress(progress)
                )
        self.shown = time.monotonic()


def show_data_docs(folder: Path, kept: Path) -> Path:
    """Show what the contract found of the images of the run in `folder`, if that is known.

    Copy its Data Docs to `kept`, and return the page of the copy.  Findings that were restored have no Data Docs.
    """
    copy = kept / "data_docs"
    page = copy / "index.html"
    if not (folder / layout.FINDINGS).is_file():
        return page
    if (folder / layout.DATA_DOCS).is_dir():
        shutil.copytree(folder / layout.DATA_DOCS, copy, dirs_exist_ok=True)
    findings = read_document(Findings, folder / layout.FINDINGS)
    drawn = folder / layout.FINDINGS.with_name("findings.png")
    show("data-docs", f"The images are {markdown.verdict(findings)}", markdown.data_docs(findings, drawn, page))
    return page


def show_results(folder: Path, kept: Path) -> None:
    """Show the samples, the report and the model card of the run in `folder`.

    They are copied to `kept`, where the Data Docs are, since the run's folder is removed at its end.
    """
    kept.mkdir(parents=True, exist_ok=True)
    for made, name in ((layout.CARD, "card.md"), (layout.SAMPLES, "samples.png"), (layout.PAGE, "report.html")):
        shutil.copyfile(folder / made, kept / name)
    drawn = folder / layout.SAMPLES
    quality = read_document(SampleMetrics, folder / layout.SAMPLE_METRICS)
    show("samples", f"{quality.num_images:,} samples", markdown.samples(quality, drawn, kept / "samples.png"))
    metrics = read_document(BoundMetrics, folder / layout.METRICS)
    content = markdown.report(metrics, folder / layout.PICTURES, drawn, kept / "report.html")
    show("report", markdown.headline(metrics), content)
    show("model-card", markdown.headline(metrics), (kept / "card.md").read_text(encoding="utf-8"))


def show_odd(found: Surprise, images: ImageSet, page: Path, kept: Path) -> Path:
    """Show the new images of a run that are oddest to the champion; return the copy of the page in `kept`."""
    kept.mkdir(parents=True, exist_ok=True)
    copy, drawn = kept / "odd.html", kept / "odd.png"
    shutil.copyfile(page, copy)
    drawn.write_bytes(picture_of(found, Chosen(images, "test"), MOST_ODD))
    description = found.sentences[0] if found.sentences else "How odd the new images are"
    show("odd", markdown.quote(description), markdown.odd(found, drawn, copy, MOST_ODD))
    return copy


def show_metrics(models: dict[str, Metrics], evidence: Evidence) -> None:
    """Show a table with a column of metrics in bits/dim per model, and the decision about the champion."""
    figures = {name: markdown.likelihoods(metrics) for name, metrics in models.items()}
    rows = dict.fromkeys(row for found in figures.values() for row in found)
    table = [{"bits/dim": row, **{name: found.get(row, "") for name, found in figures.items()}} for row in rows]
    show_table("metrics", decision(evidence), table)


def show_evidence(evidence: Evidence) -> None:
    """Show a table of everything that a decision about the champion rests on, in bits/dim."""
    table = [{"evidence": name.replace("_", " "), "": value} for name, value in markdown.flat(evidence)]
    show_table("evidence", decision(evidence), table)


def decision(evidence: Evidence) -> str:
    """Return a decision about the champion in one line."""
    tag = f" as {evidence.tag}" if evidence.tag else ""
    return markdown.quote(f"{evidence.decision}{tag}: {evidence.reason}")


def show(key: str, description: str, content: str) -> None:
    """Show a page in Markdown."""
    with dispensable():
        create_markdown_artifact(content, key=key, description=description)


def show_table(key: str, description: str, table: list[dict[str, str]]) -> None:
    """Show a table, given by its rows."""
    with dispensable():
        create_table_artifact(table, key=key, description=description)
