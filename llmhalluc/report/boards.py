"""Boards to step through: a trace as its task draws it after each token, as data for `stepper.js`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from llmhalluc.report.traces import Shown, steps
from llmhalluc.tasks.boards import Board, Cell, Move

Draw = Callable[[dict[str, Any], Sequence[Move]], Board]
Chosen = dict[tuple[str, str], dict[str, dict[str, Shown]]]  # (task, variant) -> identity of a problem -> arm -> sample


class Frame(NamedTuple):
    """A token, or one erasure by an operator, and the board after it.

    who: of an erasure, BACKTRACK or the operator's name. erased_at: index of the frame that erases this token.
    """

    text: str
    who: str | None
    erased_at: int | None
    board: Board


class Album:
    """Boards by their number; a page holds equal boards and equal cells once."""

    def __init__(self) -> None:
        self.cells: dict[Cell, int] = {}
        self.boards: dict[tuple, int] = {}

    def number(self, board: Board) -> int:
        """The number of a board, which is put in if it is new."""
        rows = tuple(tuple(self.cells.setdefault(cell, len(self.cells)) for cell in row) for row in board.rows)
        return self.boards.setdefault((rows, board.box), len(self.boards))


def frames(shown: Shown, draw: Draw) -> list[Frame]:
    """The frames of one answer; `shown` has ids and a decoder."""
    ids, events = shown.sample["completion_ids"], shown.sample["events"]
    moves: list[Move] = []
    found: list[Frame] = []
    move_of, frame_of, top = {}, {}, -1  # of each token its move and its frame; the last move that stands
    for who, token in steps(ids, shown.backtrack_id, events):
        if who is None:
            move_of[token], frame_of[token] = len(moves), len(found)
            moves.append(Move(shown.decode([ids[token]]), top, True))
            top = move_of[token]
        elif token is not None:
            erased, write = move_of[token], frame_of[token]
            top = moves[erased].parent
            moves[erased] = moves[erased]._replace(standing=False)
            found[write] = found[write]._replace(erased_at=len(found))
        text = "⌫" if who else moves[-1].text or "end"
        found.append(Frame(text, who, None, draw(shown.sample["doc"], moves)))
    return found


def stepper(
    chosen: Chosen, drawer: Callable[[dict[str, Any]], Draw | None], accuracy: dict[str, float], baseline: str
) -> dict[str, Any] | None:
    """The boards of all problems that can be drawn, as the page's script reads them; None without any.

    `drawer` returns what draws a record's boards. `accuracy` by arm picks the arm that is shown beside the baseline.
    """
    album = Album()
    numbers: dict[tuple[str, str], int] = {}
    problems: list[dict[str, Any]] = []
    runs: dict[str, dict[str, dict[int, Any]]] = {}
    several = len({task for task, _ in chosen}) > 1
    for (task, variant), key, arm, shown in _each(chosen):
        sample = shown.sample
        draw = drawer(sample["doc"])
        if draw is None or shown.decode is None or sample["completion_ids"] is None:
            continue
        number = numbers.setdefault((task, key), len(numbers))
        if number == len(problems):
            name = str(sample["doc_id"] + 1)
            board = album.number(draw(sample["doc"], []))
            problems.append({"name": f"{task} {name}" if several else name, "board": board})
        steps = [frame._asdict() | {"board": album.number(frame.board)} for frame in frames(shown, draw)]
        by_arm = runs.setdefault(f"{task}, {variant}" if several else variant, {})
        by_arm.setdefault(arm, {})[number] = {
            "steps": steps, "correct": bool(sample["correct"]), "emitted": sample["emitted"]
        }  # fmt: skip
    if not runs:
        return None
    first = next(iter(runs.values()))
    left = baseline if baseline in first else next(iter(first))
    others = [arm for arm in first if arm != left]
    right = max(others, key=lambda arm: accuracy.get(arm, 0), default=left)
    erasing = [number for number, run in first[right].items() if any(step["who"] for step in run["steps"])]
    return {
        "problems": problems,
        "cells": list(album.cells),
        "boards": list(album.boards),
        "marks": sorted({mark for cell in album.cells for mark in cell.marks}),
        "runs": runs,
        "left": left,
        "right": right,
        "problem": str(erasing[0] if erasing else 0),
    }


def _each(chosen: Chosen) -> Iterator[tuple[tuple[str, str], str, str, Shown]]:
    for place, problems in chosen.items():
        for key, arms in problems.items():
            for arm, shown in arms.items():
                yield place, key, arm, shown
