"""What a run costs: the document that its stages add to, which a run that repeats an interrupted one goes on with."""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.core import layout
from flows.core.documents import Document, Number, read_document
from flows.core.errors import UserError
from flows.core.files import write_whole

# Present if the driver of an NVIDIA card is loaded.
DRIVER = Path("/proc/driver/nvidia/version")


class Costs(Document):
    """What a version cost, with the interrupted and failed runs that its run repeated."""

    minutes: dict[str, Number]
    """By the name of the stage, and of `promote`."""
    core_hours: Number
    """The processor time of all processes."""
    card_hours: Number
    """Of `train`: its minutes times its cards; 0 on a CPU."""

    @property
    def words(self) -> str:
        """The costs in a line."""
        stages = ", ".join(f"{stage} {minutes:.1f}" for stage, minutes in self.minutes.items() if minutes >= 0.05)
        total = f"{sum(self.minutes.values()):.1f} minutes" + (f" ({stages})" if stages else "")
        cards = f", {self.card_hours:.2f} card-hours" if self.card_hours else ""
        return f"cost: {total}, {self.core_hours:.2f} core-hours{cards}"


def known_costs(folder: Path) -> Costs | None:
    """Return what the run in the folder cost so far; None if nothing is known, as in a folder that is no run's."""
    with suppress(UserError):
        return read_document(Costs, folder / layout.COSTS)
    return None


@contextmanager
def count_costs(folder: Path, stage: str, cards: int = 0) -> Iterator[None]:
    """Add what the block costs to the costs of the run in the folder, however the block ends."""
    began, used = time.monotonic(), processor_seconds()
    try:
        yield
    finally:
        before = known_costs(folder) or Costs(minutes={}, core_hours=0.0, card_hours=0.0)
        minutes = (time.monotonic() - began) / 60
        costs = Costs(
            minutes=before.minutes | {stage: before.minutes.get(stage, 0.0) + minutes},
            core_hours=before.core_hours + (processor_seconds() - used) / 3600,
            card_hours=before.card_hours + cards * minutes / 60,
        )
        with suppress(OSError):  # such as a full disk, of which the run itself says more
            write_whole((folder / layout.COSTS).resolve(), json.dumps(costs.model_dump()))  # it is a link in a run


def processor_seconds() -> float:
    """Return the processor time of this process and of the ended ones that it and they waited for."""
    used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(each.ru_utime + each.ru_stime for each in used)
