"""What a run would find: whether code, parameters or images are other than those of the newest run.

The images are looked at in the main checkout, where DVC keeps in its state which files it has hashed: an unchanged
folder costs a listing, and only changed files are read.
"""

from collections import Counter
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from dvc.fs import LocalFileSystem
from dvc_data.hashfile.build import build

from flows.core import bounded_yaml, layout
from flows.core.documents import parse
from flows.core.errors import Exit, UserError
from flows.core.files import parse_json, write_whole
from flows.core.params import CHAMPION
from flows.images.containers import packed_files
from flows.images.download import line_of
from flows.images.folder import find_images
from flows.images.image_set import (
    DESCRIPTION,
    SPLITS,
    Description,
    ImageSet,
    digests_of,
    labels_of,
    load_array,
    save_images,
    spread,
)
from flows.images.image_set import files_of as names_of
from flows.orchestration.workspace import compose_params
from flows.process.inputs import content
from flows.registry.git import content_of, git, git_lines, git_text
from flows.registry.lock_file import read_lock
from flows.registry.storage import content_in, dvc_repository, files_of
from flows.registry.versions import MODEL, REFERENCE, Tag


class Look(NamedTuple):
    """The newest run, and what differs from it."""

    source: Path
    newest: str | None
    """The commit of the newest run; None in a project without runs."""
    same_code: bool = False
    same_parameters: bool = False
    images: Literal["same", "changed", "missing", "imported"] = "changed"
    """Those of the source.  An import is looked at in the run's folder, where it is brought up to date."""
    same_preparation: bool = False
    """Whether the newest run read its images by the same code and parameters, so that its images may be compared."""

    @property
    def finds_nothing(self) -> bool:
        """Whether a run would repeat the newest one; on a machine without the source, with the recorded images."""
        return self.same_code and self.same_parameters and self.images in ("same", "missing")


class Arrived(NamedTuple):
    """How many images of a run are not among those of an earlier one, and how many of those are gone."""

    added: int
    removed: int
    since: str

    def __str__(self) -> str:
        return f"{self.added:,} added and {self.removed:,} removed since {self.since}"


def found_now(root: Path) -> dict[str, Any]:
    """Return what a run of the newest commit would find at its source, as a JSON object.

    `state` is "same", "changed", "missing" or "imported".  `since` is the newest run's version or commit.  If the
    source is a folder, and the files of that run are on this machine, `added` counts files of other names, `empty`
    those of them without a byte, at which a run fails, and `removed` the images of files that are gone, if no other
    one had them.  Raises UserError.
    """
    base = git_text(root, "rev-parse", "HEAD").strip()
    parameters = bounded_yaml.parse(compose_params(root, base, None, {}))
    source, newest = Path(str(parameters["data"]["source"])), next(iter(results(root)), None)
    counts: dict[str, int | str | None] = {"added": None, "empty": None, "removed": None, "since": None}
    if newest:
        counts["since"] = name_of(root, newest)
    # Of a set without copies, or of files with many pictures, the names do not say what is new.
    is_listed = source.is_dir() and not parameters["data"].get("without_copies") and not packed_files(source)
    if newest and source.is_absolute() and is_listed and (known := recorded_files(root, newest)):
        names = {str(parse_json(line_of(name))): name for name in find_images(source)[1]}
        new = [source / name for said, name in names.items() if said not in known]
        kept = set[bytes]().union(*(images for name, images in known.items() if name in names))
        counts["added"], counts["empty"] = len(new), sum(path.stat().st_size == 0 for path in new)
        counts["removed"] = len(set[bytes]().union(*known.values()) - kept)
        if names.keys() != known.keys():  # so that files which nobody has read yet are not hashed
            return {"source": str(source), "state": "changed", **counts}
    found = look(root, base, parameters)
    if newest and found.images == "same":
        counts |= {"added": 0, "empty": 0, "removed": 0}
    return {"source": str(source), "state": found.images, **counts}


def recorded_files(root: Path, commit: str) -> dict[str, set[bytes]]:
    """Return the digests of the images of a run, by the name of their file; {} if DVC's cache here lacks its files."""
    found: dict[str, set[bytes]] = {}
    with files_of(root, Tag("the newest run", commit), remote=False) as files, suppress(UserError, ValueError):
        for split in SPLITS:
            lines, digests = (content_in(files, place(layout.IMAGES, split)) for place in (names_of, digests_of))
            if lines and digests:
                rows = map(bytes, np.load(BytesIO(digests), allow_pickle=False))
                for line, digest in zip(lines.splitlines(), rows, strict=True):
                    found.setdefault(str(parse_json(line)), set()).add(digest)
    return found


