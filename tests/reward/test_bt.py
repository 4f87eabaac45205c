"""The components and what mixes them: their values, their weights, their errors, their speed."""

import json
import time
from types import SimpleNamespace

import pytest

from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.law5 import COMPONENTS, MARGIN, law5_problems
from llmhalluc.hparams.parser import build
from llmhalluc.hparams.sections import RewardArguments
from llmhalluc.reward import bt
from llmhalluc.reward.bt import (
    SCORES,
    BacktrackRewardFunction,
    backtrack_efficiency,
    curriculum_weights,
    format_quality,
    mix,
    process_quality,
)  # fmt: skip
from llmhalluc.reward.erased import NOTHING, Erased, judge_erasures
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.math.solution import clean_solution
from tests.real import real_data
from tests.reward.toy import BT, EOS, HONEST, MATH, MOVES, SUDOKU, Characters, Words, corrected


def outcome_accuracy(text, task, record):
    return int(TASKS[task].check(text, record).right)


def parts(trace, problem):
    function = BacktrackRewardFunction(RewardArguments(), Words() if problem is SUDOKU else Characters(), BT)
    sample = function.sample(trace, *problem)
    return {name: score(sample) for name, score in SCORES.items()}


def ids(text, problem=MATH):
    return [*(Words() if problem is SUDOKU else Characters()).encode(text), EOS]


def call(args, step, traces, problem=MATH, logged=None, extra=None):
    n = len(traces)
    function = BacktrackRewardFunction(args, Words() if problem is SUDOKU else Characters(), BT)
    return function(
        prompts=["p"] * n, completions=["decoded without BACKTRACKs #### 54"] * n, completion_ids=traces,
        task=[problem[0]] * n, record=[problem[1]] * n,
        prompt_ids=[[5]] * n, key=["k"] * n, trainer_state=SimpleNamespace(global_step=step, max_steps=100),
        log_metric=None if logged is None else lambda name, value: logged.setdefault(name, value),
        log_extra=None if extra is None else lambda name, values: extra.setdefault(name, values),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "outcome", "form"),
    [
        (HONEST, 1, 1), ("The answer is 54.", 1, 1), ("\\boxed{54}", 1, 1), ("#### $54.00", 1, 1),
        ("#### 53", 0, 1), ("54", 0, 0), ("", 0, 0), ("####", 0, 0), ("#### 54\n#### 53", 0, 0.5),
        ("#### 53\n#### 54", 1, 0.5), ("#### 54\n#### 54", 1, 0.5), ("#### 54 or 53", 0, 0.5), ("#### 53 54", 0, 0.5),
        ("The answer is 54 or 53.", 0, 0.5), ("The answer is 54 rolls for 3 days", 1, 1), ("#### 54\nand more", 1, 0.5),
        ("The answer is 53.\n#### 54", 1, 0.5), ("The answer is 54.\n#### 54", 1, 1), ("#### 5\u0664", 0, 0.5),
        ("#### \uff15\uff14", 0, 0), ("#### 5⁴", 0, 0.5), ("#### NaN", 0, 0), ("#### 1e999999", 0, 0.5),
        ("#### 54" + "0" * 5000, 0, 0.5), ("#### 54 and it is so", 1, 1),
        ("The answer is 54. More words.", 1, 0.5), ("\\boxed{54} and so on", 1, 0.5), ("#### -54", 0, 1),
        ("#### 108/2", 1, 1),
    ],
)  # fmt: skip
def test_law6_the_answer_that_counts_and_its_form(text, outcome, form):
    assert (outcome_accuracy(text, *MATH), format_quality(text, *MATH)) == (outcome, form)


@pytest.mark.parametrize(
    ("text", "process"),
    [
        (HONEST, 1),
        ("#### 54", 0.2),  # an answer without work
        ("", 0),
        ("1=1\n1=1\n2+2=4\n#### 54", 0.2),  # leads nowhere
        ("5 * 7 = 35\n#### 35", 0.2),  # true, and no step of the worked solution
        ("12 * 2 = 24\n#### 24", 0.2),  # one senseless equation
        ("12*4 = 48\n48+6 = 53\n#### 53", 0.4),  # the last step slips: 1 of 2 results, halved
        ("6+48 = 54\n#### 54", 1),
        ("12+42 = 54\n#### 54", 1),  # another way to a right answer
        ("5 * 7 = 35\n#### 54", 0.2),
        ("12*4 = 46\n46+6 = 52\n#### 52", 0.2),
        ("12*4 = 46\n46+6 = 53\n#### 53", 0.2),
        ("12*4 = 46\n12*4 = 46\n12*4 = 46\n48+6 = 54\n#### 54", 0.6),  # said three times, false once
        ("12*4 = 48\n48+6 = 54", 0.2),  # no answer
        ("54*1 = 54\n#### 54", 0.2),
        ("12*5 = 60\n60-60 = 0\n#### 54", 0.2),
    ],
)
def test_steps_count_that_lead_to_the_answer(text, process):
    assert process_quality(text, *MATH) == pytest.approx(process)


