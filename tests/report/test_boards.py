from hypothesis import given

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.report.boards import frames, stepper
from llmhalluc.report.traces import Shown
from llmhalluc.tasks import TASKS, board_of
from llmhalluc.tasks.boards import Board, Cell
from llmhalluc.tasks.sudoku.text import fill
from tests.report.test_traces import BT, END, PUZZLE, SOLUTION, WORDS, N, bare_and_events, decode, traces

DOC = {"puzzle": PUZZLE, "solution": SOLUTION}


def shown(ids, backtrack_id=BT, events=(), **more):
    sample = {"doc": DOC, "doc_id": 4, "completion_ids": ids, "events": list(events), "correct": 1, "emitted": 4}
    return Shown(sample | more, decode, backtrack_id)


def drawn(*arguments):
    return frames(shown(*arguments), TASKS["sudoku"].board)


def digits(frame):
    return "".join(cell.text or "." for row in frame.board.rows for cell in row)


def marked(frame, mark):
    cells = [cell for row in frame.board.rows for cell in row]
    return [i for i, cell in enumerate(cells) if mark in cell.marks]


def test_frames_by_hand():
    write, gone, right, end = drawn([N, BT, 0, END])
    assert (write.text, write.who, write.erased_at) == (WORDS[N], None, 1)
    assert digits(write) == "121.34..21..43.." and marked(write, "clash") == [0, 2] and marked(write, "astray") == [2]
    assert marked(write, "given") == [i for i, digit in enumerate(PUZZLE) if digit != "."]
    assert (gone.text, gone.who, gone.erased_at, digits(gone)) == ("⌫", "BACKTRACK", None, PUZZLE)
    assert (right.text, right.erased_at, digits(right)) == (WORDS[0], None, "123.34..21..43..")
    assert (end.text, end.who, end.board) == ("end", None, right.board) and right.board.box == (2, 2)


@given(traces)
def test_law6_the_last_board_is_the_surviving_text(ids):
    found = drawn(ids)
    assert len(found) == len(ids)
    filled = fill(PUZZLE, decode(apply_backtracking(ids, BT)))
    assert not found or filled in (None, digits(found[-1]))  # None: a move that is none, which leaves a board as it is
    erased = sum(frame.erased_at is not None for frame in found)
    assert erased == len(ids) - ids.count(BT) - len(apply_backtracking(ids, BT))


@given(traces)
def test_law6_an_operator_leaves_the_boards_that_a_backtrack_leaves(ids):
    bare, events = bare_and_events(ids)
    idle = {i for i, token in enumerate(ids) if token == BT and not apply_backtracking(ids[:i], BT)}
    boards = [(frame.board, bool(frame.who)) for i, frame in enumerate(drawn(ids)) if i not in idle]
    theirs = drawn(bare, None, events)
    assert [(frame.board, bool(frame.who)) for frame in theirs] == boards
    assert {frame.who for frame in theirs} <= {None, "a_rule"}


def test_a_move_too_many_leaves_the_board_alone():
    *_, last, extra = drawn([*range(N), 0])
    assert digits(last) == digits(extra) == SOLUTION and not marked(last, "clash")


def lines(record, moves):
    """A line a move, further in than the move it stands on."""
    depths = {-1: 0}
    for i, move in enumerate(moves):
        depths[i] = depths[move.parent] + 1
    marks = [(f"indent-{depths[i]}",) + (() if move.standing else ("dead",)) for i, move in enumerate(moves)]
    return Board([[Cell(move.text, mark)] for move, mark in zip(moves, marks, strict=True)], (0, 0))


def test_moves_know_what_they_stand_on_and_whether_they_stand():
    last = frames(shown([0, 1, BT, 2, BT, BT, 3]), lines)[-1].board
    assert [row[0].marks for row in last.rows] == [
        ("indent-1", "dead"), ("indent-2", "dead"), ("indent-2", "dead"), ("indent-1",),
    ]  # fmt: skip


def test_equal_boards_are_held_once_and_two_tasks_stand_side_by_side():
    chosen = {
        ("grid", "greedy"): {"p": {"a": shown([0, 1]), "b": shown([N, BT, 0, 1])}},
        ("tree", "greedy"): {"q": {"a": shown([0], doc={"tree": 1}), "b": shown(None, doc={"tree": 1})}},
        ("text", "greedy"): {"r": {"a": shown([0], doc={})}},
    }

    def drawer(record):
        return lines if "tree" in record else board_of(record)

    made = stepper(chosen, drawer, {"a": 0.5, "b": 0.7}, "a")
    assert list(made["runs"]) == ["grid, greedy", "tree, greedy"] and list(made["runs"]["tree, greedy"]) == ["a"]
    assert [problem["name"] for problem in made["problems"]] == ["grid 5", "tree 5"]
    first, second = (made["runs"]["grid, greedy"][arm][0]["steps"] for arm in "ab")
    assert first[-1]["board"] == second[-1]["board"] and second[1]["board"] == made["problems"][0]["board"]
    assert (made["left"], made["right"], made["problem"]) == ("a", "b", "0")
    assert made["marks"] == ["astray", "clash", "given", "indent-1"]
    assert stepper(chosen, lambda record: None, {}, "a") is None
