"""Settle the environment variables of a program, which everything that it starts inherits."""

import os
import sys
from collections.abc import MutableMapping
from getpass import getuser
from pathlib import Path

# git sets these for the hooks that it runs.  They would make git use the hook's repository, index or folder.
PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
# With these OpenMP binds a program to one core when it imports torch, and so all that it starts (docs/results.md).
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def search_path() -> str:
    """Return PATH with the folder of this interpreter first, where its `python3`, `dvc` and `vdmctl` are."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def settle(environment: MutableMapping[str, str]) -> None:
    """Make git work on the current folder, name the user, and let OpenMP's threads move and sleep sooner.

    DVC needs a user name and a home folder, which a container that runs under a number of its host may not have.
    By default idle threads keep their core busy so long that two jobs on the same cores slow each other down many times
    (docs/results.md).
    """
    for name in (*PLACES, *BINDING):
        environment.pop(name, None)
    try:
        getuser()
    except (KeyError, OSError):
        environment["LOGNAME"] = str(os.getuid())
    try:
        Path.home()
    except RuntimeError:
        environment["HOME"] = "/"
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "1000")
