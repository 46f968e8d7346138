"""Where results come from: the parameters, the preset that is most like them, and how to make them again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flows.core import bounded_yaml
from flows.core.params import PUBLISHED_FOLDER
from flows.core.params_file import preset_names, read_preset
from flows.report.words import changed


class Origin(NamedTuple):
    """Where a model comes from: its name, its parameters by section, its tags and commit, and how to make it again."""

    name: str
    parameters: Mapping[str, Any]
    lineage: Mapping[str, str]
    commands: list[str]
    preset: str = ""
    """The preset that is most like the parameters."""
    changes: Sequence[tuple[str, Any, Any]] = ()
    """The parameters that differ from the preset: name, the preset's value, and the value here."""


def origin_here(folder: Path, parameters: Mapping[str, Any]) -> Origin:
    """Return where the model in the folder comes from if this project made it with these parameters."""
    commands = [
        "git checkout COMMIT     # the commit with the digests above",
        *restoring_images(parameters),
        "make repro              # the environment, then every stage whose inputs changed",
        "vdmctl report           # says whether every output is identical to that of the commit",
        f"vdmctl evaluate {folder}    # the likelihood alone",
    ]
    return Origin(str(folder), parameters, {}, commands)


def restoring_images(parameters: Mapping[str, Any]) -> list[str]:
    """Return the commands that restore images from a `data.source`, which `make repro` would read anew."""
    if parameters.get("data", {}).get("source") in (None, PUBLISHED_FOLDER):
        return []
    dvc = ".venv/bin/dvc"
    restore = f"{dvc} checkout data/images || {dvc} pull data/images    # data.source may hold other images by now"
    return ["make .venv/installed", restore]


def beside_preset(origin: Origin) -> Origin:
    """Return the origin with the preset that differs least from its parameters, if it states those of the training."""
    found: list[tuple[int, str, list[tuple[str, Any, Any]]]] = []
    for name in preset_names() if "train" in origin.parameters else []:
        preset = bounded_yaml.parse(read_preset(name))
        differing = [change for change in changed(preset, origin.parameters) if "not set" not in change]
        found.append((len(differing), name, differing))
    if not found:
        return origin
    _, name, differing = min(found, key=lambda one: one[:2])
    return origin._replace(preset=name, changes=differing)
