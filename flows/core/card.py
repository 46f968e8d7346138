"""The card of a model, README.md beside its weights: what config.json and training.json say, for people."""

import json

from flows.core.escaping import markdown
from flows.core.model import TrainedModel, Training

CARD = "README.md"
NOT_STATED = "not stated"
ABOUT = """\
# Variational diffusion model of {title}

{judgement}

A VDM (Kingma et al. 2021, arXiv 2107.00630) over images of {shape} with {num_levels} levels, {num_parameters:,}
parameters. The weights are the moving average {kept}.

| | |
|---|---|
| data | {name} ({homepage}), licence: {licence} |
| images | {num_train} training, {num_validation} validation and {num_test} test images; split: {split} |
| fitted to | {fitted_to} |
{started_from}| conditioned on | {conditioned} |
| transforms | {transforms} |
| data contract | {contract} |
| data sha256 | `{data_sha256}` |
| model sha256 | `{model_sha256}` |
| last training loss | {bpd:.4f} bits/dim, a mean over the last steps up to {step} |
{made_with}
"""
LOAD = """\
## Load it

```python
from flows.api import load

model = load("{place}")  # a vdm.model.VDM in evaluation mode
```

If `data/images` has the images above, `vdmctl evaluate {place}` prints the bits/dim of the test images. If the model is
registered, `vdmctl lineage VERSION` prints the commit that made it.

"""
PARAMETERS = """\
## Parameters

```json
{parameters}
```
"""
FITTED_TO = {"train": "training images", "train_and_validation": "training and validation images together: {:,}"}


def card(trained: TrainedModel, training: Training, place: str) -> str:
    """Return the card of a model that lies in `place`, a folder or a version."""
    return describe_model(trained, training) + LOAD.format(place=place) + parameters(training)


def describe_model(trained: TrainedModel, training: Training) -> str:
    """Return what the model is, and on what it was trained."""
    kept = "at the end of training"
    if training.kept_step is not None:
        kept = f"at step {training.kept_step}, the best on the validation images, at {training.kept_bpd:.4f} bits/dim"
    words = {name: getattr(training, name) for name in ("title", "name", "homepage", "licence", "split", "transforms")}
    return ABOUT.format(
        **{name: markdown(text or NOT_STATED) for name, text in words.items()},
        contract=markdown(training.contract or NOT_STATED),
        judgement="  \n".join(map(markdown, training.judgement)),
        shape="x".join(map(str, trained.image_shape)),
        num_levels=trained.num_levels,
        num_parameters=sum(p.numel() for p in trained.vdm.parameters()),
        kept=kept,
        num_train=training.num_train,
        num_validation=training.num_validation,
        num_test=training.num_test,
        fitted_to=FITTED_TO[training.fitted_to].format(training.num_fitted),
        started_from=ancestors_row(trained),
        conditioned=describe_condition(trained, training),
        data_sha256=training.data_sha256,
        model_sha256=trained.sha256,
        bpd=training.bpd,
        made_with=f"| made with | vdm-pipeline {markdown(training.pipeline)} |\n" if training.pipeline else "",
        step=training.step,
    )


def parameters(training: Training) -> str:
    """Return the parameters of the training."""
    return PARAMETERS.format(parameters=json.dumps(training.parameters, indent=2))


def ancestors_row(trained: TrainedModel) -> str:
    """Return the row about the models from which the training began; "" if there are none."""
    if not (ancestors := trained.description.ancestors):
        return ""
    line = [
        f"{markdown(each.name)}, `{each.model_sha256}`, licence of its images: {markdown(each.licence or NOT_STATED)}"
        for each in ancestors
    ]
    return f"| started from | {'; before that '.join(line)} |\n"


def describe_condition(trained: TrainedModel, training: Training) -> str:
    """Return what the model is given of an image."""
    if (count := trained.num_classes) is None:
        return "nothing"
    names = "".join(f", {markdown(name)}" for name in trained.class_names or [])
    share = NOT_STATED if training.class_dropout is None else f"{training.class_dropout:.0%}"
    labels = trained.description.labels_sha256
    return f"its class, one of {count}{names}; left out in {share} of training; labels `{labels}`"
