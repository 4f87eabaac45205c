"""The FTPO stage: at the place of an erasure the logit of what was erased falls below those of what was kept.

Final token preference optimisation (Paech et al. 2025, "Antislop", arXiv:2510.15061). Shapes: B places, V vocabulary, C
chosen tokens of a place at most, T rows of the longest prefix.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from llmhalluc.backtrack import IGNORE
from llmhalluc.data.collator import DrawSampler, TraceCollator
from llmhalluc.data.rejections import RejectionDataset
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import Config
from llmhalluc.train.base import BaseExecutor
from llmhalluc.train.ftpo_config import FTPOConfig
from llmhalluc.train.trainer import ResumableTrainer
from llmhalluc.train.trl_patches import REFERENCE, copy_to_reference, frozen_copy

CONVERTER = "rejections"
# Keys of transformers' that leave places as they are: whoever sets one expects something that would not happen.
KEYS_WITHOUT_EFFECT = {
    "label_smoothing_factor": "the loss compares logits",
    "label_names": "a batch is a batch of places",
    "remove_unused_columns": "places hold nothing unused",
    "train_sampling_strategy": "draws are shuffled anew in every epoch",
    "length_column_name": "draws are shuffled anew in every epoch",
    "include_num_input_tokens_seen": "train.json counts tokens",
    "use_liger_kernel": "its loss is another one",
    "auto_find_batch_size": "it would change the batch in the middle of a run",
}
METRICS = ("chosen_wins", "gap", "preference_loss", "target_tether", "nontarget_tether")


class FTPOExecutor(BaseExecutor):
    """FTPO on the places of `data.converter` rejections, against the model that the run starts from."""

    logged: ClassVar = {"step": "step", "loss": "loss", "num_tokens": "tokens", **{name: name for name in METRICS}}
    drawn = ("loss", "FTPO loss of a place")

    def __init__(self, config: Config):
        super().__init__(config)
        model, name = config.model, config.data.converter
        if name != CONVERTER:
            raise UserError(f"data.converter is {name}, which makes no single places for ftpo: name {CONVERTER}")
        if model.lora_dropout:
            raise UserError(
                f"model.lora_dropout is {model.lora_dropout}, but ftpo measures logits, which dropout would move: "
                "take it out"
            )
        for key in ("deepspeed", "fsdp"):
            if self.trl.get(key) and model.finetuning == "full":
                raise UserError(
                    f"train.{key} shards the model, but ftpo keeps a whole copy of it as the reference: set "
                    f"model.finetuning=lora, or take out train.{key}"
                )

    def load_data(self) -> None:
        """The places. Raises UserError where there are none."""
        super().load_data()
        self.dataset = RejectionDataset(self.dataset)
        self.eval_dataset = None if self.eval_dataset is None else RejectionDataset(self.eval_dataset)

    def make_trainer(self) -> None:
        """Raises UserError for options that cannot be met."""
        args = self.arguments(FTPOConfig, KEYS_WITHOUT_EFFECT, label_names=["rejected"])
        pad_id = self.tokenizer.pad_token_id
        self.trainer = FTPORun(
            model=self.model,
            args=args,
            processing_class=self.tokenizer,
            places=self.dataset,
            eval_places=self.eval_dataset,
            collator=PlaceCollator(self.tokenizer.eos_token_id if pad_id is None else pad_id),
            sampler=DrawSampler(len(self.dataset), self.data_seed, self.draws(args)),
            stop_on_sigterm=self.stop_on_sigterm,
        )

    def record(self) -> dict[str, Any]:
        """The metrics of the evaluations too."""
        record, history = super().record(), self.trainer.state.log_history
        for entry, logged in zip(record["eval_loss"], [e for e in history if "eval_loss" in e], strict=True):
            entry |= {name: logged[f"eval_{name}"] for name in METRICS}
        return record


class FTPORun(ResumableTrainer):
    """A Trainer of places: one forward of a prefix, the logits at its last row, and there those of the reference.

    The reference is the model at the start: a copy of the adapter, its BACKTRACK rows included, or of the whole model.
    """

    def __init__(self, *, model, places, eval_places, collator, **kwargs):
        if adapted := isinstance(model, PeftModel):
            if kwargs["args"].activation_checkpointing:
                model.enable_input_require_grads()
            model.add_adapter(REFERENCE, model.peft_config["default"])
            copy_to_reference(model)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # training alone is to move a logit
        super().__init__(
            model=model, train_dataset=places, eval_dataset=eval_places, data_collator=collator, **kwargs
        )  # fmt: skip
        self.reference: PreTrainedModel | None = None
        if not adapted:
            self.reference = self.accelerator.prepare_model(frozen_copy(model), evaluation_mode=True)
        # Places of an average micro-batch, of all that one step accumulates in all processes.
        self.average: torch.Tensor | None = None
        # Of this process, since the last log: the loss, METRICS, trace tokens, places.
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        size = len(METRICS) + 3
        self.sums = {mode: torch.zeros(size, dtype=dtype, device=self.args.device) for mode in ("train", "eval")}

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, and how many places a step holds, so that a loss does not depend on how a batch is split."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            places = torch.tensor(float(sum(len(batch["rejected"]) for batch in batches)), device=device)
            self.average = self.accelerator.reduce(places, reduction="mean") / len(batches)
        return batches, items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean of `ftpo_terms` over the places of all that a step accumulates.

        `inputs`: rejected (B), chosen (B, C), and (B, T) input_ids, position_ids, visible_until and last, true at the
        last row of each prefix. Raises UserError when the loss of a training batch is not finite.
        """
        rejected_B, chosen_BC, last_BT = (inputs.pop(name) for name in ("rejected", "chosen", "last"))
        logits_BV = self.logits(model, inputs, last_BT)
        with torch.no_grad(), self.at_the_start(model) as reference:
            reference_BV = self.logits(reference, inputs, last_BT)
        args = self.args
        numbers = (args.margin, args.tau, args.eps_target)
        terms = ftpo_terms(logits_BV, reference_BV, rejected_B, chosen_BC, *numbers)
        losses_B = (
            terms["preference_loss"]
            + args.lambda_target * terms["target_tether"]
            + args.lambda_nontarget * terms["nontarget_tether"]
        )
        loss = losses_B.mean()
        self.check_finite(loss)
        with torch.no_grad():
            tokens = (last_BT.int().argmax(1) + 1).sum()
            seen = [losses_B.sum(), *(terms[name].sum() for name in METRICS), tokens, last_BT.sum()]
            sums = self.sums["train" if self.model.training else "eval"]
            sums += torch.stack([x.to(sums) for x in seen])
        if self.model.training and self.average is not None:
            loss = loss * (len(rejected_B) / self.average)
        return (loss, {}) if return_outputs else loss

    def logits(self, model: Any, inputs: dict[str, torch.Tensor], last_BT: torch.Tensor) -> torch.Tensor:
        """(B, V) at the last row of each prefix, float32 at least."""
        logits_BV = model(**inputs, logits_to_keep=last_BT, use_cache=False).logits.flatten(0, -2)
        return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))

    @contextlib.contextmanager
    def at_the_start(self, model: Any) -> Iterator[Any]:
        """Within it what is yielded has the weights of the start."""
        if self.reference is not None:
            yield self.reference
            return
        adapted = self.accelerator.unwrap_model(model)
        adapted.set_adapter(REFERENCE)
        try:
            yield model
        finally:
            adapted.set_adapter("default")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of METRICS over places and the tokens; `eval_loss` becomes the mean over places too."""
        if "loss" in logs:
            _, *means, tokens, places = self._drain("train")
            self.seen["tokens"] += round(tokens)
            self.seen["examples"] += round(places)
            logs |= dict(zip(METRICS, means, strict=True)) | {"num_tokens": self.seen["tokens"]}
        elif "eval_loss" in logs:
            loss, *means, _, _ = self._drain("eval")
            logs |= {"eval_loss": loss} | {f"eval_{name}": mean for name, mean in zip(METRICS, means, strict=True)}
        super().log(logs, start_time)

    def _drain(self, mode: str) -> list[float]:
        """Means over the places of all processes, then the sums of tokens and places; they start anew."""
        *sums, tokens, places = self.accelerator.reduce(self.sums[mode], reduction="sum").tolist()
        self.sums[mode].zero_()
        return [*(total / max(places, 1) for total in sums), tokens, places]

    def progress(self) -> dict[str, Any]:
        return super().progress() | {"sums": self.sums["train"].tolist()}

    def restore(self, progress: dict[str, Any]) -> None:
        super().restore(progress)
        self.sums["train"] += torch.tensor(progress["sums"], dtype=torch.float64).to(self.sums["train"])


def ftpo_terms(
    logits_BV: torch.Tensor, reference_BV: torch.Tensor, rejected_B: torch.Tensor, chosen_BC: torch.Tensor,
    margin: float, tau: float, eps: float,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """The parts of the loss (arXiv:2510.15061) and two measures of each place, (B) each; `chosen_BC` ends with IGNOREs.

    With Δ_c = logit(c) - logit(rejected) and w_c = clamp((margin - Δ_c) / margin, 0, 1):
        preference_loss   mean over chosen c of w_c softplus((margin - Δ_c) / tau)
        target_tether     mean over chosen and rejected of max(|logit - reference| - eps, 0)²
        nontarget_tether  mean over all other tokens of (logit - reference)²
    Nothing pulls at a token that leads by `margin`. As in the authors' code the gradient goes through w_c. They divide
    by the sum of the w_c of a batch, which pulls as hard at a place that has all but reached the margin; we divide by
    their number, so that a place counts the same in any batch. chosen_wins: share of Δ_c > 0; gap: mean of Δ_c.
    """
    is_chosen_BC = chosen_BC != IGNORE
    ids_BC = torch.where(is_chosen_BC, chosen_BC, rejected_B[:, None])
    gap_BC = logits_BV.gather(1, ids_BC) - logits_BV.gather(1, rejected_B[:, None])
    short_BC = margin - gap_BC
    pull_BC = (short_BC / margin).clamp(0, 1) * functional.softplus(short_BC / tau)
    targets = torch.cat([ids_BC, rejected_B[:, None]], 1)
    is_target_BV = torch.zeros_like(logits_BV, dtype=torch.bool).scatter(1, targets, True)
    drift_BV = logits_BV - reference_BV
    over_BV = (drift_BV.abs() - eps).clamp(min=0).square()
    return {
        "preference_loss": _mean(pull_BC, is_chosen_BC),
        "target_tether": _mean(over_BV, is_target_BV),
        "nontarget_tether": _mean(drift_BV.square(), ~is_target_BV),
        "chosen_wins": _mean((gap_BC > 0).to(gap_BC.dtype), is_chosen_BC),
        "gap": _mean(gap_BC, is_chosen_BC),
    }


def _mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """The mean of each row (B) where the mask is true; 0 where it is nowhere."""
    return (values * where).sum(1) / where.sum(1).clamp(min=1)


class PlaceCollator:
    """Places to tensors: rejected (B), chosen (B, C) with IGNORE, last (B, T), and the rows of TraceCollator."""

    def __init__(self, pad_id: int):
        self.rows = TraceCollator(pad_id)

    def __call__(self, places: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.rows(places)
        labels_BT = batch.pop("labels")
        last_BT = labels_BT != IGNORE
        width = max(len(place["chosen"]) for place in places)
        chosen = [[*place["chosen"], *[IGNORE] * (width - len(place["chosen"]))] for place in places]
        return batch | {"rejected": labels_BT[last_BT], "chosen": torch.tensor(chosen), "last": last_BT}
