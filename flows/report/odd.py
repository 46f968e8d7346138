"""Images sorted by how odd they are to a model, as a table or as a page with pictures."""

import csv
from io import StringIO
from pathlib import Path

import numpy as np

from flows.core.files import write_whole
from flows.evaluation.odd import Surprise
from flows.images.grids import grid, png
from flows.images.image_set import Chosen
from flows.report.page import Shown, template
from flows.report.pictures import tile

MOST_SHOWN = 200
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>How odd the images of {{ name }} are to {{ found.model }}</title>
<style>
{% include "style.css" %}
</style>
</head>
<body>
<main>
<h1>How odd the images of {{ name }} are to {{ found.model }}</h1>
{% for line in found.sentences %}
<p>{{ line }}.</p>
{% endfor %}
<p class="muted">The oddest of {{ found.images | length | count }} images first. The score is the distance to held-out
images, by the network at {{ found.gamma | length }} noise levels and by plain statistics of the pixels. p is the
share of {{ found.num_calibrated | count }} held-out images with at least this score. Behind it: what is far from
theirs, in standard deviations. Little noise hides fine texture, more of it parts, and much of it leaves
composition.</p>
<ul class="tiles">
{% for each in shown %}
<li><img src="{{ each.picture.src }}" width="{{ each.picture.width }}" height="{{ each.picture.height }}"
 alt="{{ each.picture.alt }}">
{{ each.caption }}</li>
{% endfor %}
</ul>
</main>
</body>
</html>
"""


def write_odd(found: Surprise, images: Chosen, out: Path) -> None:
    """Write all images as a table (.csv), or the oddest as a page.  Raises OSError that names `out`."""
    if out.suffix == ".csv":
        write_whole(out, odd_table(found))
        return
    write_whole(out, page(found, images))


def odd_table(found: Surprise) -> str:
    """Return a table with a row for each image, the oddest first."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["image", "file", "score", "p", "bpd", *found.names])
    for each in found.images:
        numbers = [each.score, each.p, each.bpd, *each.deviations]
        writer.writerow(
            [each.number, each.file or "", *("" if number is None else f"{number:.6g}" for number in numbers)]
        )
    return text.getvalue()


def page(found: Surprise, images: Chosen) -> str:
    """Return a page with the oddest images, which needs no other file."""
    pixels = dict(zip(images.numbers.tolist(), images.pixels, strict=True))
    shown = [
        Shown(
            tile(pixels[each.number], images.set.num_levels, f"image {each.number}"),
            ", ".join(
                filter(
                    None, [each.file or f"image {each.number}", f"score {each.score:.2f}", format_p(each.p), each.words]
                )
            ),
        )
        for each in found.images[:MOST_SHOWN]
    ]
    return str(template().environment.from_string(PAGE).render(found=found, shown=shown, name=images.set.name))


def format_p(p: float | None) -> str:
    """Return a p-value in words, "" without one."""
    return "" if p is None else f"p {p:.3g}"


def picture_of(found: Surprise, images: Chosen, most: int) -> bytes:
    """Return the oddest images as one PNG, row by row."""
    numbers = images.numbers.tolist()
    places = [numbers.index(each.number) for each in found.images[:most]]
    return png(grid(np.asarray(images.pixels)[places], images.set.num_levels, min(6, len(places)), smallest=64))
