"""Law 5 over thousands of traces, and a search that tries to beat the honest answer.

Each check also runs on a reward that pays for erasures, and must find it out.
"""

from random import Random

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import apply_backtracking, inject_error
from llmhalluc.hparams.law5 import COMPONENTS, MARGIN, law5_problems
from llmhalluc.hparams.sections import RewardArguments
from llmhalluc.reward.bt import SCORES, BacktrackRewardFunction, curriculum_weights, mix
from tests.reward.toy import BT, EOS, HONEST, MATH, MOVES, SUDOKU, Characters, Words

QUESTIONS = {"math": MATH[1]["question"], "sudoku": SUDOKU[1]["puzzle"]}
CASES = {"math": (MATH, Characters(), HONEST), "sudoku": (SUDOKU, Words(), MOVES)}
PIECES = {
    "math": ["12*4 = 48 rolls\n", "48+6 = 54\n", "#### 54", "#### 5", "#### 53", "\n", "12*4 = 46", "46+6 = 52\n",
             "1+1=2 ", "4", "=", " ", "The answer is 54.", "or 53", "5 * 7 = 35 ", "\\boxed{54}", "52"],
    "sudoku": [*MOVES.split(), MOVES, "c1=4", "d4=2", "b3=2", "junk", "a1=1", "solve"],
}  # fmt: skip
FUNCTIONS = {name: BacktrackRewardFunction(RewardArguments(), case[1], BT) for name, case in CASES.items()}


def parts(name, trace):
    sample = FUNCTIONS[name].sample(trace, *CASES[name][0])
    return {part: float(score(sample)) for part, score in SCORES.items()}


def bribed(name, trace):
    """The mutated reward: something for each erasure."""
    part = parts(name, trace)
    return part | {"process": part["process"] + 0.05 * trace.count(BT)}


@st.composite
def traces(draw, name):
    tokenizer, trace = CASES[name][1], []
    if draw(st.booleans()):
        trace = tokenizer.encode(CASES[name][2])
    for _ in range(draw(st.integers(0, 8))):
        piece = draw(
            st.one_of(st.sampled_from(PIECES[name]).map(tokenizer.encode), st.integers(1, 9).map(lambda n: [BT] * n))
        )
        at = draw(st.sampled_from([len(trace), draw(st.integers(0, len(trace)))]))
        trace[at:at] = piece
    return [*trace, EOS] if draw(st.booleans()) else trace


@st.composite
def errors(draw, name):
    found = []
    for piece in draw(st.lists(st.sampled_from(PIECES[name]), min_size=1, max_size=3)):
        found += CASES[name][1].encode(piece)
        found += [BT] * draw(st.integers(0, len(found) - 2 * found.count(BT)))
    return found


@st.composite
def legal(draw):
    args = RewardArguments(curriculum=draw(st.sampled_from(["none", "linear", "cosine"])))
    args.curriculum_end, args.erasure_scale = draw(st.floats(0.01, 1)), draw(st.floats(1, 1000))
    for stage in ("start", "end"):
        rest = {part: draw(st.floats(0, 1)) for part in COMPONENTS[1:]}
        for part, weight in rest.items():
            setattr(args, f"{part}_{stage}", weight)
        setattr(args, f"outcome_{stage}", sum(rest.values()) + MARGIN + draw(st.sampled_from([0, 0.5])))
    assert not law5_problems(args)
    return args


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_law5_no_wrong_answer_comes_near_a_right_one(name, data):
    one, other = (parts(name, data.draw(traces(name))) for _ in range(2))
    assert all(0 <= value <= 1 for part in (one, other) for value in part.values())
    assert {one["outcome"], other["outcome"]} <= {0, 1}
    weights = curriculum_weights(data.draw(st.floats(0, 1)), data.draw(legal()))
    if one["outcome"] != other["outcome"]:
        right, wrong = sorted((one, other), key=lambda part: -part["outcome"])
        assert mix(right, weights) >= mix(wrong, weights) + MARGIN - 1e-9


def injected(name, data):
    """A trace, and the same with an error put in and erased."""
    trace = data.draw(traces(name))
    at, error = data.draw(st.integers(0, len(trace))), data.draw(errors(name))
    return trace, inject_error(trace, at, error, BT)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_law5_no_error_and_erasure_raises_a_score(name, data):
    trace, longer = injected(name, data)
    before, after = parts(name, trace), parts(name, longer)
    assert after["outcome"] == before["outcome"] and after["format"] == before["format"]
    assert after["process"] <= before["process"]
    assert after["efficiency"] < before["efficiency"] or not before["efficiency"]
    weights = curriculum_weights(data.draw(st.floats(0, 1)), data.draw(legal()))
    assert mix(after, weights) <= mix(before, weights)
    surviving = parts(name, apply_backtracking(trace, BT))
    assert mix(before, weights) <= mix(surviving, weights)


@given(
    start=st.sampled_from(["", "12*4 = ", "12*4 = 4", "48+6 = 5"]),
    pieces=st.lists(st.one_of(st.sampled_from("4 8 6 48 = 5 *".split()), st.integers(1, 4)), max_size=8),
    error=st.lists(st.sampled_from("4 8 6 48 = 5 *".split()), min_size=1, max_size=3),
    at=st.integers(0, 40),
)
@settings(max_examples=1000, deadline=None)
def test_law5_an_error_makes_the_judgement_of_no_other_token_milder(start, pieces, error, at):
    encode, function = Characters().encode, FUNCTIONS["math"]
    trace = encode(start)
    for piece in pieces:
        trace += [BT] * piece if isinstance(piece, int) else encode(piece)
    longer = inject_error(trace, min(at, len(trace)), encode("".join(error)), BT)
    before, after = (function.sample(ids, *MATH).erased for ids in (trace, longer))
    assert after.needless >= before.needless  # and from unknown to needless, where it ends a step rightly
    assert after.needless + after.unknown >= before.needless + before.unknown
    assert after.cost > before.cost
    assert sum(after) == sum(before) + len("".join(error))


