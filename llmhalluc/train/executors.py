"""Training stages by name; importing this imports trl, which takes seconds."""

from llmhalluc.train.dpo import DPOExecutor
from llmhalluc.train.grpo import GRPOExecutor
from llmhalluc.train.sft import SFTExecutor

EXECUTORS = {"sft": SFTExecutor, "dpo": DPOExecutor, "grpo": GRPOExecutor}
