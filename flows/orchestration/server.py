"""Where the Prefect server is, whether it answers, and what closes the one that `vdmctl serve` starts.

A web page that is open on the machine can send requests to a loopback port.  So the server asks for a CSRF token before
any change, and lets no other origin read its answers, the token among them.
"""

import ipaddress
import os
import urllib.error
import urllib.request
from typing import NamedTuple
from urllib.parse import urlsplit

from flows.core.errors import Exit, UserError

LOOPBACK, PORT = "127.0.0.1", 4200
SERVED = f"http://{LOOPBACK}:{PORT}/api"


class Address(NamedTuple):
    """A server's API, and where it listens if it is started here."""

    url: str
    host: str
    port: int


def find_address(host: str | None, port: int | None) -> Address:
    """Return the server's address: Prefect's own setting, unless host or port are given.

    Raises UserError: exit 5 when Prefect's setting names another machine's server and it does not answer, 2 for a host
    that lets other machines in without a password.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    given = None if host or port else settings.api.url
    parts = urlsplit(given or f"http://{connected(host or LOOPBACK)}:{port or PORT}/api")
    address = Address(parts.geturl(), host or parts.hostname or LOOPBACK, parts.port or PORT)
    if given and not is_loopback(address.host) and not answers(given):
        raise UserError(f"no Prefect server answers at {given}, which is Prefect's api.url", Exit.MISSING)
    if host and not is_loopback(host) and not settings.server.api.auth_string:
        raise UserError(
            f"--host {host} lets other machines in; set PREFECT_SERVER_API_AUTH_STRING=USER:PASSWORD, and in other "
            f"shells PREFECT_API_AUTH_STRING to the same",
            Exit.USAGE,
        )
    return address


def connected(host: str) -> str:
    """Return the host that reaches a server which listens at `host`, as a URL writes it."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the host; a name other than localhost counts as reachable by others."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def configure(address: Address) -> None:
    """Set Prefect's settings in the environment, for this process and those that it starts.

    A setting that the environment has already stays as it is.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    password = get_current_settings().server.api.auth_string
    os.environ |= {
        "PREFECT_API_URL": address.url,
        "PREFECT_CLI_PROMPT": "false",
        # The plugin is for the command line; in a run's event loop it would only leave a traceback in the log.
        "PREFECT_PLUGINS_ENABLED": "false",
    }
    hosts = dict.fromkeys((urlsplit(address.url).hostname, "localhost"))
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}:{address.port}" for name in hosts),
        # Relative: a browser on another machine finds the API where it found the page.
        "PREFECT_UI_API_URL": "/api",
        # Without heartbeats a run whose process was killed would stay "running" for ever.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    if password:
        defaults["PREFECT_API_AUTH_STRING"] = password.get_secret_value()
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    refresh_global_settings_context()


def answers(url: str) -> bool:
    """Return whether a Prefect server is there."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=3):
            return True
    except (OSError, urllib.error.URLError, ValueError):
        return False
