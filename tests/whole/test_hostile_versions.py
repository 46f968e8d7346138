"""Versions with forged documents: nothing is written outside its folder, and one line says what is wrong."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import METRICS, Forge
from project import one_line

from flows.commands.registry import row_of, shown
from flows.commands.summary import table
from flows.core.errors import Exit, UserError
from flows.core.params_file import read_params
from flows.evaluation.results import Metrics
from flows.orchestration.workspace import alike, finished, require_contained, workspace
from flows.registry.lineage import describe, lineage
from flows.registry.lock_file import model_path, read_lock
from flows.registry.promotion import challenge
from flows.registry.pruning import make_plan, published
from flows.registry.publishing import fetch_versions, publish
from flows.registry.remote import remote_refs
from flows.registry.storage import fetch, stated
from flows.registry.verification import verify
from flows.registry.versions import Version, add_version, is_decided, make_champion, record_refusal, resolve, versions

DEEP = "[" * 500 + "]" * 500


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """Return a repository with one valid version, v1.0.0."""
    forge = Forge(tmp_path_factory.mktemp("forge"))
    forge.version("v1.0.0")
    return forge


@pytest.fixture
def forge(sound: Forge, tmp_path: Path) -> Forge:
    """Return a copy of that repository that the test may change."""
    return sound.copy(tmp_path / "forge")


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def use(forge: Forge, name: str) -> dict[str, Exit | None]:
    """Do everything that can be done with a version; return the exit code of each refusal, None if it was accepted."""
    root, outcome = forge.project.folder, {}
    params = read_params(root / "params.yaml")
    uses: dict[str, Callable[[], object]] = {
        "fetch": lambda: fetch(root, resolve(root, name)),
        "verify": lambda: [check for check in verify(root, resolve(root, name)) if check.problem] or None,
        "promote": lambda: challenge(root, resolve(root, name), settings=params.evaluate, rule=params.promote),
        "publish": lambda: publish(root),
    }
    for title, call in uses.items():
        outcome[title] = None
        try:
            if call() and title == "verify":
                outcome[title] = Exit.MISSING
        except UserError as error:
            outcome[title] = error.code if len(str(error)) < 500 else Exit.BUG
    return outcome


def test_a_sound_version_can_be_used(forge: Forge) -> None:
    assert use(forge, "vdm@v1.0.0") == dict.fromkeys(("fetch", "verify", "promote", "publish"))
    assert forge.project.published() == ["refs/tags/vdm@v1.0.0"]


def entry(forge: Forge, **changes: Any) -> bytes:
    """Return a listing of the model's files and one more, changed entry."""
    added = {"md5": forge.store(b"hostile"), "relpath": "more"} | changes
    return json.dumps([*forge.listing("models/vdm"), added]).encode()


@pytest.mark.parametrize(
    "listing",
    [
        lambda forge: entry(forge, relpath="../../escaped"),
        lambda forge: entry(forge, relpath=f"{forge.folder}/escaped"),
        lambda forge: entry(forge, relpath="a/../../../escaped"),
        lambda forge: entry(forge, relpath="a\0b"),
        lambda forge: entry(forge, relpath="a\nb"),
        lambda forge: entry(forge, relpath="x" * 300),
        lambda forge: entry(forge, relpath=""),
        lambda forge: entry(forge, relpath=["a"]),
        lambda forge: entry(forge, relpath="config.json"),
        lambda forge: entry(forge, relpath="config.json/a"),
        lambda forge: entry(forge, md5="../../../../escaped"),
        lambda forge: entry(forge, md5="ab/../../../../escaped"),
        lambda forge: entry(forge, md5=forge.store(b"[]", ".dir")),
        lambda forge: entry(forge, md5=1),
        lambda forge: b'{"relpath": "a", "md5": "b"}',
        lambda forge: b'[{"relpath": "a"}]',
        lambda forge: DEEP.encode(),
        lambda forge: b"[" * 100_000,
        lambda forge: b"\xff",
    ],
)
def test_a_hostile_listing_is_refused_wherever_it_is_read(listing: Callable[[Forge], bytes], forge: Forge) -> None:
    """The listing is only in the remote, so that DVC reads it first."""
    name = forge.version("v1.1.0", lock=forge.lock(listing(forge)))
    before = files_below(forge.folder)
    outcome = use(forge, name)
    assert outcome == dict.fromkeys(("fetch", "verify", "promote", "publish"), Exit.MISSING)
    assert forge.project.published() == ["refs/tags/vdm@v1.0.0"]  # only the hostile version is left
    new = files_below(forge.folder) - before
    ours = [forge.project.folder / name for name in (".dvc/cache", ".dvc/tmp", ".git")] + [forge.git]
    assert [path for path in new if not any(path.is_relative_to(folder) for folder in ours)] == []


