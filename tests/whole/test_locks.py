"""There is one trainer per device, also among several users of a machine."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from project import ROOT, one_line, run_vdmctl

from flows.core.errors import Exit, UserError
from flows.process import locks
from flows.process.locks import claim, held_locks, lock_file

CPU = torch.device("cpu")
SOMEBODY = 12345


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for the locks, which does not exist yet."""
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path / "locks"))
    return tmp_path / "locks"


def refusal(device: torch.device = CPU) -> str:
    """Return the message of the error when the device is claimed."""
    with pytest.raises(UserError) as error, claim(device):
        pass
    assert error.value.code == Exit.USAGE
    assert "VDM_LOCK_DIR" in str(error.value)
    return str(error.value)


def test_held_locks_are_found(folder: Path) -> None:
    assert held_locks(folder) == {}
    with claim(CPU):
        assert held_locks(folder) == {"cpu.lock": f"process {os.getpid()} in {Path.cwd()}"}
    assert (folder / "cpu.lock").exists()
    assert held_locks(folder) == {}


def test_a_lock_that_somebody_looks_at_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(CPU):
        pass
    with (folder / "cpu.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(locks.time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
        with claim(CPU):
            assert held_locks(folder) != {}


def test_the_file_of_a_lock_may_belong_to_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a git folder that users share: the one who runs first makes the file, which the others cannot write."""
    monkeypatch.chdir(tmp_path)
    lock = Path("shared.lock")
    lock.touch()
    lock.chmod(0o444)
    tmp_path.chmod(0o755)
    if os.geteuid() == 0:
        os.seteuid(SOMEBODY)
    try:
        with lock_file(lock) as other, lock_file(lock) as another:
            assert (other, another) == (None, "another process")
    finally:
        os.seteuid(os.getuid())


def test_a_lock_that_cannot_be_made_or_described_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with lock_file(Path("old.lock"), "process 1 http://127.0.0.1:4200/api"):
        pass
    Path("old.lock").chmod(0o444)
    tmp_path.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(SOMEBODY)
    try:
        for name, holder in (("new.lock", ""), ("old.lock", "mine")):
            with pytest.raises(PermissionError, match=name), lock_file(Path(name), holder):
                pass
    finally:
        os.seteuid(os.getuid())
        tmp_path.chmod(0o755)


def test_a_container_finds_the_locks_of_its_host(folder: Path) -> None:
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("this user cannot make namespaces of processes")
    code = "import sys; from pathlib import Path; from flows.process.locks import held_locks"
    command = [*unshare, sys.executable, "-c", f"{code}; print(held_locks(Path(sys.argv[1])))", str(folder)]
    with claim(CPU):
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.startswith(f"{{'cpu.lock': 'process {os.getpid()} in "), found.stderr


def test_a_lock_is_found_through_a_link_to_its_folder(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    with lock_file(folder / "a.lock", "somebody"):
        assert held_locks(tmp_path / "link") == {"a.lock": "somebody"}


def test_no_other_user_can_read_the_locks(folder: Path) -> None:
    before = os.umask(0)
    try:
        with claim(CPU):
            modes = [path.stat().st_mode & 0o777 for path in (folder, folder / "cpu.lock")]
    finally:
        os.umask(before)
    assert modes == [0o700, 0o600]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
@pytest.mark.parametrize("name", ["", "cpu.lock"])
def test_what_belongs_to_another_user_is_refused(name: str, folder: Path) -> None:
    with claim(CPU):
        pass
    os.chown(folder / name, SOMEBODY, SOMEBODY)
    assert refusal().startswith(f"{folder / name} belongs to user {SOMEBODY}, so it cannot keep two trainers off")


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_folder_that_others_can_write_is_refused(mode: int, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(mode)
    assert refusal().startswith(f"{folder} can be written by others")
    assert list(folder.iterdir()) == []


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder.mkdir()
    (folder / "cpu.lock").symlink_to(victim)
    assert refusal().startswith(f"{folder / 'cpu.lock'} is a link")
    assert victim.read_text() == "precious"
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere", "nowhere"):
        (folder / "cpu.lock").unlink(missing_ok=True)
        folder.unlink() if folder.is_symlink() else folder.rmdir()
        folder.symlink_to(tmp_path / target)
        assert refusal().startswith(f"{folder} is a link")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_is_no_file_is_refused_and_blocks_nobody(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "cpu.lock", 0o600)
    assert refusal().startswith(f"{folder / 'cpu.lock'} is not a regular file")
    (folder / "cpu.lock").unlink()
    (folder / "cpu.lock").mkdir()
    assert refusal().startswith(f"{folder / 'cpu.lock'} cannot be opened: Is a directory")


def see(cards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process see these cards, numbered from 0, as CUDA_VISIBLE_DEVICES does."""

    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(uuid=f"uuid-{cards[device.index or 0]}")

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)


