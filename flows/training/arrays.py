"""Train on arrays in memory, for some minutes or steps, and write nothing."""

import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from flows.core.device import find_device, set_backend
from flows.core.model import DescribedVDM, TrainedModel, arguments_of, describe_network
from flows.core.network_code import HERE
from flows.core.networks import NetworkSource, new_vdm
from flows.core.params import Params, Train
from flows.core.params_file import PACKAGED, parse_params, read_preset
from flows.process.streams import bar_of_steps
from flows.training.choice import take_values
from flows.training.fitting import build, describe_record, resolve
from flows.training.planning import AUTOMATIC, RATE_OF_ADAMW, compose_continuation, count_enough_steps
from flows.training.planning_images import choose_for_levels
from flows.training.planning_minutes import LEAST_STEPS, MEASURED_SECONDS, choose_for_steps, find_pace, time_steps

SHARE_MEASURED = 0.1
"""The share of the minutes in which steps are measured, at most."""
UNUSUAL_STEPS = 2
"""The first steps, which may wait for a compiler and for memory, and say nothing about those that follow."""


def train_on(
    images: np.ndarray,
    num_levels: int,
    labels: np.ndarray | None,
    preset: str,
    *,
    minutes: float | None,
    steps: int | None,
    start: TrainedModel | None,
    network: nn.Module | None,
    device: str,
    **changes: Any,
) -> DescribedVDM:
    """Return the model of averaged weights that is trained on images (N,C,H,W) with `labels` (N,), or None.

    Exactly one of `minutes` and `steps` is given.  With `start`, network and recipe are those of that model; `network`
    takes the place of the preset's.  `changes` replace parameters `train` of the preset.

    Raises ValueError for too few minutes, and for classes without labels; UserError (exit 2) for a preset or a device
    that is missing, and for parameters that do not suit the images; TrainingDiverged.
    """
    began, where = time.monotonic(), find_device(device)
    texts = [AUTOMATIC, *([compose_continuation(start)] if start else [])]
    params = parse_params(read_preset(preset, PACKAGED, *texts), preset)
    if network is not None:
        name = f"{type(network).__module__}:{type(network).__qualname__}"
        model = params.model.model_copy(update={"network": name, "options": {}})
        train = params.train.model_copy(update={"optimizer": "adamw", "learning_rate": RATE_OF_ADAMW})
        params = params.model_copy(update={"model": model, "train": train})
    if params.model.classes is not None and labels is None:
        which = "the model from which training starts" if start else f"the preset {preset}"
        raise ValueError(f"{which} has classes; give `labels`, the class of each image")
    config = start.description.model if start else arguments(params, images, num_levels, labels)
    own = start.own_network if start else network
    source: NetworkSource = HERE if own is None else own
    alone = {"device": device, "num_devices": 1, "validate_every_steps": None, "keep": "last"}
    train = params.train.model_copy(update=alone | changes)
    most = (count_enough_steps(start) if start else None) or sys.maxsize
    if steps is None:
        assert minutes is not None
        train, steps = size_for_seconds(train, config, source, 60 * minutes, began)
        steps = min(steps, most)
    suiting = take_values(choose_for_steps(train, steps))
    settings = resolve(train.model_copy(update=suiting | {"steps": steps}), where)
    set_backend(training=True)
    try:
        trainer = build(
            config, settings, torch.from_numpy(images).to(where), None, labels=labels, start=start, source=source
        )
        with bar_of_steps("training", steps) as shown:
            while not trainer.finished:
                if trainer.done == UNUSUAL_STEPS:
                    measured_from = time.monotonic()
                if minutes is not None and trainer.done > UNUSUAL_STEPS:
                    now = time.monotonic()
                    per_second = (trainer.done - UNUSUAL_STEPS) / (now - measured_from)
                    left = max(1, LEAST_STEPS - trainer.done, int((began + 60 * minutes - now) * per_second))
                    steps = shown.total = min(most, trainer.done + left)
                    average = choose_for_steps(train, steps)["ema_decay"].value
                    trainer.settings = replace(trainer.settings, steps=steps, ema_decay=average)
                if record := trainer.step():
                    shown.set_postfix_str(describe_record(record))
                shown.update()
    finally:
        set_backend()
    vdm = new_vdm(DescribedVDM, config, source)  # not the trainer's, which may be compiled
    vdm.load_state_dict(trainer.averaged.state_dict())
    ancestors = start.line if start else []
    names = {"class_names": start.class_names} if start and start.class_names else {}
    code = start.description.network_sha256 if start else None
    return describe_network(vdm.to(where).eval(), config, ancestors=ancestors, network=code, **names).vdm


def arguments(params: Params, images: np.ndarray, num_levels: int, labels: np.ndarray | None) -> dict[str, Any]:
    """Return the arguments of a model of the images: those of the preset, as their levels and classes need."""
    suiting = take_values(choose_for_levels(params.model, num_levels, images))
    classes = None if labels is None else max(2, int(labels.max()) + 1)
    return arguments_of(params.model.model_copy(update=suiting | {"classes": classes}), images.shape[1:], num_levels)


def size_for_seconds(
    train: Train, config: dict[str, Any], source: NetworkSource, seconds: float, began: float
) -> tuple[Train, int]:
    """Return the parameters with the size of a batch, and the steps until so many seconds after `began`.

    Steps are measured first, and `LEAST_STEPS` follow in any case.  Raises ValueError if so many take longer.
    """
    measure = partial(time_steps, config, seconds=min(MEASURED_SECONDS, SHARE_MEASURED * seconds), source=source)
    size, _, step = find_pace(train, seconds, measure)
    if LEAST_STEPS * step > seconds:
        raise ValueError(f"{seconds / 60:g} minutes are too few: a step takes {step:.2g} s; give more minutes")
    steps = int((seconds - (time.monotonic() - began)) / step)
    return train.model_copy(update={"batch_size": size}), max(LEAST_STEPS, steps)
