"""One reader of answers (law 9): what is right is read in every spelling, and what changes a number is seen."""

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.prompts.math import prompt_text
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import CutOff
from llmhalluc.tasks.math.answers import final_answer, gold_reading
from llmhalluc.tasks.math.reading import read_statement
from llmhalluc.tasks.math.solution import clean_solution
from tests.real import real_data

MATH = TASKS["math"]


def record(gold):
    return {"question": "How many?", "answer": gold}


def right(text, gold):
    return MATH.check(text, record(gold)).right


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42), ("42.", 42), ("42.00", 42), (" 42 \n", 42), ("**42**", 42), ("$42", 42), ("042", 42),
        ("$1,234", 1234), ("1,234,567.50", Fraction(2469135, 2)), ("-5", -5), ("\u22125", -5), ("-$5", -5),
        ("$-5", -5), ("€7", 7), (".5", Fraction(1, 2)), ("1/3", Fraction(1, 3)), ("0.1", Fraction(1, 10)),
        ("1 234", 1234), ("1'234", 1234), ("1{,}234", 1234), ("1\\,234", 1234), ("18e3", 18000), ("18 thousand", 18000),
        ("18k", 18000), ("2 dozen", 24), ("minus forty-two", -42), ("negative five", -5), ("one or two", None),
        ("seven, no, eight", None), ("five to six", None), ("five of them", None), ("five more than two", None),
        ("five apples", 5), ("maybe five", None), ("one hundred and five", 105), ("two million", 2_000_000),
        ("7 1/2", Fraction(15, 2)), ("7½", Fraction(15, 2)), ("forty-two", 42),
        ("three thousand and five", 3005), ("7 and a half", Fraction(15, 2)), ("three quarters", Fraction(3, 4)),
        ("2^{10}", 1024), ("2**10", 1024), ("\\frac12", Fraction(1, 2)), ("2\\frac{1}{2}", Fraction(5, 2)),
        ("18 - 2 = 16", 16), ("9 * 2 = $18", 18), ("4 * 10 = 40 feet", 40), ("6 + 36, which is 42", 42),
        ("42% of 50", 21), ("a third", None), ("5 feet 6 inches = 66 inches", 66),
        ("1/0", None), ("", None), ("x", None), ("4 2", None), ("1,2", None), ("1.2.3", None), ("--5", 5),
        ("12,34", None), ("1, 234", None), ("\u0664\u0662", None), ("42\u0660", None), ("9" * 5000, None), ("9" * 40,
        None),
        ("9^9^9", None), ("18 to 20", None), ("18? no 19", None), ("18 or 19", None), ("more than 18", None),
        ("not 18", None), ("18x", None), ("18\\pi", None), ("18 - x", None), ("18th", None), ("A18", None), ("18:20",
        None),
    ],
)  # fmt: skip
def test_a_statement_has_its_exact_value(text, number):
    values = read_statement(text).values
    assert values[:1] == (() if number is None else (number,))


@given(st.decimals(-(10**9), 10**9, places=3, allow_nan=False))
def test_every_way_to_write_a_number_is_the_same_number(number):
    value = Fraction(number)
    for text in (f"{number}", f"{number:,}", f"{number:,}00", f"{number}".replace("-", "\u2212"), f"{number}/1"):
        assert read_statement(text).values == (value,)
        assert final_answer(f"so 7 of them\n#### {text}").reading.values == (value,)


