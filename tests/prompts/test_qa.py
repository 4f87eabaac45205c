"""SQuAD's normalisation and scores."""

import pytest

from llmhalluc.prompts.qa import UNANSWERABLE, exact_match, extract_answer, f1, normalise_answer, prompt_text


def test_case_punctuation_articles_and_spaces_do_not_count():
    assert normalise_answer(" The  Eiffel-Tower, (a) tower! ") == "eiffeltower tower"
    assert normalise_answer("another theory") == "another theory"


@pytest.mark.parametrize(
    ("answer", "golds", "exact", "overlap"),
    [
        ("the Tower", ["Tower", "a big tower"], 1.0, 1.0),
        ("big tower", ["tower"], 0.0, 2 / 3),
        ("in Rome in 1900", ["in Rome"], 0.0, 2 * 2 / (4 + 2)),
        ("rome rome", ["Rome"], 0.0, 2 / 3),
        ("Paris", ["Rome"], 0.0, 0.0),
        ("", ["Rome"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        (UNANSWERABLE, [], 1.0, 1.0),
        ("Rome", [], 0.0, 0.0),
    ],
)
def test_scores(answer, golds, exact, overlap):
    assert exact_match(answer, golds) == exact
    assert f1(answer, golds) == pytest.approx(overlap)


def test_the_prompt_holds_the_passage_if_there_is_one_and_the_answer_is_the_first_line():
    assert prompt_text("Who?", " It was Ann. ") == "Context: It was Ann.\nQuestion: Who?\nAnswer:"
    assert prompt_text(" Who? ") == "Question: Who?\nAnswer:"
    assert extract_answer("\n Ann \nQuestion: Why?") == "Ann"
