"""The document that says why a version was promoted or refused, waits, or was rolled back to."""

import json

from pydantic import ConfigDict

from flows.core.documents import Count, Document, Number, parse
from flows.core.errors import UserError
from flows.evaluation.results import BoundMetrics, Comparison, QualityFigure
from flows.registry.costs import Costs

PROMOTE, REFUSE, WAIT, ROLL_BACK = "promote", "refuse", "wait", "roll back"
HOLD, RELEASE = "hold", "release"
"""The decisions."""


class Evidence(Document):
    """The evidence in the tag of a champion or of a refused version.  Figures are in bits/dim.

    `split` names the images that decided.  `num_judged` counts the challengers that some of these validation images
    have judged, with this one.  Only the fields that were set are written: the first champion was compared with no
    other, so it has an evaluation in place of a comparison, and two models that cannot be compared have neither.
    """

    model_config = ConfigDict(frozen=False, validate_assignment=True)  # it is gathered while the models are evaluated

    decision: str
    reason: str
    challenger: str | None = None
    challenger_commit: str | None = None
    challenger_fitted_to: str | None = None
    champion: str | None = None
    champion_tag: str | None = None
    champion_commit: str | None = None
    champion_fitted_to: str | None = None
    data_sha256: str | None = None
    data_changed: bool | None = None
    damaged: list[str] | None = None
    """The damaged files that were left out of the challenger's images."""
    split: str | None = None
    validation_sha256: str | None = None
    num_judged: Count | None = None
    champion_saw: Count | None = None
    """How many of the challenger's images of this split the champion or a model of its line is known to have seen."""
    challenger_saw: Count | None = None
    """The same of the challenger."""
    champion_unknown: list[str] | None = None
    """The models of its line whose training images are not known."""
    challenger_unknown: list[str] | None = None
    """The same of the challenger, without those of the champion's line, which favour neither."""
    num_decided: Count | None = None
    """The images that neither is known to have seen, which decided; if they are too few, none did."""
    limits: list[str] | None = None
    """What these figures cannot show."""
    min_improvement_bpd: Number | None = None
    max_frechet: Number | None = None
    """The limit of `promote.max_frechet`."""
    frechet: QualityFigure | None = None
    """The Frechet distance of the challenger's samples in the features of the pipeline, if there is a limit."""
    frechet_high: Number | None = None
    """The upper end of its confidence interval, which must not be above the limit."""
    approval: str | None = None
    """`promote.approval`: `person` if every winner waits for one, `few_images` if one that few images judged."""
    approved_by: str | None = None
    """Who approved the challenger, by the identity of git."""
    approved_at: str | None = None
    """When, in UTC."""
    hold: str | None = None
    """Why no winner is promoted without a person, if a person holds the champion."""
    rolled_back_from: str | None = None
    """The version that was the champion before the last roll-back."""
    rolled_back_comparison: Comparison | None = None
    """It and the challenger on the images that neither of them saw, which decides nothing."""
    comparison: Comparison | None = None
    """Champion and challenger on the images that decided."""
    test_comparison: Comparison | None = None
    """Both on the test images, which decide nothing unless there are no others."""
    evaluation: BoundMetrics | None = None
    """The first champion on the images that decided."""
    test_evaluation: BoundMetrics | None = None
    """It on the test images."""
    costs: Costs | None = None
    """What the run of the challenger cost until then, if a run of the loop made it just now."""
    tag: str | None = None

    @property
    def is_measured(self) -> bool:
        """Whether there are figures of the challenger."""
        return self.comparison is not None or self.evaluation is not None

    def message(self, title: str) -> str:
        """Return the message of a tag: the title, an empty line, and the evidence as JSON."""
        return f"{title}\n\n{json.dumps(self.model_dump(exclude_unset=True), indent=2, allow_nan=False)}\n"


def evidence_of(message: str) -> Evidence | None:
    """Return the evidence in the message of a tag; None if it has none, as when it was made by hand."""
    try:
        return parse(Evidence, message.partition("\n")[2].encode(errors="replace"), "evidence")
    except UserError:
        return None
