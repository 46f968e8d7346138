"""evaluate: the likelihood of every test image, as a number with its error and as a table."""

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.device import find_device
from flows.errors import Exit, UserError
from flows.progress import bar
from vdm import evaluation
from vdm.checkpoint import load_model, model_sha256
from vdm.images import ImageSet, data_sha256, load_images
from vdm.model import VDM

if TYPE_CHECKING:
    from flows.params import Evaluate


def evaluate(evaluate: "Evaluate", *, model: Path, images: Path, out: Path | None) -> dict[str, Any]:
    """The metrics, in bits/dim; written to `out` as `metrics.json` and `per_image.csv` unless it is None.

    Raises CheckpointError, ImageSetError, and UserError (exit 2) when model and images do not fit each other.
    """
    vdm = load_model(model, find_device(evaluate.device))
    image_set = load_images(images)
    require_fit(vdm, image_set, model, images)
    result = evaluation.evaluate(
        vdm, image_set.test, progress=bar("evaluating"), **evaluate.model_dump(exclude={"device"})
    )
    metrics = {
        "bpd": result.bpd.mean(),
        "bpd_standard_error": result.standard_error,
        "bpd_monte_carlo_standard_error": result.monte_carlo_standard_error,
        "prior_bpd": result.prior.mean(),
        "reconstruction_bpd": result.reconstruction.mean(),
        "diffusion_bpd": result.diffusion.mean(),
    }
    metrics = {key: None if math.isnan(value) else float(value) for key, value in metrics.items()}
    metrics |= {"num_images": len(result.bpd), **evaluate.model_dump(exclude={"device", "batch_size"})}
    metrics |= {"model_sha256": model_sha256(model), "data_sha256": data_sha256(images)}
    if out is not None:
        write(out, metrics, result)
    return metrics


def require_fit(vdm: VDM, image_set: ImageSet, model: Path, images: Path) -> None:
    """UserError (exit 2) unless the model is one of images of this shape and number of levels."""
    ours, theirs = (vdm.image_shape, vdm.num_levels), (image_set.image_shape, image_set.num_levels)
    if ours != theirs:
        shown = ["x".join(map(str, shape)) + f" with {num_levels} levels" for shape, num_levels in (ours, theirs)]
        raise UserError(f"{model} is a model of images of {shown[0]}; {images} holds {shown[1]}", Exit.USAGE)


def write(out: Path, metrics: dict[str, Any], result: evaluation.Evaluation) -> None:
    """`metrics.json`, and `per_image.csv` with the terms of every image in bits/dim."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "per_image.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "bpd", "prior_bpd", "reconstruction_bpd", "diffusion_bpd"])
        columns = (result.bpd, result.prior, result.reconstruction, result.diffusion)
        writer.writerows((i, *(f"{value:.6f}" for value in row)) for i, row in enumerate(zip(*columns, strict=True)))
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
