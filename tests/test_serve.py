"""What stops `vdmctl serve` before it serves; the loop itself is in test_flow.py."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from project import ROOT

from flows.errors import Exit


def serve(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "serve", *arguments],
        cwd=folder,
        env=os.environ | {"PREFECT_HOME": str(folder), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("how", ["environment", "profile"])
def test_a_server_elsewhere_that_does_not_answer(how: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://localhost.localdomain:{free.getsockname()[1]}/api"
    if how == "profile":
        (tmp_path / "profiles.toml").write_text(f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{url}"\n')
    result = serve(tmp_path, **({"PREFECT_API_URL": url} if how == "environment" else {}))
    assert result.returncode == Exit.MISSING, result.stderr
    assert result.stderr == f"vdmctl: no Prefect server answers at {url}, which is Prefect's api.url\n"


def test_a_port_that_something_else_has(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = serve(tmp_path, "--port", str(port))
    assert result.returncode == Exit.USAGE, result.stderr
    last = result.stderr.splitlines()[-1]
    assert (
        last == f"vdmctl: no server at http://127.0.0.1:{port}/api: Prefect says above why; --port picks another port"
    )
