"""The repository holds together: dependencies, imports, scripts, and nothing of one machine in any file."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llmhalluc.extras.constant import PACKAGE, REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
PINS = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1]
    for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").split("\n")
    if line and not line.startswith("#")
}
SCRIPTS = [REPOSITORY / ".ci/run", *sorted(REPOSITORY.glob("scripts/**/*.sh"))]
MODULES = sorted(PACKAGE.rglob("*.py"))
# Imports run from a higher number to a lower one, or stay within a room.
LEVELS = {
    "backtrack": 1, "extras": 1, "prompts": 2, "tasks": 3, "hparams": 4, "models": 5, "data": 5, "reward": 5,
    "decoding": 6, "selfgen": 7, "search": 7, "verify": 8, "train": 9, "eval": 9, "chat": 9, "report": 9,
    "interp": 10, "exp": 10, "benchmark": 11,
}  # fmt: skip
LIGHT = ("backtrack", "extras", "hparams", "prompts", "tasks")


def room(parts: tuple[str, ...] | list[str]) -> str:
    """The first name below llmhalluc: `("data", "base.py")` -> `data`."""
    return parts[0].removesuffix(".py") if parts else ""


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "llmhalluc" else {str(node.module)}
    return found


def requirements(extra: str) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in EXTRAS[extra]}


def test_constraints_hold_nothing_but_exact_versions():
    for name, version in PINS.items():
        assert re.fullmatch(r"\d[\w.]*", version), f"{name}=={version}"


@pytest.mark.parametrize("text", sorted({text for texts in EXTRAS.values() for text in texts}))
def test_constraints_satisfy_each_requirement(text):
    requirement = Requirement(text)
    if requirement.name != "llmhalluc":
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_constraints_cover_what_the_requirements_require():
    seen, queue = set(), [_name_and_extras(text) for texts in EXTRAS.values() for text in texts]
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen or name == "llmhalluc":
            continue
        seen.add((name, extras))
        assert name in PINS
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        for text in required:
            marker = Requirement(text).marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                queue.append(_name_and_extras(text))


def test_the_lock_covers_every_extra():
    recipe = (REPOSITORY / "Makefile").read_text(encoding="utf-8").partition("\nlock:")[2].partition("\n\n")[0]
    locked = {extra for extras in re.findall(r"'\.\[([\w,]+)\]'", recipe) for extra in extras.split(",")}
    aliases = {extra for extra, texts in EXTRAS.items() if all(text.startswith("llmhalluc[") for text in texts)}
    assert locked == EXTRAS.keys() - aliases - {""}


def _name_and_extras(text: str) -> tuple[str, tuple[str, ...]]:
    return canonicalize_name(Requirement(text).name), tuple(sorted(Requirement(text).extras))


def test_every_import_is_a_declared_dependency(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    providers = importlib.metadata.packages_distributions()
    runtime = set().union(*map(requirements, ("", "train", "eval", "benchmark", "interp")))
    for path in [*MODULES, *(path for top in ("configs", "tests", "benchmarks") for path in Path(top).rglob("*.py"))]:
        declared = runtime | requirements("dev") if path.parts[0] in ("tests", "benchmarks") else runtime
        for name in {module.split(".")[0] for module in imports(path)}:
            if name not in sys.stdlib_module_names and name not in ("llmhalluc", "tests"):
                assert {canonicalize_name(d) for d in providers.get(name, [])} & declared, f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = room(path.relative_to(PACKAGE).parts)
    for module in imports(path):
        there = room(module.split(".")[1:])
        if module.split(".")[0] == "llmhalluc" and there != here:
            assert LEVELS[there] < LEVELS.get(here, 12), f"{here} imports {module}"


def test_evaluation_never_imports_trl():
    for path in MODULES:
        if room(path.relative_to(PACKAGE).parts) in (
            "models",
            "data",
            "decoding",
            "eval",
            "report",
            "exp",
            "benchmark",
        ):
            assert not {module for module in imports(path) if module.split(".")[0] == "trl"}, path


def test_light_modules_import_no_torch():
    light = [path for path in MODULES if room(path.relative_to(PACKAGE).parts).startswith((*LIGHT, "run_"))]
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in light]
    code = f"import sys, {', '.join(names)}; print(*{{'torch', 'transformers', 'trl'}} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.stdout, found.returncode) == ("\n", 0), found.stderr


@pytest.mark.parametrize(("word", "count"), [("law", 8), ("trap", 12)])
def test_laws_and_traps_have_tests_of_their_number(word, count):
    sources = "".join(path.read_text(encoding="utf-8") for path in REPOSITORY.glob("tests/**/test_*.py"))
    named = set(map(int, re.findall(rf"_{word}(\d+)(?=[_(])", " ".join(re.findall(r"def test_\w+\(", sources)))))
    assert set(range(1, count + 1)) <= named


def test_an_installed_package_carries_what_lies_beside_its_code():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["llmhalluc"]
    beside = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert beside == {path for pattern in patterns for path in PACKAGE.glob(pattern)}


def test_packages_do_nothing_when_imported():
    filled = [path for path in MODULES if path.name == "__init__.py" and path.read_text(encoding="utf-8")]
    assert filled == [PACKAGE / "tasks" / "__init__.py"]


def test_the_registry_of_tasks_loads_no_task():
    code = "import sys, llmhalluc.tasks; print(*sorted(name for name in sys.modules if 'llmhalluc.' in name))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == {"llmhalluc.tasks", "llmhalluc.tasks.base"}


def test_nothing_outside_tasks_names_a_task():
    for path in MODULES:
        if room(path.relative_to(PACKAGE).parts) not in ("tasks", "exp"):
            assert not re.search("sudoku|countdown|gsm8k", path.read_text(encoding="utf-8"), re.IGNORECASE), path


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script):
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_no_file_names_a_path_of_one_machine():
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    machine = re.compile(r"(?<![\w./~-])/(work|root|home|Users|opt|mnt|scratch)/\w")
    for path in filter(Path.is_file, (REPOSITORY / name for name in found.stdout.split("\0") if name)):
        assert not (hit := machine.search(path.read_bytes().decode("utf-8", "ignore"))), f"{path}: {hit}"


def _tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def _left(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("script", "kept", "removed"),
    [
        (
            "clean_pycache.sh",
            {"a/m.py", ".venv/lib/__pycache__/m.pyc", "outputs/x/__pycache__/m.pyc", ".hypothesis.md"},
            {"a/__pycache__/m.pyc", ".pytest_cache/v", "b/c/.ruff_cache/0", ".mypy_cache/m", ".hypothesis/e"},
        ),
        (
            "clean_logs.sh",
            {"outputs/log/model.safetensors", "outputs/a/results.json", "outputs/a/catalog.txt",
             "log.txt", "runs/model.safetensors", "data/events.out.tfevents.1", "wandb/model.safetensors",
             "wandb/log.txt"},
            {"outputs/log.txt", "outputs/a b/cells/c/log.txt", "outputs/a/log-2.txt",
             "outputs/wandb/1/r.wandb", "outputs/a/runs/events.out.tfevents.1", "runs/events.out.tfevents.2"},
        ),
    ],
)  # fmt: skip
def test_cleaning_removes_logs_and_caches_alone(tmp_path, script, kept, removed):
    _tree(tmp_path, *kept, *removed)
    command = [REPOSITORY / "scripts/sys" / script]
    dry = subprocess.run([*command, "--dry-run", tmp_path], check=True, capture_output=True, text=True)
    assert _left(tmp_path) == kept | removed
    assert dry.stdout.count("would remove") >= 1
    subprocess.run([*command, tmp_path], check=True)
    assert _left(tmp_path) == kept
