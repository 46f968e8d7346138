"""Write the lists of keys in docs/json.md, and the tables in docs/samples.md:  python -m flows.commands.json_docs

A list stands below a comment with the name of a document that a command prints.  The meaning of a key is the text below
the field in its class, or else that of its name in `MEANINGS`.
"""

import pkgutil
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from flows.core.files import write_whole
from flows.evaluation.figures import QUALITY
from vdm.samplers import SAMPLERS

PAGE, SAMPLES_PAGE = Path("docs/json.md"), Path("docs/samples.md")
TABLE = re.compile(r"(<!-- (samplers|figures) -->\n\n)(?:\|.*\n)*")
LIST = re.compile(r"(<!-- (flows\.[\w.]+) -->\n\n)(?: *- .*\n)*")
MEANINGS = {
    "split": "the images: `train`, `validation` or `test`; of `evaluate`, `other` for files that are no image set",
    "bpd": "mean over the images, in bits/dim: an upper bound of the negative log-likelihood",
    "bpd_monte_carlo_standard_error": "the part of the error that more times per image would remove",
    "seed": "of the times and the noise",
    "times_per_image": "noise levels per image",
    "num_timesteps": "number of steps T; null is continuous time",
    "data_sha256": "digest of the image set: arrays, number of levels and transforms",
    "model_sha256": "digest of the model: of its config.json, which has that of the weights",
    "precision": "number format of the network's matrix products",
    "environment": "what decides the last digits besides data, parameters and code",
    "given": "`class`: p(x | class); `nothing`: p(x)",
    "classes": "of a model with classes; null for any other, and if nothing is given",
    "gain_bpd": "what the class is worth: without it minus given it",
    "mixture_bpd": "p(x) as the mixture of p(x | class) over all classes",
    "mixture_bias_bpd": "the part of it that is Monte Carlo bias",
    "log_likelihoods": "given each class, in nats, up to a constant",
    "guidance": "1: none; more exaggerates the class",
    "figures": "by the name of the figure",
    "by_class": "within each class, by its number",
    "fitted_to": "`train`, or `train_and_validation`",
    "training": "of as many training images as test images",
    "generalisation_gap_bpd": "test minus training images",
    "bpd_numerical_error": "what the solver's tolerance adds to `bpd`; below 0, `bpd` is too low",
    "num_repeated": "images of which the numerical error was measured",
    "num_probes": "random probes of the divergence; 0: it is exact",
    "difference_bpd": "second minus first, or challenger minus champion: below 0 it is better",
    "confidence_interval": "of the difference: lower and upper end",
    "nearer_than_held_out": "how often a random sample is nearer to its most similar training image than a random test"
    " image is to its own: 0.5 for new images of the same kind, more if training images are repeated or samples are too"
    " smooth",
    "num_training_images": "with how many training images the figures compare",
    "eta": "noise of a step: 0 none, 1 that of ancestral sampling",
    "grid": "what the steps are evenly spaced in",
    "clip": "whether predicted images are limited to the range of pixels",
    "net_bpd": "bits/dim of the whole file",
    "code_bpd": "bits/dim of the images encoded with the model",
    "initial_bits": "pseudo-random bits that the first images draw from",
    "plain_images": "how many images are encoded without the model",
    "bound_bpd": "the bound in as many steps",
    "decision": "`promote`, `refuse`, `wait`, `roll back`, `hold` or `release`",
    "champion": "the champion then; after a roll-back, now",
    "champion_tag": "the tag that made it the champion",
    "data_changed": "whether the champion's images were others",
    "num_judged": "challengers that these validation images have judged",
}


def fill_in_keys(page: str) -> str:
    """Return the page with its lists of keys as the documents have them.  A meaning is told where it comes first."""
    told: set[str] = set()
    sections: dict[type[BaseModel], str] = {}
    """The documents that were listed, by the command that prints them."""

    def listed(found: re.Match[str]) -> str:
        document = pkgutil.resolve_name(found[2])
        lines = groupby(keys(document, told, dict(sections)), lambda key: (key[0], key[2]))
        sections[document] = re.findall(r"^## (\w+)", page[: found.start()], re.MULTILINE)[-1]
        return found[1] + "".join(
            start + ", ".join(key[1] for key in same) + f"{text}\n" for (start, text), same in lines
        )

    return LIST.sub(listed, page)


def keys(
    document: type[BaseModel], told: set[str], known: dict[type[BaseModel], str], start: str = "- "
) -> Iterator[tuple[str, str, str]]:
    """Yield the start of the line, the name and the text of each key of a document and of the documents in it.

    Meanings in `told` are left out.  A document in `known` is listed at the key, or for the command, that it names.
    """
    schema = document.model_json_schema()
    for name, field in document.model_fields.items():
        if field.exclude:  # for programs alone
            continue
        meaning = join_lines(field.description) if field.description else MEANINGS.get(name, "")
        kind = type_of(schema["properties"][name])
        text = "" if kind == implied_type(name) else f", {kind}"
        inner = documents_in(field.annotation)
        text += "".join(f" like `{known[each]}`" for each in inner if each in known)
        text += f": {meaning}" if meaning and meaning not in told else ""
        told.add(meaning)
        yield start, f"`{name}`", text
        for each in inner:
            if each not in known:
                known[each] = name
                yield from keys(each, told, known, f"  {start}")


def join_lines(text: str) -> str:
    """Return the text below a field as it stands behind a colon."""
    line = " ".join(text.split())
    return line[0].lower() + line[1:].rstrip(".")


def implied_type(name: str) -> str:
    """Return the type that the page does not repeat."""
    return "integer" if name.startswith("num_") else "text" if name.endswith("_sha256") else "number or null"


def type_of(schema: dict[str, Any]) -> str:
    """Return the type of a value in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(map(type_of, schema["anyOf"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = str(schema.get("type", "object" if "$ref" in schema else "any"))
    return {"array": "list", "string": "text", "boolean": "true or false"}.get(kind, kind)


def documents_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the documents in the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in documents_in(argument)]


def fill_in_tables(page: str) -> str:
    """Return the page with its tables of samplers and of figures as the code declares them."""
    rows: dict[str, list[tuple[Any, ...]]] = {
        "samplers": [
            ("name", "order", "eta", "sampler", "what it does", "source"),
            *((f"`{name}`", one.order, one.eta, *one[2:]) for name, one in SAMPLERS.items()),
        ],
        "figures": [
            ("figure", "name", "means", "unit", "source"),
            *((f"`{key}`", *figure) for key, figure in QUALITY.items()),
        ],
    }
    return TABLE.sub(lambda found: found[1] + markdown_table(rows[found[2]]), page)


def markdown_table(rows: list[tuple[Any, ...]]) -> str:
    """Return a table whose first row is its header."""
    header, *others = [f"| {' | '.join(map('{}'.format, row))} |\n" for row in rows]
    return "".join([header, f"|{'---|' * len(rows[0])}\n", *others])


if __name__ == "__main__":
    write_whole(PAGE, fill_in_keys(PAGE.read_text(encoding="utf-8")))
    write_whole(SAMPLES_PAGE, fill_in_tables(SAMPLES_PAGE.read_text(encoding="utf-8")))
