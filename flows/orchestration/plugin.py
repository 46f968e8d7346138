"""A plugin of Prefect's own kind, for the command line in the project's folder.

Every command of Prefect's speaks to the server that `vdmctl serve` uses here, unless Prefect's settings name another:
by itself Prefect would start a temporary server, which knows the runs and cannot stop them.  And
`prefect deployment run train-vdm` takes a deployment's bare name, where Prefect asks for FLOW/DEPLOYMENT.
"""

import sys
from pathlib import Path

from prefect.plugins import HookContext, SetupResult, register_hook
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.orchestration.deployments import full_names
from flows.orchestration.serve import served_at
from flows.orchestration.server import answers

# These two set up servers and settings; they speak to none.
OWN_AFFAIRS = ("server", "config")


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Name server and deployment.  SystemExit with one line when a bare name does not identify the deployment."""
    if not is_prefect() or not (words := [place for place, word in enumerate(sys.argv) if place and word[:1] != "-"]):
        return None
    # A profile that the command line chooses may name a server.
    profile = any(option.startswith(("-p", "--profile")) for option in sys.argv[1 : words[0]])
    if profile or sys.argv[words[0]] in OWN_AFFAIRS:
        return None
    url = ctx.api_url or served_at(Path.cwd())
    if [sys.argv[place] for place in words[:2]] == ["deployment", "run"] and words[2:3] == [words[1] + 1]:
        name = sys.argv[words[2]]
        sys.argv[words[2]] = name if "/" in name else full_name(name, url)
    return SetupResult(env={"PREFECT_API_URL": url}) if url else None


def is_prefect() -> bool:
    """Return whether this program is Prefect's command line; any program that imports Prefect runs this plugin."""
    return Path(sys.argv[0]).name == "prefect" or sys.orig_argv[1:3] == ["-m", "prefect"]


def full_name(name: str, url: str | None) -> str:
    """Return FLOW/DEPLOYMENT for a bare name.  SystemExit with one line unless exactly one deployment has it."""
    if url is None:
        sys.exit(f"{Path.cwd()} is not served; `vdmctl serve` starts a server, PREFECT_API_URL names another")
    if not answers(url):
        sys.exit(f"no Prefect server answers at {url}; `vdmctl serve` starts one, PREFECT_API_URL names another")
    with temporary_settings({PREFECT_API_URL: url}):
        found = full_names(name)
    if len(found) != 1:
        known = (
            f"{len(found)} deployments have it: {', '.join(found)}" if found else "`prefect deployment ls` lists them"
        )
        sys.exit(f"no single deployment is called {name!r}; {known}")
    return found[0]
