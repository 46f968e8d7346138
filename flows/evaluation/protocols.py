"""What `vdmctl` computes of a model's likelihood besides the pipeline's own evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.core.device import find_device
from flows.core.memory import require
from flows.evaluation.bound import digests, load_fitting, number, require_memory
from flows.evaluation.solver import dopri5
from flows.process.progress import bar
from vdm import evaluation
from vdm.ode import evaluate_ode, memory_needed

if TYPE_CHECKING:
    from flows.core.params import Evaluate, Ode


def ode(settings: "Ode", *, model: Path, images: Path) -> dict[str, Any]:
    """The probability-flow ODE's likelihood of the test images, bits/dim."""
    vdm, image_set = load_fitting(model, images, find_device(settings.device))
    arguments = settings.model_dump(exclude={"device", "num_images"})
    test = image_set.test[: settings.num_images]
    sizes = settings.model_dump(include={"num_draws", "num_probes", "batch_size"})
    needed = memory_needed(vdm, num_images=len(test), **sizes)
    require(
        needed,
        find_device(settings.device),
        "ode: lower ode.num_probes, or set it if 0, ode.num_draws or ode.batch_size",
    )
    options = settings.model_dump(include={"seed", "dequantisation"}) | sizes
    bpd = evaluate_ode(vdm, test, solve=dopri5(settings.tolerance), progress=bar("evaluating"), **options)
    error = evaluation.standard_error(bpd)
    result = {"protocol": "ode", "bpd": number(bpd.mean()), "bpd_standard_error": number(error)}
    return result | {"num_images": len(bpd)} | arguments | digests(model, images)


def compare(settings: "Evaluate", *, first: Path, second: Path, images: Path, confidence: float) -> dict[str, Any]:
    """The paired difference second - first over the same images, times and noise, bits/dim."""
    device, arguments = find_device(settings.device), settings.model_dump(exclude={"device"})
    loaded = [load_fitting(model, images, device) for model in (first, second)]
    for vdm, image_set in loaded:
        require_memory(settings, vdm, len(image_set.test))
    results = [
        evaluation.evaluate(vdm, image_set.test, progress=bar("evaluating"), **arguments) for vdm, image_set in loaded
    ]
    models = [
        {
            "model": str(model),
            "bpd": number(result.bpd.mean()),
            "bpd_standard_error": number(result.standard_error),
            **digests(model, images),
        }
        for model, result in zip((first, second), results, strict=True)
    ]
    paired = evaluation.paired_difference(results[0], results[1], confidence=confidence)
    difference = {
        "difference_bpd": number(paired.difference),
        "difference_standard_error": number(paired.standard_error),
        "confidence": paired.confidence,
        "confidence_interval": [number(end) for end in paired.interval],
        "num_images": paired.num_images,
    }
    shared = settings.model_dump(include={"seed", "times_per_image", "num_timesteps"})
    return {"protocol": "vlb", "models": models, **difference, **shared}
