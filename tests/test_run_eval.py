"""What run_eval prints."""

from llmhalluc.run_eval import table


def test_results_are_a_line_a_task_and_variant():
    shown = table({"greedy": {"a": {"n": 3, "accuracy": 1 / 3, "backtrack_recall": None}}, "t1": {"bb": {"n": 12}}})
    header, first, second = shown.split("\n")
    assert header.startswith("variant  task  n   accuracy  accuracy low  ")
    assert first.split() == ["greedy", "a", "3", "0.3333", *"-" * 8]
    assert second.split() == ["t1", "bb", "12", *"-" * 9]
    assert first.index("0.3333") == header.index("accuracy")


def test_a_task_without_right_and_wrong_shows_its_own_scores():
    shown = table(
        {"greedy": {"lm": {"n": 2, "accuracy": None, "word_perplexity": 12.3456, "word_perplexity_stderr": 1}}}
    )
    assert shown.split("\n")[0].endswith("other scores") and shown.endswith("word_perplexity 12.35")
