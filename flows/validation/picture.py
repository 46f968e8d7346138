"""Draw the histograms of the splits, the images that break an expectation, and the pairs that look most alike."""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from flows.images.store import ImageSet
from flows.validation.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 10
SIDE = 256


def draw(image_set: ImageSet, histograms: dict[str, np.ndarray], report: Report) -> bytes:
    """Return a PNG: the share of pixels by level, below it a row of images for each broken expectation about images.

    At the bottom are the pairs of images of two splits that look most alike, the image of the later split above.
    """
    from matplotlib.figure import Figure

    broken = [result for result in report.expectations if not result.success and result.table == "images"]
    rows = [(f"{result.meaning}: {result.severity}", result.rows, "") for result in broken if result.rows]
    if pairs := sorted((pair for alike in report.alike for pair in alike.pairs), key=lambda pair: pair["by_chance"]):
        rows += [("pairs that look most alike, and how many by chance", pairs, ""), ("", pairs, "of_")]
    figure = Figure(figsize=(10, 3 + 1.6 * len(rows)))
    grid = figure.add_gridspec(1 + len(rows), COLUMNS, height_ratios=[2] + [1] * len(rows), hspace=0.5)
    axes = figure.add_subplot(grid[0, :], xlabel="level", ylabel="share of pixels")
    axes.set_yscale("symlog", linthresh=1e-6)  # shows a comb at any height
    for split, counts in histograms.items():
        axes.step(np.arange(len(counts)), counts / max(counts.sum(), 1), where="mid", label=split, linewidth=0.8)
    axes.legend()
    for place, (title, shown, prefix) in enumerate(rows, 1):
        for column, row in enumerate(shown[:COLUMNS]):
            axes = figure.add_subplot(grid[place, column])
            axes.set_title(title if column == 0 else "", fontsize=8, loc="left", y=1.25)
            text = f"\n{row['moved']}\n{row['distance']:.4f}, {row['by_chance']:.2g}" if prefix else ""
            draw_image(axes, image_set, row[f"{prefix}split"], row[f"{prefix}image"], text)
    picture = BytesIO()
    # `Software` would be the version of matplotlib.
    figure.savefig(picture, dpi=100, bbox_inches="tight", metadata={"Software": None})
    return picture.getvalue()


def draw_image(axes: "Axes", image_set: ImageSet, split: str, number: int, text: str) -> None:
    """Draw an image above its number and a text: three channels in colour, else the first in gray; no other shapes."""
    image, highest = getattr(image_set, split)[number], image_set.num_levels - 1
    if image.ndim == 3 and image.size:
        step = max(1, max(image.shape[1:]) // SIDE)
        shown = np.clip(np.nan_to_num(image[:, ::step, ::step].astype(float)) / highest, 0, 1)
        axes.imshow(shown.transpose(1, 2, 0) if len(shown) == 3 else shown[0], cmap="gray", vmin=0, vmax=1)
    axes.axis("off")
    axes.text(0, -0.02, f"{split} {number}{text}", fontsize=7, va="top", transform=axes.transAxes)
