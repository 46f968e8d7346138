"""The page of questions: each answer has a link, which another test follows, or a program, and names what exists."""

import re
from typing import Any

import pytest
import typer
from project import ROOT

from flows.commands.vdmctl import app
from flows.core.params import Params

PAGE = (ROOT / "docs/questions.md").read_text()
SECTIONS = {name: field.annotation for name, field in Params.model_fields.items()}


def answers() -> dict[str, str]:
    """Return the answers by their questions."""
    found = re.split(r"^\*\*(.*?)\*\*", PAGE, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


@pytest.mark.parametrize("question", answers())
def test_an_answer_is_short_and_leads_on(question: str) -> None:
    answer = answers()[question].split("\n## ")[0]
    text, *program = answer.split("```python\n")
    assert question.endswith("?")
    assert len(text.splitlines()) <= 6
    assert re.search(r"\]\([^)]+\)", text) or program
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, rest in re.findall(r"`vdmctl ([a-z-]+)([^`]*)`", text):
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, name
    for section, name in re.findall(r"\b(model|train|data|evaluate|sample)\.([a-z_]+)\b(?!\()", text):
        kind = SECTIONS[section]
        assert kind
        assert name in kind.model_fields, f"{section}.{name}"


@pytest.mark.slow
def test_the_program_of_an_answer_runs() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    found: dict[str, Any] = {}
    exec(program, found)
    assert found["result"].bpd.mean() > 12  # noise costs its bits at least
