"""Judges at work: a step that is judged bad goes, a place is judged anew `retries` times, a text is worth its steps."""

import math

import pytest
import torch

from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Spec
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.models.loader import Loaded
from llmhalluc.search.run import search
from llmhalluc.search.tree import Problem
from llmhalluc.verify.learn import rows_of
from llmhalluc.verify.options import JudgeOptions
from llmhalluc.verify.prm import fit_prm, load_prm, prm_places, read
from llmhalluc.verify.use import JudgeGuide, JudgeOperator, PRMJudge, operator_of
from tests.tiny import tiny_model
from tests.verify.planted import COUNTDOWN, EOS, RECORD, TOKENIZER, ids_of, loaded, sampled


class Says:
    """A judge that knows the right texts of a step."""

    layers, threshold, task = (), 0.5, "countdown"

    def __init__(self, right):
        self.right, self.asked = right, []

    def good(self, sequences, hidden, lengths):
        texts = [TOKENIZER.decode(one.surviving[-n:]) for one, n in zip(sequences, lengths, strict=True)]
        self.asked += texts
        return [float(text.strip() in self.right) for text in texts]

    def cost(self, sequence):
        return 7, 70.0


def written(*texts):
    """A sampler that writes steps in turn, one at each asking for a first token, then ends."""
    queue = [ids_of(text) for text in texts]

    def sampler(logits_BV, sequences, spec):
        (sequence,) = sequences
        if len(sequence.surviving) % 5 == 0:
            sampler.now = queue.pop(0) if queue else [EOS]
        return [sampler.now.pop(0)]

    return sampler


def traced(judge, *texts, **more):
    operator = JudgeOperator(judge, lambda token: f" {TOKENIZER.decode([token])}", [EOS], "verifier", **more)
    spec = Spec(
        GenArguments(max_new_tokens=40, max_erasures=30), [EOS], None, "soft", TOKENIZER, operator, written(*texts)
    )
    model = tiny_model("llama", vocab_size=len(TOKENIZER))
    return decode(model, [ids_of("2 3 4 target 9 solve")], spec)[0], operator


def test_a_step_that_is_judged_bad_is_erased_as_a_whole():
    judge = Says({"2 + 3 = 5", "5 + 4 = 9"})
    trace, operator = traced(judge, "4 - 3 = 1", "2 + 3 = 5", "5 + 4 = 9")
    assert trace.text == "2 + 3 = 5 5 + 4 = 9" and [event[1:] for event in trace.events] == [(5, "verifier")]
    # The step that comes instead is not judged: see `retries`.
    assert judge.asked == ["4 - 3 = 1", "5 + 4 = 9"] and operator.read == 2 * 7


def test_a_place_is_judged_again_as_often_as_it_may_be_tried_again():
    once, _ = traced(Says(set()), "4 - 3 = 1", "2 - 3 = 1", "5 + 4 = 9", "2 + 4 = 6")
    assert len(once.events) == 2 and once.text == "2 - 3 = 1 2 + 4 = 6"
    twice, _ = traced(Says(set()), "4 - 3 = 1", "2 - 3 = 1", "5 + 4 = 9", "2 + 4 = 6", retries=2)
    assert [event.n for event in twice.events] == [5, 5, 5] and twice.text == "5 + 4 = 9"
    never, _ = traced(Says(set()), "4 - 3 = 1", threshold=1.1)
    assert not never.events


class Marks(Says):
    """Says 0.25 of a step whose result is odd."""

    def good(self, sequences, hidden, lengths):
        texts = [TOKENIZER.decode(one.surviving) for one in sequences]
        return [0.25 if text.split()[-1] in ("1", "3", "5", "7", "9") else 1.0 for text in texts]


def test_a_text_is_worth_the_geometric_mean_of_its_steps():
    texts = {"doc/1": "2 + 3 = 5 5 - 4 = 1", "doc/2": "4 - 2 = 2 2 * 3 = 6", "doc": "2 + 4 = 6 6 + 3 = 9"}

    def sampler(logits_BV, sequences, spec):
        found = []
        for one in sequences:
            ids = [*ids_of(texts[one.key]), EOS]
            found.append(ids[len(one.surviving)])
        return found

    options = GenArguments(max_new_tokens=30, temperature=1.0, search="best_of_n", search_args={"n": 3})
    spec = Spec(options, [EOS], None, "soft", TOKENIZER, sampler=sampler)
    seen = []

    class Spy(JudgeGuide):
        def __call__(self, judged):
            scores = super().__call__(judged)
            seen.extend(
                (len(one.branch.sequence.surviving), score[0]) for one, score in zip(judged, scores, strict=True)
            )
            return scores

    model = tiny_model("llama", vocab_size=len(TOKENIZER))
    problem = Problem(ids_of("2 3 4 target 9 solve"), "doc", COUNTDOWN, RECORD)
    (best,) = search(model, [problem], spec, guide=Spy(Marks(())))
    assert best.text == texts["doc/2"]
    assert [score for n, score in seen if n == 10] == [pytest.approx(math.sqrt(0.25)), 0.25, 1.0]
    assert best.cost.forward == 5 + 33 + 9 * 7 and best.cost.flops > 9 * 70


def test_the_prm_judges_as_it_was_trained_and_loads_again(tmp_path):
    made = loaded(context="block", backtrack_id=len(TOKENIZER))
    made = Loaded(made.model.float(), made.tokenizer, made.backtrack_id, made.context)
    traces = sampled(made, count=24)
    options = JudgeOptions(epochs=12, batch_size=8, learning_rate=3e-3)
    before = {name: part.clone() for name, part in made.model.state_dict().items()}
    prm, curve = fit_prm(made, [traces, traces], options, 0, 0)
    assert all(torch.equal(part, before[name]) for name, part in made.model.state_dict().items())
    assert curve[-1]["dev_loss"] < curve[0]["dev_loss"]
    rows = prm_places(prm, traces, 0)
    wrong = (rows.features[:, 0] > 0.5).float() != rows.good
    assert wrong.float().mean() < 0.1
    # One text at a time, without its end, by the judge.
    prm.model.config.prm |= {"threshold": 0.5, "task": "countdown", "labels": "solver"}
    judge, at = PRMJudge(prm), 0
    for trace in traces:
        laid = rows_of(trace, prm.backtrack_id, prm.context)
        for place in trace.judged.places:

            class Now:
                prompt_ids, completion_ids = trace.prompt_ids, trace.completion_ids[: place.at + 1]
                surviving, operator_erased = list(place.standing), 0

            assert judge.good([Now()], {}, [1]) == pytest.approx([float(rows.features[at, 0])], abs=1e-5)
            alone = read(prm, [laid], [(0, len(trace.prompt_ids) + place.at)], 0).sigmoid()
            assert float(alone) == pytest.approx(float(rows.features[at, 0]), abs=1e-5)
            at += 1


def test_what_is_missing_is_named(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(UserError, match="does not exist: train a model with train.stage=prm"):
        load_prm(tmp_path / "nowhere", model)
    with pytest.raises(UserError, match="verifier.safetensors does not exist: train a head"):
        operator_of("verifier", {"judge": str(tmp_path)}, None, (model, TOKENIZER, [EOS]))
