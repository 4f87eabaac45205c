"""From the `data` section to traces: files, splits, refusals, overlap, processes."""

import json
import socket

import datasets
import pytest

from llmhalluc.data.manager import load_datasets, load_eval_dataset, load_records
from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments
from tests.data.toy import GSM8K, QA, bpe_tokenizer, sudoku_tokenizer

BACKTRACK = bpe_tokenizer().convert_tokens_to_ids(BACKTRACK_TOKEN)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Local data must not call the network."""

    def refuse(*_):
        raise AssertionError("the network was called")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load_training(*arguments):
    return load_datasets(*arguments)[0]


def load(tokenizer=None, call=load_training, **data):
    tokenizer = tokenizer or bpe_tokenizer()
    backtrack_id = tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN)
    return call(DataArguments(**data), BacktrackArguments(), tokenizer, backtrack_id, 0)


def write(path, records) -> str:
    table = datasets.Dataset.from_list(records)
    if path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        {".jsonl": table.to_json, ".csv": table.to_csv, ".parquet": table.to_parquet}[path.suffix](path)
    return str(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_records_come_from_every_kind_of_file(tmp_path, suffix):
    file = write(tmp_path / f"records{suffix}", QA)
    assert load_records(DataArguments(dataset=file), "train").to_list() == QA
    assert load_records(DataArguments(dataset=file), "test[1:]").to_list() == QA[1:]
    assert load_records(DataArguments(dataset=file, max_samples=1), "train").to_list() == QA[:1]
    assert load_records(DataArguments(dataset=file, max_samples=9), "train").to_list() == QA


def test_a_folder_of_files_is_read_as_a_data_set(tmp_path):
    write(tmp_path / "train.jsonl", QA)
    assert load_records(DataArguments(dataset=str(tmp_path)), "train").to_list() == QA


def test_the_generator_is_a_data_set_with_two_splits():
    data = DataArguments(task={"count": 30, "seed": 2})
    train, test = load_records(data, "train"), load_records(data, "test[:5]")
    assert (len(train), len(test)) == (30, 5)
    assert set(train["split"]) | set(test["split"]) == {"train", "test"}
    assert load_records(data, "train[10:20]").to_list() == train.to_list()[10:20]
    assert len(load_records(data, "validation[:10%]")) == 3
    with pytest.raises(UserError, match="the generator sudoku has train and test"):
        load_records(data, "extra")


def refusal(**data) -> str:
    with pytest.raises(UserError) as error:
        load(**data)
    assert len(error.value.sentences) == 1
    assert "\n" not in error.value.sentences[0]
    return str(error.value)


def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path):
    missing = str(tmp_path / "nothing.jsonl")
    assert refusal(dataset=missing) == f"data.dataset is the file {missing}, which does not exist: correct the path"
    for name, text in {"a.jsonl": "", "b.json": "[]", "c.csv": "prompt,completion\n"}.items():
        (tmp_path / name).write_text(text)
        assert "holds no records" in refusal(dataset=str(tmp_path / name))
    (tmp_path / "d.jsonl").write_text('{"prompt": "a"\n{')
    assert "cannot be read" in refusal(dataset=str(tmp_path / "d.jsonl"))
    (tmp_path / "e.txt").write_text("a")
    assert "is none of .json, .jsonl, .csv, .parquet" in refusal(dataset=str(tmp_path / "e.txt"))
    file = write(tmp_path / "f.jsonl", QA)
    assert "cannot be read" in refusal(dataset=file, split="train[:x]")
    assert "holds no records" in refusal(dataset=file, split="train[3:]")
    sentence = refusal(dataset=file, prompt_column="question")
    assert "data.prompt_column needs a column 'question'" in sentence
    assert "its columns are prompt, completion" in sentence
    assert "did you mean sudoku_backtrack?" in refusal(dataset=file, converter="sudoku-backtrak")
    assert "has no calculator marks" in refusal(
        dataset=write(tmp_path / "g.jsonl", [GSM8K[3]]), converter="gsm8k_backtrack"
    )


def test_law8_evaluation_data_do_not_train(tmp_path):
    file = write(tmp_path / "records.jsonl", QA)
    assert "test is an evaluation split" in refusal(dataset=file, split="test")
    held_out = write(tmp_path / "test.jsonl", QA)
    assert "test is an evaluation split" in refusal(dataset=held_out)
    assert "test is an evaluation split" in refusal(dataset="sudoku", split="test", converter="sudoku")


@pytest.mark.parametrize("converter", ["sft", "backtrack"])
def test_law8_prompts_of_the_evaluation_data_do_not_train(tmp_path, converter):
    file = write(tmp_path / "records.jsonl", QA)
    held_out = write(tmp_path / "test.jsonl", [QA[1], {"prompt": "What else?", "completion": "Nothing."}])
    sentence = refusal(dataset=file, eval_dataset=held_out, converter=converter)
    assert sentence.startswith(f"1 of 3 prompts of data.dataset {file} are also in the evaluation data {held_out}")
    assert "3 of 3 prompts" in refusal(dataset=file, eval_split="test", converter=converter)
    assert len(load(dataset=file, eval_dataset=held_out, converter=converter, split="train[:1]")) == 1


def test_trap12_the_prompt_is_compared_as_the_model_reads_it(tmp_path):
    questions = [{"question": f" {record['question']}\n", "answer": record["answer"]} for record in GSM8K[:2]]
    file, held_out = write(tmp_path / "a.jsonl", GSM8K), write(tmp_path / "b_test.jsonl", questions)
    assert "2 of 4 prompts" in refusal(dataset=file, eval_dataset=held_out, converter="gsm8k_backtrack")


def test_law8_the_evaluation_loss_sees_clean_traces(tmp_path):
    file, held_out = write(tmp_path / "train.jsonl", QA[:2]), write(tmp_path / "test.jsonl", QA[2:])
    data = {"dataset": file, "eval_dataset": held_out, "converter": "backtrack"}
    traces = load(call=load_eval_dataset, **data)
    ids = bpe_tokenizer()(QA[2]["prompt"] + QA[2]["completion"])["input_ids"]
    assert BACKTRACK not in traces[0]["input_ids"]
    assert len(traces) == 1
    assert bpe_tokenizer().decode(traces[0]["input_ids"]) == bpe_tokenizer().decode(ids) + "</s>"
    assert load(call=load_eval_dataset, dataset=file) is None


def test_law8_sudoku_trains_and_evaluates_on_other_grids():
    data = {"converter": "sudoku_backtrack", "task": {"count": 300}, "eval_split": "test[:50]"}
    train, test = (load(sudoku_tokenizer(), call, **data) for call in (load_training, load_eval_dataset))
    assert (len(train), len(test)) == (300, 50)
    assert any(train.converter.backtrack_id in train[i]["input_ids"] for i in range(300))
    assert not any(test.converter.backtrack_id in test[i]["input_ids"] for i in range(50))


def test_trap6_processes_do_not_change_the_traces(tmp_path, monkeypatch):
    monkeypatch.setattr("llmhalluc.data.manager._BATCH", 2)
    file = write(tmp_path / "records.jsonl", GSM8K * 2)
    one, two = (load(dataset=file, converter="gsm8k_backtrack", num_proc=n) for n in (1, 2))
    assert one.encoded == two.encoded
    assert [one[i] for i in range(8)] == [two[i] for i in range(8)]


def test_records_that_are_too_long_are_left_out_and_counted(tmp_path, caplog):
    file = write(tmp_path / "records.jsonl", [*QA, {"prompt": "a " * 500, "completion": "b"}])
    traces = load(dataset=file, max_length=300)
    assert (len(traces), traces.left_out) == (3, 1)
    assert "1 of 4 records" in caplog.text
