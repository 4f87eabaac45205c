"""The head sees in decoding what it saw in training, finds what is planted, and is refused where it does not belong."""

import random

import pytest
import torch

from llmhalluc.decoding.backend import TorchBackend
from llmhalluc.decoding.engine import Engine
from llmhalluc.decoding.sequence import Spec
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.verify import head as heads
from llmhalluc.verify.learn import Places, calibration, first_step, places_of, report, threshold_of, train
from llmhalluc.verify.options import JudgeOptions, judge_options
from llmhalluc.verify.use import VerifierJudge
from tests.tiny import FAMILIES, tiny_model
from tests.verify.planted import EOS, TOKENIZER, loaded, sampled

LAYERS = {"llama": ("model.layers.0", "model.layers.1"), "qwen3": ("model.layers.1",), "gpt2": ("transformer.h.0",)}


def head_for(model, layers, width=4, threshold=0.5):
    config = model.config.get_text_config()
    torch.manual_seed(0)
    about = heads.About(layers, config.hidden_size, model.get_input_embeddings().weight.shape[0], "", "countdown",
                        "solver", threshold)  # fmt: skip
    return heads.Head(about, width).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", ["soft", "block", "rewind"])
def test_decoding_judges_what_training_saw(family, context):
    backtrack_id = len(TOKENIZER)
    made = loaded(family, context, backtrack_id)
    head = head_for(made.model, LAYERS[family])
    judge = VerifierJudge(head, made.model)
    options = GenArguments(max_new_tokens=20, temperature=1.0, backtrack_bias=2.0)
    traces = sampled(made)
    assert any(backtrack_id in trace.completion_ids for trace in traces)
    engine = Engine(
        TorchBackend(made.model), Spec(options, [EOS], backtrack_id, context, TOKENIZER, layers=judge.layers)
    )
    for trace in traces:
        sequence = engine.add(trace.prompt_ids, key=str(int(trace.judged.problem.key[1:])))
        live, wanted = {}, {place.at: place.length for place in trace.judged.places}
        while not sequence.finish_reason:
            engine.step()
            at = len(sequence.completion_ids) - 1
            if at in wanted:
                hidden = {name: state[None] for name, state in sequence.hidden.items()}
                live[at] = judge.good([sequence], hidden, [wanted[at]])[0]
        assert sequence.completion_ids == trace.completion_ids
        rows = places_of(made, [trace], judge.layers, 0)
        due, _ = head.judge(rows.features)
        assert list(live.values()) == pytest.approx([1 - one for one in due], abs=1e-5)


def planted(signal, count=3000, size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, size, generator=generator)
    bad = (torch.rand(count, generator=generator) < 0.15).float()
    features[:, 3] += signal * bad
    return Places(features, 1 - bad, 1 - bad, torch.ones(count, dtype=torch.bool), [i // 4 for i in range(count)])


def fitted(signal):
    about = heads.About((), 12 - heads.LIKELIHOODS, 1, "", "countdown", "solver")
    torch.manual_seed(0)
    head = heads.Head(about, 8)
    curve = train(head, planted(signal), planted(signal, seed=1), JudgeOptions(epochs=15, batch_size=128), 0)
    test = planted(signal, seed=2)
    return curve, test, *head.judge(test.features)


def test_a_planted_signal_is_found_and_noise_is_not():
    curve, test, due, right = fitted(5.0)
    found = report(due, right, test, threshold_of(due, test))
    assert found["auc"] >= 0.95 and found["auc_answer"] >= 0.95 and found["first_step_f1"] > 0.9
    assert curve[-1]["loss"] < curve[0]["loss"]
    _, test, due, right = fitted(0.0)
    assert abs(report(due, right, test, 0.5)["auc"] - 0.5) < 0.06


def test_training_again_gives_the_same_weights():
    first, second = fitted(1.0), fitted(1.0)
    assert first[0] == second[0] and first[2] == second[2]


def test_the_first_wrong_step_by_hand():
    good = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    rows = Places(torch.zeros(7, 1), good, good, torch.ones(7, dtype=torch.bool), [0, 0, 0, 1, 1, 2, 2])
    found = first_step([0.1, 0.9, 0.9, 0.1, 0.2, 0.8, 0.9], rows, 0.5)
    assert found == {
        "traces": 3, "faulty": 2, "first_step_found": 0.5, "clean_left": 1.0, "first_step_f1": pytest.approx(2 / 3)
    }  # fmt: skip


def test_calibration_by_hand():
    low, high = calibration([0.05, 0.06, 0.95, 1.0], [False, True, True, True])
    assert low == {"rows": 2, "score": pytest.approx(0.055), "share": 0.5}
    assert high == {"rows": 2, "score": pytest.approx(0.975), "share": 1.0}


def test_a_head_is_saved_and_belongs_to_its_model(tmp_path):
    model = tiny_model("llama")
    head = head_for(model, LAYERS["llama"])
    head.fit_scale(torch.randn(20, head.mean.numel()))
    heads.save(head, tmp_path)
    again = heads.load(tmp_path, model)
    rows = torch.randn(5, head.mean.numel())
    assert again.about == head.about and again.judge(rows) == head.judge(rows)
    with pytest.raises(UserError, match="was trained on a model of width 32 with 64 ids, this one has 32 and 70"):
        heads.load(tmp_path, tiny_model("llama", vocab_size=70))
    with pytest.raises(UserError, match="was trained on other weights than the model's"):
        heads.load(tmp_path, model, "other")
    with pytest.raises(UserError, match="does not exist: train a head with train.stage=verifier"):
        heads.load(tmp_path / "nowhere", model)
    (tmp_path / heads.FILE).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is no verifier head .* train one with train.stage=verifier"):
        heads.load(tmp_path, model)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"label": "solver"}, r"train.judge.label is no key; did you mean .*labels"),
        ({"labels": "people"}, r"train.judge.labels is 'people'"),
        ({"dev_share": 0.5}, r"train.judge.dev_share is 0.5"),
    ],
)
def test_options_that_no_judge_could_follow(given, sentence):
    with pytest.raises(UserError, match=sentence):
        judge_options(given)
    assert judge_options({}) == JudgeOptions()


def test_the_threshold_never_erases_where_that_only_harms():
    rng = random.Random(0)
    good = torch.ones(400)
    rows = Places(torch.zeros(400, 1), good, good, torch.ones(400, dtype=torch.bool), list(range(400)))
    due = [rng.random() for _ in range(400)]
    assert first_step(due, rows, threshold_of(due, rows))["clean_left"] == 1.0
