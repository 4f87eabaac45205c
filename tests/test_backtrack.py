"""Laws 1 and 2 and the three contexts, against a slow stack machine and a slow list of visible rows."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.backtrack import (
    CONTEXTS,
    ERROR_LABELS,
    IGNORE,
    Tape,
    apply_backtracking,
    erasures,
    inject_error,
    labels,
    layout,
    replay,
    tops,
    unoffered,
)

BT = 99
plain = st.lists(st.integers(0, 9), max_size=12)
traces = st.lists(st.one_of(st.integers(0, 9), st.just(BT)), max_size=30)
prompts = st.lists(st.integers(10, 19), min_size=1, max_size=4)


def slow_replay(trace):
    """One token at a time on a list: the oracle."""
    stack = []
    for i, token in enumerate(trace):
        if token != BT:
            stack.append(i)
        elif stack:
            del stack[-1]
    return stack


@st.composite
def nested_injections(draw):
    """A clean completion, and the trace after some injections, each maybe inside an earlier error."""
    clean = draw(plain)
    trace = list(clean)
    for _ in range(draw(st.integers(0, 4))):
        trace = inject_error(trace, draw(st.integers(0, len(trace))), draw(plain), BT)
    return clean, trace


@given(traces)
def test_replay_is_the_stack_machine(trace):
    assert replay(trace, BT) == slow_replay(trace)
    assert apply_backtracking(trace, BT) == [trace[i] for i in slow_replay(trace)]


@given(traces)
def test_tops_are_the_last_survivors_before_each_token(trace):
    assert tops(trace, BT) == [(slow_replay(trace[:i]) or [-1])[-1] for i in range(len(trace))]


@given(plain, st.data())
def test_law1_injected_errors_erase_themselves(clean, data):
    at = data.draw(st.integers(0, len(clean)))
    inner = data.draw(plain)
    error = inject_error(inner, data.draw(st.integers(0, len(inner))), data.draw(plain), BT)
    assert apply_backtracking(inject_error(clean, at, error, BT), BT) == clean


@given(nested_injections())
def test_law1_any_nesting(case):
    clean, trace = case
    assert apply_backtracking(trace, BT) == clean


@pytest.mark.parametrize("error, at", [([BT, 1], 1), ([1, BT, BT], 1), ([1, BT, BT, 1, 1], 0), ([1], 3), ([1], -1)])
def test_inject_error_refuses_what_would_reach_outside(error, at):
    said = "error_ids hold a BACKTRACK that erases a token before the error"
    if at not in (0, 1):
        said = f"at is {at}, the completion has positions 0 to 2"
    with pytest.raises(ValueError, match=f"^{said}$"):
        inject_error([1, 2], at, error, BT)


@given(prompts, traces)
def test_law2_mask_ignores_exactly_prompt_and_erased(prompt, trace):
    targets = labels(prompt, trace, BT, "mask")
    kept = {len(prompt) + i for i in slow_replay(trace)} | {
        len(prompt) + i for i, token in enumerate(trace) if token == BT
    }
    assert [i for i, target in enumerate(targets) if target != IGNORE] == sorted(kept)
    assert all(targets[i] == (prompt + trace)[i] for i in kept)


@given(prompts, traces)
def test_law2_redirect_targets_the_final_follower(prompt, trace):
    targets = labels(prompt, trace, BT, "redirect")[len(prompt) :]
    final = slow_replay(trace)
    stack = []
    for i, token in enumerate(trace):
        if token == BT or i in final:
            assert targets[i] == token
        else:  # erased: redirected where the stack below it is a prefix of the final text, and goes on there
            on_track = stack == final[: len(stack)] and len(stack) < len(final)
            assert targets[i] == (trace[final[len(stack)]] if on_track else IGNORE)
        if token != BT:
            stack.append(i)
        elif stack:
            stack.pop()
    assert labels(prompt, trace, BT, "redirect")[: len(prompt)] == [IGNORE] * len(prompt)


@given(prompts, traces)
def test_law2_train_targets_the_whole_completion(prompt, trace):
    assert labels(prompt, trace, BT, "train") == [IGNORE] * len(prompt) + trace


def test_trap5_nested_erasures_are_replayed_not_counted():
    # "the 2 tokens before 2 BACKTRACKs" would mask c and the inner BACKTRACK, and train on a.
    trace = [1, 2, BT, 3, BT, BT, 4]
    assert labels([], trace, BT, "mask") == [IGNORE, IGNORE, BT, IGNORE, BT, BT, 4]
    assert labels([], trace, BT, "redirect") == [4, IGNORE, BT, IGNORE, BT, BT, 4]


def slow_rows(prompt, trace, context):
    """Each query row's visible rows as (id, position), in order of position: the slow way."""
    seen = []
    for end in range(len(trace) + 1):
        done, run = trace[:end], 0  # run: BACKTRACKs at the end, the run that still lasts
        while context == "block" and run < len(done) and done[-1 - run] == BT:
            run += 1
        before = done[: len(done) - run]
        kept = done if context == "soft" else [before[i] for i in slow_replay(before)] + [BT] * run
        view = list(prompt) + list(kept)
        seen.append([(token, position) for position, token in enumerate(view)])
    return seen


