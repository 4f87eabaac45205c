"""Special tokens per model family, and the project's paths: the one place for both."""

import os
from pathlib import Path

BACKTRACK_TOKEN = "<|BACKTRACK|>"
# Llama 3 keeps reserved rows in its embedding matrix; using one leaves the vocabulary's size as it is.
RESERVED_BACKTRACK_TOKEN = "<|reserved_special_token_0|>"

PACKAGE = Path(__file__).resolve().parent.parent
REPOSITORY = PACKAGE.parent
CONFIGS = REPOSITORY / "configs"
LM_EVAL_TASKS = CONFIGS / "lm_eval" / "tasks"
CACHE = Path(os.environ.get("LLMHALLUC_CACHE", Path.home() / ".cache" / "llmhalluc"))

# Names of splits that are for evaluation alone (law 8).
EVAL_SPLITS = ("test", "validation", "valid", "val", "dev", "eval", "evaluation")
