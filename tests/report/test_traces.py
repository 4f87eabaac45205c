from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.report.traces import pieces
from llmhalluc.tasks.sudoku.text import answer_text
from tests.exp.synthetic import tokens, wrong

PUZZLE, SOLUTION = "12..34..21..43..", "1234341221434321"
ANSWER = answer_text(PUZZLE, SOLUTION)
RIGHT = tokens(ANSWER)
WORDS = [
    *RIGHT,
    *(wrong(wrong(move)) for move in RIGHT),
    "",
    "<BT>",
]  # id -> token; the last two are the end and BACKTRACK
N, END, BT = len(RIGHT), len(WORDS) - 2, len(WORDS) - 1
traces = st.lists(st.integers(0, BT).map(lambda i: i if i % 3 else BT), max_size=16)


def decode(ids):
    return (" " if " " in ANSWER else "").join(filter(None, (WORDS[i] for i in ids)))


def bare_and_events(ids):
    """The trace as one in which an operator erased what the BACKTRACKs erase."""
    bare, events, standing = [], [], 0
    for token in ids:
        if token != BT:
            bare.append(token)
        elif standing:
            events.append((len(bare), 1, "a_rule"))
        standing = max(0, standing + (1 if token != BT else -1))
    return bare, events


def test_pieces_by_hand():
    def letters(ids):
        return "".join("abc<"[i] for i in ids)

    assert pieces([0, 1, 3, 2], 3, letters) == [
        ("kept", "a", ""), ("erased", "b", "BACKTRACK"), ("back", "", "BACKTRACK"), ("kept", "c", ""),
    ]  # fmt: skip
    events = [(2, 1, "BACKTRACK"), (5, 2, "a_rule")]  # the BACKTRACK stands in the trace; a rule emits nothing
    assert pieces([0, 3, 0, 1, 2, 1], 3, letters, events) == [
        ("erased", "a", "BACKTRACK"), ("back", "", "BACKTRACK"), ("kept", "a", ""), ("erased", "bc", "a_rule"),
        ("kept", "b", ""),
    ]  # fmt: skip
    assert pieces([0, 1], None, letters, [(2, 1, "a_rule")]) == [("kept", "a", ""), ("erased", "b", "a_rule")]


@given(traces)
def test_law6_kept_pieces_are_the_surviving_text(ids):
    found = pieces(ids, BT, decode)
    kept = "".join(text for kind, text, _ in found if kind == "kept")
    assert kept.split() == decode(apply_backtracking(ids, BT)).split() or " " not in ANSWER
    assert kept.replace(" ", "") == decode(apply_backtracking(ids, BT)).replace(" ", "")
    assert sum(kind == "back" for kind, _, _ in found) == ids.count(BT)


@given(traces)
def test_law6_what_an_operator_erases_is_shown_as_what_a_backtrack_erases(ids):
    bare, events = bare_and_events(ids)

    def shown(found):
        runs = [(kind, text.strip()) for kind, text, _ in found if kind != "back" and text.strip()]
        return [(kind, "".join(text for _, text in run)) for kind, run in groupby(runs, lambda run: run[0])]

    assert shown(pieces(bare, None, decode, events)) == shown(pieces(ids, BT, decode))


def test_pieces_keep_the_spaces_that_decoding_puts_between():
    assert pieces([1, 2, BT, 3], BT, lambda ids: " ".join(map(str, ids))) == [
        ("kept", "1", ""), ("erased", " 2", "BACKTRACK"), ("back", "", "BACKTRACK"), ("kept", " 3", ""),
    ]  # fmt: skip


def test_without_backtrack_all_is_kept():
    assert pieces([6, 10, 7], None, lambda ids: "x" * len(ids)) == [("kept", "xxx", "")]