RIGHT = [
    *[("18", text) for text in (
        "The answer is 9 * 2 = $18.", "#### 9 * 2 = 18", "The answer is \\$18", "#### \\$18", "#### **18**",
        "**#### 18**", "#### x = 18", "The answer is therefore 18.", "The answer is 18 - 2 + 2 = 18.",
        "\\boxed{N = 18}",
        "The answer is:\n\\[18\\]", "The answer is:\n\\[\n18\n\\]", "#### \n\n18", "#### 18<|im_end|>", "#### 18</s>",
        "#### 18 or eighteen", "#### about 18 apples", "The answer is 18 (not 19).", "The answer is 18, not 19.",
        "The answer is 18 because 9 times 2 is 18.", "The final answer is 18. I hope it is correct.",
        "Final Answer: **18**",
        "The answer would be 18.", "#### 18 in 2024", "The answer is 18 per month, which is less than 20.", "\\boxed18",
        "\\boxed{\\text{18 apples}}", "\\boxed{\\dfrac{36}{2}}", "\\boxed{\\num{18}}", "#### The answer is 18.",
        "#### 1. Count them\n#### 2. Sell them\nso \\boxed{18}", "\\boxed{18}\n#### 2. Check it",
        "\\boxed{18}. The answer is reasonable.", "The answer is 18 minutes, or 0.3 hours.", "#### 18 m^2", "#### 18cm",
        "The answer is 36/2, i.e. 18.", "The answer is 18.\nWait, let me check: 9 * 2 = 18.", "ANSWER: 18",
    )],
    ("16", "The answer is 18 - 2 = 16."), ("40", "The answer is 4 * 10 = 40 feet"), ("18000", "#### 18k"),
    ("1234", "#### USD 1,234"), ("1234", "\\boxed{1.234 \\times 10^3}"), ("7.5", "#### 750 cents"),
    ("7.5", "The answer is 7 dollars and 50 cents."), ("90", "The answer is 1 hour 30 minutes."),
    ("0.75", "The answer is 75%."), ("50", "The answer is 50 percent."), ("50", "#### 0.5 or 50%"),
    ("-5", "The answer is a loss of 5"), ("-5", "The answer is minus 5"), ("-5", "#### (-5)"),
    ("#### 10:30", "#### 10:30"), ("#### 5 1/2", "#### 5.5"), ("#### 2^{10}", "#### 1024"), ("\\boxed{54}", "#### 54"),
    ("\\frac12", "#### 1/2"), ("#### 3\\sqrt{2}", "\\boxed{3\\sqrt{2}}"), ("x+1", "\\boxed{1 + x}"),
    ("42", "\\boxed{\\sqrt{1764}}"), ("18", "The answer, therefore, is 18."), ("18", "#### Rs. 18"),
    ("3\\sqrt{2}", "#### 3√2"), ("3\\sqrt{2}", "The answer is 3 * sqrt(2)."), ("3\\sqrt{2}", "#### $3\\sqrt{2}$ cm"),
    ("12\\pi", "#### 12π"), ("12\\pi", "#### 12\\pi cm^2"), ("\\{1,2\\}", "\\boxed{\\{2, 1\\}}"),
    ("3:2", "\\boxed{3:2}"), ("(1,2)", "\\boxed{(1, 2)}"), ("x^2-1", "\\boxed{(x-1)(x+1)}"),
]  # fmt: skip
WRONG = [
    *[("18", text) for text in (
        "The answer is 18 - 2 = 16.", "The answer is 18 thousand.", "#### 18k", "#### 18x", "#### 18\\pi", "#### 18e3",
        "#### 18 - 18", "#### 18 to 20", "The answer is 18? no 19", "#### 18-20", "#### 18 or 19", "#### 18, 19",
        "#### 18/19",
        "#### 18 19", "#### at least 18", "#### < 18", "#### 18+", "#### twice 18", "#### 18 squared", "#### 18²",
        "#### 18½",
        "#### 18 and a half", "#### 18th of May", "#### A18", "#### 18:18", "#### not 18", "#### 18 dozen",
        "#### 18.0.1",
        "#### 18,000", "\\boxed{18 \\pm 1}", "\\boxed{\\{18, 19\\}}", "\\boxed{19 = 18}", "\\boxed{18!}",
        "\\boxed{18x}",
        "\\boxed{y + 2 = 18}", "#### 18\n#### 19", "#### 18\nThe answer is actually 19.",
        "The answer is 18. No wait, it is 19.",
        "\\boxed{18} Wait, that is wrong. The answer is 19.", "The answer is 18% of 200.", "The answer is 18 times 2.",
        "The answer is half of 18.", "The answer is 18 more than 10.", "The answer is 18 apples and 3 pears.", "18",
        "x = 18",
        "So she has 18 apples.", "#### ", "#### ?", "\\boxed{18", "#### 18\u0660", "#### 18 minutes or 18 hours",
        "24 points per answer = 18", "#### 18 = x + 1", "#### 18 remainder 3", "#### 18 hours and 30 minutes",
    )],
    ("#### 3\\sqrt{2}", "#### 3"), ("#### 10:30", "#### 10"), ("#### 5 1/2", "#### 5"), ("#### 2^{10}", "#### 2"),
    ("18", "The answer is 18 or so, maybe 21."), ("18", "The answer is 18 below zero."),
    ("18", "The answer is 18 over 2."),
    ("18", "\\boxed{x=18 \\text{ or } x=-18}"), ("18", "The answer is anything but 18."), ("18", "#### a dozen 18s"),
    ("18", "#### 18 was my guess but it is 19"), ("3", "The answer is 3 * sqrt(2)."), ("3:2", "#### 1.5"),
    ("(1,2)", "\\boxed{(2,1)}"), ("12\\pi", "#### 37.7"), ("3\\sqrt{2}", "\\boxed{2\\sqrt{3}}"),
    ("1234", "#### 12,34"), ("1234", "The answer is 1, 234."), ("x+1", "#### x"), ("50", "#### 0.05"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "text"), RIGHT)
