"""The architecture, checked by machine."""

import ast
import re
import subprocess
import sys
import typing
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
DVC = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = list(DVC["stages"])

# Each layer may import those before it.
LAYERS = [
    {"choices", "errors", "schedule", "files", "memory"},
    {"diffusion"},
    {"discretization", "network"},
    {"vlb"},
    {"model", "batches", "training_log"},
    {"training", "evaluation", "sampling", "ode", "checkpoint"},
]

# Each room of flows/ may import itself and the rooms named here, besides vdm/.
ROOMS = {
    "core": set[str](),
    "process": {"core"},
    "images": {"core"},
    "validation": {"core", "process", "images"},
    "training": {"core", "process", "images"},
    "evaluation": {"core", "process", "images"},
    "stages": {"core", "process", "images", "validation", "training", "evaluation"},
    "registry": {"core", "process", "images", "evaluation"},
    "orchestration": {"core", "process", "registry"},
    "commands": {"core", "process", "images", "validation", "evaluation", "stages", "registry", "orchestration"},
}
DOORS = {"cli", "train_vdm"}
MOST_FILES = 15


def imported(path: Path, *, type_checking: bool = False) -> set[str]:
    """Names of the modules that a file imports, anywhere in it; not those under `if TYPE_CHECKING`."""
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

    Visitor().visit(ast.parse(path.read_text()))
    return names


def file_of(module: str) -> Path | None:
    """The file of a module of ours, relative to the root; None for a package or what is not a module of ours."""
    path = Path(*module.split(".")).with_suffix(".py")
    return path if module.startswith(("vdm.", "flows.")) and (ROOT / path).is_file() else None


def closure(path: Path) -> set[Path]:
    """A file and all of ours that it reaches by imports."""
    reached, pending = set(), [path]
    while pending:
        current = pending.pop()
        if current not in reached:
            reached.add(current)
            pending += [file for name in imported(ROOT / current) if (file := file_of(name))]
    return reached


@pytest.mark.parametrize("path", sorted((ROOT / "vdm").glob("*.py")), ids=lambda path: path.stem)
def test_the_paper_imports_nothing_of_the_plant(path: Path) -> None:
    allowed = {"torch", "torchvision", "numpy", "safetensors", "vdm", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imported(path, type_checking=True)} <= allowed


def test_dependencies_point_one_way() -> None:
    assert set.union(*LAYERS) | {"__init__"} == {path.stem for path in (ROOT / "vdm").glob("*.py")}
    below: set[str] = set()
    for layer in LAYERS:
        for module in layer:
            ours = {name.split(".")[1] for name in imported(ROOT / "vdm" / f"{module}.py") if name.startswith("vdm.")}
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
    """In the docstring of its `__init__.py`, which holds nothing else."""
    folder = ROOT / "flows" / room
    (statement,) = ast.parse((folder / "__init__.py").read_text()).body
    assert isinstance(statement, ast.Expr), "an __init__.py is a docstring"
    docstring = ast.literal_eval(statement.value)
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert set(re.findall(r"^ *(\w+)  ", docstring, re.MULTILINE)) == files


def test_no_folder_has_too_many_files() -> None:
    for folder in {path.parent for path in [*ROOT.glob("vdm/**/*.py"), *ROOT.glob("flows/**/*.py")]}:
        assert len(list(folder.glob("*.py"))) <= MOST_FILES + 3 * (folder.name == "vdm"), folder


