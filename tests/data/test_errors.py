"""Error runs: their places, their lengths, their tokens."""

from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.data.errors import ErrorRuns, number_forms, plain_ids
from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.hparams.sections import BacktrackArguments
from tests.data.toy import bpe_tokenizer
from tests.tiny import tiny_tokenizer

TOKENIZER = bpe_tokenizer()
BACKTRACK = TOKENIZER.convert_tokens_to_ids(BACKTRACK_TOKEN)
PLAIN = set(plain_ids(TOKENIZER, BACKTRACK))
IDS = TOKENIZER("There are 48/2 = 24 ducks and 12,000 birds.", add_special_tokens=False)["input_ids"]


def runs(**section) -> ErrorRuns:
    return ErrorRuns(TOKENIZER, BACKTRACK, BacktrackArguments(**section))


def test_trap6_the_plain_vocabulary_has_no_special_added_or_reserved_token():
    tokenizer = tiny_tokenizer(["a", "b", "<unused7>", "[PAD2]", "<0x0A>", "<|reserved_5|>", "[", "<", "x>y"])
    tokenizer.add_tokens(["added"])
    tokenizer.add_special_tokens({"additional_special_tokens": [BACKTRACK_TOKEN]})
    ids = plain_ids(tokenizer, tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN))
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "b", "[", "<", "x>y"]


@given(
    source=st.sampled_from(["random", "shuffled", "digits"]),
    nesting=st.sampled_from([0.0, 0.9]),
    at=st.integers(0, len(IDS)),
    seed=st.integers(),
)
def test_trap6_error_tokens_are_plain_and_never_the_right_one(source, nesting, at, seed):
    errors = runs(source=source, nesting=nesting, min_run=1, max_run=6)
    run = errors.run(IDS, at, 6, Random(seed))
    assert set(run) <= PLAIN | {BACKTRACK}
    if run and at < len(IDS):
        assert run[0] != IDS[at]
    assert (BACKTRACK in run) <= (nesting > 0)
    kept = apply_backtracking(run, BACKTRACK)
    assert len(kept) <= 6
    if source == "shuffled":
        assert set(run) <= {*IDS, BACKTRACK}
    if source == "digits":
        text = TOKENIZER.decode(kept)
        assert run == [] or text.strip().isdigit()
        assert [len(TOKENIZER.decode(i)) for i in kept] == [len(TOKENIZER.decode(i)) for i in IDS[at : at + len(kept)]]


def test_a_source_without_another_token_draws_nothing():
    errors = runs(source="shuffled")
    assert errors.run([5, 5], 0, 3, Random(0)) == []
    assert runs(source="digits").run(TOKENIZER("ab", add_special_tokens=False)["input_ids"], 0, 3, Random(0)) == []


def test_number_forms_keep_the_length_and_the_leading_space():
    forms = number_forms(TOKENIZER, sorted(PLAIN))
    for token, same in forms.items():
        texts = {TOKENIZER.decode(i) for i in same}
        assert token in same
        assert len({(text[0] == " ", len(text)) for text in texts}) == 1


def test_lengths_follow_the_truncated_geometric_distribution():
    errors, rng = runs(min_run=2, max_run=9, mean_run=4.0), Random(0)
    lengths = [errors.length(rng, 6) for _ in range(20_000)]
    weights = {k: 0.75 ** (k - 2) for k in range(2, 7)}
    for k, weight in weights.items():
        assert lengths.count(k) / 20_000 == pytest.approx(weight / sum(weights.values()), abs=0.01)


def test_lengths_are_uniform_if_asked_for():
    errors, rng = runs(min_run=2, max_run=5, run_length="uniform"), Random(0)
    lengths = [errors.length(rng, 5) for _ in range(20_000)]
    assert [lengths.count(k) / 20_000 for k in range(1, 7)] == pytest.approx([0, *[0.25] * 4, 0], abs=0.01)


def test_the_curriculum_lets_the_longest_run_grow_linearly():
    errors = runs(min_run=1, max_run=9, curriculum="linear", curriculum_end=0.5)
    assert [errors.longest(p) for p in (0.0, 0.125, 0.25, 0.49, 0.5, 1.0)] == [1, 3, 5, 8, 9, 9]
    assert runs(max_run=9).longest(0.0) == 9


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.2, 0.9])
def test_rate_is_the_expected_number_of_runs_per_token(rate):
    errors, rng = runs(rate=rate), Random(0)
    places = [errors.places(range(40), 40, rng) for _ in range(4000)]
    assert all(chosen == sorted(set(chosen)) for chosen in places)
    assert mean(map(len, places)) == pytest.approx(rate * 40, abs=0.04)
    for at in (0, 39):  # the ends are as likely as the middle
        assert mean(at in chosen for chosen in places) == pytest.approx(rate, abs=0.025)


def test_rate_counts_tokens_where_few_places_are_eligible():
    errors, rng = runs(rate=0.05, source="digits"), Random(0)
    places = [errors.places([3, 8, 9, 30], 40, rng) for _ in range(4000)]
    assert mean(map(len, places)) == pytest.approx(0.05 * 40, rel=0.03)
    assert runs(rate=0.2).places([3, 8], 40, rng) == [3, 8]  # more than there is room for
