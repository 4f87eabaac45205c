"""`python -m llmhalluc.eval`: the harness's own command line, with our model class and our tasks."""

import json
import sys

import pytest
from lm_eval.api.registry import get_model

from llmhalluc.eval import __main__ as program
from llmhalluc.eval.model import BacktrackLM
from llmhalluc.extras.constant import LM_EVAL_TASKS
from tests.eval.models import save_sudoku_model


def test_the_program_runs_the_harness_with_our_model_and_tasks(monkeypatch):
    seen = []
    monkeypatch.setattr(program, "run_command_line", seen.append)
    program.main()
    assert seen == [LM_EVAL_TASKS] and get_model("backtrack") is BacktrackLM


@pytest.mark.slow  # the harness reads its own 14,000 tasks
def test_the_harness_runs_our_model(monkeypatch, tmp_path):
    model = save_sudoku_model(tmp_path / "model")
    words = f"--model backtrack --model_args pretrained={model},max_new_tokens=20,backtrack_bias=2 --device cpu"
    words += f" --tasks sudoku --metadata sudoku_count=3 --batch_size 2 --output_path {tmp_path / 'out'} --log_samples"
    monkeypatch.setattr(sys, "argv", ["llmhalluc.eval", *words.split()])
    program.main()
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert results["n-samples"]["sudoku"] == {"original": 3, "effective": 3}
    assert results["config"]["traces"]["sudoku"]["emitted_per_kept"] >= 1.0