def test_stages_know_neither_dvc_nor_prefect_nor_the_command_line() -> None:
    for stage in STAGES:
        for path in closure(Path("flows/stages", f"{stage}.py")):
            foreign = {name.split(".")[0] for name in imported(ROOT / path)} & {"dvc", "prefect", "typer", "ruamel"}
            assert not foreign, f"{path} imports {foreign}"
            assert not {name.rpartition(".")[0] for name in imported(ROOT / path)} & {"flows.commands"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_reaches(stage: str) -> None:
    declared = {Path(dep) for dep in DVC["stages"][stage]["deps"] if dep.endswith(".py")}
    assert declared == closure(Path("flows/stages", f"{stage}.py"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_sections_that_it_takes(stage: str) -> None:
    module = import_module(f"flows.stages.{stage}")
    taken = parameter_sections(module, stage)
    assert taken == DVC["stages"][stage].get("params", [])
    assert DVC["stages"][stage]["cmd"] == f"python -m flows.cli {stage}"


def parameter_sections(module: ModuleType, function: str) -> list[str]:
    """The sections of params.yaml among a stage's arguments, by their types."""
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


def outputs(stage: str) -> list[str]:
    entries = DVC["stages"][stage].get("outs", []) + DVC["stages"][stage].get("metrics", [])
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from flows.cli import run; code = run(['--help']);"
        "print(sorted({'torch', 'prefect', 'great_expectations', 'dvc', 'numpy', 'pandas'} & set(sys.modules)), code)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "[] 0"


def test_every_command_in_the_documents_exists() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "flows.cli", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text()
        for command in re.findall(r"vdmctl ([a-z][a-z-]+)", text):
            assert re.search(rf"│ {command} ", help_text), f"{document.name}: vdmctl {command}"
        for target in re.findall(r"`?make ([a-z]+)`?(?=[ `\n])", text):
            assert target in targets, f"{document.name}: make {target}"


def test_the_annotated_tree_has_a_line_for_every_room_and_every_module_of_the_paper() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in (ROOT / "vdm").glob("*.py"):
        if path.stem != "__init__":
            assert f"  {path.name} " in readme, f"README.md does not mention {path.name}"
    for name in [*(f"{room}/" for room in ROOMS), *(f"{door}.py" for door in DOORS)]:
        assert f"  {name} " in readme, f"README.md does not mention {name}"


@pytest.mark.parametrize("path", sorted([*ROOT.glob("vdm/**/*.py"), *ROOT.glob("flows/**/*.py")]), ids=lambda p: p.name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            last_argument = max(
                (arg.end_lineno or 0 for arg in ast.walk(node.args) if isinstance(arg, ast.arg)), default=0
            )
            body = (node.end_lineno or 0) - max(node.lineno, last_argument) - docstring.count("\n") - 1
            assert body <= 40, f"{path.name}: {node.name} has {body} lines"


# Who writes files without `vdm.files`, and why.
OTHER_WRITERS = {
    "flows/training/distributed.py": "a folder for a while, which torch's agent wants",
    "flows/images/fetching.py": "a download, which a later run goes on with",
    "flows/registry/git.py": "a lock",
    "flows/images/publishers.py": "files for a while",
    "flows/training/runs.py": "the training log, which grows while the run proceeds",
    "flows/orchestration/serve.py": "a lock",
    "flows/images/preparing.py": "files in a folder that takes its place when it is whole",
    "flows/orchestration/streaming.py": "what a command prints, in a run's worktree, read when it has succeeded",
    "flows/train_vdm.py": "a file in a run's worktree, committed when the run is done",
    "flows/orchestration/workspace.py": "a lock, and files in a worktree that goes when its run fails",
    "vdm/files.py": "for all others",
    "flows/images/store.py": "files in a folder that takes its place when it is whole",
}


def test_files_are_written_by_one_module() -> None:
    """A file that is written in place is half a file when the disk is full or the process dies."""
    paths = [*ROOT.glob("vdm/**/*.py"), *ROOT.glob("flows/**/*.py")]
    found = {str(path.relative_to(ROOT)): writes for path in paths if (writes := written_in_place(path))}
    assert {name: writes for name, writes in found.items() if name not in OTHER_WRITERS} == {}
    assert OTHER_WRITERS.keys() <= found.keys(), "an exception that none needs any more"


def written_in_place(path: Path) -> list[str]:
    """The calls in a file that write files, but into memory or into what `vdm.files` puts in its place."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    return [
        ast.unparse(call)
        for function in functions
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and writes(call) and not names(call) & safe_names(function)
    ]


def writes(call: ast.Call) -> bool:
    """Whether a call opens a file for writing, or writes or makes one."""
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
    """The names in a function of buffers, and of files and folders from `vdm.files`, with what is made from them."""
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


def test_one_function_prints() -> None:
    """What is printed is made harmless for a terminal there.  Messages on stderr have their places, too."""
    for path in ROOT.glob("flows/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "typer.echo"):
                place, on_stderr = str(path.relative_to(ROOT)), "file=sys.stderr" in ast.unparse(node)
                allowed = (
                    {"flows/process/ending.py", "flows/orchestration/serve.py"}
                    if on_stderr
                    else {"flows/process/streams.py"}
                )
                assert place in allowed, f"{place}: {ast.unparse(node)}"
