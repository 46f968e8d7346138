"""Versions, their lineage, their files and their digests, in real git and DVC."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gto.tag
import pytest
from conftest import TINY
from forge import METRICS, Forge, champion, crown, refuse
from project import Sandbox, cached, metrics_at, one_line, run_vdmctl
from results import sample_metrics
from ruamel.yaml import YAML

from flows.commands.registry import distance
from flows.core import layout
from flows.core.errors import Exit, NetworkError, UserError
from flows.core.model import save_model
from flows.core.network_code import NetworkCode
from flows.core.networks import new_vdm
from flows.dossier.opening import open_dossier
from flows.evaluation.results import SampleMetrics
from flows.project.project import Project
from flows.registry.costs import Costs
from flows.registry.fetching import fetch, fetch_files, fetch_images
from flows.registry.lineage import trace_lineage
from flows.registry.verification import reproduction, require_sound, verify
from flows.registry.versions import add_version, open_registry
from flows.repository.files import DamagedVersionError
from flows.repository.tags import Tag, numbers_of, reign
from vdm.model import VDM

pytestmark = pytest.mark.timeout(1800)  # the versions of `registry` are trained when the first test asks for them


def problems(forge: Forge, name: str) -> dict[str, str]:
    return {check.subject: check.problem for check in verify(forge.repository, forge.resolve(name)) if check.problem}


def test_models_lists_versions_with_state_figures_data_and_commit(forge: Forge) -> None:
    costs = Costs(minutes={"train": 2.5}, core_hours=0.5, card_hours=0.0)
    crown(forge.project, "v1.0.0", "v1.1.0", costs=costs)
    refuse(forge.project, "v1.2.0")
    forge.version("v1.10.0", documents={METRICS: '{"bpd": "low"}'})
    rows = json.loads(forge.vdmctl("models", "--json").stdout)["versions"]
    assert [row["version"] for row in rows] == [f"vdm@v1.{minor}.0" for minor in (0, 1, 2, 10)]
    assert [row["state"] for row in rows] == ["former champion", "champion", "refused", ""]
    assert [row["stages"] for row in rows] == [[], ["champion"], [], []]
    assert [row["commit"] for row in rows] == forge.git("rev-list", "--reverse", "-4", "HEAD").split()
    assert [row["bpd"] for row in rows] == [2.0, 2.0, 2.0, None]
    assert [row["costs"] for row in rows] == [costs.model_dump()] * 2 + [None] * 2
    assert METRICS in rows[3]["problem"]
    with pytest.raises(UserError, match=METRICS):
        fetch(forge.repository, forge.resolve("v1.10.0"))
    text = forge.vdmctl("models").stdout.splitlines()
    assert text[2].split()[:4] == ["vdm@v1.1.0", "champion", "2.0000", "+-"]
    assert "unreadable" in text[4]


def test_versions_count_up_and_gto_lists_the_same(forge: Forge) -> None:
    commit = forge.commit("next")
    assert add_version(forge.repository, "HEAD", "Retrained").name == "vdm@v1.3.0"
    assert forge.git("cat-file", "-p", "vdm@v1.3.0").startswith(f"object {commit}\ntype commit\ntag vdm@v1.3.0\n")
    assert "Test <test@example.org>" in forge.git("cat-file", "-p", "vdm@v1.3.0")
    shown = forge.project.run("gto", "show", "vdm", "--json").stdout
    assert [each["version"] for each in json.loads(shown)] == ["v1.3.0", "v1.2.0", "v1.1.0", "v1.0.0"]
    forge.project.gto("deprecate", "vdm", "v1.3.0")
    assert forge.opened.registry.newest().name == "vdm@v1.2.0"
    assert forge.opened.registry.is_decided(commit)
    forge.commit("after")
    assert add_version(forge.repository, "HEAD", "Retrained").name == "vdm@v1.4.0"  # no number is used again


@pytest.mark.parametrize(
    ("command", "times"),
    [
        (["models"], 1),
        (["status"], 1),
        (["lineage", "champion"], 1),
        (["verify", "champion"], 1),
        (["prune", "--dry-run"], 1),
        (["promote", "v1.2.0"], 2),  # again under the registry's lock
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_reads_the_tags_once(
    command: list[str], times: int, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0")
    refuse(forge.project, "v1.2.0")
    monkeypatch.setattr("flows.registry.promotion.add_figures", lambda *_, **__: None)
    ran, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda given, **options: ran.append(given) or run(given, **options))
    monkeypatch.setattr(gto.tag, "find", lambda *_, **__: pytest.fail("GTO reads every tag by itself"))
    result = forge.vdmctl(*command)
    assert result.returncode != Exit.BUG, result.stderr
    listed = [given for given in ran if {"for-each-ref", "refs/tags"} <= set(given)]
    assert len(listed) == times


def test_other_tags_that_begin_alike_are_no_versions(forge: Forge) -> None:
    for name in ("vdm-paper", "vdm@paper", "vdm@v1.9.0-rc1", "other@v2.0.0"):
        forge.git("tag", "--annotate", "--message=Mine", name)
    forge.git("tag", "vdm@v2.0.0")  # lightweight, so no version to GTO either
    assert forge.opened.registry.newest().name == "vdm@v1.2.0"
    assert [numbers_of(name) for name in ("vdm@v1.2.0", "vdm@v1.2.0!#4", "vdm@v1.2.0-rc1")] == [(1, 2, 0)] * 2 + [None]


def test_messages_and_names_that_are_not_utf_8(forge: Forge, tmp_path: Path) -> None:
    """As in repositories with `i18n.commitEncoding=latin1`, or from an editor with such files."""
    forge.git("config", "i18n.commitEncoding", "latin1")
    forge.git("config", "user.name", b"M\xfcller".decode(errors="surrogateescape"))
    (tmp_path / "message").write_bytes(b"Gr\xfcn\n\nl\xe4nger\n")
    for name, target in {"vdm@v1.3.0": forge.commit("v1.3.0"), "vdm#champion#1": "vdm@v1.0.0^{commit}"}.items():
        forge.git("tag", "--annotate", f"--file={tmp_path / 'message'}", name, target)
    assert forge.resolve("v1.3.0").message == "Gr\ufffdn\n\nl\ufffdnger"
    assert champion(forge.project) == "vdm@v1.0.0"
    assert json.loads(forge.vdmctl("lineage", "champion", "--json").stdout)["promotions"][0]["evidence"] == {}
    with pytest.raises(UserError, match=r"git needs an identity: .*, in UTF-8$"):
        crown(forge.project, "v1.3.0")
    forge.git("config", "user.name", "Test")
    crown(forge.project, "v1.3.0")
    forge.git("commit", "--quiet", "--amend", f"--file={tmp_path / 'message'}")
    assert (
        add_version(forge.repository, "HEAD", forge.repository.git_text("log", "-1", "--format=%s")).message
        == "Gr\xfcn"
    )
    forge.git("config", "--unset", "i18n.commitEncoding")
    forge.git("commit", "--quiet", "--amend", f"--file={tmp_path / 'message'}")  # says that it is UTF-8
    version = add_version(forge.repository, "HEAD", "Again")
    assert [check for check in verify(forge.repository, version) if check.problem] == []
    for command in ("models", "status"):
        result = forge.vdmctl(command)
        assert "vdm@v1.3.0" in result.stdout, result.stderr


def test_what_is_written_is_utf_8_whatever_git_is_told(forge: Forge) -> None:
    forge.git("config", "i18n.commitEncoding", "latin1")
    forge.repository.git("commit", "--quiet", "--allow-empty", "--message=Gr\xfcn", f"--message={METRICS}")
    assert b"encoding" not in forge.repository.git("cat-file", "commit", "HEAD")
    assert forge.repository.git_text("log", "-1", "--format=%s") == "Gr\xfcn"
    assert forge.git("log", "-1", "--format=%s", "--encoding=UTF-8").strip() == "Gr\xfcn"
    forge.commit("v1.3.0")
    add_version(forge.repository, "HEAD", "Gr\xfcn")
    assert forge.resolve("v1.3.0").message == "Gr\xfcn"
    assert forge.git("cat-file", "tag", "vdm@v1.3.0").endswith("\n\nGr\xfcn\n")


def test_a_commit_that_cannot_be_a_version(forge: Forge) -> None:
    forge.commit("damaged", documents={METRICS: '{"bpd": ' + "[" * 500})
    forge.git("rm", "--quiet", "-r", "reports")
    forge.git("commit", "--quiet", "--message=Without results")
    for commit, code, message in (
        ("vdm@v1.2.0^{commit}", Exit.USAGE, "is vdm@v1.2.0 already"),
        ("nothing", Exit.MISSING, "Needed a single revision"),
        ("HEAD", Exit.MISSING, "has no reports/evaluation/metrics.json"),
        ("HEAD~1", Exit.MISSING, "reports/evaluation/metrics.json: damaged"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            add_version(forge.repository, commit, "Retrained")
        assert raised.value.code == code


def test_without_a_git_identity_nothing_is_tagged(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    forge.commit("next")
    forge.git("config", "--remove-section", "user")
    for name in [name for name in os.environ if name.startswith(("GIT_", "EMAIL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    with pytest.raises(UserError, match="git needs an identity") as raised:
        add_version(forge.repository, "HEAD", "Retrained")
    assert raised.value.code == Exit.USAGE
    result = run_vdmctl(forge.root, dict(os.environ), "promote")
    assert (result.returncode, "git needs an identity" in one_line(result)) == (Exit.USAGE, True)


def test_a_model_that_is_not_there(made: Forge) -> None:
    for arguments, code, message in (
        (["evaluate", "nowhere"], 5, "nowhere: no such folder, and not a version such as vdm@v1.2.0, nor `champion`"),
        (["evaluate", "champion"], 5, "no version is the champion"),
        (["evaluate", "v9.0.0"], 5, "there is no version vdm@v9.0.0; `vdmctl models`"),
        (["lineage", "vdm@latest"], 2, "vdm@latest: not a version such as vdm@v1.2.0"),
    ):
        result = made.vdmctl(*arguments)
        assert (result.returncode, result.stdout) == (code, "")
        assert message in one_line(result)


def test_outside_and_below_the_top_of_a_repository(forge: Forge, tmp_path: Path) -> None:
    result = run_vdmctl(tmp_path, os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}, "models")
    assert (result.returncode, "not a git repository" in one_line(result)) == (Exit.MISSING, True)
    with pytest.raises(UserError, match="not the top folder of its git repository") as raised:
        open_registry(Project(forge.root / "reports").repository)
    assert raised.value.code is Exit.USAGE


def test_lineage_goes_from_the_tag_to_every_digest_and_all_verify(registry: Sandbox) -> None:
    chain = json.loads(registry.vdmctl("lineage", "v1.1.0", "--json").stdout)
    lock = YAML(typ="safe", pure=True).load(registry.git("show", "vdm@v1.1.0:dvc.lock"))["stages"]
    outs = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
    assert chain["commit"] == registry.git("rev-parse", "vdm@v1.1.0^{commit}").strip()
    assert chain["parameters"] == {
        section: values
        for stage in lock.values()
        for section, values in stage.get("params", {}).get("params.yaml", {}).items()
    }
    assert chain["outputs"] == outs
    assert chain["data"] == {
        "path": "data/images",
        "md5": outs["data/images"],
        "sha256": metrics_at(registry, "vdm@v1.1.0")["data_sha256"],
        "licence": "CC BY 4.0",
    }
    assert chain["ancestors"] == []
    assert {"vdm/vlb.py", "flows/training/fitting.py"} <= chain["code"].keys()
    text = registry.vdmctl("lineage", "v1.1.0").stdout
    assert all(md5 in text for md5 in [*outs.values(), *chain["code"].values()])
    result = registry.vdmctl("verify", "v1.1.0", "--json")
    assert result.returncode == 0, result.stderr
    subjects = {check["subject"] for check in json.loads(result.stdout)["checks"]}
    assert {"params.yaml train", "models/features", *outs, *chain["code"]} <= subjects


def test_lineage_lists_promotions_in_their_order_and_the_refusal(forge: Forge) -> None:
    for name in ("vdm#champion#2", "vdm#champion!#3", "vdm#champion#10"):
        forge.git("tag", "--annotate", "--message=By hand", name, "vdm@v1.0.0^{commit}")
    refuse(forge.project, "v1.0.0", reason="too slow")
    chain = trace_lineage(forge.opened.registry, forge.resolve("v1.0.0"))
    assert [each.tag for each in chain.promotions] == ["vdm#champion#2", "vdm#champion!#3", "vdm#champion#10"]
    text = forge.vdmctl("lineage", "v1.0.0").stdout
    assert "- tag: vdm#champion!#3" in text
    assert "\nrefusal:\n  decision: refuse\n  reason: too slow\n" in text


def test_the_stack_of_champions() -> None:
    def stack(*commits: str) -> str:
        tags = [Tag(f"vdm#champion#{number}", commit.strip("!")) for number, commit in enumerate(commits, start=1)]
        marks = ["unassignment" if commit.startswith("!") else "assignment" for commit in commits]
        tags = [tag._replace(event=event) for tag, event in zip(tags, marks, strict=True)]
        return "".join(tag.commit for tag in reign(tags[::-1]))

    assert stack(*"abcdefghijkl") == "abcdefghijkl"  # the tenth follows the ninth
    assert stack("a", "b", "c", "b") == "ab"  # rolled back once
    assert stack("a", "b", "c", "b", "a") == "a"  # and once more
    assert stack("a", "b", "c", "b", "d") == "abd"
    assert stack("a", "b", "b") == "ab"  # promoted again
    assert stack("a", "b", "!b") == "a"
    assert stack("a", "b", "!b", "b") == "ab"


@pytest.mark.parametrize("stage", [(), ("champion",)])
def test_gto_withdraws_a_champion_or_its_version(stage: tuple[str, ...], forge: Forge) -> None:
    crown(forge.project, "v1.0.0", "v1.1.0", "v1.2.0")
    forge.project.gto("deprecate", "vdm", "v1.1.0", *stage)
    assert forge.opened.registry.previous_champion().name == "vdm@v1.0.0"
    forge.project.gto("deprecate", "vdm", "v1.2.0", *stage)
    assert champion(forge.project) == "vdm@v1.0.0"


# Files and digests


def test_a_version_is_evaluated_from_the_remote_when_the_cache_is_gone(copied: Sandbox) -> None:
    crown(copied, "v1.2.0")
    shutil.rmtree(copied.folder / ".dvc/cache")
    shutil.rmtree(copied.folder / "models/vdm")
    other_splits = ("validation", "training", "generalisation_gap_bpd", "generalisation_gap_standard_error")
    result = copied.vdmctl("evaluate", "champion", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == metrics_at(copied, "HEAD") | dict.fromkeys(other_splits)
    shutil.rmtree(copied.folder / "data/images")
    result = copied.vdmctl("evaluate", "v1.0.0", "--json")  # it meets its own images
    assert json.loads(result.stdout)["bpd"] == metrics_at(copied, "vdm@v1.0.0")["bpd"]
    compared = json.loads(copied.vdmctl("compare", "v1.0.0", "v1.2.0", "--json").stdout)
    assert {model["data_sha256"] for model in compared["models"]} == {metrics_at(copied, "vdm@v1.2.0")["data_sha256"]}
    assert copied.git("status", "--porcelain", "--", ".vdm", "reports") == ""


OWN = """import torch
from torch import nn
from .parts import Scale

