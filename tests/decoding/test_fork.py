"""Sequences that enter at any time, fork and leave: each gives what it gives alone, and no prefix is computed twice."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.decoding.backend import TorchBackend
from llmhalluc.decoding.engine import Engine
from llmhalluc.decoding.operators import Chain, NGramOverlap, ProbabilityThreshold, Repetition
from llmhalluc.decoding.phrases import BannedPhrases, Replace
from llmhalluc.decoding.sampling import sample
from llmhalluc.decoding.sequence import Spec
from llmhalluc.extras.constant import PACKAGE
from llmhalluc.hparams.sections import GenArguments
from tests.decoding.bpe import byte_tokenizer
from tests.decoding.operating import decode, some_prompts
from tests.decoding.test_llamacpp import backend_over
from tests.tiny import FAMILIES, tiny_model

BT, EOS = 3, 2
TOKENIZER = byte_tokenizer()
SIZE = len(TOKENIZER)
OPERATORS = {
    "none": None,
    "ngram_overlap": NGramOverlap(1),
    "repetition": Repetition(1, penalty=-3.0),
    "banned_phrases": BannedPhrases(TOKENIZER, {"a": -1.0, "th": -float("inf")}, ["[i-o]"]),
    "replace": Replace(TOKENIZER, "a", "the mat", at_most=2),
    "chain": Chain(ProbabilityThreshold(0.002), NGramOverlap(1)),
}


def spec_of(context, operator, temperature, seed, sampler=None):
    options = GenArguments(
        max_new_tokens=24, temperature=temperature, seed=seed, backtrack_bias=3.0, max_erasures=30, ban_erased=True
    )
    return Spec(options, [EOS], BT, context, TOKENIZER, OPERATORS[operator], sampler)


def dictated(texts):
    """A sampler that gives each key its text, and samples when that has come to its end."""

    def sampler(logits_BV, sequences, spec):
        tokens = [texts.get(s.key, [])[len(s.completion_ids) :][:1] for s in sequences]
        free = [i for i, token in enumerate(tokens) if not token]
        if free:
            for i, token in zip(free, sample(logits_BV[free], [sequences[i] for i in free], spec), strict=True):
                tokens[i] = [token]
        return [token for (token,) in tokens]

    return sampler


def same(one, other, atol=1e-9):
    assert one.logprobs == pytest.approx(other.logprobs, abs=atol)
    assert replace(one, logprobs=[]) == replace(other, logprobs=[])


def drive(backend, spec, seed, n_prompts=4, most_forks=3):
    """Traces by key of a run whose sequences enter, wait, fork and leave at random; each fork's prompt and text."""
    rng, traces, holds = random.Random(seed), {}, random.Random(f"{seed}-hold")
    prompts = some_prompts(rng, n_prompts, longest=40)
    prompts += [prompts[0][: rng.randrange(1, 40)] + prompts[1], prompts[0]]
    engine, waiting, forks = Engine(backend, spec), dict(enumerate(prompts)), {}
    for _ in range(400):
        while waiting and (rng.random() < 0.3 or not engine.running):
            number = next(iter(waiting))
            engine.add(waiting.pop(number), key=str(number))
        if engine.running and holds.random() < 0.2:
            engine.hold(holds.sample(engine.running, holds.randint(1, len(engine.running))))
        if engine.held and (holds.random() < 0.3 or not engine.running + engine.waiting):
            engine.resume(holds.sample(engine.held, holds.randint(1, len(engine.held))))
        alive = engine.running + engine.waiting + engine.held
        if alive and len(forks) < most_forks and rng.random() < 0.2:
            parent = rng.choice(alive)
            key = f"{parent.key}/{len(forks)}"
            forks[key] = (parent.prompt_ids, list(parent.completion_ids))
            if holds.random() < 0.5:
                assert engine.fork(parent, key=key).key == key
            else:
                assert engine.branch(parent, [key])[0].key == key
        if len(alive) > 2 and rng.random() < 0.05:
            engine.drop(rng.choice(alive))
        traces |= {sequence.key: value for sequence, kind, value in engine.step() if kind == "end"}
        if not waiting and not engine.running + engine.held:
            return prompts, forks, traces
    raise AssertionError("they never end")


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(FAMILIES),
    st.sampled_from(CONTEXTS),
    st.sampled_from(sorted(OPERATORS)),
    st.sampled_from([0.0, 1.0]),
)
def test_a_fork_gives_what_a_fresh_decode_of_its_text_gives(seed, family, context, operator, temperature):
    model = tiny_model(family, vocab_size=SIZE)
    spec = spec_of(context, operator, temperature, seed)
    prompts, forks, traces = drive(TorchBackend(model), spec, seed)
    for key, trace in traces.items():
        prompt, text = forks.get(key) or (prompts[int(key)], [])
        engine = Engine(TorchBackend(model), replace(spec, sampler=dictated({key: text})))
        engine.add(prompt, key=key)
        (alone,) = [value for _ in range(400) for _, kind, value in engine.step() if kind == "end"]
        same(trace, alone)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("operator", ["none", "ngram_overlap", "replace"])
