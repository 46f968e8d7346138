"""Check the architecture: imports, stages, dependencies, documents, sizes, and who writes files."""

import ast
import pkgutil
import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Mapping, Set
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import pytest
import typer
from project import ROOT
from ruamel.yaml import YAML

from flows.commands.reporting import SECTIONS
from flows.commands.vdmctl import app
from flows.core import layout

DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = list(DVC["stages"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CODE = sorted([*ROOT.glob("vdm/**/*.py"), *ROOT.glob("flows/**/*.py")])
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "data/README.md", *sorted(ROOT.glob("docs/*.md"))]

# Each layer may import those before it.
LAYERS = [
    {"choices", "errors"},
    {"schedule"},
    {"diffusion"},
    {"discretization", "network"},
    {"vlb"},
    {"model", "training.batches", "training.log", "training.processes", "training.settings"},
    {"evaluation", "sampling", "ode", "codec", "training.optimizer"},
    {"training.validation"},
    {"training.trainer"},
]

# Each room of flows/ may import itself and the rooms named here, besides vdm/.
ROOMS = {
    "core": set[str](),
    "process": {"core"},
    "images": {"core", "process"},
    "validation": {"core", "process", "images"},
    "training": {"core", "process", "images"},
    "evaluation": {"core", "process", "images", "training"},
    "compression": {"core", "process", "images", "evaluation"},
    "sampling": {"core", "process", "images", "training"},
    "quality": {"core", "process", "images", "evaluation"},
    "report": {"core", "images", "validation", "evaluation"},
    "stages": {"core", "process", "images", "validation", "training", "evaluation", "sampling", "quality", "report"},
    "registry": {"core", "process", "images", "validation", "evaluation"},
    # Prefect's UI shows what the report shows.
    "orchestration": {"core", "process", "validation", "evaluation", "report", "registry"},
    "commands": {
        "core",
        "process",
        "images",
        "validation",
        "training",
        "evaluation",
        "compression",
        "sampling",
        "report",
        "stages",
        "registry",
        "orchestration",
    },
}
DOORS = {"cli", "train_vdm"}
MOST_FILES = 15


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


@cache
def imported(path: Path, *, type_checking: bool = False) -> set[str]:
    """Return the modules that a file imports, anywhere in it; those under `if TYPE_CHECKING` only if asked."""
    names: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if type_checking or ast.unparse(node.test) != "TYPE_CHECKING":
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            names.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, "imports are absolute"
            assert node.module
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)

    Visitor().visit(parsed(path))
    return names


def file_of(module: str) -> Path | None:
    """Return the file of a module of this project, relative to the root; None for packages and other modules."""
    path = Path(*module.split(".")).with_suffix(".py")
    return path if module.startswith(("vdm.", "flows.")) and (ROOT / path).is_file() else None


def closure(path: Path) -> set[Path]:
    """Return a file and all files of this project that it reaches by imports."""
    reached, pending = set(), [path]
    while pending:
        current = pending.pop()
        if current not in reached:
            reached.add(current)
            pending += [file for name in imported(ROOT / current) if (file := file_of(name))]
    return reached


# Distributions of the `test` extra that nothing imports, and what they are for.
TOOLS = {
    "mypy": "make check",
    "pre-commit": "the checks before every commit",
    "pytest-timeout": "a plugin of pytest: `timeout` in pyproject.toml",
    "pytest-xdist": "a plugin of pytest: --numprocesses in the Makefile",
    "ruff": "make check",
}
# What benchmarks/peer.py imports of a checkout of the peer, and of the peer's requirements.
PEER = {"utils", "vdm_unet", "ema_pytorch"}


def test_the_dependencies_are_what_the_code_imports() -> None:
    declared = {distribution(line) for line in PROJECT["dependencies"]}
    extras = {name: {distribution(line) for line in lines} for name, lines in PROJECT["optional-dependencies"].items()}
    extra = extras.pop("test")
    assert distributions(CODE) == declared.union(*extras.values()), "pyproject.toml: dependencies and extras"

    checks = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    own = {path.stem for path in checks} | {"benchmarks"} | PEER
    assert distributions(checks, own) - declared == extra - TOOLS.keys(), "pyproject.toml: the test extra"
    assert TOOLS.keys() <= extra


def test_the_lock_holds_a_plain_version_of_every_dependency() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    assert lines == sorted(lines, key=str.upper)
    declared = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    locked = {distribution(line) for line in lines}
    assert len(locked) == len(lines)
    assert {distribution(line) for line in declared} <= locked
    assert not locked & {"pip", "setuptools", "vdm-pipeline"}


