"""`evaluate` end to end on a tiny saved model: what it writes, how it goes on, what it refuses."""

import json
import socket
import subprocess
import sys

import pytest

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.eval import journal as journal_module
from llmhalluc.eval.runner import evaluate
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.tasks.sudoku.text import answer_text
from tests.eval.models import save_sudoku_model, sudoku_config
from tests.eval.test_tasks import write

VARIANTS = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "backtrack_bias": 2.0}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_sudoku_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A finished evaluation: its folder and what `evaluate` returned."""
    folder = tmp_path_factory.mktemp("finished") / "eval"
    return folder, evaluate(sudoku_config(model, folder, variants=VARIANTS))


def samples(folder, variant="sampled", task="sudoku"):
    return [json.loads(line) for line in (folder / f"samples_{variant}_{task}.jsonl").open()]


def test_results_and_samples_agree_with_each_other(finished, model):
    folder, returned = finished
    written = json.loads((folder / "results.json").read_text())
    assert written == json.loads(json.dumps(returned)) and written["environment"]["packages"]["lm_eval"]
    assert written["results"].keys() == VARIANTS.keys()
    assert written["decoding"]["sampled"]["sudoku"]["temperature"] == 1.0
    for variant in VARIANTS:
        found, metrics = samples(folder, variant), written["results"][variant]["sudoku"]
        assert [sample["doc_id"] for sample in found] == list(range(6)) and metrics["n"] == 6
        assert metrics["accuracy"] == metrics["solved"] == sum(sample["correct"] for sample in found) / 6
        assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
        assert metrics["erasures_per_sample"] == sum(sample["erasures"] for sample in found) / 6
        kept = sum(sample["kept"] for sample in found)
        assert metrics["emitted_per_kept"] == pytest.approx(sum(sample["emitted"] for sample in found) / kept)
        assert metrics["truncated_prompts"] == 0


def test_law6_samples_hold_the_trace_as_ids_and_the_surviving_text(finished, model):
    folder, _ = finished
    backtrack_id = json.loads((model / "config.json").read_text())["backtrack"]["token_id"]
    found = samples(folder)
    assert sum(sample["erasures"] for sample in found) > 0
    for sample in found:
        assert sample["emitted"] == len(sample["completion_ids"])
        assert sample["kept"] == len(apply_backtracking(sample["completion_ids"], backtrack_id))
        assert sample["target"] == answer_text(sample["doc"]["puzzle"], sample["doc"]["solution"])
        assert "BACKTRACK" not in sample["text"]


def test_the_same_evaluation_again_decodes_nothing(finished, model, monkeypatch):
    folder, returned = finished
    monkeypatch.setattr(journal_module.Journal, "add", lambda *_: pytest.fail("decoded again"))
    config = sudoku_config(model, folder, variants=VARIANTS)
    assert evaluate(config)["results"] == returned["results"]


KILLED = """
import os, signal, sys
from llmhalluc.eval.journal import Journal
from llmhalluc.eval.runner import evaluate
from tests.eval.models import sudoku_config
from tests.eval.test_runner import VARIANTS

left, add = [8], Journal.add  # into the second variant
def add_or_die(self, key, trace):
    add(self, key, trace)
    left[0] -= 1
    if not left[0]:
        self._file.write('{"key": "torn')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
Journal.add = add_or_die
evaluate(sudoku_config(sys.argv[1], sys.argv[2], variants=VARIANTS))
"""
WITHOUT_TRL = """
import sys
from llmhalluc.eval.runner import evaluate
from tests.eval.models import sudoku_config

