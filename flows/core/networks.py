"""Networks of the user's own in place of `vdm.network.NoisePredictor`: made of code in networks/, or given by hand.

A model names its network, and brings none of its code: what is made of a model from elsewhere is a class that the user
put into networks/, or nothing.
"""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules import module as registration

from flows.core.errors import Exit, UserError, brief
from flows.core.network_code import Code, NetworkCode
from vdm.model import VDM

Kind = TypeVar("Kind", bound=VDM)
NetworkSource = NetworkCode | nn.Module
"""What a network is made of: code, or a network that was given by hand, which is copied."""
SPARE, SPARE_TENSORS, SPARE_NUMBERS = 10, 1000, 2**24
"""While it is made, a network may have ten times as much as its weights, and so many tensors and numbers more."""


def new_vdm(kind: type[Kind], config: Mapping[str, Any], source: NetworkSource) -> Kind:
    """Return a VDM with the arguments in the config.json of a model.

    Raises UserError (exit 2) for a network that is not in networks/ or cannot be made; ValueError, TypeError.
    """
    if "network" not in config:
        return kind(**config)
    others = {key: value for key, value in config.items() if key not in ("network", "options")}
    if isinstance(source, nn.Module):
        return kind(**others, network=deepcopy(source))
    classes = {"classes": config["classes"]} if config.get("classes") else {}
    code = source.of(config["network"])
    return kind(**others, network=make(code, config["network"], config["options"] | classes))


def make(code: Code, name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return the network of this name, made with these options.  Raises UserError (exit 2)."""
    if str(Path.cwd()) not in sys.path:  # of a console script
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = code.module()
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"model.network: {name} cannot be imported: {brief(error)}", Exit.USAGE) from error
    kind = vars(module).get(code.kind)
    # What the file imports may be anything, and would be called with what a foreign config.json says.
    if not (isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module.__name__):
        reason = f"{code.folder / code.file} defines no torch.nn.Module {code.kind}"
        raise UserError(f"model.network: {reason}", Exit.USAGE)
    try:
        return kind(**options)
    except Exception as error:  # whatever the user's code raises
        reason = f"{name} cannot be made with model.options: {brief(error)}"
        raise UserError(f"model.network: {reason}", Exit.USAGE) from error


@contextmanager
def at_most(num_tensors: int, numbers: int) -> Iterator[None]:
    """Raise ValueError in the block once its modules register far more tensors, or larger ones, than these."""
    limits = SPARE * num_tensors + SPARE_TENSORS, SPARE * numbers + SPARE_NUMBERS
    made, thread = [0, 0], threading.get_ident()

    def count(module: nn.Module, name: str, registered: Tensor | nn.Module | None) -> None:
        if threading.get_ident() != thread:
            return
        made[0] += 1
        made[1] += registered.numel() if isinstance(registered, Tensor) else 0
        if made[0] > limits[0] or made[1] > limits[1]:
            raise ValueError(f"it becomes far larger than the {num_tensors} tensors of its weights")

    hooks = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
