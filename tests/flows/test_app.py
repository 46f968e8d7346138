"""The app over HTTP: answers are those of the commands, bad requests cost a line, and a new champion answers."""

import asyncio
import base64
import errno
import json
import os
import re
import resource
import shutil
import signal
import socket
import time
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
import torch
from apps import DIGITS, App, array, npy, picture, png, run_app, sent
from conftest import TINY
from fastapi import HTTPException
from forge import Forge, crown
from pictures import claiming
from PIL import Image
from project import ROOT
from prometheus_client.parser import text_string_to_metric_families
from results import changed
from small import Small
from starlette.datastructures import Headers

from flows.api import evaluate, fill_in, load, sample, surprise
from flows.app import champion, listening
from flows.app import queue as waiting
from flows.app.champion import Following, Served
from flows.app.listening import PASSWORD, open_socket, require_password
from flows.cli import run
from flows.commands.app import device_for
from flows.core.card import card
from flows.core.errors import Exit, UserError
from flows.core.model import TrainedModel, open_model, save_model
from flows.core.params_file import read_params
from flows.dossier.dossier import Dossier
from flows.dossier.opening import dossier_of
from flows.images.image_set import open_images, save_images, spread
from flows.orchestration import status
from flows.process import answering, guard
from flows.process.apps import apps_of
from flows.process.guard import MOST_BODY_BYTES
from flows.process.locks import claim
from flows.project.project import Project
from flows.registry.fetching import fetch_model
from flows.registry.publishing import fetch_tags
from flows.registry.versions import Version
from vdm.model import VDM
from vdm.sampling import Solver

pytestmark = [pytest.mark.slow, pytest.mark.processes]
MASK = np.tri(8, dtype=np.uint8)
TEXT = sent("text.png", b"no picture\n")
LARGE, HUGE = (sent("large.webp", claiming(*size)) for size in ((2000, 1000), (9400, 9400)))


@pytest.fixture(scope="module", autouse=True)
def locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use a folder of locks in which no trainer of this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("locks")
        patch.setenv("VDM_LOCK_DIR", str(folder))
        patch.chdir(ROOT)
        yield folder


@pytest.fixture(scope="module")
def app(locks: Path) -> Iterator[App]:
    with run_app() as app:
        while app.following.served.dossier is None:
            assert not app.following.served.problem
            time.sleep(0.05)
        yield app


def test_a_score_is_that_of_evaluate_with_its_place_and_its_levels(app: App, digits: np.ndarray) -> None:
    """Each picture is evaluated as if it were alone."""
    images = digits[:3]
    found = app.post("/score", pictures=[npy(images[:2]), TEXT, npy(images[2, 0], "three.npy")], times=8)
    expected = [evaluate(load(DIGITS, "cpu"), image[None], times_per_image=8) for image in images]
    scores = found["images"]
    np.testing.assert_allclose([each["bpd"] for each in scores], [each.bpd[0] for each in expected], rtol=1e-5)
    errors = [np.sqrt(each.diffusion_variance[0]) for each in expected]
    np.testing.assert_allclose([each["bpd_standard_error"] for each in scores], errors, rtol=1e-4)
    for each in scores:
        assert each["diffusion_bpd"] == pytest.approx(np.mean(each["level_bpd"]))
        assert len(each["gamma"]) == 8
        assert each["gamma"] == sorted(each["gamma"])
        assert each["png_bpd"] > each["bpd"]
    odd = surprise(load(DIGITS, "cpu"), images)
    np.testing.assert_allclose([each["score"] for each in scores], odd.scores, rtol=1e-4)
    assert [each["words"] for each in scores] == odd.words
    assert (found["num_calibrated"], {each["p"] for each in scores}) == (82, {None})
    assert found["without_p"] == "82 held-out images are fewer than 99"
    assert [(each["name"], each["number"]) for each in scores] == [
        ("images.npy", 0),
        ("images.npy", 1),
        ("three.npy", 0),
    ]
    np.testing.assert_array_equal(picture(scores[2]["seen"]), np.rint(images[2, 0] * (255 / 16)))
    why = "text.png: damaged (not a PNG, JPEG, WEBP, TIFF, GIF or BMP file); replace or remove"
    assert found["refused"] == [{"name": "text.png", "error": why, "fit": None}]


