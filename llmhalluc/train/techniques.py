"""SFT with the techniques of docs/sft.md: weighted corrections, warm-up of the BACKTRACK rows, helpful errors, sets.

Shapes: B rows of a batch, T positions, N labelled ones, V vocabulary, M of the labelled ones with K right ids at most.
"""

from typing import Any

import torch
from torch.nn import functional

from llmhalluc.backtrack import IGNORE
from llmhalluc.data.annotated import NONE, AnnotatedCollator, AnnotatedTraces
from llmhalluc.data.collator import FIELDS, TraceCollator
from llmhalluc.hparams.sections import TrainArguments
from llmhalluc.train.sft import RecordCollator, SFTExecutor, SFTRun


class TechniqueExecutor(SFTExecutor):
    """SFT, with what `train.weighting`, `warmup_embeddings`, `targets` and `backtrack.keep_if_helps` ask for."""

    def load_data(self) -> None:
        """The traces, with corrections and sets of right tokens."""
        super().load_data()
        train = self.config.train
        self.dataset = AnnotatedTraces(self.dataset, train.weighting == "confidence", train.targets == "set")

    def arguments(self, *args: Any, **fixed: Any) -> Any:
        """Those of SFT. Errors are compared here, after the processes have found each other and before traces count."""
        made = super().arguments(*args, **fixed)
        if self.config.backtrack.keep_if_helps:
            from llmhalluc.train.helpful import keep_helpful

            self.errors = keep_helpful(self.model, self.dataset, self.tokenizer, made)
        return made

    def make_run(self, **options: Any) -> SFTRun:
        train = self.config.train
        run = TechniqueRun(technique=train, **options)
        if train.warmup_embeddings:
            from llmhalluc.train.warmup import warm_up

            run.warmup = warm_up(run, self.backtrack_id, train.warmup_embeddings)
        return run

    def record(self) -> dict[str, Any]:
        """With the counts of errors that were drawn and kept, where they were compared."""
        return super().record() | ({"errors": self.errors} if self.config.backtrack.keep_if_helps else {})


class TechniqueRun(SFTRun):
    """SFTRun whose losses are weighted and whose targets are sets, as `technique` says; `warmup` freezes gradients."""

    warmup: Any = None

    def __init__(self, *, technique: TrainArguments, collator: TraceCollator, **kwargs: Any):
        super().__init__(collator=collator, **kwargs)
        self.technique = technique
        self.data_collator = AnnotatedCollator(RecordCollator(collator))
        self.weights_N: torch.Tensor | None = None
        self.choices: torch.Tensor | None = None  # (M, 1 + K): number of the labelled position, right ids

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of a step with `weights` (N), and the sum of all in the place of the number of labels.

        So the mean weight of a label is 1 in what a step accumulates, however it is split.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and self.technique.weighting != "none":
            for batch in batches:
                batch["weights"] = self.weights(batch)
            items = torch.stack([batch["weights"].sum() for batch in batches]).sum().to(device)
            if self.args.average_tokens_across_devices:
                items = self.accelerator.reduce(items, reduction="sum")
        return batches, items

    @torch.no_grad()
    def weights(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Weights (N) of the labels of a batch: 1, and on corrections what `train.weighting` says (docs/sft.md).

        confidence runs the model once more, without dropout.
        """
        scored_BT, targets_N = labelled(batch["labels"])
        after_N = functional.pad(batch["after"][:, 1:], (0, 1), value=NONE)[scored_BT]
        train, dtype = self.technique, self.sums["train"].dtype
        if train.weighting == "position":
            weights_N = 1 + (train.correction_weight - 1) * train.loss_decay ** after_N.clamp(min=0).to(dtype)
        else:
            model, training = self.model_wrapped, self.model.training
            model.eval()
            inputs = {name: batch[name] for name in FIELDS if name != "labels"}
            with self.compute_loss_context_manager():
                logits_NV = model(**inputs, logits_to_keep=scored_BT, use_cache=False).logits
            model.train(training)
            logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
            losses_N = functional.cross_entropy(logits_NV, targets_N, reduction="none")
            losses_N = with_choices(losses_N, logits_NV, numbered(batch["choices"], scored_BT))
            weights_N = (1 - (-losses_N).exp()).to(dtype)
        return torch.where(after_N == NONE, 1.0, weights_N)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """SFTRun's, of weighted losses and of sets of targets."""
        inputs.pop("after", None)
        choices, self.weights_N = inputs.pop("choices", None), inputs.pop("weights", None)
        self.choices = None if choices is None else numbered(choices, labelled(inputs["labels"])[0])
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def token_losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """SFTRun's, or -log of the probability of any right id, times the weights."""
        losses_N = super().token_losses(logits, targets)
        if self.choices is not None:
            losses_N = with_choices(losses_N, logits, self.choices)
        return losses_N if self.weights_N is None else losses_N * self.weights_N.to(losses_N)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """SFTRun's; in the warm-up only the BACKTRACK rows keep gradients, and so only they are clipped."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.warmup is not None and self.warmup.lasts(self.state):
            self.warmup.drop_gradients()
        return loss


def labelled(labels_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which positions predict a label (B, T), and the labels (N)."""
    targets_BT = functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORE)
    scored_BT = targets_BT != IGNORE
    return scored_BT, targets_BT[scored_BT]


def numbered(choices: torch.Tensor, scored_BT: torch.Tensor) -> torch.Tensor:
    """Return (M, 1 + K) of the collator's (·, 2 + K): the number of the position that predicts the token, right ids."""
    rows, positions, ids = choices[:, 0], choices[:, 1] - 1, choices[:, 2:]
    number_BT = scored_BT.flatten().cumsum(0).view_as(scored_BT) - 1
    predicts = (positions >= 0) & scored_BT[rows, positions]
    return torch.cat([number_BT[rows, positions][:, None], ids], 1)[predicts]


def with_choices(losses_N: torch.Tensor, logits_NV: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
    """The losses with -log Σ p(id) over the right ids in the place of those of `choices` (M, 1 + K).

    The set-valued target of arXiv:2509.22023: any right next token will do, and the model may share them out.
    """
    if not len(choices):
        return losses_N
    at_M, ids_MK = choices[:, 0], choices[:, 1:]
    logits_MV = logits_NV[at_M]
    right_MK = logits_MV.gather(1, ids_MK.clamp(min=0)).masked_fill(ids_MK == NONE, -torch.inf)
    return losses_N.index_put((at_M,), logits_MV.logsumexp(-1) - right_MK.logsumexp(-1))
