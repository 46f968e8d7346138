"""Roll-back, and champions that `gto` or somebody else withdrew, with real git, DVC and processes."""

import json
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from champions import champion, crown, history
from project import Project, cached, one_line, open_files

from flows.core.errors import Exit, NetworkError, UserError
from flows.registry import promotion
from flows.registry.git import Tag, registry_lock
from flows.registry.promotion import rollback
from flows.registry.versions import is_decided, previous_champion, reign, resolve

# The versions are trained when the first test asks for them.
pytestmark = pytest.mark.timeout(1800)


def test_rolling_back_goes_back_one_champion_at_a_time(copied: Project) -> None:
    crown(copied, "v1.0.0", "v1.1.0", "v1.2.0")
    once = copied.vdmctl("rollback")
    assert once.returncode == 0, once.stderr
    assert once.stdout == "vdm#champion#4: rolled back from vdm@v1.2.0 to vdm@v1.1.0\n"
    assert champion(copied) == "vdm@v1.1.0"
    twice = json.loads(copied.vdmctl("rollback", "--json").stdout)
    assert (twice["champion"], twice["tag"]) == ("vdm@v1.0.0", "vdm#champion#5")
    thrice = copied.vdmctl("rollback")
    assert thrice.returncode == 5
    advice = "`gto deprecate vdm v1.0.0 champion` leaves the project without a champion"
    assert one_line(thrice) == f"vdmctl: there is no earlier champion to go back to; {advice}"
    assert history(copied) == [f"vdm@v1.{minor}.0" for minor in (0, 1, 2, 1, 0)]
    crown(copied, "v1.2.0")
    assert rollback(copied.folder).champion == "vdm@v1.0.0"


@pytest.mark.parametrize("stage", [(), ("champion",)])
def test_a_champion_does_not_follow_itself_when_the_one_between_is_gone(
    stage: tuple[str, ...], copied: Project
) -> None:
    crown(copied, "v1.0.0", "v1.1.0", "v1.0.0")
    copied.gto("deprecate", "vdm", "v1.1.0", *stage)
    with pytest.raises(UserError, match="there is no earlier champion"):
        rollback(copied.folder)


def test_a_version_that_gto_deregistered_is_decided(copied: Project) -> None:
    commit = resolve(copied.folder, "v1.2.0").commit
    assert not is_decided(copied.folder, commit)
    copied.gto("deprecate", "vdm", "v1.2.0")
    assert is_decided(copied.folder, commit)


@pytest.mark.parametrize("gone", ["v1.1.0", "v1.2.0"])
def test_a_roll_back_passes_a_version_that_gto_deregistered(gone: str, copied: Project) -> None:
    crown(copied, "v1.0.0", "v1.1.0", "v1.2.0")
    copied.gto("deprecate", "vdm", gone)
    assert rollback(copied.folder).champion == "vdm@v1.0.0"
    with pytest.raises(UserError, match="there is no earlier champion"):
        previous_champion(copied.folder)


def test_the_only_champion_is_withdrawn_by_the_command_that_a_rollback_names(copied: Project) -> None:
    crown(copied, "v1.0.0")
    (command,) = re.findall("`(.*)`", copied.vdmctl("rollback").stderr)
    copied.gto(*command.split()[1:])
    problems = json.loads(copied.vdmctl("status", "--json").stdout)["problems"]
    assert "no version is the champion; `vdmctl promote VERSION` makes one" in problems
    result = copied.vdmctl("rollback")
    assert (result.returncode, one_line(result)) == (
        5,
        "vdmctl: no version is the champion; `vdmctl promote` makes the first",
    )
    assert json.loads(copied.vdmctl("promote", "v1.1.0", "--json").stdout)["decision"] == "promote"


def test_rolling_back_to_bytes_that_are_gone_leaves_the_champion(copied: Project) -> None:
    crown(copied, "v1.0.0", "v1.1.0")
    cached(copied, "models/vdm", "weights.safetensors", "v1.0.0").unlink()
    copied.dvc("remote", "remove", "store")
    result = copied.vdmctl("rollback")
    assert result.returncode == 5
    assert "vdm@v1.0.0 does not verify: models/" in one_line(result)
    assert champion(copied) == "vdm@v1.1.0"


def test_a_roll_back_names_the_command_that_passes_over_a_champion_whose_bytes_are_gone(copied: Project) -> None:
    crown(copied, "v1.0.0", "v1.1.0", "v1.2.0")
    cached(copied, "models/vdm", "weights.safetensors", "v1.1.0").unlink()
    copied.dvc("remote", "remove", "store")
    (command,) = re.findall("`(gto .*?)`", one_line(copied.vdmctl("rollback")))
    copied.gto(*command.split()[1:])
    assert rollback(copied.folder).champion == "vdm@v1.0.0"


