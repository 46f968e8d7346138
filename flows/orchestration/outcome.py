"""What came of a run, and the sentence that says it."""

import re
from typing import Literal, NamedTuple

from flows.core.errors import UserError
from flows.core.files import SCRATCH
from flows.orchestration.arrivals import Arrivals
from flows.orchestration.workspace import RUN_NAME
from flows.registry.evidence import WAIT, Evidence
from flows.registry.versions import Version

State = Literal["Promoted", "Refused", "Waiting", "NothingToDo", "SourceMissing", "Drifted", "Failed", "Interrupted"]
DRIFTED: State = "Drifted"


class Drifted(UserError):
    """The images of a run differ from the champion's by more than `contract:` allows (exit 4)."""


class Release(NamedTuple):
    """A version, the branch of its run, and the evidence of the decision about it."""

    version: Version
    branch: str
    evidence: Evidence

    def __str__(self) -> str:
        tag, reason = self.evidence.tag, self.evidence.reason
        done = f"promoted as {tag}" if tag else "waiting" if self.evidence.decision == WAIT else "not promoted"
        return f"{self.version.name}, commit {self.version.commit[:12]} on branch {self.branch}, {done}: {reason}"


class Outcome(NamedTuple):
    """What came of a run: the name of its last state; its text is the run's last message."""

    state: State
    release: Release | None = None
    reason: str = ""
    """Why there is no release."""
    arrivals: Arrivals | None = None
    """Which images came and went since the newest run; None if none did, or if nobody knows."""
    damaged: str = ""
    """Which damaged files were left out."""
    odd: str = ""
    """What is said of images that came and are odd."""
    without_source: str = ""
    """That the source is not on this machine; "" if it is."""
    is_repeated: bool = False
    """Whether the images turned out to be the newest run's, so that no other stage ran."""
    costs: str = ""
    """What the run cost, with those that it repeated."""

    def released(self, release: Release) -> "Outcome":
        """Return the outcome with the decision about the run's model."""
        refused: State = "Waiting" if release.evidence.decision == WAIT else "Refused"
        return self._replace(state="Promoted" if release.evidence.tag else refused, release=release)

    def __str__(self) -> str:
        images = f"images: {self.arrivals}" if self.arrivals else ""
        said = str(self.release) if self.release else self.reason
        return "; ".join(
            part for part in (said, images, self.damaged, self.odd, self.without_source, self.costs) if part
        )


def failed(error: UserError) -> Outcome:
    """Return the outcome of a run that failed.

    Messages are gathered by its text, so the same failure of two runs has one: it says RUN for the run's name, which
    paths and branches have.  Nor does it name temporary files.
    """
    reason = re.sub(rf"{re.escape(SCRATCH)}(?!old-)\w+", f"{SCRATCH}*", RUN_NAME.sub("RUN", str(error)))
    return Outcome("Drifted" if isinstance(error, Drifted) else "Failed", reason=reason)
