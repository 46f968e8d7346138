"""Check the architecture: who imports whom, what stages depend on, and that documents name what exists."""

import ast
import pkgutil
import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import typer
from project import ROOT
from ruamel.yaml import YAML

from flows.commands.vdmctl import app
from flows.core import layout, params
from flows.project.project import SECTIONS, Project
from flows.repository.stages import stage_names

DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
CODE = sorted([*ROOT.glob("vdm/**/*.py"), *ROOT.glob("flows/**/*.py")])
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md")
DOCUMENTS = [*(ROOT / page for page in PAGES), *sorted(ROOT.glob("docs/*.md"))]

# Each layer of vdm/ may import those before it.
LAYERS = [
    {"choices", "errors", "prefetch", "samplers"},
    {"schedule"},
    {"diffusion"},
    {"discretization", "network"},
    {"vlb"},
    {"grids"},
    {"model", "training.batches", "training.log", "training.processes", "training.settings"},
    {"evaluation", "sampling", "ode", "codec", "training.optimizer"},
    {"classification", "fitted_grids", "surprise", "training.validation"},
    {"training.trainer"},
]

# Each room of flows/ may import itself and the rooms named here, besides vdm/.
ROOMS = {
    "core": "",
    "process": "core",
    "images": "core process",
    "contract": "core images",
    "training": "core process images contract",
    "evaluation": "core process images training",
    "sampling": "core process images contract training evaluation",
    "compression": "core process images evaluation",
    "repository": "core process",
    "registry": "core process images contract evaluation repository",
    "project": "core images contract repository registry",
    "dossier": "core images contract evaluation repository registry project",
    "exchange": "core evaluation dossier",
    "report": "core process images contract evaluation dossier",
    "orchestration": "core process images contract evaluation repository registry project report",
    "app": "core process images evaluation sampling repository registry project dossier report",
    "commands": "core process images contract training evaluation sampling compression repository registry project"
    " dossier exchange report orchestration app",
}
DOORS = {"api", "cli", "train_vdm"}
STAGES = {
    "download": "flows/images/download.py",
    "validate": "flows/contract/inspection.py",
    "train": "flows/training/fitting.py",
    "register": "flows/training/registering.py",
    "evaluate": "flows/evaluation/bound.py",
    "features": "flows/sampling/features.py",
    "sample": "flows/sampling/measuring.py",
    "report": "flows/report/page.py",
}
"""The file with the function of each stage, which has the stage's name."""

# Files that a stage reaches and that cannot change its result, by patterns of their paths and the reason.  A pattern
# that begins with the name of a stage holds for that stage.
HARMLESS = {
    "flows/core/documents.py": "refuses what is damaged",
    "flows/core/errors.py": "messages",
    "flows/core/escaping.py": "messages",
    "flows/core/files.py": "writes what it is given",
    "flows/core/params.py": "refuses wrong parameters; DVC compares their values",
    "flows/core/layout.py": "paths",
    "flows/process/*": "signals, locks, progress",
    "vdm/choices.py": "names of choices",
    "vdm/errors.py": "messages",
    "train flows/images/grids.py": "draws pictures that are no output",
    "train vdm/sampling.py": "draws pictures that are no output",
    "train flows/contract/findings.py": "refuses invalid images",
    "features flows/contract/findings.py": "refuses invalid images",
    "sample flows/contract/findings.py": "is for the stage `features`",
    "features vdm/*": "the model is not used",
    "register vdm/*": "the model is copied",
}


# Names that two rooms define at top level, and why each means one thing.
SHARED = {
    "CHAMPION": "the same word: in a parameter, and as GTO's stage",
    "evaluate": "the stage, and the maths in `vdm` that it calls",
    "sample": "the stage, and the maths in `vdm` that it calls",
}