def results(root: Path) -> list[str]:
    """Return the commits of runs and versions, newest first."""
    commit = "%(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)"
    form = f"--format={commit} %(refname:lstrip=2) %(contents:trailers:key=Run,valueonly,separator=)"
    refs = (f"refs/heads/{layout.RUN_BRANCHES}", f"refs/tags/{MODEL}@*")
    listed = git_text(root, "for-each-ref", "--sort=-version:refname", "--sort=-creatordate", form, *refs).splitlines()
    found = []
    for made, name, *run in map(str.split, listed):
        # "!" is GTO's mark of withdrawn ones.  The branch of a run that made nothing is at the commit of its start.
        if "!" not in name if name.startswith(f"{MODEL}@") else name == layout.RUN_BRANCHES + "".join(run):
            found.append(made)
    return list(dict.fromkeys(found))


def look(root: Path, base: str, parameters: dict[str, Any]) -> Look:
    """Return what differs from the newest run in the code of the commit `base`, the parameters and the images.

    Raises UserError (exit 5) for a relative source that neither git nor DVC tracks, since a run would not have it.
    """
    source = Path(str(parameters["data"]["source"]))
    newest = next(iter(results(root)), None)
    recorded = None
    if newest:
        with suppress(UserError):  # of a version that was made by hand
            recorded = read_lock(root, Tag("the newest run", newest))
    images = compared(root, base, source, newest, recorded.source if recorded else None)
    if newest is None or recorded is None:
        return Look(source, newest, images=images)
    code = [str(layout.DVC_GRAPH), *sorted(recorded.code)]
    preparing = [path for path in code if path in needed_by(root, base, "download")]
    return Look(
        source,
        newest,
        same_code=objects_at(root, base, code) == objects_at(root, newest, code),
        same_parameters=all(
            as_recorded(root, newest, parameters.get(name, {}), values) == values
            for name, values in recorded.parameters.items()
        ),
        images=images,
        same_preparation=parameters["data"] == recorded.parameters.get("data")
        and objects_at(root, base, preparing) == objects_at(root, newest, preparing),
    )


