"""Reading and writing files: no read blocks, and no file is half written."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from pictures import unprivileged

from flows.core.errors import Exit, UserError, of_file
from flows.core.files import (
    beginning,
    discard,
    open_regular,
    parse_json,
    read_bounded,
    write_whole,
    writing,
)
from flows.core.folders import writing_folder


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


def test_a_folder_is_written_by_one_process_at_a_time(folder: Path) -> None:
    """Two would delete each other's files."""
    with writing_folder(folder) as partial:
        (partial / "new").touch()
        with (
            pytest.raises(UserError, match=f"^{folder}: another process is writing it") as error,
            writing_folder(folder),
        ):
            pass
        assert error.value.code == Exit.BUSY
    assert [path.name for path in folder.iterdir()] == ["new"]
    folder.with_name(".folder.lock").touch()  # left by a process that was killed
    with writing_folder(folder):
        pass
    assert list(folder.parent.iterdir()) == [folder]


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

    monkeypatch.setattr("flows.core.folders.exchanged", lambda first, second: False)  # as on macOS
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


def test_a_file_is_written_through_links_which_stay(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "file"
    target.write_text("old")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "link to a link").symlink_to("link")
    write_whole(tmp_path / "link to a link", "new")
    assert (tmp_path / "link").readlink() == target
    assert (tmp_path / "link to a link").readlink() == Path("link")
    assert target.read_text() == "new"
    assert not target.is_symlink()
    assert [*target.parent.iterdir()] == [target]


def test_an_error_names_the_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        (tmp_path / f"link to {name}").symlink_to(name)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=r"No space left on device: .*/link to file'"), writing(tmp_path / "link to file"):
        raise full
    with pytest.raises(OSError, match=r"/link to folder'"), writing_folder(tmp_path / "link to folder"):
        raise full
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("content", ["cached", None])
def test_a_link_into_the_cache_is_replaced_and_not_followed(content: str | None, tmp_path: Path) -> None:
    """DVC protects the files in its cache; one that is gone may not be made from other content either."""
    cached = tmp_path / "d41d8cd98f00b204e9800998ecf8427e"
    if content:
        cached.write_text(content)
        cached.chmod(0o444)
    (tmp_path / "output").symlink_to(cached)
    write_whole(tmp_path / "output", "new")
    assert (tmp_path / "output").read_text() == "new"
    assert not (tmp_path / "output").is_symlink()
    assert cached.exists() == bool(content)
    assert not content or cached.read_text() == content


def test_a_folder_is_written_through_a_link_which_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/folder")
    for name in ("old", "new"):
        with writing_folder(tmp_path / "link") as partial:
            (partial / name).write_text(name)
        assert (tmp_path / "link").readlink() == Path("elsewhere/folder")
        assert [path.name for path in (tmp_path / "elsewhere/folder").iterdir()] == [name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["folder"]


def test_no_output_replaces_a_fifo_or_a_socket(tmp_path: Path) -> None:
    """A device is refused in the same way; the test leaves those of the machine alone."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    for name in ("fifo", "link", "socket"):
        before = (tmp_path / name).lstat()
        with pytest.raises(OSError, match=f"not a regular file: '.*{name}'"), writing(tmp_path / name):
            pytest.fail("opened")
        with pytest.raises(OSError, match=f"Not a directory: '.*{name}'"), writing_folder(tmp_path / name):
            pytest.fail("made")
        assert os.path.samestat((tmp_path / name).lstat(), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link", "socket"]


def test_a_file_and_a_folder_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotADirectoryError, match="/file'"), writing_folder(tmp_path / "file"):
        pytest.fail("made")
    with pytest.raises(IsADirectoryError, match="/folder'"), writing(tmp_path / "folder"):
        pytest.fail("opened")
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.processes
def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    others = [".file.name", f".file.{ended.pid}x", f"..file.{ended.pid}", f".file2.{ended.pid}", ".file.20261128"]
    others += [f".file.{os.getppid()}"]
    for name in (f".file.vdm-{ended.pid}", f".file.vdm-1a2b3c4d-{ended.pid}", *others):  # the first is of older code
        (tmp_path / name).touch()
    write_whole(tmp_path / "file", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", *others])


@pytest.mark.processes
def test_what_a_process_elsewhere_writes_stays(tmp_path: Path) -> None:
    """A process in another container holds the lock of its file; here nobody has its number."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with (tmp_path / f".file.vdm-1a2b3c4d-{ended.pid}").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_whole(tmp_path / "file", "whole")
        assert len(list(tmp_path.iterdir())) == 2
    write_whole(tmp_path / "file", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o664, 0o664), (0o444, None)])