def test_a_picture_is_made_to_fit_if_it_is_asked_for(app: App, digits: np.ndarray) -> None:
    """By the rule of the commands; a refusal says whether that would help."""
    shades = np.rint(digits[0, 0] * (255 / 16)).astype(np.uint8)
    photograph = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    sent_ones = [npy(digits[0, 0]), png(shades, "shades.png"), png(photograph, "large.png"), TEXT]
    found = app.post("/score", pictures=sent_ones)
    assert [(each["name"], each["fit"]) for each in found["refused"]] == [
        ("shades.png", "shades"),
        ("large.png", "size"),
        ("text.png", None),
    ]
    fitted = app.post("/score", pictures=[each | {"fit": True} for each in sent_ones])
    changed = ["its shades are the 17 levels", "its middle, shrunk from 40x24 to 8x8 pixels, gray, 17 levels"]
    assert [each["changed"] for each in fitted["images"]] == [None, *changed]
    assert [each["fit"] for each in fitted["refused"]] == [None]
    levels, of_shades, large = fitted["images"]
    assert of_shades["seen"] == levels["seen"]
    classified = app.post("/classify", pictures=[sent_ones[2] | {"fit": True}])["images"]
    assert (classified[0]["changed"], classified[0]["seen"]) == (changed[1], large["seen"])
    filled = app.post("/fill-in", picture=sent_ones[2] | {"fit": True}, mask=npy(MASK), num_images=1)
    kept = MASK == 0
    np.testing.assert_array_equal(picture(filled["images"][0])[kept], picture(large["seen"])[kept])


def test_noise_levels_are_those_of_the_models_own_evaluation(app: App, digits: np.ndarray) -> None:
    """At the 4 and 2 levels of params.yaml a picture would have another place among test images evaluated at 32."""
    assert app.client.get("/model").json()["defaults"]["times"] == 32
    assert app.post("/score", pictures=[npy(digits[0])])["times_per_image"] == 32
    assert app.post("/classify", pictures=[npy(digits[0])])["images"][0]["times"] == 32


def test_a_drawing_is_that_of_sample_and_its_steps_can_be_watched(app: App) -> None:
    asked = {"num_images": 4, "seed": 3, "steps": 5, "classes": [7], "guidance": 1.5}
    found = app.post("/sample", **asked)
    solver = Solver(5, order=2, classes=[7], guidance=1.5)
    drawn = sample(load(DIGITS, "cpu"), 4, seed=3, solver=solver)
    np.testing.assert_array_equal(array(found["npy"]), drawn)
    np.testing.assert_array_equal(picture(found["images"][1]), np.rint(drawn[1, 0] * (255 / 16)))
    with app.client.stream("POST", "/sample", json=asked | {"stream": True}) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        *steps, done = map(json.loads, response.iter_lines())
    assert [(each["event"], each["step"], each["steps"]) for each in steps] == [
        ("step", step, 5) for step in range(1, 6)
    ]
    assert all(len(each["z"]) == len(each["x_hat"]) == 4 for each in steps)
    np.testing.assert_array_equal(array(done["result"]["npy"]), drawn)
    again = app.post("/score", pictures=[sent("drawn.npy", b"") | {"data": found["npy"]}])
    assert len(again["images"]) == 4


def test_known_pixels_stay_and_the_others_are_those_of_fill_in(app: App, digits: np.ndarray) -> None:
    found = app.post("/fill-in", picture=npy(digits[0, 0]), mask=npy(MASK), num_images=2, seed=1)
    assert found["approximate"]
    filled = array(found["npy"])
    solver = Solver(3, order=2, classes=range(10))
    np.testing.assert_array_equal(
        filled, fill_in(load(DIGITS, "cpu"), digits[0], MASK > 0, 2, seed=1, solver=solver._replace(order=1))
    )
    shades = np.rint(digits[0, 0] * (255 / 16)).astype(np.uint8)
    by_pictures = app.post("/fill-in", picture=png(shades), mask=png(MASK * 255), num_images=2, seed=1)
    np.testing.assert_array_equal(array(by_pictures["npy"]), filled)


def test_classes_are_those_of_the_command(app: App, digits: np.ndarray, tmp_path: Path, capsys: Any) -> None:
    found = app.post("/classify", pictures=[npy(digits[:2])], times=4)["images"]
    np.save(tmp_path / "one.npy", digits[1, 0])
    assert run(["classify", str(tmp_path / "one.npy"), str(DIGITS), "--times", "4", "--json"]) == Exit.DONE
    alone = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(found[1]["log_likelihoods"], alone["log_likelihoods"][0], rtol=1e-4)
    assert found[1]["best"] == alone["best"][0]
    assert found[1]["margin_standard_error"] == pytest.approx(alone["margin_standard_error"][0], rel=1e-3)
    assert found[1]["sure"] == (found[1]["margin"] >= 3 * found[1]["margin_standard_error"])
    assert [each["number"] for each in found] == [0, 1]
    longer = app.post("/classify", pictures=[npy(digits[:2])], times=4, until_sure=True)["images"]
    assert all(each["times"] == 4 or not first["sure"] for each, first in zip(longer, found, strict=True))