def test_an_honest_wrong_attempt_is_worth_more_than_a_guess_and_a_guess_more_than_nothing():
    attempt, guess = ids("12*4 = 48\n48+7 = 56\n#### 56"), ids("#### 56")
    weights = curriculum_weights(0, RewardArguments())
    scores = [mix(parts(trace, MATH), weights) for trace in (attempt, guess, ids("12*4 = 48"), [], [BT] * 9, [EOS])]
    assert scores[0] > scores[1] > scores[2] > scores[3] == scores[4]
    assert parts([], MATH) == parts([BT] * 9, MATH) == parts([EOS], MATH) == parts([0, EOS], MATH)
    assert parts([EOS], MATH) == dict.fromkeys(COMPONENTS, 0)


def test_stuffing_true_calculations_into_a_wrong_attempt_earns_nothing():
    wrong = "12*4 = 48\n48+6 = 53\n#### 53"
    stuffed = ["1+1 = 2\n2+1 = 3\n", "12+4 = 16\n16+6 = 22\n", "48+0 = 48\n", "5 * 7 = 35\n", "12*4 = 48\n" * 9,
               "12*4 = 48\n48+1 = 49\n49-1 = 48\n"]  # fmt: skip
    assert all(process_quality(extra + wrong, *MATH) <= process_quality(wrong, *MATH) for extra in stuffed)


def test_sudoku_moves_are_counted_against_the_solution_and_the_blanks():
    assert process_quality(MOVES, *SUDOKU) == format_quality(MOVES, *SUDOKU) == outcome_accuracy(MOVES, *SUDOKU) == 1
    wrong = MOVES.replace("d4=1", "d4=2")
    assert (process_quality(wrong, *SUDOKU), format_quality(wrong, *SUDOKU)) == (0.9, 1)
    assert outcome_accuracy(wrong, *SUDOKU) == 0
    assert process_quality("c1=3", *SUDOKU) == format_quality("c1=3", *SUDOKU) == 0.1
    assert process_quality("c1=3 " * 10, *SUDOKU) == 0.1
    assert process_quality("a1=1 b1=2", *SUDOKU) == format_quality("a1=1 b1=2", *SUDOKU) == 0
    assert process_quality(MOVES + " junk" * 10, *SUDOKU) == 0.5


def test_erased_tokens_are_wrong_unknown_or_needless():
    def judge(trace, problem, tokenizer):
        return judge_erasures(trace, BT, lambda i: tokenizer.decode([i]), *problem)

    math = lambda *texts: judge(corrected(*texts), MATH, Characters())  # noqa: E731
    assert math("12*4 = ", "46 rolls", "48 rolls\n#### 54") == Erased(7, 1, 0)  # the 4 stands again, nothing ended
    assert math("12*4 = ", "48 rolls", "48 rolls\n#### 54") == Erased(0, 6, 2)  # 48 ends a true calculation
    assert math("12*4 = ", "48 rolls\n", "48 rolls\n#### 54") == Erased(0, 0, 9)  # the line stands again as it was
    assert math("12*4 = ", "48 pies", "48 rolls\n#### 54") == Erased(0, 5, 2)
    assert math("", "12*4 = 46\n", "12*4 = 48\n48+6 = 54") == Erased(2, 8, 0)  # a whole wrong line
    assert math("", "12*4 = 48\n48+6 = 53", "12*4 = 48\n48+6 = 54") == Erased(1, 8, 10)  # and a right one below
    assert math("", "12+4 = 16", "12*4 = 48") == Erased(0, 6, 3)
    assert math("12*4 = 4", "9", "8") == Erased(1, 0, 0)
    sudoku = lambda *texts: judge(corrected(*texts, Words()), SUDOKU, Words())  # noqa: E731
    assert sudoku("c1=3", "d1=3 c2=1", MOVES[5:]) == Erased(1, 1, 0)  # a right move on a wrong one is no error
    assert sudoku("c1=3", "d1=3 c2=3", MOVES[5:]) == Erased(2, 0, 0)
    assert sudoku("", "c1=3 d1=3", MOVES) == Erased(1, 0, 1)  # one wrong move launders no right one
    assert sudoku("c1=3", "d1=4 c2=2", MOVES[5:]) == Erased(1, 0, 1)