@cache
def imported(path: Path, *, type_checking: bool = False) -> set[str]:
    """Return the modules that a file imports, anywhere in it; those under `if TYPE_CHECKING` only if asked."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and not type_checking and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.update({str(node.module)}, (f"{node.module}.{alias.name}" for alias in node.names))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return names


def closure(path: str) -> set[str]:
    """Return a file of this project and all files that it reaches by imports."""
    reached, pending = set[str](), [path]
    while pending:
        current = pending.pop()
        if current not in reached:
            reached.add(current)
            files = (f"{name.replace('.', '/')}.py" for name in imported(ROOT / current))
            pending += [file for file in files if file.startswith(("vdm/", "flows/")) and (ROOT / file).is_file()]
    return reached


def module(path: Path) -> str:
    """Return the name of a module of vdm/ without `vdm.`."""
    return ".".join(path.relative_to(ROOT / "vdm").with_suffix("").parts)


def test_the_paper_imports_nothing_of_the_plant_and_its_layers_only_those_below() -> None:
    paper = {name: path for path in ROOT.glob("vdm/**/*.py") if not (name := module(path)).endswith("__init__")}
    assert set.union(*LAYERS) == paper.keys(), "LAYERS has every module of vdm/"
    allowed = {"torch", "numpy", "scipy", "vdm", *sys.stdlib_module_names}
    below: set[str] = set()
    for layer in LAYERS:
        for name in layer:
            found = imported(paper[name], type_checking=True)
            assert {each.split(".")[0] for each in found} <= allowed, f"vdm/{name}"
            ours = paper.keys() & {each.removeprefix("vdm.") for each in imported(paper[name])}
            assert ours <= below, f"vdm/{name}.py imports {ours - below}"
        below |= layer


def test_a_room_imports_only_the_rooms_below_it() -> None:
    assert {path.name for path in (ROOT / "flows").iterdir() if (path / "__init__.py").is_file()} == set(ROOMS)
    assert {path.stem for path in (ROOT / "flows").glob("*.py")} == DOORS | {"__init__"}
    for room, below in ROOMS.items():
        for path in (ROOT / "flows" / room).glob("*.py"):
            found = {name.split(".")[1] for name in imported(path, type_checking=True) if name.startswith("flows.")}
            others = found - {*below.split(), room}
            assert not others, f"{path.relative_to(ROOT)} imports {others}"


def test_one_room_knows_dvc_and_gto_and_only_the_command_line_its_commands() -> None:
    for path in [*CODE, *ROOT.glob("benchmarks/*.py")]:
        names = imported(path, type_checking=True)
        room = str(path.relative_to(ROOT).parent)
        engines = {name for name in names if name.split(".")[0] in {"dvc", "dvc_data", "dvc_objects", "gto"}}
        assert not engines or room == "flows/repository", f"{path.relative_to(ROOT)} imports {engines}"
        commands = {name for name in names if name.startswith("flows.commands")}
        assert not commands or room == "flows/commands" or path.name == "cli.py", f"{path} imports {commands}"


@pytest.mark.parametrize("stage", DVC)
def test_stages_know_neither_dvc_nor_prefect_nor_the_command_line(stage: str) -> None:
    for path in closure(STAGES[stage]):
        foreign = {name.split(".")[0] for name in imported(ROOT / path)} & {"dvc", "prefect", "typer"}
        assert not foreign, f"{path} imports {foreign}"


def needed_code(stage: str) -> set[str]:
    """Return the files that a stage reaches and that can change its result."""
    reached = closure(STAGES[stage])
    if "flows/images/unpacking.py" in reached:  # which finds the kinds of containers by itself
        reached = {path for path in reached if not path.startswith("flows/images/containers/")}
        reached.add("flows/images/containers")
    if stage == "report":
        pages = (path for path in (ROOT / "flows/report").iterdir() if path.is_file() and path.suffix != ".py")
        reached |= {str(path.relative_to(ROOT)) for path in pages}
    return {
        path
        for path in reached
        if not any(fnmatch(path, each) or fnmatch(f"{stage} {path}", each) for each in HARMLESS)
    }


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_depends_on_the_code_that_can_change_its_result(stage: str) -> None:
    declared = {dep for dep in DVC[stage]["deps"] if dep.startswith(("vdm/", "flows/"))}
    needed = needed_code(stage)
    lines = [f"add    - {path}" for path in sorted(needed - declared)]
    lines += [f"remove - {path}" for path in sorted(declared - needed)]
    if lines:
        pytest.fail(f"dvc.yaml, deps of {stage}:\n" + "\n".join(lines), pytrace=False)


def test_every_exception_is_a_file_that_a_stage_reaches() -> None:
    reached = {text for stage in DVC for path in closure(STAGES[stage]) for text in (path, f"{stage} {path}")}
    unused = [pattern for pattern in HARMLESS if not any(fnmatch(text, pattern) for text in reached)]
    assert not unused, f"HARMLESS: {unused}"


@pytest.mark.parametrize("stage", DVC)
def test_a_stage_depends_on_the_sections_that_it_takes(stage: str) -> None:
    taken = list(SECTIONS)
    if stage != "report":
        function = getattr(import_module(STAGES[stage].removesuffix(".py").replace("/", ".")), stage)
        hints = typing.get_type_hints(function, globalns={**vars(params), **function.__globals__})
        sections = {field.annotation: name for name, field in params.Params.model_fields.items()}
        taken = [sections[hint] for hint in hints.values() if hint in sections]
    assert taken == DVC[stage].get("params", []), f"dvc.yaml: {stage} takes params: {taken}"
    command = f"report --out {layout.PAGE}" if stage == "report" else stage  # without --out, `vdmctl report` prints
    assert DVC[stage]["cmd"] == f"python -m flows.cli {command}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_the_flow_runs_the_graph_of_dvc() -> None:
    order = stage_names(Project(ROOT).repository)
    assert sorted(order) == sorted(DVC)
    producers = {out: stage for stage in DVC for out, _ in outputs(stage)}
    for position, stage in enumerate(order):
        assert {producers[dep] for dep in DVC[stage].get("deps", []) if dep in producers} <= set(order[:position])


def outputs(stage: str) -> Iterator[tuple[str, dict[str, bool]]]:
    """Yield the outputs of a stage in dvc.yaml, with their options."""
    for entry in DVC[stage].get("outs", []) + DVC[stage].get("metrics", []):
        yield from entry.items() if isinstance(entry, dict) else [(entry, {})]


def test_params_yaml_is_the_whole_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets/digits.yaml").read_text()


def test_the_pages_are_part_of_the_package() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for room, folder in (("report", "report"), ("app", "app/page")):
        files = {path.suffix for path in (ROOT / "flows" / folder).iterdir() if path.is_file()} - {".py"}
        assert files == {Path(pattern).suffix for pattern in packaged[f"flows.{room}"]}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("program", "heavy"),
    [
        (
            "from flows.cli import run; assert run(['--help']) == 0",
            "torch prefect great_expectations dvc numpy pandas rich",
        ),
        ("import flows.dossier.opening", "torch scipy prefect"),
        ("import flows.project.project", "torch prefect great_expectations dvc numpy"),
        ("import flows.api", "prefect great_expectations dvc pandas sklearn matplotlib torchvision PIL tqdm.auto"),
    ],
)
def test_little_is_loaded(program: str, heavy: str) -> None:
    program += f"; import sys; print(set({heavy.split()}) & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "set()"


def test_commands_in_the_documents_exist_and_the_readme_lists_all() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text()
        unknown = {f"vdmctl {name}" for name in re.findall(r"vdmctl ([a-z][a-z-]+)", text) if name not in commands}
        unknown |= {f"make {name}" for name in re.findall(r"`make ([a-z-]+)", text) if name not in targets}
        assert not unknown, f"{document.name}: {unknown}"
    readme = (ROOT / "README.md").read_text()
    assert [name for name in commands if not re.search(rf"^\| .*`[^`]*\b{name}\b", readme, re.MULTILINE)] == []
    for name, command in commands.items():
        for option in re.findall(rf"`vdmctl {name}[^`]*?(--[a-z-]+)", readme):
            assert any(option in parameter.opts for parameter in command.params), f"README.md: vdmctl {name} {option}"


def test_the_citation_is_that_of_the_package_and_of_the_paper() -> None:
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert project["name"] in citation["title"]
    assert (project["authors"], project["keywords"]) == (citation["authors"], citation["keywords"])
    (paper,) = citation["references"]
    bibtex = dict(re.findall(r"^  (\w+) = \{(.*)\}", (ROOT / "README.md").read_text(), re.MULTILINE))
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert bibtex["author"] == " and ".join(names)
    assert (bibtex["title"], bibtex["year"]) == (paper["title"], str(paper["year"]))
    assert project["urls"]["Paper"] == paper["url"]


def test_the_workflow_tests_each_python_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least, above = map(int, re.findall(r"3\.(\d+)", project["requires-python"]))
    versions = [f"3.{minor}" for minor in range(least, above)]
    stated = "\n".join(project["classifiers"])
    assert re.findall(r"Python :: (3\.\d+)", stated) == versions
    workflow = YAML(typ="safe").load(ROOT / ".github/workflows/test.yml")
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == versions
    commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert "make PYTHON=python${{ matrix.python }} test" in commands
    (release,) = re.findall(r"tests/soak/\w+\.py", str(commands))
    assert (ROOT / release).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_in_a_document_leads_to_a_file_and_a_heading(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", document.read_text())
    for target, _, anchor in ("".join(link).partition("#") for link in links if "://" not in "".join(link)):
        file = (document.parent / target).resolve() if target else document
        assert file.exists(), f"{document.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            named = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in named, f"{document.name}: {target}#{anchor}"


@pytest.mark.parametrize("path", [*CODE, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_name_in_backquotes_exists(path: Path) -> None:
    """`vdm.vlb.Terms` in a docstring, a comment or a document exists, and so does `vdm/vlb.py`."""
    text = path.read_text()
    for name in re.findall(r"`((?:vdm|flows)(?:\.\w+)+)", text):
        pkgutil.resolve_name(name)
    for file in re.findall(r"`((?:vdm|flows|tests|docs|presets|benchmarks)/[\w/]+\.\w+)`", text):
        assert "NAME" in file or (ROOT / file).is_file(), file


def test_every_name_in_the_notation_exists() -> None:
    code = "\n".join(path.read_text() for path in CODE)
    for name in re.findall(r"`(\w+)(?:\(t\))?`", (ROOT / "docs/notation.md").read_text()):
        assert re.search(rf"\b{name}\b", code), f"docs/notation.md: `{name}` is no name in vdm/ or flows/"


def test_one_module_prints() -> None:
    """The functions of one module escape output for a terminal.  Another one writes errors when these fail."""
    for path in ROOT.glob("flows/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "typer.echo"):
                allowed = {"flows/process/streams.py", "flows/process/ending.py"}
                assert str(path.relative_to(ROOT)) in allowed, f"{path}: {ast.unparse(node)}"


def defined(path: Path, tree: ast.Module, taken: set[tuple[str, str]]) -> Iterator[str]:
    """Yield the names of a file's functions and classes, and those of its variables that others import."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            names = [name.id for name in ast.walk(target) if isinstance(name, ast.Name)] if target else []
            yield from (name for name in names if (module, name) in taken)


