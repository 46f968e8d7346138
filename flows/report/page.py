"""The stage `report`: the page about one model, or about two side by side, by results that exist: nothing is evaluated.

All text is escaped when the template is filled in: names of files and of data sets are not trusted.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flows.core.escaping import visible
from flows.core.files import replace_file_last, replace_folder, write_whole
from flows.core.judgement import Accuracy, Cost, Quality, Remark, judgement
from flows.dossier.dossier import Dossier
from flows.dossier.places import Outputs
from flows.evaluation.figures import QUALITY, TERMS
from flows.images.as_png import InPng, measure_png
from flows.images.image_set import SPLITS, ImageSet, spread
from flows.report import charts
from flows.report.charts import Chart, shorten_name
from flows.report.pictures import Illustration, data_uri, grids, tile
from flows.report.words import cautions, compare_parameters, latex, may_copy, measures, sampler, value

if TYPE_CHECKING:
    from vdm.evaluation import PairedDifference

CONFIDENCE = 0.95
MOST_EXTREMES, MOST_NEIGHBOURS, MOST_SHOWN, MOST_CLASSES = 8, 8, 10, 20


def report(outputs: Outputs, *, out: Path, pictures: Path) -> None:
    """Write the page about the pipeline's outputs to `out`, and its charts into the folder `pictures`, or else neither.

    Raises UserError (exit 5) for a result that is damaged, and without metrics; OSError that names the file that cannot
    be written.
    """
    made = page(Dossier(outputs))
    with replace_file_last(out, made.html), replace_folder(pictures) as folder:
        for chart in made.charts:
            write_whole(folder / f"{chart.name}.svg", chart.svg)


class Page(NamedTuple):
    """A page as HTML, and its charts."""

    html: str
    charts: list[Chart]


class Shown(NamedTuple):
    """An image and its caption."""

    picture: Illustration | None
    caption: str


def page(first: Dossier, second: Dossier | None = None) -> Page:
    """Return the page about one model, or the one that compares two."""
    models = [first] if second is None else [first, second]
    names = [one.origin.name for one in models]
    if second and shorten_name(names[0]) == shorten_name(names[1]):
        names = [f"{name}, {place}" for name, place in zip(names, ("first", "second"), strict=True)]
    named = dict(zip(names if second else [""], models, strict=True))
    tables = {
        name: {model: table for model, one in named.items() if (table := getattr(one, kind.table)) is not None}
        for name, kind in charts.CHARTS.items()
    }
    drawn = [charts.draw_chart(name, found) for name, found in tables.items() if found]
    html = template().render(
        views=[view(name, one) for name, one in zip(names, models, strict=True)],
        charts={chart.name: chart for chart in drawn},
        kinds=charts.CHARTS,
        terms=TERMS,
        copied=QUALITY["nearer_than_held_out"],
        measures=measures(*(one.sample_metrics for one in models)),
        difference=pair_results(first, second) if second else "",
        cautions=cautions(first.sample_metrics, second.sample_metrics) if second else [],
        latex=latex([(name, one.metrics, one.sample_metrics) for name, one in zip(names, models, strict=True)]),
        changed=compare_parameters(first.origin.parameters, second.origin.parameters) if second else [],
    )
    return Page(html, drawn)


def view(name: str, dossier: Dossier) -> dict[str, Any]:
    """Return what the page shows of a model, next to its dossier."""
    expectations = sorted(dossier.findings.expectations if dossier.findings else [], key=lambda one: one.success)
    broken = [one for one in expectations if not one.success]
    png = png_of(dossier)
    return {
        "name": name,
        "dossier": dossier,
        "about": describe_set(dossier.images),
        "uniform": math.log2(dossier.images.num_levels) if dossier.images else None,
        "extremes": extremes(dossier),
        "classified": describe_classification(dossier),
        "facts": list(facts(dossier, png)),
        "judgement": judge_results(dossier, png),
        "guess": guess(dossier),
        "png": png,
        "strip_width": int.from_bytes(dossier.denoising[16:20]) if dossier.denoising else 0,
        "grids": grids(dossier),
        "classes": classes(dossier),
        "copies": dossier.sample_metrics is not None and may_copy(dossier.sample_metrics),
        "sampler": sampler(dossier.sample_metrics.sampler) if dossier.sample_metrics else "",
        "neighbours": neighbours(dossier),
        "expectations": expectations,
        "offences": [(one, [row_of(dossier, row) for row in one.rows[:MOST_SHOWN]]) for one in broken],
        "alike": alike(dossier),
        "lineage": list_digests(dossier),
    }


def describe_set(images: ImageSet | None) -> dict[str, Any]:
    """Return the set's description, sorted, without the keys that the pipeline does not know."""
    return dict(sorted(images.description.stated.items())) if images else {}


