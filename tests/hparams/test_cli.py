"""The command line as a user meets it: quick, one sentence a mistake, exit code 2, no traceback."""

import os
import subprocess
import sys
import time

import pytest

from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.hparams.parser import section_keys

SLOW = 5.0  # seconds; a loaded machine, and still less than importing torch and trl
MISTAKES = """\
model: {from_config: {model_type: llama}}
train: {learnig_rate: 1e-6, max_steps: many}
backtrack: {context: blok}
"""


def call(program: str, *words: str) -> tuple[int, str, str, set[str]]:
    """Exit code, stdout, stderr and the modules that were imported."""
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"llmhalluc.{program}", *words],
        capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | {"COLUMNS": "120"},
    )  # fmt: skip
    assert time.perf_counter() - started < SLOW
    lines = ran.stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    stderr = "\n".join(line for line in lines if not line.startswith("import time:"))
    assert "omegaconf" in modules and "Traceback" not in stderr
    assert not modules & {"torch", "transformers", "trl", "lm_eval", "datasets", "numpy"}
    return ran.returncode, ran.stdout, stderr, modules


@pytest.mark.parametrize("program", ["run_train", "run_eval", "run_exp"])
def test_help_is_quick(program):
    code, shown, errors, _ = call(program, "--help")
    assert (code, errors) == (0, "")
    assert shown.startswith(f"usage: python -m llmhalluc.{program} ")
    assert all(f"  model.{key} " in shown for key in section_keys("model"))


@pytest.mark.parametrize("program", ["run_train", "run_exp"])
def test_three_mistakes_are_three_sentences(tmp_path, program):
    (tmp_path / "bad.yaml").write_text(MISTAKES)
    code, shown, errors, _ = call(program, "--config", str(tmp_path / "bad.yaml"))
    assert (code, shown) == (2, "")
    assert errors.splitlines() == [
        "error: train.learnig_rate is no key; did you mean train.learning_rate?",
        "error: train.max_steps is 'many', expected int",
        "error: backtrack.context is 'blok', expected one of soft, block, rewind",
    ]


def test_a_missing_model_is_told_before_anything_is_loaded():
    code, _, errors, _ = call("run_eval", "model.name_or_path=./no/such/model", "eval.data_files.a=none.jsonl")
    assert code == 2
    assert errors.splitlines() == [
        "error: model.name_or_path is ./no/such/model, a folder that does not exist: correct the path",
        "error: eval.data_files.a is none.jsonl, a file that does not exist: correct the path",
    ]


def test_help_may_be_cut_short():
    command = f"{sys.executable} -m llmhalluc.run_train --help | head -1"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert ran.stdout.startswith("usage: ") and ran.stderr == ""
