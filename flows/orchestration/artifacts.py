"""Show a run in Prefect's UI: progress, metrics, samples, and links to the report, the card and the Data Docs."""

import base64
import re
import shutil
import time
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.core import layout
from flows.core.documents import read
from flows.core.files import read_bounded, write_whole, writing_folder
from flows.core.params import read_params
from flows.evaluation.results import Metrics, SampleMetrics, with_error
from flows.registry.evidence import Evidence

EVERY_SECONDS = 5.0
STEP = re.compile(r"step (\d+): (.*)")
VALIDATION = re.compile(r"validation [^,]+")


class Progress:
    """The progress bar of a training run, which follows the lines of its log."""

    def __init__(self, folder: Path) -> None:
        self.steps = read_params(folder / layout.PARAMS).train.steps
        self.artifact: Any = create_progress_artifact(0.0, key="training", description=f"0 of {self.steps} steps")
        self.shown = 0.0
        self.validation = ""

    def read(self, line: str) -> None:
        """Update the bar if the line of the log names a step, at most every EVERY_SECONDS.

        The description has the last validation, too.
        """
        found = STEP.match(line.strip())
        if found and (validation := VALIDATION.search(found[2])):
            self.validation = f"; {validation[0]} at step {found[1]}"
        if found and (time.monotonic() - self.shown > EVERY_SECONDS or int(found[1]) == self.steps):
            description = f"{found[1]} of {self.steps} steps: {found[2]}{self.validation}"
            update_progress_artifact(self.artifact, 100 * int(found[1]) / self.steps, description)
            self.shown = time.monotonic()


def show_results(folder: Path, kept: Path) -> None:
    """Show the samples, and links to the report, the model card and the Data Docs, of the run in `folder`.

    They are copied to `kept`, since the run's folder is removed at its end.
    """
    with writing_folder(kept) as whole:
        shutil.copytree(folder / layout.DATA_DOCS, whole / "data_docs")
        shutil.copyfile(folder / layout.CARD, whole / "card.md")
        shutil.copyfile(folder / layout.SAMPLES, whole / "samples.png")
        shutil.copyfile(folder / layout.PAGE, whole / "report.html")
    samples = kept / "samples.png"
    picture = base64.b64encode(samples.read_bytes()).decode()
    create_image_artifact(f"data:image/png;base64,{picture}", key="samples", description=f"Samples: {samples}")
    show_quality(read(SampleMetrics, folder / layout.SAMPLE_METRICS))
    create_link_artifact((kept / "report.html").as_uri(), key="report", link_text="report")
    create_link_artifact((kept / "card.md").as_uri(), key="model-card", link_text="model card")
    create_link_artifact((kept / "data_docs/index.html").as_uri(), key="data-docs", link_text="Data Docs")


def show_quality(metrics: SampleMetrics) -> None:
    """Show a table of the samples' figures beside those of held-out images."""
    table = [
        {"figure": name, "samples": figure.of_samples, "held-out images": figure.of_held_out}
        for name, figure in metrics.figures.items()
    ]
    nearer = with_error(metrics.nearer_than_held_out, metrics.nearer_than_held_out_standard_error)
    table.append({"figure": "nearer to a training image", "samples": nearer, "held-out images": "0.5 by definition"})
    create_table_artifact(table, key="samples-quality", description=f"{metrics.num_images} samples")


def show_evidence(evidence: Path, kept: Path) -> None:
    """Copy the evidence of a decision about the champion to the folder `kept`, and show a link to it."""
    copy = kept / "evidence.json"
    write_whole(copy, read_bounded(evidence))
    create_link_artifact(copy.as_uri(), key="evidence", link_text="evidence")


def show_metrics(models: dict[str, Metrics], evidence: Evidence) -> None:
    """Show a table with a column of metrics in bits/dim per model, and the decision about the champion."""
    figures = {name: metrics.model_dump(exclude_unset=True) for name, metrics in models.items()}
    rows = [key for key in next(iter(figures.values())) if key.endswith(("bpd", "error"))]
    table = [{"bits/dim": key, **{name: values.get(key) for name, values in figures.items()}} for key in rows]
    create_table_artifact(table, key="metrics", description=f"{evidence.decision}: {evidence.reason}")
