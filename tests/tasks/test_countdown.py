"""Countdown: exact arithmetic, searches that end in the solution, and every way in which a task is used."""

from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.data.manager import load_datasets
from llmhalluc.data.problems import load_problems
from llmhalluc.data.traces import unpack
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.parser import build
from llmhalluc.models.patcher import add_token
from llmhalluc.selfgen.split import Splitter
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.boards import Move
from llmhalluc.tasks.countdown import CountdownOptions, CountdownTestOptions, options_of, part_of, reaches

TASK = TASKS["countdown"]
RECORDS = TASK.generate(CountdownOptions(count=60), "train") + TASK.generate(
    CountdownOptions(numbers=4, count=60), "train"
)
records = st.sampled_from(RECORDS)


def right(text: str, record: dict) -> bool:
    """A slow reference: replay the moves with fractions on a list."""
    left, words = [Fraction(number) for number in record["numbers"]], text.split()
    if not words or len(words) % 5:
        return False
    for at in range(0, len(words), 5):
        first, sign, second, equals, result = words[at : at + 5]
        if equals != "=" or not all(word.isdigit() for word in (first, second, result)) or sign not in "+-*/":
            return False
        a, b, c = Fraction(first), Fraction(second), Fraction(result)
        if a not in left:
            return False
        left.remove(a)
        if b not in left or c <= 0 or c > 100 or (sign == "/" and not b):
            return False
        left.remove(b)
        if {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign] != c:
            return False
        left.append(c)
    return left == [record["target"]]


@given(records, st.randoms(use_true_random=False), st.booleans())
def test_check_agrees_with_exact_arithmetic(record, rng, spoil):
    words = "".join(TASK.wrong_moves(record, [], rng) if rng.random() < 0.5 else TASK.moves(record)).split()
    if spoil:
        words[rng.randrange(len(words))] = rng.choice([*"+-*/=", *map(str, range(1, 30))])
    assert TASK.check(" ".join(words), record).right == right(" ".join(words), record)


@given(records, st.integers(0, 99))
def test_a_search_ends_in_the_solution_and_turns_back_at_dead_ends_alone(record, seed):
    standing: list[str] = []
    for piece in TASK.search(record, Random(seed)):
        if piece is None:
            assert TASK.step_keys(standing, record)[-1] is False  # nothing right is taken back
            standing.pop()
        else:
            standing.append(piece)
    assert standing == TASK.moves(record) and TASK.check("".join(standing), record).right


@given(records)
def test_what_can_be_reached_can_be_written(record):
    moves = TASK.rest([], record)
    assert TASK.check("".join(moves), record).right
    assert TASK.process("".join(moves), record) == TASK.format("".join(moves), record) == 1.0
    for step in options_of(tuple(sorted(record["numbers"]))):
        assert (TASK.rest([step.text], record) is not None) == reaches(step.after, record["target"])


def test_law8_train_and_test_share_no_problem():
    test = TASK.generate_test(CountdownTestOptions(count=300))
    keys = [{(tuple(sorted(one["numbers"])), one["target"]) for one in part} for part in (RECORDS, test)]
    assert not keys[0] & keys[1] and len(keys[1]) == 300
    assert all(part_of(one["numbers"], one["target"], 20) == "test" for one in test)
    assert all(TASK.held_out(one, CountdownOptions()) for one in test)
    assert not any(TASK.held_out(one, CountdownOptions()) for one in RECORDS)


def test_too_few_problems_are_one_sentence():
    with pytest.raises(UserError, match=r"only \d+ problems of 3 numbers up to 3 were found for test"):
        TASK.generate(CountdownOptions(count=40, largest=3), "test")


def loaded(converter: str):
    tokenizer = TASK.tokenizer("countdown")
    config = build({"data": {"dataset": "countdown", "converter": converter, "task": {"count": 40, "numbers": 4}}})
    return config, tokenizer, add_token(tokenizer)


@settings(max_examples=20)
@given(st.integers(0, 39), st.integers(0, 3))
def test_law1_traces_erase_back_to_the_clean_solution(index, epoch):
    config, tokenizer, backtrack_id = loaded("countdown_backtrack")
    traces, _ = load_datasets(config.data, config.backtrack, tokenizer, backtrack_id, 0)
    prompt, completion = traces.trace(epoch, index, 0.5)
    assert tokenizer.unk_token_id not in prompt + completion
    assert apply_backtracking(completion, backtrack_id) == traces.encoded[index]["completion_ids"].tolist()


def test_pairs_problems_and_steps_come_with_the_task():
    config, tokenizer, backtrack_id = loaded("backtrack_dpo")
    traces, _ = load_datasets(config.data, config.backtrack, tokenizer, backtrack_id, 0)
    pairs = [traces.converter.pair(unpack(item), Random(i), 1.0) for i, item in enumerate(traces.encoded)]
    made = [pair for pair in pairs if pair is not None]
    assert made and all(pair.chosen_ids[0] == backtrack_id != pair.rejected_ids[0] for pair in made)
    config, tokenizer, _ = loaded("countdown")
    problem = load_problems(config.data, tokenizer)[0]
    ids = tokenizer("".join(TASK.moves(problem.record)), add_special_tokens=False).input_ids
    steps = Splitter(tokenizer)(problem, ids)
    assert [step.text.strip() for step in steps] == problem.record["solution"] and all(step.key for step in steps)


def test_the_board_is_the_tree_of_the_search():
    record = {"numbers": [3, 4, 2], "target": 14, "solution": ["4 + 3 = 7", "7 * 2 = 14"]}
    words = "4 + 3 = 7 7 - 2 = 5 7 * 2 = 14".split()
    parents = [-1, *range(9), 4, *range(10, 14)]
    moves = [Move(word, parents[i], not 5 <= i < 10) for i, word in enumerate(words)]
    rows = [row[0] for row in TASK.board(record, moves).rows]
    assert [row.text for row in rows] == ["3 4 2 → 14", "4 + 3 = 7", "7 - 2 = 5", "7 * 2 = 14"]
    assert [row.marks for row in rows[1:]] == [("indent-1",), ("indent-2", "dead"), ("indent-2",)]


@given(records, st.integers(0, 3))
def test_next_moves_are_those_after_which_the_target_stays_reachable(record, n):
    standing = TASK.moves(record)[:n]
    found = TASK.next_moves(record, standing)
    numbers = [*record["numbers"]]
    for move in standing:
        left, _, other, _, result = move.split()
        numbers.remove(int(left))
        numbers.remove(int(other))
        numbers.append(int(result))
    every = options_of(tuple(sorted(numbers)))
    assert found == [step.text for step in every if TASK.rest([*standing, step.text], record) is not None]
    if n < len(record["numbers"]) - 1:
        assert found and all(TASK.step_keys([*standing, move], record)[-1] for move in found)
    else:
        assert found == []
