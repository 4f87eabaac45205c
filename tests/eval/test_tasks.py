"""Our tasks and local files: prompts as in training, columns of either source, one sentence for each mistake."""

import json
import re

import pytest

from llmhalluc.data.task import TaskConverter
from llmhalluc.eval.tasks import load_tasks
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments, EvalArguments
from llmhalluc.hparams.task_args import test_options as options_of
from llmhalluc.prompts import math
from llmhalluc.tasks.math.answers import final_answer
from llmhalluc.tasks.sudoku import text as sudoku
from llmhalluc.tasks.sudoku.generate import grid_split
from tests.eval.models import word_tokenizer

APPLES = {"question": "Ann has 3 apples and buys 4. How many?", "answer": "3 + 4 = <<3+4=7>>7 apples.\n#### 7"}
PEARS = {"question": "Bob has 9 pears and eats 2. How many?", "answer": "9 - 2 = <<9-2=7>>7 pears.\n#### 1,007"}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def prompts(task, num_fewshot=0):
    """The strings that a model would be asked to go on from."""
    task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(0)
    task.build_all_requests()
    return [instance.args[0] for instance in task.instances]


def one(tmp_path, name, records, **settings):
    file = write(tmp_path / "data.jsonl", records)
    _, (task,) = load_tasks(EvalArguments(tasks=[name], data_files={name: file}, **settings), {})
    return task


def test_gsm8k_prompts_are_those_of_training(tmp_path):
    task = one(tmp_path, "gsm8k_simple", [APPLES])
    assert prompts(task) == [math.prompt_text(APPLES["question"])]


def test_gsm8k_examples_have_the_format_of_training(tmp_path):
    shots = {"gsm8k_simple": write(tmp_path / "shots.jsonl", [PEARS])}
    task = one(tmp_path, "gsm8k_simple", [APPLES], fewshot_files=shots, num_fewshot=1)
    converter = TaskConverter(word_tokenizer(), None, DataArguments(converter="gsm8k"), BacktrackArguments())
    example = "".join(converter.texts(PEARS))
    assert example.endswith(" 9 - 2 = 7 pears.\n#### 1007")
    assert prompts(task, 1) == [example + "\n\n" + math.prompt_text(APPLES["question"])]


@pytest.mark.parametrize(
    "text, strict, flexible",
    [
        (" 3 + 4 = 7\n#### 7", 1, 1), ("#### 7.", 1, 1), ("#### $7.00", 1, 1), ("The answer is 7.", 1, 1),
        ("#### 8\n#### 7", 1, 1), ("so 7 apples", 0, 1), ("#### 8, not 7", 0, 0), ("", 0, 0),
    ],
)  # fmt: skip
def test_gsm8k_strict_and_flexible_match(tmp_path, text, strict, flexible):
    task = one(tmp_path, "gsm8k_simple", [APPLES])
    found = task.process_results(APPLES, [text])
    assert (found["strict_match"], found["flexible_match"]) == (strict, flexible)
    assert {"rougeL", "bleu"} <= found.keys()


def test_thousands_are_one_number(tmp_path):
    task = one(tmp_path, "gsm8k_simple", [PEARS])
    assert all(task.process_results(PEARS, [f"#### {n}"])["strict_match"] for n in ("1007", "1,007", "$1,007.00"))


def test_cot_brings_eight_right_examples_of_its_own(tmp_path):
    task = one(tmp_path, "gsm8k_cot_simple", [APPLES])
    (prompt,) = prompts(task, 8)
    *shots, last = prompt.split("\n\n")
    assert len(shots) == 8 and last == f"Q: {APPLES['question']}\nA:"
    assert all(final_answer(shot).reading.values and shot.endswith(".") for shot in shots)
    for doc in task.fewshot_docs():
        equations = re.findall(r"(\d[\d.]*(?: [-+*/] [\d.]*\d)+) = ([\d.]*\d)", doc["answer"])
        assert equations and all(eval(left) == pytest.approx(float(right)) for left, right in equations), doc
        assert final_answer(doc["answer"]).reading.values == (float(equations[-1][1]),)


def test_svamp_reads_the_authors_file_and_the_hubs_columns(tmp_path):
    authors = {"ID": "chal-1", "Body": "A pen costs 4 dollars.", "Question": "What do 3 cost?", "Answer": 12.0}
    hub = {**authors, "Answer": "12", "question_concat": "…", "Type": "Multiplication"}
    for record in (authors, hub):
        task = one(tmp_path, "svamp", [record])
        assert prompts(task) == [math.prompt_text("A pen costs 4 dollars. What do 3 cost?")]
        doc = task.eval_docs[0]
        assert task.doc_to_target(doc) == "#### 12"
        assert task.process_results(doc, ["#### 12.0"])["strict_match"] == 1.0


@pytest.mark.parametrize("size, blanks", [(4, 10), (6, 12)])
def test_sudoku_puzzles_come_from_the_test_part_and_their_answer_is_right(size, blanks):
    settings = EvalArguments(tasks=["sudoku"], task_options={"sudoku": {"count": 4, "size": size, "blanks": blanks}})
    data = DataArguments(task={"test_percent": 30})
    _, (task,) = load_tasks(settings, options_of(settings, data))
    assert prompts(task) == [sudoku.prompt_text(doc["puzzle"]) for doc in task.eval_docs]
    for doc in task.eval_docs:
        assert grid_split(doc["solution"], 30) == "test" and doc["puzzle"].count(".") == blanks
        assert task.process_results(doc, [task.doc_to_target(doc)]) == {"solved": 1.0}
        assert task.process_results(doc, [task.doc_to_target(doc)[:-1]]) == {"solved": 0.0}


def refused(*words, **settings):
    with pytest.raises(UserError) as raised:
        load_tasks(EvalArguments(**settings), {})
    (sentence,) = raised.value.sentences
    assert all(word in sentence for word in words), sentence


def test_each_mistake_gets_one_sentence(tmp_path):
    data = write(tmp_path / "data.jsonl", [{"query": "?", "answer": "#### 7"}])
    table = {"gsm8k_simple": str(tmp_path / "none.jsonl")}
    refused("none.jsonl", "does not exist", data_files=table)
    refused(".txt", "unknown kind", data_files={"gsm8k_simple": "notes.txt"})
    refused("gsm8k", "no column question", data_files={"gsm8k_simple": data})
    shots = {"gsm8k_simple": write(tmp_path / "shots.jsonl", [APPLES])}
    refused("only 1 records", data_files={"gsm8k_simple": data}, fewshot_files=shots, num_fewshot=2)
    refused("svamp", "not among eval.tasks", data_files={"svamp": data})
    refused("5 few-shot", "eval.fewshot_files.gsm8k_simple", data_files={"gsm8k_simple": data}, num_fewshot=5)


@pytest.mark.slow  # reads the harness's own 14,000 tasks
def test_an_unknown_task_names_its_nearest():
    refused("gsm8k_simpel", "gsm8k_simple", tasks=["gsm8k_simpel"])