def test_erased_tokens_are_looked_at_up_to_256_and_what_stands_again_after_that_was_needless():
    wrong, again = Words().encode("d1=3 junk")
    judge = lambda trace: judge_erasures(trace, BT, lambda i: Words().decode([i]), *SUDOKU)  # noqa: E731
    assert judge([wrong, BT] * 256) == Erased(256, 0, 0) and judge([wrong, BT] * 258) == Erased(256, 2, 0)
    assert judge([wrong, BT] * 255 + [again, BT, again]) == Erased(256, 0, 0)
    assert judge([wrong, BT] * 256 + [again, BT, again]) == Erased(256, 0, 1)


def test_a_step_that_ends_rightly_reaches_back_to_the_end_of_the_line_before(monkeypatch):
    judge = SimpleNamespace(is_wrong=lambda written, record: {"R": False, "W": True}.get(written.text))
    monkeypatch.setitem(TASKS, "math", judge)
    erased = lambda first, again: corrected("", first, again)  # noqa: E731
    count = lambda trace: judge_erasures(trace, BT, lambda i: Characters().decode([i]), *MATH)  # noqa: E731
    assert count(erased("x\nR", "xy")) == Erased(0, 2, 1)  # x is not of the step that R ends
    assert count(erased("xR", "xy")) == Erased(0, 0, 2)
    assert count(erased("xWR", "xy")) == Erased(1, 2, 0)
    assert count(erased("xW\n", "xy")) == Erased(2, 1, 0)
    assert count(erased("xu\n", "xu\n")) == Erased(0, 0, 3) and count(erased("xu", "xu")) == Erased(0, 2, 0)


def test_a_task_sees_64_tokens_of_the_text_that_stood(monkeypatch):
    seen = []
    spy = lambda written, record: seen.append((written.text, written.before(), written.stays))  # noqa: E731
    monkeypatch.setitem(TASKS, "math", SimpleNamespace(is_wrong=spy))
    text = "".join(chr(200 + i) for i in range(100))
    for trace in ([*ids(text)[:-1], BT], [*ids("xy")[:-1], BT, BT, *ids("xz")[:-1]]):
        judge_erasures(trace, BT, lambda i: Characters().decode([i]), *MATH)
    assert seen == [(text[-1], text[-64:], False), ("x", "x", True), ("y", "xy", False)]


def test_a_sample_says_what_was_erased_and_what_erased_nothing():
    function = BacktrackRewardFunction(RewardArguments(erasure_scale=9.0), Words(), BT)
    sample = function.sample([BT, *corrected("c1=3", "d1=3 c2=1", MOVES[5:], Words())], *SUDOKU)
    assert sample[:-1] == (MOVES, *SUDOKU, Erased(1, 1, 0), 1, 9.0) and sample.verdict.right


def test_a_correction_earns_and_needless_erasing_costs():
    honest = parts(ids(HONEST), MATH)
    fixed = parts(corrected("12*4 = ", "46", HONEST[7:]), MATH)
    needless = parts(corrected("12*4 = ", "48", HONEST[7:]), MATH)
    line = parts(corrected("", "12*4 = 46 rolls\n", HONEST), MATH)
    same_line = parts(corrected("", "12*4 = 48 rolls\n", HONEST), MATH)
    left = parts(ids("12*4 = 46\n46+6 = 52\n#### 52"), MATH)
    same_answer = parts(ids(HONEST.replace("48 rolls", "46 rolls")), MATH)
    for step in (0, 0.2, 1):
        weights = curriculum_weights(step, RewardArguments())
        scores = [mix(part, weights) for part in (honest, fixed, needless, same_answer, left)]
        assert scores[0] > scores[1] > scores[2] > scores[4] + MARGIN
        assert scores[1] > scores[3], "correcting beats leaving it"
        assert scores[0] > mix(line, weights) > max(scores[3], mix(same_line, weights))
    assert backtrack_efficiency("a", Erased(10)) > backtrack_efficiency("a" * 999, Erased(20))  # no share, a number
    assert backtrack_efficiency("a", NOTHING, scale=1e-15) == 1 and backtrack_efficiency(" ", NOTHING) == 0