@pytest.mark.parametrize("context", CONTEXTS)
@given(prompt=prompts, trace=traces)
def test_layout_shows_what_the_context_says(context, prompt, trace):
    ids, positions, until = layout(prompt, trace, BT, context)
    assert len(ids) == len(positions) == len(until) == len(prompt) + len(trace)
    for end, expected in enumerate(slow_rows(prompt, trace, context)):
        query = len(prompt) + end - 1
        visible = [(ids[j], positions[j]) for j in range(query + 1) if query < until[j]]
        assert sorted(visible, key=lambda row: row[1]) == expected


@pytest.mark.parametrize("context", CONTEXTS)
@given(prompt=prompts, trace=traces)
def test_tape_writes_the_layout(context, prompt, trace):
    ids, positions, until = layout(prompt, trace, BT, context)
    tape = Tape(prompt, BT, context)
    for i, token in enumerate(trace):
        query = len(prompt) + i
        assert tape.feed(token) == (ids[query], positions[query])
        visible = {positions[j]: ids[j] for j in range(query + 1) if query < until[j]}
        assert tape.columns == [visible[position] for position in range(len(visible))]
        assert tape.surviving == apply_backtracking(trace[: i + 1], BT)
    assert tape.erased == len(trace) - len(tape.surviving) - trace.count(BT)


@pytest.mark.parametrize("context", CONTEXTS)
@given(prompt=prompts, trace=traces, data=st.data())
def test_erase_unwrites_as_if_never_written(context, prompt, trace, data):
    tape = Tape(prompt, BT, context)
    for token in trace:
        tape.feed(token)
    survivors = slow_replay(trace)
    count = data.draw(st.integers(0, len(survivors)))
    top = tape.erase(count)
    assert top == (tape.columns[-1], len(tape.columns) - 1)
    assert tape.surviving == [trace[i] for i in survivors[: len(survivors) - count]]
    if count and context != "soft":
        assert tape.columns == prompt + tape.surviving
    if count and context == "soft":
        assert tape.columns == prompt + trace[: survivors[len(survivors) - count]]


@pytest.mark.parametrize("make", [lambda p, t: layout(p, t, BT, "rewind"), lambda p, t: Tape(p, BT, "rewind").feed(BT)])
def test_rewind_with_nothing_left_is_refused(make):
    with pytest.raises(
        ValueError, match="^rewind needs a token to feed again: the prompt is empty and so is the rest$"
    ):
        make([], [BT])


def test_block_may_begin_with_a_backtrack():
    assert layout([], [BT, 7, BT], BT, "block") == ([BT, 7, BT], [0, 0, 1], [1, 3, 3])
    tape = Tape([], BT, "block")
    assert [tape.feed(token) for token in (BT, 7, BT)] == [(BT, 0), (7, 0), (BT, 1)]


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_is_erased_is_banned_in_every_context(context):
    tape = Tape([1], BT, context, ban_erased=True)
    for token in (5, 6, BT, 7, BT):
        tape.feed(token)
    assert tape.penalties == {1: {6: -math.inf, 7: -math.inf}}


def test_no_erasure_is_on_offer_where_none_is_left():
    tape = Tape([1], BT, "soft", max_erasures=0)
    tape.feed(5)
    assert not tape.nothing_to_add() and tape.penalties_here(9) == {BT: -math.inf}


def test_unknown_names_are_refused():
    for call in (lambda: layout([1], [2], BT, "hard"), lambda: Tape([1], BT, "hard")):
        with pytest.raises(ValueError, match="soft, block, rewind"):
            call()
    with pytest.raises(ValueError, match=", ".join(ERROR_LABELS)):
        labels([1], [2], BT, "drop")


