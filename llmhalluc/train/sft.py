"""The SFT stage: traces, batches and TRL's own options put together; train/trainer.py does the training."""

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
        args = self.arguments(SFTConfig, USELESS, dataset_kwargs={"skip_prepare_dataset": True})
        pad_id = self.tokenizer.pad_token_id
        self.trainer = TraceTrainer(
            model=self.model,
            args=args,
            processing_class=self.tokenizer,
            traces=self.dataset,
            eval_traces=self.eval_dataset,
            sampler=DrawSampler(len(self.dataset), self.data_seed, self.draws(args)),
            collator=TraceCollator(self.tokenizer.eos_token_id if pad_id is None else pad_id, packing, row_length),
            stop_on_sigterm=self.stop_on_sigterm,
        )
