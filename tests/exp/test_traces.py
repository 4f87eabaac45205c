from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.exp.traces import frames, pieces
from llmhalluc.prompts.sudoku import answer_text, fill
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
    bare, events, standing = [], [], 0
    for token in ids:
        if token != BT:
            bare.append(token)
        elif standing:
            events.append((len(bare), 1, "a_rule"))
        standing = max(0, standing + (1 if token != BT else -1))

    def shown(found):
        runs = [(kind, text.strip()) for kind, text, _ in found if kind != "back" and text.strip()]
        return [(kind, "".join(text for _, text in run)) for kind, run in groupby(runs, lambda run: run[0])]

    assert shown(pieces(bare, None, decode, events)) == shown(pieces(ids, BT, decode))
    idle = {i for i, token in enumerate(ids) if token == BT and not apply_backtracking(ids[:i], BT)}
    boards = [(frame["board"], frame["kind"], frame["cell"]) for frame in frames(PUZZLE, ids, BT, decode)]
    theirs = frames(PUZZLE, bare, None, decode, events)
    assert [(frame["board"], frame["kind"], frame["cell"]) for frame in theirs] == [
        board for i, board in enumerate(boards) if i not in idle
    ]
    assert {frame["who"] for frame in theirs} <= {None, "a_rule"}


def test_pieces_keep_the_spaces_that_decoding_puts_between():
    assert pieces([1, 2, BT, 3], BT, lambda ids: " ".join(map(str, ids))) == [
        ("kept", "1", ""), ("erased", " 2", "BACKTRACK"), ("back", "", "BACKTRACK"), ("kept", " 3", ""),
    ]  # fmt: skip


def test_without_backtrack_all_is_kept():
    assert pieces([6, 10, 7], None, lambda ids: "x" * len(ids)) == [("kept", "xxx", "")]


def test_frames_by_hand():
    write, gone, right, end = frames(PUZZLE, [N, BT, 0, END], BT, decode)
    assert write == {
        "token": WORDS[N], "kind": "write", "board": "121.34..21..43..", "cell": 2, "conflicts": [0, 2],
        "erased_at": 1, "who": None,
    }  # fmt: skip
    assert (gone["kind"], gone["board"], gone["cell"], gone["token"]) == ("erase", PUZZLE, 2, "⌫")
    assert gone["who"] == "BACKTRACK"
    assert (right["kind"], right["board"], right["erased_at"]) == ("write", "123.34..21..43..", None)
    assert (end["kind"], end["token"], end["cell"], end["board"]) == ("other", "end", None, right["board"])


@given(traces)
def test_law6_the_last_board_is_the_surviving_text(ids):
    found = frames(PUZZLE, ids, BT, decode)
    assert len(found) == len(ids)
    board = fill(PUZZLE, decode(apply_backtracking(ids, BT)))
    assert not found or board in (None, found[-1]["board"])  # None: a move that is none, which leaves a board as it is
    erased = sum(frame["erased_at"] is not None for frame in found)
    assert erased == len(ids) - ids.count(BT) - len(apply_backtracking(ids, BT))


def test_a_move_too_many_leaves_the_board_alone():
    *_, last, extra = frames(PUZZLE, [*range(N), 0], BT, decode)
    assert last["board"] == extra["board"] == SOLUTION and extra["kind"] == "other" and not last["conflicts"]
