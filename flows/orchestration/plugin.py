"""A Prefect plugin for the `prefect` command in the project's folder, which prefect.toml switches on.

It points commands to the server that `vdmctl serve` uses here, unless Prefect's settings name another.  It also lets
`prefect deployment run train-vdm` take a bare name, where Prefect wants FLOW/DEPLOYMENT, and `prefect worker start
--pool vdm` run the code of this folder.
"""

import sys
from itertools import pairwise
from pathlib import Path

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.core import layout
from flows.orchestration.runs import FLOW, POOL, environment_of_runs, worker_name
from flows.orchestration.server import find_served_url


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Complete the command, and return the server's URL and what a worker needs; None in programs that import Prefect.

    A worker gets the name and the limit of `vdmctl worker`, unless the command gives others.
    """
    words = sys.argv[1:]
    if Path(sys.argv[0]).name != "prefect" and sys.orig_argv[1:3] != ["-m", "prefect"]:
        return None
    if words[:2] == ["deployment", "run"] and words[2:] and not words[2].startswith("-") and "/" not in words[2]:
        sys.argv[3] = f"{FLOW}/{words[2]}"
    # A profile given on the command line may name a server.
    url = ctx.api_url or (None if words[:1] in (["-p"], ["--profile"]) else find_served_url(Path.cwd()))
    found = {"PREFECT_API_URL": url} if url else {}
    if words[:2] == ["worker", "start"] and names_pool(words[2:]) and layout.DEPLOYMENTS.is_file():
        found |= environment_of_runs()
        given = {word.partition("=")[0] for word in words}
        for short, option, value in (("-n", "--name", worker_name()), ("-l", "--limit", "1")):
            if not {short, option} & given:
                sys.argv += [option, value]
    return SetupResult(env=found) if found else None


def names_pool(options: list[str]) -> bool:
    """Whether the options of `prefect worker start` name the pool of the loop."""
    words = [word for option in options for word in option.split("=", 1)]
    return any(pair in (("-p", POOL), ("--pool", POOL)) for pair in pairwise(words))
