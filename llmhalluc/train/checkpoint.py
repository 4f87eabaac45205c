"""Which checkpoint a run resumes: the newest one that every process wrote to its end."""

import json
import logging
import zipfile
from pathlib import Path

from llmhalluc.extras.errors import UserError
from llmhalluc.train.trainer import STATE, progress_file

logger = logging.getLogger(__name__)


def newest_checkpoint(output_dir: Path, processes: int) -> Path | None:
    """The complete checkpoint-N of the largest N, or None; one cut off by a kill is skipped with a warning.

    Raises UserError when another number of processes saved it: they would draw the data in another order.
    """
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for folder in sorted(folders, key=step_of, reverse=True):
        if fault := _fault(folder):
            logger.warning("%s is skipped: %s", folder, fault)
            continue
        saved_by = len(_progress_files(folder))
        if saved_by != processes:
            raise UserError(f"{folder} was saved by {saved_by} process(es), this run has {processes}: start {saved_by}")
        return folder
    return None


def step_of(folder: Path) -> int:
    """N of checkpoint-N."""
    return int(folder.name.split("-")[1])


def _fault(folder: Path) -> str | None:
    """Return why no run can resume `folder` exactly, or None."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return f"{STATE} is missing or cut off"
    if state["global_step"] != step_of(folder):
        return f"{STATE} is of step {state['global_step']}"
    for what, pattern in (("weights are", "*model*"), ("optimizer's state is", "optimizer*")):
        if not [*folder.glob(pattern), *folder.glob("global_step*")]:  # DeepSpeed has both in the latter
            return f"the {what} missing"
    processes = len(_progress_files(folder))
    if not processes:
        return f"{progress_file(folder, 0).name} is missing"
    names = {"rng_state.pth"} if processes == 1 else {f"rng_state_{rank}.pth" for rank in range(processes)}
    for name in sorted(names | {path.name for path in folder.glob("*.pt")}):
        if not zipfile.is_zipfile(folder / name):  # what torch.save writes; its directory comes last
            return f"{name} is missing or cut off"
    return None


def _progress_files(folder: Path) -> list[Path]:
    return list(folder.glob("progress_*.json"))
