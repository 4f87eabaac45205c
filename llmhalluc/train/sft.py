"""The SFT stage: traces, batches and TRL's own options put together; train/trainer.py does the training."""

import dataclasses
import math

import torch
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig

from llmhalluc.data.collator import DrawSampler, TraceCollator
from llmhalluc.extras.errors import UserError
from llmhalluc.train.base import BaseExecutor
from llmhalluc.train.trainer import TraceTrainer

# Keys of TRL's that leave ready traces as they are: whoever sets one expects something that would not happen.
USELESS = {
    "model_init_kwargs": "the model section loads the model",
    "chat_template_path": "use data.apply_chat_template",
    "eos_token": "the tokenizer has one",
    "pad_token": "the tokenizer has one",
    "dataset_text_field": "use data.prompt_column and data.completion_column",
    "dataset_kwargs": "traces are ready as they are",
    "dataset_num_proc": "use data.num_proc",
    "remove_unused_columns": "traces hold nothing unused",
    "truncation_mode": "a trace is never cut, data.max_length leaves long ones out",
    "shuffle_dataset": "draws are shuffled anew in every epoch",
    "train_sampling_strategy": "draws are shuffled anew in every epoch",
    "packing_strategy": "packed rows hold whole traces",
    "padding_free": "use train.packing",
    "eval_packing": "the evaluation loss is the same either way",
    "completion_only_loss": "backtrack.error_labels says what the loss is on",
    "assistant_only_loss": "backtrack.error_labels says what the loss is on",
    "pad_to_multiple_of": "rows end with the longest trace",
    "auto_find_batch_size": "it would change the batch in the middle of a run",
}


class SFTExecutor(BaseExecutor):
    """Plain, masked-error or redirected SFT, as `backtrack.error_labels` says."""

    def make_trainer(self) -> None:
        """Raises UserError for options that cannot be met."""
        packing, row_length = self.trl.pop("packing", False), self.trl.pop("max_length", None)
        if row_length is not None and not packing:
            raise UserError(
                f"train.max_length is {row_length}, the length of packed rows, but train.packing is false: "
                "to leave out longer records set data.max_length"
            )
        stop_on_sigterm = self.trl.pop("enable_jit_checkpoint", False)  # transformers' own stops in mid-step
        args = self.arguments()
        if args.eval_strategy != "no" and self.eval_dataset is None:
            raise UserError(
                f"train.eval_strategy is {args.eval_strategy.value}, but there is nothing to evaluate on: "
                "set data.eval_dataset or data.eval_split"
            )
        if args.n_gpu > 1:
            raise UserError(
                f"{args.n_gpu} GPUs are visible to one process: start one process a GPU "
                f"(torchrun --nproc_per_node {args.n_gpu} -m llmhalluc.run_train ...), or set CUDA_VISIBLE_DEVICES=0"
            )
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if self.config.train.max_tokens is not None:
            args.max_steps = self.steps_for(self.config.train.max_tokens, batch)
        draws = args.max_steps * batch if args.max_steps > 0 else round(args.num_train_epochs * len(self.dataset))
        pad_id = self.tokenizer.pad_token_id
        self.trainer = TraceTrainer(
            model=self.model,
            args=args,
            processing_class=self.tokenizer,
            traces=self.dataset,
            eval_traces=self.eval_dataset,
            sampler=DrawSampler(len(self.dataset), self.data_seed, draws),
            collator=TraceCollator(self.tokenizer.eos_token_id if pad_id is None else pad_id, packing, row_length),
            stop_on_sigterm=stop_on_sigterm,
        )

    def arguments(self) -> SFTConfig:
        """TRL's config of the `train` section. Raises UserError for what TRL refuses and for what would do nothing."""
        defaults = {field.name: field.default for field in dataclasses.fields(SFTConfig)}
        useless = [key for key in USELESS if key in self.trl and self.trl[key] != defaults[key]]
        if useless:
            raise UserError(*(f"train.{key} has no effect here ({USELESS[key]}): take it out" for key in useless))
        given = {"logging_nan_inf_filter": False} | self.device_defaults() | self.trl
        given |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
        old_name = given.pop("gradient_checkpointing")
        given.setdefault("activation_checkpointing", old_name)
        try:
            return SFTConfig(**given)
        except (TypeError, ValueError) as error:
            named = [f"train.{key} is {value!r}" for key, value in self.trl.items() if key in str(error)]
            raise UserError(": ".join([*named, " ".join(str(error).split())])) from error

    def device_defaults(self) -> dict:
        """What suits the device where nothing else is asked for. Raises UserError for a device that is not ours."""
        device = self.config.model.device
        if device not in (None, "cpu", "cuda", "cuda:0", "mps"):
            raise UserError(
                f"model.device is {device}, but training takes the devices it is given: "
                "set CUDA_VISIBLE_DEVICES, or use torchrun for several"
            )
        if device == "cpu" or not torch.accelerator.is_available():
            return {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
        return {"bf16": is_torch_bf16_gpu_available() and not self.trl.get("fp16"), "gradient_checkpointing": True}

    def steps_for(self, max_tokens: int, batch: int) -> int:
        """Steps that see about `max_tokens` trace tokens; the last batch of an epoch may be smaller."""
        if self.trl.get("max_steps", -1) > 0:
            raise UserError("train.max_tokens and train.max_steps are both set: keep one of them")
        epochs, rest = divmod(max_tokens / self.dataset.mean_length(), len(self.dataset))
        return max(1, round(epochs * math.ceil(len(self.dataset) / batch) + rest / batch))
