"""Measure the speed and memory of ancestral sampling with the preset's number of steps."""

import torch

from benchmarks.options import explained, positive
from benchmarks.speed import clock, parser, peak_memory, read_problem, report
from flows.core.device import find_device
from vdm.model import VDM
from vdm.sampling import sample


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--num-timesteps", type=positive, help="number of steps instead of the preset's")
    chosen = options.parse_args()
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
    settings = problem.params.sample
    size, steps = chosen.batch_size or settings.num_images, chosen.num_timesteps or settings.num_timesteps
    model = VDM(**problem.model).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    times = clock(
        lambda: sample(model, size, num_timesteps=steps, clip=settings.clip, generator=generator),
        device,
        chosen.seconds,
    )
    figures = {
        "preset": chosen.preset,
        "width": problem.model["width"],
        "blocks": problem.model["blocks"],
        "num_images": size,
        "num_timesteps": steps,
        "images_per_second": size / times["step_s"],
        "network_evaluations_per_second": size * steps / times["step_s"],
        "peak_memory_mib": peak_memory(device),
    }
    report(figures, device, as_json=chosen.json)


if __name__ == "__main__":
    main()
