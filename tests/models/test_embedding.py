"""Trap 11: every BACKTRACK row starts from the rows of words, whatever stood there before."""

import logging
from dataclasses import replace

import pytest
import torch

from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.embedding import START_VALUES, set_start_values
from llmhalluc.models.patcher import add_token, fit_embeddings
from llmhalluc.tasks.sudoku.text import build_tokenizer
from tests.tiny import tiny_model, tiny_tokenizer

ARGS = ModelArguments(token_init_noise=0.0)


def started(args, seed=0, tokenizer=None, token=None, spare_rows=0, **config):
    """A model whose BACKTRACK rows are set; `spare_rows` more rows than the tokenizer has tokens."""
    tokenizer = tokenizer or tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer) + spare_rows, **config)
    before = [e.weight.detach().clone() for e in (model.get_input_embeddings(), model.get_output_embeddings())]
    backtrack_id = add_token(tokenizer, token)
    fit_embeddings(model, tokenizer)
    set_start_values(model, tokenizer, backtrack_id, args, seed)
    after = [e.weight.detach() for e in (model.get_input_embeddings(), model.get_output_embeddings())]
    for old, new in zip(before, after, strict=True):
        kept = [i for i in range(len(old)) if i != backtrack_id]
        assert torch.equal(old[kept], new[kept])
    return tokenizer, backtrack_id, before, [weight[backtrack_id] for weight in after]


def row_of(tokenizer, matrix, words):
    return torch.stack([matrix[tokenizer.convert_tokens_to_ids(word)] for word in words]).mean(0)


def expected(tokenizer, matrix, backtrack_id):
    """The definitions, spelled out; the tiny tokenizer's spaces are tokens of their own."""
    sentence = [token for word in ARGS.token_init_description.split() for token in (word, " ")][:-1]
    semantic = row_of(tokenizer, matrix, ARGS.token_init_words)
    description = row_of(tokenizer, matrix, sentence)
    plain = [i for i in range(4, len(tiny_tokenizer())) if i != backtrack_id]
    return {
        "mean": matrix[plain].mean(0),
        "semantic": semantic,
        "description": description,
        "combined": (semantic + description) / 2,
    }


@pytest.mark.parametrize("start", ["mean", "semantic", "description", "combined"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("where", [{}, {"spare_rows": 9}, {"token": "#"}], ids=["grown", "padding", "reserved"])
def test_trap11_start_values_for_input_and_output_rows_wherever_they_are(start, tied, where):
    args = replace(ARGS, token_init=start)
    tokenizer, backtrack_id, before, rows = started(args, tie_word_embeddings=tied, **where)
    for matrix, row in zip(before, rows, strict=True):
        torch.testing.assert_close(row, expected(tokenizer, matrix, backtrack_id)[start])


@pytest.mark.parametrize("start", START_VALUES)
def test_trap11_noise_is_small_against_the_rows_and_follows_the_seed(start):
    noisy = replace(ARGS, token_init=start, token_init_noise=0.01)
    _, _, (matrix, _), (exact, _) = started(replace(noisy, token_init_noise=0.0))
    _, _, _, (row, output_row) = started(noisy, tie_word_embeddings=False)
    assert 0 < (row - exact).norm() < 0.03 * matrix.norm(dim=1).mean()
    torch.manual_seed(99)  # the global generator has no say
    _, _, _, again = started(noisy, tie_word_embeddings=False)
    _, _, _, other = started(noisy, seed=1, tie_word_embeddings=False)
    assert torch.equal(again[0], row) and torch.equal(again[1], output_row)
    assert not torch.equal(other[0], row) and not torch.equal(other[1], output_row)


def test_words_that_the_tokenizer_does_not_know_give_way_to_the_mean(caplog):
    for start in ("semantic", "description", "combined"):
        with caplog.at_level(logging.WARNING):
            _, _, (matrix, _), rows = started(replace(ARGS, token_init=start), tokenizer=build_tokenizer(4))
        torch.testing.assert_close(rows[0], matrix[4:].mean(0))
        assert "unknown to the tokenizer" in caplog.text
        caplog.clear()


def test_half_precision_rows_are_averaged_in_float32():
    _, _, (matrix, _), rows = started(replace(ARGS, token_init="mean"), dtype=torch.bfloat16)
    assert torch.equal(rows[0], matrix[4:].float().mean(0).bfloat16())