def test_a_roll_back_gives_no_champion_up_because_databases_of_dvc_cannot_be_written(
    copied: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    crown(copied, "v1.0.0", "v1.1.0")
    full = Mock(side_effect=sqlite3.OperationalError("database or disk is full"))
    monkeypatch.setattr("flows.registry.verification.obtain", full)
    with pytest.raises(UserError, match=r"DVC's databases .*; is that disk full\?$"):
        rollback(copied.folder)


def test_a_champion_that_gto_removes_reigns_no_more(copied: Project) -> None:
    crown(copied, "v1.0.0", "v1.1.0")
    copied.gto("deprecate", "vdm", "v1.1.0", "champion")
    assert champion(copied) == "vdm@v1.0.0"
    crown(copied, "v1.2.0")
    assert champion(copied) == "vdm@v1.2.0"


def test_a_champion_whose_version_gto_deregisters_reigns_no_more(copied: Project) -> None:
    """The champion before it is the champion again, and a roll-back does not return to it."""
    crown(copied, "v1.0.0", "v1.1.0", "v1.2.0")
    copied.gto("deprecate", "vdm", "v1.2.0")
    assert champion(copied) == "vdm@v1.1.0"
    copied.gto("deprecate", "vdm", "v1.0.0")
    assert "there is no earlier champion" in one_line(copied.vdmctl("rollback"))
    copied.git("tag", "vdm@v1.3.0", "vdm@v1.0.0^{commit}", "--annotate", "--message=Again")
    assert json.loads(copied.vdmctl("rollback", "--json").stdout)["champion"] == "vdm@v1.3.0"


def test_a_champion_that_is_promoted_again_reigns_once(copied: Project) -> None:
    for number, minor in enumerate((0, 1, 1), start=1):
        copied.git("tag", "--annotate", "--message=By hand", f"vdm#champion#{number}", f"vdm@v1.{minor}.0^{{commit}}")
    assert previous_champion(copied.folder).name == "vdm@v1.0.0"


# `vdmctl rollback`, which gets the signal just before it makes its tag.
SIGNALLED = """
import os, signal, sys
from flows.registry import promotion
from flows import cli
original = promotion.make_champion
def signalled(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return original(*arguments)
promotion.make_champion = signalled
sys.argv = ["vdmctl", "rollback"]
cli.main()
"""


def test_a_signal_stops_a_rollback_before_its_tag_or_not_at_all(copied: Project) -> None:
    """Exit 75 means "run again"; with the tag made, that would go back one champion more."""
    crown(copied, "v1.0.0", "v1.1.0", "v1.2.0")
    with registry_lock(copied.folder):
        waiting = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "rollback"],
            cwd=copied.folder,
            env=copied.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        while "vdm-registry.lock" not in open_files(waiting.pid):
            assert waiting.poll() is None
            time.sleep(0.01)
        waiting.terminate()
        assert waiting.communicate(timeout=300)[1] == "vdmctl: stopped; run again\n"
    assert waiting.returncode == Exit.RESUMABLE
    assert history(copied)[3:] == []
    late = copied.run(sys.executable, "-c", SIGNALLED)
    assert (late.returncode, late.stderr) == (0, "")
    assert history(copied)[3:] == ["vdm@v1.1.0"]


def test_a_roll_back_from_a_champion_that_was_withdrawn_removes_no_other(copied: Project) -> None:
    """Its tag is not published if its files are lost, and goes if another machine took its number."""
    crown(copied, "v1.0.0", "v1.1.0", "v1.2.0")
    assert rollback(copied.folder).champion == "vdm@v1.1.0"
    copied.git("tag", "--delete", "vdm#champion#3")
    assert champion(copied) == "vdm@v1.1.0"
    assert rollback(copied.folder).champion == "vdm@v1.0.0"


def test_the_tenth_champion_follows_the_ninth() -> None:
    names = [f"vdm#champion#{number}" for number in range(1, 12)]
    assert [tag.name for tag in reign([Tag(name, commit=name) for name in sorted(names)])] == names


def test_a_champion_that_came_meanwhile_is_not_rolled_back(copied: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    crown(copied, "v1.0.0", "v1.1.0")
    monkeypatch.setattr(promotion, "require_sound", lambda *_: crown(copied, "v1.2.0"))
    with pytest.raises(UserError, match="not rolled back: the champion changed meanwhile") as raised:
        rollback(copied.folder)
    assert raised.value.code is Exit.BUSY
    assert champion(copied) == "vdm@v1.2.0"


def test_a_champion_that_gto_removed_may_be_promoted_again(copied: Project) -> None:
    crown(copied, "v1.0.0", "v1.1.0")
    copied.gto("deprecate", "vdm", "v1.1.0", "champion")
    crown(copied, "v1.1.0")
    assert champion(copied) == "vdm@v1.1.0"
    assert copied.git("tag", "--list", "vdm#champion#*").split()[-1] == "vdm#champion#4"


def test_a_roll_back_that_the_network_prevents_passes_over_no_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "champion_tag", Mock())
    monkeypatch.setattr(promotion, "previous_champion", Mock())
    monkeypatch.setattr(promotion, "require_sound", Mock(side_effect=NetworkError("the remote does not answer")))
    with pytest.raises(NetworkError, match=r"^the remote does not answer$"):
        rollback(Path())
