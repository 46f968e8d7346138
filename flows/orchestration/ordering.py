"""The order in which Prefect's server looks at events for its automations: that in which they arrive.

By default it holds an event for up to 15 minutes until it has seen the one that this follows, within five minutes.  It
never sees that of a run which a schedule planned, since none is sent, nor what a server that was killed had seen.  So
nobody would hear meanwhile that a run failed, and a run that ended would be taken for a silent one.  prefect.toml names
this module.
"""

from prefect.server.events.ordering import memory
from prefect.server.events.schemas.events import ReceivedEvent


class CausalOrdering(memory.CausalOrdering):  # type: ignore[misc]
    """Prefect's own, which waits for no event."""

    async def wait_for_leader(self, event: ReceivedEvent) -> None:
        """Return at once."""
