"""Erasing in the decoding loop: exact logits after any erasure, alone or in a batch."""

import random
from dataclasses import replace

import pytest
import torch

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.decoding.operators import OPERATORS, LogitThreshold, NGramOverlap, ProbabilityThreshold, Repetition
from llmhalluc.decoding.sequence import Erase
from llmhalluc.hparams.sections import GenArguments
from tests.decoding.operating import Careless, decode, default, everywhere, run, some_prompts, stream
from tests.decoding.test_engine import gemma
from tests.tiny import FAMILIES, tiny_model

BT, EOS = 63, 2


# Sharp enough to act on a tiny model's few random tokens.
SHARP = {"repetition": Repetition(1), "ngram_overlap": NGramOverlap(1), "logit_threshold": LogitThreshold(1.0)}


class Witness:
    """Compares what an operator is shown with a fresh forward of the text that stands."""

    def __init__(self, model, operator, context):
        self.model, self.operator, self.context, self.seen, self.fresh = model, operator, context, 0, 0

    def __call__(self, step):
        for i, row in enumerate(step.sequences):
            newest_two = row.completion_ids[-2:]
            if newest_two[-1] == BT or (self.context == "block" and newest_two[0] == BT):
                continue  # a BACKTRACK ends the row; the token after one was chosen in sight of the error
            text = row.tape.columns[:-1] if self.context == "soft" else row.prompt_ids + row.surviving[:-1]
            expected = self.model(torch.tensor([text]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(step.logits_BV[i], expected, rtol=0, atol=1e-9)
            chosen = expected.log_softmax(-1)[row.surviving[-1]].item()
            assert row.logprobs[-1] == pytest.approx(chosen, abs=1e-9)
            assert len(row.logprobs) == len(row.written_by) == len(row.surviving)
            self.seen += 1
            self.fresh += len(row.surviving) == 1 and bool(row.events)
        return self.operator(step)


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


def test_what_is_written_has_the_models_own_logprobs():
    model = tiny_model("llama")

    def write_once(step):
        return {i: Erase(1, write=(10, 11)) for i, row in enumerate(step.sequences) if not row.events}

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
