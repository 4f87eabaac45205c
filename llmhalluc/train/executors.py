"""Training stages by name; what a stage needs is imported when it is the one that trains."""

import pkgutil
from typing import Any

EXECUTORS = {
    "sft": "llmhalluc.train.sft:SFTExecutor",
    "dpo": "llmhalluc.train.dpo:DPOExecutor",
    "ftpo": "llmhalluc.train.ftpo:FTPOExecutor",
    "grpo": "llmhalluc.train.grpo:GRPOExecutor",
    "verifier": "llmhalluc.train.judges:VerifierExecutor",
    "prm": "llmhalluc.train.judges:PRMExecutor",
}


def executor_of(stage: str, techniques: bool = False) -> Any:
    """The BaseExecutor of a stage, of sft with `Config.techniques`; importing it imports trl, which takes seconds."""
    return pkgutil.resolve_name("llmhalluc.train.techniques:TechniqueExecutor" if techniques else EXECUTORS[stage])
