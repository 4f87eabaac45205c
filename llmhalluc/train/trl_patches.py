"""What we use of TRL and of transformers' Trainer that is none of their public interface: a name a patch, its reason.

tests/train/test_trl_patches.py has a canary for each: it fails, with the reason given here, when the library moves.
"""

import contextlib
import copy
import functools
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedModel, Trainer
from trl.trainer.utils import FusedCausalLMOutput, RepeatSampler

REFERENCE = "ref"  # TRL's name of the adapter that keeps what the trained one was at the start


class PatchedTrainer(Trainer):
    """A base before a library's trainer, whose methods here replace that trainer's own."""

    sampler: Any = None  # what the training draws, in this order; None: what the trainer draws by itself

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Draw as `sampler` says: a trainer makes a sampler of its own, and none can be given to it."""
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Call `before_checkpoint` first: callbacks come when this one looks whole and older ones are deleted."""
        self.before_checkpoint(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"))
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Call `after_weights` where weights are written: `save_model` has pushed to the hub before it returns."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self.after_weights(Path(output_dir or self.args.output_dir))

    def _send_telemetry(self) -> None:
        """Send nothing: TRL's would call a network, which a run on local files does not."""

    def before_checkpoint(self, folder: Path) -> None:
        """Write what has to be in a checkpoint's folder before it looks whole; in every process."""

    def after_weights(self, folder: Path) -> None:
        """Write what belongs beside weights; in one process."""


class ReadyPairs(Trainer):
    """A base before DPOTrainer, for pairs that are token ids already."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        """Return the pairs as they are: TRL would make text of them and tokenise it again, whatever they hold."""
        return dataset


class GroupSampler(RepeatSampler):
    """TRL's order of prompts as a permutation of (seed, epoch): TRL's depends on how many epochs were drawn before."""

    def set_epoch(self, epoch: int) -> None:
        """Draw the permutation of this epoch next, so that a resumed epoch continues as it began."""
        if self.shuffle:
            self.generator.manual_seed(self.seed + epoch)


def stand_in(*columns: str) -> datasets.Dataset:
    """A data set of one row, to construct a trainer with: TRL's take a datasets.Dataset and look at its first row."""
    return datasets.Dataset.from_dict({column: [[0]] for column in columns})


def unlogged_loss(trainer: Trainer) -> dict[str, Any]:
    """The sum of the losses since the last log, and its step: the Trainer forgets both when it resumes."""
    return {"loss": trainer._tr_loss.item(), "last_log": trainer._globalstep_last_logged}


def restore_unlogged_loss(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Continue the sum that `unlogged_loss` returned; at the beginning of a training."""
    trainer._tr_loss += saved["loss"]
    trainer._globalstep_last_logged = saved["last_log"]


def unlogged_metrics(trainer: Trainer) -> dict[str, list[float]]:
    """What TRL averages in its next log, which no checkpoint holds; the dict itself, to be read and updated."""
    return trainer._metrics["train"]


def load_weights(trainer: Trainer, folder: str | Path) -> None:
    """Load a checkpoint's weights alone: resuming a checkpoint of the last step takes one step too many."""
    trainer._load_from_checkpoint(str(folder))


def answer_fused_head(model: PreTrainedModel, score: Callable[..., dict[str, torch.Tensor]]) -> None:
    """Have `model(labels=…, fused_lm_head=True, **inputs)` return `score(forward, labels, **inputs)` as TRL reads it.

    TRL's fused LM head, which this replaces, multiplies `lm_head.weight` itself: it passes by a BACKTRACK row that PEFT
    trains, scores every position on a CPU, and counts padding on the left as positions. `forward` is the model's own.
    Call it on the base model of PEFT, after TRL has put its own head on.
    """
    plain = type(model).forward

    def forward(self, *args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **inputs: Any):
        if fused_lm_head:
            return FusedCausalLMOutput(**score(functools.partial(plain, self), labels, **inputs))
        return plain(self, *args, **inputs if labels is None else inputs | {"labels": labels})

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]


def copy_to_reference(model: PeftModel) -> None:
    """Make the adapter "ref" equal to the trained one: TRL copies what has `.default.` within its name.

    The rows of single tokens, BACKTRACK's among them, end in `.default`, and are passed by.
    """
    for name, value in model.named_parameters():
        if "default" in (parts := name.split(".")):
            copied = model.get_parameter(".".join(REFERENCE if part == "default" else part for part in parts))
            copied.data = value.data.clone()


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The reference of DPO and GRPO: the model as it is now, its context hook included.

    TRL would load it by the model's name: without the BACKTRACK that was just added, and never a fresh model.
    """
    return copy.deepcopy(model).requires_grad_(False).eval()


@contextlib.contextmanager
def grpo_reference(model: PreTrainedModel) -> Iterator[None]:
    """Within it a GRPOTrainer's reference is `frozen_copy(model)`, and it does not warn of `rollout_func`.

    DPOTrainer takes a `ref_model`; GRPOTrainer takes none.
    """
    from trl.trainer import grpo_trainer

    load = grpo_trainer.create_model_from_path
    grpo_trainer.create_model_from_path = lambda *_, **__: frozen_copy(model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")
            yield
    finally:
        grpo_trainer.create_model_from_path = load


def rollout_state(trainer: Any) -> dict[str, Any]:
    """The count of steps and the batches that later steps take up: GRPO's checkpoints hold neither."""
    alive = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations)
    return {"step": trainer._step, "batches": trainer._buffered_inputs if alive else None}


def restore_rollout_state(trainer: Any, saved: dict[str, Any]) -> None:
    """Continue from what `rollout_state` returned."""
    trainer._step = saved["step"]
    if saved["batches"] is not None:
        trainer._buffered_inputs = saved["batches"]


def grpo_round(trainer: Any) -> int:
    """How often the policy has written a batch of rollouts: GRPO counts steps, and that in private."""
    return trainer._step // (trainer.args.steps_per_generation * trainer.num_iterations)


def whole_weights(trainer: Any) -> contextlib.AbstractContextManager:
    """Within it every process has all weights, as `generate` has them in TRL; sharded ones do not decode."""
    return trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False)


def vllm_completions(trainer: Any, prompts: list[list[int]], size: int) -> tuple[list[list[int]], Any]:
    """Completions and log-probabilities by TRL's vLLM, `size` a group: a `rollout_func` has no other way to it."""
    return trainer._generate_single_turn(prompts, None, {}, size)


def log_metric(trainer: Any, name: str, value: float) -> None:
    """Log the mean of `value` over processes and rollouts: TRL gives this function to rewards, not to rollouts."""
    trainer._log_metric(name, value)
