"""Each classic mistake, made in a copy of the code, makes the tests of the bound fail.  `make mutants` runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from project import ROOT


class Mistake(NamedTuple):
    """A text in vdm/`file`.py, its replacement, and the module whose tests must fail."""

    file: str
    right: str
    wrong: str
    tests: str


MISTAKES = {
    "a half lost in the diffusion loss": Mistake("vlb", "return 0.5 * dgamma_dt", "return dgamma_dt", "vlb"),
    "a half lost in the prior": Mistake("vlb", "kl = 0.5 * (", "kl = 1.0 * (", "vlb"),
    "no ln 2": Mistake("vlb", "nats / (num_dims * math.log(2))", "nats / num_dims", "vlb"),
    "a mean for a sum": Mistake("vlb", ".square().flatten(1).sum(1)", ".square().flatten(1).mean(1)", "vlb"),
    "a constant slope": Mistake(
        "schedule",
        "return self.start + span * share, span * slope",
        "return self.start + span * share, span.expand_as(t)",
        "vlb",
    ),
    "the times of T steps off by one": Mistake(
        "vlb", "(torch.floor(t * num_timesteps) + 1)", "(t * num_timesteps)", "vlb"
    ),
    "continuous weights on the grid of T steps": Mistake(
        "vlb", "torch.expm1(gamma_t - gamma_s)", "(gamma_t - gamma_s)", "vlb"
    ),
    "alpha_s and alpha_t swapped": Mistake(
        "diffusion",
        "mean - alpha(gamma_s) * torch.expm1",
        "mean - alpha(gamma_t) * torch.expm1",
        "diffusion",
    ),
    "sampling off by one": Mistake(
        "sampling", "dtype) / solver.num_timesteps", "dtype) / (solver.num_timesteps + 1)", "sampling"
    ),
    "sampling from clean to noise": Mistake(
        "sampling", "torch.arange(solver.num_timesteps, -1, -1,", "torch.arange(solver.num_timesteps + 1,", "sampling"
    ),
    "256 levels everywhere": Mistake("discretization", "+ 0.5) / num_levels - 1", "+ 0.5) / 256 - 1", "discretization"),
    "levels at their edges": Mistake(
        "discretization", "(pixels.to(dtype) + 0.5)", "pixels.to(dtype)", "discretization"
    ),
    "the shape trained on the bound": Mistake(
        "training/trainer",
        "twice_loss = 2 * bits_per_dim(terms.diffusion.detach(), model.num_dims)",
        "twice_loss = 1",
        "training",
    ),
    "no -log K": Mistake(
        "ode",
        "torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))",
        "torch.logsumexp(log_weights, 0)",
        "ode",
    ),
    "the last images dropped": Mistake(
        "evaluation", "range(len(pixels))", "range(len(pixels) // 64 * 64)", "evaluation"
    ),
}


def run_tests(copy: Path, module: str) -> int:
    """Run the tests of a module of vdm/ in a copy of the code; return pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-qx", "-m", "not slow and not processes", f"tests/vdm/test_{module}.py"]
    return subprocess.run(command, cwd=copy, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True).returncode


def copy_code(copy: Path, mistake: Mistake | None) -> None:
    """Copy the code and its tests into the folder, with the mistake."""
    for name in ("vdm", "flows", "tests", "benchmarks", "presets"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("oracles", "*.pyc.*"))
    for name in ("pyproject.toml", "params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, copy / name)
    if mistake:
        path = copy / "vdm" / f"{mistake.file}.py"
        text = path.read_text()
        assert text.count(mistake.right) == 1, f"{mistake.right!r} must be in {path.name} exactly once"
        path.write_text(text.replace(mistake.right, mistake.wrong))


@pytest.mark.parametrize("module", sorted({mistake.tests for mistake in MISTAKES.values()}))
def test_the_tests_that_catch_mistakes_pass_on_the_unchanged_code(module: str, tmp_path: Path) -> None:
    copy_code(tmp_path, None)
    assert run_tests(tmp_path, module) == 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake: str, tmp_path: Path) -> None:
    copy_code(tmp_path, MISTAKES[mistake])
    assert run_tests(tmp_path, MISTAKES[mistake].tests) == 1
