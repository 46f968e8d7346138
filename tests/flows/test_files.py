"""Reading and writing files: no read blocks, no file is half written, no name leads out of its folder."""

import errno
import os
import socket
from pathlib import Path

import pytest

from flows.core.files import inside, open_regular, parse_json, read_bounded, write_whole, writing, writing_folder


def test_a_fifo_a_socket_a_device_and_a_folder_are_refused_and_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("fifo", "link", "socket", "/dev/zero", "/dev/null", str(tmp_path)):
            with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
                open_regular(tmp_path / name)


def test_the_size_of_a_read_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    assert read_bounded(path, 10) == b"x" * 10
    with pytest.raises(OSError, match="larger than 9 bytes"):
        read_bounded(path, 9)
    with pytest.raises(OSError, match="NUL"):
        read_bounded(Path("a\0b"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"NaN",
        b"[Infinity]",
        b"1e400",
        b"1" + b"0" * 400,
        b"18446744073709551616",
        b'"\\ud800"',
        b"\xff",
        b"[" * 100_000,
        b"[" * 34 + b"]" * 34,
        b'{"a":' * 100_000,
    ],
)
def test_json_that_is_not_strict_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)


def test_json_is_parsed() -> None:
    assert parse_json(b'{"a": [1, -2.5, null, "\\u00fc"]}') == {"a": [1, -2.5, None, "\u00fc"]}
    assert parse_json(str(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize("name", ["", ".", "/etc/passwd", "../up", "a/../../up", "a/..", "nul\0"])
def test_no_name_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        inside(tmp_path, name)


def test_a_name_below_the_folder_is_joined(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/b..c") == tmp_path / "a" / "b..c"


def test_a_full_disk_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fill() -> None:
        with writing(path) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: .*/file'"):
        fill()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"), writing(tmp_path / "file"):
        (tmp_path / "missing").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with writing_folder(folder) as partial:
        (partial / "old").write_text("old")

    def fill() -> None:
        with writing_folder(folder) as partial:
            (partial / "new").write_text("new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial / "big"))

    with pytest.raises(OSError, match=r"No space left on device: .*/folder/big'"):
        fill()
    assert [path.name for path in folder.iterdir()] == ["old"]
    with writing_folder(folder) as partial:
        (partial / "new").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_writer_that_was_killed_between_two_names_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (tmp_path / ".folder.previous").mkdir()
    (tmp_path / ".folder.previous" / "old").write_text("old")

    def fail() -> None:
        with writing_folder(folder):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    with writing_folder(folder) as partial:
        (partial / "old").write_text("old")
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr("flows.core.files.exchanged", lambda first, second: False)  # as on macOS
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), writing_folder(folder):
        pass
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_takes_the_place_of_another_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    with writing_folder(folder) as partial:
        (partial / "old").write_text("old")
    with monkeypatch.context() as patch, writing_folder(folder) as partial:
        (partial / "new").write_text("new")
        patch.setattr(Path, "rename", lambda *_: pytest.fail("two steps"))
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]
