"""Measure the numerical error of the ODE likelihood, and its network evaluations, for several tolerances of the solver.

The first problem is a finite set of images at gamma_0 = -13.3, where predictor and density are known.  It is solved
with the state z, and with the state y = z / sigma of `vdm.ode`.  The second is a small model of the digits.  Its error
is the difference from the result at a tenth of the lowest tolerance.

    python -m benchmarks.ode_error [--steps 1500] [--json]
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import show
from benchmarks.options import new_parser, positive
from benchmarks.small_models import digits, trained
from flows.evaluation.solver import dopri5
from vdm.discretization import pixels_to_x
from vdm.ode import Derivative, Solve, State, basis_probes, evaluate_ode, log_density
from vdm.schedule import alpha, sigma
from vdm.vlb import PredictNoise, bits_per_dim

TOLERANCES = (1e-3, 1e-4, 1e-5)
Row = dict[str, object]


def log_likelihoods(x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
    """Return log N(z; alpha x_n, sigma^2 I) for every z (B,C,H,W) and every image x_n (N,C,H,W): (B,N) nats."""
    eps = (z[:, None] - alpha(gamma) * x).flatten(2) / sigma(gamma)
    return -0.5 * (eps.square() + math.log(2 * math.pi) + 2 * torch.log(sigma(gamma))).sum(2)


def log_mixture(x: Tensor, z: Tensor, gamma: Tensor) -> Tensor:
    """Return the log density of z (B,C,H,W) at gamma when the data are the images x (N,C,H,W): (B,) nats."""
    return torch.logsumexp(log_likelihoods(x, z, gamma), dim=1) - math.log(len(x))


def exact_predictor(x: Tensor) -> PredictNoise:
    """Return the exact noise predictor when the data are the images x (N,C,H,W)."""

    def predict(z: Tensor, gamma: Tensor) -> Tensor:
        weights = torch.softmax(log_likelihoods(x, z, gamma[0]), dim=1)
        return (z - alpha(gamma[0]) * torch.einsum("bn,nchw->bchw", weights, x)) / sigma(gamma[0])

    return predict


def in_z(solve: Solve) -> Solve:
    """Return a solver whose state is z instead of y = z / sigma."""

    def solve_in_z(derivative: Derivative, start: State, times: Tensor) -> State:
        def of_z(gamma: Tensor, state: State) -> State:
            velocity, gain = derivative(gamma, (state[0] / sigma(gamma), state[1]))
            return sigma(gamma) * velocity + 0.5 * alpha(gamma) ** 2 * state[0], gain

        z, gain = solve(of_z, (sigma(times[0]) * start[0], start[1]), times)
        return z / sigma(times[-1]), gain

    return solve_in_z


def measure(run: Callable[[Solve], Tensor], solve: Solve, truth: Tensor) -> Row:
    """Return the number of network evaluations of a run, and its mean and worst error in bits/dim."""
    evaluations = 0

    def counted(derivative: Derivative, start: State, times: Tensor) -> State:
        def count(gamma: Tensor, state: State) -> State:
            nonlocal evaluations
            evaluations += 1
            return derivative(gamma, state)

        return solve(count, start, times)

    error = run(counted) - truth
    worst = error[error.abs().argmax()].item()
    return {"evaluations": evaluations, "mean_error_bpd": error.mean().item(), "worst_error_bpd": worst}


def finite_set(pixels: np.ndarray, num_images: int) -> list[Row]:
    """Return the errors for the first `num_images` images of the set, exact divergence, with both states."""
    x = pixels_to_x(torch.from_numpy(pixels), 17, torch.float64)
    gamma_0, gamma_1 = torch.tensor([-13.3, 20.0], dtype=torch.float64)
    eps = torch.randn(num_images, *x.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z_0 = alpha(gamma_0) * x[:num_images] + sigma(gamma_0) * eps
    probes, predict_noise, num_dims = basis_probes(z_0), exact_predictor(x), x[0].numel()

    def run(solve: Solve) -> Tensor:
        density = log_density(z_0, gamma_0, gamma_1, probes, predict_noise=predict_noise, solve=solve)
        return bits_per_dim(-density, num_dims)

    truth = bits_per_dim(-log_mixture(x, z_0, gamma_0), num_dims)
    return [
        {"problem": "finite set", "state": state, "tolerance": tolerance}
        | measure(run, dopri5(tolerance) if state == "y" else in_z(dopri5(tolerance)), truth)
        for state in ("z", "y")
        for tolerance in TOLERANCES
    ]


def network(train: np.ndarray, test: np.ndarray, steps: int) -> list[Row]:
    """Return the errors for the images `test` with a model of the digits, one probe."""
    model = trained(train, 17, schedule="fixed_linear", gamma_0=-9.0, width=32, steps=steps)

    def run(solve: Solve) -> Tensor:
        return torch.from_numpy(
            evaluate_ode(
                model,
                test,
                seed=0,
                num_draws=1,
                num_probes=1,
                dequantisation="truncated_normal",
                batch_size=512,
                solve=solve,
            )
        )

    truth = run(dopri5(TOLERANCES[-1] / 10))
    return [
        {"problem": "network", "state": "y", "tolerance": tolerance} | measure(run, dopri5(tolerance), truth)
        for tolerance in TOLERANCES
    ]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--steps", type=positive, default=1500, help="training steps of the model")
    parser.add_argument("--images", type=positive, default=8, help="number of images to evaluate")
    arguments = parser.parse_args()
    train, test = digits()
    rows = finite_set(train[: max(64, arguments.images)], arguments.images)
    rows += network(train, test[: arguments.images], arguments.steps)
    show({"rows": rows}, as_json=arguments.json)


if __name__ == "__main__":
    main()