def test_unreadable_metrics_are_not_said_to_lack_a_digest() -> None:
    version = Version("vdm@v1.0.0", "c", "", "", (), Metrics(), f"{METRICS}: damaged: bpd: wrong")
    with pytest.raises(UserError, match="damaged: bpd: wrong"):
        stated(version, "model_sha256")
    with pytest.raises(UserError, match=r"metrics.json at its commit does not state data_sha256"):
        stated(version._replace(problem=""), "data_sha256")


@pytest.mark.parametrize("command", [["evaluate"], ["verify"], ["promote"]])
def test_a_hostile_listing_is_one_line_on_the_command_line(command: list[str], forge: Forge) -> None:
    name = forge.version("v1.1.0", lock=forge.lock(entry(forge, relpath="../../../../escaped")))
    result = forge.vdmctl(*command, name)
    assert result.returncode == 5, result.stderr
    assert "relpath" in one_line(result)
    assert list(forge.folder.rglob("escaped")) == []


def test_a_run_checks_no_hostile_version_out(forge: Forge) -> None:
    """A run looks for versions with its parameters.  Here the hostile listing is already in the cache."""
    root, git = forge.project.folder, forge.project.git
    hostile = forge.version("v1.1.0", lock=forge.lock(entry(forge, relpath="../../../../escaped")))
    shutil.copytree(forge.remote / "files", root / ".dvc/cache/files")
    require_contained(root, git("rev-parse", "vdm@v1.0.0^{commit}").strip(), "HEAD", shared=False)
    with pytest.raises(UserError, match="relpath"):
        require_contained(root, git("rev-parse", f"{hostile}^{{commit}}").strip(), "HEAD", shared=False)
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports" / "data_docs").symlink_to(forge.folder)
    git("add", "--force", "reports/data_docs")
    git("commit", "--quiet", "--message=Link")
    with pytest.raises(UserError, match="has links among its reports"):
        require_contained(root, git("rev-parse", "HEAD").strip(), "HEAD", shared=False)


def changed(forge: Forge, **changes: Any) -> str:
    """Return a dvc.lock whose first output is changed."""
    lock = forge.lock()
    lock["stages"]["all"]["outs"][0] |= changes
    return json.dumps(lock)


@pytest.mark.parametrize(
    "lock",
    [
        lambda forge: changed(forge, path="../models"),
        lambda forge: changed(forge, path="/models"),
        lambda forge: changed(forge, path="data/images"),
        lambda forge: changed(forge, path="data"),
        lambda forge: changed(forge, path="a\nHEAD:params.yaml"),
        lambda forge: changed(forge, md5="../../../../etc/passwd"),
        lambda forge: changed(forge, md5=None),
        lambda forge: changed(forge, files=[{"relpath": "../../../escaped", "md5": "0" * 32}]),
        lambda forge: '{"stages": []}',
        lambda forge: '{"stages": {"a": {"params": {"params.yaml": 3}}}}',
        lambda forge: '{"stages": {"a": {"params": {"params.yaml": {"train": 2020-01-01}}}}}',
        lambda forge: '{"stages": {"a": {"params": {"params.yaml": {"train": .nan}}}}}',
        lambda forge: '{"stages": {"a": {"params": {"params.yaml": {"train": 1' + "0" * 400 + "}}}}}",
        lambda forge: '{"stages": {"a": {"params": {"params.yaml": {"train": "\\ud800"}}}}}',
        lambda forge: "stages: &a\n  b: *a\n",
        lambda forge: f"stages: {DEEP}",
        lambda forge: "#" * 2**20,
        lambda forge: "",
        lambda forge: b"\xff\xfe\x00",
    ],
)
def test_a_hostile_lock_is_one_line(lock: Callable[[Forge], str | bytes], forge: Forge) -> None:
    name = forge.version("v1.1.0", {"dvc.lock": lock(forge)})
    root = forge.project.folder
    for call in (lineage, read_lock, verify, fetch):
        with pytest.raises(UserError, match=r"vdm@v1.1.0: dvc.lock at .*: damaged: ") as raised:
            call(root, resolve(root, name))
        assert raised.value.code is Exit.MISSING
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize("output", ["models/vdm", "data/images"])
def test_a_file_in_place_of_a_folder_does_not_verify(output: str, forge: Forge) -> None:
    lock = forge.lock()
    (entry,) = [entry for entry in lock["stages"]["all"]["outs"] if entry["path"] == output]
    entry["md5"] = forge.store(b"a file")
    root, name = forge.project.folder, forge.version("v1.1.0", lock=lock)
    checks = {check.subject: check.problem for check in verify(root, resolve(root, name))}
    assert checks[f"{output} sha256"] == "a file, not a folder"


