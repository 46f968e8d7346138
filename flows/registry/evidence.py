"""The document that says why a version was promoted, refused or rolled back to."""

import json

from flows.core.documents import Count, Document, Number, parse
from flows.core.errors import UserError
from flows.evaluation.results import Figure

PROMOTE, REFUSE, ROLL_BACK = "promote", "refuse", "roll back"
"""The decisions."""


class Evidence(Document):
    """The evidence in the tag of a champion or of a refused version.  Figures are in bits/dim.

    `split` names the images that decided.  Figures without `test` in their names are of these images.  `num_judged`
    counts the challengers that these validation images have judged, with this one.  Only the fields that were set are
    written: the first champion has no difference, for example.
    """

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
    split: str | None = None
    validation_sha256: str | None = None
    num_judged: Count | None = None
    min_improvement_bpd: Number | None = None
    confidence: Number | None = None
    seed: Count | None = None
    times_per_image: Count | None = None
    num_timesteps: Count | None = None
    champion_bpd: Figure = None
    champion_standard_error: Figure = None
    champion_model_sha256: str | None = None
    challenger_bpd: Figure = None
    challenger_standard_error: Figure = None
    challenger_model_sha256: str | None = None
    difference_bpd: Figure = None
    difference_standard_error: Figure = None
    given: str | None = None
    confidence_interval: list[Figure] | None = None
    num_images: Count | None = None
    champion_test_bpd: Figure = None
    champion_test_standard_error: Figure = None
    challenger_test_bpd: Figure = None
    challenger_test_standard_error: Figure = None
    tag: str | None = None

    def message(self, title: str) -> str:
        """Return the message of a tag: the title, an empty line, and the evidence as JSON."""
        return f"{title}\n\n{json.dumps(self.model_dump(exclude_unset=True), indent=2, allow_nan=False)}\n"


def evidence_of(message: str) -> Evidence | None:
    """Return the evidence in the message of a tag; None if it has none, as when it was made by hand."""
    try:
        return parse(Evidence, message.partition("\n")[2].encode(errors="replace"), "evidence")
    except UserError:
        return None