def extremes(dossier: Dossier) -> list[tuple[str, list[Shown]]]:
    """Return the images with the fewest and those with the most bits/dim; [] if images or figures are missing."""
    if dossier.per_image is None or dossier.images is None:
        return []
    split = dossier.metrics.split
    order = dossier.per_image.dropna(subset=["bpd"]).sort_values("bpd", kind="stable")
    rows = [(int(row.image), f"{row.bpd:.3f}") for row in order.itertuples()]
    size = min(MOST_EXTREMES, len(rows) // 2)
    return [
        (title, [Shown(image_of(dossier, split, number, f"{split} image {number}"), bpd) for number, bpd in found])
        for title, found in (("Easiest", rows[:size]), ("Hardest", rows[::-1][:size]))
    ]


def describe_classification(dossier: Dossier) -> dict[str, Any]:
    """Return the confusion matrix of a model with few classes, and the images it is least sure of; {} without these."""
    of, table = dossier.metrics.classes, dossier.per_image
    if of is None or table is None or not {"label", "best", "margin"} <= set(table):
        return {}
    known = table.dropna(subset=["best"]).astype({"label": int, "best": int})
    names = name_classes(dossier)
    names = names + [str(number) for number in range(len(names), of.num_classes)]
    counts = known.value_counts(["label", "best"])
    rows = [[counts.get((label, best), 0) for best in range(len(names))] for label in range(len(names))]
    unsure = []
    for row in known.nsmallest(MOST_EXTREMES, "margin").itertuples():
        name = f"{dossier.metrics.split} image {row.image:g}"
        found = "found" if row.label == row.best else f"taken for {names[row.best]}"
        caption = f"{names[row.label]}, {found}: {row.margin:.2f}"
        unsure.append(Shown(image_of(dossier, dossier.metrics.split, int(row.image), name), caption))
    return {"names": names, "confusion": rows if of.num_classes <= MOST_CLASSES else [], "unsure": unsure}


def name_classes(dossier: Dossier) -> list[str]:
    """Return the names of the classes by number, as the images or the model state them; [] if they state none."""
    of_model = dossier.model.class_names if dossier.model else None
    return list(describe_set(dossier.images).get("class_names") or of_model or [])


def classes(dossier: Dossier) -> list[tuple[str, int, float, float | None]]:
    """Return each class with the number of its images and their mean bits/dim with its standard error, worst first.

    One image has no error.  [] without labels or figures, and for one label.
    """
    table, labels = dossier.per_image, dossier.labels
    if table is None or labels is None or table["image"].max() >= len(labels):
        return []
    by_label = table["bpd"].groupby(labels[table["image"].astype(int)]).agg(["count", "mean", "sem"])
    names, rows = name_classes(dossier), by_label.sort_values("mean", ascending=False).itertuples(name=None)
    found = [
        (names[label] if label < len(names) else f"class {label}", number, bpd, None if number == 1 else error)
        for label, number, bpd, error in rows
    ]
    return found if len(found) > 1 else []


def neighbours(dossier: Dossier) -> list[tuple[Shown, Shown, float]]:
    """Return the samples that are nearest to a training image, with that image and the distance per dimension."""
    if dossier.neighbours is None or dossier.samples is None or dossier.images is None:
        return []
    levels, shown = dossier.images.num_levels, []
    for row in dossier.neighbours[:MOST_NEIGHBOURS].itertuples():
        sample, number = int(row.sample), int(row.train_image)
        left = Shown(tile(dossier.samples[sample], levels, f"sample {sample}"), f"sample {sample}")
        right = Shown(image_of(dossier, "train", number, f"training image {number}"), f"train {number}")
        shown.append((left, right, float(row.distance)))
    return shown


def alike(dossier: Dossier) -> list[tuple[Shown, Shown, str]]:
    """Return the pairs of images of two splits that look most alike, and how alike they are."""
    compared = dossier.findings.alike if dossier.findings else []
    pairs = sorted((pair for splits in compared for pair in splits.pairs), key=lambda pair: pair["by_chance"])
    return [
        (
            row_of(dossier, pair),
            row_of(dossier, pair, "of_"),
            f"{pair['moved']}, distance {pair['distance']}, {pair['by_chance']} as close by chance",
        )
        for pair in pairs[:MOST_SHOWN]
    ]


def row_of(dossier: Dossier, row: dict[str, Any], prefix: str = "") -> Shown:
    """Return the image that a row names, if it names one, and the row's values in words."""
    split, number = row.get(f"{prefix}split"), row.get(f"{prefix}image")
    if split not in SPLITS or not isinstance(number, int):
        return Shown(None, ", ".join(f"{key} {value(item)}" for key, item in row.items()))
    name, file = f"{split} image {number}", row.get(f"{prefix}file")
    return Shown(image_of(dossier, str(split), number, name), f"{name}, {value(file)}" if file else name)


def image_of(dossier: Dossier, split: str, number: int, name: str) -> Illustration | None:
    """Return an image of a split; None if the split does not have it, since the row is about another set."""
    images = dossier.images[split] if dossier.images and split in SPLITS else ()
    return tile(images[number], dossier.images.num_levels, name) if dossier.images and number < len(images) else None


def list_digests(dossier: Dossier) -> dict[str, Any]:
    """Return what the model was made from, as digests, after the tags and the commit if it is a version."""
    metrics = dossier.metrics
    requirements = metrics.environment.requirements_sha256 if metrics.environment else None
    line = {
        f"{'started' if number == 0 else 'before that'} from {each.name}, sha256": each.model_sha256
        for number, each in enumerate(metrics.ancestors or [])
    }
    return {
        **dossier.origin.lineage,
        "model, sha256": metrics.model_sha256,
        **line,
        "images, sha256": metrics.data_sha256,
        "requirements.lock, sha256": requirements,
    }


def pair_results(first: Dossier, second: Dossier) -> "PairedDifference | str":
    """Return the paired difference of the images of two models, or the reason why they cannot be paired."""
    if first.per_image is None or second.per_image is None:
        return "one of them has no figures for each image"
    fields = ("data_sha256", "split", "num_images", "seed", "times_per_image", "num_timesteps", "precision", "given")
    for field in fields:
        settings = [getattr(one.metrics, field) for one in (first, second)]
        if settings[0] != settings[1]:
            return f"they differ in {field}: {settings[0]} and {settings[1]}"
    before, after = first.per_image["bpd"], second.per_image["bpd"]
    if len(before) < 2:
        return "one image has no standard error"
    if before.isna().any() or after.isna().any():
        return "not all figures are finite"
    from vdm.evaluation import paired_difference  # loads torch, for a second

    return paired_difference(before.to_numpy(), after.to_numpy(), confidence=CONFIDENCE)


def template() -> Any:
    """Return the template of the page."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"figure": figure, "value": value, "count": "{:,}".format, "data": data_uri}
    return made.get_template("page.html")


def plain(output: Any) -> Any:
    """Return text without control characters; HTML that this file made stays as it is."""
    return output if isinstance(output, Markup) else visible(output)


def figure(number: float | None, error: float | None = None, form: str = ".4f") -> str:
    """Return a number with its standard error, if there is one; "not finite" for None, which stands for it in JSON."""
    if number is None:
        return "not finite"
    shown = format(number, form if abs(number) < 1e6 else form.replace("f", "g")).replace("-", "\N{MINUS SIGN}")
    # A line may break after the sign only.
    return Markup(shown if error is None else f"{shown}&nbsp;± {figure(error)}")


def png_of(dossier: Dossier) -> InPng | None:
    """Return what the evaluated images take in a PNG; None if they are not here."""
    metrics = dossier.metrics
    if not dossier.images or metrics.split == "other":
        return None
    return measure_png(spread(dossier.images[metrics.split], metrics.num_images))


def judge_results(dossier: Dossier, png: InPng | None) -> list[Remark]:
    """Return what the figures mean, in words.  `png` is what the evaluated images take in a PNG, if they are here."""
    metrics, of, drawn = dossier.metrics, dossier.metrics.classes, dossier.sample_metrics
    levels = dossier.images.num_levels if dossier.images else dossier.model.num_levels if dossier.model else None
    cost = Cost(
        metrics.bpd,
        f"{metrics.num_images:,} {metrics.split} images",
        num_levels=levels,
        png_bpd=png.bpd if png else None,
        epochs=epochs(dossier),
        gap=metrics.generalisation_gap_bpd,
        gap_error=metrics.generalisation_gap_standard_error,
    )
    accuracy, quality, chance = None, None, guess(dossier)
    if of and chance and of.accuracy is not None:
        accuracy = Accuracy(of.accuracy, of.accuracy_standard_error, chance)
    found = drawn.frechet if drawn else None
    if drawn and found and found.samples is not None and found.held_out is not None:
        errors = found.samples_standard_error, found.held_out_standard_error
        quality = Quality(found.samples, errors[0], found.held_out, errors[1], drawn.sampler.num_timesteps)
    return judgement(cost, accuracy, quality, may_copy=drawn is not None and may_copy(drawn))


def guess(dossier: Dossier) -> float | None:
    """Return how often a guess finds the class: always the most frequent one, or any, if the labels are not here."""
    if not (of := dossier.metrics.classes):
        return None
    if dossier.labels is None or not of.num_classified:
        return 1 / of.num_classes
    _, counts = np.unique(spread(dossier.labels, of.num_classified), return_counts=True)
    return float(counts.max() / counts.sum())


def epochs(dossier: Dossier) -> float | None:
    """Return how often the training saw every image, as far as its log, its parameters and the metrics say it."""
    train = dossier.origin.parameters.get("train", {})
    batch_size, fitted_to = train.get("batch_size"), dossier.metrics.fitted_to or "train"
    if dossier.images:
        count: int | None = dossier.images.count_fitted(fitted_to)
    else:  # the metrics do not say how many validation images there were
        count = dossier.metrics.num_train if fitted_to == "train" else None
    if dossier.curves is None or not count or not isinstance(batch_size, int):
        return None
    return int(dossier.curves["step"].iloc[-1]) * batch_size / count


def facts(dossier: Dossier, png: InPng | None) -> Iterator[tuple[str, str]]:
    """Yield the names of the facts that are known, with their values in words."""
    origin, metrics, curves, model = dossier.origin, dossier.metrics, dossier.curves, dossier.model
    if model:
        yield "Parameters", f"{model.num_parameters:,}"
        ends, initial = (model.schedule[name].iloc[[0, -1]] for name in ("gamma", "initial"))
        was = "" if np.allclose(ends, initial) else "; at first {:g} to {:g}".format(*initial)
        yield ("Learned end points" if was else "End points"), "gamma {:.2f} to {:.2f}".format(*ends) + was
    if curves is not None:
        train, validated = origin.parameters.get("train", {}), curves.get("validation_bpd")
        steps, batch_size = int(curves["step"].iloc[-1]), train.get("batch_size")
        taken = f"{steps:,} steps"
        if (number := epochs(dossier)) is not None:
            taken += f" of {batch_size:,} images, {number:.1f} epochs"
        if train.get("keep") == "best" and validated is not None and validated.notna().any():
            taken += f"; weights of step {int(curves['step'][validated.idxmin()]):,}, the best on the validation images"
        yield "Training", taken
    if metrics.ancestors:
        yield "Started from", metrics.ancestors[0].name
    if png:
        yield f"{png.words[0].upper()}{png.words[1:]} in one PNG", f"{png.bpd:.4f} bits/dim"
    if dossier.findings:
        yield "Data contract", dossier.findings.words
    if metrics.environment:
        yield "Evaluated on", f"{metrics.environment.processor}, torch {metrics.environment.torch}"
