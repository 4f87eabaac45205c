"""The figures of the house: no circles, few parameters, plain statements, tasks in one place, small imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmhalluc.extras.constant import PACKAGE, REPOSITORY

TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
MOST_PARAMETERS = 7
# Whose signatures are another library's, or published.
WIDE = {"generate", "backtrack_generate", "BacktrackRewardFunction.__call__"}
COMPOUND = (ast.FunctionDef, ast.ClassDef, ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
CLEVER = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.NamedExpr, ast.IfExp)
TASK_NAMES = ("sudoku", "countdown", "gsm8k")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.Module) -> set[str]:
    """Our own modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmhalluc"):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & {module_name(path) for path in TREES}


def test_imports_have_no_circle():
    graph = {module_name(path): imported(tree) - {module_name(path)} for path, tree in TREES.items()}
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"in a circle, or above one: {sorted(graph)}"


def functions(node: ast.AST, above: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """(qualified name, function) of every function below a node."""
    for child in ast.iter_child_nodes(node):
        name = above + (getattr(child, "name", None) or "")
        if isinstance(child, ast.FunctionDef):
            yield name, child
        yield from functions(child, f"{name}." if isinstance(child, ast.FunctionDef | ast.ClassDef) else above)


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_take_few_parameters(path):
    for name, function in functions(TREES[path]):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        count = sum(argument.arg not in ("self", "cls") for argument in arguments)
        assert count <= MOST_PARAMETERS or name in WIDE or name.split(".")[-1] in WIDE, f"{name} takes {count}"


def test_statements_are_plain():
    statements, dense = 0, []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt) and not isinstance(node, COMPOUND):
                statements += 1
                if sum(isinstance(inner, CLEVER) for inner in ast.walk(node)) >= 3:
                    dense.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert 1000 * len(dense) <= 1.5 * statements, dense


@pytest.mark.parametrize("path", TREES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tasks_are_named_in_their_own_room_alone(path):
    if path.relative_to(PACKAGE).parts[0] != "tasks":
        text = path.read_text(encoding="utf-8").lower()
        assert not [name for name in TASK_NAMES if name in text]


TRAIN = """
import sys, tempfile
from pathlib import Path
from tests.train.tiny_run import config
from llmhalluc.train.executors import executor_of
executor_of("sft")(config(Path(tempfile.mkdtemp()) / "run")).run()
paths = {Path(module.__file__) for name, module in list(sys.modules.items()) if name.startswith("llmhalluc.")}
print(*(path for path in paths if path.name != "__init__.py"), sep="\\n")
"""


def test_an_sft_run_imports_what_it_uses():
    ran = subprocess.run([sys.executable, "-c", TRAIN], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = [Path(line) for line in ran.stdout.splitlines() if line.startswith(str(PACKAGE))]
    assert len(paths) <= 34, sorted(map(str, paths))
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths) <= 4000