def test_weights_move_as_configured():
    args = RewardArguments(curriculum_end=0.5)
    first, last = ({name: getattr(args, f"{name}_{stage}") for name in COMPONENTS} for stage in ("start", "end"))
    assert curriculum_weights(0, args) == first
    assert curriculum_weights(0.5, args) == curriculum_weights(1, args) == last
    assert curriculum_weights(0.25, args)["outcome"] == pytest.approx((first["outcome"] + last["outcome"]) / 2)
    args.curriculum = "cosine"
    assert curriculum_weights(0.125, args)["outcome"] == pytest.approx(0.6 + 0.25 * (1 - 0.5**0.5) / 2)
    args.curriculum = "none"
    assert curriculum_weights(0, args) == last
    assert SCORES.keys() == last.keys()
    process = [curriculum_weights(step / 50, RewardArguments())["process"] for step in range(50)]
    assert process == sorted(process, reverse=True) and process[0] > 3 * process[-1]


def test_law5_weights_that_break_it_are_refused():
    with pytest.raises(UserError) as caught:
        build({"reward": {"outcome_start": 0.45}})
    assert caught.value.sentences == (
        "reward.outcome_start is 0.45, and a wrong answer could win: raise it to at least 0.5, "
        "0.1 above reward.process_start, reward.efficiency_start, reward.format_start together",
    )
    assert build({"reward": {"outcome_start": 0.5}}).reward.outcome_start == 0.5
    assert [keys[0] for keys, _ in law5_problems(RewardArguments(process_end=1))] == ["reward.outcome_end"]


def test_trap7_configured_weights_reach_the_score():
    trace = corrected("12*4 = ", "46", HONEST[7:])
    part = parts(trace, MATH)
    for step in (0, 20, 50, 100):
        args = RewardArguments(outcome_start=0.9, process_end=0.2, erasure_scale=7)
        [score] = call(args, step, [trace])
        part["efficiency"], part["process"] = 7 / (7 + 1 / 8 + 1 / 4), 1
        assert score == pytest.approx(mix(part, curriculum_weights(step / 100, args)))


@pytest.mark.parametrize("name", COMPONENTS)
def test_trap7_a_component_that_raises_stops_the_run(monkeypatch, name):
    def broken(sample):
        raise ZeroDivisionError("broken")

    monkeypatch.setitem(SCORES, name, broken)
    with pytest.raises(ZeroDivisionError, match="broken"):
        call(RewardArguments(), 0, [ids(HONEST)])


def test_trap7_answers_are_compared_and_not_positions():
    shifted = "First, " + HONEST
    close = HONEST[:-1] + "5"
    assert sum(a == b for a, b in zip(close, HONEST, strict=True)) == len(HONEST) - 1
    assert outcome_accuracy(shifted, *MATH) == 1 and outcome_accuracy(close, *MATH) == 0


def test_trap7_unknown_tasks_and_a_run_without_an_end_are_errors():
    function = BacktrackRewardFunction(RewardArguments(), Characters(), BT)
    with pytest.raises(ValueError, match=f"^task is 'chess', expected one of {', '.join(TASKS)}$"):
        function.sample([1], "chess", {"question": "q", "answer": "a"})
    with pytest.raises(ValueError, match="^the trainer's max_steps is 0: the curriculum needs an end$"):
        function([], [], [], trainer_state=SimpleNamespace(global_step=0, max_steps=0))


def test_trap8_rewards_read_the_trace_and_log_every_component():
    logged, extra = {}, {}
    traces = [corrected("12*4 = ", "46", HONEST[7:]), ids("#### 53")]
    scores = call(RewardArguments(), 0, traces, logged=logged, extra=extra)
    assert scores[0] > scores[1]  # TRL's own decoded completions say 54 in both
    assert extra["surviving"] == [HONEST, "#### 53"] and extra["outcome"] == [1, 0]
    assert logged["reward/outcome"] == 0.5 and logged["reward/format"] == 1
    assert logged["reward/erasures"] == 1 and logged["reward/erasure_precision"] == 0.5
    assert {f"reward/{name}" for name in COMPONENTS} < logged.keys()
    assert logged["reward/weight_process"] == RewardArguments().process_start
    assert (
        BacktrackRewardFunction.__name__ == "BacktrackRewardFunction"
        and bt.BacktrackRewardFunction(RewardArguments(), Characters(), BT).__name__ == "backtrack_reward"
    )


