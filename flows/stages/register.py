"""The stage `register`: write weights, configuration and model card of a trained model into one folder."""

import csv
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from flows.core.checkpoint import CONFIG, WEIGHTS, load_model, model_sha256
from flows.core.errors import Exit, UserError
from flows.core.escaping import markdown
from flows.core.files import open_regular, write_whole, writing, writing_folder
from flows.images.store import data_sha256, load_images
from flows.process.ending import finish

if TYPE_CHECKING:
    from flows.core.params import Data, Model, Train

log = logging.getLogger(__name__)

LONGEST_LINE = 2**14
DESCRIBED = ("title", "name", "homepage", "licence", "num_levels", "num_train", "num_test", "split", "transforms")

CARD = """\
# Variational diffusion model of {title}

A VDM (Kingma et al. 2021, arXiv 2107.00630) over images of {shape} with {num_levels} levels, {num_parameters:,}
parameters. The weights are the moving average at the end of training.

| | |
|---|---|
| data | {name} ({homepage}), licence: {licence} |
| images | {num_train} for training, {num_test} held out; split: {split} |
| transforms | {transforms} |
| data sha256 | `{data_sha256}` |
| model sha256 | `{model_sha256}` |
| last training loss | {bpd:.4f} bits/dim at step {step} |

## Load it

```python
from pathlib import Path
from flows.core.checkpoint import load_model

model = load_model(Path("{out}"))  # a vdm.model.VDM in evaluation mode
```

Its likelihood on the held-out images: `vdmctl evaluate {out} --json`. Which commit made it: `vdmctl lineage` of its
version.

## Parameters

```json
{parameters}
```
"""


def register(
    data: "Data", model: "Model", train: "Train", *, trained: Path, curves: Path, images: Path, out: Path
) -> None:
    """Write the folder `out`, all or nothing: the model in `trained` and its model card, `README.md`.

    Raises CheckpointError when the model does not load, ImageSetError when the images are missing, UserError (exit 5)
    when the training log is missing or damaged, and OSError that names a file that cannot be written.
    """
    vdm = load_model(trained)
    step, bpd = last_loss(curves)
    description = load_images(images).description
    parameters = {"data": data.model_dump(), "model": model.model_dump(), "train": train.model_dump()}
    card = CARD.format(
        **{key: markdown(description.get(key, "not stated")) for key in DESCRIBED},
        shape="x".join(map(str, vdm.image_shape)),
        num_parameters=sum(p.numel() for p in vdm.parameters()),
        data_sha256=data_sha256(images),
        model_sha256=model_sha256(trained),
        bpd=bpd,
        step=step,
        out=out,
        parameters=json.dumps(parameters, indent=2),
    )
    with writing_folder(out) as folder:
        for name in (WEIGHTS, CONFIG):
            with open_regular(trained / name) as source, writing(folder / name) as copy:
                shutil.copyfileobj(source, copy)
        write_whole(folder / "README.md", card)
        finish()
    log.info("registered %s", out)


def last_loss(curves: Path) -> tuple[int, float]:
    """Return step and bits/dim in the last line of the training log.  Raises UserError (exit 5)."""
    try:
        with open_regular(curves) as file:
            header = file.readline(LONGEST_LINE)
            file.seek(max(len(header), file.seek(0, os.SEEK_END) - LONGEST_LINE))
            *_, line = file.read(LONGEST_LINE).splitlines()
        (last,) = csv.DictReader([header.decode(), line.decode()])
        step, bpd = int(last["step"]), float(last["bpd"])
        if step < 1 or not math.isfinite(bpd):
            raise ValueError(f"step {step} at {bpd} bits/dim")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{curves}: missing or damaged; run `vdmctl train`", Exit.MISSING) from error
    return step, bpd
