"""The life of a training run: model and tokenizer, data, trainer, training, saving. A stage overrides what differs."""

import dataclasses
import json
import logging
import math
import os
from pathlib import Path
from typing import Any, ClassVar

from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.extras.run_folder import is_main_process, open_run, write_json
from llmhalluc.hparams.parser import resolved
from llmhalluc.hparams.sections import Config

RECORD, CURVE, MERGED = "train.json", "loss.png", "merged"  # train.json is written last: it says "finished"
logger = logging.getLogger(__name__)


class BaseExecutor:
    """One training run of `config`: `run` calls the steps in the order in which they stand below."""

    sections: tuple[str, ...] = ("model", "data", "backtrack", "train")  # what decides how the run comes out
    # What the curve in train.json holds, the Trainer's name -> ours, and which of them loss.png draws, with its label.
    logged: ClassVar = {"step": "step", "loss": "loss", "num_tokens": "tokens", "mean_token_accuracy": "accuracy"}
    drawn = ("loss", "cross-entropy, nats a labelled token")
    trainer: Any  # a transformers Trainer whose `seen` counts tokens, examples and seconds

    def __init__(self, config: Config):
        if config.train.resume and config.train.overwrite:
            raise UserError("train.resume and train.overwrite are both true: keep one of them")
        self.config = config
        self.output_dir = Path(config.train.trl["output_dir"]).expanduser()
        self.trl = config.train.trl | {"output_dir": str(self.output_dir)}  # a stage takes out what is not for TRL
        self.seed = self.trl.get("seed", 42)  # transformers' own default
        self.data_seed = self.seed if self.trl.get("data_seed") is None else self.trl["data_seed"]
        self.checkpoint: Path | None = None  # to resume

    def run(self) -> dict[str, Any]:
        """Train, save, and return what train.json holds; of a finished run that is to be resumed nothing else."""
        train = self.config.train
        what_decides = resolved(self.config, self.sections)
        with open_run(self.output_dir, what_decides, train.overwrite, train.resume, train.key):
            if train.resume and (self.output_dir / RECORD).is_file():
                logger.warning("%s holds this run finished: nothing is left to do", self.output_dir)
                return json.loads((self.output_dir / RECORD).read_text(encoding="utf-8"))
            if train.resume:
                from llmhalluc.train.checkpoint import newest_checkpoint

                self.checkpoint = newest_checkpoint(self.output_dir, int(os.environ.get("WORLD_SIZE", 1)))
            if self.trl.get("report_to"):
                from llmhalluc.train.trackers import use_trackers

                use_trackers(self.trl["report_to"], self.output_dir)
            self.load_model()
            self.load_data()
            self.make_trainer()
            self.fit()
            return self.save()

    def load_model(self) -> None:
        """Set `model`, its adapter on it if it gets one, `tokenizer` and `backtrack_id`."""
        from transformers import set_seed
        from transformers.utils.logging import disable_progress_bar

        from llmhalluc.models.loader import load

        disable_progress_bar()  # of loading and saving: the Trainer's own is enough
        set_seed(self.seed)  # an adapter starts from random weights
        loaded = load(self.config.model, self.config.backtrack, seed=self.seed)
        self.model, self.tokenizer, self.backtrack_id = loaded.model, loaded.tokenizer, loaded.backtrack_id
        if self.config.model.finetuning != "full":
            from llmhalluc.models.peft import add_adapter

            self.model = add_adapter(self.model, self.config.model, self.backtrack_id)

    def load_data(self) -> None:
        """Set `dataset`, and `eval_dataset`, which is None unless the data section names one."""
        from llmhalluc.data.manager import load_datasets

        data = self.config.data
        rest = (data, self.config.backtrack, self.tokenizer, self.backtrack_id, self.data_seed)
        self.dataset, self.eval_dataset = load_datasets(*rest)
        if not len(self.dataset):
            raise UserError(
                f"data.dataset {data.dataset} has no record to train on (data.max_length is {data.max_length}): "
                "check data.split and data.max_length"
            )

    def make_trainer(self) -> None:
        """Set `trainer`."""
        raise NotImplementedError

    def arguments(self, config_class: Any, without_effect: dict[str, str], **fixed: Any) -> Any:
        """TRL's config of the `train` section, with `fixed` keys.

        without_effect: key -> why. Raises UserError for these, for what TRL refuses, for an evaluation without data,
        and for several GPUs in one process.
        """
        defaults = {f.name: f.default for f in dataclasses.fields(config_class)}
        problems = []
        for key, reason in without_effect.items():
            if key in self.trl and self.trl[key] not in (defaults[key], fixed.get(key, defaults[key])):
                problems.append(f"train.{key} has no effect here ({reason}): take it out")
        if problems:
            raise UserError(*problems)
        self.stop_on_sigterm = self.trl.get("enable_jit_checkpoint", False)
        keys = {"logging_nan_inf_filter": False} | self.device_defaults() | self.trl | fixed
        keys |= {"remove_unused_columns": False, "enable_jit_checkpoint": False}  # transformers' stops in mid-step
        keys.setdefault("activation_checkpointing", keys.pop("gradient_checkpointing"))
        try:
            args = config_class(**keys)
        except (TypeError, ValueError) as error:
            named = [f"train.{key} is {value!r}" for key, value in self.trl.items() if key in str(error)]
            raise UserError(": ".join([*named, one_line(error)])) from error
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
        return args

    def device_defaults(self) -> dict:
        """What suits the device where nothing else is asked for. Raises UserError for a device that is not ours."""
        import torch
        from transformers.utils import is_torch_bf16_gpu_available

        device = self.config.model.device
        if device not in (None, "cpu", "cuda", "cuda:0", "mps"):
            raise UserError(
                f"model.device is {device}, but training takes the devices it is given: "
                "set CUDA_VISIBLE_DEVICES, or use torchrun for several"
            )
        if device == "cpu" or not torch.accelerator.is_available():
            return {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
        return {"bf16": is_torch_bf16_gpu_available() and not self.trl.get("fp16"), "gradient_checkpointing": True}

    def draws(self, args: Any) -> int:
        """How many examples the training draws; train.max_tokens sets args.max_steps from the mean trace length."""
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if (max_tokens := self.config.train.max_tokens) is not None:
            if self.trl.get("max_steps", -1) > 0:
                raise UserError("train.max_tokens and train.max_steps are both set: keep one of them")
            # The last batch of an epoch may be smaller.
            epochs, rest = divmod(max_tokens / self.dataset.mean_length(), len(self.dataset))
            args.max_steps = max(1, round(epochs * math.ceil(len(self.dataset) / batch) + rest / batch))
        return args.max_steps * batch if args.max_steps > 0 else round(args.num_train_epochs * len(self.dataset))

    def fit(self) -> None:
        """Train to the last step. Raises UserError when a SIGTERM came first."""
        self.trainer.train(resume_from_checkpoint=self.checkpoint)
        state = self.trainer.state
        if state.global_step < state.max_steps:
            raise UserError(
                f"the run was stopped at step {state.global_step} of {state.max_steps}, and its checkpoint is in "
                f"{self.output_dir}: resume with train.resume=true"
            )

    def save(self) -> dict[str, Any]:
        """Write the final model with its tokenizer, loss.png and train.json; return what the latter holds."""
        record = self.record()
        self.model.config.use_cache = True  # the Trainer turned it off for training
        self.trainer.save_model(str(self.output_dir))
        if is_main_process():
            (self.output_dir / "training_args.bin").unlink()  # a pickle, and run.json says the same
            draw_curve(record, *self.drawn, self.output_dir / CURVE)
            if self.config.train.merge and self.config.model.finetuning != "full":
                from llmhalluc.models.peft import merge

                merge(self.model, self.tokenizer, self.output_dir / MERGED)
            write_json(self.output_dir / RECORD, record)
        self.trainer.accelerator.end_training()
        return record

    def record(self) -> dict[str, Any]:
        """What train.json holds: totals, and the curve as it was logged."""
        history, names = self.trainer.state.log_history, self.logged.items()
        return {
            **self.trainer.seen,
            "steps": self.trainer.state.global_step,
            "trainable_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "loss": [{ours: e[name] for name, ours in names if name in e} for e in history if "loss" in e],
            "eval_loss": [{"step": e["step"], "loss": e["eval_loss"]} for e in history if "eval_loss" in e],
        }


def final_model(output_dir: str | Path) -> Path:
    """The folder to load from: the merged model of an adapter's run, else `output_dir` itself.

    Raises UserError when no run has finished there.
    """
    output_dir = Path(output_dir).expanduser()
    if not (output_dir / RECORD).is_file():
        raise UserError(f"{output_dir} holds no finished training run: train it, or resume with train.resume=true")
    return output_dir / MERGED if (output_dir / MERGED).is_dir() else output_dir


def draw_curve(record: dict[str, Any], name: str, label: str, path: Path) -> None:
    """A curve of the training (beside the loss that of the evaluation, if there is one) against steps and tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    points = [entry for entry in record["loss"] if name in entry]
    axes.plot([e["step"] for e in points], [e[name] for e in points], ".-", label="training")
    if name == "loss" and (points := record["eval_loss"]):
        axes.plot([e["step"] for e in points], [e["loss"] for e in points], "o-", label="evaluation")
        axes.legend()
    axes.set(xlabel="step", ylabel=label)
    a_step = record["tokens"] / record["steps"]
    tokens = axes.secondary_xaxis("top", functions=(lambda step: step * a_step, lambda token: token / a_step))
    tokens.set_xlabel("trace tokens")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
