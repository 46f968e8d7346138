"""There is one trainer per device, also among several users of a machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from project import ROOT

from flows.core.errors import Exit, UserError
from flows.process.locks import claim, held_locks

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


def test_held_locks_are_found_without_taking_one(folder: Path) -> None:
    assert held_locks(folder) == {}
    with claim(CPU):
        assert held_locks(folder) == {"cpu.lock": f"process {os.getpid()} in {Path.cwd()}"}
    assert (folder / "cpu.lock").exists()
    assert held_locks(folder) == {}


def test_locks_are_nobody_elses(folder: Path) -> None:
    before = os.umask(0)
    with claim(CPU):
        modes = [path.stat().st_mode & 0o777 for path in (folder, folder / "cpu.lock")]
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


def test_a_card_without_a_number_is_the_first(folder: Path) -> None:
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


def test_logins_jobs_and_services_of_a_user_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They use the same lock for any TMPDIR and XDG_RUNTIME_DIR.  The test uses a card number that no machine has."""
    monkeypatch.delenv("VDM_LOCK_DIR", raising=False)
    hold = "import torch; from flows.process.locks import claim\nwith claim(torch.device('cuda:97')): print('has it')"
    environments = [{"TMPDIR": str(tmp_path)}, {"XDG_RUNTIME_DIR": str(tmp_path)}, {"HOME": str(tmp_path)}]
    with claim(torch.device("cuda:97")):
        for environment in environments:
            result = subprocess.run(
                [sys.executable, "-c", hold], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
            )
            assert f"cuda:97 is busy: process {os.getpid()}" in result.stderr
