"""The worktree and parameters of a run, with real git and DVC; test_flow.py tests the runs themselves."""

from typing import Any

import pytest
from project import Project

from flows.core.errors import Exit, UserError
from flows.orchestration.workspace import compose_params, finished, workspace

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(900)

COMMITTED = "params.yaml of commit HEAD"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train": {"steps": 3}}, "override train is not a known parameter"),
        ({"train.stepz": 5}, "override train.stepz is not a known parameter"),
        ({"train.steps.more": 3}, "override train.steps.more is not a known parameter"),
        ({"steps": 3}, "override steps is not a known parameter"),
        ({"train.steps": "many"}, r"params.yaml with the overrides:\d+: train.steps: .* got 'many'"),
    ],
)
def test_an_override_is_checked(overrides: dict[str, Any], message: str, registry: Project) -> None:
    with pytest.raises(UserError, match=message) as raised:
        compose_params(registry.folder, "HEAD", None, overrides)
    assert raised.value.code is Exit.USAGE


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("confidence: 0.95", "confidence: 2", rf"{COMMITTED}:\d+: promote.confidence: .* got 2"),
        ("confidence: 0.95", "confidence: [", f"{COMMITTED}: not YAML: "),
    ],
)
@pytest.mark.parametrize("overrides", [{}, {"train.steps": 5}])
def test_the_committed_file_is_checked(
    overrides: dict[str, Any], old: str, new: str, message: str, copied: Project
) -> None:
    copied.edit("params.yaml", **{old: new})
    compose_params(copied.folder, "HEAD", None, overrides)  # a run ignores what is not committed
    copied.git("commit", "--quiet", "--all", "--message=Wrong")
    with pytest.raises(UserError, match=message) as raised:
        compose_params(copied.folder, "HEAD", None, overrides)
    assert raised.value.code is Exit.USAGE


def test_an_unknown_preset(registry: Project) -> None:
    known = "no preset 'digit' in commit HEAD; presets: cifar10, cifar10_aug"
    with pytest.raises(UserError, match=known) as raised:
        compose_params(registry.folder, "HEAD", "digit", {})
    assert raised.value.code is Exit.USAGE


def test_a_commit_without_parameters(copied: Project) -> None:
    copied.git("rm", "--quiet", "params.yaml")
    copied.git("commit", "--quiet", "--message=None")
    with pytest.raises(UserError, match=r"no params.yaml in commit HEAD; presets: .*digits"):
        compose_params(copied.folder, "HEAD", None, {})


def test_results_are_found_however_many_runs_came_since(copied: Project) -> None:
    """The results of v1.0.0 are found by its parameters; if none fit, nothing is left in the worktree."""
    root = copied.folder
    first = copied.git("rev-parse", "vdm@v1.0.0^{commit}").strip()
    for number in range(9):
        copied.git("branch", f"runs/{number}", "HEAD~1")
    with workspace(root, copied.git("show", f"{first}:params.yaml"), "HEAD") as place:
        assert finished(place, shared=False) == first
    with workspace(root, compose_params(root, "HEAD", None, {"train.seed": 9}), "HEAD") as place:
        assert finished(place, shared=False) is None
        assert copied.run("git", "-C", str(place.folder), "status", "--porcelain").stdout == " M params.yaml\n"


def test_results_of_other_code_are_not_used(copied: Project) -> None:
    copied.edit("flows/stages/sample.py", **{'"""': '"""Other code. '})
    copied.git("commit", "--quiet", "--all", "--message=Other code")
    with workspace(copied.folder, compose_params(copied.folder, "HEAD", None, {}), "HEAD") as place:
        assert finished(place, shared=False) is None
        assert copied.run("git", "-C", str(place.folder), "status", "--porcelain").stdout == ""
