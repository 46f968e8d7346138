"""Versions, promotions and lineage in real git."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from champions import crown
from project import IDENTITY, Project, cached, metrics_at, one_line, run_vdmctl
from ruamel.yaml import YAML

from flows.core.errors import Exit, UserError
from flows.core.files import write_whole
from flows.core.layout import METRICS, SAMPLE_METRICS
from flows.orchestration.pruning import prune
from flows.process.locks import holder_of
from flows.registry import git as registry_git
from flows.registry import publishing
from flows.registry import versions as of
from flows.registry.git import annotated_tags, contents, git_text, registry_lock
from flows.registry.lineage import lineage
from flows.registry.storage import fetch
from flows.registry.versions import add_version, record_refusal

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(1800)


def test_the_status_names_the_champion_and_the_versions_that_no_remote_has(copied: Project, tmp_path: Path) -> None:
    crown(copied, "v1.1.0")
    copied.git("init", "--quiet", "--bare", str(tmp_path / "bare"))
    copied.git("remote", "add", "elsewhere", str(tmp_path / "bare"))
    copied.git("push", "--quiet", "elsewhere", "vdm@v1.1.0^{commit}:refs/heads/main")
    result = copied.vdmctl("status", "--verify", "--json")
    found = json.loads(result.stdout)
    assert result.returncode == Exit.MISSING
    assert "no Prefect server answers" in one_line(result)
    assert found["registry"]["champion"] == "vdm@v1.1.0"
    assert found["registry"]["unpublished"] == ["vdm@v1.2.0"]
    assert [problem for problem in found["problems"] if "not pushed" in problem] == [
        "vdm@v1.2.0: not pushed to any remote; "
        "a run with publish=true pushes what runs made; "
        "`dvc push --all-tags` and `git push --follow-tags` push the rest"
    ]
    assert not any("does not verify" in problem for problem in found["problems"])

    weights = cached(copied, "models/vdm", "weights.safetensors", "v1.1.0")
    weights.unlink()
    weights.write_bytes(b"damaged")
    result = copied.vdmctl("status", "--verify")
    assert "vdm@v1.1.0 does not verify: " in result.stdout
    number = len(re.findall("^problem ", result.stdout, re.MULTILINE))
    assert one_line(result) == f"vdmctl: status: {number} problems; see the last lines of its output"


def test_models_lists_versions_with_figures_data_and_commit(copied: Project) -> None:
    crown(copied, "v1.1.0")
    rows = json.loads(copied.vdmctl("models", "--json").stdout)["versions"]
    assert [row["version"] for row in rows] == ["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.2.0"]
    assert [row["stages"] for row in rows] == [[], ["champion"], []]
    assert [row["commit"] for row in rows] == copied.git("rev-list", "--reverse", "-3", "HEAD").split()
    for row in rows:
        metrics = metrics_at(copied, row["commit"])
        assert all(row[key] == metrics[key] for key in ("bpd", "bpd_standard_error", "data_sha256", "model_sha256"))
    assert rows[0]["data_sha256"] == rows[1]["data_sha256"] != rows[2]["data_sha256"]
    header, *lines = copied.vdmctl("models").stdout.splitlines()
    titles = ["version", "stage", "bits/dim", "samples (held-out)", "data", "commit", "created"]
    assert re.split(r"\s{2,}", header) == titles
    assert lines[1].split()[:4] == ["vdm@v1.1.0", "champion", f"{rows[1]['bpd']:.4f}", "+-"]
    assert rows[1]["commit"][:12] in lines[1]
    figures = json.loads(copied.git("show", f"{rows[1]['commit']}:{SAMPLE_METRICS}"))["figures"]
    assert rows[1]["samples"] == figures
    name = next(iter(figures))
    assert f"{name} {figures[name]['samples']:.3f} ({figures[name]['held_out']:.3f})" in lines[1]


def test_a_hundred_versions_keep_their_figures(tmp_path: Path) -> None:
    """`git fast-import` writes them in an order that is neither that of the numbers nor that of the names."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    stream = []
    for minor in reversed(range(100)):
        metrics = json.dumps({"bpd": 2 + minor / 1000, "bpd_standard_error": 0.01, "data_sha256": f"{minor:064x}"})
        who, name = f"Test <test@example.org> {1_700_000_000 + minor} +0000", f"vdm@v1.{minor}.0"
        stream += [f"commit refs/heads/main\nmark :{minor + 1}\ncommitter {who}\ndata 0\n"]
        stream += [f"M 100644 inline {METRICS}\ndata {len(metrics)}\n{metrics}\n"]
        stream += [f"tag {name}\nfrom :{minor + 1}\ntagger {who}\ndata 9\nLine\n\nTwo\n"]
    subprocess.run(["git", "fast-import", "--quiet"], input="".join(stream), text=True, cwd=tmp_path, check=True)
    rows = json.loads(Project.at(tmp_path).vdmctl("models", "--json").stdout)["versions"]
    assert [row["version"] for row in rows] == [f"vdm@v1.{minor}.0" for minor in range(100)]
    assert [row["bpd"] for row in rows] == [2 + minor / 1000 for minor in range(100)]
    assert [int(row["data_sha256"], 16) for row in rows] == list(range(100))