def distributions(paths: list[Path], own: Set[str] = frozenset()) -> set[str]:
    """Return the distributions that files import, except the standard library, this project and the names in `own`."""
    names = {name.split(".")[0] for path in paths for name in imported(path)}
    of_import = packages_distributions()
    foreign = names - sys.stdlib_module_names - {"vdm", "flows"} - own
    # `ruamel` is in two, of which one is a part of the other in C.
    return {distribution(min(of_import.get(name, [name]), key=len)) for name in foreign}


@cache
def packages_distributions() -> Mapping[str, list[str]]:
    """Return the distributions of every package that can be imported, for which each distribution's files are read."""
    return metadata.packages_distributions()


def test_every_dependency_takes_each_version_of_python_that_the_project_takes() -> None:
    (first_refused,) = re.findall(r"<3\.(\d+)", PROJECT["requires-python"])
    for line in PROJECT["dependencies"]:
        taken = metadata.metadata(distribution(line)).get("Requires-Python", "")
        assert all(int(first_refused) <= int(minor) for minor in re.findall(r"<3\.(\d+)", taken)), f"{line}: {taken}"


def distribution(requirement: str) -> str:
    """Return the normalised name of a distribution in a line such as `ruamel.yaml[oldlibyaml]>=0.19`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0]).lower()


PAPER = {".".join(path.relative_to(ROOT / "vdm").with_suffix("").parts): path for path in ROOT.glob("vdm/**/*.py")}


@pytest.mark.parametrize("path", PAPER.values(), ids=PAPER)
def test_the_paper_imports_nothing_of_the_plant(path: Path) -> None:
    allowed = {"torch", "numpy", "vdm", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported(path, type_checking=True)} <= allowed


def test_dependencies_point_one_way() -> None:
    assert set.union(*LAYERS) | {"__init__", "training.__init__"} == PAPER.keys()
    below: set[str] = set()
    for layer in LAYERS:
        for module in layer:
            ours = PAPER.keys() & {name.removeprefix("vdm.") for name in imported(PAPER[module])}
            assert ours <= below, f"vdm/{module}.py imports {ours - below}"
        below |= layer


def test_a_room_imports_only_the_rooms_below_it() -> None:
    assert {path.name for path in (ROOT / "flows").iterdir() if (path / "__init__.py").is_file()} == set(ROOMS)
    assert {path.stem for path in (ROOT / "flows").glob("*.py")} == DOORS | {"__init__"}
    for room, below in ROOMS.items():
        for path in (ROOT / "flows" / room).glob("*.py"):
            found = {name.split(".")[1] for name in imported(path, type_checking=True) if name.startswith("flows.")}
            assert found <= below | {room}, f"{path.relative_to(ROOT)} imports {found - below - {room}}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_names_its_files(room: str) -> None:
    """The docstring of its `__init__.py` lists the names, and that file contains nothing else."""
    folder = ROOT / "flows" / room
    (statement,) = parsed(folder / "__init__.py").body
    assert isinstance(statement, ast.Expr), "an __init__.py is a docstring"
    docstring = ast.literal_eval(statement.value)
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert set(re.findall(r"^ *(\w+)  ", docstring, re.MULTILINE)) == files


def test_no_folder_has_too_many_files() -> None:
    for folder in {path.parent for path in CODE}:
        assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder


def test_stages_know_neither_dvc_nor_prefect_nor_the_command_line() -> None:
    for stage in STAGES:
        for path in closure(Path("flows/stages", f"{stage}.py")):
            foreign = {name.split(".")[0] for name in imported(ROOT / path)} & {"dvc", "prefect", "typer", "ruamel"}
            assert not foreign, f"{path} imports {foreign}"
            assert not {name.rpartition(".")[0] for name in imported(ROOT / path)} & {"flows.commands"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_reaches(stage: str) -> None:
    declared = {Path(dep) for dep in DVC["stages"][stage]["deps"] if dep.endswith(".py")}
    reached = closure(Path("flows/stages", f"{stage}.py"))
    missing = "".join(f"    - {path}\n" for path in sorted(reached - declared))
    assert declared <= reached, f"dvc.yaml: {stage} does not reach {sorted(map(str, declared - reached))}"
    assert not missing, f"dvc.yaml: deps that {stage} lacks:\n{missing}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_sections_that_it_takes(stage: str) -> None:
    module = import_module(f"flows.stages.{stage}")
    taken = list(SECTIONS) if stage == "report" else parameter_sections(module, stage)
    assert taken == DVC["stages"][stage].get("params", []), f"dvc.yaml: {stage} takes params: {taken}"
    # Without --out, `vdmctl report` prints.
    command = {"report": f"report --out {layout.PAGE}"}.get(stage, stage)
    assert DVC["stages"][stage]["cmd"] == f"python -m flows.cli {command}"


def test_the_templates_are_dependencies_of_the_report_and_part_of_the_package() -> None:
    files = {path for path in (ROOT / "flows/report").iterdir() if path.is_file() and path.suffix != ".py"}
    deps = {ROOT / dep for dep in DVC["stages"]["report"]["deps"]}
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert files == {path for pattern in packaged["flows.report"] for path in (ROOT / "flows/report").glob(pattern)}
    # The page that compares two models is not the stage's.
    assert files - deps == {ROOT / "flows/report/comparison.html"}


def parameter_sections(module: ModuleType, function: str) -> list[str]:
    """Return the sections of params.yaml that a stage takes, found by the types of its arguments."""
    from flows.core import params

    namespace = {**vars(params), **vars(module)}
    hints = typing.get_type_hints(getattr(module, function), globalns=namespace)
    sections = {field.annotation: name for name, field in params.Params.model_fields.items()}
    return [sections[hint] for hint in hints.values() if hint in sections]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_flow_runs_the_graph_of_dvc() -> None:
    from flows.train_vdm import stages

    order = stages(ROOT)
    assert sorted(order) == sorted(STAGES)
    producers = {out: name for name in STAGES for out in outputs(name)}
    for position, name in enumerate(order):
        needed = {producers[dep] for dep in DVC["stages"][name].get("deps", []) if dep in producers}
        assert needed <= set(order[:position])


def test_the_layout_knows_which_outputs_are_in_git() -> None:
    """Another clone takes these from the commit, and looks for all others in the cache and the DVC remote."""
    entries = [
        entry for stage in DVC["stages"].values() for kind in ("outs", "metrics") for entry in stage.get(kind, [])
    ]
    in_git = {name for entry in entries if isinstance(entry, dict) for name, how in entry.items() if "cache" in how}
    assert in_git == set(map(str, layout.IN_GIT)), "flows.core.layout.IN_GIT lists what has `cache: false` in dvc.yaml"


def outputs(stage: str) -> list[str]:
    entries = DVC["stages"][stage].get("outs", []) + DVC["stages"][stage].get("metrics", [])
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


@pytest.mark.processes
def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from flows.cli import run; code = run(['--help']);"
        "heavy = {'torch', 'prefect', 'great_expectations', 'dvc', 'numpy', 'pandas', 'rich'};"
        "print(sorted(heavy & set(sys.modules)), code)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "[] 0"


def test_help_fits_narrow_terminals() -> None:
    """The lines of a docstring are those of the code, and a terminal has others."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert not re.search(r"\S\n\S", command.help), name


