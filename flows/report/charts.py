"""Charts as SVG files, in the light or dark colours that the reader prefers.

matplotlib draws lines and text in `INK`, for which the file has `currentColor`, which its style sets.  The colours of
the models are readable on both papers.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from flows.core.escaping import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#000001"
SCHEME = "<style>svg{color:#1b1f24}@media(prefers-color-scheme:dark){svg{color:#e6e8ea}}</style>"
COLORS = ("#2b7bbf", "#c2600f")
"""Of the first and the second model: both have a contrast ratio of at least 3 with the light and the dark paper."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vdm",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": INK,
    "grid.alpha": 0.2,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
SIZE, DPI = (5.0, 3.2), 200
MOST_POINTS = 400
"""The largest number of points of a curve that are drawn."""
MOST_CHARACTERS = 30
"""The length of a model's name in a legend."""

Tables = Mapping[str, pd.DataFrame]
"""The tables of one model, by the name "", or of two, by their names."""


class Chart(NamedTuple):
    """A chart: the name of its file, its title, what it shows in words, its SVG, and a PNG of it on white paper."""

    name: str
    title: str
    alt: str
    svg: str
    png: bytes


def shorten_name(name: str) -> str:
    """Return a model's name as a legend shows it: its end, since folders of models differ there."""
    shown = visible(name)
    return shown if len(shown) <= MOST_CHARACTERS else f"\N{HORIZONTAL ELLIPSIS}{shown[1 - MOST_CHARACTERS :]}"


def curves(models: Tables) -> Iterator[tuple[Callable[[str], str], str, pd.DataFrame]]:
    """Yield for each model the function from a curve's name to its label, the model's colour, and its table."""
    for (model, table), color in zip(models.items(), COLORS, strict=False):
        yield (f"{shorten_name(model)}, ".__add__ if model else str), color, table


def draw_loss(axes: "Axes", models: Tables) -> None:
    """Draw the training loss and the validations of training logs."""
    lowest, tops = [], []
    for label, color, table in curves(models):
        training = table[["step", "bpd"]].dropna()
        axes.plot(*thin(training), color=color, label=label("training"), alpha=0.75)
        lowest.append(training["bpd"].min())
        tops.append(training["bpd"].quantile(0.9))
        if "validation_bpd" in table and table["validation_bpd"].notna().any():
            validation = table[["step", "validation_bpd"]].dropna()
            axes.plot(*thin(validation), "o--", color=color, label=label("validation"), markersize=4)
            lowest.append(validation["validation_bpd"].min())
    bottom, top = np.nanmin([*lowest, np.inf]), np.nanmax([*tops, -np.inf])
    if np.isfinite([bottom, top]).all():
        # Cut off the first steps: they are far above the rest, which would look flat.
        height = max(top - bottom, 0.05 * abs(bottom), 1e-6)
        axes.set_ylim(bottom - 0.15 * height, min(axes.get_ylim()[1], bottom + 3 * height))
    axes.set(xlabel="step", ylabel="bits/dim")


def draw_steps(axes: "Axes", models: Tables, column: str) -> None:
    """Draw a column of training logs over the steps, if they have it."""
    for label, color, table in curves(models):
        if column in table:
            axes.plot(*thin(table[["step", column]].dropna()), color=color, label=label(column))
    axes.set(xlabel="step", ylabel=column.replace("_", " "), ylim=(0, None))


def draw_schedule(axes: "Axes", models: Tables) -> None:
    """Draw gamma(t) with the line at which training began, and their end points as numbers."""
    for label, color, table in curves(models):
        for name, what, style in (("gamma", "gamma", "-"), ("initial", "at first", "--")):
            ends = " to ".join(f"{end:.2f}" for end in table[name].iloc[[0, -1]])
            axes.plot(table["t"], table[name], style, color=color, label=label(f"{what}: {ends}"))
    axes.set(xlabel="t (0: the image, 1: noise)", ylabel="gamma = \N{MINUS SIGN}log SNR")


def draw_noise_levels(axes: "Axes", models: Tables) -> None:
    """Draw the diffusion term over the noise levels, with standard errors."""
    for label, color, table in curves(models):
        known = table[["t", "diffusion_bpd", "standard_error"]].fillna({"standard_error": 0}).dropna()
        t, loss, error = thin(known)
        axes.errorbar(t, loss, error, color=color, label=label("diffusion term"), marker="o", markersize=3, capsize=2)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="t (0: the image, 1: noise)", ylabel="bits/dim per unit of t")


