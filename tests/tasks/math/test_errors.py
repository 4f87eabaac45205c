"""GSM8K: clean texts, wrong results that are carried on, ids that are never re-tokenised."""

import json
from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.tasks.math.errors import evaluate, symbols_of, write_like, wrong_number
from tests.data.toy import GSM8K, QA, bpe_tokenizer, converter, erased_positions
from tests.real import real_data

TOKENIZER = bpe_tokenizer()


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_marks_are_removed_and_the_answer_line_is_normalised():
    assert converter("gsm8k").texts(GSM8K[1]) == (
        f"Question: {GSM8K[1]['question']}\nAnswer:",
        " The year costs 1000*12 = $12,000.\nBack come 12000*.05 = $600.\n"
        "So (12000-600) = $11,400 is paid.\n#### 11400",
    )


def test_every_result_is_found_with_its_tokens():
    made = converter("gsm8k_backtrack")
    for record in GSM8K:
        encoded, (_, answer) = made.encode(record), made.texts(record)
        assert encoded["completion_ids"] == [*ids_of(answer), TOKENIZER.eos_token_id]
        results = [encoded["numbers"][index][3] for index, _ in encoded["steps"]]
        assert len(results) == record["answer"].count("<<")
        for index, expression in encoded["steps"]:
            first, last, before, number, after = encoded["numbers"][index]
            assert TOKENIZER.decode(encoded["completion_ids"][first:last]) == before + number + after
            assert evaluate(symbols_of(expression)) == float(number.replace(",", ""))


class Fixed(Random):
    """Draws the wrong digit of the kind `wrong_number` ends with, always the same one."""

    def __init__(self, at: int, digit: int):
        super().__init__(0)
        self.answers = [at, digit]

    def random(self) -> float:
        return 0.99

    def choice(self, options):
        wanted = self.answers.pop(0)
        assert wanted in options
        return wanted


@pytest.mark.parametrize(
    ("record", "step", "at", "digit", "error"),
    [
        # 24 -> 34: the sum 48+24 = 72 becomes 48+34 = 82, and so does the answer.
        (0, 0, 0, 3, "34 ducks.\nTogether there are 48+34 = 82 birds.\n#### 82"),
        (0, 1, 1, 5, "75 birds.\n#### 75"),
        # 12,000 -> 32,000: each number keeps its own format.
        (1, 0, 0, 3, "32,000.\nBack come 32000*.05 = $1600.\nSo (32000-1600) = $30,400 is paid.\n#### 30400"),
        (2, 0, 0, 4, "4.50.\nTwo get 4.5*2 = $9.\n#### 9"),
    ],
)
def test_a_wrong_result_is_carried_on(record, step, at, digit, error):
    made = converter("gsm8k_backtrack")
    encoded, (_, answer) = made.encode(GSM8K[record]), made.texts(GSM8K[record])
    start, ids = made.token_errors.error(encoded, step, 1000, Fixed(at, digit))
    written = TOKENIZER.decode([*encoded["completion_ids"][:start], *ids])
    assert ids_of(written) == [*encoded["completion_ids"][:start], *ids]  # as a model would write it
    number = encoded["numbers"][encoded["steps"][step][0]]
    right = TOKENIZER.decode(encoded["completion_ids"][: number[0]]) + number[2]
    assert answer.startswith(right)
    assert written == right + error


def test_a_run_ends_where_nobody_could_write_on():
    record = {"question": "?", "answer": "3-2 = <<3-2=1>>1 and 6/1 = <<6/1=6>>6.\n#### 6"}
    made = converter("gsm8k_backtrack")
    encoded = made.encode(record)
    start, ids = made.token_errors.error(encoded, 0, 1000, Fixed(0, 0))
    assert TOKENIZER.decode([*encoded["completion_ids"][:start], *ids]) == " 3-2 = 0 and 6/0 ="


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(), max_run=st.integers(1, 60), nesting=st.sampled_from([0.0, 0.9]))
def test_trap4_errors_are_ids_and_as_many_backtracks_follow(seed, max_run, nesting):
    made = converter("gsm8k_backtrack", rate=1.0, max_run=max_run, mean_run=20.0, nesting=nesting)
    special = {*TOKENIZER.all_special_ids, *TOKENIZER.added_tokens_decoder}
    for record in GSM8K[:3]:
        encoded = made.encode(record)
        _, ids = made.draw(encoded, Random(seed), 1.0)
        assert apply_backtracking(ids, made.backtrack_id) == encoded["completion_ids"]
        erased = erased_positions(ids, made.backtrack_id)
        assert len(erased) == ids.count(made.backtrack_id) >= len(encoded["steps"])
        assert not special & {ids[i] for i in erased}


