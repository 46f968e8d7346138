"""YAML that is too large, or that other readers read differently, is refused before anything is built."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import parse_yaml
from project import ROOT
from ruamel.yaml.events import Event

from flows.core.bounded_yaml import MOST_NODES, Bounds, dump, line_of, load, parse
from flows.core.errors import Exit, UserError
from flows.core.params_file import parse_params, read_params
from flows.orchestration.workspace import compose_params

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGED_BOMB = "a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 25))
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 40))
LONG_TEXTS = f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 10_000}]"


@pytest.mark.parametrize("read", [parse, load])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB, "line 5: more than 20,000 values"),
        (MERGED_BOMB, "more than 20,000 values"),
        (CHAIN, "nested too deeply"),
        ("a: " + "[" * 100_000, "line 1: nested too deeply"),
        ("a: " + "{a: " * 50_000, "line 1: nested too deeply"),
        ("- " * 10_000, "line 1: nested too deeply"),
        ("? " * 10_000, "line 1: nested too deeply"),
        ("#" * 10_000_000, "larger than 262,144 bytes"),
        ("[" + "a," * 30_000 + "]", "more than 20,000 values"),
        ("a: &x [*x]", r"the alias \*x has no complete anchor before it"),
        ("a: &x {b: *x}", r"the alias \*x has no complete anchor before it"),
        ("a: &x {<<: *x}", r"the alias \*x has no complete anchor before it"),
        ("a: *x", r"the alias \*x has no complete anchor before it"),
        ("a: &x 1\nb: &x 2\nc: *x", "line 2: the anchor &x is defined twice"),
        (LONG_TEXTS, "line 2: more than 20,000 values, or as much text"),
        ("a: !!python/object:os.system x", "line 1: tags such as .*python/object:os.system are not supported"),
        ("a: !include /etc/passwd", "tags such as !include are not supported"),
        ("a: !!set {b}", "tags such as"),
        ("a: 1\nb: 2\na: 3", "line 3: found duplicate key"),
        ("%YAML 1.1\n---\na: yes", "directives are not supported"),
        ("%TAG ! tag:x,2000:\n---\na: !b c", "directives are not supported"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("--- a\n--- b", "another document"),
        (b"\xff\xfe\x00", "unacceptable character"),
        ("a: \0", "unacceptable character"),
        ("a: [", r"line \d: "),
    ],
)
def test_yaml_beyond_the_limits_is_a_value_error(
    content: str | bytes, reason: str, read: Callable[[str | bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    read_event = Bounds.read

    def counted(bounds: Bounds, event: Event) -> None:
        events.append(event)
        read_event(bounds, event)

    monkeypatch.setattr(Bounds, "read", counted)
    with pytest.raises(ValueError, match=reason) as raised:
        read(content)
    assert len(events) <= MOST_NODES + 4  # a bomb is refused before its content is multiplied
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: 2020-01-01", "date 2020-01-01 is not supported; quote it"),
        ("1: a", "the key 1 is not text"),
        ("? [a]\n: b", "is not text; quote it"),
    ],
)
def test_a_value_or_key_without_a_form_in_json_is_a_value_error(content: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(content)


@pytest.mark.parametrize("text", ["a: b\tc\n", "- 0x1f\n- 1_000\n- 0b11\n- 012\n- 1e3\n- +.INF\n- off\n"])
def test_text_is_read_as_dvc_reads_it(text: str) -> None:
    assert repr(parse(text)) == repr(parse_yaml(text, "dvc.lock"))


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (("train", "steps"), 3),
        (("train", "rates", 1), 6),
        (("other", "steps"), 3),
        (("train", "missing", "part"), 1),
        (("train", "steps", "part"), 3),
        ((0,), 1),
        ((), 1),
    ],
)
def test_the_line_of_a_value_is_found_by_the_reader_that_parsed_it(location: tuple[Any, ...], line: int) -> None:
    content = "train: &train\n  # a tab follows\n  steps:\t5\n  rates:\n  - 1\n  - 2\nother: *train\n"
    assert parse(content)["train"]["steps"] == 5
    assert line_of(content, location) == line
    assert line_of(content.encode("utf-16"), location) == line


def test_values_are_those_of_yaml_1_2() -> None:
    content = "a: 2e-4\nb: yes\nc: 0o17\nd: null\ne: ~\nf: 'x'\ng: |\n  y\nh: [1, {i: .inf}]\nj: true\n"
    found = {"a": 2e-4, "b": "yes", "c": 15, "d": None, "e": None, "f": "x", "g": "y\n", "j": True}
    assert parse(content) == found | {"h": [1, {"i": float("inf")}]}
    assert [type(value) for value in parse(content).values()][:3] == [float, str, int]


def test_a_bool_with_an_anchor_stays_a_bool() -> None:
    assert all(value is True for value in parse("a: &x true\nb: *x\n").values())


def test_anchors_within_the_limits_are_read() -> None:
    content = "base: &base {a: 1, b: [2]}\nother:\n  <<: *base\n  a: 3\nagain: [*base, *base]\n"
    base = {"a": 1, "b": [2]}
    assert parse(content) == {"base": base, "other": {"a": 3, "b": [2]}, "again": [base, base]}


def test_the_projects_own_files_are_within_the_limits() -> None:
    for path in [ROOT / "dvc.yaml", ROOT / "dvc.lock", *(ROOT / "presets").glob("*.yaml")]:
        assert len(load(path.read_bytes())) > 1, path


@pytest.mark.parametrize("content", [BOMB, "a: " + "[" * 100_000, "#" * 10_000_000, "data: !x {}\n", "a: &x [*x]"])
def test_hostile_parameters_give_an_error_of_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError, match=r"params\.yaml: not YAML: ") as raised:
        read_params(tmp_path / "params.yaml")
    assert raised.value.code is Exit.USAGE
    assert "\n" not in str(raised.value)


def test_long_values_and_keys_are_cut() -> None:
    text = (ROOT / "presets/digits.yaml").read_text()
    for old, new in (("device: cpu", f"device: {'x' * 100_000}"), ("clip: true", f"{'clip' * 20_000}: true")):
        with pytest.raises(UserError) as raised:
            parse_params(text.replace(old, new, 1), "params.yaml")
        assert len(str(raised.value)) < 300


def test_a_fifo_a_device_and_a_folder_are_refused_as_parameters(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, reason in (("fifo", "not a regular file"), ("zero", "not a regular file"), (".", "Is a directory")):
        with pytest.raises(UserError, match=reason) as raised:
            read_params(tmp_path / name)
        assert raised.value.code is Exit.USAGE


@pytest.mark.processes
def test_a_bomb_in_committed_parameters_gives_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(BOMB)
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message=Bomb"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    with pytest.raises(UserError, match="not YAML: line 5: more than 20,000 values") as raised:
        compose_params(tmp_path, "HEAD", None, {"train.steps": 1})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("prefix", ["0x", "0o"])
def test_an_integer_that_cannot_be_printed_is_an_error_of_one_line(prefix: str) -> None:
    text = (ROOT / "presets/digits.yaml").read_text().replace("split_seed: 0", f"split_seed: {prefix}{'7' * 5000}", 1)
    with pytest.raises(UserError, match="not YAML: an integer of more than 64 bits") as raised:
        parse_params(text, "params.yaml")
    assert raised.value.code is Exit.USAGE


def test_a_document_keeps_its_quotes_and_comments() -> None:
    text = "h: \"q\"  # why\nk: '1'\nn: plain\n"
    assert dump(load(text)) == text
