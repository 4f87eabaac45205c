"""GRPO: what rollouts are scored with is what they were sampled from; every loss of TRL's takes a step."""

import inspect
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import use_adapter

from llmhalluc.backtrack import CONTEXTS, apply_backtracking
from llmhalluc.data.problems import Problem
from llmhalluc.decoding import sampling
from llmhalluc.decoding.sequence import Trace
from llmhalluc.hparams.sections import GenArguments, ModelArguments
from llmhalluc.models.context import apply_context
from llmhalluc.models.peft import add_adapter
from llmhalluc.train.grpo import GRPORun
from llmhalluc.train.rollout import decode_group, rollout, rollout_settings
from llmhalluc.train.trl_patches import grpo_round
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

LOSS = inspect.getsource(GRPOTrainer._compute_loss)
VOCABULARY, BT = 24, 23  # so few that bans, spent budgets and lifted bans are common
PROBLEMS = [
    Problem(
        f"train-{i}",
        "math",
        [4 + (i + j) % 18 for j in range(1 + 3 * i % 7)],
        {"question": f"question {i}", "answer": "#### 1"},
    )
    for i in range(6)
]


def trl_losses() -> list[str]:
    """The values of `loss_type` that TRL's loss knows."""
    return sorted(set(re.findall(r'"(\w+)"', "".join(re.findall(r"self\.loss_type (?:in|==) (.*?):", LOSS)))))


def length(completion_ids, log_metric, **columns) -> list[float]:
    """A reward: how many tokens survive. It sees every column of a problem."""
    assert columns["prompt_ids"] and columns["record"] and columns["task"][0] == "math"
    log_metric("reward/length", 1.0)
    return [float(len(apply_backtracking(ids, BT))) for ids in completion_ids]


def trainer(
    tmp_path: Path, context: str = "block", family: str = "llama", lora: bool = False, gen: dict | None = None,
    dtype=torch.float64, reward=length, **options: Any,
) -> GRPORun:  # fmt: skip
    """A GRPORun on a tiny model: rounds of 12 rollouts, 4 a group, of at most 12 tokens."""
    torch.manual_seed(0)
    model = tiny_model(family, VOCABULARY, dtype, initializer_range=0.15)
    model.config.backtrack = {"token": "x", "token_id": BT, "context": context}
    apply_context(model, context, BT)
    # It erases more often than by chance.
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: out + 2.0 * (torch.arange(VOCABULARY) == BT))
    if lora:
        model = add_adapter(model, ModelArguments(name_or_path="x", finetuning="lora", lora_r=2), BT)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:  # as after some training: B is 0 at first, the BACKTRACK rows as they were
                    parameter += torch.randn(parameter.shape, dtype=dtype) * 0.2
    tokenizer = tiny_tokenizer([chr(97 + i) for i in range(19)] + ["<|bt|>"])
    args = GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, save_strategy="no",
        logging_steps=1, seed=5,
        **{"activation_checkpointing": False, "per_device_train_batch_size": 12, "num_generations": 4,
           "max_completion_length": 12, "max_steps": 2, "learning_rate": 0.01} | options,
    )  # fmt: skip
    settings = rollout_settings(GenArguments(**gen or {}), frozenset(gen or {}), args, BT, context, None)
    return GRPORun(
        model=model, args=args, settings=settings, problems=PROBLEMS, processing_class=tokenizer, reward_funcs=reward
    )


def score(run: GRPORun, model, traces, **options):
    """Log-probabilities and entropies (B, longest completion) as the trainer takes them, and which are tokens."""
    prompt, reply = max(len(t.prompt_ids) for t in traces), max(len(t.completion_ids) for t in traces)
    ids = [[0] * (prompt - len(t.prompt_ids)) + t.prompt_ids + t.completion_ids for t in traces]
    ids = torch.tensor([row + [0] * (prompt + reply - len(row)) for row in ids])
    mask = torch.tensor(
        [
            [0] * (prompt - len(t.prompt_ids))
            + [1] * (len(t.prompt_ids) + len(t.completion_ids))
            + [0] * (reply - len(t.completion_ids))
            for t in traces
        ]
    )
    logps, entropies, _ = run._get_per_token_logps_and_entropies(model, ids, mask, reply, compute_entropy=True)
    return logps, entropies, mask[:, prompt:].bool()


