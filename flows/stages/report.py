"""The stage `report`: one HTML page with all results, and its charts as files."""

from pathlib import Path

from flows.core.files import write_whole, written_last
from flows.core.folders import writing_folder
from flows.report.page import page
from flows.report.results import Files, Origin, read_results


def report(origin: Origin, *, files: Files, out: Path, pictures: Path) -> None:
    """Write the page about the results in `files` to `out`, and its charts into the folder `pictures`, or else neither.

    Raises UserError (exit 5) for a result that is damaged, and without metrics; OSError that names the file that cannot
    be written.
    """
    made = page(read_results(files, origin))
    with written_last(out, made.html), writing_folder(pictures) as folder:
        for chart in made.charts:
            write_whole(folder / f"{chart.name}.svg", chart.svg)
