"""Canaries of what we use of lm-eval in private: each fails when its patch is taken out."""

import contextlib
import logging
import sys

import pytest
from lm_eval import evaluator
from lm_eval._cli import HarnessCLI
from lm_eval.tasks import TaskManager

from llmhalluc.eval import lm_eval_patches
from llmhalluc.eval.__main__ import main
from llmhalluc.eval.model import BacktrackLM
from llmhalluc.eval.runner import evaluate
from llmhalluc.extras.constant import LM_EVAL_TASKS
from llmhalluc.extras.errors import UserError
from tests import canaries
from tests.eval.models import save_sudoku_model, sudoku_config


def our_tasks_come_before_the_users(folder, monkeypatch):
    (folder / "run.yaml").write_text("include_path: more\n")
    seen = []
    monkeypatch.setattr(HarnessCLI, "execute", lambda self, arguments: seen.append(arguments.include_path))
    for given in ([], ["--include_path", "more"], ["--config", str(folder / "run.yaml")]):
        monkeypatch.setattr(sys, "argv", ["lm-eval", "--model", "hf", "--tasks", "sudoku", *given])
        lm_eval_patches.run_command_line(LM_EVAL_TASKS)
    assert seen == [[str(LM_EVAL_TASKS)], [str(LM_EVAL_TASKS), "more"], [str(LM_EVAL_TASKS), "more"]]


def traces_have_metrics_in_the_harness_own_results(folder, monkeypatch):
    model = save_sudoku_model(folder / "model")
    (folder / "run.yaml").write_text("use_cache: cache\nmodel: backtrack\n")
    with lm_eval_patches.metrics_beside_results(lambda lm, tasks, samples: {"sudoku": {"erasures_per_sample": 0.25}}):
        found = evaluator.simple_evaluate(
            BacktrackLM(str(model), device="cpu"), tasks=["sudoku"], limit=2, log_samples=False,
            task_manager=TaskManager(include_path=str(LM_EVAL_TASKS), include_defaults=False),
        )  # fmt: skip
    assert found["results"]["sudoku"]["erasures_per_sample,none"] == 0.25 and "samples" not in found


def a_task_is_read_with_its_includes_and_functions(folder, monkeypatch):
    (folder / "helpers.py").write_text("def keep(documents):\n    return documents\n")
    (folder / "base.yaml").write_text("test_split: test\nnum_fewshot: 3\n")
    (folder / "task.yaml").write_text(
        "include: base.yaml\ntask: toy\nnum_fewshot: 0\nprocess_docs: !function helpers.keep\n"
    )
    found = lm_eval_patches.task_config(folder / "task.yaml")
    assert found.pop("process_docs")([1]) == [1]
    assert found == {"task": "toy", "test_split": "test", "num_fewshot": 0}


def options_are_read_as_hflm_reads_them(folder, monkeypatch):
    read = lm_eval_patches.generation_options
    assert read({"until": "x", "max_gen_toks": 5, "temperature": 0.7, "do_sample": False}, 9) == {
        "until": ["x"], "max_new_tokens": 5, "temperature": 0.0, "do_sample": False,
    }  # fmt: skip
    assert read({"max_tokens": 6}, 9)["max_new_tokens"] == 6
    assert read({}, 9)["max_new_tokens"] == 9


def the_environment_is_left_alone(folder, monkeypatch):
    probed = []
    monkeypatch.setattr(evaluator, "add_env_info", probed.append)
    probe = evaluator.add_env_info
    evaluate(sudoku_config(save_sudoku_model(folder / "model"), folder / "out", task_options={"sudoku": {"count": 1}}))
    assert not probed and evaluator.add_env_info is probe


def a_loaded_model_is_no_reason_to_warn(folder, monkeypatch):
    records, handler = [], logging.Handler()
    handler.emit = records.append
    logging.getLogger("lm_eval").addHandler(handler)
    try:
        BacktrackLM(str(save_sudoku_model(folder / "model")), device="cpu")
    finally:
        logging.getLogger("lm_eval").removeHandler(handler)
    assert not [record for record in records if record.levelno >= logging.WARNING]


# Patch -> (its check, what stands in its place when it is taken out).
CANARIES = {
    "run_command_line": (our_tasks_come_before_the_users, lambda include_path: None),
    "metrics_beside_results": (
        traces_have_metrics_in_the_harness_own_results,
        lambda measure: contextlib.nullcontext(),
    ),
    "task_config": (a_task_is_read_with_its_includes_and_functions, lambda path: {}),
    "generation_options": (options_are_read_as_hflm_reads_them, lambda kwargs, max_new_tokens: kwargs),
    "no_environment_probe": (the_environment_is_left_alone, contextlib.nullcontext),
    "silent_model": (a_loaded_model_is_no_reason_to_warn, contextlib.nullcontext),
}


@pytest.mark.parametrize("given", [["--use_cache", "cache", "--model", "backtrack"], ["--config", "run.yaml"]])
def test_trap20_the_harness_cache_is_refused(given, tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text("use_cache: cache\nmodel: backtrack\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lm-eval", "run", "--tasks", "sudoku", *given])
    with pytest.raises(UserError, match="use_cache is cache"):
        lm_eval_patches.run_command_line(LM_EVAL_TASKS)


def test_the_command_line_prints_the_metrics_of_traces(tmp_path, monkeypatch, capsys):
    model = save_sudoku_model(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["lm-eval", "run", "--model", "backtrack", "--model_args", f"pretrained={model}",
                                      "--tasks", "sudoku", "--limit", "3", "--device", "cpu"])  # fmt: skip
    main()
    printed = capsys.readouterr().out
    for name in ("solved", "erasures_per_sample", "emitted_per_kept", "cut_off"):
        assert name in printed
    assert "backtrack_recall" in printed


def test_every_patch_has_a_canary():
    assert canaries.patches(lm_eval_patches) == CANARIES.keys()


@pytest.mark.parametrize("name", CANARIES)
def test_canary(name, tmp_path, monkeypatch):
    canaries.sings(lm_eval_patches, name, CANARIES[name][0], tmp_path, monkeypatch)


@pytest.mark.parametrize("name", CANARIES)
def test_canary_fails_without_its_patch(name, tmp_path, monkeypatch):
    check, instead = CANARIES[name]
    canaries.falls_silent(lm_eval_patches, name, instead, check, tmp_path, monkeypatch)
