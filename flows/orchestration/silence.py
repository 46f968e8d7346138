"""What nobody would notice since nothing fails: a source that is gone, and pictures or runs that no longer come."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from flows.images.folder import find_images
from flows.orchestration.answers import Status
from flows.orchestration.files import Silence
from flows.orchestration.runs import POOL


def are_elsewhere(workers: Iterable[str]) -> bool:
    """Whether one of these workers is on another machine, which may have the source; see `runs.worker_name`."""
    return any(not name.startswith(f"{socket.gethostname()}:") for name in workers)


def is_source_gone() -> bool:
    """Whether a source that this machine lacks is gone for all workers that are online at Prefect's server."""
    with suppress(ObjectNotFound), get_client(sync_client=True) as client:  # no pool: the run has no worker
        client.read_work_pool(POOL)  # without a pool, the next call raises another error
        workers = client.read_workers_for_work_pool(POOL)
        return not are_elsewhere(worker.name for worker in workers if worker.status.value == "ONLINE")
    return True


def silences(limits: Silence, found: Status, now: datetime) -> Iterator[str]:
    """Yield a line for a source that is gone, and for a newest run and a newest picture that are older than allowed.

    `found` is what `vdmctl status` found.  Raises UserError for a source that holds no pictures, if they should come.
    """
    server, images = found.server, found.images
    online = [worker.name for worker in server.workers if worker.status == "ONLINE"]
    if images.state == "missing" and images.since and not are_elsewhere(online):
        seen = f"{images.source}, which {images.since} was made of"
        yield f"{seen}, is on no machine with a worker that is online; bring it back, or name another data.source"
    if limits.run_days is not None and server.answers:
        last = server.last_run
        ended = datetime.fromisoformat(last.ended) if last and last.ended else None
        if ended is None or now - ended > timedelta(days=limits.run_days):
            when = f"ended at {last.ended}" if last else "is not known to the server"
            yield f"the newest run {when}, and silence.run_days of prefect.yaml is {limits.run_days:g}"
    if limits.picture_days is not None and images.source and (source := Path(images.source)).exists():
        listed = find_images(source)
        written = max((listed.folder / name).stat().st_mtime for name in listed.names)
        newest = datetime.fromtimestamp(written, UTC)
        if now - newest > timedelta(days=limits.picture_days):
            when = newest.isoformat(timespec="seconds")
            limit = f"silence.picture_days of prefect.yaml is {limits.picture_days:g}"
            yield f"{source}: its newest picture is of {when}, and {limit}; does whatever brings pictures run?"
