"""Types of the benchmarks' options, and their errors."""

import argparse
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from flows.core.errors import UserError

PEER_NEEDS = {"accelerate": "accelerate", "ema_pytorch": "ema-pytorch", "torchinfo": "torchinfo", "yaml": "pyyaml"}
"""The packages of the peer: the names of their modules, and those to install."""


def positive(text: str) -> int:
    """Parse an integer of at least 1.  Raises ArgumentTypeError."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def duration(text: str) -> float:
    """Parse a finite duration of at least 0.  Raises ArgumentTypeError."""
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number from 0, got {text}")
    return number


def picture(text: str) -> Path:
    """Parse the path of a picture that can be written at the end.  Raises ArgumentTypeError."""
    path = Path(text)
    if path.suffix not in (".png", ".svg") or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a .png or .svg file in a folder that exists, got {text}")
    return path


def own_environment(**variables: str) -> dict[str, str]:
    """Return the environment with these variables, and without those that lead to an operator's server or database."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "VDM_"))}
    return others | variables


def require_peer(folder: Path) -> None:
    """Raise ValueError unless the folder is a checkout of the peer, and the packages that it needs are installed."""
    if not (folder / "vdm_unet.py").is_file():
        raise ValueError(f"--peer {folder} is not a checkout of the peer: it has no vdm_unet.py")
    if missing := [name for module, name in PEER_NEEDS.items() if not find_spec(module)]:
        raise ValueError(f"the peer needs packages that are not installed: `pip install {' '.join(missing)}`")


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option of all benchmarks, --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


@contextmanager
def explained(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turn a UserError or ValueError in the block into a usage error of the parser (exit 2)."""
    try:
        yield
    except (UserError, ValueError) as error:
        parser.error(str(error))