def draw_histogram(axes: "Axes", models: Tables) -> None:
    """Draw how many images have which bits/dim."""
    every = np.concatenate([table["bpd"].dropna() for table in models.values()])
    edges = np.histogram_bin_edges(every, min(40, max(5, math.isqrt(len(every))))).tolist()
    for label, color, table in curves(models):
        values = table["bpd"].dropna()
        axes.hist(values, edges, label=label("images"), histtype="stepfilled", alpha=0.45, color=color)
        if len(values):
            axes.axvline(values.mean(), color=color, linestyle="--", label=label("mean"))
    axes.set(xlabel="bits/dim of an image", ylabel="number of images")


def draw_growth(axes: "Axes", models: Tables) -> None:
    """Draw the bits/dim of the versions over the number of their training images, with standard errors."""
    _, color, table = next(curves(models))
    known = table.dropna(subset=["num_train", "bpd"])
    errors = known["standard_error"].fillna(0)
    axes.errorbar(known["num_train"], known["bpd"], errors, fmt="o", color=color, markersize=4, capsize=2)
    for row in known.itertuples():
        axes.annotate(visible(row.version), (row.num_train, row.bpd), (4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="training images", ylabel="bits/dim")


class ChartKind(NamedTuple):
    """A chart that the page has: its table in `Dossier`, its title, what it shows in words, and what draws it.

    `text` stands below it, and `missing` in its place.
    """

    table: str
    title: str
    alt: str
    draw: Callable[["Axes", Tables], None]
    text: str
    missing: str = ""


CHARTS = {
    "loss": ChartKind(
        "curves",
        "Loss while training",
        "Line chart of bits/dim over the training steps",
        draw_loss,
        "What an image costs while the model trains, in bits/dim: lower is better. The dots are the averaged "
        "weights on the validation images, which it does not learn from: where they rise while the line falls, it"
        " overfits. Values far above the rest are cut off.",
        missing="There is no training log",
    ),
    "gradient_norm": ChartKind(
        "curves",
        "Gradient norm",
        "Line chart over steps",
        partial(draw_steps, column="gradient_norm"),
        "How much the images of a step would change the network, before that is limited: peaks are unrest. "
        "Averaged over intervals.",
    ),
    "learning_rate": ChartKind(
        "curves",
        "Learning rate",
        "Line chart over steps",
        partial(draw_steps, column="learning_rate"),
        "How large a step may be: it grows at first, and falls to the end. Of the last step of each interval.",
    ),
    "schedule": ChartKind(
        "schedule",
        "Noise schedule",
        "Line chart of gamma over the time t",
        draw_schedule,
        "How noise covers an image over the time t, from the image (left) to noise alone (right): gamma is the "
        "logarithm of the noise-to-signal ratio. Dashed the line at which training began.",
        missing="The model is not here",
    ),
    "noise_levels": ChartKind(
        "noise_levels",
        "Loss at each noise level",
        "Line chart over the time t",
        draw_noise_levels,
        "Where the bits go: what it costs to remove the noise at each time t, fine details left, rough shapes "
        "right. The mean over t is the diffusion term of the bound. Error bars are standard errors over the "
        "images.",
        missing="There are no figures for each noise level",
    ),
    "growth": ChartKind(
        "versions",
        "Validation as images arrive",
        "Chart of bits/dim over the number of training images",
        draw_growth,
        "Each version on its own validation images, of which it was trained on none; the error bars are standard "
        "errors over the images.",
    ),
    "per_image": ChartKind(
        "per_image",
        "How many images have which bits/dim",
        "Histogram of the images' bits/dim",
        draw_histogram,
        "How many images are easy (left) and how many are hard (right). The dashed line is the mean, the figure "
        "at the top.",
        missing="There are no figures for each image",
    ),
}
"""By the name of a chart's file."""


def draw_chart(name: str, models: Tables) -> Chart:
    """Return the chart with that name in `CHARTS`.  Equal data give equal bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    kind = CHARTS[name]
    file, picture = BytesIO(), BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        kind.draw(axes, models)
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1 or "" not in models:
            columns = 2 if "" in models else 1
            figure.set_figheight(SIZE[1] + 0.25 * len(labels) / columns)
            figure.legend(handles, labels, loc="outside upper left", ncols=columns)
        figure.savefig(file, format="svg", metadata={"Date": None})
        figure.savefig(picture, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    svg = file.getvalue().decode().replace(INK, "currentColor").replace("<defs>", f"{SCHEME}\n <defs>", 1)
    return Chart(name, kind.title, kind.alt, svg, picture.getvalue())


def thin(table: pd.DataFrame) -> list[np.ndarray]:
    """Return the columns of evenly spread rows, at most `MOST_POINTS`, with the first and the last."""
    rows = np.unique(np.linspace(0, max(len(table) - 1, 0), MOST_POINTS).round().astype(int))[: len(table)]
    return [table[column].to_numpy()[rows] for column in table]
