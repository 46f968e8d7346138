"""Where DVC or git finds the images that `data.source` names, and whether they are still the same."""

import contextlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from dvc.exceptions import CheckoutError, DvcException
from dvc.fs import LocalFileSystem
from dvc_data.hashfile.build import build

from flows.core import bounded_yaml
from flows.core.errors import Exit, UserError, remote_error
from flows.repository.commit import Commit
from flows.repository.repository import Repository

SourceState = Literal["same", "changed", "missing", "imported"]


def compare_source(repository: Repository, base: str, source: Path, earlier: Commit | None) -> SourceState:
    """Return whether the source at the commit `base` is as an earlier commit recorded it: its path and digest.

    A source that git tracks is that of the commit, whatever lies in the checkout.  An import is "imported": it is
    compared where it is brought up to date.  Raises UserError (exit 5) for a relative source that neither git nor DVC
    tracks, since a run would not have it.
    """
    recorded = None
    if earlier:
        with suppress(UserError):  # of a version that was made by hand
            recorded = earlier.lock.source
    if tracked := read_dvc_file(repository, base, source):
        if tracked.get("deps"):
            return "imported"
        digest = str(tracked["outs"][0].get("md5"))
    elif not source.is_absolute():
        require_tracked(repository, base, source)
        if earlier is None or recorded is None or Path(recorded[0]) != source:
            return "changed"
        here, there = (repository.objects(commit, [str(source)]) for commit in (base, earlier.digest))
        return "same" if here == there else "changed"
    else:
        try:
            digest = md5_of(repository, source) if recorded and source.exists() else ""
        except FileNotFoundError:  # it changes now; `download` finds it at rest or fails
            return "changed"
        if not source.exists():
            return "missing"
    return "same" if recorded and (Path(recorded[0]), recorded[1]) == (source, digest) else "changed"


def read_dvc_file(repository: Repository, commit: str, source: Path) -> dict[str, Any]:
    """Return the content of the `.dvc` file of a source at a commit; {} if DVC does not track it there."""
    return {} if source.is_absolute() else bounded_yaml.sections(repository.content_of(f"{commit}:{source}.dvc"))


def md5_of(repository: Repository, path: Path) -> str:
    """Return DVC's digest of a file or a folder.  Raises OSError.

    The main checkout is asked, where DVC keeps in its state which files it has hashed: an unchanged folder costs a
    listing, and only changed files are read.
    """
    with repository.dvc() as repo:
        _, _, found = build(repo.cache.local, str(path), LocalFileSystem(), "md5", ignore=repo.dvcignore, dry_run=True)
        return str(found.hash_info.value)


def require_tracked(repository: Repository, base: str, source: Path) -> None:
    """Raise UserError (exit 5) for a relative source that git does not track at a commit."""
    (found,) = repository.git("cat-file", "--batch-check", stdin=[f"{base}:{source}"]).decode().splitlines()
    if found.endswith("missing"):
        reason = f"data.source: neither git nor DVC tracks {source} in commit {base[:12]}, so a run does not have it"
        raise UserError(f"{reason}; name its absolute path, or `dvc add {source}` and commit", Exit.MISSING)


def is_tracked(run: Repository, source: Path) -> bool:
    """Whether a source consists of files of the project that DVC tracks: by `dvc import-url` or `dvc add`."""
    return not source.is_absolute() and (run.folder / f"{source}.dvc").is_file()


def update_import(run: Repository, source: Path, earlier: Commit | None) -> None:
    """Bring the import of a source up to date in the run's folder, from where an earlier run left it.

    Thus nothing is downloaded if nothing changed since.  An import from elsewhere, which is newer, stays.
    Raises NetworkError (exit 5) if where it comes from does not answer.
    """
    file = run.folder / f"{source}.dvc"
    left = earlier.content(f"{source}.dvc") if earlier else None
    if left and origin(left) == origin(file.read_bytes()):
        file.write_bytes(left)
    with contextlib.chdir(run.folder), run.dvc() as repo:
        try:
            repo.update([str(file.relative_to(run.folder))])
        except Exception as error:  # each kind of remote raises its own errors
            raise remote_error(f"{source} cannot be brought up to date", error) from error
    run.git_text("add", "--all")


def origin(import_file: bytes) -> list[Any]:
    """Return from where a `.dvc` file imports, without what was found there; [] if it is no import."""
    found = bounded_yaml.sections(import_file).get("deps", [])
    return [(each.get("path"), each.get("fs_config"), each.get("repo", {}).get("url")) for each in found]


def check_out_source(run: Repository, source: Path) -> None:
    """Check out a source that `dvc add` made files of the project.

    Raises UserError (exit 5) if it is neither in DVC's cache nor in its remote, NetworkError if that does not answer.
    """
    target = f"{source}.dvc"
    with contextlib.chdir(run.folder), run.dvc() as repo:
        with suppress(CheckoutError):
            repo.checkout([target], force=True)
            return
        try:
            repo.fetch([target])
            repo.checkout([target], force=True)
        except DvcException as error:
            reason = f"data.source: not all files of {source} are in DVC's cache or its default remote"
            raise UserError(f"{reason}; `dvc push {target}` where they are", Exit.MISSING) from error
        except Exception as error:  # each kind of remote raises its own errors
            raise remote_error(f"data.source: {source} cannot be fetched", error) from error