@pytest.mark.parametrize("room", [*ROOMS])
def test_a_room_lists_its_files(room: str) -> None:
    folder = ROOT / "flows" / room
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    listed = {line.split()[0] for line in text.splitlines()[2:]}
    assert listed - {"page/", "containers/"} == {path.stem for path in folder.glob("*.py")} - {"__init__"}


def test_a_name_means_one_thing_in_all_rooms() -> None:
    """The doors have the names of what they call."""
    trees = {path: ast.parse(path.read_text()) for path in CODE}
    nodes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    taken = {(node.module or "", alias.name) for node in nodes for alias in node.names}
    rooms: dict[str, set[str]] = {}
    for path, tree in trees.items():
        place = path.relative_to(ROOT).parts
        room = place[0] if place[0] == "vdm" else place[1].removesuffix(".py")
        for name in defined(path, tree, taken) if room not in {"commands", *DOORS} else ():
            rooms.setdefault(name, set()).add(room)
    twice = {name: sorted(found) for name, found in rooms.items() if len(found) > 1 and name not in SHARED}
    assert not twice, f"rename one of each, or say in SHARED why it is the same: {twice}"
    assert all(len(rooms[name]) > 1 for name in SHARED)


def test_the_version_stands_in_one_place() -> None:
    """The citation and the changelog name that of pyproject.toml, from which the package's metadata is made."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} (" in (ROOT / "CHANGELOG.md").read_text()
