"""What run_eval prints."""

from llmhalluc.run_eval import table


def test_results_are_a_line_a_task_and_variant():
    shown = table({"greedy": {"a": {"n": 3, "accuracy": 1 / 3, "backtrack_recall": None}}, "t1": {"bb": {"n": 12}}})
    header, first, second = shown.split("\n")
    assert header.startswith("variant  task  n   accuracy  accuracy low  ")
    assert first.split() == ["greedy", "a", "3", "0.3333", *"-" * 7]
    assert second.split() == ["t1", "bb", "12", *"-" * 8]
    assert first.index("0.3333") == header.index("accuracy")
