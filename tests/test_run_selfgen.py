"""run_selfgen as a program: quick help, mistakes as sentences, exit codes."""

import json
import sys

import pytest

from llmhalluc import run_selfgen
from llmhalluc.extras.errors import exit_code
from llmhalluc.hparams.yaml_files import to_yaml
from tests.hparams.test_cli import call
from tests.selfgen import noisy


def test_help_is_quick():
    code, shown, errors, _ = call("run_selfgen", "--help")
    assert (code, errors) == (0, "")
    assert shown.startswith("usage: python -m llmhalluc.run_selfgen ")
    assert "selfgen.samples" in shown and "selfgen.clean_share" in shown


def test_mistakes_are_sentences():
    code, _, errors, _ = call(
        "run_selfgen", "selfgen.locater=value", "selfgen.clean_share=1", "model.name_or_path=./no/such/model"
    )
    assert code == 2
    assert sorted(errors.splitlines(), reverse=True) == [
        "error: selfgen.locater is no key; did you mean selfgen.locator?",
        "error: selfgen.clean_share is 1, expected a number in [0, 1)",
        "error: model.name_or_path is ./no/such/model, a folder that does not exist: correct the path",
    ]


def test_a_yaml_of_all_sections_runs_and_runs_again(tmp_path, monkeypatch, capsys):
    """As the steps of an experiment call it."""
    raw = noisy.raw(noisy.save(tmp_path / "model"), tmp_path / "out", selfgen__samples=2)
    raw |= {"backtrack": {"context": "block"}, "reward": {}, "exp": {"arms": {"a": {}}}, "eval": {"tasks": ["sudoku"]}}
    (tmp_path / "selfgen.yaml").write_text(to_yaml(raw))
    monkeypatch.setattr(sys, "argv", ["run_selfgen", "--config", str(tmp_path / "selfgen.yaml")])
    for _ in range(2):
        assert exit_code(run_selfgen.main) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0].startswith("samples 24, ")
        assert shown[1] == f"{tmp_path / 'out'} holds traces.jsonl, selfgen.json, samples.jsonl and rejections.jsonl"
    assert json.loads((tmp_path / "out" / "selfgen.json").read_text())["counts"]["samples"] == 24


def test_a_refusal_is_exit_code_2(tmp_path, monkeypatch, capsys):
    raw = noisy.raw(noisy.save(tmp_path / "model"), tmp_path / "out", selfgen__temperature=0.0)
    (tmp_path / "selfgen.yaml").write_text(to_yaml(raw))
    monkeypatch.setattr(sys, "argv", ["run_selfgen", "--config", str(tmp_path / "selfgen.yaml")])
    assert exit_code(run_selfgen.main) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: selfgen.temperature is 0 and selfgen.samples is 6")
    )


@pytest.mark.parametrize("key", ["selfgen.samples=0", "selfgen.value_threshold=1", "selfgen.rollouts=0"])
def test_numbers_out_of_range_are_refused(key):
    code, _, errors, _ = call("run_selfgen", key, "model.name_or_path=a/b")
    assert code == 2 and key.partition("=")[0] in errors
