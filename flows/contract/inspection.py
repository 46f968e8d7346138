"""The stage `validate`: check an image set against the discretization contract, and write the findings.

They are a document, a picture and a site.  The picture has the histograms of the splits, the images that break an
expectation, and the pairs that look most alike.
"""

import json
import logging
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from flows.contract.checking import Checker, fill_tables, name_files
from flows.contract.checks import Measurements, list_checks
from flows.contract.drift import agreement, compare_profiles, profile
from flows.contract.duplicates import count_searched, lookalikes, search
from flows.contract.facts import measure_facts
from flows.contract.findings import FINDINGS, Alike, Findings, Profile
from flows.contract.traces import unjudged_fields
from flows.core.errors import Exit, UserError
from flows.core.escaping import visible
from flows.core.files import write_whole
from flows.images.depth import advice
from flows.images.image_set import ImageSet
from vdm.choices import Split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from flows.core.params import Contract


log = logging.getLogger(__name__)

# In the folder of the findings.
DATA_DOCS, PICTURE = "data_docs", "findings.png"
MOST_PAIRS = 500
COLUMNS = 10
SIDE = 256


def validate(contract: "Contract", *, images: ImageSet, out: Path, reference: Profile | None = None) -> None:
    """Write the findings on the images into the folder `out`.

    Raises UserError (exit 4), once they are written, for invalid images; OSError that names what cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)  # fails before the images are read
    inspection = inspect_images(contract, images, reference)
    write_findings(inspection, out)
    require_success(inspection.findings, images.name, out)


class Inspection(NamedTuple):
    """The findings, and the data for their picture and their site."""

    findings: Findings
    images: ImageSet
    histograms: dict[str, np.ndarray]
    checker: Checker


def inspect_images(settings: "Contract", images: ImageSet, reference: Profile | None) -> Inspection:
    """Check the images; `reference` is the profile of images from which they should not have drifted.

    Raises UserError (exit 5) for labels and names of files that cannot be read.
    """
    facts = {split: measure_facts(images[split], images.num_levels) for split in images.splits}
    labels = {split: images.labels(split) for split in images.splits}
    found = search(images, facts)
    alike = lookalikes(found, settings.near_duplicate_distance)
    agreements = {pair: agreement(pairs, labels[pair[0]], labels[pair[1]]) for pair, pairs in found.items()}
    profiles = {split: profile(facts[split], labels[split], agreements[split, split]) for split in images.splits}
    differ = compare_profiles(profiles, agreements, reference, settings)
    known = Measurements(images, facts, labels, alike, differ)
    samples = count_searched(facts, found)
    used = np.flatnonzero(known.histogram)
    ignored = unjudged_fields(known.histogram, known.textured)
    checks, checker = list_checks(images, settings, ignored, samples, advice(used, images.num_levels)), Checker()
    for table in fill_tables(known, checks):
        checker.judge(table, checks)
    findings = Findings(
        success=all(result.success or result.severity == "warning" for result in checker.results),
        data_sha256=images.data_sha256,
        relaxed=[check.relaxed for check in checks if check.relaxed],
        transforms=images.description.transforms,
        expectations=[
            result.model_copy(update={"rows": name_files(result.rows, images)}) for result in checker.results
        ],
        profile=profiles["train"],
        alike=[describe_pairs(pair, pairs, images, samples.get(pair)) for pair, pairs in alike.items()],
        differences=differ,
    )
    return Inspection(findings, images, {split: known.histogram for split, known in facts.items()}, checker)


def describe_pairs(pair: tuple[Split, Split], found: pd.DataFrame, images: ImageSet, sample: int | None) -> Alike:
    """Return what the findings say of the images that look alike in two splits, with at most 500 pairs.

    `sample` is the number of the images that were searched for, None for all.
    """
    rows = found.head(MOST_PAIRS).assign(split=pair[1], of_split=pair[0])
    rows = rows.round({"distance": 6, "by_chance": 4}).astype({"image": int, "of_image": int})
    shown = ["split", "image", "of_split", "of_image", "moved", "distance", "by_chance"]
    return Alike(
        first=pair[0],
        second=pair[1],
        found=len(found),
        excess=int(found["excess"].sum()),
        pairs=name_files(rows[shown].to_dict("records"), images),
        **({} if sample is None else {"searched": sample}),
    )


def write_findings(inspection: Inspection, out: Path) -> None:
    """Write the findings and their picture into the folder `out`, and the Data Docs beside them.

    The same images, contract and installed packages give the same bytes of both; the Data Docs have times.  Raises
    OSError that names what cannot be written.
    """
    findings, images, histograms, checker = inspection
    write_whole(out / PICTURE, draw_findings(images, histograms, findings))
    write_whole(out / FINDINGS, json.dumps(findings.model_dump(exclude_unset=True), indent=2, sort_keys=True) + "\n")
    checker.build_site(out / DATA_DOCS)


def require_success(findings: Findings, images: str, out: Path | None) -> None:
    """Log the warnings.  Raise UserError (exit 4) that names the images and every critical expectation that fails.

    The error refers to the site in the folder `out`, if there is one.
    """
    shown = visible(images)
    if warnings := findings.failed("warning"):
        log.warning("%s: warning: %s", shown, visible("; ".join(result.words for result in warnings)))
    if critical := findings.failed("critical"):
        see = f"; see {out / DATA_DOCS / 'index.html'}" if out else ""
        raise UserError(f"{images}: {'; '.join(result.words for result in critical)}{see}", Exit.INVALID_DATA)
    held = sum(result.success for result in findings.expectations)
    log.info("%s: %s: %d of %d expectations hold", shown, findings.words, held, len(findings.expectations))
    for result in findings.expectations:
        if not result.is_judged:
            log.info("%s: %s", shown, result.meaning)


def draw_findings(images: ImageSet, histograms: dict[str, np.ndarray], findings: Findings) -> bytes:
    """Return a PNG: the share of pixels by level, below it a row of images for each broken expectation about images.

    At the bottom are the pairs of images of two splits that look most alike, the image of the later split above.
    """
    from matplotlib.figure import Figure

    broken = [result for result in findings.expectations if not result.success and result.table == "images"]
    rows = [(f"{result.meaning}: {result.severity}", result.rows, "") for result in broken if result.rows]
    if pairs := sorted((pair for alike in findings.alike for pair in alike.pairs), key=lambda pair: pair["by_chance"]):
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
            draw_image(axes, images, row[f"{prefix}split"], row[f"{prefix}image"], text)
    picture = BytesIO()
    # `Software` would be the version of matplotlib.
    figure.savefig(picture, dpi=100, bbox_inches="tight", metadata={"Software": None})
    return picture.getvalue()


def draw_image(axes: "Axes", images: ImageSet, split: Split, number: int, text: str) -> None:
    """Draw an image above its number and a text: three channels in colour, else the first in gray; no other shapes."""
    image, lowest, highest = images[split][number], 0.0, images.num_levels - 1.0
    if highest > 255 and image.size and image.dtype == images.dtype:
        lowest, highest = np.percentile(image, [0.5, 99.5])
        text += f"\nlevels {lowest:,.0f} to {highest:,.0f}"
    if image.ndim == 3 and image.size:
        step = max(1, max(image.shape[1:]) // SIDE)
        values = np.nan_to_num(image[:, ::step, ::step].astype(float))
        shown = np.clip((values - lowest) / max(highest - lowest, 1), 0, 1)
        axes.imshow(shown.transpose(1, 2, 0) if len(shown) == 3 else shown[0], cmap="gray", vmin=0, vmax=1)
    axes.axis("off")
    axes.text(0, -0.02, f"{split} {number}{text}", fontsize=7, va="top", transform=axes.transAxes)
