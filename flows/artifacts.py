"""What an operator sees of a run in Prefect: progress, metrics, samples, and links to the card and the Data Docs."""

import base64
import json
import re
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

from flows.params import read_params

EVERY_SECONDS = 5.0
STEP = re.compile(r"step (\d+): (.*)")


class Progress:
    """The bar of a training run, moved on by the lines of its log."""

    def __init__(self, folder: Path) -> None:
        self.steps = read_params(folder / "params.yaml").train.steps
        self.artifact: Any = create_progress_artifact(0.0, key="training", description=f"0 of {self.steps} steps")
        self.shown = 0.0

    def read(self, line: str) -> None:
        """Take in a line of the log."""
        found = STEP.match(line.strip())
        if found and (time.monotonic() - self.shown > EVERY_SECONDS or int(found[1]) == self.steps):
            description = f"{found[1]} of {self.steps} steps: {found[2]}"
            update_progress_artifact(self.artifact, 100 * int(found[1]) / self.steps, description)
            self.shown = time.monotonic()


def show_results(folder: Path) -> None:
    """The samples as an image, and links to the model card and the Data Docs of the run in `folder`."""
    picture = base64.b64encode((folder / "reports/samples/samples.png").read_bytes()).decode()
    create_image_artifact(f"data:image/png;base64,{picture}", key="samples", description="Samples of the model")
    for key, path in (("model-card", "models/vdm/README.md"), ("data-docs", "reports/validation/data_docs/index.html")):
        create_link_artifact((folder / path).as_uri(), key=key, link_text=path)


def show_metrics(models: dict[str, Path]) -> None:
    """A table of the metrics.json files in `models`, a column each."""
    columns = {name: json.loads(path.read_bytes()) for name, path in models.items()}
    rows = [key for key in next(iter(columns.values())) if key.endswith("bpd") or key.endswith("error")]
    table = [{"bits/dim": key, **{name: column.get(key) for name, column in columns.items()}} for key in rows]
    create_table_artifact(table, key="metrics", description="Metrics in bits/dim")
