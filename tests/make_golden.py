"""Make tests/golden, by `make golden`: a small project as this version leaves it on a disk, and its figures.

It has three versions, of which the second was refused, with the evidence and with all their files in DVC's cache; a
saved state of a training; and a file of compressed images.
"""

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from project import IDENTITY, ROOT, STAGES, Sandbox
from ruamel.yaml import YAML

from flows.api import compress, evaluate
from flows.core import layout
from flows.project.project import Project
from flows.registry.versions import add_version
from flows.training import fitting

GOLDEN = ROOT / "tests/golden"
ARCHIVE, EXPECTED = GOLDEN / "project.tar.gz", GOLDEN / "expected.json"
TRAINING, COMPRESSED = "golden", "images.vdmz"
"""The name of the training, which else is a digest of the code, too, and that of the file of compressed images."""
KEPT = {"dvc.yaml", "params.yaml", "presets/digits.yaml", "networks/__init__.py", ".dvc/config"}
"""What the project has besides the files on which stages depend."""
BOUND = {"times_per_image": 4, "seed": 0}
README = """\
A project as version {version} leaves it on a disk (`project.tar.gz`), and its figures: every version before 2.0 reads
it (docs/promises.md). `make golden` makes both anew; `tests/flows/test_golden.py` reads them.
"""


def main() -> None:
    """Write the files."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"VDM_LOCK_DIR": scratch, "GIT_CONFIG_GLOBAL": str(ROOT / "tests/gitconfig")}
        project = start(Path(scratch) / "project")
        with patch.object(fitting, "fingerprint", lambda **_: TRAINING):
            expected = fill(project, Path(scratch) / "state")
        kept = [
            ".git",
            ".dvc/config",
            ".dvc/cache/files",
            str(layout.TRAININGS),
            COMPRESSED,
        ]  # git and DVC have the rest
        (Path(scratch) / "state").rename(project.folder / layout.TRAININGS / TRAINING)
        GOLDEN.mkdir(exist_ok=True)
        with tarfile.open(ARCHIVE, "w:gz") as archive:
            for name in kept:
                archive.add(project.folder / name, arcname=name)
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
    (GOLDEN / "README.md").write_text(README.format(version=version("vdm-pipeline")))


def start(folder: Path) -> Sandbox:
    """Return a project without code: of the files that stages depend on, only the digests matter to what is kept."""
    project = Sandbox(folder)
    shutil.rmtree(folder / ".git")
    graph = YAML(typ="safe").load(folder / layout.DVC_GRAPH)["stages"].values()
    wanted = {Path(name) for stage in graph for name in stage["deps"]}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        name = path.relative_to(folder)
        if name in wanted:
            path.write_text(f"{name}\n")
        elif str(name) not in KEPT and path.name != ".gitignore":
            path.unlink()
    project.git("init", "--quiet", "--initial-branch=main", "--template=")
    for key, value in IDENTITY.items():
        project.git("config", f"user.{key.lower()}", value)
    return project


def fill(project: Sandbox, state: Path) -> dict[str, Any]:
    """Make the versions and the file of compressed images, and return the figures.

    The last version goes on from the state of the first, which is put into the folder `state`.
    """
    trained = project.folder / layout.TRAININGS / TRAINING
    before, stages = "steps: 20\n", STAGES[:-1]  # without the page
    smaller = {"width: 8": "width: 4", "norm_groups: 4": "norm_groups: 2", "width: 16": "width: 8"}
    project.edit("params.yaml", **smaller, **{"validate_every_steps: 10": "validate_every_steps: 5"})
    for steps in (10, 5, 20):
        project.edit("params.yaml", **{before: (before := f"steps: {steps}\n")})
        if steps == 20:
            shutil.copytree(state, trained)
        for stage in stages:
            if stage[0] in ("download", "validate", "features") and steps != 10:
                continue
            done = project.vdmctl(*stage)
            assert done.returncode == 0, done.stderr
            assert stage[0] != "train" or ("continuing from step 10" in done.stderr) == (steps == 20), done.stderr
            if stage[0] == "train" and steps == 10:
                shutil.copytree(trained, state, ignore=shutil.ignore_patterns("model_sha256"))
        project.dvc("commit", "--force", *(stage[0] for stage in stages))
        project.git("add", "--all")
        project.git("commit", "--quiet", f"--message=Train for {steps} steps")
        made = add_version(Project(project.folder).repository, "HEAD", "Retrained")
        judged = project.vdmctl("promote", made.name)
        assert judged.returncode == (3 if steps == 5 else 0), judged.stderr
    project.git("gc", "--quiet")
    opened = Project(project.folder)
    images = opened.images["test"][:16]
    models = {made.name: opened.model(made.name).vdm for made in opened.registry.versions}
    (project.folder / COMPRESSED).write_bytes(compress(models["vdm@v1.2.0"], images, num_timesteps=10))
    return {
        "bpd": {name: float(evaluate(model, images, **BOUND).bpd.mean()) for name, model in models.items()},
        "pixels_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
        "states": {made.name: made.state for made in opened.registry.versions},
    }


if __name__ == "__main__":
    main()
