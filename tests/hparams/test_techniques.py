"""Techniques of SFT that do not fit the rest of a config: each has its sentence before anything is loaded."""

import pytest

from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.parser import build
from llmhalluc.hparams.sections import Config

ERRING = {"converter": "sudoku_backtrack", "dataset": "sudoku"}
COUNTDOWN = {"converter": "countdown_backtrack", "dataset": "countdown"}


def sentences(**raw: dict) -> list[str]:
    with pytest.raises(UserError) as caught:
        build(raw)
    return list(caught.value.sentences)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"train": {"stage": "dpo", "targets": "set"}},
         "train.targets is set, a technique of sft, but train.stage is dpo: take it out"),
        ({"train": {"stage": "grpo"}, "backtrack": {"keep_if_helps": True}},
         "backtrack.keep_if_helps is True, a technique of sft, but train.stage is grpo: take it out"),
        ({"train": {"correction_weight": 3}, "data": ERRING},
         "train.correction_weight is 3, but train.weighting is none: set train.weighting=position, or take "
         "it out"),
        ({"train": {"weighting": "confidence"}, "data": {"converter": "sudoku", "dataset": "sudoku"}},
         "train.weighting is confidence, but data.converter sudoku puts no errors in: take it out, or name one of "
         "backtrack, selfgen, backtrack_dpo, gsm8k_backtrack, sudoku_backtrack, countdown_backtrack"),
        ({"backtrack": {"keep_if_helps": True, "context": "rewind"}, "data": ERRING},
         "backtrack.keep_if_helps is true, but with backtrack.context rewind no erased error changes the text after "
         "it: take it out"),
        ({"backtrack": {"keep_if_helps": True, "curriculum": "linear"}, "data": ERRING},
         "backtrack.keep_if_helps is true, which draws each record's errors once, but backtrack.curriculum is linear: "
         "set one of them to its default"),
        ({"train": {"warmup_embeddings": 5, "deepspeed": "z.json"}},
         "train.warmup_embeddings is 5, but train.deepspeed shards gradients: set 0"),
        ({"train": {"warmup_embeddings": 5, "optim": "lomo"}},
         "train.warmup_embeddings is 5, but train.optim lomo steps during the backward pass: set 0, or another "
         "optimizer"),
        ({"train": {"targets": "set"}, "data": ERRING},
         "train.targets is set, but data.converter sudoku_backtrack is of no task that says which next moves are "
         "right: take it out, or name one of countdown, countdown_backtrack"),
        ({"train": {"targets": "set", "label_smoothing_factor": 0.1}, "data": COUNTDOWN},
         "train.targets is set and train.label_smoothing_factor is 0.1, two losses of one token: keep one of them"),
        ({"train": {"targets": "set", "loss_type": "dft"}, "data": COUNTDOWN},
         "train.targets is set and train.loss_type is dft, two losses of one token: keep one of them"),
    ],
)  # fmt: skip
def test_each_misfit_has_its_sentence(raw, sentence):
    assert sentences(**raw) == [sentence]


def test_techniques_are_off_by_default_and_each_key_turns_them_on():
    assert not Config().techniques()
    for train in ({"weighting": "position"}, {"warmup_embeddings": 1}):
        assert build({"train": train, "data": ERRING}).techniques()
    assert build({"train": {"targets": "set"}, "data": COUNTDOWN}).techniques()
    assert build({"backtrack": {"keep_if_helps": True}, "data": ERRING}).techniques()
