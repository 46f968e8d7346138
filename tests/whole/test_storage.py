"""The files of versions: fetched from a real cache and a real remote, and verified."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from champions import crown
from project import Project, cached, metrics_at, one_line
from ruamel.yaml import YAML

from flows.core.errors import Exit, NetworkError, UserError
from flows.core.layout import SAMPLE_METRICS
from flows.registry import versions as of
from flows.registry.lineage import lineage
from flows.registry.storage import fetch, fetch_images
from flows.registry.verification import verify

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(1800)


def test_a_version_is_evaluated_from_the_remote_when_the_cache_is_gone(copied: Project) -> None:
    crown(copied, "v1.2.0")
    shutil.rmtree(copied.folder / ".dvc" / "cache")
    shutil.rmtree(copied.folder / "models" / "vdm")
    other_splits = ("validation", "training", "generalisation_gap_bpd", "generalisation_gap_standard_error")
    expected = metrics_at(copied, "HEAD") | dict.fromkeys(other_splits)
    for reference in ("champion", "vdm@v1.2.0", "v1.2.0"):
        result = copied.vdmctl("evaluate", reference, "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == expected
    assert len(list((copied.folder / ".vdm/models").iterdir())) == 1
    shown = copied.vdmctl("compare", "v1.0.0", "champion", "--json")
    assert shown.stderr.count("trained with other images") == 1
    assert "vdm@v1.0.0 was trained with other images than data/images, and may have seen these" in shown.stderr
    compared = json.loads(shown.stdout)
    hashes = [model["model_sha256"] for model in compared["models"]]
    assert [model["model"] for model in compared["models"]] == ["v1.0.0", "champion"]
    assert compared["samples"] is None  # in the features of other images
    assert hashes == [metrics_at(copied, f"vdm@{name}")["model_sha256"] for name in ("v1.0.0", "v1.2.0")]
    assert copied.git("status", "--porcelain", "--", ".vdm", "reports") == ""


def test_without_images_in_the_working_tree_a_version_meets_its_own(copied: Project) -> None:
    shutil.rmtree(copied.folder / "data" / "images")
    result = copied.vdmctl("evaluate", "v1.0.0", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["bpd"] == metrics_at(copied, "vdm@v1.0.0")["bpd"]
    compared = json.loads(copied.vdmctl("compare", "v1.0.0", "v1.1.0", "--json").stdout)
    kept = [json.loads(copied.git("show", f"vdm@{version}:{SAMPLE_METRICS}")) for version in ("v1.0.0", "v1.1.0")]
    for name, pair in compared["samples"].items():
        assert pair == [metrics["figures"][name] for metrics in kept]
    assert "precision" in compared["samples"]
    compared = json.loads(copied.vdmctl("compare", "v1.0.0", "v1.2.0", "--json").stdout)
    assert {model["data_sha256"] for model in compared["models"]} == {metrics_at(copied, "vdm@v1.2.0")["data_sha256"]}


def test_a_fetched_version_is_reused_and_never_trusted_blindly(copied: Project) -> None:
    version = of.resolve(copied.folder, "v1.0.0")
    folder = fetch(copied.folder, version)
    shutil.rmtree(copied.folder / ".dvc" / "cache")
    copied.dvc("remote", "remove", "store")
    assert fetch(copied.folder, version) == folder
    assert [path for path in folder.parent.iterdir() if path != folder] == []
    weights = (folder / "weights.safetensors").read_bytes()
    for damaged in (weights[:-1] + b"x", None):
        (folder / "weights.safetensors").unlink()
        if damaged:
            (folder / "weights.safetensors").write_bytes(damaged)
        line = one_line(copied.vdmctl("evaluate", "v1.0.0"))
        place = folder.relative_to(copied.folder)
        assert line == f"vdmctl: {place}: its weights are damaged or missing; delete it to fetch it again"
    (folder / "weights.safetensors").write_bytes(weights)
    shutil.copyfile(copied.folder / "models/vdm/config.json", folder / "config.json")
    result = copied.vdmctl("evaluate", "v1.0.0")
    assert result.returncode == 5
    assert "is not the model of vdm@v1.0.0; delete it" in one_line(result)


@pytest.mark.parametrize(
    ("remote", "message"),
    [
        ("/nowhere/at/all", "models/vdm is not in the cache, and the remote `store` does not provide it"),
        ("http://127.0.0.1:9/store", "models/vdm is not in the cache, and the remote `store` does not provide it"),
        ("/dev/null", "cannot be pulled into it: [Errno 20]"),
        (None, "not in the cache, and DVC has no default remote"),
    ],
)
def test_bytes_that_nobody_has_are_one_line(remote: str | None, message: str, copied: Project) -> None:
    shutil.rmtree(copied.folder / ".dvc" / "cache")
    change = ("remove", "store") if remote is None else ("modify", "store", "url", remote)
    copied.dvc("remote", *change)
    result = copied.vdmctl("evaluate", "v1.1.0")
    assert (result.returncode, result.stdout) == (5, "")
    assert "vdm@v1.1.0: " in one_line(result)
    assert message in one_line(result)
    assert list((copied.folder / ".vdm").glob("models/*")) == []


def test_a_cache_that_may_not_be_written_is_named(copied: Project) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv of util-linux")
    shutil.rmtree(copied.folder / ".dvc/cache")
    (copied.folder / ".dvc/cache").mkdir(mode=0o555)
    bounded = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    result = copied.run(*bounded, sys.executable, "-m", "flows.cli", "evaluate", "v1.0.0")
    assert result.returncode == 5
    assert re.search(r"cannot be pulled into it: .*Permission denied: '\S+/\.dvc/cache/files'", one_line(result))


def test_a_model_for_which_there_is_no_room_is_named(copied: Project, full_disk: Path) -> None:
    copied.run("mkdir", "-p", ".vdm")
    (copied.folder / ".vdm/models").symlink_to(full_disk)
    (full_disk / "filler").write_bytes(bytes(236 * 1024))
    result = copied.vdmctl("evaluate", "v1.0.0")
    assert result.returncode == 5
    assert re.search(r"vdmctl: \.vdm/models/\S+: No space left on device", one_line(result))
    assert [path.name for path in full_disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("command", [["verify", "v1.0.0"], ["prune", "--dry-run"]])
def test_databases_of_dvc_without_room_are_one_line(command: list[str], copied: Project, full_disk: Path) -> None:
    copied.dvc("config", "--local", "core.site_cache_dir", str(full_disk))
    (full_disk / "filler").write_bytes(bytes(236 * 1024))
    result = copied.new_vdmctl(*command)
    assert result.returncode == 5
    assert re.search(r"DVC's databases \(in .*\): (database or disk is full|disk I/O error); is that", one_line(result))


def test_a_path_with_which_dvc_cannot_work_is_one_line(tmp_path: Path, registry: Project) -> None:
    project = registry.copy(tmp_path / os.fsdecode(b"caf\xe9"))
    said = r"caf\udce9: its path is not UTF-8, and DVC cannot work in such a folder; rename it"
    verified, report = project.vdmctl("verify", "vdm@v1.0.0"), project.vdmctl("report")
    assert (verified.returncode, report.returncode) == (Exit.MISSING, Exit.DONE)
    assert said in one_line(verified)
    assert said in report.stdout + report.stderr


def test_a_cache_without_room_is_one_line(copied: Project, full_disk: Path) -> None:
    copied.dvc("cache", "dir", "--local", str(full_disk))
    (full_disk / "filler").write_bytes(bytes(100 * 1024))
    result = copied.vdmctl("verify", "v1.0.0", "--json")
    assert result.returncode == 5
    assert json.loads(result.stdout)["sound"] is False
    assert "cannot be pulled into it: [Errno 28] No space left on device" in one_line(result)


def test_one_missing_file_of_a_folder_is_fetched_alone(copied: Project) -> None:
    """DVC itself would assume that the whole folder is cached, since its listing is."""
    version = of.resolve(copied.folder, "v1.0.0")
    weights = cached(copied, "models/vdm", "weights.safetensors", "v1.0.0")
    content = weights.read_bytes()
    weights.unlink()
    assert (fetch(copied.folder, version) / "weights.safetensors").read_bytes() == content
    assert weights.read_bytes() == content


@pytest.mark.parametrize("name", ["dataset.json", "train.npy"])
def test_fetched_images_that_lost_a_file_are_fetched_again_as_the_message_says(name: str, copied: Project) -> None:
    version = of.resolve(copied.folder, "v1.0.0")
    folder = fetch_images(copied.folder, version)
    assert folder != copied.folder / "data/images"  # the working tree has those of v1.2.0
    (folder / name).unlink()
    with pytest.raises(UserError, match=r"is damaged; delete it to fetch it again$"):
        fetch_images(copied.folder, version)
    shutil.rmtree(folder)
    assert fetch_images(copied.folder, version) == folder


def test_verify_agrees_with_an_untouched_version_fetched_from_the_remote(copied: Project) -> None:
    shutil.rmtree(copied.folder / ".dvc" / "cache")
    for reference in ("v1.0.0", "v1.2.0"):
        result = copied.vdmctl("verify", reference, "--json")
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        assert report["sound"]
        subjects = {check["subject"] for check in report["checks"]}
        assert {"models/vdm", "models/vdm sha256", "data/images sha256", "vdm/vlb.py", "params.yaml train"} <= subjects


@pytest.mark.parametrize("place", ["weights.safetensors", "README.md"])
def test_verify_finds_a_damaged_file_in_the_cache(place: str, copied: Project) -> None:
    path = cached(copied, "models/vdm", place, "v1.0.0")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    result = copied.vdmctl("verify", "v1.0.0", "--json")
    assert result.returncode == 5
    assert f"{place} is damaged in the cache" in one_line(result)
    bad = {check["subject"] for check in json.loads(result.stdout)["checks"] if check["problem"]}
    assert "models/vdm" in bad
    refused = copied.vdmctl("evaluate", "v1.0.0")
    assert refused.returncode == 5
    assert f"{place} is damaged in the cache; delete" in one_line(refused)


@pytest.mark.parametrize(
    ("old", "new", "subject"),
    [
        ("steps: 80", "steps: 81", "params.yaml train"),
        ("vdm/vlb.py", "vdm/vlb.py", "vdm/vlb.py"),
        ("models/vdm", "models/trained", "models/vdm sha256"),
        ("reports/evaluation/metrics.json", "reports/evaluation/metrics.json", "reports/evaluation/metrics.json"),
    ],
    ids=["parameters", "code", "model", "metrics"],
)
def test_verify_finds_a_tampered_lock(old: str, new: str, subject: str, copied: Project) -> None:
    """Changed are values, the digest of code or metrics, or the model's digest, replaced by an older model's."""
    text = (copied.folder / "dvc.lock").read_text()
    if subject.startswith("params"):
        text = text.replace(old, new)
    else:
        lock = YAML(typ="safe").load(text)["stages"]
        entries = [entry for stage in lock.values() for entry in stage["outs"] + stage["deps"] if entry["path"] == old]
        other = lineage(copied.folder, of.resolve(copied.folder, "v1.0.0")).lock.outputs["models/vdm"]
        text = text.replace(entries[0]["md5"], other if old == "models/vdm" else "f" * 32)
    (copied.folder / "dvc.lock").write_text(text)
    copied.git("commit", "--quiet", "--all", "--message=Tampered")
    version = of.add_version(copied.folder, "HEAD", "Tampered")
    problems = {check.subject for check in verify(copied.folder, version) if check.problem}
    assert problems == {subject}
    result = copied.vdmctl("verify", version.name)
    assert result.returncode == 5
    assert "vdm@v1.3.0: 1 of" in one_line(result)


def test_verify_finds_code_that_changed_without_a_run(copied: Project) -> None:
    with (copied.folder / "vdm/vlb.py").open("a") as file:
        file.write("# changed\n")
    copied.git("commit", "--quiet", "--all", "--message=Change code alone")
    version = of.add_version(copied.folder, "HEAD", "Untrue")
    assert [check.subject for check in verify(copied.folder, version) if check.problem] == ["vdm/vlb.py"]


@pytest.mark.parametrize("name", ["vdm", "vdm/"])
def test_a_folder_of_code_is_compared_with_its_files_in_git(name: str, copied: Project) -> None:
    """A user's dvc.yaml may name a folder in place of every file in it."""
    (copied.folder / "vdm" / "training-old").mkdir()  # "training-" sorts before "training/", and after "training"
    (copied.folder / "vdm" / "training-old" / "größe.py").write_text("WIDTH = 8\n")
    graph = (copied.folder / "dvc.yaml").read_text()
    (copied.folder / "dvc.yaml").write_text(graph.replace("    deps:\n", f"    deps:\n    - {name}\n", 1))
    copied.git("add", "vdm")
    copied.dvc("commit", "--force", "download")
    copied.git("commit", "--quiet", "--all", "--message=A folder")
    version = of.add_version(copied.folder, "HEAD", "A folder")
    assert [check for check in verify(copied.folder, version) if check.problem] == []
    (copied.folder / "vdm" / "training-old" / "größe.py").write_text("WIDTH = 9\n")
    copied.git("commit", "--quiet", "--all", "--message=Change code alone")
    version = of.add_version(copied.folder, "HEAD", "Untrue")
    assert [check.subject for check in verify(copied.folder, version) if check.problem] == ["vdm"]


