"""The DPO stage: pairs that part where an error is erased or carried on; TRL's losses, all tokens alike or the decision
before the rest.

Shapes: B traces (the chosen ones, then the rejected ones of the same pairs), T positions.
"""

import functools
from typing import Any, ClassVar

import torch
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from llmhalluc.backtrack import IGNORE
from llmhalluc.data.collator import DrawSampler
from llmhalluc.data.dpo import PairDataset
from llmhalluc.data.manager import GENERIC, converter_class
from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.hparams.sections import Config
from llmhalluc.train.base import BaseExecutor
from llmhalluc.train.scoring import Weights, score_through_model
from llmhalluc.train.trainer import ResumableTrainer
from llmhalluc.train.trl_patches import ReadyPairs, copy_to_reference, frozen_copy, stand_in, unlogged_metrics

# Keys of TRL's that leave fresh pairs as they are: whoever sets one expects something that would not happen.
KEYS_WITHOUT_EFFECT = {
    "model_init_kwargs": "the model section loads the model",
    "trust_remote_code": "use model.trust_remote_code",
    "pad_token": "the tokenizer has one",
    "dataset_num_proc": "use data.num_proc",
    "remove_unused_columns": "pairs hold nothing unused",
    "max_length": "a pair is never cut, data.max_length leaves long ones out",
    "truncation_mode": "a pair is never cut, data.max_length leaves long ones out",
    "padding_free": "TRL has it switched off",
    "precompute_ref_log_probs": "pairs are drawn anew in every epoch",
    "precompute_ref_batch_size": "pairs are drawn anew in every epoch",
    "train_sampling_strategy": "draws are shuffled anew in every epoch",
    "auto_find_batch_size": "it would change the batch in the middle of a run",
}
LOSS_TYPES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
              "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm")  # fmt: skip
METRICS = ("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen",
           "logps/rejected")  # fmt: skip


class DPOExecutor(BaseExecutor):
    """DPO on pairs of `data.converter` dpo or backtrack_dpo, against the model that the run starts from."""

    logged: ClassVar = {**BaseExecutor.logged, **{name: name for name in METRICS}}
    drawn = ("loss", "DPO loss, nats a pair")

    def __init__(self, config: Config):
        super().__init__(config)
        name, train = config.data.converter, config.train
        converter = converter_class(name)
        if not hasattr(converter, "pair"):
            with_pairs = [known for known in GENERIC if hasattr(converter_class(known), "pair")]
            raise UserError(f"data.converter is {name}, which makes no pairs for dpo: name {' or '.join(with_pairs)}")
        loss_type = self.trl.get("loss_type", [])
        for kind in [loss_type] if isinstance(loss_type, str) else loss_type:
            if kind not in LOSS_TYPES:
                raise UserError(f"train.loss_type is {kind}, expected some of {', '.join(LOSS_TYPES)}")
        if train.loss == "token":
            for key in ("use_weighting", "ld_alpha"):
                if self.trl.get(key):
                    raise UserError(
                        f"train.{key} weights tokens in its own way: take it out, or set train.loss=sequence"
                    )
        if train.keep_share and not hasattr(converter, "keep_pair"):
            raise UserError(
                f"train.keep_share is {train.keep_share}, but data.converter {name} has its pairs: take it out"
            )
        if self.trl.get("sync_ref_model") and (train.resume or config.model.finetuning != "full"):
            reason = "a checkpoint has no reference" if train.resume else "an adapter shares its weights with it"
            raise UserError(f"train.sync_ref_model moves the reference, but {reason}: take it out")

    def load_data(self) -> None:
        """The pairs. Raises UserError where the records make none."""
        super().load_data()
        data = self.config.data
        self.dataset = PairDataset(self.dataset, self.config.train.keep_share)
        self.eval_dataset = None if self.eval_dataset is None else PairDataset(self.eval_dataset)
        for key, pairs in (("data.dataset", self.dataset), ("data.eval_dataset", self.eval_dataset)):
            if pairs is not None and not len(pairs):
                name = data.eval_dataset if key == "data.eval_dataset" and data.eval_dataset else data.dataset
                raise UserError(
                    f"{key} {name} makes no pair (data.converter is {data.converter}, data.max_length is "
                    f"{data.max_length}): name data with answers that can go wrong, or raise data.max_length"
                )

    def make_trainer(self) -> None:
        """Raises UserError for options that cannot be met."""
        train, weights = self.config.train, None
        if train.loss == "token":
            weights = functools.partial(decision_weights, backtrack_id=self.backtrack_id, decay=train.loss_decay)
        args = self.arguments(DPOConfig, KEYS_WITHOUT_EFFECT, max_length=None)
        try:
            self.trainer = DPORun(
                model=self.model,
                ref_model=None if isinstance(self.model, PeftModel) else frozen_copy(self.model),
                args=args,
                processing_class=self.tokenizer,
                pairs=self.dataset,
                eval_pairs=self.eval_dataset,
                sampler=DrawSampler(len(self.dataset), self.data_seed, self.draws(args)),
                weights=weights,
                stop_on_sigterm=self.stop_on_sigterm,
            )
        except (ValueError, NotImplementedError) as error:  # options of TRL's that do not go together
            raise UserError(f"train: {one_line(error)}") from error

    def record(self) -> dict[str, Any]:
        """The metrics of the evaluations too."""
        record, history = super().record(), self.trainer.state.log_history
        for entry, logged in zip(record["eval_loss"], [e for e in history if "eval_loss" in e], strict=True):
            entry |= {name: logged[f"eval_{name}"] for name in METRICS}
        return record