def test_listing_loads_nothing_heavy(registry: Project) -> None:
    program = (
        "import sys; from flows.cli import run; run(['models', '--json']);"
        "print({'torch', 'prefect', 'great_expectations', 'dvc', 'numpy', 'gto'} & set(sys.modules), file=sys.stderr)"
    )
    assert registry.run(sys.executable, "-c", program).stderr == "set()\n"


def test_a_page_about_versions_has_their_results_and_their_lineage(copied: Project) -> None:
    """The results are fetched from the remote.  The third version has other images."""
    shutil.rmtree(copied.folder / ".dvc/cache")
    shutil.rmtree(copied.folder / "reports")
    for name, arguments in {"one": ["v1.0.0"], "two": ["v1.0.0", "v1.1.0"], "three": ["v1.1.0", "v1.2.0"]}.items():
        result = copied.vdmctl("report", *arguments, "--out", f"{name}.html")
        assert (result.returncode, result.stderr) == (0, "")
    one, two, three = ((copied.folder / f"{name}.html").read_text() for name in ("one", "two", "three"))
    metrics = metrics_at(copied, "vdm@v1.0.0")
    figure = f"{metrics['bpd']:.4f}&nbsp;± {metrics['bpd_standard_error']:.4f}"
    commit = copied.git("rev-parse", "vdm@v1.0.0^{commit}").strip()
    assert [text in one for text in (figure, commit, "<code>vdm@v1.0.0</code>", "Easiest images")] == [True] * 4
    assert one.count("<svg") == 4
    difference = metrics_at(copied, "vdm@v1.1.0")["bpd"] - metrics["bpd"]
    assert f"\N{MINUS SIGN}{-difference:.4f}&nbsp;±" in two
    assert "No paired difference: they were evaluated on different images." in three

    damaged = cached(copied, "reports/evaluation/per_image.csv", "", "v1.0.0")
    damaged.chmod(0o644)
    damaged.write_text("image,bpd")
    result = copied.vdmctl("report", "v1.0.0", "--out", "four.html")
    assert result.returncode == Exit.MISSING
    assert "vdm@v1.0.0: reports/evaluation/per_image.csv: the file is damaged in the cache" in one_line(result)
    assert not (copied.folder / "four.html").exists()


def test_lineage_goes_from_the_tag_to_every_digest(registry: Project) -> None:
    result = registry.vdmctl("lineage", "v1.1.0", "--json")
    chain = json.loads(result.stdout)
    lock = YAML(typ="safe", pure=True).load(registry.git("show", "vdm@v1.1.0:dvc.lock"))["stages"]
    assert chain["commit"] == registry.git("rev-parse", "vdm@v1.1.0^{commit}").strip()
    assert chain["parameters"]["train"]["steps"] == 40
    assert chain["parameters"] == {
        section: values
        for stage in lock.values()
        for section, values in stage.get("params", {}).get("params.yaml", {}).items()
    }
    outs = {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}
    assert chain["outputs"] == outs
    assert chain["data"]["md5"] == outs["data/images"]
    assert chain["data"]["sha256"] == metrics_at(registry, "vdm@v1.1.0")["data_sha256"]
    assert chain["validation"]["md5"] == outs["reports/validation/validation.json"]
    assert {"vdm/vlb.py", "flows/stages/train.py"} <= chain["code"].keys()
    text = registry.vdmctl("lineage", "v1.1.0").stdout
    places = [text.index(word) for word in ("tag ", "commit ", "parameters", "data ", "validation ", "code", "outputs")]
    assert places == sorted(places)
    assert all(md5 in text for md5 in [*outs.values(), *chain["code"].values()])


