"""Scores through the model's own forward: TRL's fused head where that is right, and what it passes by."""

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from llmhalluc.backtrack import IGNORE
from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.context import apply_context
from llmhalluc.models.peft import add_adapter
from llmhalluc.train import scoring
from llmhalluc.train.scoring import score_through_model
from tests.tiny import FAMILIES, tiny_model

BT = 63
OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def batch(n_rows: int, left: bool, ids_below: int = 60, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of mixed lengths, prompts padded on the left where asked for, replies on the right; one reply is masked."""
    torch.manual_seed(seed)
    prompts, replies = torch.randint(1, 7, (n_rows,)), torch.randint(1, 12, (n_rows,))
    width = 7 + 12
    columns = torch.arange(width)
    start = 7 - prompts if left else torch.zeros_like(prompts)
    end = start + prompts + replies
    mask = ((columns >= start[:, None]) & (columns < end[:, None])).long()
    ids = torch.randint(3, ids_below, (n_rows, width)) * mask
    labels = ids.masked_fill((mask == 0) | (columns < (start + prompts)[:, None]), IGNORE)
    labels[0] = IGNORE
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def places(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a forward takes, the positions counted from the first token on."""
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": inputs["input_ids"], "attention_mask": mask, "position_ids": positions}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("n_rows", [3, 70])  # 70: four parts of rows of like length
@pytest.mark.parametrize("chunk", [scoring.CHUNK, 64 * 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_model_scores_as_with_trls_own_head(monkeypatch, family, n_rows, chunk, temperature):
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    theirs, ours = tiny_model(family), tiny_model(family)
    add_fused_lm_head(theirs, temperature, outputs=OUTPUTS)
    score_through_model(ours, temperature)
    inputs = batch(n_rows, left=family != "gpt2")  # TRL counts padding on the left as positions
    expected, found = theirs(**inputs, fused_lm_head=True), ours(**inputs, fused_lm_head=True)
    scored = inputs["labels"][:, 1:] != IGNORE
    assert torch.equal(found.label_mask, scored)
    for name in OUTPUTS:
        # TRL's mean is of the logits over the temperature
        scale = temperature if name == "mean_logits" else 1
        # TRL's head works in float32, and so do rotary positions, which it counts from the padding on.
        torch.testing.assert_close(
            found[name].double()[scored], scale * expected[name].double()[scored], rtol=0, atol=1e-5
        )
        assert not found[name][~scored].any()
    torch.testing.assert_close(found.loss.double(), expected.loss.double(), rtol=0, atol=1e-5)
    for name in ("log_probs", "entropy"):
        torch.manual_seed(1)
        weights = torch.randn(scored.shape, dtype=torch.float64)
        gradients = [
            torch.autograd.grad((out[name] * weights).sum(), list(model.parameters()), retain_graph=True)
            for out, model in ((expected, theirs), (found, ours))
        ]
        for left, right in zip(*gradients, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_changes_nothing(family):
    model, rows = tiny_model(family), []
    apply_context(model, "block", BT)
    score_through_model(model)
    whole = batch(40, left=True, ids_below=64, seed=3)  # BACKTRACKs among them
    whole["labels"] = whole["labels"].masked_fill(whole["input_ids"] == 0, IGNORE)
    found = model(**whole, fused_lm_head=True).log_probs
    for i in range(40):
        real = whole["attention_mask"][i].bool()
        alone = model(**{name: x[i][real][None] for name, x in whole.items()}, fused_lm_head=True).log_probs[0]
        rows.append(torch.equal(alone == 0, found[i][real[1:]][-len(alone) :] == 0))
        torch.testing.assert_close(found[i][real[1:]][-len(alone) :], alone, rtol=0, atol=1e-12)
    assert all(rows)


def test_a_backtrack_row_that_peft_trains_is_scored():
    model = add_adapter(tiny_model("llama"), ModelArguments(name_or_path="x", finetuning="lora", lora_r=2), BT)
    inputs = batch(4, left=True, ids_below=64)
    score_through_model(model.get_base_model())
    before = model(**inputs, fused_lm_head=True).log_probs
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lm_head" in name and parameter.requires_grad:
                parameter += 1.0
    logits = model(**places(inputs)).logits
    found = model(**inputs, fused_lm_head=True).log_probs
    scored = inputs["labels"][:, 1:] != IGNORE
    targets = inputs["labels"][:, 1:].clamp(min=0)[..., None]
    expected = logits[:, :-1].log_softmax(-1).gather(2, targets)[..., 0]
    torch.testing.assert_close(found[scored], expected[scored], rtol=0, atol=1e-12)
    assert (found - before)[scored].abs().max() > 0.1


@pytest.mark.parametrize("n_rows", [3, 70])
def test_what_was_not_offered_takes_no_probability(n_rows):
    model, inputs = tiny_model("llama"), batch(n_rows, left=True)

    def barred(ids, labels):  # at every label but the first of a row: the token after it, and 7
        rows, places = (labels != IGNORE).nonzero().unbind(1)
        return [
            (row, place, token)
            for row, place in zip(rows.tolist(), places.tolist(), strict=True)
            for token in {7, (labels[row, place].item() + 1) % 64} - {labels[row, place].item()}
        ] + [(0, 0, 5)]  # and one where there is no label

    score_through_model(model, 0.7, barred)
    found = model(**inputs, fused_lm_head=True)
    (found.log_probs - found.entropy).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    plain = type(model).forward(model, **places(inputs)).logits
    for row, place, _ in {(r, p, 0) for r, p, _ in barred(inputs["input_ids"], inputs["labels"])[:-1]}:
        label = inputs["labels"][row, place].item()
        offered = [token for token in range(64) if token == label or token not in (7, (label + 1) % 64)]
        logprobs = (plain[row, place - 1][offered] / 0.7).log_softmax(-1)
        torch.testing.assert_close(found.log_probs[row, place - 1], logprobs[offered.index(label)], rtol=0, atol=1e-9)
        entropy = -(logprobs.exp() * logprobs).sum()
        torch.testing.assert_close(found.entropy[row, place - 1], entropy, rtol=0, atol=1e-9)


def test_without_labels_to_score_the_loss_is_nought_and_has_a_gradient():
    model, inputs = tiny_model("llama"), batch(3, left=True)
    score_through_model(model)
    found = model(**inputs | {"labels": torch.full_like(inputs["labels"], IGNORE)}, fused_lm_head=True)
    found.log_probs.sum().backward()
    assert not found.log_probs.any() and found.loss == 0


def test_without_the_flag_the_forward_is_the_models_own():
    model, inputs = tiny_model("llama"), batch(3, left=True)
    expected = model(**inputs)
    score_through_model(model)
    found = model(**inputs)
    assert torch.equal(found.logits, expected.logits) and found.loss == expected.loss
