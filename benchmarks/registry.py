"""Measure what commands cost in a project with many versions: their processor seconds, with those of git.

The project is made in a temporary folder: a clone of the commit that is checked out, a run of its pipeline with a tiny
model, and as many versions of that run.  Every tenth version was a champion, and the others were refused.

    python -m benchmarks.registry [--versions 10 300] [--code FOLDER ...] [--commands models ...] [--json]

--code names checkouts of this project, one column for each, so that two commits are compared on one registry.  Of
`promote`, which imports torch and evaluates two tiny models, only the growth with the versions is the registry's.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from benchmarks import explained, new_parser, positive, show
from flows.core import bounded_yaml, layout
from flows.registry.evidence import PROMOTE, REFUSE, Evidence

HERE = Path(__file__).parents[1]
COMMANDS = {
    "models": ["models"],
    "status": ["status"],
    "lineage": ["lineage", "champion"],
    "verify": ["verify", "champion"],
    "prune": ["prune", "--dry-run", "--keep", "5"],
    "promote": ["promote"],
}
DECIDED = (0, 3, 5)
"""Exit codes of these commands when they work: done; not promoted; a problem of the loop, which is not served here."""
IN_ONE_PROCESS = "import sys\nfrom flows.cli import run\nsys.exit(max(run(stage.split()) for stage in sys.argv[1:]))"
"""Runs the commands that are its arguments; each process of DVC would load torch again."""
TINY: dict[str, dict[str, Any]] = {
    "model": {"width": 8, "blocks": 1, "norm_groups": 4},
    "train": {"steps": 20, "num_devices": 1, "log_every": 5, "validate_every_steps": 10, "validation_times": 2},
    "evaluate": {"times_per_image": 2, "num_devices": 1},
    "features": {"steps": 5},
    "sample": {"num_images": 12, "num_timesteps": 3},
}


def main() -> None:
    options = new_parser(__doc__)
    options.add_argument("--versions", type=positive, nargs="+", default=[10, 300])
    options.add_argument("--code", type=Path, nargs="+", default=[HERE], metavar="FOLDER")
    options.add_argument("--commands", choices=COMMANDS, nargs="+", default=[*COMMANDS])
    options.add_argument("--repeats", type=positive, default=1, help="the median of as many is shown")
    chosen = options.parse_args()
    rows: list[dict[str, Any]] = []
    with explained(options), TemporaryDirectory() as folder:
        project = Project(Path(folder))
        for count in tqdm(sorted(chosen.versions), disable=None):
            project.grow(count)
            for name in chosen.commands:
                seconds = {
                    str(code): median(project.seconds(code, *COMMANDS[name]) for _ in range(chosen.repeats))
                    for code in chosen.code
                }
                rows.append({"versions": count, "command": name, **seconds})
    show({"processor seconds": rows}, as_json=chosen.json)


class Project:
    """A clone with the results of a tiny run, and a git remote that has all its tags."""

    def __init__(self, parent: Path) -> None:
        self.folder, self.size = parent / "project", 0
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "VDM_LOCK_DIR": str(parent)}
        self.run("git", "clone", "--quiet", "--bare", "--no-tags", str(HERE), str(parent / "origin.git"), at=parent)
        self.run("git", "clone", "--quiet", str(parent / "origin.git"), str(self.folder), at=parent)
        for key, value in {"name": "Benchmark", "email": "benchmark@example.org"}.items():
            self.run("git", "config", f"user.{key}", value)
        params = self.folder / layout.PARAMS
        values = bounded_yaml.sections((self.folder / "presets/digits.yaml").read_bytes())
        params.write_text(bounded_yaml.dump({name: each | TINY.get(name, {}) for name, each in values.items()}))
        stages = bounded_yaml.sections((self.folder / layout.DVC_GRAPH).read_bytes())["stages"]
        commands = [each["cmd"].partition(" flows.cli ")[2] for each in stages.values()]
        self.run(sys.executable, "-c", IN_ONE_PROCESS, *commands, code=self.folder)
        self.run("dvc", "commit", "--quiet", "--force")
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message=Results")

    def run(self, *command: str, at: Path | None = None, code: Path | None = None) -> int:
        """Run a command, with the Python code of a folder; return its exit code.  Raises ValueError if it fails."""
        environment = self.environment | ({"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"} if code else {})
        ran = subprocess.run(command, cwd=at or self.folder, env=environment, capture_output=True, text=True)
        if ran.returncode not in DECIDED or (ran.returncode and "flows.cli" not in command):
            raise ValueError(f"{' '.join(command)}: exit {ran.returncode}: {ran.stderr[-500:]}")
        return ran.returncode

    def grow(self, count: int) -> None:
        """Add versions until there are as many, and publish them."""
        for number in range(self.size, count):
            self.run("git", "commit", "--quiet", "--allow-empty", f"--message=Run {number}")
            name, stage = f"vdm@v1.{number}.0", "refused" if number % 10 else "champion"
            self.tag(name, f"Run {number}")
            decision = REFUSE if number % 10 else PROMOTE
            evidence = Evidence(decision=decision, reason="for the benchmark", challenger=name)
            # Each `promote` takes the next number.
            self.tag(f"vdm#{stage}#{1000 * (number + 1)}", evidence.message(f"{decision} {name}"))
        self.size = count
        self.run("git", "push", "--quiet", "--tags", "origin", "HEAD")

    def tag(self, name: str, message: str) -> None:
        """Tag the commit that is checked out."""
        self.run("git", "tag", "--annotate", f"--message={message}", name)

    def seconds(self, code: Path, *command: str) -> float:
        """Return the processor seconds of vdmctl and its children, with the code in a folder."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.run(sys.executable, "-m", "flows.cli", *command, code=code.resolve())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
