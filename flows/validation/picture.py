"""Draw the histograms of the splits and the images that break an expectation."""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from flows.images.store import ImageSet
from flows.validation.report import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 10
SIDE = 256


def draw(image_set: ImageSet, histograms: dict[str, np.ndarray], results: list[Result]) -> bytes:
    """Return a PNG: the share of pixels by level, above a row of images for each broken expectation about images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    broken = [result for result in results if not result.success and result.table == "images" and result.rows]
    figure = Figure(figsize=(10, 3 + 1.6 * len(broken)))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + len(broken), COLUMNS, height_ratios=[2] + [1] * len(broken), hspace=0.5)
    draw_histograms(figure.add_subplot(grid[0, :]), histograms)
    for row, result in enumerate(broken, start=1):
        panels = [figure.add_subplot(grid[row, column]) for column in range(COLUMNS)]
        draw_offenders(panels, result, image_set)
    # Without the version of matplotlib in the metadata.
    picture = BytesIO()
    figure.savefig(picture, dpi=100, bbox_inches="tight", metadata={"Software": None})
    return picture.getvalue()


def draw_offenders(panels: "list[Axes]", result: Result, image_set: ImageSet) -> None:
    """Draw the first images that break an expectation, one in each panel, under its meaning."""
    panels[0].set_title(f"{result.meaning}: {result.severity}", fontsize=8, loc="left", y=1.25)
    for axes in panels:
        axes.axis("off")
    for axes, row in zip(panels, result.rows, strict=False):
        draw_image(axes, getattr(image_set, row["split"])[row["image"]], image_set.num_levels)
        axes.text(0, -0.02, f"{row['split']} {row['image']}", fontsize=7, va="top", transform=axes.transAxes)


def draw_histograms(axes: "Axes", histograms: dict[str, np.ndarray]) -> None:
    """Draw the histograms on a logarithmic axis, which shows a comb at any height."""
    for split, counts in histograms.items():
        axes.step(np.arange(len(counts)), counts / max(counts.sum(), 1), where="mid", label=split, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1e-6)
    axes.set_xlabel("level")
    axes.set_ylabel("share of pixels")
    axes.legend()


def draw_image(axes: "Axes", image: np.ndarray, num_levels: int) -> None:
    """Draw an image (C,H,W), in colour if it has three channels, else its first in gray; nothing for other shapes."""
    if image.ndim == 3 and image.size and num_levels > 1:
        step = max(1, max(image.shape[1:]) // SIDE)
        image = image[:, ::step, ::step]
        shown = np.clip(np.nan_to_num(image.astype(float)) / (num_levels - 1), 0, 1)
        axes.imshow(shown.transpose(1, 2, 0) if len(shown) == 3 else shown[0], cmap="gray", vmin=0, vmax=1)
