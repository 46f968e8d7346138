"""The tests that guard the bound can fail: each classic mistake, made in a copy of the code, is caught."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MISTAKES = {
    "a half lost in the diffusion loss": ("vlb", "return 0.5 * dgamma_dt", "return dgamma_dt", "vlb"),
    "a half lost in the prior": ("vlb", "kl = 0.5 * (", "kl = 1.0 * (", "vlb"),
    "no ln 2": ("vlb", "nats / (num_dims * math.log(2))", "nats / num_dims", "vlb"),
    "a mean for a sum": ("vlb", "(eps - eps_hat).square().flatten(1).sum(1)", "(eps - eps_hat).square().mean((1, 2, 3))", "vlb"),
    "a constant slope": ("schedule", "return gamma_t, dgamma_dt", "return gamma_t, (schedule.gamma_1 - schedule.gamma_0).expand_as(t)", "vlb"),
    "the times of T steps off by one": ("vlb", "(torch.floor(t * num_timesteps) + 1)", "torch.floor(t * num_timesteps)", "vlb"),
    "the times of continuous weights on the grid": ("vlb", "num_timesteps / 2 * torch.expm1(gamma_t - gamma_s)", "0.5 * (gamma_t - gamma_s) * num_timesteps", "vlb"),
    "alpha_s and alpha_t swapped": ("diffusion", "alpha(gamma_s) * ((1 - c) / alpha(gamma_t) * z_t", "alpha(gamma_t) * ((1 - c) / alpha(gamma_s) * z_t", "diffusion"),
    "sampling off by one": ("sampling", "torch.arange(num_timesteps, -1, -1, device=device) / num_timesteps", "torch.arange(num_timesteps, -1, -1, device=device) / (num_timesteps + 1)", "sampling"),
    "sampling from clean to noise": ("sampling", "torch.arange(num_timesteps, -1, -1, device=device)", "torch.arange(num_timesteps + 1, device=device)", "sampling"),
    "256 levels everywhere": ("discretization", "2 * (pixels.to(dtype) + 0.5) / num_levels - 1", "2 * (pixels.to(dtype) + 0.5) / 256 - 1", "discretization"),
    "levels at their edges": ("discretization", "(pixels.to(dtype) + 0.5)", "pixels.to(dtype)", "discretization"),
    "the shape trained on the bound": ("training", "twice_loss = 2 * bits_per_dim(terms.diffusion.detach(), model.num_dims)", "twice_loss = torch.ones_like(t)", "training"),
    "no -log K": ("ode", "torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))", "torch.logsumexp(log_weights, dim=0)", "ode"),
    "the last images dropped": ("evaluation", "num_images = len(pixels)", "num_images = len(pixels) // 64 * 64", "evaluation"),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for name in ("vdm", "flows", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "oracles"))
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


def run_tests(copy: Path, module: str) -> int:
    """pytest's exit code on the tests of a module, importing the copy."""
    # The slow tests of a whole model are not what is meant to catch these.
    chosen = ["-k", "not trained and not monte_carlo and not company and not exact_predictor"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/test_{module}.py", *chosen]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False).returncode


@pytest.mark.parametrize("module", sorted({module for *_, module in MISTAKES.values()}))
def test_the_copy_passes_as_it_is(module: str, copy: Path) -> None:
    assert run_tests(copy, module) == 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake: str, copy: Path) -> None:
    file, right, wrong, module = MISTAKES[mistake]
    path = copy / "vdm" / f"{file}.py"
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    try:
        assert run_tests(copy, module) == 1
    finally:
        path.write_text(text)
