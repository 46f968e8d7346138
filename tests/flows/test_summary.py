"""Results as text for the terminal."""

from flows.commands.summary import table
from flows.registry.lineage import listed


def test_a_long_reason_widens_no_column() -> None:
    text = table(("what", "removed", "MB"), [("cached files", "2", "0.1"), ("left alone", "x" * 90, "")])
    assert text.split("\n")[1] == "cached files  2        0.1"


def test_parameters_are_shown_as_yaml_writes_them() -> None:
    values = {"a": False, "b": None, "c": "digits", "d": [1, 2], "e": 1e-06, "f": ["é"]}
    assert listed(values) == 'a false, b null, c digits, d [1, 2], e 1e-06, f ["é"]'
