"""What every run of ours adds to a TRL trainer: exact counts, a clock, SIGTERM, a resume that changes nothing."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerState

from llmhalluc.extras.run_folder import write_json
from llmhalluc.models.helper import ship_generate
from llmhalluc.train.checkpoint import STATE, progress_file


class Run(Trainer):
    """Stands before a TRL trainer in the bases: `class DPORun(Run, DPOTrainer)`; call `start_run` when it is made.

    `seen` counts tokens, examples and seconds, of all processes, up to the last log.
    """

    def start_run(self, stop_on_sigterm: bool) -> None:
        """The end of a subclass's `__init__`."""
        self.seen = {"tokens": 0, "examples": 0, "seconds": 0.0}
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

    def progress(self) -> dict[str, Any]:
        """What a checkpoint of ours holds beside the Trainer's own state: sums that no log has taken up yet."""
        return {
            "seen": self.seen | {"seconds": self.seconds()},
            "loss": self._tr_loss.item(),
            "last_log": self._globalstep_last_logged,
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Go on from what `progress` said."""
        self.seen = progress["seen"]
        self._tr_loss += progress["loss"]
        self._globalstep_last_logged = progress["last_log"]

    def begin(self) -> None:
        """Start the clock; go on with the sums of the checkpoint, if there is one."""
        self.began = time.monotonic()
        if self.resumed is not None:
            self.restore(self.resumed)

    def seconds(self) -> float:
        """Wall time spent in training, earlier parts of a resumed run counted."""
        return self.seen["seconds"] + time.monotonic() - self.began

    def _save_checkpoint(self, model, trial) -> None:
        """Save as the Trainer does, and `progress` before it."""
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(progress_file(folder, self.args.process_index), self.progress())
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir=None, state_dict=None) -> None:
        """Write the weights, at every checkpoint and at the end, and the decoding loop for stock transformers."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            ship_generate(output_dir or self.args.output_dir)

    def _send_telemetry(self) -> None:
        """Tell nobody: a run on local files calls no network."""

    def create_model_card(self, *args, **kwargs) -> None:
        """Write none: TRL's would speak of its own loss and an unnamed base model; run.json has the facts."""


class Steps(TrainerCallback):
    """What has to happen at the steps of a Run; a sampler with `set_epoch` is told the epoch."""

    def __init__(self, trainer: Run, stop_on_sigterm: bool):
        self.trainer, self.stop_on_sigterm, self.stop = trainer, stop_on_sigterm, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin()
        if self.stop_on_sigterm:
            self.previous = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))

    def on_epoch_begin(self, args, state, control, **kwargs):
        # accelerate's set_epoch does not reach a sampler behind its shards and skipped batches at once.
        if (sampler := getattr(self.trainer, "sampler", None)) is not None:
            sampler.set_epoch(int(state.epoch))

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
