"""What the contract found, for the eye: the histograms of both splits, and the images that broke an expectation."""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from flows.images.store import SPLITS, ImageSet
from flows.validation.report import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 10
SIDE = 256


def draw(image_set: ImageSet, histograms: dict[str, np.ndarray], results: list[Result]) -> bytes:
    """Return a PNG: the share of pixels by level, over a row of offenders for each broken expectation about images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    broken = [result for result in results if not result.success and result.table == "images" and result.rows]
    figure = Figure(figsize=(10, 3 + 1.6 * len(broken)))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + len(broken), COLUMNS, height_ratios=[2] + [1] * len(broken), hspace=0.5)
    draw_histograms(figure.add_subplot(grid[0, :]), histograms)
    for row, result in enumerate(broken, start=1):
        for column in range(COLUMNS):
            axes = figure.add_subplot(grid[row, column])
            axes.axis("off")
            if column == 0:
                axes.set_title(f"{result.meaning}: {result.severity}", fontsize=8, loc="left", y=1.25)
            if column < len(result.rows):
                place = result.rows[column]
                draw_image(axes, getattr(image_set, place["split"])[place["image"]], image_set.num_levels)
                axes.text(
                    0, -0.02, f"{place['split']} {place['image']}", fontsize=7, va="top", transform=axes.transAxes
                )
    # Without the version of matplotlib in the file, the same data give the same bytes.
    picture = BytesIO()
    figure.savefig(picture, dpi=100, bbox_inches="tight", metadata={"Software": None})
    return picture.getvalue()


def draw_histograms(axes: "Axes", histograms: dict[str, np.ndarray]) -> None:
    """Steps on a logarithmic axis, so that a comb shows at any height."""
    for split in SPLITS:
        counts = histograms[split]
        axes.step(np.arange(len(counts)), counts / max(counts.sum(), 1), where="mid", label=split, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1e-6)
    axes.set_xlabel("level")
    axes.set_ylabel("share of pixels")
    axes.legend()


def draw_image(axes: "Axes", image: np.ndarray, num_levels: int) -> None:
    """Draw (C,H,W): colours for three channels, else the first in gray; anything else is left blank."""
    if image.ndim == 3 and image.size and num_levels > 1:
        step = max(1, max(image.shape[1:]) // SIDE)
        image = image[:, ::step, ::step]
        shown = np.clip(np.nan_to_num(image.astype(float)) / (num_levels - 1), 0, 1)
        axes.imshow(shown.transpose(1, 2, 0) if len(shown) == 3 else shown[0], cmap="gray", vmin=0, vmax=1)
