"""A plugin of Prefect's own kind: `prefect deployment run train-vdm`, with the deployment's bare name.

Prefect asks for FLOW/DEPLOYMENT.  Where exactly one deployment has the bare name, that one is meant.  Any other
command, and a server that does not answer, is left to Prefect.
"""

import sys

from prefect.plugins import HookContext, register_hook


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Complete the name on the command line.  SystemExit with one line when no or several deployments have it."""
    if sys.argv[1:3] != ["deployment", "run"] or len(sys.argv) < 4 or not ctx.api_url:
        return
    name = sys.argv[3]
    if "/" in name or name.startswith("-"):
        return
    found = full_names(name)
    if found is None:
        return
    if len(found) != 1:
        known = (
            f"{len(found)} deployments have it: {', '.join(found)}" if found else "`prefect deployment ls` lists them"
        )
        sys.exit(f"no single deployment is called {name!r}; {known}")
    sys.argv[3] = found[0]


def full_names(name: str) -> list[str] | None:
    """FLOW/DEPLOYMENT of every deployment of that name; None when the server cannot be asked."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    try:
        with get_client(sync_client=True) as client:
            wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
            deployments = client.read_deployments(deployment_filter=wanted)
            return sorted(f"{client.read_flow(each.flow_id).name}/{each.name}" for each in deployments)
    except Exception:  # whatever it is, Prefect's own command says it better
        return None
