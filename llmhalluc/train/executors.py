"""Training stages by name; importing this imports trl, which takes seconds."""

from llmhalluc.train.sft import SFTExecutor

EXECUTORS = {"sft": SFTExecutor}