def test_a_page_needs_metrics_in_the_lock(forge: Forge) -> None:
    name = forge.version("v1.1.0", {METRICS: "{}"})  # dvc.lock lists metrics only if `version` wrote them itself
    result = forge.vdmctl("report", name, "--out", "page.html")
    assert result.returncode == 5
    assert f"{name}: its dvc.lock does not list {METRICS}" in one_line(result)


def test_names_of_tags_with_other_line_breaks_break_nothing(forge: Forge) -> None:
    """Git refuses a line feed in the name of a ref, and accepts these."""
    root, ours = forge.project.folder, "vdm#champion#1\u2029x"
    names = {"vdm@v1.1.0\u2028", "vdm@\x85x", ours}  # the others are no versions
    for name in names:
        forge.project.git("tag", "--annotate", "--message=x", name, "HEAD")
    assert set(publish(root)) == {"vdm@v1.0.0", ours}
    assert make_plan(root, 1, published(root)).refs == []
    forge.project.git("tag", "--delete", *names)
    assert fetch_versions(root) == ([ours], [])


@pytest.mark.parametrize(
    "graph",
    ['{"artifacts": {"vdm": {"path": "../up"}}}', '{"artifacts": {"vdm": 3}}', "artifacts: {}", "[]", "a: !b c"],
)
def test_a_hostile_graph_is_one_line(graph: str, forge: Forge) -> None:
    name = forge.version("v1.1.0", {"dvc.yaml": graph})
    with pytest.raises(UserError, match=r"vdm@v1.1.0: ") as raised:
        model_path(forge.project.folder, resolve(forge.project.folder, name))
    assert raised.value.code is Exit.MISSING


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"bpd": "low"}',
        b'{"bpd": NaN}',
        b'{"bpd": 1' + b"0" * 400 + b"}",
        b'{"bpd": 2.0, "more": "\\ud800"}',
        b'{"bpd": 2.0, "more": ' + DEEP.encode() + b"}",
        b'{"bpd": 2.0, "data_sha256": 3}',
        b'{"bpd": 2.0, "data_sha256": "../../x"}',
        b'{"bpd": 2.0, "bpd_standard_error": []}',
        b'{"bpd": 2.0, "more": "' + b"x" * 2**20 + b'"}',
    ],
)
def test_unreadable_metrics_are_a_row_that_says_so(content: bytes, forge: Forge) -> None:
    name = forge.version("v1.1.0", {METRICS: content})
    rows = [row_of(version) for version in versions(forge.project.folder)]
    assert [row["version"] for row in rows] == ["vdm@v1.0.0", name]
    assert (rows[0]["bpd"], rows[1]["bpd"], rows[1]["data_sha256"]) == (2.0, None, None)
    assert rows[0].keys() == rows[1].keys() - {"problem"}
    assert METRICS in rows[1]["problem"]
    assert "unreadable" in table(("version", *"abcde"), [shown(row) for row in rows])
    root = forge.project.folder
    json.dumps(lineage(root, resolve(root, name)).as_json(), allow_nan=False)
    assert [check.subject for check in verify(root, resolve(root, name)) if check.problem]
    with pytest.raises(UserError, match=METRICS) as raised:
        fetch(root, resolve(root, name))
    assert raised.value.code is Exit.MISSING
    forge.write("other", "x")
    forge.project.git("add", "--all")
    forge.project.git("commit", "--quiet", "--message=Another")
    with pytest.raises(UserError, match=METRICS):
        add_version(root, "HEAD", "Unreadable")


