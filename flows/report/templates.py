"""Fill in the templates beside this file.  All text is escaped: names of files and of data sets are not trusted."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flows.core.escaping import visible
from flows.report.charts import PALETTE

MOST_CHARACTERS = 400


def fill(template: str, **values: Any) -> str:
    """Return the page that a template makes of the values."""
    return environment().get_template(template).render(palette=PALETTE, **values)


@cache
def environment() -> Environment:
    """Return jinja2's environment, which keeps the compiled templates."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"figure": figure, "value": value, "count": "{:,}".format}
    return made


def plain(output: Any) -> Any:
    """Return text of bounded length without control characters; HTML that `flows.report` made stays as it is."""
    if isinstance(output, Markup):
        return output
    text = visible(output)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def figure(number: float | None, error: float | None = None, form: str = ".4f") -> str:
    """Return a number with its standard error, if there is one; "not finite" for None, which stands for it in JSON."""
    if number is None:
        return "not finite"
    shown = format(number, form if abs(number) < 1e6 else form.replace("f", "g")).replace("-", "\N{MINUS SIGN}")
    # A line may break after the sign only.
    return Markup(shown if error is None else f"{shown}&nbsp;± {figure(error)}")


def value(parameter: Any) -> str:
    """Return a value as text: a string as it is, anything else as JSON, which is how params.yaml writes it."""
    return parameter if isinstance(parameter, str) else json.dumps(parameter, default=str)
