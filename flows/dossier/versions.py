"""The results of a version: its files are fetched from git, or from DVC's cache or remote."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from flows.core import layout
from flows.core.errors import Exit, FileError, UserError
from flows.core.files import scratch_folder
from flows.dossier.origin import Origin, restore_commands
from flows.dossier.places import RESULTS
from flows.images.image_set import ImageSet
from flows.registry.evidence import HOLD, PROMOTE, RELEASE, ROLL_BACK, evidence_of
from flows.registry.fetching import fetch_files, fetch_images, fetch_model
from flows.registry.lineage import Lineage, Promotion, trace_lineage
from flows.registry.versions import Registry, Version
from flows.repository.files import DamagedVersionError
from flows.repository.tags import CHAMPION, REFUSED, WAITING

if TYPE_CHECKING:
    from flows.core.model import TrainedModel
    from flows.project.project import Project


class VersionPlace:
    """The files of a version's commit, each fetched when it is asked for."""

    def __init__(self, project: "Project", version: Version, trained: "TrainedModel | None" = None) -> None:
        """`trained` is the version's model if it is open already."""
        self.project, self.version, self.trained = project, version, trained
        self.commit = project.repository.at(version)
        self.known: dict[Path, bytes | None] = {}

    @cached_property
    def lineage(self) -> Lineage:
        """The lineage of the version.  Raises UserError (exit 5)."""
        return trace_lineage(self.project.registry, self.version)

    @contextmanager
    def file(self, name: Path) -> Iterator[Path | None]:
        """Yield a copy of a result; None if the commit lists none.  Raises UserError (exit 5) if it cannot be had."""
        content = self.content(name)
        if content is None:
            yield None
            return
        with scratch_folder() as scratch:
            copy = scratch / name.name
            copy.write_bytes(content)
            try:
                yield copy
            except FileError as error:
                raise UserError(f"{self.version.name}: {name}: {error.reason}", error.code) from error

    def content(self, name: Path) -> bytes | None:
        """Return the content of a result; None if the commit lists none.  Raises UserError (exit 5)."""
        if name not in self.known:
            content, listed = self.commit.content(name), self.commit.lock.outputs
            if content is None:
                # All at once: to open DVC takes longer than most files.
                wanted = [each for each in {*RESULTS, name} if each not in self.known and str(each) in listed]
                with scratch_folder() as scratch:
                    fetch_files(self.project.repository, self.version, sorted(map(str, wanted)), scratch)
                    self.known |= {each: (scratch / each).read_bytes() for each in wanted}
            elif hashlib.md5(content).hexdigest() != listed.get(str(name)):
                raise DamagedVersionError(f"{self.version.name}: {name} differs from its md5 in {layout.DVC_LOCK}")
            self.known.setdefault(name, content)
        return self.known[name]

    def missing(self, name: Path) -> UserError:
        """Return the error that the version has no such result."""
        problem = self.version.problem if name == layout.METRICS else ""
        reason = problem or f"its {layout.DVC_LOCK} does not list {name}"
        return UserError(f"{self.version.name}: {reason}", Exit.MISSING)

    def origin(self) -> Origin:
        """Return the tags, the commit and the parameters of the version, and how to make it again."""
        chain = self.lineage
        rows = {"version": chain.version, "registered": chain.created, "commit": chain.commit}
        decisions = {f"{describe_decision(each)}, {each.tag}": each.created for each in chain.promotions}
        commands = [
            f"git checkout {chain.version}",
            *restore_commands(chain.parameters),
            "make repro",
            f"vdmctl verify {chain.version}    # recomputes every digest",
            f"vdmctl evaluate {chain.version}  # the likelihood alone",
        ]
        return Origin(chain.version, chain.parameters, rows | decisions, commands)

    def images(self) -> ImageSet | None:
        """Return the version's images, if it has any.  Raises UserError (exit 5) if they cannot be had."""
        return (
            fetch_images(self.project.repository, self.version)
            if str(layout.IMAGES) in self.commit.lock.outputs
            else None
        )

    def model(self) -> "TrainedModel | None":
        """Return the version's model, if it has one.  Raises UserError (exit 5) if it cannot be had."""
        if self.trained is None and str(layout.REGISTERED) in self.commit.lock.outputs:
            self.trained = fetch_model(self.project.repository, self.version)
        return self.trained

    def versions(self) -> pd.DataFrame:
        """Return all versions, with their numbers of training images, figures of validation images and ancestors."""
        return table_versions(self.project.registry)

    def notes(self) -> list[str]:
        """Return sentences about a version that waits, a champion that is held, and what its judges cannot see."""
        found, registry = [], self.project.registry
        name = self.version.name
        if registry.waiting_tag and registry.waiting_tag.commit == self.version.commit:
            found.append(f"{name} waits for a person: `vdmctl promote --approve {name}` makes it the champion.")
        if registry.hold:
            found.append(f"Promotions are held: {registry.hold}; `vdmctl promote --release` ends this.")
        decided = [tag for tag in registry.tags if tag.stage in (CHAMPION, REFUSED, WAITING)]
        said = (evidence_of(tag.message) for tag in reversed(decided) if tag.commit == self.version.commit)
        compared = next((each for each in said if each and each.comparison and each.limits), None)
        if compared and compared.comparison:
            judges = f"{compared.comparison.num_images:,} {compared.split} images"
            found.append(f"{name} was judged by {judges}. {' '.join(compared.limits or ())}")
        return found


def describe_decision(made: Promotion) -> str:
    """Return what a tag of a champion did with its version."""
    if "!" in made.tag:
        return "withdrawn"
    decision = made.evidence.decision if made.evidence.model_fields_set else PROMOTE  # by hand
    return {ROLL_BACK: "champion again", HOLD: "held", RELEASE: "released"}.get(decision, "promoted")


def table_versions(registry: Registry) -> pd.DataFrame:
    """Return the versions with their numbers of training images, their figures of validation images and ancestors."""
    rows = [
        {
            "version": version.name,
            "state": version.state,
            "num_train": version.metrics.num_train,
            "bpd": version.metrics.validation and version.metrics.validation.bpd,
            "standard_error": version.metrics.validation and version.metrics.validation.bpd_standard_error,
            "ancestor": version.metrics.ancestors[0].name if version.metrics.ancestors else "noise",
        }
        for version in registry.versions
    ]
    return pd.DataFrame(rows).astype({"num_train": float, "bpd": float, "standard_error": float})
