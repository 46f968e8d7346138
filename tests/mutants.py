"""Run pytest on copies of the code, each in a fork of this process, which has imported the slow libraries.

Reads a list of [folder, test file] as JSON from stdin: copies with a mistake, and an unchanged copy without a file.  In
that one the tests run that failed in the others.  Writes pytest's exit codes as a JSON list to stdout.
"""

import gc
import json
import os
import sys
from pathlib import Path

import filelock  # noqa: F401
import hypothesis  # noqa: F401
import numpy as np  # noqa: F401
import psutil  # noqa: F401
import pydantic  # noqa: F401
import pytest
import ruamel.yaml  # noqa: F401
import safetensors.torch  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch._dynamo  # noqa: F401

# Slow tests of whole models, which are not needed to notice a mistake.
SLOW = "trained compiled computed continued monte_carlo other_images exact_predictor low_discrepancy"
SLOW += " no_compiler lowers same_seed bfloat16 same_dropout gets_the_augmentation"
CHOSEN = " and ".join(f"not {name}" for name in SLOW.split())
# Plain assertions, and no plugins that import libraries: each copy would pay for them anew.
OPTIONS = ["-qx", "--assert=plain"]
for plugin in ("cacheprovider", "xdist", "anyio", "hypothesispytest"):
    OPTIONS += ["-p", f"no:{plugin}"]


FAILED = Path("failed")


class Failures:
    """Writes the test that fails into the file `FAILED`; with -x it is the only one."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            FAILED.write_text(report.nodeid)


def start(folder: Path, tests: list[str]) -> int:
    """Start pytest in a fork, and return its process."""
    if child := os.fork():
        return child
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.chdir(folder)
    sys.path[0] = str(folder)
    os._exit(pytest.main([*OPTIONS, *tests], plugins=[Failures()]))


def main() -> None:
    """Run two at a time."""
    gc.freeze()  # pytest collects garbage at its end, which need not visit what is imported here
    *changed, (unchanged, _) = [(Path(folder), file) for folder, file in json.load(sys.stdin)]
    codes: dict[int, int] = {}
    running: dict[int, int] = {}
    for number, (folder, file) in enumerate(changed):
        running[start(folder, [file, "-k", CHOSEN])] = number
        while len(running) == 2 or (running and number == len(changed) - 1):
            child, status = os.wait()
            codes[running.pop(child)] = os.waitstatus_to_exitcode(status)
    failed = {(folder / FAILED).read_text() for folder, _ in changed if (folder / FAILED).exists()}
    # Without a test's name, pytest would run all of them.
    _, status = os.waitpid(start(unchanged, sorted(failed) or ["no mistake was caught"]), 0)
    json.dump([*(codes[number] for number in sorted(codes)), os.waitstatus_to_exitcode(status)], sys.stdout)


if __name__ == "__main__":
    main()