@given(traces, st.data())
def test_erasures_say_who_erased_what_and_when(trace, data):
    spelled, events, standing = [], [], []  # as if an operator's erasures were BACKTRACKs, and whose each one is
    for i, token in enumerate(trace):
        spelled.append((token, i))
        if token == BT and standing:
            events.append((i + 1, 1, "BACKTRACK"))
        standing = slow_replay([token for token, _ in spelled])
        count = data.draw(st.integers(0, min(2, len(standing)))) if data.draw(st.booleans()) else 0
        if count:
            events.append((i + 1, count, "rule"))
            spelled += [(BT, i)] * count
            standing = slow_replay([token for token, _ in spelled])
    found = erasures(trace, BT, events)
    ids = [token for token, _ in spelled]
    kept = {spelled[j][1] for j in slow_replay(ids)}
    assert {erased.token for erased in found} == {i for i, t in enumerate(trace) if t != BT} - kept
    assert [(at, source) for _, at, source in found] == [(at, source) for at, n, source in events for _ in range(n)]
    assert all(erased.token < erased.at for erased in found)


def test_erasures_of_a_small_trace():
    assert erasures([7, 8, BT, 9], BT) == [(1, 3, "BACKTRACK")]
    assert erasures([7, 8, BT, 9, 5], BT, [(3, 1, "BACKTRACK"), (4, 2, "rule")]) == [
        (1, 3, "BACKTRACK"), (3, 4, "rule"), (0, 4, "rule"),
    ]  # fmt: skip
    assert erasures([BT, 7], BT) == [] and erasures([3, 4], None, [(2, 1, "rule")]) == [(1, 2, "rule")]


@given(traces, st.booleans(), st.integers(0, 4), st.integers(1, 12))
def test_unoffered_says_what_decoding_had_left_out(trace, ban_erased, budget, n_vocabulary):
    found = unoffered(trace, BT, ban_erased, budget, n_vocabulary)
    for i, gone in enumerate(found):
        standing = slow_replay(trace[:i])
        effective = [j for j in range(i) if trace[j] == BT and slow_replay(trace[:j])]
        closed = not standing or len(effective) >= budget
        # Positions are those of the erasure only while nothing before the place was taken back.
        erased = {trace[slow_replay(trace[:j])[-1]] for j in effective if slow_replay(trace[: j + 1]) == standing}
        banned = erased if ban_erased and len(erased) + closed < n_vocabulary else set()
        assert sorted(gone) == sorted([BT] * closed + [*banned])
    assert len(found) == len(trace)


def test_a_copy_of_a_tape_goes_its_own_way():
    tape = Tape([1], BT, "soft", ban_erased=True, max_erasures=3)
    for token in (5, 6, BT):
        tape.feed(token)
    twin = tape.copy()
    for token in (7, BT, BT):
        twin.feed(token)
    assert (tape.surviving, tape.columns, tape.erased) == ([5], [1, 5, 6, BT], 1)
    assert tape.penalties == {1: {6: -math.inf}} and twin.surviving == [] and twin.penalties == {0: {5: -math.inf}}
    assert twin.erased == 3 and len(twin.columns) == 7
    tape.feed(8)
    assert twin.surviving == [] and tape.erase(1) == (BT, 3)


@pytest.mark.parametrize("most", [math.inf, 2])
def test_nothing_to_add_is_said_where_there_is_no_penalty(most):
    plain = Tape([1], None, "soft")
    assert plain.nothing_to_add() and plain.penalties_here(9) == {}
    tape = Tape([1], BT, "soft", ban_erased=True, max_erasures=most)
    said = []
    for token in (5, 6, BT, 7, BT, 8):
        said.append((tape.nothing_to_add(), tape.penalties_here(9)))
        tape.feed(token)
    bans = [{BT: -math.inf}, {}, {}, {6: -math.inf}, {}, {6: -math.inf, 7: -math.inf}]
    assert [found for _, found in said] == [*bans[:5], bans[5] | ({BT: -math.inf} if most == 2 else {})]
    assert [nothing for nothing, _ in said] == [not found for _, found in said]
    assert Tape([1], BT, "soft").ban_erased is False


def test_a_penalty_of_an_operator_adds_up_and_stays_with_its_place():
    tape = Tape([1], BT, "rewind")
    for token in (5, 6):
        tape.feed(token)
    assert tape.erase(1, -2.0) == (5, 1) and tape.penalties_here(9) == {6: -2.0}
    tape.feed(6)
    tape.erase(1, -3.0)
    assert tape.penalties_here(9) == {6: -5.0}
    tape.feed(BT)
    assert tape.penalties == {} and tape.columns == [1]
