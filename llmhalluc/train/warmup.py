"""The first steps of a run, in which the BACKTRACK rows alone train."""

from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerState

from llmhalluc.extras.errors import UserError


def backtrack_rows(model: PreTrainedModel, backtrack_id: int) -> dict[torch.nn.Parameter, int | None]:
    """The parameters with a BACKTRACK row (input embedding, output head where untied), and which; None: all of it.

    Of an adapter these are the rows that PEFT trains beside it (models/peft.py).
    """
    if hasattr(model, "peft_config"):
        from peft.tuners.trainable_tokens import TrainableTokensLayer

        layers = [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]
        return {p: None for layer in layers for p in layer.trainable_tokens_delta.values() if p.requires_grad}
    return {matrix().weight: backtrack_id for matrix in (model.get_input_embeddings, model.get_output_embeddings)}


def warm_up(run: Any, backtrack_id: int, steps: int) -> "RowWarmup":
    """Return the warm-up of a trainer, one of its callbacks now. Raises UserError where gradients are sharded."""
    if run.is_deepspeed_enabled or run.is_fsdp_enabled:
        raise UserError(
            f"train.warmup_embeddings is {steps}, but this launcher shards gradients (DeepSpeed or FSDP): set 0, or "
            "launch with torchrun"
        )
    warmup = RowWarmup(run.model, backtrack_id, steps)
    run.add_callback(warmup)
    return warmup


class RowWarmup(TrainerCallback):
    """Freezes all but the BACKTRACK rows in the first `steps`; the count of steps is all that it remembers.

    What comes then is a fresh start of the optimizer: its moments would hold those of frozen weights, zeros.
    """

    def __init__(self, model: PreTrainedModel, backtrack_id: int, steps: int):
        self.parameters, self.steps = list(model.parameters()), steps
        self.rows = backtrack_rows(model, backtrack_id)
        self.decays: list[float] = []

    def lasts(self, state: TrainerState) -> bool:
        """Whether the step that is being computed belongs to the warm-up."""
        return state.global_step < self.steps

    def drop_gradients(self) -> None:
        """Leave gradients on the BACKTRACK rows alone; call it after each backward pass."""
        for parameter in self.parameters:
            row = self.rows.get(parameter)
            if parameter not in self.rows:
                parameter.grad = None  # the optimizer passes it by
            elif row is not None and parameter.grad is not None:
                kept = parameter.grad[row].clone()
                parameter.grad.zero_()
                parameter.grad[row] = kept

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            optimizer.state.clear()

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Without weight decay, which would change the other rows of the matrices; a checkpoint holds the true one."""
        if self.lasts(state):
            self.decays = [group.get("weight_decay", 0.0) for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0

    def on_optimizer_step(
        self, args: Any, state: TrainerState, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if self.lasts(state):
            for group, decay in zip(optimizer.param_groups, self.decays, strict=True):
                group["weight_decay"] = decay
