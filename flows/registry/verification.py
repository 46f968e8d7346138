"""Recompute every digest of a version and compare it with what its commit says.

dvc.lock lists the digests.  Code, parameters and metrics are read from git; outputs are read from DVC's cache, after
fetching the missing ones.  The sha256 of model and images that the pipeline wrote into its reports are checked, too.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flows.core import bounded_yaml, layout
from flows.core.checkpoint import load_model, model_sha256
from flows.core.documents import read
from flows.core.errors import Exit, NetworkError, UserError
from flows.core.files import scratch_folder
from flows.images.store import data_sha256
from flows.registry.git import content_of, contents, git
from flows.registry.lock_file import Lock, model_path, read_lock
from flows.registry.storage import Stored, check, dvc_repository, obtain, stated
from flows.registry.versions import Version
from flows.validation.report import Validation

# The paths as text, as in dvc.lock and git.
IMAGES, VALIDATION, METRICS, PARAMS = map(str, (layout.IMAGES, layout.VALIDATION, layout.METRICS, layout.PARAMS))
MOST_BYTES = 2**23
"""The largest file that is read from git."""
AT_ONCE = 32
"""How many files from git are in memory at once."""


class Check(NamedTuple):
    """One check: its subject, and what is wrong or ''."""

    subject: str
    problem: str


def verify(root: Path, version: Version) -> list[Check]:
    """Return every check of the version, passed or not.

    Raises UserError (exit 5) unless dvc.lock and dvc.yaml are readable; NetworkError (exit 5) when the DVC remote does
    not answer.
    """
    lock, model = read_lock(root, version), model_path(root, version)
    checks = in_git(root, version, lock)
    checks += [Check(path, "differs between stages") for path in lock.contradictions]
    keys = {IMAGES: "data_sha256", VALIDATION: "data_sha256", model: "model_sha256"}
    with dvc_repository(root) as repo:
        for path, digest in sorted(lock.cached.items()):
            checks += in_cache(repo, version, path, digest, keys.get(path))
    missing = keys.keys() - lock.outputs.keys()
    return checks + [Check(path, "dvc.lock does not list it") for path in sorted(missing)]


def in_cache(repo: Any, version: Version, path: str, digest: str, key: str | None) -> list[Check]:
    """Compare an output's files with its digest in dvc.lock, and their sha256 with `key` of the metrics, if given."""
    try:
        stored = obtain(repo, {path: digest})[path]
        for file in stored:
            check(file.cached, file, "")
    except NetworkError as error:  # nothing is known about the files, and another attempt may succeed
        raise NetworkError(f"{version.name}: {path}: {error}") from error
    except (OSError, UserError) as error:
        return [Check(path, str(error))]
    if key is None:
        return [Check(path, "")]
    try:
        same = sha256_of(path, stored, key) == stated(version, key)
        problem = "" if same else f"differs from {key} in {METRICS}"
    except (OSError, UserError) as error:
        problem = str(error)
    return [Check(path, ""), Check(f"{path} sha256", problem)]


def require_sound(root: Path, version: Version) -> None:
    """Raise UserError (exit 5) with the first check that fails."""
    for subject, problem in verify(root, version):
        if problem:
            raise UserError(f"{version.name} does not verify: {subject}: {problem}", Exit.MISSING)


def in_git(root: Path, version: Version, lock: Lock) -> list[Check]:
    """Compare code, metrics and parameters at the commit with the digests and values in dvc.lock."""
    metrics = {METRICS: ""} | dict(lock.outputs.items() - lock.cached.items())
    digests = lock.code | metrics
    folders = {path: digest.removesuffix(".dir") for path, digest in digests.items() if digest.endswith(".dir")}
    files = files_at(root, version.commit, digests.keys() - folders.keys())
    checks = [Check(path, fault(content, digests[path])) for path, content in files]
    for folder in sorted(folders):
        checks.append(Check(folder, fault(listing(root, version.commit, folder), folders[folder])))
    written = bounded_yaml.sections(content_of(root, f"{version.commit}:{PARAMS}", MOST_BYTES))
    for section, values in lock.parameters.items():
        same = written.get(section) == values
        checks.append(Check(f"{PARAMS} {section}", "" if same else "differs from the values in dvc.lock"))
    return checks


def files_at(root: Path, commit: str, paths: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
    """Yield the paths, sorted, and the files' contents at a commit as `contents` returns them."""
    ordered = sorted(paths)
    for start in range(0, len(ordered), AT_ONCE):
        part = ordered[start : start + AT_ONCE]
        found = contents(root, [f"{commit}:{path}" for path in part], MOST_BYTES)
        yield from ((path, found[f"{commit}:{path}"]) for path in part)


def listing(root: Path, commit: str, folder: str) -> bytes:
    """Return the text whose md5 is DVC's digest of a folder: the md5 and the path of every file, here at a commit.

    It differs from DVC's if the folder has links, submodules, files that .dvcignore names, or files above MOST_BYTES.
    """
    names = git(root, "ls-tree", "-r", "-z", "--name-only", commit, "--", f"{folder}/").decode(errors="replace")
    files = files_at(root, commit, filter(None, names.split("\0")))
    listed = [{"md5": hashlib.md5(file or b"").hexdigest(), "relpath": path[len(folder) + 1 :]} for path, file in files]
    return json.dumps(listed, sort_keys=True).encode()


def fault(content: bytes | None, digest: str) -> str:
    """Return what is wrong with a file at a commit, or ''."""
    if content is None:
        return "not in the commit"
    if len(content) > MOST_BYTES:
        return f"larger than {MOST_BYTES:,} bytes"
    return "" if hashlib.md5(content).hexdigest() == digest else "differs from its md5 in dvc.lock"


def sha256_of(path: str, stored: list[Stored], key: str) -> str:
    """Return the sha256 of a model, which must load, of images, or of the images that a validation report is about.

    Raises CheckpointError, OSError, and UserError (exit 5), also for a file in place of a folder.
    """
    is_file = [file.place for file in stored] == [""]
    if is_file != (path == VALIDATION):
        raise UserError("a file, not a folder" if is_file else "a folder, not a file", Exit.MISSING)
    if is_file:
        return read(Validation, stored[0].cached).data_sha256
    with scratch_folder() as scratch:
        folder = scratch / Path(path).name
        folder.mkdir()
        for file in stored:
            place = folder / file.place
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file.cached)
        if key == "data_sha256":
            return data_sha256(folder)
        load_model(folder)
        return model_sha256(folder)
