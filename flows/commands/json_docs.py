"""Describe what commands print with --json:  python -m flows.commands.json_docs > docs/json.md

The keys and types are those of the documents that the commands print.  A meaning is the text below a field in its
class, or else that of its name in `MEANINGS`.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel

from flows.compression.files import Compressed, Decompressed
from flows.evaluation.results import BoundMetrics, Comparison, OdeMetrics, SampleMetrics
from flows.process.streams import say
from flows.registry.evidence import Evidence
from flows.validation.report import Report

INTRODUCTION = """\
# What `--json` prints

A command with `--json` prints one JSON object on stdout, and messages and progress on stderr. If it fails before it has
a result, stdout is empty. Numbers that are not finite are null. A standard error has the unit of its figure, and is
null for one image. A time is text in ISO 8601. In a path of keys, `[]` stands for each item of a list, and NAME for any
key of an object. A key that several objects have is explained once, where it comes first.

`python -m flows.commands.json_docs > docs/json.md` writes this page."""

SECTIONS: list[tuple[str, str, type[BaseModel] | None]] = [
    (
        "evaluate MODEL",
        "The variational bound on the images of a split, as in `reports/evaluation/metrics.json`. With several numbers"
        " of steps (`--num-timesteps 10,100`), `protocol` is `vlb`, and `sweep` a list of such objects.",
        BoundMetrics,
    ),
    ("evaluate MODEL --protocol ode", "The likelihood of the probability-flow ODE.", OdeMetrics),
    ("compare FIRST SECOND", "Two models over the same images, times and noise.", Comparison),
    (
        "report",
        "`metrics`: the keys of [evaluate](#evaluate-model). `reproduction`: null if the outputs cannot be compared"
        " with those of a commit; else `is_equal`, `line`, which says what differs and why that may be, and"
        " `outdated_stages`, whose inputs have changed since they ran.",
        None,
    ),
    (
        "validate PATH",
        "The report on images, as in `reports/validation/validation.json`; also if they are invalid (exit 4).",
        Report,
    ),
    (
        "sample MODEL",
        "What was drawn: `out` and `film` (null without `--film`), `num_images`, the sampler as in the quality of"
        " samples (`seed`, `num_timesteps`, `order`, `eta`, `grid`, `clip`, `precision`), `approximate` (true with"
        " `--known`), `model_sha256`, and the `seconds` that drawing took. The quality of samples is in"
        " `reports/samples/metrics.json`:",
        SampleMetrics,
    ),
    ("compress IMAGES MODEL --out FILE", "The size of the file, and the bound to compare it with.", Compressed),
    ("decompress FILE MODEL --out FOLDER", "What was written.", Decompressed),
    (
        "models",
        "`versions`: a list, sorted by number, of `version`, `stages` (`champion`, or empty), `commit`, `created`,"
        " `bpd`, `bpd_standard_error`, `num_images`, `data_sha256`, `model_sha256`, and `samples`, which are the"
        " `figures` of the quality of samples. What a commit does not say is null. `problem` says why its metrics"
        " cannot be read.",
        None,
    ),
    (
        "lineage MODEL",
        "A version: `version`, `created`, `message`, `stages`, `commit`; the `parameters` of its commit; `data` and"
        " `validation` with `path`, `md5` and `sha256`; `code` and `outputs`, md5 by path (that of a folder ends in"
        " `.dir`); its `metrics`; `promotions`, a list of `tag`, `created` and `evidence`; and its last `refusal`, null"
        " if there is none. Evidence and refusal have the keys of [promote](#promote-model).",
        None,
    ),
    (
        "verify MODEL",
        "Also if a check fails (exit 5): `version`, `sound`, which says whether every check passed, and `checks`, a"
        " list of `subject` (a file, a folder or a section of params.yaml) and `problem`, which is empty if there is none.",
        None,
    ),
    (
        "promote MODEL",
        "The evidence for and against a challenger; also if it is refused (exit 3) or another promotion came first"
        " (exit 6). The message of the tag has the same keys without `tag`. Without a champion, its keys and those of the"
        " difference are absent; if the two cannot be compared, the figures of both are.",
        Evidence,
    ),
    ("rollback", "`decision`, `reason`, `champion`, `champion_tag` and `tag`, as [promote](#promote-model).", None),
    (
        "status",
        "The state of the loop; also if there is a problem (exit 5). `folder`. `server`: its `url`, whether it"
        " `answers`, and the `reason` if it does not; else lists of what is `paused` (`name`, and `resume`, the command"
        " that resumes it), `deployments`, `workers` (`name`, `status`), `schedules` (`deployment`, `when`, `timezone`,"
        " `active`, `paused`, `next_run`), unfinished `runs` (`name`, `state`, `started`), `late` runs (`name`,"
        " `planned`, `queue`) and the `last_run` (`name`, `state`, `ended`, `reason`). `devices` that a trainer holds"
        " (`device`, `holder`, `since`). `worktrees` of runs (`name`, `in_use`). `registry`: `versions`, `champion`,"
        " `champion_bpd`, and the `unpublished` versions, or the `problem` with it. `disk_bytes` by kind, and"
        " `disk_free_bytes`. `problems`: what to look at, and what to do.",
        None,
    ),
    (
        "prune",
        "What was removed, or with `dry_run` would be: `keep`; `removed`, by kind the `count`, the `bytes` (null if"
        " unknown) and the `names`; the versions that are `kept`, each with the reason; what was `skipped`, and"
        " `problems` (exit 5).",
        None,
    ),
]
MEANINGS = {
    "protocol": "how the likelihood was evaluated",
    "split": "the images: `train`, `validation` or `test`",
    "bpd": "mean over the images, in bits/dim: an upper bound of the negative log-likelihood",
    "bpd_monte_carlo_standard_error": "the part of the error that more times per image would remove",
    "num_images": "how many images",
    "seed": "of the times and the noise",
    "times_per_image": "noise levels per image",
    "num_timesteps": "number of steps T; null is continuous time",
    "precision": "number format of the network's matrix products",
    "data_sha256": "digest of the image set: arrays, number of levels and transforms",
    "model_sha256": "digest of the model: of its config.json, which has that of the weights",
    "environment": "what decides the last digits besides data, parameters and code",
    "fitted_to": "`train`, or `train_and_validation`",
    "training": "of as many training images as test images",
    "generalisation_gap_bpd": "test minus training images",
    "bpd_numerical_error": "what the solver's tolerance adds to `bpd`; below 0, `bpd` is too low",
    "num_repeated": "images of which the numerical error was measured",
    "num_draws": "dequantisation draws per image",
    "num_probes": "random probes of the divergence; 0: it is exact",
    "difference_bpd": "second minus first, or challenger minus champion: below 0 it is better",
    "confidence_interval": "of the difference: lower and upper end",
    "nearer_than_held_out": "probability that a sample is nearer to a training image than a test image is",
    "num_training_images": "with how many training images the figures compare",
    "order": "of the sampler",
    "eta": "noise of a step: 0 none, 1 that of ancestral sampling",
    "grid": "what the steps are evenly spaced in",
    "clip": "whether predicted images are limited to the range of pixels",
    "pixel_bytes": "one byte for each pixel and channel",
    "net_bpd": "bits/dim of the whole file",
    "code_bpd": "bits/dim of the images encoded with the model",
    "initial_bits": "pseudo-random bits that the first images draw from",
    "plain_images": "how many images are encoded without the model",
    "bound_bpd": "the bound in as many steps",
    "verified": "whether the file was decoded and compared",
    "decision": "`promote`, `refuse` or `roll back`",
    "reason": "why, in one line",
    "challenger": "the version that was judged",
    "champion": "the champion then; after a roll-back, now",
    "champion_tag": "the tag that made it the champion",
    "data_changed": "whether the champion's images were others",
    "num_judged": "challengers that these validation images have judged",
    "tag": "the new tag of the champion",
}


def page() -> str:
    """Return the page as Markdown."""
    parts, explained = [INTRODUCTION], set[str]()
    for command, text, document in SECTIONS:
        parts += [f"## {command}", textwrap.fill(f"`vdmctl {command} --json`: {text}", 120)]
        if document:
            parts.append("\n".join(keys(document, explained)))
    return "\n\n".join(parts)


def keys(document: type[BaseModel], explained: set[str], prefix: str = "") -> Iterator[str]:
    """Yield a line for each key of a document and of the documents in it; meanings in `explained` are left out."""
    schema = document.model_json_schema()
    known: set[type[BaseModel]] = set()
    said = below_fields(document)
    for name, field in document.model_fields.items():
        meaning = said.get(name) or MEANINGS.get(name, "")
        text = f": {meaning}" if meaning and meaning not in explained else ""
        explained.add(meaning)
        yield f"- `{prefix}{name}`, {type_of(schema['properties'][name])}{text}"
        for place, inner in documents_in(field.annotation):
            if inner not in known:
                known.add(inner)
                yield from keys(inner, explained, f"{prefix}{name}{place}.")


def type_of(schema: dict[str, Any]) -> str:
    """Return the type of a value in words, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(map(type_of, schema["anyOf"]))
    if "$ref" in schema:
        return "object"
    if "const" in schema:
        return f"`{schema['const']}`"
    words = {"array": "list", "string": "text", "boolean": "true or false"}
    kind = schema.get("type", "any")
    return words.get(kind, kind)


def documents_in(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the documents in the type of a field, with what leads to them: nothing, `[]` in a list, `.NAME`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    place = {list: "[]", dict: ".NAME"}.get(getattr(annotation, "__origin__", None), "")
    for argument in get_args(annotation):
        yield from ((place + rest, inner) for rest, inner in documents_in(argument))


def below_fields(document: type[BaseModel]) -> dict[str, str]:
    """Return the texts below the fields of a document and of those that it extends."""
    found: dict[str, str] = {}
    for part in reversed(document.__mro__[: -len(BaseModel.__mro__)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                lines = " ".join(str(text.value.value).split())
                found[ast.unparse(field.target)] = lines[0].lower() + lines[1:].rstrip(".")
    return found


if __name__ == "__main__":
    say(page())
