"""Find the Prefect server, check that it answers, and protect the one that `vdmctl serve` starts.

A web page open in a browser on this machine can send requests to a loopback port.  So the server asks for a CSRF token
before any change, and lets no other origin read its answers, which include the token.
"""

import base64
import ipaddress
import json
import os
import ssl
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flows.core.errors import Exit, UserError, brief

LOOPBACK, PORT = "127.0.0.1", 4200
SECONDS = 10.0
MOST_BYTES = 10_000

DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Without it, a web page that is open on this machine could start runs.
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    # In memory, the lease of a run in progress would end with the server, and some minutes later so would the run.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Relative, so that a browser on another machine uses the host from which it loaded the page.
    "PREFECT_UI_API_URL": "/api",
    # A run without a heartbeat for two minutes is marked as crashed; by default Prefect sends one every three.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # A run starts within two seconds of its command, instead of ten.
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}
"""Settings of Prefect where the environment has no value."""


class Address(NamedTuple):
    """The URL of a server's API, and the host and port at which a server started here listens."""

    url: str
    host: str
    port: int


def find_address(host: str | None, port: int | None) -> Address:
    """Return the address of the server: from host and port if one is given, else from Prefect's settings.

    Raises UserError: see `require_server` when Prefect's settings name a server on another machine; exit 2 for what
    cannot be an address, and for a host that other machines can reach when no password is set.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    given = None if host or port else settings.api.url
    url = (given or f"http://{connected(host or LOOPBACK)}:{port or PORT}/api").rstrip("/")
    try:
        parts = urlsplit(url)
        address = Address(url, host or parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except ValueError as error:
        raise UserError(f"{url}: not the address of a server: {error}", Exit.USAGE) from error
    if given and (parts.scheme == "https" or not is_loopback(address.host)):  # a server started here has no TLS
        require_server(url)
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
    bypass_proxy(address.url)
    hosts = dict.fromkeys((urlsplit(address.url).hostname, "localhost"))
    defaults = {
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{name}:{address.port}" for name in hosts),
        **DEFAULTS,
    }
    if password:
        defaults["PREFECT_API_AUTH_STRING"] = password.get_secret_value()
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    refresh_global_settings_context()


def bypass_proxy(url: str) -> None:
    """Let Prefect, in this process and its children, reach a loopback host without the proxy of the environment."""
    host = urlsplit(url).hostname or ""
    if is_loopback(host) and not urllib.request.proxy_bypass(host):
        others = urllib.request.getproxies().get("no")
        os.environ["no_proxy"] = f"{others},{host}" if others else host


def setting(name: str) -> str:
    """Return a setting of Prefect from the environment or the active profile, without Prefect's import; "" if unset."""
    if value := os.environ.get(name):
        return value
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    with suppress(OSError, ValueError, LookupError, TypeError):
        profiles = tomllib.loads(Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").read_text())
        return str(profiles["profiles"][os.environ.get("PREFECT_PROFILE") or profiles["active"]][name])
    return ""


class Refused(OSError):
    """A URL that is not HTTP, or an answer that is an error or not JSON.

    `code` is the HTTP status of an error, else 0, and `said` its text.
    """

    def __init__(self, reason: str, code: int = 0, said: str = "") -> None:
        super().__init__(reason)
        self.code, self.said = code, said


def send(
    url: str,
    path: str,
    headers: dict[str, str],
    content: bytes | None = None,
    method: str = "GET",
    seconds: float = SECONDS,
) -> tuple[Any, Message]:
    """Return the answer of the API at the URL, None if it is empty, and its headers.

    Raises Refused for an answer that is an error or not JSON, and another OSError if none comes within `seconds`.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise Refused("an address begins with http:// or https://")
    try:
        return receive(urllib.request.Request(f"{url.rstrip('/')}/{path}", content, headers, method=method), seconds)
    except (RemoteDisconnected, IncompleteRead) as error:  # the server died while it answered
        raise ConnectionError(f"the answer breaks off: {error!r}") from error
    except (HTTPException, ValueError, OverflowError) as error:
        raise Refused(brief(error)) from error


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treat a redirect as an error."""

    def redirect_request(self, *_: Any) -> None:
        """Return None: no redirect is followed."""


def receive(request: urllib.request.Request, seconds: float) -> tuple[Any, Message]:
    """Return the answer to a request, and its headers.  Raises Refused for an error, and what urllib and json raise."""
    handlers: list[urllib.request.BaseHandler] = [NoRedirects()]  # urllib would send the password to another host
    if is_loopback(urlsplit(request.full_url).hostname or ""):
        # A proxy would look for the server on the proxy's machine, and see the password.
        handlers.append(urllib.request.ProxyHandler({}))
    if request.type == "https":
        handlers.append(urllib.request.HTTPSHandler(context=certificates()))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as response:
            return json.loads(response.read() or b"null"), response.headers
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(MOST_BYTES).decode(errors="replace")
        raise Refused(f"{error.code} {error.reason}", error.code, said) from error


def certificates() -> ssl.SSLContext:
    """Return the certificates to trust: the system's, or Prefect's setting.  Raises UserError (exit 2)."""
    file = setting("PREFECT_API_SSL_CERT_FILE") or None
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # it does not name the file
        raise UserError(f"PREFECT_API_SSL_CERT_FILE: {file}: {error.strerror or error}", Exit.USAGE) from error


class Api:
    """The API of a server, for commands that must not wait for Prefect's import.  Its methods raise OSError."""

    def __init__(self, url: str, seconds: float = SECONDS) -> None:
        """Get a token for changes.  Each answer may take `seconds`."""
        self.url, self.seconds = url, seconds
        self.headers = {"Content-Type": "application/json"}
        if password := setting("PREFECT_API_AUTH_STRING"):
            self.headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
        # The server asks for a token before every POST.
        client = str(uuid.uuid4())
        try:
            token = self.get(f"csrf-token?client={client}")["token"]
            self.headers |= {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token}
        except Refused as error:  # a server without this protection has no tokens
            if error.code not in (HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY):
                raise

    def get(self, path: str) -> Any:
        """Return the answer to a GET."""
        return send(self.url, path, self.headers, seconds=self.seconds)[0]

    def ask(self, path: str, method: str = "POST", **body: Any) -> Any:
        """Return the answer to a POST, or another method, with this body; None if it is empty.

        The server refuses a change while SQLite is busy, so it is asked again for `seconds`.
        """
        content, deadline = json.dumps(body).encode(), time.monotonic() + self.seconds
        while True:
            try:
                return send(self.url, path, self.headers, content, method, self.seconds)[0]
            except Refused as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)


