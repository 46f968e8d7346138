"""A plugin of Prefect's own kind: `prefect deployment run train-vdm`, with the deployment's bare name.

Prefect asks for FLOW/DEPLOYMENT.  Where exactly one deployment has the bare name, that one is meant.  And where no
server is configured, `prefect deployment` speaks to the one that `vdmctl serve` started.  Any other command is left to
Prefect.
"""

import sys

from prefect.plugins import HookContext, SetupResult, register_hook
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.serve import SERVED, answers


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Name server and deployment.  SystemExit with one line when a bare name does not tell the deployment."""
    if sys.argv[1:2] != ["deployment"]:
        return None
    url = ctx.api_url or (SERVED if answers(SERVED) else None)
    if sys.argv[2:3] == ["run"] and len(sys.argv) > 3 and not sys.argv[3].startswith("-") and "/" not in sys.argv[3]:
        sys.argv[3] = full_name(sys.argv[3], url)
    return SetupResult(env={"PREFECT_API_URL": url}) if url else None


def full_name(name: str, url: str | None) -> str:
    """FLOW/DEPLOYMENT for a bare name.  SystemExit with one line unless exactly one deployment has it."""
    if url is None or not answers(url):
        sys.exit(f"no Prefect server at {url or SERVED}; `vdmctl serve` starts one, PREFECT_API_URL names another")
    found = full_names(name, url)
    if len(found) != 1:
        known = (
            f"{len(found)} deployments have it: {', '.join(found)}" if found else "`prefect deployment ls` lists them"
        )
        sys.exit(f"no single deployment is called {name!r}; {known}")
    return found[0]


def full_names(name: str, url: str) -> list[str]:
    """FLOW/DEPLOYMENT of every deployment of that name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
        deployments = client.read_deployments(deployment_filter=wanted)
        return sorted(f"{client.read_flow(each.flow_id).name}/{each.name}" for each in deployments)
