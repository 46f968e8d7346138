"""Download files: resume after a broken connection, retry after growing pauses."""

import http.client
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn
from urllib import request
from urllib.error import HTTPError, URLError

from tqdm import tqdm

from flows.core.errors import NetworkError, UserError, brief
from flows.core.escaping import visible
from flows.core.files import naming
from flows.process.locks import holder_of, lock_file

log = logging.getLogger(__name__)

BLOCK = 2**18
TIMEOUT = 60.0  # seconds without a byte
MOST_BYTES = 2**34
PAUSES = (1.0, 4.0, 15.0, 60.0)  # seconds before the second to the fifth attempt

# Client errors that may pass: a timeout, a range beyond the end (the next attempt starts over), and rate limits.
PASSING = (
    http.HTTPStatus.REQUEST_TIMEOUT,
    http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    http.HTTPStatus.TOO_EARLY,
    http.HTTPStatus.TOO_MANY_REQUESTS,
)


class TooLongError(http.client.HTTPException):
    """The server sends more than the largest possible size of the file."""


class NoFTPHandler(request.FTPHandler):
    """Refuse FTP: urllib would follow a redirect to it, as to http and https."""

    def ftp_open(self, req: request.Request) -> NoReturn:
        raise URLError("unknown url type: ftp")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from downloading into a folder while the block runs.

    Waits while another process holds the folder.  Removes the folder if the block raises nothing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_suffix(".lock")
    if other := holder_of(lock):
        log.warning("%s: waits for %s, which downloads the same files", visible(str(folder)), other)
    with lock_file(lock, f"process {os.getpid()}", wait=True):
        yield
        shutil.rmtree(folder, ignore_errors=True)


def fetch_file(
    addresses: Sequence[str], path: Path, most: int = MOST_BYTES, take: Callable[[], None] = lambda: None
) -> None:
    """Download to `path`, unless it exists, from the first address that serves the file, and call `take` to read it.

    If `take` raises UserError, the file is not the wanted one: it is deleted, and the next address is asked.  A partial
    download is kept as `path` + `.part` and resumed, also by a later run.

    Raises NetworkError (exit 5) if every address failed after every pause, refused the request, or sent another file or
    more than `most` bytes; OSError if `path` cannot be written.
    """
    if path.exists() and not take_or_delete(path, take):
        return
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    failure = "no address"
    left = list(addresses)
    for number, pause in enumerate((0.0, *PAUSES), start=1):
        time.sleep(pause if left else 0)
        for address in list(left):
            try:
                continued = True
                while continued:  # `part` may have been of another file: then ask for the whole file
                    continued = receive(address, part, most)
                    part.rename(path)
                    if not (reason := take_or_delete(path, take)):
                        return
                failure = f"{address}: {reason}"
                left.remove(address)
            except (HTTPError, http.client.HTTPException) as error:
                failure = f"{address}: {brief(error)}"
                log.info("attempt %d of %d: %s", number, 1 + len(PAUSES), visible(failure))
                if is_final(error):
                    left.remove(address)
    kept = " (what has arrived is kept)" if part.exists() else ""
    raise NetworkError(
        f"{path.name} could not be downloaded: {failure}; try again{kept}, or set data.source in params.yaml to a "
        f"folder that holds the publisher's files"
    )


def is_final(error: Exception) -> bool:
    """Whether another request would fail in the same way, as for a file that does not exist (404)."""
    if isinstance(error, HTTPError):
        return 400 <= error.code < 500 and error.code not in PASSING
    return isinstance(error, TooLongError)


def take_or_delete(path: Path, take: Callable[[], None]) -> str:
    """Call `take`.  If it refuses the file, delete the file and return the reason; else return ""."""
    try:
        take()
    except UserError as error:
        path.unlink()
        log.info("%s", visible(str(error)))
        return str(error)
    return ""


def receive(address: str, part: Path, most: int) -> bool:
    """Download the file at the address to `part`, and return whether that continued an earlier download.

    A server that does not support ranges sends the whole file.

    Raises HTTPError or HTTPException for any failure of the network or the server, including an answer that is too
    short or too long; OSError that names `part`.
    """
    have = part.stat().st_size if part.exists() else 0
    wanted = request.Request(address, headers={"User-Agent": "vdm-pipeline", "Range": f"bytes={have}-"})
    try:
        response = request.build_opener(NoFTPHandler).open(wanted, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)  # complete or too long: the next attempt starts over
        raise
    except (OSError, ValueError) as error:  # ValueError: redirected to an invalid address
        reason = str(error.reason if isinstance(error, URLError) else error)
        raise http.client.HTTPException(reason) from error
    with response:
        if response.headers.get_content_type() == "text/html":  # it must not replace what has arrived
            raise http.client.HTTPException("sends a web page")
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if resumed and begins and int(begins[1]) != have:
            part.unlink(missing_ok=True)
            raise http.client.HTTPException(f"sends {response.headers['Content-Range']}, not the requested range")
        try:
            with naming(part, part), part.open("ab" if resumed else "wb") as file:
                copy(response, file, have if resumed else 0, most, part.stem)
        except TooLongError:
            part.unlink()
            raise
    return resumed and have > 0


def copy(response: http.client.HTTPResponse, file: BinaryIO, have: int, most: int, name: str) -> None:
    """Copy the body to the file and show a progress bar.

    Raises IncompleteRead if the connection ends before the stated length, TooLongError beyond `most` bytes.
    """
    total = have + response.length if response.length is not None else None
    if stated := re.match(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", "")):
        total = int(stated[1])  # a server may send less than what was asked for
    with tqdm(initial=have, total=total, desc=name, unit="B", unit_scale=True, leave=False, disable=None) as shown:
        for block in blocks(response):
            have += len(block)
            size = max(have, total or 0)
            if size > most:
                raise TooLongError(f"sends more than {most:,} bytes, the limit")
            file.write(block)
            shown.update(len(block))
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)


def blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the body.  Raises HTTPException, never OSError, which would mean the disk."""
    try:
        while block := response.read(BLOCK):
            yield block
    except (OSError, ValueError) as error:
        raise http.client.HTTPException(str(error)) from error
