"""Draw the histograms of the splits, the images that break an expectation, and the pairs that look most alike."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.images.store import ImageSet
from flows.validation.report import Report, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 10
SIDE = 256


def draw(image_set: ImageSet, histograms: dict[str, np.ndarray], report: Report) -> bytes:
    """Return a PNG: the share of pixels by level, below it a row of images for each broken expectation about images.

    At the bottom are the pairs of images of two splits that look most alike.
    """
    from matplotlib.figure import Figure

    results = report.expectations
    broken = [result for result in results if not result.success and result.table == "images" and result.rows]
    pairs = sorted((pair for alike in report.alike for pair in alike.pairs), key=lambda pair: pair["by_chance"])
    num_rows = len(broken) + 2 * bool(pairs)
    figure = Figure(figsize=(10, 3 + 1.6 * num_rows))
    grid = figure.add_gridspec(1 + num_rows, COLUMNS, height_ratios=[2] + [1] * num_rows, hspace=0.5)
    draw_histograms(figure.add_subplot(grid[0, :]), histograms)
    panels = [[figure.add_subplot(grid[1 + row, column]) for column in range(COLUMNS)] for row in range(num_rows)]
    for axes in [axes for row in panels for axes in row]:
        axes.axis("off")
    for row, result in zip(panels, broken, strict=False):
        draw_offenders(row, result, image_set)
    if pairs:
        draw_pairs(panels[-2], panels[-1], pairs, image_set)
    picture = BytesIO()
    # `Software` would be the version of matplotlib.
    figure.savefig(picture, dpi=100, bbox_inches="tight", metadata={"Software": None})
    return picture.getvalue()


def draw_pairs(upper: "list[Axes]", lower: "list[Axes]", pairs: list[dict[str, Any]], image_set: ImageSet) -> None:
    """Draw the first pairs, the image of the later split above that of the earlier one."""
    upper[0].set_title("pairs that look most alike, and how many by chance", fontsize=8, loc="left", y=1.25)
    for above, below, pair in zip(upper, lower, pairs, strict=False):
        for axes, prefix in ((above, ""), (below, "of_")):
            draw_image(axes, image_set, pair[f"{prefix}split"], pair[f"{prefix}image"])
        note = f"{pair['moved']}\n{pair['distance']:.4f}, {pair['by_chance']:.2g}"
        below.text(0, -0.2, note, fontsize=6, va="top", transform=below.transAxes)


def draw_offenders(panels: "list[Axes]", result: Result, image_set: ImageSet) -> None:
    """Draw the first images that break an expectation, one in each panel, under its meaning."""
    panels[0].set_title(f"{result.meaning}: {result.severity}", fontsize=8, loc="left", y=1.25)
    for axes, row in zip(panels, result.rows, strict=False):
        draw_image(axes, image_set, row["split"], row["image"])


def draw_histograms(axes: "Axes", histograms: dict[str, np.ndarray]) -> None:
    """Draw the histograms on a logarithmic axis, which shows a comb at any height."""
    for split, counts in histograms.items():
        axes.step(np.arange(len(counts)), counts / max(counts.sum(), 1), where="mid", label=split, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1e-6)
    axes.set_xlabel("level")
    axes.set_ylabel("share of pixels")
    axes.legend()


def draw_image(axes: "Axes", image_set: ImageSet, split: str, number: int) -> None:
    """Draw an image above its number: three channels in colour, else the first in gray.  Draw no other shapes."""
    image, highest = getattr(image_set, split)[number], image_set.num_levels - 1
    if image.ndim == 3 and image.size:
        step = max(1, max(image.shape[1:]) // SIDE)
        image = image[:, ::step, ::step]
        shown = np.clip(np.nan_to_num(image.astype(float)) / highest, 0, 1)
        axes.imshow(shown.transpose(1, 2, 0) if len(shown) == 3 else shown[0], cmap="gray", vmin=0, vmax=1)
    axes.text(0, -0.02, f"{split} {number}", fontsize=7, va="top", transform=axes.transAxes)
