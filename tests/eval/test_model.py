"""BacktrackLM: surviving text for the harness, traces for the metrics, prompts and draws as they should be."""

import pytest

from llmhalluc.data.task import TaskConverter
from llmhalluc.eval import model as model_module
from llmhalluc.eval.metrics import count
from llmhalluc.eval.model import BacktrackLM
from llmhalluc.eval.tasks import load_tasks
from llmhalluc.eval.variants import make_variants
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments, EvalArguments, GenArguments
from tests.eval.models import save_sudoku_model, scripted
from tests.eval.test_tasks import write

RECORD = {"question": "What is 6 * 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """A function: what a model says by script -> the model after gsm8k_simple, its document, its metrics."""

    def ask(script: str, backtrack: bool = True, chat: str | None = None):
        monkeypatch.setattr(model_module, "load", lambda *_: scripted(script, backtrack))
        file = write(tmp_path / "data.jsonl", [RECORD])
        _, (task,) = load_tasks(EvalArguments(data_files={"gsm8k_simple": file}), {})
        task.set_config("num_fewshot", 0)
        lm = BacktrackLM("scripted", max_length=1000)
        lm.tokenizer.chat_template = chat
        task.build_all_requests(apply_chat_template=bool(chat), chat_template=lm.apply_chat_template)
        (text,) = lm.generate_until(task.instances, disable_tqdm=True)
        (trace,) = lm.traces["gsm8k_simple"][0]
        return lm, trace, text, task.process_results(RECORD, [text])

    return ask


def test_law6_extraction_and_metrics_read_the_surviving_text(ask):
    _, trace, text, metrics = ask("#### 7<42")
    assert text == "#### 42" and metrics["strict_match"] == 1.0
    assert ask("#### 42<<7")[3]["strict_match"] == 0.0
    assert trace.finish_reason == "eos"


def test_law6_counts_read_the_trace(ask):
    lm, trace, text, _ = ask("#### 7<42")
    assert text == "#### 42"
    counts = count(trace.completion_ids, lm.backtrack_id)
    assert (counts.emitted, counts.kept, counts.erasures) == (10, 8, 1)  # the end token is both emitted and kept
    assert lm.get_model_info()["traces"]["gsm8k_simple"]["erasures_per_sample"] == 1.0


def test_law6_an_erased_stop_string_does_not_stop_and_a_surviving_one_does(ask):
    # With BACKTRACKs dropped before they erase, this reads "Question:7#### 42".
    assert ask("Question<:<7<#### 42")[2] == "#### 42"
    _, trace, text, metrics = ask("#### 42Answer<Question:#### 7")
    assert (text, trace.finish_reason, metrics["strict_match"]) == ("#### 42", "stop", 1.0)


def test_trap8_special_tokens_are_not_dropped_before_they_erase(ask):
    lm, trace, text, _ = ask("The answer is 13<<42")
    assert trace.completion_ids.count(lm.backtrack_id) == 2
    assert text == "The answer is 42"


def test_a_model_without_backtrack_is_a_plain_model(ask):
    lm, _, _, metrics = ask("#### 42", backtrack=False)
    assert lm.backtrack_id is None and metrics["strict_match"] == 1.0
    assert lm.get_model_info()["traces"]["gsm8k_simple"]["erasures_per_sample"] == 0.0


@pytest.mark.parametrize("chat", [None, "{% for m in messages %}<bos>{{ m.content }}{{ '\n' }}{% endfor %}"])
def test_prompt_ids_are_those_of_training(ask, chat):
    lm, trace, *_ = ask("#### 42", chat=chat)
    data = DataArguments(converter="gsm8k", apply_chat_template=bool(chat))
    converter = TaskConverter(lm.tokenizer, None, data, BacktrackArguments())
    assert trace.prompt_ids == converter.encode(RECORD)["prompt_ids"]


@pytest.fixture(scope="module")
def sudoku_lm(tmp_path_factory):
    return BacktrackLM(str(save_sudoku_model(tmp_path_factory.mktemp("model"))), device="cpu")


def decoded(lm, batch_size: int, **gen):
    _, (task,) = load_tasks(EvalArguments(tasks=["sudoku"]), {"sudoku": {"count": 5}})
    task.set_config("num_fewshot", 0)
    task.build_all_requests()
    lm.batch_size_per_gpu = batch_size
    gen = {"max_new_tokens": 30, "temperature": 1.0, "backtrack_bias": 2.0} | gen
    lm.begin(make_variants(GenArguments(**gen), frozenset(gen), {})["default"])
    texts = lm.generate_until([request for request in task.instances for _ in range(2)], disable_tqdm=True)
    return texts, [trace.completion_ids for doc in sorted(lm.traces["sudoku"]) for trace in lm.traces["sudoku"][doc]]


def test_sampling_does_not_depend_on_the_batch_and_repeats_differ(sudoku_lm):
    texts, ids = decoded(sudoku_lm, 1)
    assert (texts, ids) == decoded(sudoku_lm, 4)
    assert (texts, ids) != decoded(sudoku_lm, 4, seed=1)
    assert any(ids[i] != ids[i + 1] for i in range(0, len(ids), 2)), "the same prompt twice is drawn twice"
    assert any(sudoku_lm.backtrack_id in trace for trace in ids)


def test_a_prompt_without_room_is_cut_from_the_left_and_counted(sudoku_lm, caplog):
    whole = decoded(sudoku_lm, 4)
    assert whole and sudoku_lm.truncated["sudoku"] == 0
    decoded(sudoku_lm, 4, max_new_tokens=sudoku_lm.max_length - 4)
    assert sudoku_lm.truncated["sudoku"] == 10
    assert all(len(trace.prompt_ids) == 4 for doc in sudoku_lm.traces["sudoku"].values() for trace in doc)
    assert "cut to its last" in caplog.text
    with pytest.raises(UserError, match="positions"):
        decoded(sudoku_lm, 4, max_new_tokens=sudoku_lm.max_length + 1)


def test_log_likelihoods_are_the_harnesses_own(sudoku_lm):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    plain = HFLM(pretrained=sudoku_lm.model, tokenizer=sudoku_lm.tokenizer, batch_size=2)
    requests = [Instance("loglikelihood", {}, ("a1=1 solve", moves), 0) for moves in (" b1=2 c1=3", " b1=4", " b1=2")]
    assert sudoku_lm.loglikelihood(requests, disable_tqdm=True) == plain.loglikelihood(requests, disable_tqdm=True)


def test_unknown_model_args_name_the_nearest(tmp_path):
    with pytest.raises(UserError, match="gguf_fiel.*gguf_file"):
        BacktrackLM("model", gguf_fiel="x")
    with pytest.raises(UserError, match="batch_size"):
        BacktrackLM(str(save_sudoku_model(tmp_path)), batch_size="auto")
