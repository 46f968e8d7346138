"""Where results come from: the parameters, and how to make them again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flows.core.params import PUBLISHED_FOLDER


class Origin(NamedTuple):
    """Where a model comes from: its name, its parameters by section, its tags and commit, and how to make it again."""

    name: str
    parameters: Mapping[str, Any]
    lineage: Mapping[str, str]
    commands: list[str]


def origin_here(folder: Path, parameters: Mapping[str, Any]) -> Origin:
    """Return where the model in the folder comes from if this project made it with these parameters."""
    commands = [
        "git checkout COMMIT     # the commit with the digests above",
        *restore_commands(parameters),
        "make repro              # the environment, then every stage whose inputs changed",
        "vdmctl report           # says whether every output is identical to that of the commit",
        f"vdmctl evaluate {folder}    # the likelihood alone",
    ]
    return Origin(str(folder), parameters, {}, commands)


def restore_commands(parameters: Mapping[str, Any]) -> list[str]:
    """Return the commands that restore images from a `data.source`, which `make repro` would read anew."""
    if parameters.get("data", {}).get("source", PUBLISHED_FOLDER) == PUBLISHED_FOLDER:
        return []
    dvc = ".venv/bin/dvc"
    restore = f"{dvc} checkout data/images || {dvc} pull data/images    # data.source may hold other images by now"
    return ["make .venv/installed", restore]
