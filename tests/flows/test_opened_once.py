"""An image set is opened at the door, and each of its arrays is hashed once, whatever a command does with it."""

import json
from collections import Counter
from pathlib import Path

import pytest
from small import Small

from flows.cli import run
from flows.core.errors import Exit
from flows.core.files import file_sha256
from flows.images import image_set
from flows.images.image_set import Chosen, open_images

ARRAYS = {"train.npy", "validation.npy", "test.npy"}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how often each file of an image set is hashed from now on, by name."""
    counts: Counter[str] = Counter()

    def counted(path: Path) -> str:
        counts[path.name] += 1
        return file_sha256(path)

    monkeypatch.setattr(image_set, "file_sha256", counted)
    return counts


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--json"],
        ["evaluate", "models/vdm", "--num-timesteps", "2,3,continuous", "--json"],
        ["compare", "models/vdm", "models/imported", "--json"],
        ["train"],
    ],
    ids=["all splits", "several numbers of steps", "two models", "training"],
)
def test_each_array_is_hashed_once(
    small: Small, hashed: Counter[str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == Exit.DONE, capsys.readouterr().err
    assert hashed == dict.fromkeys(ARRAYS, 1)
    if "--json" in command:
        json.loads(capsys.readouterr().out)


def test_another_process_opens_the_set_again_and_hashes_nothing_again(small: Small, hashed: Counter[str]) -> None:
    from pickle import dumps, loads

    chosen = Chosen(open_images(Path("data/images")), "test", 3)
    assert len(chosen.set.data_sha256) == 64
    content = dumps(chosen)
    assert len(content) < 1000, "the path travels, and not the arrays"
    again = loads(content)
    assert (again.pixels == chosen.pixels).all()
    assert again.set.data_sha256 == chosen.set.data_sha256
    assert hashed == dict.fromkeys(ARRAYS, 1)
