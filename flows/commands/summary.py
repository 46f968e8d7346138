"""Print results as a few lines of text."""

from flows.core.tables import table
from flows.evaluation.odd import Labelled, Surprise
from flows.evaluation.results import (
    BOTH,
    BoundMetrics,
    Comparison,
    OdeMetrics,
    bits,
    format_figure,
)
from flows.process.streams import say_result

MOST_SHOWN = 20


def show(result: BoundMetrics | OdeMetrics | Comparison, as_json: bool) -> None:
    """Print a result as one JSON object or as text."""
    say_result(result.model_dump(), summary(result), as_json)


def summary(result: BoundMetrics | OdeMetrics | Comparison) -> str:
    """Return a result as lines of text."""
    match result:
        case BoundMetrics():
            return describe_bound(result)
        case OdeMetrics():
            images = quantity(result.num_images, f"{result.split} image")
            draws = quantity(result.num_draws, f"{result.dequantisation} draw")
            probes = quantity(result.num_probes, "probe") if result.num_probes else "exact divergence"
            return (
                f"{bits(result)} under the probability-flow ODE, {images}, {draws}, {probes}"
                f"{', given the class' if result.given == 'class' else ''}\n"
                f"numerical error {format_figure(result.bpd_numerical_error, form='+.4f')} bits/dim:"
                f" {quantity(result.num_repeated, 'image')} at tolerance {result.tolerance:g} and a tenth of it"
            )
        case Comparison():
            return describe_difference(result)


def describe_bound(result: BoundMetrics) -> str:
    """Return the bound with its terms and the settings of its evaluation, as text."""
    prior, reconstruction = format_figure(result.prior_bpd), format_figure(result.reconstruction_bpd)
    terms = f"{prior} prior + {reconstruction} reconstruction + {format_figure(result.diffusion_bpd)} diffusion"
    lines = [f"{bits(result)} = {terms}", describe_settings(result)]
    if result.best_bpd is not None:
        best = format_figure(result.best_bpd, result.best_bpd_standard_error)
        lines.append(f"best: {best} bits/dim, with ends and variances of the steps fitted to validation images")
    elif result.num_timesteps:
        lines.append("best: no figure, without errors of the model on validation images that can be used")
    if of := result.classes:
        gain = format_figure(of.gain_bpd, of.gain_standard_error, "+.4f")
        lines.append(f"without the class: {bits(of.without)}; the class is worth {gain}")
        if of.accuracy is not None:
            how = f"{quantity(of.num_classified, 'image')}, {quantity(of.class_times, 'noise level')} for each class"
            found = format_figure(of.accuracy, of.accuracy_standard_error)
            lines.append(f"accuracy: {found}, by chance {format_figure(1 / of.num_classes)}, {how}")
            bias = f"Monte Carlo bias {format_figure(of.mixture_bias_bpd, form='+.4f')}"
            mixture = format_figure(of.mixture_bpd, of.mixture_standard_error)
            lines.append(f"mixture over the classes: {mixture} bits/dim without the class, {bias}")
    if result.validation:
        lines.append(f"validation: {bits(result.validation)}, {quantity(result.validation.num_images, 'image')}")
    elif result.training and result.fitted_to == BOTH:
        lines.append("validation: no figure, since the model was fitted to these images")
    if result.training:
        gap, error = result.generalisation_gap_bpd, result.generalisation_gap_standard_error
        lines.append(f"test - training: {format_figure(gap, error, '+.4f')} bits/dim")
    return "\n".join(lines)


def describe_difference(result: Comparison) -> str:
    """Return both models' bits/dim, and their difference with its interval, as text."""
    low, high = result.confidence_interval
    interval = "no interval"
    if low is not None and high is not None:
        interval = f"{100 * result.confidence:g}% interval [{low:+.4f}, {high:+.4f}]"
    lines = [f"{model.model}: {bits(model)}" for model in result.models]
    bpd = format_figure(result.difference_bpd, form="+.4f")
    lines.append(f"difference: {bpd} bits/dim, {interval}, {describe_settings(result)}")
    if result.classes_differ:
        lines.append(f"not given the class: {result.classes_differ}")
    if result.samples is None:
        lines.append("samples: not compared: not measured with the same features and images; see `vdmctl sample`")
    for name, (first, second) in (result.samples or {}).items():
        lines.append(f"{name}: {first.of_samples}, {second.of_samples}; held-out images {first.of_held_out}")
    return "\n".join(lines)


def describe_surprise(result: Surprise) -> str:
    """Return the oddest images as a table, and how many are odd, as text."""
    columns = {
        "image": [str(each.number) for each in result.images],
        "file": [each.file or "" for each in result.images] if any(each.file for each in result.images) else None,
        "score": [format_figure(each.score, form=".2f") for each in result.images],
        "p": ["" if each.p is None else f"{each.p:.4f}" for each in result.images] if result.batch else None,
        "bits/dim, about": [format_figure(each.bpd, form=".2f") for each in result.images],
        "far from usual, in standard deviations": [each.words for each in result.images],
    }
    shown = {title: cells[:MOST_SHOWN] for title, cells in columns.items() if cells is not None}
    lines = [table([*shown], list(zip(*shown.values(), strict=True)))]
    if len(result.images) > MOST_SHOWN:
        lines.append(f"and {len(result.images) - MOST_SHOWN:,} images that are less odd; --out FILE.csv has all")
    return "\n".join([*lines, "", *result.sentences])


def describe_labels(result: Labelled) -> str:
    """Return the images with the least likely labels as a table."""
    header = ["image", "label", "p", "likeliest", "p", "file"]
    rows = [
        [
            str(each.number),
            each.label,
            format_p(each.p_label),
            each.likeliest,
            format_p(each.p_likeliest),
            each.file or "",
        ]
        for each in result.images[:MOST_SHOWN]
    ]
    rest = len(result.images) - len(rows)
    return "\n".join([table(header, rows), *([f"and {rest:,} images with likelier labels"] if rest else [])])


def format_p(p: float | None) -> str:
    """Return a probability as text."""
    return format_figure(p, form=".2g")


def describe_settings(result: BoundMetrics | Comparison) -> str:
    """Return the numbers of images, of times and of steps, and what was given, as text."""
    given = ", given the class" if result.given == "class" else ""
    steps = quantity(result.num_timesteps, "step") if result.num_timesteps else "continuous time"
    images = quantity(result.num_images, f"{result.split} image")
    return f"{images}, {quantity(result.times_per_image, 'noise level')} each, {steps}{given}"


def quantity(number: int, noun: str) -> str:
    """Return a number of things, such as "1 image" or "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
