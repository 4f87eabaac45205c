"""Traces from samples: what survives is right, what is erased is the model's own and wrong."""

from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.data.problems import Problem
from llmhalluc.selfgen import build
from llmhalluc.selfgen.sample import Completion, is_right
from tests.data.toy import GSM8K, bpe_tokenizer, sudoku_tokenizer
from tests.selfgen.noisy import problems, solution_ids


class FakeRollouts:
    """Rollouts that say what a function of problem and prefix says; counts what it is asked."""

    def __init__(self, tokenizer, say=None, count=4):
        self.sampler = SimpleNamespace(loaded=SimpleNamespace(tokenizer=tokenizer))
        self.tokenizer, self.say, self.count, self.asked = tokenizer, say, count, []

    def __call__(self, prefixes):
        self.asked += prefixes
        told = [[Completion(ids, True) for ids in self.say(problem, prefix)] for problem, prefix in prefixes]
        return [
            [(one, is_right(self.tokenizer, problem, [*prefix, *one.ids])) for one in mine]
            for (problem, prefix), mine in zip(prefixes, told, strict=True)
        ]


def run(these, samples, tokenizer, locator="departure", say=None):
    """(traces, judged, located drafts, the rollouts) of completions as lists of ids."""
    rollouts = FakeRollouts(tokenizer, say)
    judged = build.judge(these, samples, tokenizer)
    references = {draft.problem.key: build.reference(draft.problem, tokenizer, " ") for draft in judged.wrong}
    drafts = build.locate(judged, references, locator, rollouts, 0.0, None)
    return build.traces(drafts, judged, references, rollouts), judged, drafts, rollouts


@st.composite
def sudoku_samples(draw):
    """A problem, and samples that are right, wrong somewhere, out of order, too short or too long."""
    problem = draw(st.sampled_from(problems(6)))
    right, samples = solution_ids(problem), []
    for _ in range(draw(st.integers(1, 5))):
        rng = Random(draw(st.integers(0, 10**6)))
        ids = list(right)
        if rng.random() < 0.4:
            rng.shuffle(ids)
        for at in range(len(ids)):
            if rng.random() < 0.15:
                ids[at] = rng.randrange(4, 69)
        if rng.random() < 0.3:
            ids = ids[: rng.randrange(len(ids) + 1)] + [rng.randrange(4, 69)] * rng.randrange(3)
        samples.append(Completion(ids, rng.random() < 0.8))
    return problem, samples


@settings(max_examples=200)
@given(sudoku_samples())
def test_law_a_trace_erases_an_own_error_and_survives_right(given_):
    problem, samples = given_
    tokenizer, right = sudoku_tokenizer(), set(solution_ids(problem))
    made, judged, drafts, rollouts = run([problem], [samples], tokenizer)
    assert len(made) == len(drafts) and not rollouts.asked
    for trace, draft in zip(made, drafts, strict=True):
        prefix, own = trace["prefix_ids"], trace["own_steps"]
        assert [*prefix, *(token for step in own for token in step)] in [one.ids for one in samples]
        assert set(prefix) <= right and len({*prefix}) == len(prefix)
        assert own[0] == [draft.ids()[len(prefix)]]
        assert own[0][0] not in right - set(prefix), "the first own step is wrong"
        assert trace["right_ids"][-1] == tokenizer.eos_token_id
        assert is_right(tokenizer, problem, [*prefix, *trace["right_ids"][:-1]])
        assert sorted([*prefix, *trace["right_ids"][:-1]]) == sorted(right)
    # Of every different wrong sample that has a wrong move, there is one; a sample that only stops early has none.
    errors = {tuple(one.ids) for one in samples if not (set(one.ids) <= right and len({*one.ids}) == len(one.ids))}
    assert {tuple(draft.ids()) for draft in drafts} == errors
    counts = judged.counts
    assert counts["right"] + counts["wrong"] + counts["right_without_an_end"] == len(samples)


WORDS = {
    "right": " There are 48/2 = 24 ducks. So 48+24 = 72 birds.\n#### 72",
    "slip": " There are 48/2 = 24 ducks.\nTogether there are 48+24 = 71 birds.\n#### 71",
    "early": " Half of 48 is 48/2 = 22 of them. So 48+22 = 70.\n#### 70",
    "other way": " Let us see. Twice 3 is 2*24 = 48. So 48-24 = 25.\n#### 25",
}
BIRDS = Problem("train-0", "math", [5, 6], GSM8K[0])


def said(text: str) -> list[int]:
    return bpe_tokenizer()(text, add_special_tokens=False)["input_ids"]


def sample(*names: str) -> list[Completion]:
    return [Completion(said(WORDS[name]), True) for name in names]


def shown(trace) -> tuple[str, list[str], str]:
    decode = bpe_tokenizer().decode
    return decode(trace["prefix_ids"]), [decode(step) for step in trace["own_steps"]], decode(trace["right_ids"])


def test_a_worked_solution_goes_on_with_the_models_own_right_sample():
    (trace,), *_ = run([BIRDS], [sample("right", "slip")], bpe_tokenizer())
    assert shown(trace) == (
        " There are 48/2 = 24 ducks.\n", ["Together there are 48+24 = 71 birds.\n", "#### 71"],
        " So 48+24 = 72 birds.\n#### 72</s>",
    )  # fmt: skip


