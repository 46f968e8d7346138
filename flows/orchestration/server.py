"""Find the Prefect server, check that it answers, and protect the one that `vdmctl serve` starts.

A web page open in a browser on this machine can send requests to a loopback port.  So the server asks for a CSRF token
before any change, and lets no other origin read its answers, which include the token.
"""

import ipaddress
import os
import urllib.error
import urllib.request
from typing import NamedTuple
from urllib.parse import urlsplit

from flows.core.errors import Exit, UserError

LOOPBACK, PORT = "127.0.0.1", 4200


class Address(NamedTuple):
    """The URL of a server's API, and the host and port at which a server started here listens."""

    url: str
    host: str
    port: int


def find_address(host: str | None, port: int | None) -> Address:
    """Return the address of the server: from host and port if one is given, else from Prefect's settings.

    Raises UserError: exit 5 when Prefect's settings name a server on another machine that does not answer, 2 for a host
    that other machines can reach when no password is set.
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
    """Return the host, as written in a URL, at which a client reaches a server that listens at `host`."""
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host.  False for every host name other than localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def configure(address: Address) -> None:
    """Set Prefect's settings in the environment, for this process and its children.

    URL, prompt and plugins are always set; the other settings only where the environment has no value.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    password = get_current_settings().server.api.auth_string
    os.environ |= {
        "PREFECT_API_URL": address.url,
        "PREFECT_CLI_PROMPT": "false",
        # The plugin is for the command line; in a run's event loop it only logs a traceback.
        "PREFECT_PLUGINS_ENABLED": "false",
    }
    hosts = dict.fromkeys((urlsplit(address.url).hostname, "localhost"))
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}:{address.port}" for name in hosts),
        # Relative, so that a browser on another machine uses the host from which it loaded the page.
        "PREFECT_UI_API_URL": "/api",
        # Without heartbeats nobody would notice that the process of a run was killed.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    if password:
        defaults["PREFECT_API_AUTH_STRING"] = password.get_secret_value()
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    refresh_global_settings_context()


def answers(url: str) -> bool:
    """Whether a Prefect server answers at the URL of its API."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=3):
            return True
    except (OSError, urllib.error.URLError, ValueError):
        return False