@pytest.mark.processes
def test_the_report_loads_no_torch() -> None:
    program = "import sys, flows.commands.reporting; print({'torch', 'scipy', 'prefect'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout == "set()\n"


def test_every_command_in_the_documents_exists() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        text = document.read_text()
        for command in re.findall(r"vdmctl ([a-z][a-z-]+)", text):
            assert command in commands, f"{document.name}: vdmctl {command}"
        for target in re.findall(r"`?make ([a-z-]+)`?(?=[ `\n])", text):
            assert target in targets, f"{document.name}: make {target}"


@pytest.mark.parametrize("path", [*CODE, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_reference_to_code_resolves(path: Path) -> None:
    """`vdm.vlb.Terms` in a docstring, a comment or a document exists, and so do `vdm/vlb.py` and `test_vlb`."""
    text = path.read_text()
    for name in re.findall(r"`((?:vdm|flows)(?:\.\w+)+)", text):
        assert resolves(name), f"{path.name}: `{name}` does not exist"
    for file in re.findall(r"`((?:vdm|flows|tests|docs|presets|benchmarks)/[\w/]+\.\w+)`", text):
        assert "NAME" in file or (ROOT / file).is_file(), file
    for name in re.findall(r"`(test_\w+)`", text):
        assert list(ROOT.glob(f"tests/*/{name}.py")), name


def resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_every_name_in_the_notation_exists() -> None:
    code = "\n".join(path.read_text() for path in CODE)
    for name in re.findall(r"`(\w+)(?:\(t\))?`", (ROOT / "docs/notation.md").read_text()):
        assert re.search(rf"\b{name}\b", code), f"docs/notation.md: `{name}` is no name in vdm/ or flows/"


def test_the_annotated_tree_has_a_line_for_every_room_and_every_module_of_the_paper() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in PAPER.values():
        if path.stem != "__init__":
            assert f"  {path.name} " in readme, f"README.md does not mention {path.name}"
    for name in [*(f"{room}/" for room in ROOMS), *(f"{door}.py" for door in DOORS)]:
        assert f"  {name} " in readme, f"README.md does not mention {name}"


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= 300, f"{path.name} has {lines} lines; move a part of it to another file of its folder"
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            last_argument = max(
                (arg.end_lineno or 0 for arg in ast.walk(node.args) if isinstance(arg, ast.arg)), default=0
            )
            body = (node.end_lineno or 0) - max(node.lineno, last_argument) - docstring.count("\n") - 1
            assert body <= 30, f"{path.name}: {node.name} has {body} lines"


# Modules that write files without `flows.core.files`, and what they write.
OTHER_WRITERS = {
    "flows/training/distributed.py": "a temporary folder for torch's agent",
    "flows/images/fetching.py": "a download, which a later run continues",
    "flows/process/locks.py": "locks",
    "flows/registry/git.py": "the output of git, in a temporary file",
    "flows/images/publishers.py": "temporary files",
    "flows/training/runs.py": "the training log, which grows while the run proceeds",
    "flows/images/preparing.py": "files in a folder that is moved to its place when it is complete",
    "flows/orchestration/streaming.py": "the output of a command, in a run's worktree, read after it has succeeded",
    "flows/train_vdm.py": "a file in a run's worktree, committed at the end of the run",
    "flows/orchestration/workspace.py": "files in a worktree that is removed if its run fails",
    "flows/core/files.py": "all other files",
    "flows/core/folders.py": "locks",
    "flows/images/store.py": "files in a folder that is moved to its place when it is complete",
}


def test_files_are_written_by_one_module() -> None:
    """A file that is written in place is incomplete if the disk is full or the process dies."""
    found = {str(path.relative_to(ROOT)): writes for path in CODE if (writes := written_in_place(path))}
    assert {name: writes for name, writes in found.items() if name not in OTHER_WRITERS} == {}
    assert OTHER_WRITERS.keys() <= found.keys(), "an exception is no longer needed"


def written_in_place(path: Path) -> list[str]:
    """Return the calls that write files, except to memory and to files that `flows.core.files` moves to their place."""
    functions = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef)]
    return [
        ast.unparse(call)
        for function in functions
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and writes(call) and not names(call) & safe_names(function)
    ]