def test_law9_a_right_answer_is_read(gold, text):
    assert right(text, gold)
    assert MATH.metrics(text, record(gold)) == {"strict_match": 1, "flexible_match": 1}


@pytest.mark.parametrize(("gold", "text"), WRONG)
def test_law9_a_number_that_something_changes_is_no_answer(gold, text):
    assert not right(text, gold)
    assert MATH.metrics(text, record(gold))["strict_match"] == 0


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("5 + 2 = 7\n#### 7", 7, 7),
        ("#### 7\nNo:\n#### 8 dollars", 8, 8),
        ("####42", 42, 42),
        ("So the answer is: **$42**.", 42, 42),
        ("The answer is 3. The Answer is\n4, I hope that answer is right", 4, 4),
        ("That makes 10-5 = 5 apples", None, 5),
        ("From -3 up to \u22125", None, -5),
        ("It costs 12/4 dollars", None, 3),
        ("x = 18", None, 18), ("\\[18\\]", None, 18), ("### 42", None, 42), ("\\fbox{42}", None, 42), ("Hence 42.",
        None, 42),
        ("She sold 18 thousand.", None, 18000),
        ("####\n4 is it", 4, 4),
        ("She has 3 cats.\nThe total is 18\nfor them", None, 18),
        ("Take 5.\n3 + 4 = 7. Then 7 + 11 = 18. Good.", None, 18),
        ("20 - 2 =\n18 pens, not 7 * 3! So it is", None, 18),
        ("The 4 of us: " + "y" * 400 + " 18", None, 18), ("18 " + "y" * 400, None, 18),
        ("a 7\n## 18 ##", None, 18), ("y-18", None, -18), ("5.\n18k", None, 18000), ("18 to 20", None, 20),
        ("5. The rest is 18.5. Well", None, Fraction(37, 2)),
        ("nobody knows", None, None),
        ("", None, None),
    ],
)  # fmt: skip
def test_the_answer_is_found_strictly_and_flexibly(text, strict, flexible):
    for number, found in ((strict, final_answer(text)), (flexible, final_answer(text, flexible=True))):
        assert (found and found.reading.values) == (None if number is None else (number,))


@pytest.mark.parametrize("target", ["42", "42.0", "It is so.\n#### 42", "$42"])
@pytest.mark.parametrize("answer", ["42", "42.", "42.00", "$42"])
def test_answers_are_compared_as_numbers(answer, target):
    assert right(f"so\n#### {answer}", target)
    assert not right(f"so\n#### {answer}1", target)
    assert MATH.metrics(f"so it is {answer}", record(target)) == {"strict_match": 0, "flexible_match": 1}


def test_no_answer_equals_no_target():
    assert not right("nobody knows", "nobody knows")
    assert "neither a number nor a formula" in MATH.unsolvable(record("nobody knows"))
    for gold in ("#### 3\\sqrt{2}", "\\boxed{54}", "x+1", "\\frac12", "10:30", "2^{10}", "-1,234.50"):
        assert MATH.unsolvable(record(gold)) is None


