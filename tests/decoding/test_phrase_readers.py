"""How phrases are read: the pieces of a text add up, strings are found, and what is known rewinds with its row."""

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from llmhalluc.decoding.phrases import Automaton, Reader
from tests.decoding.bpe import TOKENIZERS, extend, sequence_of, spelt

EOS = 2


def read(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text that a reader makes of these ids."""
    reader, row = Reader(tokenizer, {"x": 0.0}, str, special=False), sequence_of(ids)
    reader.read(row)
    return reader.tail(row, 10**6)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="the catsn.é猫🐱👩\u200d👧ß\n", max_size=30), st.sampled_from(sorted(TOKENIZERS)))
def test_pieces_add_up_to_the_text(text, name):
    tokenizer = TOKENIZERS[name]()
    ids = spelt(tokenizer, text)
    ids[len(ids) // 2 : len(ids) // 2] = [EOS]  # a special token says nothing, wherever it stands
    assert read(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 299), max_size=20), st.sampled_from(["bytes", "sentencepiece"]))
def test_pieces_add_up_whatever_the_bytes(ids, name):
    tokenizer = TOKENIZERS[name]()
    assert read(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(st.text("abc", max_size=5), max_size=8),
)
def test_the_automaton_finds_what_searching_finds(strings, parts):
    automaton, state, done = Automaton(dict.fromkeys(strings, -1.0)), 0, ""
    for part in parts:
        state, found = automaton.run(state, part)
        whole = done + part
        expected = [
            start - len(done)
            for end in range(len(done) + 1, len(whole) + 1)
            for start in range(end)
            if whole[start:end] in strings
        ]
        assert sorted(start for start, _ in found) == sorted(expected)
        done = whole


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["bytes", "sentencepiece"]))
def test_what_a_reader_knows_rewinds_with_the_row(seed, name):
    tokenizer, rng = TOKENIZERS[name](), random.Random(seed)
    strings = dict.fromkeys(["cat", "at s", "é", "the", "猫", "e c"], -math.inf)
    reader, row = Reader(tokenizer, strings, str.casefold, special=False), sequence_of([])
    for _ in range(12):
        extend(row, spelt(tokenizer, rng.choice(["the cat sat", "é猫", " at", "🐱", "c", "t"]))[: rng.randrange(1, 6)])
        reader.read(row)
        fresh = sequence_of(row.surviving)
        again = Reader(tokenizer, strings, str.casefold, special=False)
        again.read(fresh)
        assert row.operator_state[reader] == fresh.operator_state[again]
        if rng.random() < 0.6:
            row.erase(rng.randrange(1, len(row.surviving) + 1), "test", 0.0)
