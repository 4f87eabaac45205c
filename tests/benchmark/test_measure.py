"""What is counted: forward passes, tokens that operators erased, and the interval of a paired difference."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.backtrack import CONTEXTS, erasures
from llmhalluc.benchmark.measure import Outcome, _parts, paired_difference
from llmhalluc.decoding.operators import ProbabilityThreshold
from llmhalluc.eval.metrics import count
from llmhalluc.hparams.sections import GenArguments
from tests.decoding.operating import decode
from tests.tiny import tiny_model

BT, EOS = 63, 2


def decoded(model, prompts, context="block", backtrack_id=BT, **options):
    options = GenArguments(max_new_tokens=20, temperature=1.0, backtrack_bias=1.5, **options)
    return decode(
        model, prompts, options, eos_ids=[EOS], backtrack_id=backtrack_id, context=context,
        operator=ProbabilityThreshold(0.02),
    )  # fmt: skip


@pytest.mark.parametrize("context", CONTEXTS)
def test_law6_counts_hold_what_operators_and_backtracks_erased(context):
    model, rng = tiny_model("llama"), random.Random(0)
    prompts = [[rng.randrange(4, 60) for _ in range(n)] for n in (3, 5, 8, 4)]
    traces = decoded(model, prompts, context)
    assert {event.source for trace in traces for event in trace.events} == {"BACKTRACK", "probability_threshold"}
    for trace in traces:
        counts = count(trace.completion_ids, BT, None, trace.events)
        assert counts.emitted == len(trace.completion_ids)
        assert (counts.kept, counts.erasures) == (len(trace.surviving_ids), trace.erasures)


@given(st.lists(st.integers(1, 4), max_size=20), st.lists(st.integers(1, 3), max_size=6))
def test_an_operators_erasure_counts_as_as_many_backtracks(ids, gold):
    trace, bare, events, standing = [], [], [], 0
    for token in ids:  # 4 erases two, where two stand
        if token == 4 and standing > 1:
            trace += [BT, BT]
            events.append((len(bare), 2, "some_rule"))
            standing -= 2
        elif token < 4:
            trace.append(token)
            bare.append(token)
            standing += 1
    expected = count(trace, BT, gold)
    for backtrack_id in (BT, None):
        assert count(bare, backtrack_id, gold, events) == expected._replace(emitted=len(bare))
        assert [one.source for one in erasures(bare, backtrack_id, events)] == ["some_rule"] * trace.count(BT)


@pytest.mark.parametrize("prompt", [[5], [5, 6, 7], list(range(4, 40))])
def test_forward_passes_are_the_models_calls(prompt):
    model, calls = tiny_model("llama"), []
    model.base_model.register_forward_pre_hook(lambda *_: calls.append(1))
    (trace,) = decoded(model, [prompt], backtrack_id=None)
    assert trace.forward_passes == len(calls) > 1
    assert trace.erasures > 0, "logits that are kept save the forward of a token taken back"
    assert trace.forward_passes < len(trace.completion_ids) + (len(prompt) > 1)


def test_forward_passes_do_not_depend_on_the_batch():
    model, rng = tiny_model("llama", dtype=torch.float64), random.Random(1)
    prompts = [[rng.randrange(4, 60) for _ in range(n)] for n in (3, 5, 8, 4)]
    together = [trace.forward_passes for trace in decoded(model, prompts)]
    options = GenArguments(max_new_tokens=20, temperature=1.0, backtrack_bias=1.5)
    alone = [
        decode(model, [prompt], options, eos_ids=[EOS], backtrack_id=BT, context="block", keys=[str(i)],
               operator=ProbabilityThreshold(0.02))[0].forward_passes
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip
    assert together == alone


def test_the_paired_interval_is_bonett_and_prices():
    # By hand from the paper's formula: 15 against 5 discordant of 100, z = 1.96.
    found = paired_difference([1] * 15 + [0] * 5 + [1] * 80, [0] * 15 + [1] * 5 + [1] * 80)
    assert (found["gained"], found["lost"], found["difference"]) == (15, 5, 0.1)
    up, down = 16 / 102, 6 / 102
    spread = 1.959964 * ((up + down - (up - down) ** 2) / 102) ** 0.5
    assert found["difference_low"] == pytest.approx(up - down - spread, abs=1e-6)
    assert found["difference_high"] == pytest.approx(up - down + spread, abs=1e-6)


@pytest.mark.parametrize("n", [1, 4, 30])
def test_answers_that_all_agree_leave_an_interval_that_says_how_few_they_are(n):
    found = paired_difference([1] * n, [1] * n)
    assert found["difference"] == 0 and found["difference_low"] < 0 < found["difference_high"]
    assert found["difference_high"] > 1.5 / (n + 2)


def test_the_interval_covers(seed=0):
    rng, covered = random.Random(seed), 0
    for _ in range(400):
        pairs = [(rng.random() < 0.6, rng.random() < 0.5) for _ in range(40)]
        found = paired_difference(*([int(pair[i]) for pair in pairs] for i in (0, 1)))
        covered += found["difference_low"] <= 0.1 <= found["difference_high"]
    assert 0.93 <= covered / 400 <= 0.99


@given(st.integers(0, 30), st.integers(0, 9), st.integers(1, 6))
def test_parts_hold_every_document_once_in_order(a, b, count):
    split = {"a": list(range(a)), "b": list(range(100, 100 + b))}
    parts = _parts(split, count)
    assert len(parts) <= count and all(numbers for part in parts for numbers in part.values())
    for task, numbers in split.items():
        assert [i for part in parts for i in part.get(task, [])] == numbers


def test_an_outcome_pools_the_documents_of_all_tasks():
    def answer(task, correct):
        return {
            "task": task,
            "correct": correct,
            "emitted": 6,
            "kept": 4,
            "erasures": 2,
            "cut": False,
            "forward_passes": 7,
        }

    both = Outcome([answer("a", 1)], 1.0) + Outcome([answer("b", 0), answer("b", 1), answer("b", 1)], 2.0)
    found = both.summary()
    assert (found["n"], found["accuracy"], found["seconds"]) == (4, 0.75, 3.0)
    assert found["accuracy_by_task"] == {"a": 1.0, "b": 2 / 3}
    assert (found["emitted_per_kept"], found["forward_passes_per_sample"]) == (1.5, 7.0)
