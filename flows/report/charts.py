"""Charts as SVG, drawn with the colours of the page, which differ between light and dark.

matplotlib draws with the colours in `ROLES`; these are replaced by CSS variables.  So a chart follows the page that it
is in.  As a separate file it follows the style that `Chart.file` adds.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from flows.core.escaping import visible
from flows.report.tables import Columns, finite_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROLES = {"ink": "#000001", "line": "#000002", "first": "#000003", "second": "#000004"}
INK, LINE, *MODELS = ROLES.values()
PALETTE = {
    "paper": ("#ffffff", "#14171a"),
    "ink": ("#1b1f24", "#e6e8ea"),
    "muted": ("#57606a", "#a3adb7"),
    "line": ("#d0d7de", "#3d444d"),
    "first": ("#0b62b0", "#6cb2ff"),
    "second": ("#a84300", "#ffa657"),
    "good": ("#116329", "#56d364"),
    "bad": ("#b3261e", "#ff8b82"),
}
"""The colours of the page, light and dark: text has a contrast ratio of at least 4.5 with the paper."""
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
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
TITLES = {
    "loss": ("Loss while training", "Line chart in bits/dim"),
    "noise_levels": (
        "Loss at each noise level",
        "Line chart with error bars over the time t, in bits/dim per unit of t",
    ),
    "schedule": ("Noise schedule", "Line chart of gamma over the time t"),
    "per_image": ("How many images have which bits/dim", "Histogram in bits/dim"),
}
"""The title of each chart, and what kind of chart it is, by the names of their files."""
SIZE = (5.0, 3.2)
MOST_POINTS = 400
"""The largest number of points of a curve that are drawn."""
MOST_CHARACTERS = 30
"""The length of a model's name in a legend."""


def ending(name: str) -> str:
    """Return a model's name as a legend shows it: its end, since folders of models differ there."""
    shown = visible(name)
    return shown if len(shown) <= MOST_CHARACTERS else f"\N{HORIZONTAL ELLIPSIS}{shown[1 - MOST_CHARACTERS :]}"


class Model(NamedTuple):
    """A model on the page: its name, "" on a page about one model, and the colour of its curves."""

    name: str
    color: str

    def curve(self, name: str) -> str:
        """Return the name of a curve; on a page about two models, prefixed with the end of its model's name."""
        if not self.name:
            return name
        model = ending(self.name)
        # matplotlib leaves names that begin with _ out of a legend.
        return f"./{model}, {name}" if model.startswith("_") else f"{model}, {name}"


Tables = Mapping[Model, Columns]
"""The tables of one or two models."""


class Chart(NamedTuple):
    """A chart: the name of its file, its title, its description in words, and its SVG."""

    name: str
    title: str
    alt: str
    svg: Markup

    @property
    def file(self) -> str:
        """The SVG as a separate file, in the colours of the reader's preference."""
        light, dark = (";".join(f"--{name}:{shades[i]}" for name, shades in PALETTE.items()) for i in (0, 1))
        style = f":root{{{light};background:var(--paper)}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
        head, bracket, body = self.svg.partition(">")
        return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{bracket}<style>{style}</style>{body}\n'


def loss(axes: "Axes", curves: Tables) -> Iterator[str]:
    """Draw the training loss and the validations of the training logs; yield them in words."""
    shown, tops = list[float](), []
    for model, table in curves.items():
        steps, losses = finite_rows(table["step"], table["bpd"])
        shown += losses.tolist()
        axes.plot(*thinned(steps, losses), color=model.color, label=model.curve("training"), alpha=0.75)
        yield f"{model.curve('training')}: {over(steps, losses)}"
        tops.append(np.quantile(losses, 0.9) if len(losses) else 0)
        steps, losses = finite_rows(table["step"], table.get("validation_bpd", np.full(len(table["step"]), np.nan)))
        shown += losses.tolist()
        if len(steps):
            label = model.curve("validation")
            axes.plot(*thinned(steps, losses), "o--", color=model.color, label=label, markersize=4)
            yield f"{label}: {over(steps, losses)}"
    # Cut off the first steps: they are far above the rest, which would look flat.  matplotlib's margin, a share of the
    # whole range, would flatten it, too.
    lowest, highest = min(shown, default=0.0), axes.get_ylim()[1]
    height = max(max(tops) - lowest, 0.05 * abs(lowest), 1e-6)
    axes.set_ylim(lowest - 0.15 * height, min(highest, lowest + 3 * height))
    axes.set(xlabel="step", ylabel="bits/dim")