def test_a_file_keeps_its_permissions_unless_nobody_may_write_it(
    mode: int, expected: int | None, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(mode)
    (tmp_path / "new").touch()
    write_whole(tmp_path / "file", "new")
    ordinary = (tmp_path / "new").stat().st_mode
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE(expected or ordinary)


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_that_cannot_be_replaced_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot be replaced; name another folder") as error, writing_folder(Path(name)):
        pass
    assert error.value.code is Exit.USAGE


def test_what_has_the_name_of_the_temporary_file_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", lambda number: bytes(number))
    (tmp_path / "victim").write_text("precious")
    for name in (f".file.vdm-00000000-{os.getpid()}", f".file.vdm-{os.getpid()}"):
        (tmp_path / name).symlink_to("victim")
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "victim"]


def test_a_link_with_the_name_of_the_partial_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/file").write_text("precious")
    (tmp_path / ".folder.partial").symlink_to("victim")
    with writing_folder(tmp_path / "folder") as whole:
        (whole / "file").write_text("new")
    assert (tmp_path / "victim/file").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "victim"]


def test_what_cannot_be_discarded_is_no_error(tmp_path: Path) -> None:
    discard(tmp_path / ("x" * 300))  # too long for a file system, so that not even its type is known


@pytest.fixture
def everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder in which every user may write."""
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_read_only_folder_is_not_replaced(everybodys: Path) -> None:
    (everybodys / "images" / "deep").mkdir(parents=True)
    (everybodys / "images" / "deep").chmod(0o555)
    (everybodys / "images").chmod(0o777)
    with (
        unprivileged(),
        pytest.raises(PermissionError, match="Permission denied: 'images/deep'"),
        writing_folder(Path("images")),
    ):
        pytest.fail("the work begins")
    assert [path.name for path in everybodys.iterdir()] == ["images"]


def test_the_rest_of_a_folder_that_cannot_be_removed_is_named(everybodys: Path) -> None:
    rest = everybodys / ".images.partial"
    rest.mkdir()
    (rest / "train.npy").touch()
    rest.chmod(0o555)
    with unprivileged(), pytest.raises(PermissionError, match="'images'"), writing_folder(Path("images")):
        pytest.fail("the work begins")


def test_a_process_elsewhere_with_the_same_number_keeps_its_file(tmp_path: Path) -> None:
    """Containers number their processes alike: each writes its own temporary file."""
    path = tmp_path / "file"
    with writing(path) as first:
        first.write(b"fir")
        with writing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"st")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a" * 240, "a" * 255, "é" * 127])
def test_a_file_may_have_the_longest_name(name: str, tmp_path: Path) -> None:
    for content in ("old", "new"):
        write_whole(tmp_path / name, content)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "new")]


def test_a_temporary_name_has_whole_characters() -> None:
    assert beginning(Path("a" + "é" * 120)) == f".a{'é' * 99}.vdm-"


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power failure could leave an empty file in place of the old one."""
    path, saved = tmp_path / "file", []
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda number: saved.append((os.fstat(number).st_size, path.read_text())))
    write_whole(path, "newer")
    assert set(saved) == {(len("newer"), "old")}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            BlockingIOError(11, "Resource temporarily unavailable"),
            "no process or thread can be started: `ulimit -u` or the limit of the container is reached",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "a\x1b.npy"), "a\\u001b.npy: No space left on device"),
        (BlockingIOError(11, "write could not complete without blocking"), "write could not complete without blocking"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
        (OSError("cannot reshape"), "cannot reshape"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_of_the_system_says_what_is_wrong_and_with_which_file(error: OSError, text: str) -> None:
    assert of_file(error) == text
