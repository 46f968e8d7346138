"""A project: one folder with parameters, versions, images, models and results."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.core import layout
from flows.core.documents import read_document
from flows.core.errors import Exit, UserError
from flows.registry.versions import VERSION_NAME, Registry, Version, open_registry
from flows.repository.repository import Repository

if TYPE_CHECKING:
    from torch import nn

    from flows.contract.findings import Verdict
    from flows.core.model import TrainedModel
    from flows.core.params import Params
    from flows.images.image_set import ImageSet

SECTIONS = ("data", "contract", "model", "train", "evaluate", "features", "sample", "quality")
"""The sections of params.yaml that the report shows."""


class Project:
    """A project's folder with its git repository, opened once at the door and passed along.

    The worktree of a run is one, too.

    Its registry is that of the moment when it was first asked for; what else may change is read anew.
    """

    def __init__(self, folder: Path = Path()) -> None:
        """Take a folder: the top of a repository, but for commands that need no repository."""
        self.folder = folder
        self.repository = Repository(folder)

    @classmethod
    def above(cls, folder: Path) -> "Project":
        """Return the project whose repository a folder is in.  Raises UserError (exit 5) outside a repository."""
        return cls(Path(Repository(folder).git_text("rev-parse", "--show-toplevel")))

    @property
    def params(self) -> "Params":
        """The parameters in params.yaml.  Raises UserError (exit 2) that names file and key."""
        from flows.core.params_file import read_params  # 0.1 s, which `--help` does not need

        return read_params(self.folder / layout.PARAMS)

    @property
    def shown_params(self) -> dict[str, Any]:
        """The sections of params.yaml that the report shows.  Raises UserError (exit 2)."""
        params = self.params
        return {name: getattr(params, name).model_dump() for name in SECTIONS}

    @property
    def worktrees(self) -> Path:
        """The folder with the worktrees of runs."""
        return self.folder / layout.WORKTREES

    @cached_property
    def registry(self) -> Registry:
        """The versions.  Raises UserError: exit 5 outside a git repository, 2 below its top."""
        return open_registry(self.repository)

    @property
    def images(self) -> "ImageSet":
        """The image set in data/images, opened.  Raises UserError (exit 5) if it is missing or damaged."""
        from flows.images.image_set import open_images  # numpy takes a tenth of a second

        return open_images(self.folder / layout.IMAGES)

    @property
    def verdict(self) -> "Verdict":
        """What the contract found of the images.  Raises UserError (exit 5) before `vdmctl validate`."""
        from flows.contract.findings import Verdict

        return read_document(Verdict, self.folder / layout.FINDINGS, "run `vdmctl validate`")

    def is_undecided(self, commit: str) -> bool:
        """Whether a run of this project was killed before its model, at a commit, was promoted or refused."""
        return self.repository.is_own(commit) and not open_registry(self.repository).is_decided(commit)

    def version(self, model: str) -> Version | None:
        """Return the version that a text names, as `champion` does; None for the path of a folder, as `./champion`."""
        return self.registry.resolve(model) if VERSION_NAME.fullmatch(model) else None

    def model_folder(self, model: str | None = None) -> Path:
        """Return the folder of a model, by default models/vdm.  A version is fetched.

        Raises UserError (exit 5) if the folder or the version is missing.
        """
        if model is None:
            folder = self.folder / layout.REGISTERED
            if not folder.is_dir():
                raise UserError(f"{folder}: no model yet; `dvc repro` trains one", Exit.MISSING)
            return folder
        if version := self.version(model):
            from flows.registry.fetching import fetch

            return fetch(self.repository, version)
        if not Path(model).is_dir():
            reason = "no such folder, and not a version such as vdm@v1.2.0, nor `champion`"
            raise UserError(f"{model}: {reason}; `vdmctl models` lists the versions", Exit.MISSING)
        return Path(model)

    def model(
        self, model: str | None = None, device: str = "cpu", network: "nn.Module | None" = None
    ) -> "TrainedModel":
        """Return the model that a text names, by default models/vdm, opened on the device.  A version is fetched.

        A `network` that is given by hand takes the place of what its code would make.  Raises UserError: exit 5 if the
        folder or the version is missing or damaged, 2 for a device that is missing.
        """
        from flows.core.device import find_device  # torch takes a second
        from flows.core.model import open_model
        from flows.core.network_code import NetworkCode
        from flows.registry.fetching import fetch_model

        found = find_device(device)
        if model is not None and (version := self.version(model)):
            return fetch_model(self.repository, version, found, model, network)
        source = NetworkCode(self.folder / layout.NETWORKS) if network is None else network
        return open_model(self.model_folder(model), found, model, source)
