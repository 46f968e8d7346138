"""A Prefect plugin for the `prefect` command in the project's folder.

It points commands to the server that `vdmctl serve` uses here, unless Prefect's settings name another.  Without it
Prefect would start a temporary server, which lists the runs but cannot stop them.  It also lets
`prefect deployment run train-vdm` take a bare name, where Prefect wants FLOW/DEPLOYMENT.
"""

import sys
from pathlib import Path

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.core.errors import UserError
from flows.core.escaping import visible
from flows.orchestration.deployments import by_full_name
from flows.orchestration.server import Api, bypass_proxy, refusal, require_server
from flows.orchestration.workers import served_at

WITHOUT_SERVER = ("server", "config")
"""Commands that need no server."""


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Set the server, and complete a bare deployment name.  Raises SystemExit; see `full_name`."""
    places = [place for place, word in enumerate(sys.argv) if place and not word.startswith("-")]
    if not is_prefect() or not places:
        return None
    # A profile given on the command line may name a server.
    profile = any(option.startswith(("-p", "--profile")) for option in sys.argv[1 : places[0]])
    if profile or sys.argv[places[0]] in WITHOUT_SERVER:
        return None
    url = ctx.api_url or served_at(Path.cwd())
    if url:
        bypass_proxy(url)
    # No option may lie between `deployment run` and the name: the word after an option can be its value.
    if [sys.argv[place] for place in places[:2]] == ["deployment", "run"] and places[2:3] == [places[1] + 1]:
        name = sys.argv[places[2]]
        sys.argv[places[2]] = name if "/" in name else full_name(name, url)
    return SetupResult(env={"PREFECT_API_URL": url}) if url else None


def is_prefect() -> bool:
    """Whether this program is the `prefect` command; other programs that import Prefect load this plugin, too."""
    return Path(sys.argv[0]).name == "prefect" or sys.orig_argv[1:3] == ["-m", "prefect"]


def full_name(name: str, url: str | None) -> str:
    """Return FLOW/DEPLOYMENT for a bare name.  Raises SystemExit, with one line, unless one deployment has the name."""
    if url is None:
        advice = "start a server with `vdmctl serve`, or set PREFECT_API_URL to one's address"
        sys.exit(f"{Path.cwd()} is not served; {advice}")
    try:
        require_server(url)
        found = sorted(by_full_name(Api(url), name))
    except UserError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(visible(f"{url}: {refusal(error)}"))
    if len(found) != 1:
        known = "`prefect deployment ls` lists them"
        if found:
            known = f"{len(found)} deployments have it: {', '.join(found)}"
        sys.exit(visible(f"no single deployment is called {name!r}; {known}"))
    return found[0]
