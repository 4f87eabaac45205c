"""Rollouts of GRPO by our decoding: many copies of a prompt at once, each with random numbers of its own."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any, NamedTuple

import torch
from trl import GRPOConfig
from trl.models import unwrap_model_for_generation

from llmhalluc.backtrack import IGNORE, unoffered
from llmhalluc.data.problems import Problem
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Spec, Trace
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.models.peft import rows_in_place
from llmhalluc.train import trl_patches

# Keys of `gen` that would take the rollouts away from the distribution that is scored. Those that `train` has too
# (temperature, …) are for evaluation alone.
REFUSED = {
    "operator": "what an operator erases was not the policy's choice",
    "search": "the policy writes one text",
    "stop": "a rollout ends with the end-of-text token",
    "backtrack_bias": "the log-probabilities would be of another policy",
    "compile": "the weights change after every round",
}


class RolloutSettings(NamedTuple):
    """How rollouts are decoded, on which the score of their tokens depends."""

    options: GenArguments
    backtrack_id: int
    context: str
    batch_size: int | None  # sequences that decode at once; None: all of a process's
    sampler: Any = None  # as `Spec.sampler`

    def spec(self, eos_ids: Sequence[int]) -> Spec:
        """Return what the engine needs to know."""
        return Spec(self.options, eos_ids, self.backtrack_id, self.context, sampler=self.sampler)

    @property
    def max_erasures(self) -> int:
        """The erasures that a rollout may make."""
        if not self.options.backtrack:
            return 0
        return self.spec(()).budget(self.options.max_new_tokens)

    def unoffered(self, n_vocabulary: int) -> Callable[[torch.Tensor, torch.Tensor], list[tuple[int, int, int]]]:
        """For `score_through_model`: (row, position, id) of what was not offered to labelled tokens (B, T)."""

        def barred(input_ids: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int, int]]:
            found = []
            scored_BT = labels != IGNORE
            firsts, counts = scored_BT.int().argmax(1).tolist(), scored_BT.sum(1).tolist()
            for row, (ids, first, count) in enumerate(zip(input_ids.tolist(), firsts, counts, strict=True)):
                rest = (self.backtrack_id, self.options.ban_erased, self.max_erasures, n_vocabulary)
                for place, gone in enumerate(unoffered(ids[first : first + count], *rest), first):
                    found += [(row, place, token) for token in gone]
            return found

        return barred


def rollout_settings(
    gen: GenArguments, given: frozenset[str], args: GRPOConfig, backtrack_id: int, context: str, batch_size: int | None
) -> RolloutSettings:
    """Sampling of TRL's keys, erasing of the `gen` section, of which `given` are the keys that a user gave.

    Raises UserError for keys of `gen` that rollouts cannot follow.
    """
    defaults, problems = GenArguments(), []
    for key, reason in REFUSED.items():
        if getattr(gen, key) != getattr(defaults, key):
            problems.append(f"gen.{key} is {getattr(gen, key)}, which rollouts cannot follow ({reason}): take it out")
    if "context" in given and gen.context not in (None, context):
        problems.append(f"gen.context is {gen.context}, but backtrack.context is {context}: make them the same")
    if problems:
        raise UserError(*problems)
    options = GenArguments(
        max_new_tokens=args.max_completion_length, temperature=args.temperature, top_k=args.top_k or None,
        top_p=args.top_p, min_p=args.min_p, repetition_penalty=args.repetition_penalty, backtrack=gen.backtrack,
        ban_erased=gen.ban_erased, max_erasures=gen.max_erasures, seed=args.seed,
    )  # fmt: skip
    return RolloutSettings(options, backtrack_id, context, batch_size)


def decode_group(
    trainer: Any, settings: RolloutSettings, problems: Sequence[Problem], keys: Sequence[str]
) -> list[Trace]:
    """One completion for each problem, by the trainer's model as it is now, in evaluation mode and unwrapped."""
    args = trainer.args
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped, trainer.accelerator, gather_deepspeed3_params=args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        trl_patches.whole_weights(trainer),
        trainer.accelerator.autocast(),
    ):  # fmt: skip
        training = model.training
        model.eval()
        try:
            prompts = [problem.prompt_ids for problem in problems]  # equal ones are computed once
            spec = settings.spec(trainer.eos_token_ids)
            sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled  # no process has all weights to itself
            with nullcontext() if sharded else rows_in_place(model):
                return decode(model, prompts, spec, keys=list(keys), batch_size=settings.batch_size or len(problems))
        finally:
            model.train(training)


def rollout(trainer: Any, settings: RolloutSettings, prompts: Sequence[str]) -> dict[str, Any]:
    """TRL's rollout function: ids of the prompts and of one completion for each.

    `trainer.problems` finds a problem by its prompt. Equal prompts stand side by side, in groups that may continue in
    the next process; a rollout's stream is named by round, problem and number in the group, whatever the process.
    """
    training = trainer.model.training
    problems = [trainer.problems[prompt] for prompt in prompts]
    size = trainer.num_generations if training else trainer.num_generations_eval
    began = time.monotonic()
    if trainer.use_vllm:
        ids = [problem.prompt_ids for problem in problems]
        completions, logprobs = trl_patches.vllm_completions(trainer, ids, size)
    else:
        first = trainer.accelerator.process_index * len(prompts)
        when = f"round {trl_patches.grpo_round(trainer)}" if training else f"evaluation {trainer.state.global_step}"
        keys = [f"{when} {problem.key} {(first + i) % size}" for i, problem in enumerate(problems)]
        traces = decode_group(trainer, settings, problems, keys)
        completions, logprobs = [trace.completion_ids for trace in traces], None  # TRL asks for vLLM's alone
        trl_patches.log_metric(trainer, "erasures/mean", fmean(trace.erasures for trace in traces))
        trl_patches.log_metric(trainer, "erasures/share_of_rollouts", fmean(trace.erasures > 0 for trace in traces))
        trl_patches.log_metric(
            trainer, "completions/mean_surviving_length", fmean(len(trace.surviving_ids) for trace in traces)
        )
    if training:
        trainer.seen["rollout_seconds"] += time.monotonic() - began
        trainer.seen["examples"] += len(prompts) * trainer.accelerator.num_processes
    return {
        "prompt_ids": [problem.prompt_ids for problem in problems], "completion_ids": completions, "logprobs": logprobs
    }  # fmt: skip
