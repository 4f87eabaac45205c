"""The trackers of `train.report_to`: wandb, tensorboard, trackio."""

import importlib.util
import os
from pathlib import Path

from llmhalluc.extras.errors import UserError


def use_trackers(report_to: str | list[str], output_dir: Path) -> None:
    """Check that the trackers of `train.report_to` are installed; keep wandb offline unless the user says otherwise."""
    names = [report_to] if isinstance(report_to, str) else report_to
    for name in names:
        if name in ("wandb", "tensorboard", "trackio") and importlib.util.find_spec(name) is None:
            raise UserError(f"train.report_to is {name}, which is not installed: pip install {name}")
    if "wandb" in names:
        settings = {"MODE": "offline", "SILENT": "true", "ERROR_REPORTING": "false", "DIR": str(output_dir)}
        for key, value in settings.items():
            os.environ.setdefault(f"WANDB_{key}", value)