def test_a_card_has_one_lock_whatever_its_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    see("ab", monkeypatch)
    with claim(torch.device("cuda:1")):
        assert list(held_locks(folder)) == ["cuda-uuid-b.lock"]
        see("b", monkeypatch)
        with pytest.raises(UserError, match="cuda:0 is busy"), claim(torch.device("cuda:0")):
            pass
        see("ca", monkeypatch)
        with claim(torch.device("cuda:0")), claim(torch.device("cuda:1")):
            pass


def test_a_card_without_a_number_is_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())  # without a UUID
    with claim(torch.device("cuda")), pytest.raises(UserError, match="cuda:0 is busy"), claim(torch.device("cuda:0")):
        pass
    with claim(torch.device("cuda:0")), claim(torch.device("cuda:1")), claim(CPU):
        pass


def test_a_holder_keeps_its_name_when_another_asks(folder: Path) -> None:
    with claim(CPU):
        for _ in range(2):
            with pytest.raises(UserError, match=f"process {os.getpid()} in {Path.cwd()}") as error, claim(CPU):
                pass
            assert error.value.code == Exit.BUSY
    with claim(CPU):
        pass


def test_a_holder_in_a_folder_whose_name_is_not_utf_8(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    monkeypatch.chdir(place)
    with claim(CPU):
        assert held_locks(folder)["cpu.lock"].endswith("caf\ufffd")
        with pytest.raises(UserError, match="caf\ufffd trains on it"), claim(CPU):
            pass
        assert str(locks.holder_of(folder / "cpu.lock")).endswith("caf\ufffd")


def test_logins_jobs_and_services_of_a_user_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They use the same lock for any TMPDIR and XDG_RUNTIME_DIR.  The test uses a card that no machine has."""
    monkeypatch.delenv("VDM_LOCK_DIR", raising=False)
    see(f"{'-' * 97}z", monkeypatch)
    card = torch.device("cuda:97")
    with claim(card):
        for name in ("TMPDIR", "XDG_RUNTIME_DIR", "HOME"):
            with monkeypatch.context() as patch:
                patch.setenv(name, str(tmp_path))
                with pytest.raises(UserError, match=f"cuda:97 is busy: process {os.getpid()}"), claim(card):
                    pass


def test_a_relative_folder_for_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be another folder in every worktree."""
    monkeypatch.setenv("VDM_LOCK_DIR", ".vdm/locks")
    refusal()
    for command in ("status", "prune"):
        result = run_vdmctl(tmp_path, dict(os.environ), command)
        assert (result.returncode, result.stdout) == (Exit.USAGE, "")
        assert one_line(result).startswith("vdmctl: VDM_LOCK_DIR: .vdm/locks is another folder in every")


def test_a_file_system_without_locks_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match=r"No locks available: '.*/a\.lock'"), lock_file(tmp_path / "a.lock"):
        pass
    assert refusal().startswith(f"{folder / 'cpu.lock'} cannot be locked: No locks available")


def test_somebody_who_looks_at_a_lock_does_not_hold_it(tmp_path: Path) -> None:
    """Two commands that look at once, such as `vdmctl status` and `vdmctl prune`, see no run of the past."""
    with lock_file(tmp_path / "run.lock", "process 7"):
        pass
    with (tmp_path / "run.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert held_locks(tmp_path) == {}


def test_the_folder_of_a_lock_that_is_held_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd-tmpfiles removes old files from /tmp, but not from a locked folder."""
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path / "locks"))
    with claim(CPU):
        cleaning = os.open(tmp_path / "locks", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(cleaning, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(cleaning)