def require_server(url: str) -> None:
    """Raise UserError unless a Prefect server of this machine's version answers at the URL and takes the password.

    The exit code is 2 for a wrong password or version, else 5.
    """
    try:
        theirs = str(Api(url).get("admin/version"))
    except (OSError, LookupError, TypeError) as error:
        unauthorized = getattr(error, "code", None) == HTTPStatus.UNAUTHORIZED
        raise UserError(f"{url}: {refusal(error)}", Exit.USAGE if unauthorized else Exit.MISSING) from error
    ours = version("prefect")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise UserError(
            f"the server at {url} is Prefect {theirs}, and this machine has {ours}; "
            "install one version on both, such as that of requirements.lock",
            Exit.USAGE,
        )


def refusal(error: Exception) -> str:
    """Return why a server did not answer as expected, and what to do."""
    if isinstance(error, OSError) and not isinstance(error, Refused):
        reason = getattr(error, "reason", error)
        advice = "start one with `vdmctl serve` (--host lets other machines in), or set PREFECT_API_URL to another's"
        return f"no Prefect server answers ({reason}); {advice}"
    code = getattr(error, "code", 0)
    if code == HTTPStatus.UNAUTHORIZED:
        return "the server refuses the password; set PREFECT_API_AUTH_STRING=USER:PASSWORD"
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR and code != HTTPStatus.NOT_IMPLEMENTED:
        return f"the server fails ({error}); its own output says why, such as a full disk"
    advice = "correct PREFECT_API_URL, such as http://HOST:4200/api, or give `vdmctl serve` another --port"
    return f"not a Prefect server, or one of another version ({brief(error)}); {advice}"


def answers(url: str) -> bool:
    """Whether anything answers at the URL of an API; `require_server` says whether it is a server to work with."""
    try:
        send(url, "health", {}, seconds=SECONDS)
    except OSError as error:
        return isinstance(error, Refused)
    return True
