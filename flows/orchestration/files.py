"""prefect.yaml and automations.yaml, which people edit while the loop runs, as typed documents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from prefect.events.schemas.automations import AutomationCore
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from flows.core import layout
from flows.core.documents import Document, DocumentType, explain
from flows.core.errors import Exit, UserError, brief, file_problem
from flows.core.files import read_bounded
from flows.project.project import Project

WITH_BLOCK = ("send-notification", "call-webhook")
"""The types of actions that use a block."""
ANY = UUID(int=0)


class Deployment(Document):
    """A deployment, of which `prefect deploy` reads the rest."""

    name: str = Field(min_length=1)


class Silence(Document):
    """After how many days without a finished run, or a new picture, `vdmctl status` has a problem; None for never."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    run_days: Annotated[float, Field(gt=0)] | None = None
    picture_days: Annotated[float, Field(gt=0)] | None = None


class Deployments(Document):
    """prefect.yaml."""

    silence: Silence = Silence()
    deployments: list[Deployment]


class Automation(Document):
    """An automation in the format of `prefect automation create`, for a server whose ids nobody knows yet.

    Its actions use the block TYPE/NAME if it names one.  An action may name a deployment, such as `train-vdm`.  With
    `enabled: false` it is off until somebody switches it on at the server.
    """

    name: str = Field(min_length=1)
    block: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] | None = None
    enabled: bool = True
    trigger: dict[str, Any]
    actions: list[dict[str, Any]]

    @property
    def deployments(self) -> set[str]:
        """Return the names of the deployments in its actions."""
        return {str(action["deployment"]) for action in self.actions if "deployment" in action}

    def automation(self, block: UUID | None, deployments: Mapping[str, UUID]) -> AutomationCore:
        """Return the automation with the ids of its block and its deployments.  Raises ValidationError."""
        actions = []
        for action in self.actions:
            given = dict(action)
            if block and given.get("type") in WITH_BLOCK:
                given["block_document_id"] = block
            if name := given.pop("deployment", None):
                given["deployment_id"] = deployments[str(name)]
            actions.append(given)
        return AutomationCore.model_validate(self.model_dump(exclude={"block"}) | {"actions": actions})

    @model_validator(mode="after")
    def accepted(self) -> "Automation":
        """Raise ValueError unless Prefect accepts the automation."""
        for action in self.actions:
            if action.get("type") in WITH_BLOCK and not self.block and "block_document_id" not in action:
                raise ValueError(f"{self.name}: its {action['type']} needs a block: TYPE/NAME")
        try:
            self.automation(ANY if self.block else None, dict.fromkeys(self.deployments, ANY))
        except ValidationError as error:
            raise ValueError(f"{self.name}: {explain_refusal(error)}") from error
        return self


def explain_refusal(error: ValidationError) -> str:
    """Return why Prefect refuses an automation.  Of an action it also says why it is none of each other type."""
    found = error.errors(include_url=False)
    of_other_types = {each["loc"][:-1] for each in found if each["loc"][-1] == "type"}
    first = next((each for each in found if each["loc"][:-1] not in of_other_types), found[0])
    return f"{'.'.join(map(str, first['loc']))}: {brief(first['msg'].removeprefix('Value error, '))}"


class Automations(Document):
    """automations.yaml, whose list of automations may be empty."""

    automations: list[Automation] = Field(default_factory=list)

    @field_validator("automations", mode="before")
    @classmethod
    def nothing_is_empty(cls, value: Any) -> Any:
        """Take a key without a value, whose entries somebody made comments, for an empty list."""
        return [] if value is None else value


def read_deployments(project: Project) -> Deployments:
    """Return the project's prefect.yaml.  Raises UserError (exit 2)."""
    return parse_file(Deployments, project.folder / layout.DEPLOYMENTS)


def read_automations(project: Project) -> Automations:
    """Return the project's automations.yaml, which may be missing.  Raises UserError (exit 2)."""
    path = project.folder / layout.AUTOMATIONS
    return parse_file(Automations, path) if path.exists() else Automations()


def parse_file(model: type[DocumentType], path: Path) -> DocumentType:
    """Return a YAML file of the project's own commit, which may be empty.  Raises UserError (exit 2)."""
    try:
        return model.model_validate(YAML(typ="safe").load(read_bounded(path)) or {})
    except ValidationError as error:
        reason = explain(error)
    except OSError as error:
        raise UserError(file_problem(error), Exit.USAGE) from error
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        reason = f"not YAML: {line}{brief(error.problem or 'damaged')}"
    except Exception as error:  # ruamel does not document what it raises for damaged input
        reason = f"not YAML: {brief(error)}"
    raise UserError(f"{path}: {reason}", Exit.USAGE)
