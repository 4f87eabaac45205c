"""The GRPO stage: TRL's GRPOTrainer with our rollouts, our score of their tokens and the reward of `reward/bt.py`."""

import importlib.util
import os
import re
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer

from llmhalluc.data.problems import Problem, load_problems
from llmhalluc.extras.errors import UserError
from llmhalluc.reward.bt import BacktrackRewardFunction
from llmhalluc.tasks import TASKS
from llmhalluc.train import trl_patches
from llmhalluc.train.base import BaseExecutor
from llmhalluc.train.rollout import RolloutSettings, rollout, rollout_settings
from llmhalluc.train.scoring import score_through_model
from llmhalluc.train.trainer import ResumableTrainer

# Keys of TRL's without an effect on our runs: whoever sets one expects something that would not happen.
KEYS_WITHOUT_EFFECT = {
    "model_init_kwargs": "the model section loads the model",
    "chat_template_kwargs": "use data.apply_chat_template",
    "generation_kwargs": "rollouts are decoded by our own loop; use train.temperature and the like",
    "cache_implementation": "rollouts are decoded by our own loop",
    "use_transformers_continuous_batching": "rollouts are decoded by our own loop, which refills its batch",
    "use_transformers_paged": "rollouts are decoded by our own loop, which refills its batch",
    "transformers_continuous_batching_config": "rollouts are decoded by our own loop",
    "cast_lm_head_to_fp32": "log-probabilities are taken in float32 already",
    "max_tool_calling_iterations": "rollouts call no tools",
    "log_multimodal": "problems are text",
    "reward_weights": "the reward section weighs its components",
    "include_num_input_tokens_seen": "train.json counts tokens",
    "remove_unused_columns": "the reward reads all columns",
}
# What TRL would look at only when the first rollouts are there.
CHOICES = {
    "loss_type": ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
LOGGED_NAMES = {"num_tokens": "tokens", "eval_num_tokens": "tokens"}
WALL_TIMES = re.compile("step_time|_runtime|_per_second|^epoch$")


class GRPORun(ResumableTrainer, GRPOTrainer):
    """GRPOTrainer whose rollouts are ours, and whose log-probabilities are of the distribution that they came from."""

    def __init__(
        self, *, model: PreTrainedModel | PeftModel, settings: RolloutSettings, problems: list[Problem],
        eval_problems: list[Problem] | None = None, **kwargs: Any,
    ):  # fmt: skip
        train, test = _rows(problems, "train"), _rows(eval_problems or [], "eval")
        self.settings, self.problems = settings, train | test
        with trl_patches.grpo_reference(model):
            super().__init__(
                model=model, train_dataset=_columns(train), eval_dataset=_columns(test) if test else None,
                rollout_func=lambda prompts, trainer: rollout(trainer, settings, prompts), **kwargs,
            )  # fmt: skip
        if isinstance(model, PeftModel) and self.args.beta:
            trl_patches.copy_to_reference(model)
        for scored in filter(None, (self.model, self.ref_model)):
            base = self.accelerator.unwrap_model(scored)
            base = base.get_base_model() if isinstance(base, PeftModel) else base
            n_vocabulary = base.config.get_text_config().vocab_size
            # What vLLM samples from knows no bans.
            score_through_model(base, self.temperature, None if self.use_vllm else settings.unoffered(n_vocabulary))
        self.sampler = trl_patches.GroupSampler(
            self.train_dataset, self.num_generations, self.args.generation_batch_size // self.num_generations,
            self.num_iterations * self.args.steps_per_generation, self.shuffle_dataset, self.args.seed,
        )  # fmt: skip
        self.seen["rollout_seconds"] = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's; raises UserError when it is not finite."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.check_finite(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.seen["tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)

    def progress(self) -> dict[str, Any]:
        """The metrics since the last log too, and the rollouts that later steps take up."""
        rollouts = trl_patches.rollout_state(self)
        if rollouts["batches"] is not None:
            rollouts["batches"] = [{k: _plain(v) for k, v in batch.items()} for batch in rollouts["batches"]]
        return super().progress() | rollouts | {"metrics": trl_patches.unlogged_metrics(self)}

    def restore(self, progress: dict[str, Any]) -> None:
        super().restore(progress)
        trl_patches.unlogged_metrics(self).update(progress["metrics"])
        batches, device = progress["batches"], self.args.device
        if batches is not None:
            batches = [{k: _tensor(v, device) for k, v in batch.items()} for batch in batches]
        trl_patches.restore_rollout_state(self, {"step": progress["step"], "batches": batches})


class GRPOExecutor(BaseExecutor):
    """Group-relative policy optimisation (arXiv:2402.03300) and what else `train.loss_type` names."""

    sections = (*BaseExecutor.sections, "reward", "gen")
    drawn = ("reward", "mean reward of a rollout")
    dataset: Any  # list[Problem], and so is the other, or None
    eval_dataset: Any

    def load_data(self) -> None:
        """Raises UserError for what `load_problems` refuses, and for problems that also evaluate (law 8)."""
        data = self.config.data
        self.dataset = load_problems(data, self.tokenizer)
        held_out = data.eval_dataset is not None or data.eval_split is not None
        self.eval_dataset = load_problems(data, self.tokenizer, held_out=True) if held_out else None
        prompts = {tuple(problem.prompt_ids) for problem in self.dataset}
        if shared := sum(tuple(problem.prompt_ids) in prompts for problem in self.eval_dataset or ()):
            raise UserError(
                f"{shared} prompts of data.dataset {data.dataset} are also in the evaluation data: take them out of one"
            )
        if any(self.backtrack_id in problem.prompt_ids for problem in self.dataset + (self.eval_dataset or [])):
            raise UserError(f"data.dataset {data.dataset} has a prompt that holds the BACKTRACK token: remove it")

    def make_trainer(self) -> None:
        """Raises UserError for options that cannot be met."""
        config = self.config
        if config.train.max_tokens is not None:
            raise UserError("train.max_tokens is set, but rollouts have no length in advance: set train.max_steps")
        if config.train.resume and self.trl.get("sync_ref_model"):
            raise UserError("train.sync_ref_model moves a reference that no checkpoint holds: set train.resume=false")
        for key, choices in CHOICES.items():
            if key in self.trl and self.trl[key] not in choices:
                names = ", ".join(choice for choice in choices if isinstance(choice, str))
                raise UserError(f"train.{key} is {self.trl[key]}, expected one of {names}")
        self._check_vllm()
        self._check_groups()
        args = self.arguments(GRPOConfig, KEYS_WITHOUT_EFFECT)
        settings = rollout_settings(
            config.gen, config.gen_given, args, self.backtrack_id, config.backtrack.context,
            config.train.rollout_batch_size,
        )  # fmt: skip
        self.trainer = GRPORun(
            model=self.model, args=args, settings=settings, problems=self.dataset, eval_problems=self.eval_dataset,
            processing_class=self.tokenizer, reward_funcs=self.reward(args.max_completion_length),
            stop_on_sigterm=self.stop_on_sigterm,
        )  # fmt: skip

    def reward(self, max_tokens: int | None) -> Any:
        """What scores the rollouts, of at most so many tokens."""
        return BacktrackRewardFunction(self.config.reward, self.tokenizer, self.backtrack_id, max_tokens)

    def record(self) -> dict[str, Any]:
        """Every number that TRL logged beside the losses, the wall times left out."""
        record, history = super().record(), self.trainer.state.log_history
        for name, prefix in (("loss", ""), ("eval_loss", "eval_")):
            record[name] = [_named(entry, prefix) for entry in history if name in entry]
        return record

    def _check_vllm(self) -> None:
        if not self.trl.get("use_vllm"):
            return
        if importlib.util.find_spec("vllm") is None:
            raise UserError("train.use_vllm is true, but vllm is not installed: pip install vllm, or set false")
        if self.config.backtrack.context != "soft":
            raise UserError(
                f"train.use_vllm is true, but vllm hides no rows and backtrack.context is "
                f"{self.config.backtrack.context}: set backtrack.context=soft, or use_vllm=false"
            )

    def _check_groups(self) -> None:
        """Say in our keys what TRL says in its own: a round of rollouts holds whole groups, and problems for them."""
        defaults = GRPOConfig.__dataclass_fields__
        size, batch, steps, every = (
            self.trl.get(key, defaults[key].default)
            for key in ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps",
                        "steps_per_generation")
        )  # fmt: skip
        processes = int(os.environ.get("WORLD_SIZE", 1))
        count = self.trl.get("generation_batch_size") or batch * processes * (every or steps)
        if count % size:
            raise UserError(
                f"train.num_generations is {size}, but a round has {count} rollouts "
                f"(train.per_device_train_batch_size {batch} × {processes} process(es) × steps a round): "
                "make it a multiple of train.num_generations"
            )
        if len(self.dataset) < count // size:
            raise UserError(
                f"data.dataset {self.config.data.dataset} has {len(self.dataset)} problem(s), but a round needs "
                f"{count // size}: lower train.per_device_train_batch_size, or raise train.num_generations"
            )


def _named(entry: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What was logged, without wall times and the prefix of an evaluation."""
    return {
        LOGGED_NAMES.get(key, key.removeprefix(prefix)): value
        for key, value in entry.items()
        if not WALL_TIMES.search(key)
    }


def _rows(problems: list[Problem], part: str) -> dict[str, Problem]:
    """The problems by a prompt that no other has; the trainer reads it, the model reads `prompt_ids`."""
    return {f"{part} {one.key}: {TASKS[one.task].prompt(one.record)}": one for one in problems}


def _columns(rows: dict[str, Problem]) -> datasets.Dataset:
    """A column `prompt`, and each field of a Problem as the reward gets it."""
    return datasets.Dataset.from_list([{"prompt": prompt, **problem._asdict()} for prompt, problem in rows.items()])


def _plain(value: Any) -> Any:
    """A tensor as JSON can hold it: dtype and numbers, exactly."""
    return [str(value.dtype).removeprefix("torch."), value.tolist()] if isinstance(value, torch.Tensor) else value


def _tensor(value: Any, device: torch.device) -> Any:
    """The inverse of `_plain`."""
    return torch.tensor(value[1], dtype=getattr(torch, value[0]), device=device) if isinstance(value, list) else value