class Net(nn.Module):
    def __init__(self, factor=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.scale = Scale()
        self.factor = factor

    def forward(self, z_t, gamma_t):
        return self.scale(self.factor * self.weight * z_t)
"""
PARTS = "from torch import nn\n\nclass Scale(nn.Module):\n    def forward(self, x):\n        return 0.5 * x\n"


def own_version(forge: Forge, number: str, **changed: str) -> str:
    """Return a version whose network is in networks/ at its commit, with these changes of its files."""
    for name, text in ({"__init__": "", "mine": OWN, "parts": PARTS} | changed).items():
        forge.write(f"networks/{name}.py", text)
    config = {key: TINY[key] for key in ("image_shape", "num_levels", "schedule", "gamma_0", "gamma_1")}
    config |= {"network": "networks.mine:Net", "options": {}}
    code = NetworkCode(forge.root / "networks")
    vdm, digest = new_vdm(VDM, config, code), code.of("networks.mine:Net").sha256
    save_model(forge.files / "models/vdm", vdm, config, network=digest, fitted_to="train")
    return forge.version(number)


def test_a_version_is_judged_with_the_code_of_its_commit(forge: Forge) -> None:
    own_version(forge, "v2.0.0")
    assert forge.vdmctl("promote", "v2.0.0").returncode == Exit.DONE
    alone = json.loads(forge.vdmctl("evaluate", "v2.0.0", "--json").stdout)["bpd"]
    another = OWN.replace("torch.ones(1)", "torch.ones(2)").replace("self.weight *", "self.weight.mean() *")
    own_version(forge, "v2.1.0", parts=PARTS.replace("0.5", "0.875"), mine=another)
    judged = forge.vdmctl("promote", "v2.1.0", "--json")
    champion, challenger = json.loads(judged.stdout)["test_comparison"]["models"]
    assert champion["bpd"] == alone != challenger["bpd"]
    assert "vdm@v2.0.0: networks.mine:Net has other code here now; that of its commit is used" in judged.stderr
    assert "vdm@v2.1.0: networks.mine:Net has other code" not in judged.stderr
    shutil.rmtree(forge.root / "networks")
    for number in ("v2.0.0", "v2.1.0"):
        assert forge.vdmctl("verify", number).returncode == Exit.DONE
        again = forge.vdmctl("evaluate", number, "--json")
        expected = {"v2.0.0": champion, "v2.1.0": challenger}[number]["bpd"]
        assert json.loads(again.stdout)["bpd"] == expected, again.stderr


def test_verify_names_a_network_that_was_trained_with_other_code(forge: Forge) -> None:
    own_version(forge, "v2.0.0")
    forge.write("networks/parts.py", PARTS.replace("0.5", "0.875"))  # after the training, committed with its results
    edited = forge.version("v2.1.0")
    for command in ("verify", "promote"):
        refused = forge.vdmctl(command, edited)
        assert refused.returncode == Exit.MISSING
        reason = "networks.mine:Net: the model was trained with other code than networks/ has at its commit"
        assert reason in refused.stderr
    assert "was trained with other code of networks.mine:Net" in forge.vdmctl("evaluate", edited).stderr
    forge.git("rm", "-r", "--quiet", "networks")
    lost = forge.vdmctl("verify", forge.version("v2.2.0"))
    assert "there is no network networks.mine:Net, which the model needs, in networks/ of vdm@v2.2.0" in lost.stderr


def test_a_fetched_model_is_reused_and_never_trusted_blindly(forge: Forge) -> None:
    version = forge.resolve("v1.0.0")
    folder = fetch(forge.repository, version)
    assert (folder / "README.md").read_text() == "v1.0.0"
    assert not (folder / "weights.safetensors").is_symlink()
    for place in (forge.cache, forge.remote):
        shutil.rmtree(place)
    assert fetch(forge.repository, version) == folder
    assert list(folder.parent.iterdir()) == [folder]
    (folder / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(DamagedVersionError, match=r"weights are damaged or missing; delete .* to fetch it again, or "):
        fetch(forge.repository, version)
    (folder / "config.json").write_text("{}")
    with pytest.raises(DamagedVersionError, match=r"is not the model of vdm@v1.0.0; delete .* to fetch it again, or "):
        fetch(forge.repository, version)


def test_images_are_those_of_the_working_tree_or_fetched(forge: Forge) -> None:
    version = forge.resolve("v1.0.0")
    folder = fetch_images(forge.repository, version).folder
    assert folder.parent == forge.root / layout.FETCHED
    (folder / "train.npy").unlink()
    with pytest.raises(DamagedVersionError, match=r"is damaged; delete it to fetch it again$"):
        fetch_images(forge.repository, version)
    shutil.copytree(forge.files / "data/images", forge.root / layout.IMAGES)
    assert fetch_images(forge.repository, version).folder == forge.root / layout.IMAGES


def test_bytes_that_nobody_has_say_nothing_about_a_version(forge: Forge) -> None:
    """Nothing is known about their digests, so no roll-back is to be recommended, and only the network is retried."""
    shutil.rmtree(forge.cache)
    shutil.rmtree(forge.remote)
    result = forge.vdmctl("evaluate", "v1.1.0")
    assert (result.returncode, result.stdout) == (Exit.MISSING, "")
    message = "models/vdm is neither in DVC's cache nor in its default remote; `dvc push` where it is, or "
    assert one_line(result).startswith(f"vdmctl: vdm@v1.1.0: {message}")
    assert list((forge.root / ".vdm").glob("models/*")) == []
    with pytest.raises(UserError, match="is neither in DVC's cache nor in its default remote") as raised:
        require_sound(forge.repository, forge.resolve("v1.1.0"))
    assert type(raised.value) is UserError
    forge.project.dvc("remote", "modify", "store", "url", "/dev/null")
    with pytest.raises(NetworkError, match=r"^vdm@v1\.0\.0: \S+ cannot be read now: "):
        verify(forge.repository, forge.resolve("v1.0.0"))


def test_an_untouched_version_verifies_from_cache_or_remote(forge: Forge) -> None:
    for _ in range(2):
        checks = verify(forge.repository, forge.resolve("v1.0.0"))
        subjects = {check.subject for check in checks}
        assert {"models/vdm", "models/vdm sha256", "data/images sha256", "code.py", METRICS} <= subjects
        assert [check for check in checks if check.problem] == []
        shutil.rmtree(forge.cache, ignore_errors=True)


def test_a_damaged_file_is_named_wherever_it_is_read(forge: Forge) -> None:
    digest = next(e["md5"] for e in forge.listing("models/vdm") if e["relpath"] == "weights.safetensors")
    forge.damage(digest)
    result = forge.vdmctl("verify", "v1.0.0", "--json")
    assert result.returncode == Exit.MISSING
    bad = {check["subject"] for check in json.loads(result.stdout)["checks"] if check["problem"]}
    assert bad >= {"models/vdm"}
    advice = f"weights.safetensors is damaged in the cache; delete {forge.cached(digest)} to fetch it again"
    assert advice in one_line(result)
    assert advice in one_line(forge.vdmctl("evaluate", "v1.0.0"))
    with pytest.raises(DamagedVersionError, match=r"vdm@v1.0.0 does not verify: models/vdm: "):
        require_sound(forge.repository, forge.resolve("v1.0.0"))
    forge.cached(digest).unlink()
    assert problems(forge, "vdm@v1.0.0") == {}


def test_a_damaged_result_of_a_version_is_named_by_its_path_in_the_project(forge: Forge) -> None:
    with pytest.raises(UserError, match=rf"^vdm@v1\.0\.0: {re.escape(METRICS)}: damaged: prior_bpd: ") as error:
        open_dossier(forge.opened, "v1.0.0").read_all()
    assert error.value.code is Exit.MISSING


def test_an_output_that_a_version_does_not_have_is_named(forge: Forge, tmp_path: Path) -> None:
    path = str(layout.CALIBRATION)
    with pytest.raises(UserError, match=rf"^vdm@v1\.0\.0: its dvc\.lock does not list {re.escape(path)}$") as error:
        fetch_files(forge.repository, forge.resolve("v1.0.0"), [path], tmp_path)
    assert error.value.code is Exit.MISSING


def changed(forge: Forge, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Return a dvc.lock after a change to its only stage."""
    lock = forge.lock("v1.3.0")
    change(lock["stages"]["all"])
    return lock


@pytest.mark.parametrize(
    ("change", "subjects"),
    [
        (lambda stage: stage["deps"][0].update(md5="f" * 32), {"code.py"}),
        (lambda stage: stage.update(params={"params.yaml": {"train": {"steps": 3}}}), {"params.yaml train"}),
        (lambda stage: stage["deps"].append({"path": "models/vdm", "md5": f"{'0' * 32}.dir"}), {"models/vdm"}),
        (lambda stage: stage["outs"].pop(2), {"reports/contract/findings.json"}),
    ],
    ids=["code", "parameters", "contradiction", "incomplete"],
)
def test_a_tampered_lock_is_found(change: Callable[[dict[str, Any]], object], subjects: set[str], forge: Forge) -> None:
    assert problems(forge, forge.version("v1.3.0", changed(forge, change))).keys() == subjects


@pytest.mark.parametrize("digest", ["f" * 32, f"{'f' * 32}.dir"])
def test_code_that_the_commit_lacks_is_named(digest: str, forge: Forge) -> None:
    """As a new module that `git commit --all` left out."""
    lock = changed(forge, lambda stage: stage["deps"].append({"path": "new.py", "md5": digest}))
    name = forge.version("v1.3.0", lock)
    forge.write("new.py", "")
    problem = "the commit lacks new.py, which dvc.lock lists"
    assert problems(forge, name) == {"new.py": problem}
    with pytest.raises(DamagedVersionError, match=f"^{name} does not verify: new.py: {problem}$"):
        require_sound(forge.repository, forge.resolve(name))
    result = forge.vdmctl("verify", name)
    assert (result.returncode, one_line(result).endswith(problem)) == (Exit.MISSING, True)


def test_verify_finds_another_model_and_other_images_than_the_metrics_state(forge: Forge) -> None:
    metrics = json.dumps({"bpd": 2.0, "model_sha256": "0" * 64, "data_sha256": "1" * 64})
    found = problems(forge, forge.version("v1.3.0", documents={METRICS: metrics}))
    reports = {"models/vdm sha256", "data/images sha256", "reports/contract/findings.json sha256"}
    assert found.keys() == {METRICS, *reports}


def test_stages_that_dvc_yaml_no_longer_has_do_not_count(forge: Forge) -> None:
    """DVC leaves stages that were renamed or removed in dvc.lock."""
    lock = forge.lock("v1.3.0")
    lock["stages"]["removed"] = {"cmd": "true", "outs": [{"path": "models/old", "md5": f"{'f' * 32}.dir"}]}
    name = forge.version("v1.3.0", lock)
    assert problems(forge, name) == {}
    assert "models/old" not in trace_lineage(forge.opened.registry, forge.resolve(name)).outputs


def test_a_reproduction_is_compared_with_the_commit(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(forge.root)  # DVC names stages relative to the working directory
    commit = forge.git("rev-parse", "--short=12", "HEAD").strip()
    forge.project.dvc("checkout")
    assert reproduction(forge.repository) == (True, f"every output is identical to that of commit {commit}", [])
    forge.write("code.py", "changed")
    found = reproduction(forge.repository)
    assert (found.is_equal, found.outdated_stages) == (False, ["all"])
    assert found.line.startswith("inputs of all changed since they ran: code.py; ")
    forge.write("code.py", "")
    shutil.rmtree(forge.root / "models/vdm")
    assert reproduction(forge.repository).line.startswith("models/vdm: deleted; `dvc pull` restores ")
    forge.write("models/vdm/README.md", "another")
    assert reproduction(forge.repository).line.startswith("models/vdm: modified; ")
    lock = json.loads((forge.root / "dvc.lock").read_text())
    lock["stages"]["all"]["outs"][0] = forge.lock("another")["stages"]["all"]["outs"][0]
    forge.write("dvc.lock", json.dumps(lock))
    forge.project.dvc("checkout", "--force")
    assert reproduction(forge.repository).line.startswith(
        f"models/vdm: different from commit {commit}, with the same inputs"
    )
    forge.write("code.py", "changed")
    lock["stages"]["all"]["deps"][0]["md5"] = hashlib.md5(b"changed").hexdigest()
    forge.write("dvc.lock", json.dumps(lock))
    assert reproduction(forge.repository).line.endswith("because the inputs differ: code.py")
    forge.write("dvc.lock", "<<<<<<< HEAD")
    with pytest.raises(UserError, match=r"dvc.lock: damaged"):
        reproduction(forge.repository)


# Documents of a version that are damaged, or made by somebody else


@pytest.mark.parametrize("relpath", ["../../escaped", "/escaped"])
def test_a_listing_that_leads_out_of_its_folder_is_refused(relpath: str, forge: Forge) -> None:
    entries = [*forge.listing("models/vdm"), {"md5": forge.store(b"hostile"), "relpath": relpath}]
    version = forge.resolve(forge.version("v1.3.0", forge.lock("v1.3.0", json.dumps(entries).encode())))
    before = {path for path in forge.folder.rglob("*") if "escaped" in path.name}
    for action in (fetch, require_sound):
        with pytest.raises(UserError) as raised:
            action(forge.repository, version)
        assert raised.value.code is Exit.MISSING
    assert {path for path in forge.folder.rglob("*") if "escaped" in path.name} == before
    assert not Path("/escaped").exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (b"[]", "Input should be a valid dictionary"),
        (b"{}", "weights_sha256: Field required"),
        (b"{", "EOF while parsing"),
        (b'{"model":' * 5000, "recursion limit exceeded"),
    ],
    ids=["list", "empty", "invalid", "deep"],
)
def test_a_registered_model_whose_description_is_damaged(config: bytes, reason: str, forge: Forge) -> None:
    for name in ("models/vdm", "data/images"):
        shutil.copytree(forge.files / name, forge.root / name)
    (forge.files / "models/vdm/config.json").write_bytes(config)
    forge.version("v1.3.0")
    with pytest.raises(DamagedVersionError, match=rf"^vdm@v1.3.0 does not verify: .*/config.json: damaged: {reason}"):
        require_sound(forge.repository, forge.resolve("v1.3.0"))
    crown(forge.project, "v1.3.0")
    for command in (
        ["verify", "champion"],
        ["promote", "v1.3.0"],
        ["promote", "v1.0.0"],
        ["evaluate", "champion"],
        ["compare", "models/vdm", "champion"],
        ["sample", "champion", "--out", "samples.png"],
        ["classify", "data/images", "champion"],
        ["compress", "data/images", "champion", "--out", "images.vdmz"],
        ["report", "champion", "--out", "page.html"],
    ):
        result = forge.vdmctl(*command)
        assert result.returncode == Exit.MISSING, command
        assert f"config.json: damaged: {reason}" in one_line(result)
    for command in (["models"], ["lineage", "champion"], ["status", "--verify"]):
        assert "vdm@v1.3.0" in forge.vdmctl(*command).stdout
    assert f"config.json: damaged: {reason}" in forge.vdmctl("status", "--verify").stdout


