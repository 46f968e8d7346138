"""The code of networks of the user's own: the folder networks/ of a project, or what a commit has of it.

A network is named `networks.FILE:Class`.  Its code is that file and the files of the folder that it imports, with
relative imports (`from .layers import Block`): each version of the code has a module name of its own, so that two of
them can be in one process.  What runs is the very text that the digest is of.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from flows.core import layout
from flows.core.errors import Exit, UserError, brief

NAME = re.compile(rf"{layout.NETWORKS}((?:\.[^\W\d]\w*)+):(\w+)")
PACKAGE = "__init__.py"


@dataclass(frozen=True)
class NetworkCode:
    """A folder with the code of networks, and what messages call it."""

    folder: Path
    name: str = f"{layout.NETWORKS}/"

    def of(self, network: str) -> "Code":
        """Return the code of a network, as it is now.  Raises UserError (exit 2) if it is missing or no Python."""
        found = NAME.fullmatch(network)
        file = f"{found[1][1:].replace('.', '/')}.py" if found else ""
        if not found or not (self.folder / file).is_file():
            reason = f"there is no network {network}, which the model needs, in {self.name}"
            advice = f"put its file into {layout.NETWORKS}/, or in Python give `load` the network"
            raise UserError(f"{reason}; {advice}", Exit.USAGE)
        files: dict[str, bytes] = {}
        pending = [self.folder / file]
        while pending:
            path = pending.pop()
            name = path.relative_to(self.folder).as_posix()
            if name in files or not path.is_file():
                continue
            try:
                files[name] = path.read_bytes()
                pending += imports_of(path, ast.parse(files[name]))
            except (OSError, SyntaxError, ValueError) as error:
                raise UserError(f"model.network: {path}: {brief(error)}", Exit.USAGE) from error
            pending += [parent / PACKAGE for parent in path.parents]
            pending = [each for each in pending if each.is_relative_to(self.folder)]
        return Code(self.folder.absolute(), files, file, found[2])


HERE = NetworkCode(layout.NETWORKS)
"""The code in the working directory."""


@dataclass(frozen=True)
class Code:
    """The files of a network's code by their paths in a folder, and among them that of its class."""

    folder: Path
    files: dict[str, bytes]
    file: str
    kind: str

    @cached_property
    def sha256(self) -> str:
        """The digest of all files."""
        digest = hashlib.sha256()
        for path, content in sorted(self.files.items()):
            digest.update(f"{path} {len(content)}\n".encode() + content)
        return digest.hexdigest()

    def module(self) -> ModuleType:
        """Return the module with the class.  Raises whatever the user's code raises."""
        package = f"{layout.NETWORKS}_{self.sha256[:16]}"
        if not any(isinstance(finder, Finder) and finder.package == package for finder in sys.meta_path):
            sys.meta_path.append(Finder(package, self))
        return import_module(f"{package}.{self.file.removesuffix('.py').replace('/', '.')}")


class Finder(SourceLoader):
    """Finds and loads the modules of one code, whose top package has the name `package`, and no others."""

    def __init__(self, package: str, code: Code) -> None:
        self.package, self.code = package, code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, *parts = fullname.split(".")
        if package != self.package:
            return None
        place, folder = "/".join([*parts[:-1], f"{parts[-1]}.py"]) if parts else "", "/".join([*parts, PACKAGE])
        if place in self.code.files:
            return spec_from_file_location(fullname, self.code.folder / place, loader=self)
        if any(name.startswith(folder.removesuffix(PACKAGE)) for name in self.code.files):
            location = self.code.folder / folder
            return spec_from_file_location(fullname, location, loader=self, submodule_search_locations=[])
        return None

    def get_filename(self, fullname: str) -> str:
        spec = self.find_spec(fullname, None)
        assert spec is not None
        assert spec.origin is not None
        return spec.origin

    def get_data(self, path: str | bytes) -> bytes:
        """Return the content of a file; that of a package without a file is empty."""
        return self.code.files.get(Path(str(path)).relative_to(self.code.folder).as_posix(), b"")


def imports_of(path: Path, tree: ast.AST) -> Iterator[Path]:
    """Yield the files that a file of networks/ may import of its folder.

    Raises UserError (exit 2) if it imports them by the folder's name, which is that of the code here.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            for folder in path.parents[node.level - 1 : node.level]:
                base = folder.joinpath(*(node.module or "").split("."))
                for place in (base, *(base / alias.name for alias in node.names)):
                    yield place.with_name(f"{place.name}.py")
                    yield place / PACKAGE
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            if any(name.partition(".")[0] == str(layout.NETWORKS) for name in modules):
                reason = "write `from .FILE import NAME`, so that each version of the code has its own files"
                raise UserError(f"model.network: {path}:{node.lineno}: {reason}", Exit.USAGE)
