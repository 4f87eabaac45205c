"""Real data for tests: the folder in LLMHALLUC_DATA, else one beside the checkout; skipped where absent."""

import os
from pathlib import Path

import pytest

from llmhalluc.extras.constant import REPOSITORY

DATA = Path(os.environ.get("LLMHALLUC_DATA", REPOSITORY.parent / "shared" / "data"))


def real_data(name: str) -> Path:
    """The path of a data file such as `gsm8k/train.jsonl`; skips the test where there is none."""
    if not (DATA / name).is_file():
        pytest.skip(f"no {name} in {DATA}: set LLMHALLUC_DATA")
    return DATA / name