def schedule(axes: "Axes", levels: Tables) -> Iterator[str]:
    """Draw gamma(t); yield it in words."""
    for model, table in levels.items():
        times, gammas = finite_rows(table["t"], table["gamma"])
        axes.plot(*thinned(times, gammas), color=model.color, label=model.curve("gamma"), marker=".")
        yield f"{model.curve('gamma')}: {over(times, gammas, 't')}"
    axes.set(xlabel="t (0: the image, 1: noise)", ylabel="gamma = \N{MINUS SIGN}log SNR")


def noise_levels(axes: "Axes", levels: Tables) -> Iterator[str]:
    """Draw the diffusion term over the noise levels, with standard errors; yield it in words."""
    for model, table in levels.items():
        times, losses, errors = finite_rows(table["t"], table["diffusion_bpd"], np.nan_to_num(table["standard_error"]))
        t, loss, error = thinned(times, losses, np.abs(errors))
        axes.errorbar(t, loss, error, color=model.color, label=model.curve("diffusion term"), marker=".", capsize=2)
        yield f"{model.curve('diffusion term')}: {between(losses)}"
    axes.set_ylim(bottom=0)
    axes.set(xlabel="t (0: the image, 1: noise)", ylabel="bits/dim per unit of t")


def histogram(axes: "Axes", images: Tables) -> Iterator[str]:
    """Draw how many images have which bits/dim; yield that in words."""
    found = {model: finite_rows(table["bpd"])[0] for model, table in images.items()}
    edges = edges_of(np.concatenate(list(found.values())))
    for model, values in found.items():
        axes.hist(
            values,
            edges,
            label=model.curve("images"),
            histtype="stepfilled",
            alpha=0.45,
            facecolor=model.color,
            edgecolor=model.color,
        )
        if len(values):
            axes.axvline(values.mean(), color=model.color, linestyle="--", label=model.curve("mean"))
        yield f"{model.curve('images')}: {between(values)}"
    axes.set(xlabel="bits/dim of an image", ylabel="number of images")


def edges_of(values: np.ndarray) -> list[float]:
    """Return the edges of the bins of a histogram."""
    if not len(values):
        return [0.0, 1.0]
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # floats may be too coarse for edges in between
        low, high = low - 0.5, high + 0.5
    bins = min(40, max(5, math.isqrt(len(values))))
    return [float(edge) for edge in np.linspace(low, high, bins + 1)]


def drawn(name: str, draw: "Callable[[Axes, Tables], Iterable[str]]", models: Tables) -> Chart:
    """Return the chart that `draw` draws and describes.  Equal data give equal bytes; its ids begin with `name`."""
    import matplotlib
    from matplotlib.figure import Figure

    file = BytesIO()
    # The reader's fonts have glyphs that matplotlib's lack, of which it warns.
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        said = "; ".join(draw(axes, models))
        add_legend(axes, models)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue().decode().partition("<svg ")[2]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", f"<svg {svg}", count=1)
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    for role, color in ROLES.items():
        svg = svg.replace(color, f"var(--{role})")
    svg = re.sub(r"\s*\n\s*", "\n", svg).strip()
    title, kind = TITLES[name]
    return Chart(name, title, f"{kind}. {said}.", Markup(svg))


def thinned(*columns: np.ndarray) -> Sequence[np.ndarray]:
    """Return evenly spread rows of columns (N,), at most `MOST_POINTS`, with the first and the last."""
    size = len(columns[0])
    rows = np.unique(np.linspace(0, max(size - 1, 0), MOST_POINTS).round().astype(int))[:size]
    return [column[rows] for column in columns]


def add_legend(axes: "Axes", models: Tables) -> None:
    """Name the curves above the chart, unless it is the only one on a page about one model."""
    handles, names = axes.get_legend_handles_labels()
    figure = axes.get_figure(root=True)
    if figure and (len(names) > 1 or any(model.name for model in models)):
        columns = 2 if len(models) == 1 else 1
        figure.set_figheight(SIZE[1] + 0.25 * len(names) / columns)
        figure.legend(handles, names, loc="outside upper left", ncols=columns)


def over(places: np.ndarray, values: np.ndarray, unit: str = "step") -> str:
    """Return the first and the last value in words."""
    if not len(values):
        return "no finite value"
    return f"from {values[0]:.4g} at {unit} {places[0]:g} to {values[-1]:.4g} at {unit} {places[-1]:g}"


def between(values: np.ndarray) -> str:
    """Return the range and the mean of values in words."""
    return f"{values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}" if len(values) else "no finite value"
