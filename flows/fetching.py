"""Files from an address: resumed where a connection broke, tried again after growing pauses."""

import http.client
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from flows.errors import NetworkError

log = logging.getLogger(__name__)

BLOCK = 2**18
TIMEOUT = 60.0  # seconds without a byte
PAUSES = (1.0, 4.0, 15.0, 60.0)  # seconds before the second to the fifth attempt


def fetch_file(addresses: Sequence[str], path: Path) -> None:
    """Download to `path` from the first address that serves the file; nothing is done when it is there already.

    What has arrived lies in `path` + `.part` and is continued from, in a later run too.  Raises NetworkError (exit 5)
    when every address has failed after every pause; OSError when `path` cannot be written.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    failure = "no address"
    for pause in (0.0, *PAUSES):
        if path.exists():
            return
        time.sleep(pause)
        for address in addresses:
            try:
                receive(address, part)
                part.rename(path)
                return
            except (URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                failure = f"{address}: {error}"
                log.info("%s", failure)
    raise NetworkError(
        f"{path.name} could not be downloaded: {failure}; try again (what has arrived is kept), or set data.source in "
        f"params.yaml to a folder that holds the publisher's files"
    )


def receive(address: str, part: Path) -> None:
    """Append to `part` what it lacks of the file at the address.  Raises what urllib does; a short answer too."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(address, headers={"User-Agent": "vdm-pipeline", "Range": f"bytes={have}-"})
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)  # complete or longer than the file: its checksum will tell, from a new start
        raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as file:
            copy(response, file, have if resumed else 0, part.stem)


def copy(response: http.client.HTTPResponse, file: BinaryIO, have: int, name: str) -> None:
    """The body, with a bar.  Raises IncompleteRead when the connection ends before the stated length."""
    total = have + response.length if response.length is not None else None
    with tqdm(
        initial=have, total=total, desc=name, unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty()
    ) as shown:
        while block := response.read(BLOCK):
            file.write(block)
            shown.update(len(block))
            have += len(block)
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)