def test_forks_on_llamacpp_are_those_of_torch(tmp_path, context, operator):
    model = tiny_model("qwen3", vocab_size=SIZE, dtype=torch.float32)
    spec = spec_of(context, operator, 1.0, 5)
    backends = TorchBackend(model), backend_over(model, tmp_path / "tiny.gguf")
    runs = [drive(backend, spec, seed=3, n_prompts=2) for backend in backends]
    assert runs[0][:2] == runs[1][:2] and len(runs[0][2]) > 3
    for key, trace in runs[0][2].items():
        same(trace, runs[1][2][key], atol=1e-4)


def test_a_group_of_8_computes_its_prompt_once():
    backend, prompt = TorchBackend(tiny_model("llama")), list(range(4, 44))
    options = GenArguments(max_new_tokens=5, temperature=1.0, seed=1)
    how = dict(eos_ids=[], backtrack_id=None, context="soft")
    traces = decode(backend, [prompt] * 8, options, **how)
    assert backend.forward_tokens == 39 + 8 * 5
    assert len({tuple(trace.completion_ids) for trace in traces}) == 8
    for i, trace in enumerate(traces):
        (alone,) = decode(backend, [prompt], options, keys=[str(i)], **how)
        assert alone.completion_ids == trace.completion_ids and alone.forward_passes == trace.forward_passes


def test_a_prefix_that_stands_in_the_cache_is_copied():
    model, common = tiny_model("llama"), [4 + i % 50 for i in range(40)]
    backend = TorchBackend(model)
    engine = Engine(backend, Spec(GenArguments(max_new_tokens=30), [], None, "soft"))
    first = engine.add([*common, 7, 8])
    engine.step()
    assert backend.forward_tokens == 41 + 1
    # Of 40 shared tokens two pieces of 16 are copied; of a text that stands there to its end all, whatever its length.
    others = [engine.add(ids) for ids in ([*common, 9, 9, 9], [*common, 9, 8, 8], common[:21], [*common, 7, 8])]
    engine.step()
    assert backend.forward_tokens == 42 + (42 - 32) * 2 + 0 + 0 + 5
    twin = engine.fork(first)
    assert backend.forward_tokens == 67
    engine.step()
    assert backend.forward_tokens == 67 + 6
    for sequence in (first, twin, *others):
        text = [*sequence.prompt_ids, *sequence.completion_ids]
        for at in range(len(sequence.prompt_ids), len(text)):
            assert model(torch.tensor([text[:at]])).logits[0, -1].argmax() == text[at]


def test_the_text_of_a_running_sequence_is_a_prefix_too():
    backend = TorchBackend(tiny_model("llama"))
    engine = Engine(backend, Spec(GenArguments(max_new_tokens=60), [], None, "soft"))
    first = engine.add([5, 6, 7])
    for _ in range(40):
        engine.step()
    before = backend.forward_tokens
    engine.add([*first.prompt_ids, *first.completion_ids[:33], 9, 9])
    engine.step()
    assert backend.forward_tokens == before + (37 - 32) + 2


def test_slots_grow_and_close_their_gaps():
    model = tiny_model("qwen3")
    engine = Engine(TorchBackend(model), Spec(GenArguments(max_new_tokens=20), [], None, "soft"))
    root, sizes = engine.add([5, 6, 7]), []
    for n in range(19):
        if n < 12:
            engine.fork(root, key=f"twin {n}")
        engine.step()
        if n % 3 == 2 and len(engine.running) > 2:
            engine.drop(engine.running[1])
        sizes.append((len(engine.running), engine.slots.cache.slots))
    assert max(running for running, _ in sizes) == 9 and max(slots for _, slots in sizes) <= 13
    assert engine.step()[-1].value.completion_ids == root.completion_ids and not engine.running
    with pytest.raises(ValueError, match="sequence 0 is not in the engine"):
        engine.fork(root)
    with pytest.raises(ValueError, match="sequence 0 is not in the engine"):
        engine.drop(root)


def test_a_step_goes_through_five_files():
    engine = Engine(TorchBackend(tiny_model("llama")), Spec(GenArguments(temperature=1.0), [EOS], BT, "block"))
    for prompt in ([5, 6, 7], [5]):
        engine.add(prompt)
    engine.step()
    files = set()

    def note(frame, event, _):
        if event == "call" and str(PACKAGE) in frame.f_code.co_filename:
            files.add(Path(frame.f_code.co_filename).name)

    sys.setprofile(note)
    try:
        engine.step()
    finally:
        sys.setprofile(None)
    assert files == {"engine.py", "slots.py", "sampling.py", "sequence.py", "backtrack.py"}