def test_models_lists_the_others_on_the_command_line(forge: Forge) -> None:
    forge.version("v1.1.0", {METRICS: b'{"bpd": ' + DEEP.encode() + b"}"})
    result = forge.vdmctl("models", "--json")
    assert result.returncode == 0, result.stderr
    assert [row["bpd"] for row in json.loads(result.stdout)["versions"]] == [2.0, None]
    assert "unreadable" in forge.vdmctl("models").stdout
    refused = forge.vdmctl("evaluate", "v1.1.0")
    assert refused.returncode == 5
    assert one_line(refused) == f"vdmctl: vdm@v1.1.0: {METRICS}: damaged: nested too deeply"


EVIDENCE = b'Promote\n\n{"decision": "x", "reason": "y"}'


@pytest.mark.parametrize(
    ("date", "message"),
    [
        ("soon", EVIDENCE),
        ("99999999999999999999 +9999", EVIDENCE),
        ("999999999999 +0000", EVIDENCE),
        ("1 +9999", EVIDENCE),
        ("-5 +0000", EVIDENCE),
        ("1 +0000", b"\xff\xfe latin"),
        ("1 +0000", b"Promote\n\n" + DEEP.encode()),
        ("1 +0000", b"Promote\n\n" + b"[" * 100_000),
        ("1 +0000", b'Promote\n\n{"decision": 3, "reason": []}'),
        ("1 +0000", b'Promote\n\n{"decision": "roll back"}'),
        ("1 +0000", b'Promote\n\n{"decision": "x", "reason": "\\ud800"}'),
        ("1 +0000", b'Promote\n\n{"decision": "x", "reason": "\\u001b[31m\\n"}'),
        ("1 +0000", b""),
    ],
)
def test_messages_and_dates_of_tags_break_nothing(date: str, message: bytes, forge: Forge) -> None:
    root = forge.project.folder
    commit = forge.project.git("rev-parse", "HEAD").strip()
    record_refusal(root, resolve(root, "v1.0.0"), "Refuse\n\n{}")
    tagged = f"object {commit}\ntype commit\ntag x\ntagger T <t@e> {date}\n\n".encode() + message
    forge.tag("vdm#champion#1", tagged)
    forge.tag("vdm@v0.1.0", tagged)
    forge.tag("vdm@v0.2.0", f"object {commit}\ntype commit\ntag x\n\nby nobody".encode())
    *_, version = versions(root)
    assert len(versions(root)) == 3
    assert version.stages == ("champion",)
    chain = lineage(root, version)
    json.dumps(chain.as_json(), allow_nan=False).encode()
    assert chain.refusal is None
    assert is_decided(root, commit)
    assert "\x1b" not in describe(chain)
    assert make_plan(root, 1, None).versions.keys() == {commit}
    assert make_champion(root, version, "By hand") == "vdm#champion#2"
    with workspace(root, (root / "params.yaml").read_text(), "HEAD") as place:
        assert alike(place) == [commit]


def test_a_tag_with_a_number_that_no_version_has_is_no_version(forge: Forge) -> None:
    commit = forge.project.git("rev-parse", "HEAD").strip()
    content = f"object {commit}\ntype commit\ntag x\ntagger T <t@e> 1 +0000\n\nx".encode()
    forge.tag("vdm@v1." + "9" * 200 + ".0", content)
    forge.tag("vdm#champion#" + "9" * 200, content)
    assert [version.name for version in versions(forge.project.folder)] == ["vdm@v1.0.0"]


