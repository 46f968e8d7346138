"""Measure the speed and memory of evaluating the bound, with one network evaluation per image, on random images.

With --peer FOLDER, a checkout of addtt/variational-diffusion-models, ours and the peer's evaluation run alternately.
benchmarks/train_step.py says which packages the peer needs.
"""

from benchmarks.options import explained
from benchmarks.speed import against_peer, clock, parser, peak_memory, read_problem, report
from flows.core.device import find_device, find_precision
from vdm.evaluation import evaluate
from vdm.model import VDM


def main() -> None:
    options = parser(__doc__, peer=True)
    chosen = options.parse_args()
    with explained(options):
        problem, device = read_problem(chosen), find_device(chosen.device)
    size = chosen.batch_size or problem.params.evaluate.batch_size
    if chosen.peer:
        report(against_peer("evaluate", chosen), device, as_json=chosen.json)
        return
    precision = find_precision(chosen.precision, device)
    model = VDM(**problem.model).to(device).eval()
    images = problem.images[:size].numpy()
    settings = {"times_per_image": 1, "num_timesteps": None, "batch_size": size, "seed": 0, "precision": precision}
    times = clock(lambda: evaluate(model, images, **settings), device, chosen.seconds)
    figures = {
        "preset": chosen.preset,
        "precision": precision,
        "width": problem.model["width"],
        "blocks": problem.model["blocks"],
        "batch_size": size,
        "images_per_second": len(images) / times["step_s"],
        "time_to_first_step_s": times["first_step_s"],
        "peak_memory_mib": peak_memory(device),
    }
    report(figures, device, as_json=chosen.json)


if __name__ == "__main__":
    main()
