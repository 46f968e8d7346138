"""Networks of the user's own in place of `vdm.network.NoisePredictor`: found by their names, and made.

A name is `networks.FILE:Class`, of a file in the folder networks/ of the project.  So a model from elsewhere makes
nothing but what the user put there.  In Python, a network that is given by hand is allowed by its own name, too.
"""

import sys
from collections.abc import Mapping
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from flows.core import layout
from flows.core.errors import Exit, UserError, brief
from vdm.model import VDM

Kind = TypeVar("Kind", bound=VDM)
IN_MEMORY: dict[str, nn.Module] = {}
"""Networks that were given by hand, by their names."""


def new_vdm(kind: type[Kind], config: Mapping[str, Any]) -> Kind:
    """Return a VDM with the arguments in the config.json of a model.

    Raises UserError (exit 2) for a network that is not in networks/ or cannot be made; ValueError, TypeError.
    """
    if "network" not in config:
        return kind(**config)
    others = {key: value for key, value in config.items() if key not in ("network", "options")}
    classes = {"classes": config["classes"]} if config.get("classes") else {}
    return kind(**others, network=network_of(config["network"], config["options"] | classes))


def network_of(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return the network of this name, made with these options.  Raises UserError (exit 2)."""
    if name in IN_MEMORY:
        return deepcopy(IN_MEMORY[name])
    module, _, kind = name.partition(":")
    file = Path(module.replace(".", "/")).with_suffix(".py")
    if file.parts[0] != str(layout.NETWORKS) or not file.is_file():
        advice = f"put its file into {layout.NETWORKS}/, or in Python give `load` the network"
        raise UserError(f"there is no network {name}, which the model needs, in this project; {advice}", Exit.USAGE)
    if str(Path.cwd()) not in sys.path:  # of a console script
        sys.path.insert(0, str(Path.cwd()))
    try:
        network = getattr(import_module(module), kind)(**options)
    except Exception as error:  # whatever the user's code raises
        reason = f"{name} cannot be made with model.options: {brief(error)}"
        raise UserError(f"model.network: {reason}", Exit.USAGE) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model.network: {name} is no torch.nn.Module", Exit.USAGE)
    return network


def remember(network: nn.Module) -> str:
    """Keep a network that was given by hand, and return its name."""
    name = f"{type(network).__module__}:{type(network).__qualname__}"
    IN_MEMORY[name] = network
    return name