def test_a_damaged_lock_is_one_line(forge: Forge) -> None:
    lock = '{"stages": {"all": {"outs": [{"path": "models/vdm", "md5": "../up"}]}}}'
    name, reason = forge.version("v1.3.0", documents={"dvc.lock": lock}), "damaged: stages.all.outs.0.md5: "
    registry = forge.opened.registry
    for action, place in ((trace_lineage, registry), (verify, forge.repository), (fetch, forge.repository)):
        with pytest.raises(UserError, match=rf"^vdm@v1.3.0: dvc.lock at \w{{12}}: {reason}") as raised:
            action(place, registry.resolve(name))
        assert raised.value.code is Exit.MISSING


def test_the_status_names_the_champion_and_the_tags_that_the_remote_lacks(copied: Sandbox, tmp_path: Path) -> None:
    crown(copied, "v1.1.0")
    copied.git("init", "--quiet", "--bare", str(tmp_path / "bare"))
    copied.git("remote", "add", "origin", str(tmp_path / "bare"))
    copied.git("push", "--quiet", "origin", "vdm@v1.0.0", "vdm@v1.1.0")
    found = json.loads(copied.vdmctl("status", "--verify", "--json").stdout)
    assert found["registry"]["champion"] == "vdm@v1.1.0"
    assert found["registry"]["unpublished"] == ["vdm#champion#1", "vdm@v1.2.0"]  # the commit of the first is there
    assert not any("does not verify" in problem for problem in found["problems"])
    weights = cached(copied, "models/vdm", "weights.safetensors", "v1.1.0")
    weights.unlink()
    weights.write_bytes(b"damaged")
    assert "vdm@v1.1.0 does not verify: " in copied.vdmctl("status", "--verify").stdout
    copied.git("remote", "set-url", "origin", str(tmp_path / "nowhere"))
    assert "whether origin has every version is unknown: " in copied.vdmctl("status").stdout