def test_stages_that_dvc_yaml_no_longer_has_do_not_count(copied: Project) -> None:
    """DVC leaves stages that were renamed or removed in dvc.lock."""
    lock = YAML(typ="safe").load((copied.folder / "dvc.lock").read_text())
    code = {"path": "vdm/vlb.py", "hash": "md5", "md5": "0" * 32}
    out = {"path": "models/old", "hash": "md5", "md5": f"{'f' * 32}.dir"}
    lock["stages"]["name before"] = lock["stages"]["features"]
    lock["stages"]["removed"] = {"cmd": "true", "deps": [code], "outs": [out]}
    (copied.folder / "dvc.lock").write_text(json.dumps(lock))
    copied.git("commit", "--quiet", "--all", "--message=Other stages")
    version = of.add_version(copied.folder, "HEAD", "Other stages")
    assert [check for check in verify(copied.folder, version) if check.problem] == []
    assert "models/old" not in lineage(copied.folder, version).lock.outputs


def test_a_remote_that_does_not_answer_says_nothing_about_a_version(copied: Project) -> None:
    """The task that verifies the champion tries again after a NetworkError only."""
    shutil.rmtree(copied.folder / ".dvc" / "cache")
    copied.dvc("remote", "modify", "store", "url", "/dev/null")
    with pytest.raises(NetworkError, match=r"^vdm@v1\.0\.0: \S+: not in the cache, and cannot be pulled into it: "):
        verify(copied.folder, of.resolve(copied.folder, "v1.0.0"))
    result = copied.vdmctl("verify", "v1.0.0", "--json")
    assert (result.returncode, result.stdout) == (5, "")
    assert "does not verify" not in one_line(result)
