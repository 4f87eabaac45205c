"""The task that docs/architecture.md adds works as the page says, in every way in which a task is used."""

import importlib
import re
import sys
from random import Random

import pytest

from llmhalluc import tasks
from llmhalluc.backtrack import apply_backtracking
from llmhalluc.data.base import BacktrackDatasetConverter
from llmhalluc.data.pairs import BacktrackDPOConverter
from llmhalluc.data.task import TaskBacktrackConverter
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments
from llmhalluc.models.patcher import add_token

PAGE = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8").partition("### How to add a task")[2]
MODULE, LINE, EVALUATION = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def sorting(tmp_path, monkeypatch):
    """The page's task, in its place for the length of a test."""
    (tmp_path / "sorting.py").write_text(MODULE)
    monkeypatch.setattr(importlib.import_module("llmhalluc.tasks"), "__path__", [*tasks.__path__, str(tmp_path)])
    entry = eval("{" + LINE + "}", {"Entry": tasks.Entry})
    monkeypatch.setattr(tasks, "TASKS", tasks.TASKS)
    monkeypatch.setitem(tasks.TASKS, "sorting", entry["sorting"])
    for name in ("sorting", "sorting_backtrack"):
        monkeypatch.setitem(tasks.CONVERTERS, name, "sorting")
    yield entry["sorting"]
    sys.modules.pop("llmhalluc.tasks.sorting", None)


def made(kind: type[BacktrackDatasetConverter], task) -> tuple[BacktrackDatasetConverter, list, int]:
    tokenizer = task.tokenizer("sorting")
    backtrack_id = add_token(tokenizer)
    data = DataArguments(dataset="records.jsonl", converter="sorting_backtrack")
    converter = kind(tokenizer, backtrack_id, data, BacktrackArguments())
    records = task.generate(task.options(count=20), "train")
    return converter, converter.encode_batch(records), backtrack_id


def test_law1_its_traces_erase_back_to_the_solution(sorting):
    converter, encoded, backtrack_id = made(TaskBacktrackConverter, sorting)
    traces = [converter.corrupt(item, Random(i), 1.0) for i, item in enumerate(encoded)]
    assert any(backtrack_id in trace for trace in traces)
    for item, trace in zip(encoded, traces, strict=True):
        assert apply_backtracking(trace, backtrack_id) == item["completion_ids"]


def test_it_makes_pairs(sorting):
    converter, encoded, backtrack_id = made(BacktrackDPOConverter, sorting)
    pairs = [converter.pair(item, Random(i), 1.0) for i, item in enumerate(encoded)]
    assert all(pair.chosen_ids[0] == backtrack_id != pair.rejected_ids[0] for pair in pairs if pair is not None)
    assert any(pairs)


def test_law8_its_test_is_apart_and_it_is_checked_and_paid(sorting):
    train = sorting.generate(sorting.options(), "train")
    test = sorting.generate_test(sorting.test_options())
    assert not {one["digits"] for one in train} & {one["digits"] for one in test}
    assert all(sorting.held_out(one, None) for one in test) and not any(sorting.held_out(one, None) for one in train)
    record, solution = test[0], sorting.solution(test[0])
    assert sorting.check(solution, record).right and not sorting.check(record["digits"], record).right
    assert sorting.metrics(solution, record) == {"right": 1.0} and sorting.process(solution, record) == 1.0
    assert sorting.step_ends(["1", " 2", " 3"]) == [1, 2, 3]


def test_its_evaluation_reads_its_data(sorting):
    names: dict = {}
    exec(EVALUATION, names)
    doc = names["problems"](sorting_count=3)["test"][0]
    assert names["prompt"](doc).endswith(" sort") and names["score"](doc, [names["answer"](doc)]) == {"right": 1.0}
