"""The house keeps its promises about what its programs cost and need; test_repo.py holds the layers."""

import subprocess
import sys

import pytest

from llmhalluc.extras.constant import PACKAGE, REPOSITORY

RUNS = sorted(PACKAGE.glob("run_*.py"))
EVALUATION = ("models", "data", "decoding", "eval", "exp", "benchmark")


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
