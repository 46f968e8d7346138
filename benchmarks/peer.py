"""Measure a training step, an evaluation or sampling of addtt/variational-diffusion-models, done as in its own scripts.

benchmarks/train_step.py, benchmarks/evaluate.py and benchmarks/sample.py run this for their comparison.
"""

import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch

from benchmarks.options import explained, positive
from benchmarks.speed import SAMPLED, clock, parser, peak_memory, read_problem, report
from flows.core.device import find_device

# The defaults of its train.py.
LEARNING_RATE = 2e-4
BATCH_SIZE = 128


def main() -> None:
    options = parser(__doc__)
    options.add_argument("what", choices=["train_step", "evaluate", "sample"])
    options.add_argument("--num-timesteps", type=positive, default=20, help="steps of sampling")
    options.add_argument("folder", help="a checkout of the peer")
    chosen = options.parse_args()
    sys.path.insert(0, chosen.folder)
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
    train, evaluate = problem.params.train, problem.params.evaluate
    sizes = {"train_step": train.batch_size, "evaluate": evaluate.batch_size, "sample": SAMPLED}
    size = chosen.batch_size or sizes[chosen.what]
    batch = (problem.images[:size].float() / 255).to(device)  # as its data loader does; it supports 256 levels only
    diffusion = build(problem.model, size, device)
    match chosen.what:
        case "train_step":
            step, _ = training_step(diffusion, lambda: batch, learning_rate=LEARNING_RATE)
        case "evaluate":
            step = evaluation(diffusion, batch)
        case _:
            step = sampling(diffusion, size, chosen.num_timesteps)
    times = clock(step, device, chosen.seconds)
    figures = {"images_per_second": size / times["step_s"], "peak_memory_mib": peak_memory(device)}
    report(figures, device, as_json=chosen.json)


def build(model: dict[str, Any], batch_size: int, device: torch.device) -> Any:
    """Return the peer's model with the sizes in `model` and its own settings otherwise, which are its `cfg`."""
    from utils import TrainConfig  # type: ignore[import-not-found]
    from vdm_unet import UNetVDM  # type: ignore[import-not-found]

    config = TrainConfig(
        embedding_dim=model["width"],
        n_blocks=model["blocks"],
        n_attention_heads=1,
        dropout_prob=model["dropout"],
        norm_groups=model["norm_groups"],
        input_channels=model["image_shape"][0],
        use_fourier_features=True,
        attention_everywhere=model["attention_everywhere"],
        batch_size=batch_size,
        noise_schedule="learned_linear",
        gamma_min=model["gamma_0"],
        gamma_max=model["gamma_1"],
        antithetic_time_sampling=True,
        lr=LEARNING_RATE,
        weight_decay=0.01,
        clip_grad_norm=True,
    )
    network = UNetVDM(config)
    # Its module has the name of our package `vdm`, so it is loaded by its path.
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("peer_vdm", f"{sys.path[0]}/vdm.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VDM(network, config, image_shape=model["image_shape"]).to(device)


def training_step(
    diffusion: Any, next_batch: Callable[[], torch.Tensor], *, learning_rate: float
) -> tuple[Callable[[], None], Any]:
    """Return a function that takes one step, and the averaged model.

    A step is forward, backward, clipping, AdamW, averaging, and reading the loss.
    """
    from ema_pytorch import EMA  # type: ignore[import-not-found]

    average = EMA(diffusion, beta=0.9999, update_every=1, power=0.75)
    optimizer = torch.optim.AdamW(diffusion.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=0.01)

    def step() -> None:
        optimizer.zero_grad()
        loss, _ = diffusion(next_batch())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        loss.item()
        average.update()

    return step, average


def evaluation(diffusion: Any, batch: torch.Tensor) -> Callable[[], None]:
    """Return a function that computes the bound of the batch, without gradients."""
    diffusion.eval()

    @torch.no_grad()
    def step() -> None:
        _, metrics = diffusion(batch)
        metrics["bpd"].item()

    return step


def sampling(diffusion: Any, size: int, num_timesteps: int) -> Callable[[], None]:
    """Return a function that samples a batch ancestrally, with clipping, as its script does."""
    diffusion.eval()

    def step() -> None:
        with redirect_stderr(StringIO()):  # its progress bar
            diffusion.sample(size, num_timesteps, clip_samples=True)

    return step


if __name__ == "__main__":
    main()
