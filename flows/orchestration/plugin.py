"""A Prefect plugin for the `prefect` command in the project's folder, which prefect.toml switches on.

It points commands to the server that `vdmctl serve` uses here, unless Prefect's settings name another.  It also lets
`prefect deployment run train-vdm` take a bare name, where Prefect wants FLOW/DEPLOYMENT.
"""

import sys
from pathlib import Path

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.orchestration.runs import FLOW
from flows.orchestration.server import find_served_url


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Complete a bare deployment name, and return the server's URL; None in other programs that import Prefect."""
    words = sys.argv[1:]
    if Path(sys.argv[0]).name != "prefect" and sys.orig_argv[1:3] != ["-m", "prefect"]:
        return None
    if words[:2] == ["deployment", "run"] and words[2:] and not words[2].startswith("-") and "/" not in words[2]:
        sys.argv[3] = f"{FLOW}/{words[2]}"
    # A profile given on the command line may name a server.
    url = ctx.api_url or (None if words[:1] in (["-p"], ["--profile"]) else find_served_url(Path.cwd()))
    return SetupResult(env={"PREFECT_API_URL": url}) if url else None
