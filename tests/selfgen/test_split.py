"""Completions in steps: nothing is lost, nothing is made anew, a step ends where a line or a sentence does."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.data.problems import Problem
from llmhalluc.selfgen.split import Splitter, follow
from llmhalluc.tasks import TASKS
from tests.data.toy import bpe_tokenizer, sudoku_tokenizer
from tests.selfgen.noisy import problems, solution_ids

MATH = Problem("train-0", "math", [1], {"question": "How many?", "answer": "48+24 = 72 birds.\n#### 72"})
SPLIT = Splitter(bpe_tokenizer())
PIECES = [
    "There are 24 ducks",
    ".",
    "?",
    "!",
    " ",
    "\n",
    "\n\n",
    "7.50",
    "$1,000",
    " it's √2",
    "Mr",
    '"',
    "🦆",
    "#### 72",
]


def ids_of(text: str) -> list[int]:
    return bpe_tokenizer()(text, add_special_tokens=False)["input_ids"]


def texts_of(text: str) -> list[str]:
    return [step.text for step in SPLIT(MATH, ids_of(text))]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_joined_steps_are_the_completion(text):
    ids = ids_of(text)
    steps = SPLIT(MATH, ids)
    assert [token for step in steps for token in step.ids] == ids
    assert "".join(step.text for step in steps) == text
    for step, after in pairwise(steps):
        assert step.text.strip() and after.text.strip()
        at_a_sentence = re.search(r"[.!?][\"')\]]?$", step.text) and after.text[0].isspace()
        assert at_a_sentence or "\n" in SPLIT.pieces(step.ids)[-1]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_the_text_of_each_token_is_as_decoding_the_whole_gives_it(text):
    ids = ids_of(text)
    for i in range(len(ids) + 1):
        whole = bpe_tokenizer().decode(ids[:i])
        if not whole.endswith("\ufffd"):
            assert "".join(SPLIT.pieces(ids)[:i]) == whole


def test_a_step_is_a_line_or_a_sentence():
    assert texts_of(" There are 48/2 = 24 ducks.\nIn all 48+24 = 72.5 birds. So it is 72.\n\n#### 72") == [
        " There are 48/2 = 24 ducks.\n", "In all 48+24 = 72.5 birds.", " So it is 72.\n\n", "#### 72",
    ]  # fmt: skip
    assert texts_of("He pays $7.50") == ["He pays $7.50"]
    assert texts_of('"Two." He left.') == ['"Two."', " He left."]
    assert SPLIT(MATH, []) == []


def test_a_boundary_within_a_token_goes_behind_it():
    assert TASKS["math"].step_ends(["One", ".\nTw", "o", ".", "\n"]) == [2, 5]


def test_a_move_of_sudoku_is_a_step_and_its_key_says_whether_it_is_right_and_new():
    problem, split = problems(1)[0], Splitter(sudoku_tokenizer())
    right = solution_ids(problem)
    wrong = next(token for token in range(5, 60) if token not in right)
    steps = split(problem, [right[1], right[1], wrong, right[0]])
    assert [step.ids for step in steps] == [[right[1]], [right[1]], [wrong], [right[0]]]
    assert [step.key for step in steps] == [True, False, False, True]


def test_the_key_of_a_sentence_is_its_numbers():
    def key(step):
        return TASKS["math"].step_keys([step], {})[0]

    assert key(" There are 48/2 = 24 ducks.") == key("Of ducks: 48 / 2 = $24.00")
    assert key("48+24 = 72") != key("24+48 = 72")
    assert key("So it goes.") is None


@pytest.mark.parametrize(
    ("prefix", "solution", "at"),
    [
        ([], "ab", 0), ("a", "ab", 1), ("ab", "ab", 2), ("abc", "ab", None), ("b", "ab", None),
        ([None, "a"], "ab", 1), (["a"], [None, "a", "b"], 2), ([None], ["a"], 0),
        (["a", None], ["a", None, "b"], 1),
    ],
)  # fmt: skip
def test_a_solution_is_followed_as_far_as_the_keys_agree(prefix, solution, at):
    assert follow(prefix, solution) == at
