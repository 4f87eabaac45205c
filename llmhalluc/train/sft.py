"""The SFT stage: traces, batches and TRL's own options put together; TRL's SFTTrainer with our draws and our loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from trl import SFTConfig, SFTTrainer

from llmhalluc.backtrack import IGNORE
from llmhalluc.data.collator import DrawSampler, TraceCollator
from llmhalluc.extras.errors import UserError
from llmhalluc.train.base import BaseExecutor
from llmhalluc.train.trainer import ResumableTrainer
from llmhalluc.train.trl_patches import stand_in

# Keys of TRL's that leave ready traces as they are: whoever sets one expects something that would not happen.
KEYS_WITHOUT_EFFECT = {
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
        args = self.arguments(SFTConfig, KEYS_WITHOUT_EFFECT, dataset_kwargs={"skip_prepare_dataset": True})
        pad_id = self.tokenizer.pad_token_id
        self.trainer = self.make_run(
            model=self.model,
            args=args,
            processing_class=self.tokenizer,
            traces=self.dataset,
            eval_traces=self.eval_dataset,
            sampler=DrawSampler(len(self.dataset), self.data_seed, self.draws(args)),
            collator=TraceCollator(self.tokenizer.eos_token_id if pad_id is None else pad_id, packing, row_length),
            stop_on_sigterm=self.stop_on_sigterm,
        )

    def make_run(self, **options: Any) -> "SFTRun":
        """Return the trainer of these options."""
        return SFTRun(**options)


class SFTRun(ResumableTrainer, SFTTrainer):
    """SFTTrainer whose examples are the sampler's draws and whose loss goes through the model's own forward.

    TRL multiplies `lm_head.weight` itself, which passes by PEFT's change of the BACKTRACK row and, on a CPU, scores
    every position; here the model runs its head, on the labelled positions alone.
    """

    def __init__(self, *, traces, eval_traces, collator, **kwargs):
        super().__init__(
            train_dataset=stand_in("input_ids", "labels"),
            eval_dataset=None if eval_traces is None else RecordDataset(eval_traces),
            data_collator=RecordCollator(collator),
            **kwargs,
        )
        self.train_dataset = RecordDataset(traces)
        # Of this process, since the last log: loss, right predictions, labels, trace tokens, examples.
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        self.sums = {mode: torch.zeros(5, dtype=dtype, device=self.args.device) for mode in ("train", "eval")}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Sum of the cross-entropies at labelled positions over the labels of the whole accumulated batch.

        `inputs`: (B, T) input_ids, labels, position_ids, visible_until, and records (examples, 2): number, tokens.
        Raises UserError when the loss of a training batch is not finite.
        """
        records, labels_BT = inputs.pop("records"), inputs.pop("labels")
        targets_BT = functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORE)
        scored_BT = targets_BT != IGNORE
        targets = targets_BT[scored_BT]
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        outputs = model(**inputs, logits_to_keep=scored_BT, use_cache=False)
        logits = outputs.logits.to(torch.promote_types(outputs.logits.dtype, torch.float32))  # (labels, vocabulary)
        losses = self.token_losses(logits, targets)
        n_labels = len(targets) if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / torch.as_tensor(n_labels).clamp(min=1)
        if self.aux_loss_enabled:
            parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / parts
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the labels are those of all processes, DDP takes the mean
        drawn = records[:, 0].tolist()
        remedy = f", on the records {drawn} of data.dataset: look at these, or lower train.learning_rate"
        self.check_finite(loss, remedy)
        with torch.no_grad():
            right = (logits.argmax(-1) == targets).sum()
            seen = (losses.sum(), right, torch.tensor(len(targets)), records[:, 1].sum(), torch.tensor(len(records)))
            sums = self.sums["train" if self.model.training else "eval"]
            sums += torch.stack([x.to(sums) for x in seen])
        return (loss, outputs) if return_outputs else loss

    def token_losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Losses (labels) from logits (labels, vocabulary)."""
        smoothing = self.args.label_smoothing_factor
        losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        return losses * (-losses).exp().detach() if self.args.loss_type == "dft" else losses

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy and tokens; `eval_loss` becomes the mean over labels, however rows were batched."""
        if "loss" in logs:
            _, right, labels, tokens, examples = self._drain("train")
            self.seen["tokens"] += int(tokens)
            self.seen["examples"] += int(examples)
            logs |= {"mean_token_accuracy": right / max(labels, 1), "num_tokens": self.seen["tokens"]}
        elif "eval_loss" in logs:
            loss, right, labels, *_ = self._drain("eval")
            logs |= {"eval_loss": loss / max(labels, 1), "eval_mean_token_accuracy": right / max(labels, 1)}
        super().log(logs, start_time)

    def _drain(self, mode: str) -> list[float]:
        """The sums over all processes; they start anew."""
        total = self.accelerator.reduce(self.sums[mode], reduction="sum").tolist()
        self.sums[mode].zero_()
        return total

    def progress(self) -> dict[str, Any]:
        return super().progress() | {"sums": self.sums["train"].tolist()}

    def restore(self, progress: dict[str, Any]) -> None:
        super().restore(progress)
        self.sums["train"] += torch.tensor(progress["sums"], dtype=torch.float64).to(self.sums["train"])


class RecordDataset(torch.utils.data.Dataset):
    """Traces that also say which record they were drawn from; no label for a first token, which nothing precedes."""

    def __init__(self, traces):
        self.traces = traces

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, key) -> dict[str, Any]:
        trace = self.traces[key] | {"record": getattr(key, "index", key)}
        trace["labels"] = [IGNORE, *trace["labels"][1:]]  # in a packed row another trace would precede it
        return trace


class RecordCollator:
    """The batches of `collator`, with `records` (examples, 2): the number and the trace tokens of each example."""

    def __init__(self, collator: Callable[[list[dict]], dict[str, torch.Tensor]]):
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        records = torch.tensor([(row["record"], len(row["input_ids"])) for row in rows])
        return self.collator(rows) | {"records": records}