def test_without_a_right_sample_the_reference_goes_on_where_it_says_what_the_prefix_says():
    made, *_ = run([BIRDS], [sample("slip", "early")], bpe_tokenizer())
    assert shown(made[0])[2] == "Together there are 48+24 = 72 birds.\n#### 72</s>"
    assert shown(made[1])[0] == ""
    assert shown(made[1])[1][0] == " Half of 48 is 48/2 = 22 of them."
    assert shown(made[1])[2].startswith(" There are 48/2 = 24 ducks.\n")


def test_words_before_the_error_that_nothing_vouches_for_are_erased_with_it():
    junk = said(" Mind the ducks. There are 48/2 = 24 ducks. Weigh a loaf. So 48+24 = 71.\n#### 71")
    (trace,), *_ = run([BIRDS], [[Completion(junk, True)]], bpe_tokenizer())
    prefix, own, right = shown(trace)
    assert prefix == " Mind the ducks. There are 48/2 = 24 ducks."
    assert own == [" Weigh a loaf. So 48+24 = 71.\n", "#### 71"]
    assert right.startswith("Together there are 48+24 = 72 birds.")
    twin = said(" Mind the ducks. There are 48/2 = 24 ducks. Weigh a loaf. So 48+24 = 72.\n#### 72")
    (trace,), *_ = run([BIRDS], [[Completion(junk, True), Completion(twin, True)]], bpe_tokenizer())
    assert shown(trace)[1][0] == " So 48+24 = 71.\n", "the same words in a right sample do"


def test_a_continuation_that_leaves_the_answer_out_is_not_taken():
    first = said(" The answer is 72. It is 48+24 = 72.")
    wrong = said(" There were 72 eggs. It was 48+24 = 71.\n#### 71")
    samples = [[Completion(first, True), Completion(wrong, True)]]
    made, _, drafts, _ = run([BIRDS], samples, bpe_tokenizer(), say=lambda *_: [])
    assert [draft.at for draft in drafts] == [1] and made == []


def test_where_no_solution_follows_the_prefix_a_verified_rollout_does():
    wrong, good = said(" So 24+24 = 70.\n#### 70"), said(" So 48+24 = 72.\n#### 72")
    repeats = said(" So 48-24 = 25. No, 72.\n#### 72")  # right in the end, by way of the same error
    made, _, _, rollouts = run(
        [BIRDS], [sample("other way")], bpe_tokenizer(), "arithmetic", lambda *_: [wrong, repeats, good]
    )
    assert shown(made[0]) == (
        " Let us see. Twice 3 is 2*24 = 48.", [" So 48-24 = 25.\n", "#### 25"], " So 48+24 = 72.\n#### 72</s>",
    )  # fmt: skip
    assert len(rollouts.asked) == 1
    made, *_ = run([BIRDS], [sample("other way")], bpe_tokenizer(), "arithmetic", lambda *_: [wrong])
    assert made == []


def test_value_locates_by_the_share_of_right_rollouts():
    tokenizer, problem = sudoku_tokenizer(), problems(1)[0]
    right = solution_ids(problem)

    def solver(problem, prefix):
        return [[move for move in right if move not in prefix]] * 4  # cannot mend a wrong prefix

    wrong = [*right[:2], 5 if right[2] != 5 else 6, *right[3:]]
    made, _, drafts, _ = run([problem], [[Completion(wrong, True)]], tokenizer, "value", solver)
    assert [draft.at for draft in drafts] == [2]
    assert made[0]["right_ids"][:-1] == right[2:]


def test_a_step_that_is_right_after_all_is_not_erased():
    problem, tokenizer = problems(1)[0], sudoku_tokenizer()
    right = solution_ids(problem)
    draft = build.Attempt(problem, build.Splitter(tokenizer)(problem, [*right[:-1], 5]), 1)
    judged = build.judge([problem], [[]], tokenizer)
    assert build.traces([draft], judged, {}, FakeRollouts(tokenizer, lambda *_: [])) == []


@pytest.mark.parametrize("answer", ["72", "72.0"])
def test_a_mere_number_is_no_solution_to_go_on_with(answer):
    assert build.reference(BIRDS._replace(record=GSM8K[0] | {"answer": answer}), bpe_tokenizer(), " ") is None


def test_a_trace_of_math_survives_right_for_any_number_of_steps():
    made, *_ = run([BIRDS], [sample("right", "slip", "early")], bpe_tokenizer())
    backtrack_id = bpe_tokenizer().convert_tokens_to_ids("<|BACKTRACK|>")
    for trace in made:
        for n in range(1, len(trace["own_steps"]) + 1):
            error = [token for step in trace["own_steps"][:n] for token in step]
            ids = [*trace["prefix_ids"], *error, *[backtrack_id] * len(error), *trace["right_ids"]]
            assert apply_backtracking(ids, backtrack_id) == [*trace["prefix_ids"], *trace["right_ids"]]
            assert is_right(bpe_tokenizer(), BIRDS, apply_backtracking(ids, backtrack_id))
