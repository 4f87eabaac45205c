"""The house keeps its promises about what its programs cost and need; test_repo.py holds the layers."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmhalluc.extras.constant import PACKAGE, REPOSITORY

RUNS = sorted(PACKAGE.glob("run_*.py"))
EVALUATION = ("models", "data", "decoding", "eval", "report", "exp", "benchmark")


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_run_modules_parse_call_and_exit(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.parametrize("module", ["llmhalluc.backtrack", *(f"llmhalluc.{path.stem}" for path in RUNS)])
def test_importing_costs_no_torch(module):
    slow = ("torch", "transformers", "trl", "lm_eval", "datasets")
    code = f"import sys, {module}; print([name for name in {slow} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert ran.stdout == "[]\n"


def test_evaluation_is_importable_where_trl_is_not_installed():
    paths = [path for room in EVALUATION for path in (PACKAGE / room).rglob("*.py") if path.stem != "__main__"]
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths]
    code = f"import sys; sys.modules['trl'] = None; import {', '.join(names)}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert ran.returncode == 0, ran.stderr


SEAMS = {"train/trl_patches.py", "models/transformers_patches.py", "eval/lm_eval_patches.py"}
LIBRARIES = ("transformers", "trl", "lm_eval")
# Helpers of the libraries that anybody can import, but that no document of theirs promises.
INTERNALS = {"trl.trainer.utils", "trl.trainer.grpo_trainer", "transformers.masking_utils", "lm_eval.models.utils"}
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_dynamo"}  # of named tuples; torch's
SUBCLASSES = ("train", "eval", "models", "benchmark")  # rooms with subclasses of the libraries' trainers and models
SHIPPED = "decoding/custom_generate/generate.py"  # goes into checkpoints, where nothing of ours can be imported


@functools.cache
def private_names() -> set[str]:
    """What the trainers and HFLM call `self._…` or define as `_…`: a subclass of ours must not use or replace it."""
    site = Path(importlib.util.find_spec("transformers").origin).parents[1]
    paths = [site / "transformers/trainer.py", site / "lm_eval/models/huggingface.py"]
    sources = [path.read_text(encoding="utf-8") for path in [*paths, *(site / "trl/trainer").glob("*_trainer.py")]]
    return set(re.findall(r"(?:self\.|def )(_[a-z]\w*)", "".join(sources)))


def intrusions(source: str, private: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of what a file uses of other libraries that is not public; `private`: what a subclass inherits."""
    own = set(re.findall(r"(?:self\.|def )(_[a-z]\w*)", source))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = {alias.name for alias in node.names} & {"unittest.mock", *INTERNALS}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            hidden = {name for name in names if name.startswith(LIBRARIES) and re.search(r"\._[a-z]", name)}
            found = hidden | names & {"unittest.mock", *INTERNALS}
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            ours = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found = {node.attr} & private if ours else {node.attr} - PUBLIC - own
        elif isinstance(node, ast.ClassDef):
            found = {method.name for method in node.body if isinstance(method, ast.FunctionDef)} & private
        elif isinstance(node, ast.Assign):
            found = {"forward"} & {getattr(target, "attr", "") for target in node.targets}
        else:
            continue
        for name in found:
            yield getattr(node, "lineno", 0), name


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_private_of_other_libraries_stands_in_the_seams(path):
    name = str(path.relative_to(PACKAGE))
    private = private_names() if name.split("/")[0] in SUBCLASSES else set()
    found = list(intrusions(path.read_text(encoding="utf-8"), private))
    assert not found or name in {*SEAMS, SHIPPED}, found


def test_the_seams_are_what_the_check_finds():
    for name in SEAMS:
        assert list(intrusions((PACKAGE / name).read_text(encoding="utf-8"), private_names())), name
