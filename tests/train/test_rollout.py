"""What rollouts were offered, whose stream they draw from, and what they refuse to follow."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOConfig

from llmhalluc.backtrack import CONTEXTS, unoffered
from llmhalluc.decoding.sequence import Sequence
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.train.rollout import REFUSED, rollout_settings

BT, VOCABULARY = 4, 5  # so few ids that bans leave none
ARGS = GRPOConfig(output_dir="unused", use_cpu=True, bf16=False, max_completion_length=24, num_generations=8, seed=7)


def rules(given_keys=None, context="block", args=ARGS):
    keys = given_keys or {}
    return rollout_settings(GenArguments(**keys), frozenset(keys), args, BT, context, None)


@given(st.sampled_from(CONTEXTS), st.booleans(), st.sampled_from([None, 0, 3]), st.booleans(), st.integers(0, 999))
def test_what_was_not_offered_is_what_the_engine_bans(context, ban_erased, max_erasures, backtrack, seed):
    gen = {"ban_erased": ban_erased, "max_erasures": max_erasures, "backtrack": backtrack}
    made, rng = rules(gen, context), random.Random(seed)
    spec = made.spec([2])
    sequence, bans = Sequence.begin(spec, 0, [1], "key", made.options.max_new_tokens), []
    while not sequence.finish_reason:
        found = {} if backtrack else {BT: -math.inf}  # never offered, wherever a sequence is
        found |= sequence.tape.penalties_here(VOCABULARY - len(found))
        assert all(value == -math.inf for value in found.values())
        assert not backtrack or sequence.tape.nothing_to_add() == (not found) or found.keys() != {BT}
        bans.append(sorted(found))
        left = [token for token in range(VOCABULARY) if token not in bans[-1]]
        sequence.append(rng.choice([token for token in left if token == BT] * 3 + left), 0.0, spec.erase_id)
        sequence.end(spec)
    said = unoffered(sequence.completion_ids, BT, ban_erased, made.max_erasures, VOCABULARY)
    assert [sorted(gone) for gone in said] == bans


def test_sampling_is_trls_and_erasing_the_gen_sections():
    args = GRPOConfig(output_dir="unused", use_cpu=True, bf16=False, temperature=0.7, top_k=0, top_p=0.9, min_p=0.1,
                      repetition_penalty=1.1, max_completion_length=9, seed=3)  # fmt: skip
    options = rules({"temperature": 0.1, "max_new_tokens": 5, "max_erasures": 2, "seed": 8}, args=args).options
    assert options == GenArguments(
        max_new_tokens=9, temperature=0.7, top_k=None, top_p=0.9, min_p=0.1, repetition_penalty=1.1, max_erasures=2,
        seed=3,
    )  # fmt: skip


@pytest.mark.parametrize("key", REFUSED)
def test_keys_that_leave_the_scored_distribution_are_refused(key):
    value = {"operator": "never", "stop": ["x"], "backtrack_bias": -1.0, "compile": True, "search": "greedy"}[key]
    with pytest.raises(UserError, match=f"gen.{key}"):
        rules({key: value})


def test_another_context_than_the_trained_one_is_refused():
    assert rules({"context": "block"}).context == "block"
    with pytest.raises(UserError, match="gen.context is soft, but backtrack.context is block"):
        rules({"context": "soft"})