def as_recorded(root: Path, commit: str, section: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """Return a section's parameters, with what a run recorded in place of `start_from: champion`.

    The champion, or that there was none yet, is recorded by its name: another one alone is no reason to train.
    """
    if section.get("start_from") != CHAMPION:
        return section
    start = recorded.get("start_from")
    if start is None:
        before = bounded_yaml.sections(content_of(root, f"{commit}^:{layout.PARAMS}"))  # where that run began
        was_champion = before.get("train", {}).get("start_from") == CHAMPION
    else:
        was_champion = REFERENCE.fullmatch(start) is not None
    return section | {"start_from": start} if was_champion else section


def needed_by(root: Path, commit: str, stage: str) -> list[str]:
    """Return the dependencies of a stage in the graph of a commit."""
    graph = bounded_yaml.sections(content_of(root, f"{commit}:{layout.DVC_GRAPH}"))
    return [str(path) for path in graph.get("stages", {}).get(stage, {}).get("deps", [])]


def objects_at(root: Path, commit: str, paths: list[str]) -> list[str]:
    """Return git's digests of files and folders at a commit; of one that it lacks, that it is missing."""
    names = [f"{commit}:{path}" for path in paths]
    found = git(root, "cat-file", "--batch-check=%(objectname)", stdin=names).decode().splitlines()
    return [line.replace(commit, "") for line in found]


def compared(
    root: Path, base: str, source: Path, newest: str | None, recorded: tuple[str, str] | None
) -> Literal["same", "changed", "missing", "imported"]:
    """Return whether the source at a commit is as the newest run recorded it: its path and digest.  Raises UserError.

    A source that git tracks is that of the commit, whatever lies in the checkout.
    """
    if tracked := tracked_by_dvc(root, base, source):
        if tracked.get("deps"):
            return "imported"
        digest = str(tracked["outs"][0].get("md5"))
    elif not source.is_absolute():
        require_tracked(root, base, source)
        known = newest and recorded and Path(recorded[0]) == source
        same = known and objects_at(root, base, [str(source)]) == objects_at(root, str(newest), [str(source)])
        return "same" if same else "changed"
    else:
        try:
            digest = md5_of(root, source) if recorded and source.exists() else ""
        except FileNotFoundError:  # it changes now; `download` finds it at rest or fails
            return "changed"
        if not source.exists():
            return "missing"
    return "same" if recorded and (Path(recorded[0]), recorded[1]) == (source, digest) else "changed"


def tracked_by_dvc(root: Path, commit: str, source: Path) -> dict[str, Any]:
    """Return the content of the `.dvc` file of a source at a commit; {} if DVC does not track it there."""
    return {} if source.is_absolute() else bounded_yaml.sections(content_of(root, f"{commit}:{source}.dvc"))


def md5_of(root: Path, path: Path) -> str:
    """Return DVC's digest of a file or a folder.  Raises OSError."""
    with dvc_repository(root) as repo:
        _, _, found = build(repo.cache.local, str(path), LocalFileSystem(), "md5", ignore=repo.dvcignore, dry_run=True)
        return str(found.hash_info.value)


def require_tracked(root: Path, base: str, source: Path) -> None:
    """Raise UserError (exit 5) for a relative source that git does not track at a commit."""
    (found,) = git(root, "cat-file", "--batch-check", stdin=[f"{base}:{source}"]).decode().splitlines()
    if found.endswith("missing"):
        reason = f"data.source: neither git nor DVC tracks {source} in commit {base[:12]}, so a run does not have it"
        raise UserError(f"{reason}; name its absolute path, or `dvc add {source}` and commit", Exit.MISSING)


def same_images(images: ImageSet, root: Path, commit: str) -> bool:
    """Whether the images are those of an earlier run by equal code, in splits and classes, in any order."""
    # Lost, no answer, or of a version without digests.
    with suppress(UserError, ValueError, EOFError), files_of(root, Tag("an earlier run", commit)) as files:
        described = parse(Description, content_in(files, layout.IMAGES / DESCRIPTION) or b"", DESCRIPTION)
        return (described.splits, described.class_names) == (images.splits, images.class_names) and all(
            counted(*(content(place(images.folder, split)) for place in (digests_of, labels_of)))
            == counted(*(content_in(files, place(layout.IMAGES, split)) for place in (digests_of, labels_of)))
            for split in images.splits
        )
    return False


def counted(digests: bytes | None, labels: bytes | None) -> Counter[tuple[bytes, int | None]]:
    """Return how often each image of a split is there, by its digest and its label, if it has one."""
    rows = np.load(BytesIO(digests or b""), allow_pickle=False)
    numbers = np.load(BytesIO(labels), allow_pickle=False).tolist() if labels else [None] * len(rows)
    return Counter(zip(map(bytes, rows), numbers, strict=True))


def arrived(images: ImageSet, root: Path, commit: str) -> Arrived | None:
    """Return how many images of a set are new since an earlier run; None if that run kept no digests of its images."""
    ours: set[bytes] = set()
    theirs: set[bytes] = set()
    with files_of(root, Tag("an earlier run", commit)) as files:
        for split in SPLITS:
            ours |= images.digests(split) or set() if split in images.splits else set()
            if recorded := content_in(files, digests_of(layout.IMAGES, split)):
                theirs |= set(map(bytes, np.load(BytesIO(recorded), allow_pickle=False)))
    if not (ours and theirs):
        return None
    return Arrived(len(ours - theirs), len(theirs - ours), name_of(root, commit))


def write_new_images(images: ImageSet, root: Path, commit: str, most: int, out: Path) -> None:
    """Write the images of a set that an earlier run did not have, at most so many, evenly spread, as a set in `out`.

    They are its test images, with the names of their files.  Raises UserError (exit 5) if that run's cannot be read.
    """
    known: set[bytes] = set()
    with files_of(root, Tag("an earlier run", commit)) as files:
        for split in SPLITS:
            if recorded := content_in(files, digests_of(layout.IMAGES, split)):
                known |= set(map(bytes, np.load(BytesIO(recorded), allow_pickle=False)))
    places = [
        (split, number)
        for split in images.splits
        for number, digest in enumerate(load_array(digests_of(images.folder, split)))
        if bytes(digest) not in known
    ]
    chosen = [places[place] for place in spread(np.arange(len(places)), most)]
    named = {split: images.file_names(split, {number for each, number in chosen if each == split}) for split in SPLITS}
    array = np.stack([images[split][number] for split, number in chosen])
    described = {"name": images.description.name, "num_levels": images.num_levels}
    described["transforms"] = images.description.transforms
    save_images(out, {"train": array[:0], "test": array}, described)
    if all(named[split] for split, _ in chosen):
        write_whole(names_of(out, "test"), "".join(f"{line_of(named[split][number])}\n" for split, number in chosen))


def name_of(root: Path, commit: str) -> str:
    """Return the version of a commit, or if it has none, its first digits."""
    tags = git_lines(root, "tag", "--points-at", commit, "--list", f"{MODEL}@*")
    return next((name for name in tags if "!" not in name), commit[:12])