def test_what_is_logged_is_exact():
    trace = [BT, *corrected("12*4 = ", "46", HONEST[7:])]
    logged = {}
    call(RewardArguments(), 0, [trace, ids(HONEST), ids("no answer")], logged=logged)
    emitted = len(trace) + len(HONEST) + 1 + len("no answer") + 1
    assert logged["reward/tokens_per_kept"] == emitted / (emitted - 2 * 2 - 1)
    assert logged["reward/verify_timeouts"] == 0 and logged["reward/cut_off"] == 0
    assert logged["reward/erasures"] == 2 / 3 and logged["reward/outcome"] == 2 / 3
    call(RewardArguments(), 0, [[BT], []], logged=(nothing := {}))
    assert nothing["reward/tokens_per_kept"] == 1 and "reward/erasure_precision" not in nothing
    cut = BacktrackRewardFunction(RewardArguments(), Characters(), BT, max_tokens=3)
    state, logged = SimpleNamespace(global_step=0, max_steps=1), {}
    cut(
        [ids("#### 5")[:-1], ids("54")],
        ["math"] * 2,
        [MATH[1]] * 2,
        state,
        lambda name, value: logged.update({name: value}),
    )
    assert logged["reward/cut_off"] == 0.5


def test_columns_of_different_lengths_are_an_error():
    function = BacktrackRewardFunction(RewardArguments(), Characters(), BT)
    with pytest.raises(ValueError):
        function([[5], [5]], ["math"], [MATH[1]] * 2, SimpleNamespace(global_step=0, max_steps=1))


def test_all_answers_of_a_batch_share_the_seconds(monkeypatch):
    clock, limits = [0.0], []

    def slow(self, completion_ids, task, record, limit):
        limits.append(limit)
        clock[0] += 1.5
        return real(self, completion_ids, task, record, limit)

    real = BacktrackRewardFunction.sample
    monkeypatch.setattr(BacktrackRewardFunction, "sample", slow)
    monkeypatch.setattr(bt.time, "monotonic", lambda: clock[0])
    call(RewardArguments(verify_timeout=1.0), 0, [ids(HONEST)] * 5)
    assert limits == [1.0, 1.0, 1.0, 0.0, 0.0]  # 4 limits together: 4, 2.5, 1, then nothing
    limits.clear()
    call(RewardArguments(verify_timeout=2.0), 0, [ids(HONEST)] * 6)
    assert limits == [2.0, 2.0, 2.0, 2.0, 2.0, 0.5]


def test_a_piece_is_what_a_token_adds_after_another_one():
    asked = []

    class Spaced(Characters):
        def encode(self, text, add_special_tokens=True):
            asked.append((text, add_special_tokens))
            return [0, *super().encode(text)] if add_special_tokens else super().encode("bcd" + text)

        def decode(self, ids, skip_special_tokens=False):
            return " ".join(super(Spaced, self).decode([i]) for i in ids if i > 2)

    function = BacktrackRewardFunction(RewardArguments(), Spaced(), BT)
    assert function.piece(ord("x")) == " x" and function.piece(ord("x")) == " x"
    assert asked == [("a", False)] and function._anchor == [ord("a")]


def test_a_batch_takes_milliseconds():
    traces = [corrected(HONEST[:7], "46 rolls", HONEST[7:20] + "so it is and more words " * 12 + HONEST[20:])] * 64
    call(RewardArguments(), 0, traces)
    start = time.perf_counter()
    call(RewardArguments(), 0, traces)
    assert time.perf_counter() - start < 1  # seconds; about 0.1, of tokens of one character


@pytest.mark.parametrize(
    "unit",
    ["1", "####", "#### 1\n", "answer is ", "answer is 1 or ", "\\boxed{", "\\boxed{1}", "{", "1+1=2\n", "12*4=4", "٣",
     "9^", "(", "a1=1 ", "c1=3 ", " ", "\n"],
)  # fmt: skip
@pytest.mark.parametrize("problem", [MATH, SUDOKU], ids=["math", "sudoku"])
def test_a_million_characters_take_a_second(unit, problem):
    text = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    for score in (outcome_accuracy, process_quality, format_quality):
        assert 0 <= score(text, *problem) <= 1
    assert time.perf_counter() - start < 10  # seconds; about 1 on an idle core


