"""What each of our stages adds to a Trainer: exact counts, a clock, SIGTERM, a resume that changes nothing."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import write_json
from llmhalluc.models.helper import ship_generate
from llmhalluc.train import trl_patches

STATE = "trainer_state.json"  # the Trainer's first process writes it last


class ResumableTrainer(trl_patches.PatchedTrainer):
    """Stands before a library's trainer in the bases: `class DPORun(ResumableTrainer, DPOTrainer)`.

    `seen` counts tokens, examples and seconds, of all processes, up to the last log.
    """

    def __init__(self, *args: Any, sampler: Any = None, stop_on_sigterm: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sampler = sampler
        self.seen: dict[str, Any] = {"tokens": 0, "examples": 0, "seconds": 0.0}
        self.resumed: dict[str, Any] | None = None  # the progress of the checkpoint that this run resumes
        self.add_callback(StepCallback(self, stop_on_sigterm))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs) -> None:
        """Train to the last step, from the start or exactly as the run that saved the checkpoint would have."""
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
        trl_patches.load_weights(self, best or folder)
        self.state, self.seen = state, self.resumed["seen"]

    def check_finite(self, loss: torch.Tensor, rest: str = ": lower train.learning_rate") -> None:
        """Raise UserError, whose sentence ends with `rest`, for a training batch whose loss is not finite."""
        if self.model.training and not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} at step {self.state.global_step + 1}{rest}")

    def progress(self) -> dict[str, Any]:
        """What our checkpoint holds beside the Trainer's own state: sums that are not logged yet."""
        return {"seen": self.seen | {"seconds": self.seconds()}} | trl_patches.unlogged_loss(self)

    def restore(self, progress: dict[str, Any]) -> None:
        """Continue from what `progress` returned."""
        self.seen = progress["seen"]
        trl_patches.restore_unlogged_loss(self, progress)

    def begin(self) -> None:
        """Start the clock; continue the sums of the checkpoint, if there is one."""
        self.began = time.monotonic()
        if self.resumed is not None:
            self.restore(self.resumed)

    def seconds(self) -> float:
        """Wall time spent in training, earlier parts of a resumed run counted."""
        return self.seen["seconds"] + time.monotonic() - self.began

    def before_checkpoint(self, folder: Path) -> None:
        """Write `progress` into a checkpoint before anything else."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(progress_file(folder, self.args.process_index), self.progress())

    def after_weights(self, folder: Path) -> None:
        """Put the decoding loop for stock transformers beside the weights of a checkpoint or of the final model."""
        ship_generate(folder)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write none: TRL's would speak of its own loss and an unnamed base model; run.json has the facts."""


def progress_file(folder: Path, process: int) -> Path:
    """Return where a process keeps what the Trainer's own state lacks; written before all else in the folder."""
    return folder / f"progress_{process}.json"


class StepCallback(TrainerCallback):
    """What has to happen at the steps of a ResumableTrainer; a sampler learns the epoch."""

    def __init__(self, trainer: ResumableTrainer, stop_on_sigterm: bool):
        self.trainer, self.stop_on_sigterm, self.stop = trainer, stop_on_sigterm, False

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin()
        if self.stop_on_sigterm:
            self.previous = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))

    def on_epoch_begin(self, args, state, control, **kwargs):
        # accelerate's set_epoch does not reach a sampler behind its shards and skipped batches at once.
        if self.trainer.sampler is not None:
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