def test_the_list_of_versions_has_fid_or_else_the_distance_in_the_features_of_the_pipeline() -> None:
    errors = {"samples_standard_error": 0.1, "held_out_standard_error": 0.1}
    of_precision, of_pipeline, of_inception = (
        {"samples": each, "held_out": each / 2} | errors for each in (0.5, 3.0, 20.0)
    )
    found = sample_metrics("b" * 64) | {"figures": {"precision": of_precision, "fd_0a1b2c3d": of_pipeline}}

    def shown(**more: Any) -> str:
        return distance(SampleMetrics.model_validate(found | {"figures": found["figures"] | more}))

    assert shown(fid=of_inception) == "fid 20.000 (10.000)"
    assert shown() == "fd_0a1b2c3d 3.000 (1.500)"
    assert shown(fd_0a1b2c3d=of_pipeline | {"held_out": None}) == "unknown"
    assert distance(None) == "unknown"


def test_verify_says_by_whom_the_tags_of_a_version_are_signed(forge: Forge) -> None:
    """A real key of SSH; git itself is asked to sign."""
    key = forge.folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (forge.folder / "signers").write_text(f"me@example.org {key.with_suffix('.pub').read_text()}")
    settings = {"gpg.format": "ssh", "user.signingkey": f"{key}.pub", "tag.gpgSign": "true"}
    settings["gpg.ssh.allowedSignersFile"] = str(forge.folder / "signers")
    for name, value in settings.items():
        forge.git("config", name, value)
    made = add_version(forge.repository, forge.commit("v1.3.0"), "Retrained").name
    crown(forge.project, made)
    done = forge.vdmctl("verify", made, "--json")
    assert done.returncode == 0, done.stderr
    signed = json.loads(done.stdout)["signatures"]
    assert [each["tag"] for each in signed] == [made, "vdm#champion#1"]
    assert all(each["signer"].startswith("me@example.org with ED25519 key SHA256:") for each in signed)
    assert forge.resolve("champion").message == "Retrained"
    assert f"{made}      signed by me@example.org" in forge.vdmctl("verify", made).stdout
    assert "vdm@v1.0.0  not signed" in forge.vdmctl("verify", "v1.0.0").stdout

    content = forge.git("cat-file", "tag", made)
    (forge.folder / "changed").write_text(content.replace("Retrained", "Chosen by hand"))
    changed = forge.git("hash-object", "-t", "tag", "-w", str(forge.folder / "changed")).strip()
    forge.git("update-ref", f"refs/tags/{made}", changed)
    done = forge.vdmctl("verify", made, "--json")
    assert done.returncode == Exit.MISSING
    assert "the signature of vdm@v1.3.0: git verify-tag" in one_line(done)
    assert "incorrect signature" in one_line(done)
    found = json.loads(done.stdout)
    assert (found["sound"], found["signatures"][0]["signer"]) == (False, None)

    (forge.folder / "copied").write_text(content)
    copied = forge.git("hash-object", "-t", "tag", "-w", str(forge.folder / "copied")).strip()
    for name in (made, "vdm@v1.4.0"):
        forge.git("update-ref", f"refs/tags/{name}", copied)
    forge.git("tag", "--delete", made)
    assert "it is the tag vdm@v1.3.0 under another name" in one_line(forge.vdmctl("verify", "v1.4.0"))
    (forge.folder / "key").unlink()
    with pytest.raises(UserError, match="git tag in "):
        add_version(forge.repository, forge.commit("v1.5.0"), "Retrained")
