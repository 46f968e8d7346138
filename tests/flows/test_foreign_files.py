"""Damaged and hostile checkpoints of other implementations: each is refused in one line, in little time and memory."""

import os
import shutil
import zipfile
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import msgpack
import numpy as np
import pytest
import torch
from fuzzing import Hostile

from flows.cli import run
from flows.core.errors import CheckpointError
from flows.evaluation import importing
from flows.evaluation.foreign_files import flatten, read_torch

ORACLES = Path(__file__).parents[1] / "oracles"
GOOGLE = ORACLES / "google_scalar_T0.flax"
PEER = ORACLES / "addtt_learned"


@pytest.mark.slow
def test_no_flipped_bit_of_the_peers_file_ends_in_a_traceback(tmp_path: Path) -> None:
    peer = (PEER / "model.pt").read_bytes()
    shutil.copyfile(PEER / "config.yaml", tmp_path / "config.yaml")
    for position in np.random.default_rng(0).integers(len(peer) - 3000, len(peer), 40):
        content = bytearray(peer)
        content[position] ^= 1 << int(position) % 8
        (tmp_path / "model.pt").write_bytes(content)
        command = ["import-checkpoint", str(tmp_path / "model.pt"), "--format", "addtt", "--force"]
        assert run([*command, "--out", str(tmp_path / "model")]) in (0, 5)


