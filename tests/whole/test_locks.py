"""There is one trainer per device."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from project import ROOT

from flows.core.errors import Exit, UserError
from flows.process import locks
from flows.process.locks import Holder, claim, folder_of_devices, list_held_locks

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for the locks, which does not exist yet."""
    monkeypatch.setenv("VDM_LOCK_DIR", str(tmp_path / "locks"))
    return tmp_path / "locks"


def test_a_device_has_one_trainer_who_keeps_its_name_when_another_asks(folder: Path) -> None:
    assert list_held_locks(folder) == {}
    holder = Holder(process=os.getpid(), folder=str(Path.cwd()))
    with claim(CPU):
        for _ in range(2):
            assert list_held_locks(folder) == {"cpu.lock": holder}
            with pytest.raises(UserError, match=f"^cpu is busy: {holder} trains on it; wait for it or") as error:
                claim(CPU).__enter__()
            assert error.value.code is Exit.BUSY
    assert list_held_locks(folder) == {}
    with claim(CPU):
        pass


CLAIM = "import torch; from flows.process.locks import claim\nwith claim(torch.device('cpu')): {}"


def test_a_trainer_that_is_killed_frees_its_device(folder: Path) -> None:
    program = CLAIM.format("print('holds', flush=True); import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "holds\n"
        assert list_held_locks(folder) == {"cpu.lock": Holder(process=process.pid, folder=str(ROOT))}
        with pytest.raises(UserError, match=f"process {process.pid} in"):
            claim(CPU).__enter__()
        process.kill()
    with claim(CPU):
        pass


def test_a_lock_that_somebody_looks_at_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one who looks hold it for another who looks, such as `vdmctl status` and `vdmctl prune`."""
    with claim(CPU):
        pass
    with (folder / "cpu.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert list_held_locks(folder) == {}
        monkeypatch.setattr(locks.time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
        with claim(CPU):
            assert list_held_locks(folder) != {}


def test_a_lock_is_held_also_while_its_file_does_not_say_by_whom(folder: Path) -> None:
    folder.mkdir()
    with (folder / "cpu.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for written in ("", '{"process": 7', "process 7 in /here\n"):
            file.write(written)
            file.flush()
            assert list_held_locks(folder) == {"cpu.lock": Holder()}
            with pytest.raises(UserError, match=r"^cpu is busy: another process trains on it"):
                claim(CPU).__enter__()


def test_the_locks_of_a_user_are_in_the_folder_for_its_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A login, a cron job and a service of the same user share it, whatever TMPDIR and XDG_RUNTIME_DIR are."""
    monkeypatch.delenv("VDM_LOCK_DIR", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_of_devices() == tmp_path / ".local/state/vdm"
    with claim(CPU):
        assert list(list_held_locks(tmp_path / ".local/state/vdm")) == ["cpu.lock"]
