"""A commit of the repository: its files in git, its dvc.lock, and its outputs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flows.core import layout
from flows.core.errors import UserError
from flows.repository.lock_file import Lock, parse_lock
from flows.repository.repository import Repository

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem


class Named(Protocol):
    """What has a commit and a name: a version or a tag."""

    @property
    def name(self) -> str: ...

    @property
    def commit(self) -> str: ...


@dataclass(frozen=True)
class Commit:
    """A commit, and what messages call it: a version's name, or "the newest run"."""

    repository: Repository
    digest: str
    name: str

    def content(self, path: Path | str) -> bytes | None:
        """Return the content of a file in git; None if the commit has none.  Raises UserError (exit 5)."""
        return self.repository.content_of(f"{self.digest}:{path}")

    @cached_property
    def lock(self) -> Lock:
        """The commit's dvc.lock.  Raises UserError (exit 5)."""
        lock, graph = (
            self.repository.git("cat-file", "blob", f"{self.digest}:{path}")
            for path in (layout.DVC_LOCK, layout.DVC_GRAPH)
        )
        return parse_lock(lock, graph, f"{self.name}: {layout.DVC_LOCK} at {self.digest[:12]}")

    @contextmanager
    def files(self, *, link: bool = False, remote: bool = True) -> Iterator["DVCFileSystem"]:
        """Open the commit's files; with `link`, `get` links those in the cache and copies no bytes.

        Without `remote`, files that the cache lacks are missing.  Errors inside the block name the commit.
        """
        from dvc.api import DVCFileSystem  # DVC takes a second

        with self.repository.dvc() as repo:
            kinds = ["symlink" if link else "reflink", "copy"]
            config = repo.config | {"cache": repo.config["cache"] | {"type": kinds}}
            if not remote:
                config |= {"core": {key: value for key, value in config["core"].items() if key != "remote"}}
            try:
                yield DVCFileSystem(str(self.repository.folder), rev=self.digest, config=config)
            except UserError as error:
                raise type(error)(f"{self.name}: {error}", error.code) from error