def damaged(kind: str, folder: Path) -> tuple[Path, str]:
    """Return a damaged copy of an oracle's checkpoint, and its format."""
    google = GOOGLE.read_bytes()
    peer = (PEER / "model.pt").read_bytes()
    shutil.copyfile(PEER / "config.yaml", folder / "config.yaml")
    file = folder / "checkpoint"
    match kind:
        case "truncated flax":
            file.write_bytes(google[: len(google) // 2])
        case "empty flax":
            file.write_bytes(b"")
        case "flax without weights":
            file.write_bytes(google.replace(b"conv_out", b"conv_uot"))
        case "not a file":
            return folder / "nothing", "google-vdm"
        case "truncated torch":
            file.write_bytes(peer[: len(peer) // 2])
            return file, "addtt"
        case "flipped torch":
            content = bytearray(peer)
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(content)
            return file, "addtt"
        case "hostile torch":
            torch.save({"ema": Hostile(folder / "trace"), "model": {}}, file)
            return file, "addtt"
    return file, "google-vdm"


@pytest.mark.parametrize(
    "kind",
    [
        "truncated flax",
        "empty flax",
        "flax without weights",
        "not a file",
        "truncated torch",
        "flipped torch",
        "hostile torch",
    ],
)
def test_a_damaged_checkpoint_gives_an_error_of_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, file_format = damaged(kind, tmp_path)
    assert run(["import-checkpoint", str(file), "--format", file_format, "--out", str(tmp_path / "out")]) == 5
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert str(file) in captured.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "trace").exists()


class Growing:
    """An object that takes two gigabytes when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (bytearray, (2**31 - 1,))


def array_of(shape: list[int], content: bytes = b"") -> msgpack.ExtType:
    """Return a flax array whose header claims a shape."""
    return msgpack.ExtType(1, msgpack.packb([shape, "float32", content]))


def nested(depth: int) -> dict[str, object]:
    """Return a tree of that depth."""
    tree: dict[str, object] = {"kernel": array_of([1], bytes(4))}
    for _ in range(depth):
        tree = {"a": tree}
    return tree


def flax(tree: object) -> bytes:
    return bytes(msgpack.packb({"ema_params": {"score_model": tree}}))


def test_a_checkpoint_may_not_be_nested_deeply() -> None:
    """Every leaf keeps its path, so long names would take memory with the square of the depth."""
    with pytest.raises(ValueError, match="nested too deeply"):
        flatten(nested(40))


@pytest.mark.parametrize("tree", [{"a" * 300: {"b": 1}}, {"a" * 150: {"a" * 150: 1}}, {"a" * 300: 1}])
def test_the_names_of_a_checkpoint_may_not_be_long(tree: dict[str, object]) -> None:
    """Every leaf repeats the names above it: a file of a megabyte would take many gigabytes."""
    with pytest.raises(ValueError, match=r"a name of 3[0-9]{2} characters"):
        flatten(tree)


BOMBS: dict[str, bytes] = {
    "deep": flax(nested(200)),
    "deeper": b"\x81\xa1a" * 100_000,
    "arrays": b"\xdd\xff\xff\xff\xff" * 1000,
    "text": b"\xdb\xff\xff\xff\xffa",
    "shape": flax({"conv_in": {"kernel": array_of([2**40, 2**40], bytes(4))}}),
    "no numbers": flax({"conv_in": {"kernel": array_of([0, 2**40])}}),
    "ints": flax({"conv_in": {"kernel": array_of([10**18, 0])}}),
    "extension": flax({"conv_in": {"kernel": msgpack.ExtType(1, b"\xdd\xff\xff\xff\xff" * 1000)}}),
    "number": flax({"conv_in": {"kernel": 3}}),
    "list": flax([1]),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_for_flax_gives_an_error_of_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bomb.flax").write_bytes(BOMBS[kind])
    command = ["import-checkpoint", str(tmp_path / "bomb.flax"), "--format", "google-vdm"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 5
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "kind", ["compressed", "growing", "expanded", "sparse", "whole numbers", "not finite", "not a zip file"]
)
def test_a_bomb_for_torch_gives_an_error_of_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(PEER / "config.yaml", tmp_path / "config.yaml")
    file, state = tmp_path / "model.pt", torch.load(PEER / "model.pt", weights_only=True)
    name = "ema_model.model.conv_in.weight"
    match kind:
        case "growing":
            state["more"] = Growing()
        case "expanded":
            state["ema"][name] = torch.zeros(1, 1, 1, 1).expand(2**20, 2**20, 3, 3)
        case "sparse":
            state["ema"][name] = torch.eye(3).to_sparse_coo()
        case "whole numbers":
            state["ema"][name] = state["ema"][name].int()
        case "not finite":
            state["ema"][name][0, 0, 0, 0] = torch.nan
    torch.save(state, file, _use_new_zipfile_serialization=kind != "not a zip file")
    if kind == "compressed":
        with zipfile.ZipFile(file) as stored, zipfile.ZipFile(tmp_path / "small", "w", zipfile.ZIP_DEFLATED) as packed:
            for member in stored.namelist():
                packed.writestr(member, stored.read(member))
        (tmp_path / "small").replace(file)
    assert run(["import-checkpoint", str(file), "--format", "addtt", "--out", str(tmp_path / "out")]) == 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    if kind == "expanded":  # before anything of that size is allocated
        assert "bytes cannot hold model.conv_in.weight" in error
    assert not (tmp_path / "out").exists()


def zipped(pickled: bytes, name: str = "data.pkl") -> bytes:
    """Return a zip file with a pickle, as torch saves it."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(f"archive/{name}", pickled)
        file.writestr("archive/version", b"3\n")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("data.PKL", b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R", "it holds more than weights: GLOBAL"),
        ("data.pkl", b"K\x01" + b"q\x00h\x00\x86" * 60, "a tuple of more than 1,000 values"),
        ("data.pkl", b"K\x01" + b"q\x00h\x00\x86(u" * 60, "a tuple of more than 1,000 values"),
        ("data.pkl", b"K\x01" + b"\x85" * 10**6, "a tuple of more than 1,000 values"),
        ("data.pkl", b"]q\x00" + b"](h\x00h\x00eq\x00" * 60 + b")R", "it holds more than weights: REDUCE of a value"),
        (
            "data.pkl",
            b"]q\x00" + b"](h\x00h\x00eq\x00" * 60 + b")\x81",
            "it holds more than weights: NEWOBJ of a value",
        ),
    ],
    ids=[
        "a name whose case torch ignores",
        "a key whose hash takes 2^60 steps",
        "a key to which an older torch adds no items",
        "a key whose hash ends the process",
        "a call of a list whose text has 2^60 characters",
        "a new object of such a list",
    ],
)
def test_a_hostile_pickle_is_refused_before_torch_reads_it(
    name: str,
    key: bytes,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "load", Mock(side_effect=AssertionError))
    shutil.copyfile(PEER / "config.yaml", tmp_path / "config.yaml")
    (tmp_path / "model.pt").write_bytes(zipped(b"\x80\x02}(" + key + b"K\x02u.", name))
    command = ["import-checkpoint", str(tmp_path / "model.pt"), "--format", "addtt", "--out", str(tmp_path / "out")]
    assert run(command) == 5
    assert message in capsys.readouterr().err


def test_torch_reads_the_members_that_were_checked(tmp_path: Path) -> None:
    """torch looks for a list of members where the end of the file says, zipfile just before that end."""
    good, hostile = (zipped(b"\x80\x02K" + number + b".") for number in (b"\x01", b"\x02"))
    legacy = BytesIO()
    torch.save(2, legacy, _use_new_zipfile_serialization=False)
    for content in (hostile[:-22] + good, legacy.getvalue() + good):
        (tmp_path / "model.pt").write_bytes(content)
        assert read_torch(tmp_path / "model.pt") == 1


def test_members_of_the_same_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(zipped(b"\x80\x02K\x01."))
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as file:
        file.writestr("archive/DATA.pkl", b"\x80\x02K\x02.")
    with pytest.raises(ValueError, match="members have the same name"):
        read_torch(tmp_path / "model.pt")


def test_a_pickle_that_fails_an_assertion_of_torch_gives_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(PEER / "config.yaml", tmp_path / "config.yaml")
    (tmp_path / "model.pt").write_bytes(zipped(b"\x80\x02K\x01Q."))
    command = ["import-checkpoint", str(tmp_path / "model.pt"), "--format", "addtt", "--out", str(tmp_path / "out")]
    assert run(command) == 5
    assert "AssertionError: saved_id must be a tuple" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        "a: " + "[" * 100_000,
        "a: &x [*x]",
        "a: !!python/object/apply:os.system [x]",
        "[]",
        "",
        "n_attention_heads: 1\ngamma_min: .inf\ngamma_max: 5\n",
        "#" * 10_000_000,
    ],
)
def test_hostile_settings_of_the_peer_give_an_error_of_one_line(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(PEER / "model.pt", tmp_path / "model.pt")
    (tmp_path / "config.yaml").write_text(settings)
    command = ["import-checkpoint", str(tmp_path / "model.pt"), "--format", "addtt"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 5
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("file_format", "name"), [("google-vdm", "model.pt"), ("addtt", "model.pt"), ("addtt", "config.yaml")]
)
@pytest.mark.parametrize("kind", ["fifo", "device", "too large"])
def test_paths_that_are_not_regular_files_are_never_read(
    kind: str, file_format: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in ("model.pt", "config.yaml"):
        shutil.copyfile(PEER / each, tmp_path / each)
    file = tmp_path / name
    file.unlink()
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "device":
            file.symlink_to("/dev/zero")
        case "too large":
            with file.open("wb") as content:
                content.truncate(2**43)
    command = ["import-checkpoint", str(tmp_path / "model.pt"), "--format", file_format]
    assert run([*command, "--out", str(tmp_path / "out")]) == 5
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert str(file) in captured.err


def test_a_library_that_gives_no_reason_is_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(importing, "read_addtt", Mock(side_effect=EOFError()))
    with pytest.raises(CheckpointError, match="checkpoint: EOFError: EOFError; is --format right"):
        importing.import_checkpoint(
            tmp_path / "file", "addtt", out=tmp_path / "out", image_size=(8, 8), num_levels=17, averaged=True
        )
