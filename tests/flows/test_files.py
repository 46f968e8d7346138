"""Reading and writing files: no read blocks, no file is half written, and no path from data leaves its folder."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT

from flows.core.errors import Exit, UserError, file_problem
from flows.core.files import (
    contains,
    find_unfinished,
    inside,
    open_regular,
    parse_json,
    read_bounded,
    remove,
    replace_file,
    replace_file_last,
    replace_folder,
    scratch_folder,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_read_is_of_a_regular_file_and_of_limited_size(tmp_path: Path) -> None:
    """A FIFO would block, and /dev/zero never ends."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name in ("fifo", "link", "/dev/zero", str(tmp_path)):
        with pytest.raises(OSError, match=r"(not a regular file|Is a directory): ") as error:
            open_regular(tmp_path / name)
        assert file_problem(error.value).startswith(f"{tmp_path / name}: ")
    (tmp_path / "file").write_bytes(b"x" * 10)
    assert read_bounded(tmp_path / "file", 10) == b"x" * 10
    with pytest.raises(OSError, match="larger than 9 bytes"):
        read_bounded(tmp_path / "file", 9)


@pytest.mark.parametrize(
    "content", [b"", b"NaN", b"[Infinity]", b'"\\ud800"', b"\xff", b"{} x", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_json_that_is_not_strict_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)


def test_a_full_disk_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def fill() -> None:
        with replace_file(path) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: .*/file'"):
        fill()
    with pytest.raises(OSError, match="missing"), replace_file_last(path, "new"):
        (tmp_path / "missing").read_bytes()
    assert (path.read_text(), names(tmp_path)) == ("old", ["file"])
    write_whole(path, "new")
    assert (path.read_text(), names(tmp_path)) == ("new", ["file"])


def test_a_file_of_dvcs_cache_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    """DVC links outputs to its cache, by hard links, symbolic links or none."""
    (tmp_path / "cached").write_text("cached")
    os.link(tmp_path / "cached", tmp_path / "hard")
    (tmp_path / "symbolic").symlink_to("cached")
    for name in ("hard", "symbolic"):
        write_whole(tmp_path / name, "new")
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "cached").read_text() == "cached"


def test_a_folder_appears_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with replace_folder(folder) as partial:
        (partial / "old").write_text("old")

    def fill() -> None:
        with replace_folder(folder) as partial:
            (partial / "new").write_text("new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial / "big"))

    with pytest.raises(OSError, match=r"No space left on device: .*/folder/big'"):
        fill()
    assert names(folder) == ["old"]
    with replace_folder(folder) as partial:
        (partial / "new").write_text("new")
    assert names(folder) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_what_is_no_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(NotADirectoryError, match="file"), replace_folder(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match="cannot be replaced") as error, replace_folder(Path()):
        pass
    assert error.value.code is Exit.USAGE
    assert (tmp_path / "file").read_text() == "old"


KILLED = """
import sys, time
from pathlib import Path
from flows.core.files import replace_file, replace_folder
with replace_file(Path("file")) as file, replace_folder(Path("folder")) as folder:
    file.write(b"new")
    (folder / "new").write_text("new")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_writer_that_is_killed_leaves_the_old_file_and_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "old")
    (tmp_path / "folder").mkdir()
    command = [sys.executable, "-c", KILLED]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path / "folder") == []
    rest = [name for name in names(tmp_path) if name not in ("file", "folder")]
    assert all(name.startswith(".vdm-") for name in rest), "git ignores these"
    ((_, stays),) = find_unfinished(tmp_path)
    assert not stays


def test_what_a_process_writes_into_is_not_taken_for_unfinished(tmp_path: Path) -> None:
    write = [sys.executable, "-c", KILLED]
    with subprocess.Popen(write, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=-1) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        ((folder, stays),) = find_unfinished(tmp_path)
        assert (names(folder), stays) == (["new"], "a process writes into it")
        process.kill()
    with scratch_folder(tmp_path) as scratch:
        assert (scratch, "a process writes into it") in find_unfinished(tmp_path)
    assert [*find_unfinished(tmp_path)] == [(folder, "")]


def test_an_old_folder_stays_until_the_new_one_is_there(tmp_path: Path) -> None:
    """A power cut between the two renames leaves it as the only one; one after them, as one too many."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").touch()

    with pytest.raises(FileNotFoundError), replace_folder(tmp_path / "folder") as new:
        new.rmdir()  # so that the second rename fails
    old = tmp_path / ".vdm-old-folder"
    assert [*find_unfinished(tmp_path)] == [(old, "may be the only copy of folder")]
    assert names(old) == ["old"]
    with pytest.raises(OSError, match="full"), replace_folder(tmp_path / "folder"):
        raise OSError(errno.ENOSPC, "full")
    assert names(old) == ["old"]
    shutil.copytree(old, tmp_path / "folder")
    assert [*find_unfinished(tmp_path)] == [(old, "")]
    with replace_folder(tmp_path / "folder") as new:
        (new / "new").touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["new"]


def test_no_name_in_data_leads_out_of_its_folder(tmp_path: Path) -> None:
    for name in ("", ".", "/etc/passwd", "../up", "a/../../up", "a/..", "a//b", "./a", "nul\0", "a\nb"):
        with pytest.raises(UserError, match="is not a path inside a folder") as error:
            inside(tmp_path, name)
        assert error.value.code is Exit.MISSING
    assert inside(tmp_path, "a/b..c") == tmp_path / "a/b..c"
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(UserError, match="leads out of"):
        inside(tmp_path, "out/passwd")


def test_links_are_followed_to_see_what_a_folder_contains(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert contains(tmp_path / "link", tmp_path / "real/file")
    assert not contains(tmp_path / "real", tmp_path)
    remove(tmp_path / "link")
    remove(tmp_path / "nothing")
    assert names(tmp_path) == ["real"]
