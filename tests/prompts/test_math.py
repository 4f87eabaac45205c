"""Numbers read exactly, answers found where they stand, in linear time whatever the text."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.prompts.math import clean_solution, extract_answer, normalise_number, prompt_text
from llmhalluc.tasks.math.answers import is_correct


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42), ("42.", 42), ("42.00", 42), (" 42 \n", 42), ("**42**", 42), ("$42", 42), ("42%", 42), ("042", 42),
        ("$1,234", 1234), ("1,234,567.50", Fraction(2469135, 2)), ("-5", -5), ("\u22125", -5), ("-$5", -5),
        ("$-5", -5), ("€7", 7), (".5", Fraction(1, 2)), ("1/3", Fraction(1, 3)), ("0.1", Fraction(1, 10)),
        ("1/0", None), ("", None), ("x", None), ("1 2", None), ("1,2", None), ("1.2.3", None), ("--5", None),
        ("5 apples", None), ("1e3", None), ("\u0664\u0662", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_a_text_that_is_one_number_has_its_exact_value(text, number):
    assert normalise_number(text) == number


@given(st.decimals(-(10**9), 10**9, places=3, allow_nan=False))
def test_every_way_to_write_a_number_is_the_same_number(number):
    value = Fraction(number)
    for text in (f"{number}", f"{number:,}", f"{number:,}00", f"{number}".replace("-", "\u2212"), f"{number}/1"):
        assert normalise_number(text) == value
        assert extract_answer(f"so 7 of them\n#### {text}") == value


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("5 + 2 = 7\n#### 7", 7, 7),
        ("#### 7\nNo:\n#### 8 dollars", 8, 8),
        ("#### $1,234.", 1234, 1234),
        ("####42", 42, 42),
        ("So the answer is: **$42**.", 42, 42),
        ("The answer is 3. The Answer is\n4, I hope that answer is right", 4, 4),
        ("The answer is 3.\n#### 4\nThe answer is 5", 4, 4),
        ("That makes 10-5 = 5 apples", None, 5),
        ("From -3 up to \u22125", None, -5),
        ("It costs 12/4 dollars", None, 3),
        ("####\n4 is it", None, 4),
        ("nobody knows", None, None),
        ("", None, None),
    ],
)
def test_the_answer_is_found_strictly_and_flexibly(text, strict, flexible):
    assert extract_answer(text) == strict
    assert extract_answer(text, flexible=True) == flexible


@pytest.mark.parametrize("target", ["42", "42.0", "It is so.\n#### 42", "$42"])
@pytest.mark.parametrize("answer", ["42", "42.", "42.00", "$42", "\u206042"[1:]])
def test_answers_are_compared_as_numbers(answer, target):
    assert is_correct(f"so\n#### {answer}", target)
    assert not is_correct(f"so\n#### {answer}1", target)
    assert not is_correct(f"so it is {answer}", target)
    assert is_correct(f"so it is {answer}", target, flexible=True)


def test_no_answer_equals_no_target():
    assert not is_correct("nobody knows", "nobody knows", flexible=True)


@pytest.mark.parametrize(
    "unit",
    ["1", "1,", "1,000,", ".1", "1/", "0.", "#", "#### ", "####\t", " ", "-", "$", "answer is ", "answer is*", "\n"],
)
def test_a_million_characters_take_no_time(unit):
    text = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    for head in ("", "#### ", "answer is "):
        extract_answer(head + text, flexible=True)
        normalise_number(head + text)
    assert time.perf_counter() - start < 10  # seconds; linear takes about one


def test_solutions_lose_their_marks_and_have_one_form_of_answer():
    answer = " A year costs 1000*12 = $<<1000*12=12000>>12,000.\n#### $12,000 \n"
    assert clean_solution(answer) == "A year costs 1000*12 = $12,000.\n#### 12000"
    assert clean_solution("It is 1/2.\n#### 1,000.5") == "It is 1/2.\n#### 1000.5"
    assert clean_solution("no number\n#### none") == "no number\n#### none"
    assert clean_solution("no line") == "no line"
    assert clean_solution(clean_solution(answer)) == clean_solution(answer)


def test_the_prompt_ends_where_the_answer_begins():
    assert prompt_text(" How many? ") == "Question: How many?\nAnswer:"