def test_a_version_brings_no_dvc_files_of_its_own(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC checks out what any `.dvc` file in the tree names; the next stage would import a module at the top."""
    root, code = forge.project.folder, b"print('hostile')"
    digest = forge.store(code)
    cached = root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    cached.parent.mkdir(parents=True)  # only this object, so that the base itself has no results
    cached.write_bytes(code)
    entry = {"path": "typer.py", "hash": "md5", "md5": digest, "size": len(code)}
    extra = json.dumps({"wdir": "..", "outs": [entry]})
    forge.version("v1.1.0", {"reports/extra.dvc": extra, "dvc.lock": '{"schema": "2.0", "stages": {}}'})
    monkeypatch.setattr("flows.orchestration.workspace.recorded_images", lambda folder: None)  # it has no images
    with workspace(root, (root / "params.yaml").read_text(), "HEAD~1") as place:
        finished(place, shared=False)
        assert not (place.folder / "typer.py").exists()
        assert not (place.folder / "reports/extra.dvc").exists()


def test_a_link_in_place_of_the_lock_is_not_checked_out(forge: Forge) -> None:
    """git gives the target of a link as its content, and a target may be YAML."""
    root, git, target = forge.project.folder, forge.project.git, "reports/l: 1\nstages: {}"
    forge.write(target, json.dumps(forge.lock(entry(forge, relpath="../../../../escaped"))))
    (root / "dvc.lock").unlink()
    (root / "dvc.lock").symlink_to(target)
    git("add", "--all")
    git("commit", "--quiet", "--message=Link")
    with pytest.raises(UserError, match="has links"):
        require_contained(root, git("rev-parse", "HEAD").strip(), "HEAD", shared=False)


def test_a_large_file_of_a_commit_is_not_written_to_disk(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros take a thousandth of their size in the repository."""
    forge.version("v1.1.0", {METRICS: bytes(2**24)})
    kept, make = [], tempfile.TemporaryFile

    def recorded(*arguments: Any, **options: Any) -> Any:
        file = make(*arguments, **options)
        kept.append(os.dup(file.fileno()))
        return file

    monkeypatch.setattr("flows.registry.git.tempfile.TemporaryFile", recorded)
    problem = versions(forge.project.folder)[-1].problem
    sizes = [os.fstat(descriptor).st_size for descriptor in kept]
    for descriptor in kept:
        os.close(descriptor)
    assert "larger than" in problem
    assert max(sizes) < 2**20


def test_a_lock_that_contradicts_itself_or_is_incomplete_does_not_verify(forge: Forge) -> None:
    """As when an input changed between two stages."""

    def problems(name: str) -> dict[str, str]:
        version = resolve(forge.project.folder, name)
        return {each.subject: each.problem for each in verify(forge.project.folder, version) if each.problem}

    other = {"path": "models/vdm", "hash": "md5", "md5": f"{'0' * 32}.dir"}
    lock = forge.lock()
    lock["stages"]["later"] = {"cmd": "true", "deps": [other], "outs": []}
    assert problems(forge.version("v1.1.0", lock=lock)) == {"models/vdm": "differs between stages"}
    lock = forge.lock()
    path = lock["stages"]["all"]["outs"].pop()["path"]
    assert problems(forge.version("v1.2.0", lock=lock)) == {path: "dvc.lock does not list it"}


def test_after_the_highest_number_no_tag_is_made_that_would_be_ignored(forge: Forge) -> None:
    """Such a tag would look like a promotion, and leave the old champion."""
    root, git = forge.project.folder, forge.project.git
    version = resolve(root, "v1.0.0")
    git("tag", "--annotate", "--message=x", "vdm#champion#999999999", version.commit)
    with pytest.raises(UserError, match=r"vdm#champion#1000000000: more than 9 digits would be ignored; .* delete"):
        make_champion(root, version, "By hand")
    git("tag", "--annotate", "--message=x", "vdm@v1.999999999.0", version.commit)
    git("commit", "--quiet", "--allow-empty", "--message=Next")
    with pytest.raises(UserError, match=r"vdm@v1.1000000000.0: more than 9 digits would be ignored"):
        add_version(root, "HEAD", "Next")
    assert not git("tag", "--list", "*1000000000*")


def test_a_remote_that_lists_the_commit_of_a_tag_without_the_tag_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git prints what a server of an old protocol sends."""
    listed = f"{'a' * 40}\trefs/tags/vdm@v9.0.0^{{}}\n".encode()
    monkeypatch.setattr("flows.registry.remote.ask", lambda *_, **__: listed)
    assert remote_refs(tmp_path) == {"refs/tags/vdm@v9.0.0": ("a" * 40, "a" * 40)}
