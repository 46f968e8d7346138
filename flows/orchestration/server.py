"""Where the Prefect server is, who may reach it, and which `vdmctl serve` or `vdmctl worker` has this folder.

prefect.toml has the server's settings.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from flows.core import layout
from flows.core.errors import Exit, UserError, brief
from flows.process.addresses import is_loopback, reachable_host
from flows.process.locks import Holder, folder_of_devices, holder_of, lock_file

LOOPBACK, PORT = "127.0.0.1", 4200
SECONDS = 10.0
"""How long an answer may take."""


class Address(NamedTuple):
    """The URL of a server's API, and the host and port at which a server started here listens."""

    url: str
    host: str
    port: int


class ServerError(UserError):
    """Why the server at a URL cannot be used, and how to go on: its `reason`, which does not name the URL again."""

    def __init__(self, reason: str, code: Exit, url: str = "") -> None:
        super().__init__(f"{url}: {reason}" if url else reason, code)
        self.reason = reason


def find_address(host: str | None, port: int | None) -> Address:
    """Return the address of the server: from host and port if one is given, else from Prefect's settings.

    Raises UserError (exit 2) for a host that other machines can reach when no password is set.
    """
    settings = get_current_settings()
    if host and not is_loopback(host) and not settings.server.api.auth_string:
        raise UserError(
            f"--host {host} lets other machines in; set PREFECT_SERVER_API_AUTH_STRING=USER:PASSWORD, and in other "
            f"shells PREFECT_API_AUTH_STRING to the same",
            Exit.USAGE,
        )
    if host or port or not settings.api.url:
        host, port = host or LOOPBACK, port or PORT
        url = httpx.URL(scheme="http", host=reachable_host(host), port=port, path="/api")
        return Address(str(url), host, port)
    url = httpx.URL(settings.api.url)
    return Address(settings.api.url.rstrip("/"), url.host, url.port or 80)


def configure(url: str) -> None:
    """Let Prefect in this process, and in those that it starts, use the server at the URL and its password."""
    if password := get_current_settings().server.api.auth_string:
        os.environ.setdefault("PREFECT_API_AUTH_STRING", password.get_secret_value())
    # The plugin is for the command line.
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_CLI_PROMPT": "false", "PREFECT_PLUGINS_ENABLED": "false"}
    refresh_global_settings_context()


@contextmanager
def connect(url: str) -> Iterator[SyncPrefectClient]:
    """Yield a client of the server at `url`, to which Prefect was configured.

    Raises ServerError if no server of this version answers, or if an answer is an error: exit 2 for a wrong password,
    else 5.
    """
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": SECONDS}) as client:
            client.raise_for_api_version_mismatch()
            yield client
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == HTTPStatus.UNAUTHORIZED:
            advice = "set PREFECT_API_AUTH_STRING=USER:PASSWORD"
            raise ServerError(f"the server refuses the password; {advice}", Exit.USAGE, url) from error
        reason = brief(error.__cause__ or error)
        advice = "start one with `vdmctl serve`, or set PREFECT_API_URL to another's"
        said = f"no Prefect server of this version answers ({reason}); {advice}"
        raise ServerError(said, Exit.MISSING, url) from error


def answers() -> bool:
    """Whether anything answers at the URL to which Prefect was configured."""
    with get_client(sync_client=True, httpx_settings={"timeout": SECONDS}) as client:
        return not isinstance(client.api_healthcheck(), httpx.TransportError)


def require_project() -> None:
    """Raise UserError (exit 2) unless the working directory is a project's folder."""
    if not layout.DEPLOYMENTS.is_file():
        raise UserError(f"{Path.cwd()} has no {layout.DEPLOYMENTS}; change to the project's folder", Exit.USAGE)


@contextmanager
def lock_folder(url: str) -> Iterator[None]:
    """Hold the folder's lock.  Raises UserError (exit 6) when `vdmctl serve` or `vdmctl worker` holds it."""
    lock = folder_lock(Path.cwd())
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_file(lock, Holder(process=os.getpid(), url=url)) as other:
        if other is not None:
            raise UserError(f"{other} serves {Path.cwd()} already; stop it first", Exit.BUSY)
        yield


def folder_lock(folder: Path) -> Path:
    """Return the file of the lock of a served folder, outside of it: somebody may delete what git does not know."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return folder_of_devices() / "served" / f"{name}.lock"


def find_served_url(folder: Path) -> str | None:
    """Return the URL of the API that `vdmctl serve` uses in the folder; None if the folder is not served."""
    holder = holder_of(folder_lock(folder))
    return holder.url if holder else None


@contextmanager
def lock_database() -> Iterator[None]:
    """Hold the lock of Prefect's home: two servers on one database would schedule every run twice.

    Raises UserError (exit 6) when another `vdmctl serve` holds it.
    """
    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    with lock_file(home / "vdm-serve.lock", Holder(process=os.getpid(), folder=str(Path.cwd()))) as other:
        if other is not None:
            own = f"`PREFECT_HOME={Path.cwd() / layout.PRIVATE / 'prefect'} vdmctl serve --port N`"
            reason = f"{other} serves with Prefect's database in {home} already"
            raise UserError(f"{reason}; {own} serves this folder, too", Exit.BUSY)
        yield
