"""Prune a project by `vdmctl prune`, and look at what is left."""

import json
import os
import time
from pathlib import Path
from typing import Any

from champions import crown
from project import Project

from flows.registry.versions import record_refusal, resolve

WEIGHTS = ("models/vdm", "weights.safetensors")
# Names of runs.
OLD, MADE, FAILED, LEFT = (f"20250101-00000{number}-aaaa" for number in range(4))


def without_remotes(project: Project) -> Project:
    """Remove the DVC remote, refuse v1.0.0 and make v1.1.0 the champion; return the project."""
    project.dvc("remote", "remove", "store")
    refuse(project, "v1.0.0")
    crown(project, "v1.1.0")
    return project


def refuse(project: Project, reference: str) -> None:
    record_refusal(project.folder, resolve(project.folder, reference), "Refuse\n\n{}\n")


def prune(project: Project, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Prune with --keep 1; return what the command prints."""
    result = project.vdmctl("prune", "--keep=1", "--json", *arguments)
    assert result.returncode == code, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def names(found: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of what was removed, by kind, without the cached files."""
    return {kind: part["names"] for kind, part in found["removed"].items() if kind != "cached_files" and part["names"]}


def everything(project: Project) -> set[str]:
    """Return the names of all refs, and the paths of all cached and private files."""
    files = [path for name in (".dvc/cache", ".vdm") for path in (project.folder / name).rglob("*")]
    return {*project.git("for-each-ref", "--format=%(refname)").split(), *map(str, files)}


def cached_files(project: Project) -> set[Path]:
    return {path for path in (project.folder / ".dvc/cache/files").rglob("*") if path.is_file()}


def aged(path: Path, seconds: float) -> None:
    """Make a file look as if it was written some seconds ago."""
    os.utime(path, (time.time() - seconds,) * 2)
