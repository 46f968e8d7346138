"""How far a training is: a document in the file that VDM_PROGRESS names, for the process that waits for it."""

import json
import os
from pathlib import Path

from flows.core.documents import Count, Document, Figure, read_document
from flows.core.errors import UserError
from flows.core.files import write_whole

FILE = "VDM_PROGRESS"
"""The environment variable with the path of the file."""


class TrainingProgress(Document):
    """The step that a training has taken, and what its log says of it."""

    step: Count
    steps: Count
    bpd: Figure = None
    """The training loss in bits/dim; None before the first line of the training log."""
    validation_bpd: Figure = None
    validation_monte_carlo_standard_error: Figure = None
    validation_step: Count | None = None
    """The step of the last validation."""
    seconds_left: Figure = None
    has_ended: bool = False
    """Whether no step follows."""


def tell(progress: TrainingProgress) -> None:
    """Write the progress if a process waits for it.  Raises OSError that names the file."""
    if file := os.environ.get(FILE):
        write_whole(Path(file), json.dumps(progress.model_dump()))


def read_progress(file: Path) -> TrainingProgress | None:
    """Return the progress in a file; None before a training has written some."""
    try:
        return read_document(TrainingProgress, file)
    except UserError:
        return None