def test_a_tag_that_withdraws_a_champion_is_no_promotion(copied: Project) -> None:
    crown(copied, "v1.0.0")
    copied.gto("deprecate", "vdm", "v1.0.0", "champion")
    text = copied.vdmctl("lineage", "v1.0.0").stdout
    assert "\nchampion    vdm#champion#1 " in text
    assert "\nwithdrawn   vdm#champion!#2 " in text
    assert copied.vdmctl("report", "v1.0.0", "--out", "one.html").returncode == 0
    page = (copied.folder / "one.html").read_text()
    assert "promoted, vdm#champion#1" in page
    assert "promoted, vdm#champion!#2" not in page


def test_versions_count_up_and_carry_their_message(copied: Project) -> None:
    tags = annotated_tags(copied.folder, "vdm@")
    assert [tag.name for tag in tags] == ["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.2.0"]
    assert {tag.message for tag in tags} == {"Retrained"}
    assert "Test <test@example.org>" in copied.git("cat-file", "-p", "vdm@v1.2.0")
    # GTO itself lists the same.
    shown = copied.run("gto", "show", "vdm", "--json").stdout
    assert [entry["version"] for entry in json.loads(shown)] == ["v1.2.0", "v1.1.0", "v1.0.0"]


def test_a_linked_worktree_shares_the_registry(copied: Project, tmp_path: Path) -> None:
    copied.git("worktree", "add", "--quiet", str(tmp_path / "run"))
    copied.git("-C", str(tmp_path / "run"), "commit", "--quiet", "--allow-empty", "--message=A run")
    version = of.add_version(tmp_path / "run", "HEAD", "From a worktree")
    assert version.name == "vdm@v1.3.0"
    assert of.newest(copied.folder) == version
    with registry_lock(tmp_path / "run"):
        assert of.make_champion(tmp_path / "run", version, "By hand") == "vdm#champion#1"
    assert of.resolve(copied.folder, "champion").name == "vdm@v1.3.0"
    assert (fetch(tmp_path / "run", version) / "config.json").is_file()


def test_the_name_of_a_lightweight_tag_is_taken(copied: Project) -> None:
    copied.git("commit", "--quiet", "--allow-empty", "--message=A run")
    copied.git("tag", "vdm@v1.3.0")  # not a version to GTO
    assert of.add_version(copied.folder, "HEAD", "Retrained").name == "vdm@v1.4.0"
    assert of.newest(copied.folder).name == "vdm@v1.4.0"


@pytest.mark.parametrize(
    ("commit", "code", "message"),
    [
        ("HEAD", Exit.USAGE, "is vdm@v1.2.0 already"),
        ("nothing", Exit.MISSING, "nothing: git knows no such commit"),
        ("HEAD~3", Exit.MISSING, "has no reports/evaluation/metrics.json"),
    ],
)
def test_a_commit_that_cannot_be_a_version(commit: str, code: Exit, message: str, registry: Project) -> None:
    with pytest.raises(UserError, match=message) as raised:
        of.add_version(registry.folder, commit, "Retrained")
    assert raised.value.code == code


