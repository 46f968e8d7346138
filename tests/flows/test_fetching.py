"""Downloads from a server that closes connections, sends wrong ranges, or does not answer."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from flows.core.errors import Exit, UserError
from flows.images.fetching import fetch_file, held

CONTENT = np.random.default_rng(0).bytes(1_000_000)


class Handler(BaseHTTPRequestHandler):
    """A server of CONTENT; `behaviour` lists how many bytes to send in each answer, and its last entry repeats."""

    behaviour: ClassVar[list[int | str]] = []
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.asked.append(self.headers["Range"])
        if self.path.endswith("?page"):
            self.answer(200, b"<html>" * 1000, 4000)
            return
        step = self.behaviour.pop(0) if len(self.behaviour) > 1 else self.behaviour[0]
        first = int((self.headers["Range"] or "bytes=0-")[6:-1])
        if step == "away":
            self.send_error(503)
        elif step == "gone":
            self.send_error(404)
        elif step == "endless":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**16))
        elif step == "other range":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.end_headers()
            self.wfile.write(CONTENT[5:])
        elif isinstance(step, str) and ":" in step:
            self.send_response(302)
            self.send_header("Location", step)
            self.end_headers()
        elif step == "less than asked":
            some = CONTENT[first : first + 400_000]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(some) - 1}/{len(CONTENT)}")
            self.send_header("Content-Length", str(len(some)))
            self.end_headers()
            self.wfile.write(some)
            self.close_connection = True
        elif step == "web page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>Please log in")
            self.close_connection = True
        elif step == "no ranges":
            self.answer(200, CONTENT, len(CONTENT))
        elif first >= len(CONTENT):
            self.send_error(416)
        else:
            assert isinstance(step, int)
            self.answer(206, CONTENT[first:], step)

    def answer(self, code: int, content: bytes, sent: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:sent])
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("flows.images.fetching.PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(Handler, "asked", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/file.bin"
        server.shutdown()


def serve(monkeypatch: pytest.MonkeyPatch, *behaviour: int | str) -> None:
    monkeypatch.setattr(Handler, "behaviour", list(behaviour))


def test_a_broken_download_continues_where_it_ended(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, 300_000, "away", 300_000, len(CONTENT))
    fetch_file([address], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert Handler.asked == ["bytes=0-", "bytes=300000-", "bytes=300000-", "bytes=600000-"]
    fetch_file([address], tmp_path / "file.bin")  # the file exists
    assert len(Handler.asked) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_a_later_run_continues_too(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, 100_000, "away")
    with pytest.raises(UserError, match=r"503.*what has arrived is kept.*data\.source") as error:
        fetch_file([address], tmp_path / "file.bin")
    assert error.value.code == Exit.MISSING
    serve(monkeypatch, len(CONTENT))
    fetch_file([address], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert Handler.asked[-1] == "bytes=100000-"


def test_a_server_without_ranges_starts_over(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, 400_000, "no ranges")
    fetch_file([address], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * (len(CONTENT) + 1))
    serve(monkeypatch, len(CONTENT))
    fetch_file([address], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_the_reason_of_a_failure_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.images.fetching.PAUSES", (0.01, 0.01, 0.01))
    with pytest.raises(UserError, match=r"downloaded: http://127\.0\.0\.1:9/x: \[Errno \d+\] Connection refused; try"):
        fetch_file(["http://127.0.0.1:9/x"], tmp_path / "file.bin")


def test_a_mirror_takes_over(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, len(CONTENT))
    fetch_file(["http://127.0.0.1:9/file.bin", address], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_file_that_a_server_does_not_have_is_asked_for_once(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, "gone")
    with pytest.raises(UserError, match=r"downloaded: http://\S+: HTTP Error 404: Not Found; try again"):
        fetch_file([address], tmp_path / "file.bin")
    assert len(Handler.asked) == 1
    serve(monkeypatch, "gone", "away", len(CONTENT))
    fetch_file([address, address + "?mirror"], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(Handler.asked) == 4


@pytest.mark.timeout(120)
@pytest.mark.parametrize("behaviour", ["endless", "no ranges"])
def test_more_bytes_than_the_file_can_have_are_refused(
    behaviour: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, behaviour)
    with pytest.raises(UserError, match=r"sends more than 900,000 bytes, the limit; try again, or set") as error:
        fetch_file([address], tmp_path / "file.bin", 900_000)
    assert error.value.code == Exit.MISSING
    assert len(Handler.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mirror_takes_over_from_a_server_that_sends_too_much(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, "endless", len(CONTENT))
    fetch_file([address, address], tmp_path / "file.bin", len(CONTENT))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "ftp://127.0.0.1:9/file.bin", "data:,file", "http://[:bad/", "http://a..b/"]
)
def test_redirections_are_followed_to_http_only(
    target: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, target)
    with pytest.raises(UserError, match=r"could not be downloaded: http://127\.0\.0\.1:\d+/file\.bin: ") as error:
        fetch_file([address], tmp_path / "file.bin")
    assert error.value.code == Exit.MISSING
    assert list(tmp_path.iterdir()) == []


def test_another_range_than_was_asked_for_starts_over(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, 300_000, "other range", len(CONTENT))
    fetch_file([address], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert Handler.asked == ["bytes=0-", "bytes=300000-", "bytes=0-"]


def test_a_full_disk_is_not_reported_as_a_network_error(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, len(CONTENT))
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*file\.bin\.part"):
        fetch_file([address], tmp_path / "file.bin")


def test_the_downloads_of_a_set_belong_to_one_process_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "downloads" / "mnist"
    found = []

    def other() -> None:
        with held(folder):
            found.append(folder.exists())

    with held(folder):
        folder.mkdir()
        waiting = threading.Thread(target=other)
        waiting.start()
        while "waits for process" not in caplog.text:
            time.sleep(0.01)
        assert found == []
    waiting.join()
    assert found == [False]  # what was written is removed
    assert f"downloads/mnist: waits for process {os.getpid()}, which downloads the same files" in caplog.text


def test_downloads_are_kept_if_the_set_could_not_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "downloads" / "mnist"
    with suppress(OSError), held(folder):
        folder.mkdir()
        raise OSError
    assert folder.is_dir()


def test_what_another_server_left_does_not_spoil_the_file_of_a_mirror(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"

    def take() -> None:
        if path.read_bytes() != CONTENT:
            raise UserError("another sha256", Exit.MISSING)

    serve(monkeypatch, len(CONTENT))
    fetch_file([address + "?page", address], path, take=take)
    assert path.read_bytes() == CONTENT
    assert Handler.asked == ["bytes=0-", "bytes=4000-", "bytes=0-"]
    path.unlink()
    (tmp_path / "file.bin.part").write_bytes(b"x" * 5000)  # of a file that the publisher has replaced
    fetch_file([address], path, take=take)
    assert path.read_bytes() == CONTENT


def test_a_server_that_sends_less_than_was_asked_for_is_asked_for_the_rest(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, "less than asked")
    fetch_file([address], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert Handler.asked == ["bytes=0-", "bytes=400000-", "bytes=800000-"]


def test_a_web_page_does_not_replace_what_has_arrived(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.bin"
    serve(monkeypatch, 300_000, "web page")
    with pytest.raises(UserError, match=r"sends a web page; try again \(what has arrived is kept\)"):
        fetch_file([address], path)
    serve(monkeypatch, len(CONTENT))
    fetch_file([address], path)
    assert path.read_bytes() == CONTENT
    assert Handler.asked[-1] == "bytes=300000-"