def test_trap4_text_would_erase_another_number_of_tokens():
    made = converter("backtrack", rate=0.2)
    encoded, differs = made.encode(QA[1]), 0
    for seed in range(50):
        _, ids = made.draw(encoded, Random(seed), 1.0)
        differs += ids_of(TOKENIZER.decode(ids)) != ids
    assert differs  # so a trace kept as text would not have been the trace


def test_the_error_parts_from_the_right_text_at_its_first_token():
    made = converter("gsm8k_backtrack", rate=1.0)
    for record in GSM8K[:3]:
        encoded = made.encode(record)
        for seed in range(100):
            for step in range(len(encoded["steps"])):
                at, error = made.token_errors.error(encoded, step, 5, Random(seed))
                assert error
                assert error[0] != encoded["completion_ids"][at]


@given(value=st.floats(0, 1e9), model=st.sampled_from(["7", "7.5", "7.50", "1,000", "1,000.5", ".5"]))
def test_a_number_is_written_like_another(value, model):
    text = write_like(value, model)
    assert float(text.replace(",", "")) == pytest.approx(value, abs=0.051)
    assert ("," in text) == ("," in model and value >= 999.5)
    if "." in model:
        assert len(text.partition(".")[2]) == len(model.partition(".")[2])


@given(
    right=st.sampled_from(["7", "0", "10", "72", "2.50", "12,000", ".05", "999"]),
    expression=st.sampled_from(["48+24", "7/2", "0*5", "(3+4)*2", "1/0", "", "x+1"]),
    seed=st.integers(),
)
def test_a_wrong_number_is_another_number_in_the_same_format(right, expression, seed):
    wrong = wrong_number(right, symbols_of(expression), Random(seed))
    assert float(wrong.replace(",", "")) != float(right.replace(",", ""))
    assert float(wrong.replace(",", "")) >= 0
    assert len(wrong.partition(".")[2]) == len(right.partition(".")[2])


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("48/2", 24), ("2+3*4", 14), ("(2+3)*4", 20), ("10-2-3", 5), ("12/2/3", 2), ("-2+5", 3), ("2*-3+7", 1),
        (".5*8", 4), ("3.*2", 6), ("1/0", None), ("(1+2", None), ("1+2)", None), ("", None), ("2**9", None),
        ("5-9", None), ("9*9x", None), ("(" * 200, None), ("999999*999999*9", None),
    ],
)  # fmt: skip
def test_expressions(expression, value):
    assert evaluate(symbols_of(expression)) == value


expressions = st.recursive(
    st.integers(0, 99).map(str) | st.decimals(0, 9, places=2).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join) | inner.map("({})".format),
    max_leaves=8,
)


@given(expressions)
def test_expressions_have_the_value_that_python_gives_them(expression):
    try:
        value = eval(expression)
    except ZeroDivisionError:
        value = None
    expected = value if value is not None and 0 <= value <= 1e12 else None
    assert evaluate(symbols_of(expression)) == expected


@given(st.text("0123456789.+-*/()x ", max_size=30))
def test_no_text_breaks_the_evaluation(expression):
    value = evaluate(symbols_of(expression))
    assert value is None or 0 <= value <= 1e12


def test_real_records_survive_and_err_where_they_have_marks():
    with real_data("gsm8k/train.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in islice(lines, 400)]
    made = converter("gsm8k_backtrack", rate=0.02, max_run=40, mean_run=15.0)
    erased = 0
    for encoded, record in zip(made.encode_batch(records), records, strict=True):
        assert len(encoded["steps"]) == record["answer"].count("<<")
        _, ids = made.draw(encoded, Random(1), 1.0)
        assert apply_backtracking(ids, made.backtrack_id) == encoded["completion_ids"]
        assert encoded["completion_ids"][:-1] == ids_of(made.texts(record)[1])
        erased += made.backtrack_id in ids
    assert erased > 300
