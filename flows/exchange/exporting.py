"""Write a model as a repository of the Hugging Face Hub: weights, config.json, and a card with the Hub's metadata.

The metadata are those of https://github.com/huggingface/hub-docs/blob/main/modelcard.md.  The files of the model keep
their names and their bytes, so that every command and `flows.api.load` read the folder.
"""

import json
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.core import layout
from flows.core.card import CARD, describe_model, parameters
from flows.core.escaping import markdown
from flows.core.files import replace_folder, write_whole
from flows.core.judgement import Cost, judgement
from flows.core.model import TrainedModel, copy_model
from flows.evaluation.calibration import Calibration
from flows.evaluation.error_curve import KeptCurve
from flows.evaluation.results import Metrics, format_figure

TAGS = ["diffusion", "variational-diffusion-model", "likelihood"]
DATASETS = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "svhn": "ufldl-stanford/svhn",
}
"""The names that published sets have on the Hub, by `data.name`."""
LICENCES = {
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0"),
    *("cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0"),
    *("cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "odc-by", "odbl", "pddl"),
    *("bsd-2-clause", "bsd-3-clause", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "ofl-1.1", "unlicense", "unknown"),
}
"""Licences of images, as the Hub names them."""
WITHOUT_TRAINING = """\
# Variational diffusion model

{judgement}A VDM (Kingma et al. 2021, arXiv 2107.00630) over images of {shape} with {num_levels} levels and
{num_parameters:,} parameters. What it was trained on is not stated.

"""
USE = """\
## Load it

With the package `vdm-pipeline`, whose version {version} wrote this; `hf download USER/{name} --local-dir {name}` makes
the folder:

```python
from flows.api import load

model = load("{name}")
```

`vdmctl evaluate {name} --images PICTURES` prints the bits/dim of pictures. Nothing in the folder is run, and it is
checked by digests: that of the model is `{model_sha256}`.

"""
OWN_NETWORK = """\
Its network is `{network}`, whose code is not in this folder: put its file into `networks/` of the folder in which you
work, or give `load` the network.

"""
FIGURES = """\
## Figures

| | |
|---|---|
| bits/dim{given} | {figure} |
| images | {images} |
| data sha256 | `{data_sha256}` |

"""


def export(
    trained: TrainedModel,
    metrics: Metrics | None,
    out: Path,
    *,
    calibration: Calibration | None = None,
    error_curve: KeptCurve | None = None,
    licence: str | None = None,
) -> str:
    """Write the folder `out`, all or nothing, and return the licence that its card states.

    `metrics` are those of an evaluation of the model, `calibration` is what surprise compares images with, and
    `error_curve` what grids of few steps are fitted to.  `licence` is the Hub's name of the licence that the model has;
    without one, it is that of the images, if the Hub has it.  Raises UserError and OSError as `replace_folder` does.
    """
    licence = licence or name_on_hub(licence_of(trained))
    text = f"---\n{metadata(trained, metrics, out.name, licence)}---\n\n{card_for_the_hub(trained, metrics, out.name)}"
    with replace_folder(out) as folder:
        copy_model(folder, trained)
        write_whole(folder / CARD, text)
        results = folder / layout.EVALUATION.relative_to(layout.REPORTS)
        if metrics:
            found = json.dumps(metrics.model_dump(exclude_unset=True), indent=2) + "\n"
            write_whole(results / layout.METRICS.name, found)
        if calibration:
            write_whole(results / layout.CALIBRATION.name, calibration.as_json())
        if error_curve:
            write_whole(results / layout.ERROR_CURVE.name, error_curve.as_json())
    return licence


def metadata(trained: TrainedModel, metrics: Metrics | None, name: str, licence: str) -> str:
    """Return the metadata of the card, which the Hub reads, as YAML."""
    training = trained.training
    data = training.name if training else "images"
    found: dict[str, Any] = {
        "license": licence,
        "library_name": "vdm-pipeline",
        "pipeline_tag": "unconditional-image-generation",
        "tags": TAGS,
    }
    if data in DATASETS:
        found["datasets"] = [DATASETS[data]]
    if metrics and metrics.bpd is not None:
        figure = {"type": "bits_per_dim", "name": name_of(metrics), "value": round(metrics.bpd, 4)}
        result = {
            "task": {"type": "unconditional-image-generation"},
            "dataset": {
                "type": DATASETS.get(data, data),
                "name": (training and training.title) or data,
                "split": evaluated_split(metrics),
            },
            "metrics": [figure],
        }
        found["model-index"] = [{"name": name, "results": [result]}]
    text = StringIO()
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(found, text)
    return text.getvalue()


def card_for_the_hub(trained: TrainedModel, metrics: Metrics | None, name: str) -> str:
    """Return the card of the model with its figures, or what is known of a model whose training is not."""
    training = trained.training
    if training:
        model = describe_model(trained, training)
    else:
        model = WITHOUT_TRAINING.format(
            judgement=judgement_paragraph(trained, metrics),
            shape="x".join(map(str, trained.image_shape)),
            num_levels=trained.num_levels,
            num_parameters=sum(p.numel() for p in trained.vdm.parameters()),
        )
    figures = ""
    if metrics:
        figures = FIGURES.format(
            given=" given the class" if metrics.given == "class" else "",
            figure=format_figure(metrics.bpd, metrics.bpd_standard_error),
            images=f"{metrics.num_images:,} {evaluated_split(metrics)} images" if metrics.num_images else "not stated",
            data_sha256=metrics.data_sha256,
        )
    use = USE.format(name=name, model_sha256=trained.sha256, version=version("vdm-pipeline"))
    if network := trained.description.model.get("network"):
        use += OWN_NETWORK.format(network=network)
    return model + use + figures + (parameters(training) if training else "")


def judgement_paragraph(trained: TrainedModel, metrics: Metrics | None) -> str:
    """Return what the figures mean as a paragraph; "" without any."""
    if not metrics:
        return ""
    of = f"{metrics.num_images or 'all'} {evaluated_split(metrics)} images"
    (first, *_) = judgement(Cost(metrics.bpd, of, num_levels=trained.num_levels))
    return f"**{markdown(first.text)}**\n\n"


def name_of(metrics: Metrics) -> str:
    """Return what the figure is, with its standard error and its number of images."""
    given = " given the class" if metrics.given == "class" else ""
    error = "" if metrics.bpd_standard_error is None else f", standard error {metrics.bpd_standard_error:.4f}"
    return f"bits/dim{given}{error}" + (f", {metrics.num_images} images" if metrics.num_images else "")


def evaluated_split(metrics: Metrics) -> str:
    """Return which images were evaluated, of which only some versions of the pipeline state another split than test."""
    return str((metrics.model_extra or {}).get("split", getattr(metrics, "split", "test")))


def licence_of(trained: TrainedModel) -> str | None:
    """Return the licence of the images; None unless those of all models from which it began have the same."""
    licences = {each.licence for each in trained.line}
    return licences.pop() if len(licences) == 1 else None


def name_on_hub(licence: str | None) -> str:
    """Return a licence as the Hub names it; "unknown" if it has none by that name."""
    name = (licence or "").lower().removesuffix(" license").replace(" ", "-")
    return name if name in LICENCES else "unknown"