class DPORun(ResumableTrainer, ReadyPairs, DPOTrainer):
    """DPOTrainer whose pairs are the sampler's draws and whose policy and reference are scored by their own forward.

    `weights`: of tokens in the log-probability of a completion; None weighs all alike.
    """

    def __init__(self, *, pairs, eval_pairs, weights: Weights | None, **kwargs):
        columns = stand_in("prompt_ids", "chosen_ids", "rejected_ids")
        super().__init__(train_dataset=columns, eval_dataset=eval_pairs, **kwargs)
        self.train_dataset = pairs
        models = [self.model]
        if isinstance(self.model, PeftModel):
            copy_to_reference(self.model)
            models = [self.model.get_base_model()]
        if self.ref_model is not None:
            models.append(self.accelerator.unwrap_model(self.ref_model))
        for model in models:
            score_through_model(model, weights=weights)
        # Pairs and chosen labels of an average micro-batch, of all that one step accumulates in all processes.
        self.average: torch.Tensor | None = None
        # Of this process, since the last log: tokens of both traces, pairs.
        self.counts = torch.zeros(2, dtype=torch.int64, device=self.args.device)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, and what a step's micro-batches hold, so that a loss does not depend on how a batch is split."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            sizes = torch.stack([_sizes(batch) for batch in batches]).sum(0).to(device)
            self.average = self.accelerator.reduce(sizes, reduction="mean") / len(batches)
        return batches, items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's, a mean over the pairs, and the sft term over the chosen labels, of all that a step accumulates.

        Raises UserError when the loss of a training batch is not finite.
        """
        self.loss_weights = self.args.loss_weights or [1.0] * len(self.loss_types)
        if self.model.training and self.average is not None:
            of_pairs, of_labels = (_sizes(inputs).to(self.average.device) / self.average).tolist()
            shares = [of_labels if kind == "sft" else of_pairs for kind in self.loss_types]
            self.loss_weights = [weight * share for weight, share in zip(self.loss_weights, shares, strict=True)]
        # accelerate put autocast around the forward that score_through_model replaced in the reference.
        with self.accelerator.autocast():
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        self.check_finite(loss)
        if self.model.training:
            mask_BT = inputs["attention_mask"]
            self.counts += torch.stack([mask_BT.sum(), mask_BT.new_tensor(len(mask_BT) // 2)])
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, with a count of tokens that a resumed run continues."""
        if "loss" in logs:
            tokens, examples = self.accelerator.reduce(self.counts, reduction="sum").tolist()
            self.counts.zero_()
            self.seen["tokens"] += tokens
            self.seen["examples"] += examples
            unlogged_metrics(self)["num_tokens"] = [self.seen["tokens"]]
        super().log(logs, start_time)

    def progress(self) -> dict[str, Any]:
        """The counts, and what TRL will average in its next log, too."""
        return super().progress() | {"counts": self.counts.tolist(), "metrics": unlogged_metrics(self)}

    def restore(self, progress: dict[str, Any]) -> None:
        super().restore(progress)
        self.counts += self.counts.new_tensor(progress["counts"])
        unlogged_metrics(self).update(progress["metrics"])


def _sizes(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Pairs of a batch and labels of its chosen traces, (2,) float32."""
    chosen, _ = batch["completion_mask"].chunk(2)
    return torch.stack([chosen.new_tensor(len(chosen)), chosen[:, 1:].sum()]).float()


def decision_weights(
    labels_BT: torch.Tensor, backtrack_id: int, decay: float, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Weights of tokens in `train.loss: token`, (B, T) labels -> (B, T - 1) of `dtype`, position t about label t + 1.

    DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7) is a logistic loss on β (Σ_t ρ_t(chosen) - Σ_t ρ_t(rejected)),
    ρ_t = log π(y_t | s_t) - log π_ref(y_t | s_t), and β ρ_t is token t's own advantage (Rafailov et al. 2024,
    arXiv:2404.12358, section 4). Here each sum is Σ_t w_t ρ_t,
        w_t = n γ^k_t / Σ_j γ^k_j,  k_t = max(0, t - r),  t = 0 … n - 1,
    with γ = `decay`, n the tokens of the completion and r the BACKTRACKs it opens with (none in the rejected one): the
    BACKTRACKs and the first token after them weigh most and alike, each later one γ of the one before. The exponential
    decay is that of D2PO (Shao et al. 2025, arXiv:2502.14340); that it starts after the BACKTRACKs and that the weights
    sum to n, so that β means what it means without them, is ours. γ = 1 is DPO. 0 where the label is IGNORE.
    """
    targets_BT = labels_BT[:, 1:]
    scored_BT = targets_BT != IGNORE
    opening_BT = ((targets_BT == backtrack_id) | ~scored_BT).cumprod(1).bool() & scored_BT
    after_BT = (scored_BT.cumsum(1) - 1 - opening_BT.sum(1, keepdim=True)).clamp(min=0)
    weights_BT = decay ** after_BT.to(dtype) * scored_BT
    return weights_BT * scored_BT.sum(1, keepdim=True) / weights_BT.sum(1, keepdim=True).clamp(min=1.0)