@pytest.mark.parametrize("unit", [[BT], [53, BT], [*ids("1+1=3")[:-1], BT], [53] * 9 + [BT] * 5])
def test_a_million_tokens_take_seconds(unit):
    trace = unit * (300_000 // len(unit))
    start = time.perf_counter()
    call(RewardArguments(), 0, [trace])
    assert time.perf_counter() - start < 10


def test_a_completion_of_the_longest_length_without_an_end_is_cut_off():
    function = BacktrackRewardFunction(RewardArguments(), Characters(), BT, max_tokens=len(HONEST))
    cut = function.sample(ids(HONEST)[:-1], *MATH)
    assert cut.verdict.cut and not cut.verdict.right and cut.text == HONEST
    assert function.sample([*ids(HONEST)[1:-1], EOS], *MATH).verdict.right
    assert BacktrackRewardFunction(RewardArguments(), Characters(), BT).sample(ids(HONEST)[:-1], *MATH).verdict.right
    for undone in ([BT, EOS], [BT, 7, BT, EOS], [BT, BT, EOS]):  # what was erased before the end is no sign of it
        assert function.sample([*undone[:-1], *ids(HONEST)], *MATH).verdict.right
        assert function.sample([*ids(HONEST)[:-1], 53, *undone], *MATH).verdict.cut is False
    assert function.sample([*ids(HONEST)[:-1], 53, BT], *MATH).verdict.cut  # a BACKTRACK ends nothing


def test_special_tokens_are_no_text():
    class Shown(Characters):
        def decode(self, ids, skip_special_tokens=False):
            return "".join(chr(i) if i > 2 else "" if skip_special_tokens else "<s>" for i in ids)

    class Closing(Shown):
        def encode(self, text, add_special_tokens=True):
            return [*super().encode(text), EOS]

    for tokenizer in (Shown(), Closing()):
        function = BacktrackRewardFunction(RewardArguments(), tokenizer, BT, max_tokens=4)
        assert function.sample([*ids("#### 54"), 0], *MATH).text == "#### 54"
        assert [function.piece(token) for token in (BT, EOS, ord("x"))] == ["", "", "x"]


def test_an_answer_has_the_seconds_of_its_limit(monkeypatch):
    task, limits = TASKS["math"], []
    spy = lambda text, record, limit: limits.append(limit) or task.check(text, record, limit)  # noqa: E731
    monkeypatch.setitem(TASKS, "math", SimpleNamespace(check=spy, is_wrong=task.is_wrong))
    function = BacktrackRewardFunction(RewardArguments(verify_timeout=7.0), Characters(), BT)
    for limit in ({}, {"limit": None}, {"limit": 0.5}, {"limit": 0.0}):
        function.sample(ids(HONEST), *MATH, **limit)
    assert limits == [7.0, 7.0, 0.5, 0.0]


def test_components_have_a_scale_of_32_and_know_whether_the_answer_is_right():
    assert process_quality(HONEST, *MATH, Erased(5, 5, 32)) == 0.5 == backtrack_efficiency("a", Erased(0, 0, 16))
    assert process_quality(HONEST, *MATH, Erased(0, 0, 8), 8.0) == backtrack_efficiency("a", Erased(), 8, 8.0) == 0.5
    other_way = "12+42 = 54\n#### 54"
    assert [process_quality(other_way, *MATH, right=right) for right in (True, None, False)] == pytest.approx(
        [1, 1, 0.6]
    )


def test_an_erasure_scale_without_sense_is_refused():
    for scale in (5e-15, 0.5, 1e9):
        with pytest.raises(UserError, match="reward.erasure_scale"):
            build({"reward": {"erasure_scale": scale, "efficiency_start": 1, "outcome_start": 1.5}})


def test_a_batch_of_hostile_answers_takes_a_bounded_time():
    args = RewardArguments(verify_timeout=0.2)
    problem = ("math", {"question": "q", "answer": "3"})
    start, logged = time.monotonic(), {}
    call(args, 0, [ids(f"\\boxed{{\\sqrt{{{n}^{{9^{{9^{{9^9}}}}}}}}}}") for n in range(2, 60)], problem, logged)
    assert time.monotonic() - start < 60  # seconds: one start of the verifier, and four limits
    assert logged["reward/verify_timeouts"] == 58


def test_worked_solutions_score_high():
    with real_data("gsm8k/train.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line, _ in zip(lines, range(700), strict=False)]
    tasks = [(clean_solution(record["answer"]), ("math", record)) for record in records]
    assert all(outcome_accuracy(text, *task) == 1 == format_quality(text, *task) for text, task in tasks)
    assert min(process_quality(text, *task) for text, task in tasks) >= 0.97