evaluate(sudoku_config(sys.argv[1], sys.argv[2], task_options={"sudoku": {"count": 1}}))
sys.exit("trl" in sys.modules)
"""


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)


def test_a_killed_evaluation_goes_on_and_ends_the_same(finished, model, tmp_path):
    folder = tmp_path / "eval"
    assert run(KILLED, model, folder).returncode == -9
    assert len((folder / "journal.jsonl").read_bytes().splitlines()) == 9  # the last one torn
    assert not (folder / "results.json").exists()
    whole, returned = finished
    assert evaluate(sudoku_config(model, folder, variants=VARIANTS))["results"] == returned["results"]
    for variant in VARIANTS:
        assert samples(folder, variant) == samples(whole, variant)
    assert len((folder / "journal.jsonl").read_bytes().splitlines()) == 12


def test_evaluation_does_not_import_trl(model, tmp_path):
    ran = run(WITHOUT_TRL, model, tmp_path / "eval")
    assert ran.returncode == 0, ran.stderr


def test_a_model_retrained_in_place_is_decoded_anew(tmp_path):
    place = save_sudoku_model(tmp_path / "model")
    evaluate(sudoku_config(place, tmp_path / "eval"))
    save_sudoku_model(place, seed=5)
    again = evaluate(sudoku_config(place, tmp_path / "eval"))
    fresh = evaluate(sudoku_config(place, tmp_path / "fresh"))
    assert again["results"] == fresh["results"]
    assert samples(tmp_path / "eval", "default") == samples(tmp_path / "fresh", "default")


def test_another_configuration_in_the_same_folder_is_refused(finished, model):
    folder, _ = finished
    with pytest.raises(UserError, match="task_options.sudoku.seed"):
        evaluate(sudoku_config(model, folder, variants=VARIANTS, task_options={"sudoku": {"count": 6, "seed": 9}}))


def test_a_model_without_a_record_never_erases(tmp_path):
    plain = save_sudoku_model(tmp_path / "plain", context=None)
    metrics = evaluate(sudoku_config(plain, tmp_path / "eval"))["results"]["default"]["sudoku"]
    assert metrics["erasures_per_sample"] == 0.0 and metrics["emitted_per_kept"] == 1.0
    assert metrics["backtrack_precision"] is None and metrics["backtrack_recall"] == 0.0


def test_settings_of_the_harness_are_passed_on(model, tmp_path):
    config = sudoku_config(
        model, tmp_path / "eval", limit=2, system_instruction="a1=1 a1=1 b1=2 ", task_options={"sudoku": {"count": 5}}
    )
    evaluate(config)
    found = samples(tmp_path / "eval", "default")
    assert [sample["doc_id"] for sample in found] == [0, 1]
    first, second, third = found[0]["prompt_ids"][:3]
    assert first == second != third
    with pytest.raises(UserError, match="chat template"):
        evaluate(sudoku_config(model, tmp_path / "chat", apply_chat_template=True))


OWN = """
task: digits
dataset_path: json
test_split: test
doc_to_text: "{{grid}}="
doc_to_target: "{{answer}}"
"""
CHOICES = "output_type: multiple_choice\ndoc_to_choice: ['1', '2', '3']\nmetric_list: [{metric: acc}]\n"
REPEATED = """
output_type: generate_until
generation_kwargs: {until: [], do_sample: true, temperature: 1.0, max_gen_toks: 6}
repeats: 2
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: digit, filter: [{function: regex, regex_pattern: "([1-4])"}, {function: take_first}]}
metric_list: [{metric: exact_match}]
"""


@pytest.mark.parametrize("kind, emits", [(CHOICES, False), (REPEATED, True)], ids=["choices", "repeats"])
def test_a_task_of_the_users_own_on_a_local_file(model, tmp_path, kind, emits):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "digits.yaml").write_text(OWN + kind)
    file = write(tmp_path / "data.jsonl", [{"grid": "12..", "answer": 1 if not emits else "3"}] * 3)
    config = sudoku_config(
        model, tmp_path / "eval", tasks=["digits"], include_path=[str(tmp_path / "tasks")], data_files={"digits": file}
    )
    metrics = evaluate(config)["results"]["default"]["digits"]
    found = samples(tmp_path / "eval", "default", "digits")
    assert metrics["n"] == len(found) == 3
    assert metrics["accuracy"] == sum(sample["correct"] for sample in found) / 3
    if emits:
        assert found[0]["metrics"].keys() == {"exact_match,first", "exact_match,digit"}
        assert {"exact_match,digit", "exact_match_stderr,digit"} <= metrics.keys()
    else:
        assert metrics["erasures_per_sample"] is None and metrics["acc"] == metrics["accuracy"]
        assert all(sample["completion_ids"] is None and sample["emitted"] == 0 for sample in found)


def test_local_inputs_need_no_network(model, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("called the network"))
    file = write(tmp_path / "data.jsonl", [{"question": "6 * 7?", "answer": "#### 42"}])
    config = sudoku_config(model, tmp_path / "eval", tasks=["gsm8k_simple"], data_files={"gsm8k_simple": file})
    metrics = evaluate(config)["results"]["default"]["gsm8k_simple"]
    assert {"strict_match", "flexible_match", "rougeL", "bleu"} <= metrics.keys()
    assert metrics["backtrack_precision"] is None and metrics["backtrack_recall"] is None


def test_an_unknown_variant_key_is_told_before_anything_is_loaded(tmp_path):
    config = sudoku_config(tmp_path / "absent", tmp_path / "eval")
    config.eval.variants = {"hot": {"temprature": 1.0}}
    with pytest.raises(UserError, match="eval.variants.hot.temprature.*temperature"):
        evaluate(config)
    assert not (tmp_path / "eval").exists()


def test_an_operator_erases_and_its_erasures_are_counted(model, tmp_path, monkeypatch):
    variants = {"plain": {}, "rule": {"operator": "probability_threshold", "operator_args": {"minimum": 0.1}}}
    config = sudoku_config(model, tmp_path / "eval", variants=variants, gen={"temperature": 1.0, "backtrack": False})
    results = evaluate(config)["results"]
    assert results["plain"]["sudoku"]["erasures_per_sample"] == 0 < results["rule"]["sudoku"]["erasures_per_sample"]
    for sample in samples(tmp_path / "eval", "rule"):
        assert sample["erasures"] == sum(n for _, n, source in sample["events"] if source == "probability_threshold")
        assert sample["emitted"] == sample["kept"] + sample["erasures"] and sample["forward_passes"] > 0
    monkeypatch.setattr(journal_module.Journal, "add", lambda *_: pytest.fail("decoded again"))
    assert evaluate(config)["results"] == results, "the journal keeps the events"
