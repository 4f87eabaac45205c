"""The `train` section: our own few keys; every other key is the TRL config's of the stage, under its own name."""

from dataclasses import dataclass
from typing import Any, Literal

from llmhalluc.hparams.field import option


@dataclass
class TrainArguments:
    """Keys of ours in `train`; `trl` collects the rest as given and is handed to the stage's TRL config class."""

    stage: Literal["sft"] = option("sft", "which executor trains")
    resume: bool = option(False, "go on from the newest checkpoint in output_dir, if there is one")
    overwrite: bool = option(False, "delete what output_dir holds first")
    max_tokens: int | None = option(
        None, "stop after about so many trace tokens (sets max_steps from the mean trace length)"
    )
    merge: bool = option(True, "after LoRA or QLoRA, save the merged model beside the adapter")
    trl: dict[str, Any] = option({}, "(filled by the parser)")
