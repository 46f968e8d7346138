"""Results as text for the terminal."""

from typing import Any

from servers import OWN

from flows.commands.operating import removals, rows
from flows.commands.registry import distance
from flows.commands.summary import table


def test_a_long_reason_widens_no_column() -> None:
    text = table(("what", "removed", "MB"), [("cached files", "2", "0.1"), ("left alone", "x" * 90, "")])
    assert text.split("\n")[1] == "cached files  2        0.1"


def test_the_list_of_versions_has_fid_or_else_the_distance_in_the_features_of_the_pipeline() -> None:
    of_precision, of_pipeline, of_inception = ({"samples": each, "held_out": each / 2} for each in (0.5, 3.0, 20.0))
    found = {"precision": of_precision, "fd_0a1b2c3d": of_pipeline}
    assert distance(found | {"fid": of_inception}) == "fid 20.000 (10.000)"
    assert distance(found) == "fd_0a1b2c3d 3.000 (1.500)"
    assert distance(found | {"fd_0a1b2c3d": {"samples": 3.0, "held_out": None}}) == "unknown"


def test_the_state_of_the_loop_as_text() -> None:
    weekly = {"deployment": "train-vdm/weekly", "when": "0 3 * * 0 UTC"}
    on = {"active": True, "next_run": "2027-01-03T03:00:00Z"}
    found: dict[str, Any] = {
        "server": {
            "url": OWN,
            "answers": True,
            "workers": [{"name": "w", "status": "ONLINE"}],
            "schedules": [weekly | on, weekly | {"active": False, "next_run": None}],
            "runs": [{"name": "owl", "state": "Running", "started": "T"}],
            "last_run": {"name": "elk", "state": "Failed", "ended": "T"},
        },
        "devices": [{"device": "cpu", "holder": "process 7"}],
        "worktrees": [{"name": "a", "in_use": True}, {"name": "b", "in_use": False}],
        "registry": {"versions": 3, "champion": "vdm@v1.1.0", "champion_bpd": 2.5},
        "disk_bytes": {"dvc_cache": 2_500_000, "worktrees": 0},
        "disk_free_bytes": 7_000_000_000,
        "problems": ["no worker"],
    }
    assert list(rows(found)) == [
        ("server", f"{OWN} answers"),
        ("worker", "w online"),
        ("schedule", "train-vdm/weekly: 0 3 * * 0 UTC: on, next run 2027-01-03T03:00:00Z"),
        ("schedule", "train-vdm/weekly: 0 3 * * 0 UTC: off"),
        ("run", "owl running, started T"),
        ("last run", "elk failed, ended T"),
        ("device", "cpu: process 7"),
        ("worktree", "a in use"),
        ("worktree", "b left behind; the next run removes it"),
        ("versions", "3, champion vdm@v1.1.0 (2.5000 bits/dim)"),
        ("disk", "dvc cache: 2.5 MB"),
        ("disk", "free: 7,000.0 MB"),
        ("problem", "no worker"),
    ]


def test_what_prune_removes_as_text() -> None:
    """Names of cached files are digests, which say nothing; that the newest versions stay needs no word."""
    found: dict[str, Any] = {
        "removed": {
            "worktrees": {"count": 0, "bytes": 0, "names": []},
            "versions": {"count": 4, "bytes": None, "names": ["vdm@v1.0.0", "vdm@v1.1.0", "vdm@v1.2.0", "vdm@v1.3.0"]},
            "reports": {"count": 3, "bytes": 0, "names": ["a", "b", "c"]},
            "cached_files": {"count": 2, "bytes": 2_500_000, "names": ["0" * 32, "1" * 32]},
        },
        "kept": {"vdm@v1.4.0": "among the newest", "vdm@v0.1.0": "its commit is not on origin"},
        "skipped": ["the history"],
        "problems": ["the cache"],
    }
    assert list(removals(found)) == [
        ("versions", "4: vdm@v1.0.0, vdm@v1.1.0, vdm@v1.2.0, ...", ""),
        ("reports", "3: a, b, c", "0.0"),
        ("cached files", "2", "2.5"),
        ("kept", "vdm@v0.1.0, its commit is not on origin", ""),
        ("left alone", "the history", ""),
        ("left alone", "the cache", ""),
    ]
