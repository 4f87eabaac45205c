"""The rules: each against a slow reference; their parameters, their names, their document."""

import math
import random
import re
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.decoding.operators import (
    OPERATORS,
    BacktrackToken,
    Chain,
    EntropyThreshold,
    LogitThreshold,
    NGramOverlap,
    ProbabilityDrop,
    ProbabilityMargin,
    ProbabilityThreshold,
    ProbabilityTrend,
    Repetition,
    make_operator,
)
from llmhalluc.decoding.sequence import Erase, Sequence, Spec, Step
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from tests.decoding.operating import propose, run
from tests.tiny import tiny_model

EOS = 2
RULES = [name for name in OPERATORS if name != "never"]


def sequence_of(ids: list[int], logprobs: list[float]) -> Sequence:
    """A sequence that has sampled these ids."""
    sequence = Sequence.begin(Spec(GenArguments(), (), None, "soft"), 0, [5], "0", 10**6)
    for token, logprob in zip(ids, logprobs, strict=True):
        sequence.append(token, logprob, None)
    return sequence


def shannon(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def falls_off(p, window, share):
    return len(p) > window and p[-1] < share * sum(p[-window - 1 : -1]) / window


# What each rule says, in the simplest words: ids and probabilities of the surviving tokens, the newest one's
# distribution and logits -> erase or not.
REFERENCES = {
    ProbabilityThreshold(0.2): lambda ids, p, q, z: p[-1] < 0.2,
    EntropyThreshold(1.0): lambda ids, p, q, z: shannon(q) > 1.0,
    ProbabilityMargin(0.3): lambda ids, p, q, z: sorted(q)[-1] - sorted(q)[-2] < 0.3,
    ProbabilityDrop(0.6): lambda ids, p, q, z: len(p) > 1 and p[-1] < 0.4 * p[-2],
    ProbabilityTrend(3, 0.5): lambda ids, p, q, z: falls_off(p, 3, 0.5),
    Repetition(2): lambda ids, p, q, z: len(ids) > 2 and len({*ids[-3:]}) == 1,
    NGramOverlap(2): lambda ids, p, q, z: any(ids[i : i + 2] == ids[-2:] for i in range(len(ids) - 2)),
    NGramOverlap(1): lambda ids, p, q, z: ids[-1] in ids[:-1],
    LogitThreshold(-1.0): lambda ids, p, q, z: z[ids[-1]] < -1.0,
    BacktrackToken(token_id=1): lambda ids, p, q, z: ids[-1] == 1,
}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(list(REFERENCES)))
def test_each_rule_says_what_its_slow_reference_says(seed, operator):
    # 4 rows write, are judged together, and erase at random in between: what an operator remembers must rewind.
    rng = random.Random(seed)
    rows = [sequence_of([], []) for _ in range(4)]
    for _ in range(12):
        logits = torch.tensor([[rng.gauss(0, 2) for _ in range(5)] for _ in rows], dtype=torch.float64)
        logits[:, 4] = -math.inf
        expected = {}
        for i, (row, row_logits) in enumerate(zip(rows, logits, strict=True)):
            token, distribution = rng.randrange(4), row_logits.softmax(-1).tolist()
            row.tape.feed(token)
            row.logprobs.append(math.log(distribution[token]))
            row.written_by.append("")
            probabilities = [math.exp(logprob) for logprob in row.logprobs]
            if REFERENCES[operator](row.surviving, probabilities, distribution, row_logits.tolist()):
                expected[i] = Erase(operator.erase + isinstance(operator, BacktrackToken))
        wishes = operator(Step(rows, logits))
        assert {i: replace_source(wish) for i, wish in wishes.items()} == expected
        for row in rows:
            if rng.random() < 0.4:
                row.erase(rng.randrange(1, len(row.surviving) + 1), "test", 0.0)


def replace_source(wish: Erase) -> Erase:
    assert wish.source in OPERATORS
    return wish._replace(source="operator")


def test_every_rule_has_a_reference_and_the_documented_defaults():
    assert {type(operator) for operator in REFERENCES} == {OPERATORS[name] for name in RULES}
    values = {name: [f.default for f in fields(kind) if not f.kw_only] for name, kind in OPERATORS.items()}
    del values["backtrack_token"], values["never"]
    assert values == {
        "probability_threshold": [0.05], "entropy_threshold": [0.2], "probability_margin": [0.05],
        "probability_drop": [0.8], "probability_trend": [10, 0.5], "repetition": [3], "ngram_overlap": [4],
        "logit_threshold": [-20.0],
    }  # fmt: skip
    assert EntropyThreshold().erase == 2 and ProbabilityThreshold(0.1, erase=3, penalty=-1).erase == 3


def test_chain_grants_hard_bans_first_and_then_the_longest():
    def fixed(**wish):
        return lambda step: {0: Erase(**wish)}

    one, two, hard = fixed(n=1, source="one"), fixed(n=2, source="two"), fixed(n=1, must=True, source="hard")
    assert Chain(one, two, one)(None)[0].source == "two"
    assert Chain(two, hard, two)(None)[0].source == "hard"
    assert Chain(fixed(n=2, source="a"), two)(None)[0].source == "a"
    assert Chain()(None) == {}


@pytest.mark.parametrize(
    ("name", "parameters", "sentences"),
    [
        (
            "probability_treshold",
            {},
            ["operator 'probability_treshold' is unknown; did you mean probability_threshold?"],
        ),
        ("repetition", {"maxium": 3}, ["operator repetition has no parameter 'maxium'; did you mean maximum?"]),
        ("never", {"erase": 3}, ["operator never has no parameter 'erase'"]),
        ("backtrack_token", {}, ["operator backtrack_token needs token_id"]),
        (
            "ngram_overlap",
            {"n": 0, "erase": 1.5, "penalty": 1},
            ["erase of operator ngram_overlap is 1.5, expected a whole number from 1 to inf", "penalty of", "n of"],
        ),
        ("probability_drop", {"maximum": math.nan}, ["maximum of operator probability_drop is nan"]),
        ("entropy_threshold", {"maximum": True}, ["maximum of operator entropy_threshold is True, expected a number"]),
    ],
)
def test_bad_parameters_are_named(name, parameters, sentences):
    with pytest.raises(UserError) as caught:
        make_operator(name, **parameters)
    assert len(caught.value.sentences) == len(sentences)
    for told, expected in zip(caught.value.sentences, sentences, strict=True):
        assert told.startswith(expected)


def test_an_operator_made_directly_is_checked_too():
    with pytest.raises(UserError, match="minimum of operator probability_threshold is 5"):
        ProbabilityThreshold(5)


def documented() -> dict:
    """The names that the Python of docs/decoding.md defines."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/decoding.md").read_text(encoding="utf-8"), re.S)
    names: dict = {}
    exec(blocks[0], names)
    return names


def test_the_documented_operator_works():
    sampler = propose([10, 10, 11, 12, 12, 12, 13])
    (trace,) = run(tiny_model("llama"), [[5]], documented()["no_stutter"], sampler=sampler)
    assert trace.surviving_ids == [10, 11, 12, 13, EOS]


def test_the_documented_table_is_the_code():
    text = (REPOSITORY / "docs/decoding.md").read_text(encoding="utf-8")
    for name, kind in OPERATORS.items():
        (line,) = re.findall(rf"^\| `{name}` \|.*$", text, re.M)
        values = [f"`{f.name}`" + ("" if f.name == "token_id" else f" {f.default:g}") for f in fields(kind)]
        for value in values[2:]:  # erase and penalty are told once, above the table
            assert value in line, (name, value)