@pytest.mark.parametrize("name", CASES)
def test_law5_over_thousands_of_traces(name):
    rng, tokenizer = Random(5), CASES[name][1]
    honest = tokenizer.encode(CASES[name][2])
    seen = {0: [], 1: []}
    for _ in range(2000):
        trace = honest
        for _ in range(rng.randrange(5)):
            trace = edits(name, trace, rng)[:500]
        error = tokenizer.encode(rng.choice(PIECES[name]))
        longer = inject_error(trace, rng.randrange(len(trace) + 1), error, BT)
        before, after = parts(name, trace), parts(name, longer)
        assert all(after[part] <= before[part] for part in COMPONENTS), (trace, longer)
        seen[before["outcome"]] += [before, after]
    assert min(map(len, seen.values())) > 300
    for step in range(11):
        for curriculum in ("none", "linear", "cosine"):
            weights = curriculum_weights(step / 10, RewardArguments(curriculum=curriculum))
            worst_right, best_wrong = (pick(mix(part, weights) for part in seen[i]) for pick, i in ((min, 1), (max, 0)))
            assert worst_right >= best_wrong + MARGIN


@pytest.mark.parametrize("name", CASES)
def test_law5_a_reward_for_erasures_is_found_out(name):
    @given(data=st.data())
    @settings(max_examples=300, deadline=None, database=None, phases=[Phase.generate])
    def law(data):
        trace, longer = injected(name, data)
        before, after = bribed(name, trace), bribed(name, longer)
        assume(before["outcome"])
        assert mix(after, curriculum_weights(0, RewardArguments())) <= mix(
            before, curriculum_weights(0, RewardArguments())
        )

    with pytest.raises(BaseException) as caught:  # an assertion, or a group of them
        law()
    assert "assert" in repr(caught.value).lower()


def edits(name, trace, rng):
    """One attempt to get more out of a trace."""
    tokenizer = CASES[name][1]
    piece = tokenizer.encode(rng.choice(PIECES[name]))
    at, end = sorted(rng.randrange(len(trace) + 1) for _ in range(2))
    tail = trace[at:]
    plain = apply_backtracking(tail, BT)
    return rng.choice(
        [
            lambda: inject_error(trace, at, piece, BT),  # junk, erased
            lambda: [*trace[:at], *tail, *[BT] * len(plain), *plain],  # erased and written again
            lambda: [*trace, *piece * rng.choice((1, 50))],  # padding after the answer
            lambda: [*piece * rng.choice((1, 50)), *trace],
            lambda: [*trace, *tokenizer.encode(PIECES[name][2])],  # the answer again, or another one
            lambda: [*trace, *tokenizer.encode(PIECES[name][4])],
            lambda: [*trace[:at], *piece, *trace[at:]],
            lambda: [*trace[:at], *trace[end:]],
            lambda: [*trace[:at], *piece, *trace[end:]],
            lambda: [],
            lambda: [BT] * rng.randrange(20),
            lambda: [*trace[:at], *[BT] * rng.randrange(5), *trace[at:]],
            lambda: [*tokenizer.encode(QUESTIONS[name]), *trace],
        ]
    )()


def search(name, score, start, rng, rounds=600):
    """The best score that random edits and greedy ascent find from a trace, and its trace."""
    best, best_score = start, score(start)
    current, current_score = best, best_score
    for round in range(rounds):
        if round % 60 == 59:
            current, current_score = best, best_score
        tried = edits(name, current, rng)[:3000]
        value = score(tried)
        if value >= current_score or rng.random() < 0.1:
            current, current_score = tried, value
        if value > best_score:
            best, best_score = tried, value
    return best_score, best


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_law5_a_search_does_not_beat_the_honest_answer(name, progress):
    weights = curriculum_weights(progress, RewardArguments())
    honest = [*CASES[name][1].encode(CASES[name][2]), EOS]
    top = mix(parts(name, honest), weights)
    assert top == pytest.approx(sum(weights.values()))
    worst_right, best_wrong = top, 0.0

    def score(trace):
        nonlocal worst_right, best_wrong
        part = parts(name, trace)
        value = mix(part, weights)
        if part["outcome"]:
            worst_right = min(worst_right, value)
        else:
            best_wrong = max(best_wrong, value)
        return value

    for seed, start in enumerate([honest, [], honest[: len(honest) // 2]]):
        found, trace = search(name, score, start, Random(seed))
        assert found <= top, trace
    assert best_wrong + MARGIN <= worst_right


@pytest.mark.parametrize("name", CASES)
def test_law5_the_search_beats_a_reward_for_erasures(name):
    weights = curriculum_weights(0, RewardArguments())
    honest = [*CASES[name][1].encode(CASES[name][2]), EOS]
    found, _ = search(name, lambda trace: mix(bribed(name, trace), weights), honest, Random(0), rounds=200)
    assert found > mix(bribed(name, honest), weights)