def test_examples_are_test_images_that_can_be_asked_for(app: App, digits: np.ndarray, tmp_path: Path) -> None:
    """Those beside the weights, or else of the images that were evaluated."""
    (first, *others) = app.client.get("/examples").json()["images"]
    assert len(others) == 9
    found = app.post("/score", pictures=[{name: first[name] for name in ("name", "data")}])["images"]
    assert [each["seen"] for each in found] == [first["seen"]]
    model = tmp_path / "model"
    shutil.copytree(DIGITS, model)
    (model / "examples.npy").unlink()
    opened = open_model(model)
    served = Served(ROOT, opened, None)
    assert served.examples.shape == (0, 1, 8, 8)
    save_images(tmp_path / "images", {"train": digits[:20], "test": digits[20:50]}, {"name": "few", "num_levels": 17})
    assert app.following.served.dossier
    served.dossier = changed(app.following.served.dossier, images=open_images(tmp_path / "images"))
    np.testing.assert_array_equal(served.examples, spread(digits[20:50], 10))
    np.save(model / "examples.npy", np.full((1, 1, 8, 8), 17, np.uint8))
    with pytest.raises(UserError, match=r"examples\.npy: damaged: no images of the model; remove it"):
        Served(ROOT, opened, None)


def test_the_model_says_what_it_is_and_the_schedule_of_the_interface_is_whole(app: App) -> None:
    about = app.client.get("/model").json()
    assert about["name"] == "pretrained/digits_classes"
    assert (about["num_classes"], about["num_calibrated"], about["report"]) == (10, 82, True)
    known = open_model(DIGITS)
    assert known.training
    assert about["card"] == card(known, known.training, about["name"])
    assert about["figures"]["bpd"] == pytest.approx(1.629, abs=1e-3)
    assert "365 test images cost 1.63 bits/dim" in about["judgement"][0]
    # By a guess 10%, or where the images are at hand the share of the most frequent class.
    assert any(each.startswith("It finds the class of 99.2% of the images, where a") for each in about["judgement"])
    assert about["schedule"]["gamma"] == sorted(about["schedule"]["gamma"])
    assert "<h2" in app.client.get("/report").text
    described = app.client.get("/openapi.json").json()
    assert described["info"]["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    paths = described["paths"]
    assert paths.keys() == {"/health", "/model", "/examples", "/report", "/sample", "/fill-in", "/score", "/classify"}


def test_a_request_has_an_allowance_of_pixels(app: App, digits: np.ndarray) -> None:
    """A photograph of 24 megapixels goes in, and small files of large pictures are not decoded one after the other."""
    photograph = png(np.full((4000, 6000), 7, np.uint8), "photograph.png") | {"fit": True}
    small = npy(digits[0, 0], "small.npy")
    found = app.post("/score", pictures=[photograph, photograph | {"name": "again.png"}, small], times=2)
    assert [each["name"] for each in found["images"]] == ["photograph.png", "small.npy"]
    (again,) = found["refused"]
    assert (again["name"], again["fit"]) == ("again.png", None)
    assert again["error"].startswith("again.png: the pictures of a request have at most 33,554,432 pixels together")
    clear = sent("clear.webp", claiming(5792, 5792, "RGBA"))
    begin = time.process_time()
    for changes in ({"fit": True}, {}):
        found = app.post("/score", pictures=[clear | changes] * 63 + [small], times=2)
        assert len(found["refused"]) == 63
    filled = app.client.post("/fill-in", json={"picture": clear | {"fit": True}, "mask": npy(MASK)})
    assert filled.status_code == 422
    assert "clear.webp: the pictures of a request have at most" in filled.text
    assert time.process_time() - begin < 3, "decoding one takes a second"


def digit(**changes: Any) -> dict[str, Any]:
    return {"pictures": [npy(np.zeros((8, 8), np.uint8))]} | changes


def bomb() -> dict[str, str]:
    """Return a small file of a picture with 100 million pixels."""
    return png(np.zeros((10_000, 10_000), np.uint8), "bomb.png")


def npy_of(header: bytes) -> dict[str, str]:
    """Return an .npy file with this header."""
    return sent("header.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


BAD = [
    ("/score", lambda: digit(pictures=[TEXT]), 422, "^text.png: damaged"),
    ("/score", lambda: digit(pictures=[sent("big.png", bytes(10 * 2**20))]), 413, "larger than 8,388,608 bytes"),
    ("/score", lambda: digit(pictures=[bomb()]), 422, "bomb.png: too large"),
    (
        "/score",
        lambda: digit(pictures=[HUGE]),
        422,
        r"large.webp: too large \(9400x9400 pixels\)",
    ),
    (
        "/score",
        lambda: digit(pictures=[LARGE]),
        422,
        "large.webp holds 1000x2000 pixels",
    ),
    (
        "/fill-in",
        lambda: {"picture": HUGE, "mask": npy(MASK)},
        422,
        "large.webp: too large",
    ),
    ("/score", lambda: digit(pictures=[npy_of(b"{'shape': f()}\n")]), 422, r"malformed node .*: <ast.Call object>\)"),
    (
        "/score",
        lambda: digit(pictures=[png(np.full((8, 8), 65535, np.uint16), "deep.png")]),
        422,
        "deep.png: image 0 holds",
    ),
    ("/score", lambda: digit(pictures=[png(np.zeros((9, 8), np.uint8), "tall.png")]), 422, "tall.png holds 1x9x8"),
    ("/score", lambda: digit(pictures=[npy(np.full((8, 8), np.nan), "nan.npy")]), 422, "nan.npy: of float64"),
    ("/score", lambda: digit(pictures=[npy(np.array([[{}]]), "object.npy")]), 422, "object.npy: damaged"),
    ("/score", lambda: digit(pictures=[{"name": "x.png", "data": "no base64!"}]), 422, "x.png: its data is no base64"),
    ("/score", lambda: digit(pictures=[sent("/etc/passwd", b"")]), 422, "/etc/passwd: not a picture by its name"),
    ("/score", lambda: digit(pictures=[]), 422, "pictures: List should have at least 1 item"),
    ("/score", lambda: digit(folder="/etc"), 422, "folder: Extra inputs are not permitted"),
    ("/score", lambda: digit(times=1), 422, "times: .* greater than or equal to 2"),
    ("/score", lambda: {"pictures": "/etc/passwd"}, 422, "pictures: Input should be a valid list"),
    ("/score", lambda: digit(pictures=[npy(np.zeros((999, 1, 8, 8), np.uint8))]), 422, "256 images at most"),
    ("/sample", lambda: {"classes": [10]}, 422, r"classes: .* has no class 10, only 0 to 9"),
    ("/sample", lambda: {"num_images": 10**9}, 422, "num_images: .* less than or equal to 256"),
    ("/sample", lambda: {"steps": -1}, 422, "steps: .* greater than or equal to 1"),
    ("/sample", lambda: {"steps": "25"}, 422, "steps: Input should be a valid integer"),
    ("/sample", lambda: {"sampler": "euler"}, 422, "sampler: Input should be 'ancestral'"),
    ("/fill-in", lambda: {"picture": TEXT, "mask": TEXT}, 422, "^text.png: damaged"),
    (
        "/fill-in",
        lambda: {"picture": npy(MASK), "mask": npy(0 * MASK)},
        422,
        "^images.npy: no pixel of the mask is white",
    ),
    ("/nowhere", dict, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "asked", "status", "reason"), BAD)
def test_a_bad_request_costs_one_line(app: App, path: str, asked: Any, status: int, reason: str) -> None:
    response = app.client.post(path, json=asked())
    error = response.json()["error"]
    assert (response.status_code, "\n" in error) == (status, False)
    assert re.search(reason, error), error
    assert ".vdm-" not in error
    assert app.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 10**6, 400),
        (b"{", 400),
        (b'{"guidance": NaN}', 422),
        (b"\xff", 400),
        (b"", 422),
        (b"[" + b"{}," * 10**6 + b"{}]", 422),
        (b'{"num_images": 1, "sampler": "\\ud800"}', 422),
    ],
)
def test_bad_json_costs_one_line(app: App, body: bytes, status: int) -> None:
    response = app.client.post("/sample", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert "\n" not in response.json()["error"]


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/model", "/page/app.js"])
def test_a_head_is_answered_like_a_get_without_the_body(app: App, path: str) -> None:
    whole, head = app.client.get(path), app.client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_a_body_without_a_length_is_bounded_too(app: App) -> None:
    parts = (bytes(2**20) for _ in range(2 + MOST_BODY_BYTES // 2**20))
    response = app.client.post("/score", content=parts, headers={"Content-Type": "application/json"})
    assert response.status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:4210"},
        {"Host": "[::1"},
    ],
)
def test_pages_of_others_may_not_use_the_app(app: App, headers: dict[str, str]) -> None:
    for response in (app.client.get("/model", headers=headers), app.client.post("/sample", json={}, headers=headers)):
        assert response.status_code in (400, 403)
        assert "access-control-allow-origin" not in response.headers
    own = {"Origin": str(app.client.base_url).rstrip("/")}
    assert app.client.post("/sample", json={"num_images": 1}, headers=own).status_code == 200


def test_a_request_may_take_so_many_evaluations_of_the_network(locks: Path) -> None:
    with run_app(most_evaluations=100) as app:
        assert app.client.get("/model").json()["limits"]["evaluations"] == 100
        blank, mask = npy(np.zeros((8, 8), np.uint8)), npy(np.ones((8, 8), np.uint8))
        five = npy(np.random.default_rng(0).integers(0, 17, (5, 1, 8, 8), np.uint8))
        for path, asked, takes in (
            ("/classify", {"pictures": [five], "times": 3}, 150),
            ("/score", {"pictures": [five], "times": 21}, 105),
            ("/sample", {"num_images": 21, "steps": 5}, 105),
            ("/sample", {"num_images": 21, "steps": 5, "stream": True}, 105),
            ("/sample", {"num_images": 11, "steps": 5, "guidance": 2.0}, 110),
            ("/fill-in", {"picture": blank, "mask": mask, "num_images": 11, "steps": 1}, 110),
        ):
            response = app.client.post(path, json=asked)
            said = f"this takes {takes} evaluations of the network, and a request may take 100; ask for less"
            assert (response.status_code, response.json()["error"].startswith(said)) == (422, True), response.text
        found = app.post("/classify", pictures=[five], times=2, until_sure=True)
        assert {image["times"] for image in found["images"]} == {2}  # no more, however close two classes are
        assert app.post("/sample", num_images=20, steps=5)["num_images"] == 20
        assert app.client.post("/sample", json={"num_images": 10, "steps": 5, "guidance": 2.0}).status_code == 200


def test_a_password_is_asked_for(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GUESS_SECONDS", 0.2)
    with run_app(password="ann:secret", names=["VDM.example"]) as app:
        assert app.client.get("/health").status_code == 200
        refused = app.client.get("/model")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="vdm"')
        assert refused.elapsed.total_seconds() < 0.2
        wrong = app.client.get("/model", auth=("ann", "wrong"))
        assert wrong.status_code == 401
        assert wrong.elapsed.total_seconds() >= 0.2  # so that nobody tries all passwords
        spelled = {"Authorization": "basic " + base64.b64encode(b"ann:secret").decode()}
        assert app.client.get("/model", headers=spelled).status_code == 200
        for host, status in (("vdm.example", 200), ("192.0.2.1:4210", 200), ("[2001:db8::1]", 200), ("evil.test", 403)):
            found = app.client.get("/model", auth=("ann", "secret"), headers={"Host": host})
            assert found.status_code == status, host


def test_the_log_says_nothing_of_a_picture(app: App, capfd: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Pillow warns of the tags of a TIFF file that it cannot read, and they stand in the file."""
    content = BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(content, "tiff")
    damaged = content.getvalue().replace((284).to_bytes(2, "little"), (28_400).to_bytes(2, "little"))
    count = damaged.index((28_400).to_bytes(2, "little")) + 4
    damaged = damaged[:count] + (10**9).to_bytes(4, "little") + damaged[count + 4 :]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        app.post("/score", pictures=[sent("tags.tif", damaged)], times=2)
    assert (said, caplog.records, capfd.readouterr().err) == ([], [], "")


def test_the_interface_is_described_as_it_is(app: App) -> None:
    described = app.client.get("/openapi.json").json()
    for path in ("/score", "/classify", "/sample", "/fill-in"):
        responses = described["paths"][path]["post"]["responses"]
        assert responses.keys() == {"200", "400", "401", "403", "408", "413", "422", "429", "503"}
        for code in responses.keys() - {"200"}:
            assert responses[code]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
        streams = "application/x-ndjson" in responses["200"]["content"]
        assert streams == (path in ("/sample", "/fill-in"))
    wrong = app.client.delete("/score")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


def test_a_body_of_two_lengths_is_refused(app: App) -> None:
    """A proxy might read another one."""
    head = b"POST /sample HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    with talking(app) as asking:
        asking.sendall(head + b"2\r\n{}\r\n0\r\n\r\n")
        assert asking.recv(999).startswith(b"HTTP/1.1 400 ")


@contextmanager
def talking(app: App) -> Iterator[socket.socket]:
    """Yield a connection to the app."""
    with socket.create_connection((app.client.base_url.host, app.client.base_url.port), timeout=20) as asking:
        yield asking


HEAD = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    "later",
    [
        b"GET /health HTTP/1.1\r\nHost: loc",
        b"POST /nowhere HTTP/1.1\r\nContent-Length: 99\r\n" + HEAD + b"\r\nx",
        b"POST /score HTTP/1.1\r\nContent-Length: 99999999\r\n" + HEAD + b"\r\nx",
    ],
)
def test_a_connection_that_does_not_go_on_is_closed(app: App, monkeypatch: pytest.MonkeyPatch, later: bytes) -> None:
    """A second head that does not end, and bodies that nobody reads, as after 404 and 413."""
    monkeypatch.setattr(answering, "SILENT_SECONDS", 0.2)
    with talking(app) as asking:
        asking.sendall(b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert asking.recv(9999).startswith(b"HTTP/1.1 200 ")
        asking.sendall(later)
        received = b""
        while some := asking.recv(9999):  # ends when the app closes
            received += some
        assert received.count(b"HTTP/1.1 4") == (b"POST" in later)


def test_connections_are_bounded(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    app.client.get("/health")
    monkeypatch.setattr(answering, "MOST_CONNECTIONS", 2)  # that of the client, and another
    with talking(app) as first:
        with talking(app) as second, suppress(ConnectionResetError):
            assert second.recv(1) == b""
        first.sendall(b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert first.recv(9999).startswith(b"HTTP/1.1 200 ")


def test_bodies_that_are_being_received_have_one_limit_together(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_RECEIVED", 150)
    asked, headers = b'{"num_images": 1}'.ljust(100), {"Content-Type": "application/json"}

    def answered() -> httpx.Response:
        return app.client.post("/sample", content=asked, headers=headers)

    with talking(app) as unread:
        unread.sendall(b"POST /sample HTTP/1.1\r\nContent-Length: 101\r\n" + HEAD + b"\r\n" + asked)
        app.wait_until(lambda: answered().status_code == 503)
        assert answered().headers["retry-after"] == "5"
    app.wait_until(lambda: answered().status_code == 200)


def test_an_open_address_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    assert require_password("127.0.0.1") is None
    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0 lets other machines in; set VDM_APP_AUTH_STRING") as error:
        require_password("0.0.0.0")
    assert error.value.code is Exit.USAGE
    monkeypatch.setenv(PASSWORD, "secret")
    with pytest.raises(UserError, match="must be USER:PASSWORD"):
        require_password("127.0.0.1")
    monkeypatch.setenv(PASSWORD, "ann:secret")
    assert require_password("0.0.0.0") == "ann:secret"


LONG = {"num_images": 64, "steps": 1000}
MINUTES = {"pictures": [npy(np.full((200, 1, 8, 8), 8))], "times": 50, "until_sure": True}


def test_a_request_that_its_client_gave_up_stops(app: App) -> None:
    """A thousand steps of 64 images take a minute."""
    with pytest.raises(httpx.ReadTimeout):
        app.client.post("/sample", json=LONG, timeout=1)
    app.wait_until_idle(seconds=10)
    with app.client.stream("POST", "/sample", json=LONG | {"stream": True}) as response:
        assert json.loads(next(response.iter_lines()))["step"] == 1
    app.wait_until_idle(seconds=10)
    with pytest.raises(httpx.ReadTimeout):
        app.client.post("/classify", json=MINUTES, timeout=1)
    app.wait_until_idle(seconds=10)


def test_a_request_that_its_client_gave_up_leaves_the_line(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_WAITING", 1)
    with app.client.stream("POST", "/sample", json=LONG | {"stream": True}) as first:
        lines = first.iter_lines()
        assert json.loads(next(lines))["event"] == "step"
        for _ in range(2):
            with app.client.stream("POST", "/sample", json={"stream": True}) as second:
                assert json.loads(next(second.iter_lines())) == {"event": "waiting", "ahead": 1}
            app.wait_until(lambda: app.client.get("/health").json()["waiting"] == 1)
    app.wait_until_idle()


def test_work_that_cannot_be_given_up_ends_with_the_process(
    locks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch of a large model may take minutes."""
    monkeypatch.setattr(listening, "STOP_SECONDS", 0)
    monkeypatch.setattr(listening, "LAST_SECONDS", 0.1)
    begun, done, codes = Event(), Event(), list[int]()
    monkeypatch.setattr(os, "_exit", codes.append)

    def without_pause(pause: Any) -> Iterator[Any]:
        begun.set()
        assert done.wait(20)
        yield from ()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            queue.close()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            async for _ in queue.answers(without_pause):
                pass

    def ask() -> None:
        with suppress(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/")

    def stop() -> None:
        assert begun.wait(20)
        os.kill(os.getpid(), signal.SIGTERM)

    queue = waiting.Queue(torch.device("cpu"))
    with open_socket("127.0.0.1", 0) as at:
        port = at.getsockname()[1]
        threads = [Thread(target=ask), Thread(target=stop)]
        for thread in threads:
            thread.start()
        listening.listen(app, queue, at, "127.0.0.1", locks, "it")  # type: ignore[arg-type]
    done.set()
    for thread in threads:
        thread.join()
    assert codes == [Exit.DONE]
    assert capsys.readouterr().err.endswith("\nstopped\n")
    queue.wait(20)


def test_the_line_is_bounded(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST_WAITING", 1)
    long, asked = LONG | {"stream": True}, {"stream": True}
    with app.client.stream("POST", "/sample", json=long) as first:
        lines = first.iter_lines()  # kept, since the end of an iterator closes its stream
        assert json.loads(next(lines))["event"] == "step"
        with app.client.stream("POST", "/sample", json=asked) as second:
            others = second.iter_lines()
            assert json.loads(next(others)) == {"event": "waiting", "ahead": 1}
            for stream in (False, True):
                full = app.client.post("/sample", json={"stream": stream})
                assert (full.status_code, full.headers["retry-after"]) == (429, "5")
            assert app.client.get("/health").json()["waiting"] == 2
    app.wait_until_idle()


def scraped(app: App, auth: tuple[str, str] | None = None) -> dict[tuple[str, ...], float]:
    """Return the figures of /metrics by name and labels."""
    response = app.client.get("/metrics", auth=auth)
    assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    families = text_string_to_metric_families(response.text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_prometheus_reads_what_the_app_does() -> None:
    """Refusals count, unknown paths are one, and the version that answers has its figure and its time."""
    metrics = SimpleNamespace(bpd=1.5)
    version: Any = SimpleNamespace(name="vdm@v0.1.0", created="2026-01-02T03:04:05+00:00", metrics=metrics)
    auth = ("ann", "secret")
    with run_app(password=":".join(auth)) as app:
        app.following.served.version = version
        assert app.client.get("/metrics").status_code == 401
        before = scraped(app, auth)
        asked = {"num_images": 1, "steps": 1}
        assert app.client.post("/sample", json=asked, auth=auth).status_code == 200
        assert app.client.post("/sample", json={"steps": 0}, auth=auth).status_code == 422
        for path in ("/one", "/two"):
            assert app.client.get(path, auth=auth).status_code == 404
        app.wait_until_idle()
        found = scraped(app, auth)
    requests = "vdm_app_requests_total"
    assert (before[requests, "/metrics", "401"], (requests, "/sample", "200") in before) == (1, False)
    assert [found[requests, "/sample", status] for status in ("200", "422")] == [1, 1]
    assert (found[requests, "other", "404"], found[requests, "/sample", "429"]) == (2, 0)
    assert found["vdm_app_request_seconds_count", "/sample"] == 2
    assert found["vdm_app_request_seconds_sum", "/sample"] > 0
    assert (found["vdm_app_waiting",], found["vdm_app_problem",]) == (0, 0)
    assert (found["vdm_model_bits_per_dim",], found["vdm_model_created_timestamp_seconds",]) == (1.5, 1767323045)
    assert found["vdm_disk_free_bytes",] > 0


def test_a_trainer_on_the_cpu_leaves_the_app_one_thread(locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = waiting.Queue(torch.device("cpu"))
    monkeypatch.setattr(found, "most_threads", 3)
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.0)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    with claim(found.device):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        found.choose_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    found.choose_threads()
    assert chosen == [1, 3]


def test_a_card_that_trains_is_left_to_the_training(
    locks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No card is here: the name of its lock is all that is asked of it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-1"))
    assert device_for("auto") == "cuda"
    with claim(torch.device("cuda")):
        assert device_for("auto") == "cpu"
        assert "trains on the GPU, so the app takes the CPU; --device cuda shares the GPU" in capsys.readouterr().err
        assert device_for("cuda") == "cuda"


def test_files_may_vanish_and_none_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Any) -> None:
    shutil.copytree(DIGITS, tmp_path / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with run_app(open_model(tmp_path / "model"), root=tmp_path / "here") as app:
        while not app.following.served.dossier:
            time.sleep(0.05)
        shutil.rmtree(tmp_path / "model")
        app.post("/sample", num_images=1)
        app.post("/score", pictures=[npy(digits[0, 0])])
        app.post("/classify", pictures=[npy(digits[0, 0])])
        app.post("/fill-in", picture=npy(digits[0, 0]), mask=npy(MASK), num_images=1)
        assert app.client.get("/model").json()["card"].startswith("# Variational")
        assert app.client.get("/report").status_code == 200
    assert not list(tmp_path.rglob("*.*"))


def test_a_promotion_changes_what_answers(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(forge.root)
    first = crowned(forge, "v1.0.0")
    with run_app(fetch_model(forge.repository, first), first, root=forge.root, follows=True) as app:
        before = app.client.get("/model").json()
        assert (before["name"], before["lineage"]["version"]) == ("vdm@v1.0.0", "vdm@v1.0.0")
        crown(forge.project, "v1.1.0")
        app.following.look()
        after = app.client.get("/model").json()
        assert (after["name"], after["lineage"]["commit"]) == ("vdm@v1.1.0", forge.opened.registry.champion.commit)  # type: ignore[union-attr]
        assert app.post("/sample", num_images=1)["model"] == "vdm@v1.1.0"
        crown(forge.project, "v1.2.0")
        monkeypatch.setattr("flows.registry.fetching.file_sha256", lambda path: "0" * 64)
        app.following.look()
        health = app.client.get("/health").json()
        assert health["model"] == "vdm@v1.1.0"
        assert "is not the model of vdm@v1.2.0" in health["problem"]
        assert app.post("/sample", num_images=1)["model"] == "vdm@v1.1.0"
        monkeypatch.undo()
        monkeypatch.chdir(forge.root)
        app.following.look()
        assert app.client.get("/health").json() | {"model_sha256": ""} == {
            "status": "ok",
            "model": "vdm@v1.2.0",
            "model_sha256": "",
            "follows_champion": True,
            "problem": None,
            "waiting": 0,
            "device": "cpu",
        }


@pytest.mark.parametrize(("name", "follows"), [("champion", True), ("vdm#champion", True), ("vdm@v1.0.0", False)])
def test_the_champion_is_followed_by_each_of_its_names(
    name: str, follows: bool, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(forge.root)
    crown(forge.project, "v1.0.0")
    made = Mock(side_effect=Following)
    monkeypatch.setattr("flows.app.champion.Following", made)
    monkeypatch.setattr("flows.app.listening.open_socket", lambda *_: nullcontext())
    monkeypatch.setattr("flows.app.listening.listen", lambda *_: None)
    assert run(["app", name, "--device=cpu"]) == Exit.DONE
    assert made.call_args.kwargs["follows"] == follows


def test_a_champion_that_cannot_draw_does_not_answer(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(forge.root)
    first = crowned(forge, "v1.0.0")
    broken = VDM(**TINY)  # type: ignore[arg-type]
    torch.nn.init.constant_(broken.network.conv_out.weight, 1e38)
    save_model(forge.files / "models/vdm", broken, TINY)
    forge.version("v1.3.0")
    crown(forge.project, "v1.3.0")
    found = following(forge, first)
    found.look()
    assert found.served.version == first
    assert found.problem == "vdm@v1.3.0 draws no images: the network's output is not finite"


def test_the_results_of_a_champion_are_read_before_it_answers(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(forge.root)
    found, answering = following(forge, crowned(forge, "v1.0.0")), list[str]()

    def asked(project: Project, trained: TrainedModel) -> Dossier:
        answering.append(found.served.model.name)
        return dossier_of(project, trained)

    monkeypatch.setattr(champion, "dossier_of", asked)
    crown(forge.project, "v1.1.0")
    found.look()
    assert (answering, found.served.model.name) == (["vdm@v1.0.0"], "vdm@v1.1.0")


def test_an_app_that_shares_follows_also_when_origin_cannot_be_asked(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(project: Project) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.chdir(forge.root)
    found = following(forge, crowned(forge, "v1.0.0"), share=True)
    monkeypatch.setattr(champion, "fetch_tags", failing)
    crown(forge.project, "v1.1.0")
    found.look()
    assert (found.served.model.name, found.problem) == ("vdm@v1.1.0", "Too many open files")


def crowned(forge: Forge, number: str) -> Version:
    """Return a version that is the champion now."""
    crown(forge.project, number)
    found = forge.opened.registry.champion
    assert found
    return found


def following(forge: Forge, version: Version, *, share: bool = False) -> champion.Following:
    """Return what follows the champion, at this version."""
    model, drawn = fetch_model(forge.repository, version), read_params(ROOT / "params.yaml").sample
    return champion.Following(forge.opened, model, version, drawn, follows=True, share=share)


def test_tags_of_other_machines_are_fetched_and_none_is_withdrawn(forge: Forge, tmp_path: Path) -> None:
    crown(forge.project, "v1.0.0")
    forge.git("push", "--quiet", "origin", "main", "--tags")
    other = forge.clone(tmp_path / "other")
    crown(forge.project, "v1.1.0")
    forge.git("push", "--quiet", "origin", "--tags")
    crown(other.project, "v1.2.0")  # under the number that the other machine took
    forge.git("push", "--quiet", "origin", "main")
    forge.version("v1.3.0")
    crown(forge.project, "v1.3.0")
    forge.git("push", "--quiet", "origin", "main", "--tags")
    assert fetch_tags(other.opened.repository) == ["vdm#champion#3", "vdm@v1.3.0"]
    assert other.opened.registry.champion.name == "vdm@v1.3.0"  # type: ignore[union-attr]
    assert fetch_tags(other.opened.repository) == []
    ours = other.git("log", "-1", "--format=%D", "vdm#champion#2")
    assert "vdm@v1.2.0" in ours


@pytest.mark.timeout(120)
def test_the_command_answers_1000_silent_connections_or_not_is_listed_and_ends(small: Small, capsys: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = small.start("app", "models/vdm", "--port", str(port), "--device", "cpu")
    try:
        assert process.stderr
        assert process.stderr.readline() == f"models/vdm on cpu answers at {url}; Ctrl-C stops it\n"
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(1000)]
        about = httpx.get(f"{url}/model", timeout=20).json()
        assert about["name"] == "models/vdm"
        drawn = httpx.post(f"{url}/sample", json={"num_images": 1, "steps": 2}, timeout=20)
        assert drawn.status_code == 200
        os.environ["VDM_LOCK_DIR"], before = small.environment["VDM_LOCK_DIR"], os.environ["VDM_LOCK_DIR"]
        assert apps_of(small.folder) == [(process.pid, url)]
        (app,) = status.apps(Project(small.folder))
        about = {"process": process.pid, "url": url, "model": "models/vdm", "follows_champion": False, "problem": None}
        assert app.model_dump() == about
        assert apps_of(ROOT) == []
        os.environ["VDM_LOCK_DIR"] = before
        with pytest.raises(UserError, match=f"the app cannot listen at 127.0.0.1, port {port}: Address already in use"):
            open_socket("127.0.0.1", port)
        silent[0].settimeout(20)
        assert silent[0].recv(1) == b""  # closed, since it asked nothing
        for each in silent:
            each.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == "stopped\n"
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_body_that_comes_in_small_pieces_has_one_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a byte a minute would keep a connection for ever."""
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)

    async def piece() -> dict[str, Any]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def read() -> None:
        body = guard.Body(piece, Headers({"content-length": "99"}), guard.Received())
        for _ in range(99):
            await body.receive()

    with pytest.raises(HTTPException) as error:
        asyncio.run(read())
    assert error.value.status_code == 408
