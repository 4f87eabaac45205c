"""Replace: a string that is sampled goes, another is written in its place, a text is made to go on."""

import pytest

from llmhalluc.decoding.operators import Chain
from llmhalluc.decoding.phrases import Replace
from llmhalluc.decoding.sequence import Erase, Step
from llmhalluc.extras.errors import UserError
from tests.decoding.bpe import TOKENIZERS, byte_tokenizer, sequence_of, spelt
from tests.decoding.operating import propose
from tests.decoding.test_phrases import run

EOS, BT = 2, 3


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
@pytest.mark.parametrize(
    ("text", "find", "write", "expected"),
    [
        ("the cat sat", "cat", "mat", "the mat sat"),
        ("the cat sat", " cat", " é猫", "the é猫 sat"),
        ("the cat.", "he", "o", "to cat."),  # begins within a token, whose beginning is written again
        ("the cat sat", "e", "", "th cat sat"),
        ("the sat", "sat", "sat sat", "the sat sat"),  # what is written is not searched
        ("a 猫 sat", "猫", "cat", "a cat sat"),
    ],
)
def test_replace_writes_instead(name, text, find, write, expected):
    tokenizer = TOKENIZERS[name]()
    sampler = propose(spelt(tokenizer, text))
    (trace,) = run(tokenizer, Replace(tokenizer, find, write), prompts=[spelt(tokenizer, "the ")], sampler=sampler)
    assert trace.text.strip() == expected and trace.finish_reason == "eos"


def test_replace_counts_and_forces_the_budget():
    tokenizer = byte_tokenizer()
    thought, end = spelt(tokenizer, "hm"), spelt(tokenizer, "</think>")
    script = [thought + end + thought + [EOS] + thought + end + spelt(tokenizer, " ok")]
    for least, most, expected in [
        (0, None, "hm Wait, buthm"),
        (0, 1, "hm Wait, buthm"),
        (2, 2, "hm Wait, buthm Wait, buthm</think> ok"),
        (3, None, "hm Wait, buthm Wait, buthm Wait, but ok"),
    ]:
        operator = Replace(tokenizer, "</think>", " Wait, but", least, most)
        (trace,) = run(tokenizer, operator, sampler=propose(*script))
        assert (trace.text, trace.finish_reason) == (expected, "eos")
        assert len(trace.logprobs) == len(trace.completion_ids)


def test_a_replacement_that_is_erased_counts_no_more():
    tokenizer = byte_tokenizer()
    a, b, c = (spelt(tokenizer, text)[0] for text in "abc")

    def start_again(step):
        return {i: Erase(99, 0.0) for i, row in enumerate(step.sequences) if row.surviving[-1] == c}

    operator = Chain(Replace(tokenizer, "a", "b", at_most=1), start_again)
    (trace,) = run(tokenizer, operator, sampler=propose([a, a, c, a, a]))
    assert trace.surviving_ids == [b, a, EOS]


def test_a_replacement_of_a_special_token():
    tokenizer = byte_tokenizer()
    operator, row = Replace(tokenizer, "<|BACKTRACK|>", "no"), sequence_of([*spelt(tokenizer, "the"), BT])
    wish = operator(Step([row], None))[0]
    assert wish.n == 1 and tokenizer.decode(wish.write) == "no"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(find="", write="x"), "find is ''"),
        (dict(find="x", write=None), "write is None"),
        (dict(find="x", write="y", at_least=-1), "at_least is -1"),
        (dict(find="x", write="", at_least=1), "at_least is 1, but write is empty"),
        (dict(find="x", write="y", at_least=3, at_most=2), "at_most is 2, expected none or a whole number from 3 on"),
        (dict(find="x", write="y", at_most=0), "at_most is 0"),
    ],
)
def test_bad_replacements_are_named(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        Replace(byte_tokenizer(), **arguments)