@pytest.mark.parametrize(
    ("text", "complete"),
    [("#### 42", False), ("#### 42\n", True), ("#### 42\nso", True), ("\\boxed{42}", True),
     ("The answer is 42", False), ("The answer is 42.", False), ("The answer is 42. So", True),
     ("The answer is 42.\nQ", True),
     ("\\boxed{42", False)],
)  # fmt: skip
def test_what_ended_by_its_length_has_an_answer_only_where_the_statement_is_complete(text, complete):
    assert MATH.check(CutOff(text), record("42")).right == complete == (not MATH.check(CutOff(text), record("42")).cut)
    assert MATH.metrics(CutOff(text), record("42"))["strict_match"] == complete
    assert MATH.metrics(CutOff("It is 42"), record("42"))["flexible_match"] == 0


def test_every_gold_of_gsm8k_is_right_with_itself_and_wrong_with_a_changed_answer():
    records = []
    for name, most in (("gsm8k/test.jsonl", None), ("gsm8k/train.jsonl", 500)):
        with real_data(name).open(encoding="utf-8") as lines:
            records += [json.loads(line) for line in lines][:most]
    assert len(records) == 1819
    for one in records:
        number = one["answer"].rpartition("####")[2].strip()
        assert right(one["answer"], one["answer"]) and right(f"The answer is {number}.", one["answer"])
        assert right(clean_solution(one["answer"]), number)
        changed = gold_reading(one["answer"]).values[0] + 1
        for text in (
            f"#### {changed}",
            f"The answer is {number}1.",
            f"#### {number} * 2 + 1",
            f"\\boxed{{{number} million}}",
        ):
            assert not right(text, one["answer"]) or number == "0"


def test_the_judged_outputs_are_read_as_people_read_them():
    with real_data("answers/answers.jsonl").open(encoding="utf-8") as lines:
        outputs = [json.loads(line) for line in lines]
    marked = [one for one in outputs if one["marked"]]
    refused = [one for one in marked if one["right"] and not right(one["text"], one["gold"])]
    accepted = [one for one in outputs if not one["right"] and right(one["text"], one["gold"])]
    assert len(refused) <= 0.08 * sum(one["right"] for one in marked), refused
    assert len(accepted) <= 0.05 * sum(not one["right"] for one in outputs), accepted
    assert not any(right(one["text"], one["gold"]) for one in outputs if not one["marked"])


@pytest.mark.parametrize(
    "unit",
    ["1", "1,", "1,000,", ".1", "1/", "0.", "#", "#### ", "####\t", " ", "-", "$", "answer is ", "answer is*", "\n",
     "answer to the ", "one hundred ", "\\boxed{", "{", "\\frac", "\\text{", "(", "1 ", "=", "or 1 ", "1 1/2 "],
)  # fmt: skip
def test_a_million_characters_take_no_time(unit):
    text = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    for head in ("", "#### ", "answer is ", "\\boxed{"):
        final_answer(head + text, flexible=True)
        read_statement(head + text)
    assert time.perf_counter() - start < 10  # seconds; linear takes about one


def test_solutions_lose_their_marks_and_have_one_form_of_answer():
    answer = " A year costs 1000*12 = $<<1000*12=12000>>12,000.\n#### $12,000 \n"
    assert clean_solution(answer) == "A year costs 1000*12 = $12,000.\n#### 12000"
    assert clean_solution("It is 1/2.\n#### 1,000.5") == "It is 1/2.\n#### 1000.5"
    assert clean_solution("no number\n#### none") == "no number\n#### none"
    assert clean_solution("a root\n#### 3\\sqrt{2}") == "a root\n#### 3\\sqrt{2}"
    assert clean_solution("no line") == "no line"
    assert clean_solution(clean_solution(answer)) == clean_solution(answer)


def test_the_prompt_ends_where_the_answer_begins():
    assert prompt_text(" How many? ") == "Question: How many?\nAnswer:"