def writes(call: ast.Call) -> bool:
    """Whether a call opens a file for writing, writes one or creates one."""
    name = ast.unparse(call.func)
    texts = {node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    modes = {text for text in texts if re.fullmatch(r"[rwaxbt+]{1,3}([:|]\w*)?", text) and re.search("[wax+]", text)}
    if "os.devnull" in ast.unparse(call):
        return False
    match name.rpartition(".")[2]:
        case "open" if name == "os.open":
            return bool(re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)", ast.unparse(call)))
        case "open" | "fdopen" | "ZipFile" | "memmap" | "open_memmap":
            return bool(modes)
        case "write_text" | "write_bytes" | "touch" | "symlink_to" | "hardlink_to" | "tofile" | "savetxt" | "savez":
            return True
        case "copyfile" | "copytree" | "copy2" | "move" | "savefig" | "save_image" | "save_file" | "dump":
            return True
        case "mkdtemp" | "mkstemp" | "TemporaryDirectory" | "NamedTemporaryFile" | "TemporaryFile":
            return True
    return name in ("np.save", "torch.save", "shutil.copy")


def names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def safe_names(function: ast.FunctionDef) -> set[str]:
    """Return the names in a function of buffers, of what `flows.core.files` opens, and of values made from them."""
    safe: set[str] = set()
    known = -1
    while len(safe) > known:
        known = len(safe)
        for node in ast.walk(function):
            pairs = [(node.targets[0], node.value)] if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.With):
                pairs = [(item.optional_vars, item.context_expr) for item in node.items if item.optional_vars]
            for target, value in pairs:
                source = re.search(r"\b(BytesIO|StringIO|writing|writing_folder|scratch_folder)\(", ast.unparse(value))
                if source or names(value) & safe:
                    safe |= names(target)
    return safe


def test_one_module_prints() -> None:
    """The functions of one module escape output for a terminal.  Another one writes errors when these fail."""
    for path in ROOT.glob("flows/**/*.py"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "typer.echo"):
                place, on_stderr = str(path.relative_to(ROOT)), "file=sys.stderr" in ast.unparse(node)
                allowed = {"flows/process/streams.py"} | ({"flows/process/ending.py"} if on_stderr else set())
                assert place in allowed, f"{place}: {ast.unparse(node)}"
