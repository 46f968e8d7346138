"""An image set is opened at the door, and each of its arrays is hashed once and read once, whatever a command does."""

import json
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image
from small import Small

from flows.cli import run
from flows.core.errors import Exit, UserError
from flows.core.files import file_sha256
from flows.images import image_set, made_to_fit, picture, reading
from flows.images.image_set import Chosen, chunks, load_array, open_images

ARRAYS = {"train.npy", "validation.npy", "test.npy"}


def test_a_set_in_memory_is_the_set_of_the_same_files(tmp_path: Path) -> None:
    """It has the digest, survives its way to another process, and its names are those of the files."""
    arrays = {"train": np.zeros((0, 1, 3, 4), np.uint16), "test": np.arange(24, dtype=np.uint16).reshape(2, 1, 3, 4)}
    image_set.save_images(tmp_path, arrays, {"name": "x", "num_levels": 2**12, "transforms": "padded by 1"})
    stored = open_images(tmp_path)
    made = image_set.ImageSet("mine", stored.description, stored.arrays, files={"test": ["a.png", "b\udcff.png"]})
    assert made.data_sha256 == stored.data_sha256
    again = pickle.loads(pickle.dumps(made))
    assert (again.name, again.folder, again.data_sha256) == ("mine", None, stored.data_sha256)
    assert np.array_equal(again["test"], stored["test"])
    assert Chosen(again, "test").names == ["a.png", "b\\xff.png"]
    assert (again.labels("test"), again.has_labels) == (None, False)
    with pytest.raises(UserError, match="mine lies in no folder of an image set"):
        again.digests("test")


def test_the_hint_that_pictures_could_be_made_to_fit_reads_none_again(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    for number in range(3):
        Image.fromarray(np.full((9, 7), number, np.uint8)).save(f"mine/{number}.png")
    opened = Counter[str]()

    def counted(path: Path, background: Any = None) -> picture.Picture:
        opened[path.name] += 1
        return read_images(path, background)

    read_images = picture.read_images
    for module in (reading, made_to_fit):
        monkeypatch.setattr(module, "read_images", counted)
    assert run(["evaluate", "models/vdm", "--images=mine"]) == Exit.USAGE
    assert capsys.readouterr().err.endswith("; --fit changes pictures to what the model takes\n")
    assert opened == {"0.png": 1, "1.png": 1, "2.png": 1}


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


@pytest.mark.filterwarnings("ignore")  # Great Expectations and its libraries warn on import
@pytest.mark.parametrize(
    ("command", "read"),
    [
        pytest.param("validate", ARRAYS, marks=pytest.mark.slow),
        ("train", set()),
        ("register", set()),
        ("features", set()),
        ("evaluate", {"validation.npy", "test.npy"}),
        ("sample", {"train.npy"}),
    ],
)
def test_each_array_is_read_at_most_once_more(
    small: Small,
    hashed: Counter[str],
    command: str,
    read: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The verdict says which levels a set has, and of training images only those that are evaluated are looked at."""
    bytes_read, fromfile = Counter[str](), np.fromfile

    def counted(file: BinaryIO, *arguments: Any) -> np.ndarray:
        found = fromfile(file, *arguments)
        bytes_read[Path(file.name).name] += found.nbytes
        return found

    monkeypatch.setattr(np, "fromfile", counted)
    assert run([command]) == Exit.DONE, capsys.readouterr().err
    assert hashed == dict.fromkeys(ARRAYS, 1)
    sizes = {name: load_array(Path("data/images") / name).nbytes for name in read}
    assert bytes_read == sizes


def test_a_pass_ends_with_the_file_with_which_it_began(tmp_path: Path) -> None:
    file, old = tmp_path / "images.npy", np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)
    np.save(file, old)
    read = chunks(load_array(file), 1)
    begun = next(read)
    np.save(tmp_path / "new.npy", old + 100)
    (tmp_path / "new.npy").replace(file)
    assert np.array_equal(np.concatenate([chunk for _, chunk in (begun, *read)]), old)


def test_what_was_read_of_a_mapped_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    size = 40 * 2**20
    np.save(tmp_path / "images.npy", np.ones((size // 2**10, 1, 32, 32), np.uint8))
    images = load_array(tmp_path / "images.npy")

    def mapped() -> int:
        found = re.search(r"^RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert found
        return 1024 * int(found[1])

    before = mapped()
    assert sum(int(chunk.sum()) for _, chunk in chunks(images, 1000)) == size
    assert mapped() - before < size / 4
    assert int(images.max()) == 1  # a pass over the map itself
    assert mapped() - before > size / 2


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
