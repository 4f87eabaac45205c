"""Sudoku as text: one token a move, one definition of a right answer."""

from math import isqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llmhalluc.tasks import TASKS
from llmhalluc.tasks.sudoku.text import answer_text, build_tokenizer, conflicts, fill, peers, prompt_text

PUZZLE, SOLUTION = "4...1......42.1.", "4231134231242413"


def check(puzzle: str, text: str) -> bool:
    return TASKS["sudoku"].check(text, {"puzzle": puzzle, "solution": SOLUTION}).right


SIX = "641523352164164235235641523416416352"


def test_prompt_and_answer():
    assert prompt_text(PUZZLE) == "a1=4 a2=1 d3=4 a4=2 c4=1 solve"
    assert answer_text(PUZZLE, SOLUTION).split()[:4] == ["b1=2", "c1=3", "d1=1", "b2=3"]
    assert check(PUZZLE, answer_text(PUZZLE, SOLUTION))


@pytest.mark.parametrize("board", [SOLUTION, SIX])
def test_conflicts_are_the_cells_of_a_unit_with_the_same_digit(board):
    size = isqrt(len(board))
    assert conflicts(board) == set()
    rows, columns = (2, 2) if size == 4 else (2, 3)
    for i in range(size * size):
        for j in range(size * size):
            (r, c), (s, d) = divmod(i, size), divmod(j, size)
            together = r == s or c == d or (r // rows, c // columns) == (s // rows, d // columns)
            assert (j in peers(size)[i]) == (together and i != j)
            wrong = "".join("." if k not in (i, j) else "1" for k in range(size * size))
            assert conflicts(wrong) == ({i, j} if together and i != j else set())


@given(st.permutations(answer_text(PUZZLE, SOLUTION).split()), st.integers(0, 11))
def test_the_order_of_moves_does_not_matter_but_all_are_needed(moves, n):
    assert check(PUZZLE, " ".join(moves))
    assert check(PUZZLE, " ".join(moves[:n])) == (n == len(moves))
    board = fill(PUZZLE, " ".join(moves[:n]))
    assert board is not None
    assert board.count(".") == len(moves) - n
    assert all(a in (".", b) for a, b in zip(board, SOLUTION, strict=True))


@pytest.mark.parametrize("text", ["a1=1", "b1=2 b1=2", "b1=5", "e1=1", "solve", "b1 = 2", "b1=2,"])
def test_what_is_no_move_fills_nothing(text):
    assert fill(PUZZLE, text) is None
    assert not check(PUZZLE, text)


def test_a_full_board_with_a_conflict_is_wrong():
    assert not check(PUZZLE, answer_text(PUZZLE, SOLUTION).replace("b1=2", "b1=3").replace("c1=3", "c1=2"))


@pytest.mark.parametrize(("size", "board"), [(4, SOLUTION), (6, SIX)])
def test_every_move_is_one_token_and_decodes_to_its_text(size, board, tmp_path):
    build_tokenizer(size).save_pretrained(tmp_path)
    for tokenizer in (build_tokenizer(size), AutoTokenizer.from_pretrained(tmp_path)):
        assert len(tokenizer) == 5 + size**3
        assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
        text = answer_text("." * size**2, board)
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == size**2
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode([*ids, 2], skip_special_tokens=True) == text
        assert tokenizer("z9=9")["input_ids"] == [tokenizer.unk_token_id]