def rollouts(run: GRPORun, rounds: int) -> list[Trace]:
    """Completions of every problem, many times."""
    names = [f"{i} {problem.key}" for i in range(rounds) for problem in PROBLEMS]
    return decode_group(run, run.settings, PROBLEMS * rounds, names)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_law3_log_probabilities_are_the_engines_own(tmp_path, monkeypatch, family, context, lora):
    run = trainer(tmp_path, context, family, lora, gen={"ban_erased": False}, beta=0.1)
    # The engine tells log-probabilities of the whole softmax, whatever it offered.
    monkeypatch.setattr("llmhalluc.train.rollout.unoffered", lambda ids, *_: [[]] * len(ids))
    traces = rollouts(run, 8)
    assert sum(BT in trace.completion_ids for trace in traces) > 8
    assert any(trace.completion_ids[-1] == BT for trace in traces)  # cut within a run of BACKTRACKs
    assert len({len(trace.completion_ids) for trace in traces}) > 3
    run.model.train()
    with torch.no_grad():
        logps, _, real = score(run, run.model, traces)
        if lora:
            with use_adapter(run.model, "ref"):
                reference, *_ = score(run, run.model, traces)
        else:
            reference, *_ = score(run, run.ref_model, traces)
    for i, trace in enumerate(traces):
        expected = torch.tensor(trace.logprobs, dtype=torch.float64)
        torch.testing.assert_close(logps[i][real[i]], expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(reference[i][real[i]], expected, rtol=0, atol=1e-9)
        assert not logps[i][~real[i]].any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("gen", [{}, {"max_erasures": 2}, {"backtrack": False}, {"ban_erased": False}], ids=str)
@pytest.mark.parametrize("context", CONTEXTS)
def test_rollouts_are_scored_with_the_distribution_that_they_were_sampled_from(tmp_path, context, gen, temperature):
    run, sampled = trainer(tmp_path, context, gen=gen, temperature=temperature), defaultdict(list)

    def record(logits_BV, sequences, spec):
        tokens = sampling.sample(logits_BV, sequences, spec)
        logits_BV = logits_BV.clone()
        if spec.erase_id is None:
            logits_BV[:, BT] = -torch.inf
        for i, sequence in enumerate(sequences):
            for token, value in sequence.tape.penalties_here(VOCABULARY - (spec.erase_id is None)).items():
                logits_BV[i, token] += value
        logprobs_BV = (logits_BV / temperature).log_softmax(-1)
        for sequence, token, logprobs in zip(sequences, tokens, logprobs_BV, strict=True):
            entropy = -(logprobs.exp() * logprobs)[logprobs > -torch.inf].sum()
            sampled[sequence.key].append((logprobs[token].item(), entropy.item()))
        return tokens

    run.settings = run.settings._replace(sampler=record)
    traces = rollouts(run, 8)
    keys = [f"{i} {problem.key}" for i in range(8) for problem in PROBLEMS]
    assert any(BT in trace.completion_ids for trace in traces) == gen.get("backtrack", True)
    logps, entropies, real = score(run, run.model, traces)
    for i in range(len(traces)):
        expected = torch.tensor(sampled[keys[i]], dtype=torch.float64)
        torch.testing.assert_close(logps[i][real[i]], expected[:, 0], rtol=0, atol=1e-9)
        torch.testing.assert_close(entropies[i][real[i]], expected[:, 1], rtol=0, atol=1e-9)
    assert torch.isfinite(torch.autograd.grad((logps - entropies).sum(), run.model.lm_head.weight)[0]).all()


@pytest.mark.parametrize("loss_type", trl_losses())
def test_every_loss_of_trl_takes_a_step(tmp_path, loss_type):
    run = trainer(tmp_path, loss_type=loss_type, beta=0.05, max_steps=1)
    before = {name: value.clone() for name, value in run.ref_model.state_dict().items()}
    run.train()
    entry = next(entry for entry in run.state.log_history if "loss" in entry)
    assert entry["kl"] == pytest.approx(0, abs=1e-12) and entry["entropy"] > 0 and entry["reward/length"] == 1.0
    assert entry["grad_norm"] > 0 and entry["reward"] > 0 and entry["erasures/mean"] > 0
    moved = {name: value for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all(torch.equal(value, before[name]) for name, value in run.ref_model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in run.ref_model.parameters())


def test_rounds_that_several_steps_take_up_are_on_the_old_policys_terms(tmp_path, monkeypatch):
    ratios = []
    loss = GRPORun._compute_loss

    def spy(self, model, inputs):
        ratios.append(inputs["old_per_token_logps"][inputs["completion_mask"].bool()].clone())
        return loss(self, model, inputs)

    monkeypatch.setattr(GRPORun, "_compute_loss", spy)
    run = trainer(tmp_path, num_iterations=2, max_steps=4)
    run.train()
    assert grpo_round(run) == 2 and len(ratios) == 4
    assert run.seen["examples"] == 2 * 12


def test_lora_trains_its_adapter_and_rollouts_follow_it(tmp_path):
    run = trainer(tmp_path, lora=True, beta=0.1, learning_rate=0.1)
    frozen = {name for name, parameter in run.model.named_parameters() if not parameter.requires_grad}
    assert all(".ref" in name or "lora" not in name for name in frozen)
    assert not any(".ref" in name for name, parameter in run.model.named_parameters() if parameter.requires_grad)
    before, first = {n: p.clone() for n, p in run.model.named_parameters()}, rollouts(run, 1)
    run.train()
    moved = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert {"lora_B", "trainable_tokens_delta"} <= {part for name in moved for part in name.split(".")}
    assert not moved & frozen
    assert [trace.logprobs for trace in rollouts(run, 1)] != [trace.logprobs for trace in first]
    run.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved/ref").exists() and (tmp_path / "saved/adapter_model.safetensors").exists()


def test_a_rollout_depends_on_seed_round_problem_and_number_alone(tmp_path):
    run = trainer(tmp_path)
    run.model.train()
    prompts = [prompt for prompt in run.problems for _ in range(4)]
    whole = rollout(run, run.settings, prompts)["completion_ids"]
    assert len({tuple(ids) for ids in whole[:4]}) > 1
    assert rollout(run, run.settings._replace(batch_size=5), prompts[4:12])["completion_ids"] == whole[4:12]
    run.accelerator.state._shared_state["process_index"] = 1  # the second of two processes: the second half
    try:
        assert rollout(run, run.settings, prompts[2:4])["completion_ids"] == whole[2:4]
    finally:
        run.accelerator.state._shared_state["process_index"] = 0
    run._step = 1
    assert rollout(run, run.settings, prompts)["completion_ids"] != whole
    assert run.model.training


def test_truncated_rollouts_can_be_left_out_of_the_loss(tmp_path):
    run = trainer(tmp_path, mask_truncated_completions=True, max_completion_length=5, max_steps=2)
    run.train()
    assert all(entry["completions/clipped_ratio"] > 0 for entry in run.state.log_history if "loss" in entry)


def test_gradient_checkpointing_goes_on_after_the_rollouts(tmp_path):
    run = trainer(tmp_path, activation_checkpointing=True, max_steps=2)
    run.train()
    assert run.model.is_activation_checkpointing and run.state.global_step == 2
