"""The samplers by their usual names, for `--sampler` and the app."""

from typing import Literal

Sampler = Literal["ancestral", "ddim", "dpm-solver++", "sde-dpm-solver++"]
SOLVERS: dict[Sampler, dict[str, float]] = {
    "ancestral": {"order": 1, "eta": 1.0},
    "ddim": {"order": 1, "eta": 0.0},
    "dpm-solver++": {"order": 2, "eta": 0.0},
    "sde-dpm-solver++": {"order": 2, "eta": 1.0},
}
