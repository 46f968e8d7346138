"""Measure the speed and memory of sampling with the preset's solver, in images x steps per second.

With --peer FOLDER, a checkout of addtt/variational-diffusion-models, ours and the peer's ancestral sampling run
alternately, each in a new process.  benchmarks/train_step.py says which packages the peer needs.
"""

from benchmarks.options import explained, positive
from benchmarks.speed import SAMPLED, against_peer, clock, parser, peak_memory, read_problem, report
from flows.core.device import find_device
from flows.sampling.drawing import solver_of
from vdm.model import VDM
from vdm.sampling import sample


def main() -> None:
    options = parser(__doc__, peer=True)
    options.add_argument("--num-timesteps", type=positive, default=20, help="number of steps from noise to image")
    chosen = options.parse_args()
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
    size, steps = chosen.batch_size or SAMPLED, chosen.num_timesteps
    if chosen.peer:
        compared = against_peer("sample", chosen, both=("--num-timesteps", str(steps)))
        report(compared, device, as_json=chosen.json)
        return
    changes = {"num_timesteps": steps, "precision": chosen.precision}
    model = VDM(**problem.model).to(device).eval()
    solver = solver_of(problem.params.sample.model_copy(update=changes), model)
    times = clock(lambda: sample(model, range(size), solver, seed=0), device, chosen.seconds)
    figures = {
        "preset": chosen.preset,
        "width": problem.model["width"],
        "blocks": problem.model["blocks"],
        "num_images": size,
        **solver._asdict(),
        "images_per_second": size / times["step_s"],
        "images_x_steps_per_second": size * steps / times["step_s"],
        "peak_memory_mib": peak_memory(device),
    }
    report(figures, device, as_json=chosen.json)


if __name__ == "__main__":
    main()
