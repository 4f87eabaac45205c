"""TRL's SFTTrainer on traces: our draws, our loss, exact counts, and a resume that changes nothing."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.nn import functional
from transformers import TrainerCallback, TrainerState
from trl import SFTTrainer

from llmhalluc.backtrack import IGNORE
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import write_json
from llmhalluc.models.helper import ship_generate
from llmhalluc.train.checkpoint import STATE, progress_file


class TraceTrainer(SFTTrainer):
    """SFTTrainer whose examples are the sampler's draws and whose loss goes through the model's own forward.

    TRL multiplies `lm_head.weight` itself, which passes by PEFT's change of the BACKTRACK row and, on a CPU, scores
    every position; here the model runs its head, on the labelled positions alone.
    """

    def __init__(self, *, traces, eval_traces, sampler, collator, stop_on_sigterm: bool = False, **kwargs):
        # SFTTrainer takes a datasets.Dataset and nothing else; of this one it only reads the first row.
        stand_in = datasets.Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]})
        super().__init__(
            train_dataset=stand_in,
            eval_dataset=None if eval_traces is None else Numbered(eval_traces),
            data_collator=NumberedCollator(collator),
            **kwargs,
        )
        self.train_dataset, self.sampler = Numbered(traces), sampler
        self.seen = {"tokens": 0, "examples": 0, "seconds": 0.0}  # by all processes, up to the last log
        # Of this process, since the last log: loss, right predictions, labels, trace tokens, examples.
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        self.sums = {mode: torch.zeros(5, dtype=dtype, device=self.args.device) for mode in ("train", "eval")}
        self.resumed: dict[str, Any] | None = None
        self.add_callback(Steps(self, stop_on_sigterm))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs) -> None:
        """Train to the last step, from the start or exactly as the run went on that saved the checkpoint."""
        if resume_from_checkpoint is None:
            super().train(**kwargs)
            return
        folder = Path(resume_from_checkpoint)
        self.resumed = json.loads(progress_file(folder, self.args.process_index).read_text(encoding="utf-8"))
        state = TrainerState.load_from_json(folder / STATE)
        if state.global_step < state.max_steps:
            super().train(resume_from_checkpoint=str(folder), **kwargs)
            return
        # Killed between its last checkpoint and the final model: the Trainer would take one step more.
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(best or str(folder))
        self.state, self.seen = state, self.resumed["seen"]

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
        losses = functional.cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.args.label_smoothing_factor
        )
        if self.args.loss_type == "dft":
            losses = losses * (-losses).exp().detach()
        n_labels = len(targets) if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / torch.as_tensor(n_labels).clamp(min=1)
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / (
                1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            )
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the labels are those of all processes, DDP takes the mean

        training = self.model.training
        if training and not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, on the records "
                f"{records[:, 0].tolist()} of data.dataset: look at these, or lower train.learning_rate"
            )
        with torch.no_grad():
            right = (logits.argmax(-1) == targets).sum()
            seen = (losses.sum(), right, torch.tensor(len(targets)), records[:, 1].sum(), torch.tensor(len(records)))
            self.sums["train" if training else "eval"] += torch.stack([x.to(self.sums["train"]) for x in seen])
        return (loss, outputs) if return_outputs else loss

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

    def _save_checkpoint(self, model, trial) -> None:
        """Save as the Trainer does, and before it what its own state lacks: sums that no log has taken up yet."""
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        folder.mkdir(parents=True, exist_ok=True)
        progress = {
            "seen": self.seen | {"seconds": self.seconds()},
            "sums": self.sums["train"].tolist(),
            "loss": self._tr_loss.item(),
            "last_log": self._globalstep_last_logged,
        }
        write_json(progress_file(folder, self.args.process_index), progress)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir=None, state_dict=None) -> None:
        """Write the weights, at every checkpoint and at the end, and the decoding loop for stock transformers."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            ship_generate(output_dir or self.args.output_dir)

    def begin(self) -> None:
        """Start the clock; go on with the sums of the checkpoint, if there is one."""
        self.began = time.monotonic()
        if self.resumed is not None:
            self.seen = self.resumed["seen"]
            self.sums["train"] += torch.tensor(self.resumed["sums"], dtype=torch.float64).to(self.sums["train"])
            self._tr_loss += self.resumed["loss"]
            self._globalstep_last_logged = self.resumed["last_log"]

    def seconds(self) -> float:
        """Wall time spent in training, earlier parts of a resumed run counted."""
        return self.seen["seconds"] + time.monotonic() - self.began

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler

    def _send_telemetry(self) -> None:
        """Tell nobody: a run on local files calls no network."""

    def create_model_card(self, *args, **kwargs) -> None:
        """Write none: TRL's would speak of its own loss and an unnamed base model; run.json has the facts."""


class Steps(TrainerCallback):
    """What has to happen at the steps of a TraceTrainer."""

    def __init__(self, trainer: TraceTrainer, stop_on_sigterm: bool):
        self.trainer, self.stop_on_sigterm, self.stop = trainer, stop_on_sigterm, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin()
        if self.stop_on_sigterm:
            self.previous = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))

    def on_epoch_begin(self, args, state, control, **kwargs):
        # accelerate's set_epoch does not reach a sampler behind its shards and skipped batches at once.
        self.trainer.sampler.set_epoch(int(state.epoch))

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps
        if self.stop_on_sigterm:
            stop = torch.tensor(float(self.stop), device=args.device)
            if self.trainer.accelerator.reduce(stop, reduction="sum") > 0:  # all processes stop at one step
                control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.seen["seconds"] = self.trainer.seconds()
        if self.stop_on_sigterm:
            signal.signal(signal.SIGTERM, self.previous)


class Numbered(torch.utils.data.Dataset):
    """Traces that also say which record they were drawn from; no label for a first token, which nothing precedes."""

    def __init__(self, traces):
        self.traces = traces

    def __len__(self) -> int:
        return len(self.traces)

    def __getitem__(self, key) -> dict[str, Any]:
        trace = self.traces[key] | {"record": getattr(key, "index", key)}
        trace["labels"] = [IGNORE, *trace["labels"][1:]]  # in a packed row another trace would precede it
        return trace


class NumberedCollator:
    """The batches of `collator`, with `records` (examples, 2): the number and the trace tokens of each example."""

    def __init__(self, collator: Callable[[list[dict]], dict[str, torch.Tensor]]):
        self.collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        records = torch.tensor([(row["record"], len(row["input_ids"])) for row in rows])
        return self.collator(rows) | {"records": records}
