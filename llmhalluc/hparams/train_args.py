"""The `train` section: our own few keys; every other key is the TRL config's of the stage, under its own name."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmhalluc.extras.option import Section, option


@dataclass
class TrainArguments(Section):
    """Our keys in `train`; `trl` collects the rest as given and is handed to the stage's TRL config class."""

    section: ClassVar[str] = "train"
    stage: Literal["sft", "dpo", "grpo"] = option("sft", "which executor trains")
    resume: bool = option(False, "resume from the newest checkpoint in output_dir, if there is one")
    overwrite: bool = option(False, "delete what output_dir holds first")
    max_tokens: int | None = option(
        None, "stop after about so many trace tokens (sets max_steps from the mean trace length)", bounds="[1, inf)"
    )
    loss: Literal["sequence", "token"] = option(
        "sequence", "dpo: all tokens of a pair count alike, or those of the decision to erase more (train/dpo.py)"
    )
    rollout_batch_size: int | None = option(
        None, "grpo: rollouts that decode at once; none: all of a process", bounds="[1, inf)"
    )
    loss_decay: float = option(
        0.9, "dpo with loss token: weight of a token, relative to the one before it", bounds="(0, 1]"
    )
    keep_share: float = option(
        0.0,
        "dpo with backtrack_dpo: share of pairs in which the text is right so far and erasing it is rejected",
        bounds="[0, 1)",
    )
    merge: bool = option(True, "after LoRA or QLoRA, save the merged model beside the adapter")
    trl: dict[str, Any] = option({}, "(filled by the parser)")