def test_without_a_git_identity_nothing_is_tagged(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    copied.git("commit", "--quiet", "--allow-empty", "--message=A run")
    copied.git("config", "--remove-section", "user")
    for name in [name for name in os.environ if name.startswith(("GIT_", "EMAIL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    with pytest.raises(UserError, match="git needs an identity") as raised:
        of.add_version(copied.folder, "HEAD", "Retrained")
    assert raised.value.code == Exit.USAGE
    result = run_vdmctl(copied.folder, dict(os.environ), "promote")
    assert result.returncode == Exit.USAGE
    assert "git needs an identity" in one_line(result)
    assert "vdm#" not in copied.git("tag")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate", "champion"], 5, "no version is the champion"),
        (["evaluate", "v9.0.0"], 5, "there is no version vdm@v9.0.0; `vdmctl models`"),
        (["compare", "v1.0.0", "vdm@v9.0.0"], 5, "there is no version vdm@v9.0.0"),
        (["lineage", "vdm@latest"], 2, "vdm@latest: not a version such as vdm@v1.2.0"),
        (["verify", "v1.9.0"], 5, "there is no version vdm@v1.9.0"),
        (["promote", "models/vdm"], 2, "not a version"),
        (["rollback"], 5, "no version is the champion; `vdmctl promote` makes the first"),
    ],
)
def test_a_model_that_is_not_there(arguments: list[str], code: int, message: str, registry: Project) -> None:
    result = registry.vdmctl(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in one_line(result)


def test_outside_a_repository(tmp_path: Path) -> None:
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    result = run_vdmctl(tmp_path, environment, "models")
    assert result.returncode == 5
    assert "not a git repository" in one_line(result)


def test_a_folder_below_the_top_of_its_repository_is_refused(registry: Project) -> None:
    """Paths of files in commits begin at the top."""
    below = registry.folder / "flows"
    for use in (of.versions, partial(prune, keep=1, dry_run=True)):
        reason = f"{below}: not the top folder of its git repository, {registry.folder},"
        with pytest.raises(UserError, match=re.escape(reason)) as raised:
            use(below)
        assert raised.value.code is Exit.USAGE


def test_deregistered_versions_are_not_listed_and_their_numbers_not_reused(copied: Project) -> None:
    copied.gto("deprecate", "vdm", "v1.2.0")
    assert of.newest(copied.folder).name == "vdm@v1.1.0"
    copied.git("commit", "--quiet", "--allow-empty", "--message=A run")
    assert of.add_version(copied.folder, "HEAD", "Retrained").name == "vdm@v1.3.0"


def test_files_of_commits_that_are_not_there(registry: Project) -> None:
    names = ["HEAD:dvc.yaml", "HEAD:no such file", "HEAD:params.yaml"]
    found = contents(registry.folder, names)
    assert found["HEAD:no such file"] is None
    assert found["HEAD:params.yaml"] == registry.git("show", "HEAD:params.yaml").encode()


def test_promotions_are_listed_in_their_order(copied: Project) -> None:
    names = ["vdm#champion#2", "vdm#champion!#3", "vdm#champion#10"]
    for name in names:
        copied.git("tag", "--annotate", "--message=By hand", name, "vdm@v1.0.0^{commit}")
    chain = lineage(copied.folder, of.resolve(copied.folder, "v1.0.0"))
    assert [tag.name for tag in chain.promotions] == names


def test_only_a_folder_outside_every_repository_is_to_be_left(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="change to the project's folder"):
        git_text(tmp_path, "rev-parse", "HEAD")
    (tmp_path / ".git").write_text("gitdir: /gone/.git/worktrees/x\n")
    with pytest.raises(UserError, match="not a git repository: /gone") as error:
        git_text(tmp_path, "rev-parse", "HEAD")
    assert "project's folder" not in str(error.value)


def test_refs_change_only_under_the_registrys_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two runs could count the same tags, and a note or a tag of one of them would be lost."""
    project, printed = Project.at(tmp_path), registry_git.printed
    unlocked, seen = list[tuple[str, ...]](), set[str]()
    project.git("init", "--quiet", "--initial-branch=main")
    write_whole(tmp_path / "reports/evaluation/metrics.json", '{"bpd": 2.0}')
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message=A run")
    project.git("remote", "add", "origin", ".")
    for key, value in IDENTITY.items():
        project.git("config", f"user.{key.lower()}", value)

    def noted(root: Path, *arguments: str, **options: Any) -> Any:
        changes = {"tag", "update-ref", "add", "remove", "merge"}.intersection(arguments)
        seen.update(changes)
        if changes and holder_of(tmp_path / ".git/vdm-registry.lock") is None:
            unlocked.append(arguments)
        return printed(root, *arguments, **options)

    monkeypatch.setattr(registry_git, "printed", noted)
    version = add_version(tmp_path, "HEAD", "Retrained")
    record_refusal(tmp_path, version, "Refuse")
    publishing.merge_notes(tmp_path)
    publishing.withdraw(tmp_path, [version.commit], {})
    assert unlocked == []
    assert {"tag", "add"} <= seen
    assert project.git("for-each-ref", "refs/tags") == ""
