"""A preset names what differs from digits.yaml; `vdmctl preset` writes a whole file with its comments."""

from pathlib import Path

import pytest
from project import ROOT
from ruamel.yaml import YAML

from flows.cli import run
from flows.core.errors import Exit, UserError
from flows.core.params_file import parse_params
from flows.core.presets import WHOLE, compose, preset_names, read_preset

PRESETS = ROOT / "presets"
DIGITS = (PRESETS / "digits.yaml").read_text()
OTHERS = sorted(set(preset_names(PRESETS)) - {WHOLE})


@pytest.mark.parametrize("name", OTHERS)
def test_a_preset_has_only_what_differs_with_a_reason_for_each_value(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text()
    whole, changed = YAML(typ="safe").load(DIGITS), YAML(typ="safe").load(text)
    same = [
        f"{section}.{key}"
        for section in changed
        for key, value in changed[section].items()
        if whole[section][key] == value
    ]
    assert same == []
    assert [line for line in text.splitlines() if line.startswith("  ") and "  # " not in line] == []
    composed = parse_params(read_preset(name, PRESETS), name).model_dump()
    for section, values in whole.items():
        assert composed[section] == parse_params(DIGITS, WHOLE).model_dump()[section] | changed.get(section, {})
        assert composed[section].keys() == values.keys()


def test_the_composed_text_is_that_of_digits_but_for_the_changed_lines() -> None:
    text = "# Mine\ndata:\n  resize: [8, 8]  # smaller\ntrain:\n  learning_rate: 2e-4\n  patience: null\n"
    expected = {
        "  resize: null          # [height, width]\n": "  resize: [8, 8]        # [height, width]; smaller\n",
        "  learning_rate: 3e-3\n  warmup": "  learning_rate: 2e-4\n  warmup",
    }
    whole = "# Mine\n" + DIGITS.partition("\n")[2]
    for old, new in expected.items():
        assert old in whole
        whole = whole.replace(old, new)
    assert compose(DIGITS, text) == whole


@pytest.mark.parametrize("text", ["", "data: 3", "a: [", "unknown:\n  a: 1\n"])
def test_a_preset_that_has_no_sections_of_parameters_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="a preset is not YAML with sections") as refused:
        compose(DIGITS, text)
    assert refused.value.code is Exit.USAGE


def test_an_unknown_parameter_of_a_preset_is_found_when_the_file_is_read() -> None:
    with pytest.raises(UserError, match=r"train\.stepps is not a known parameter"):
        parse_params(compose(DIGITS, "train:\n  stepps: 1  # a slip\n"), "params.yaml")


def test_params_yaml_is_overwritten_only_if_it_is_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["preset", "digits"]) == Exit.USAGE
    assert "no preset 'digits': no files in presets/" in capsys.readouterr().err
    Path("presets").symlink_to(PRESETS)
    for name in ("mnist", "digits"):
        assert run(["preset", name]) == Exit.DONE
        assert Path("params.yaml").read_text() == read_preset(name)
    Path("params.yaml").write_text(DIGITS.replace("steps: 2600", "steps: 7"))
    assert run(["preset", "mnist"]) == Exit.USAGE
    assert "params.yaml differs from every preset; --force overwrites it" in capsys.readouterr().err
    assert run(["preset", "mnist", "--force"]) == Exit.DONE
    assert Path("params.yaml").read_text() == read_preset("mnist")
