"""A run's folder: locked while it is written, labelled with what made it, never shared by two runs."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError

RECORD, LOCK = "run.json", ".lock"
# Keys that change where, how fast or how talkatively a run goes, and nothing of its result.
NOT_IDENTITY = {
    *("train.resume", "train.overwrite", "train.output_dir", "eval.overwrite", "eval.output_dir"),
    *("train.report_to", "train.run_name", "train.disable_tqdm", "train.dataloader_num_workers"),
    *("exp.overwrite", "exp.output_dir", "exp.parallel", "exp.python", "exp.reference"),
    *("selfgen.overwrite", "selfgen.output_dir", "selfgen.batch_size"),
    *("data.num_proc", "eval.batch_size"),
}  # fmt: skip
_PACKAGES = ("llmhalluc", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers",
             "lm_eval", "omegaconf", "numpy")  # fmt: skip
_locks: set[int] = set()


@contextlib.contextmanager
def open_run(
    folder: str | Path, record: dict[str, Any], overwrite: bool = False, resume: bool = False
) -> Iterator[Path]:
    """Create and lock `folder` for the run whose resolved config is `record`; write run.json; yield the path.

    A folder that holds the same run goes on with `resume`; one that holds nothing but run.json is anybody's.
    `overwrite` deletes what an earlier run left. Of several processes (RANK) only the first locks and writes.
    Raises UserError when the folder is in use, holds another run, or holds files that are no run's.
    """
    folder = Path(folder).expanduser()
    if not is_main_process():
        yield folder
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {folder} is a file: choose another output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        record = json.loads(json.dumps(record))  # as it will be read back: tuples are lists, keys are strings
        _claim(folder, record, overwrite, resume)
        write_json(folder / RECORD, {"config": record, "environment": environment()})
        yield folder


def write_json(path: str | Path, obj: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(obj, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def environment() -> dict[str, Any]:
    """What ran, where and on what: git commit, versions, command, platform, cores, UTC time."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def is_main_process() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0


def _claim(folder: Path, record: dict, overwrite: bool, resume: bool) -> None:
    """Empty the folder or leave it, as the flags say; raise UserError when neither is allowed."""
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if not present - {RECORD}:  # nothing came of it: a mistake that was told after the folder was made
        return
    if RECORD not in present:
        raise UserError(f"output_dir {folder} holds files that no run of ours wrote: choose another output_dir")
    if overwrite:
        # run.json goes last: until then an interrupted deletion is still recognised as a run's folder.
        for name in sorted(present, key=lambda name: name == RECORD):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return
    there, here = (_identity(config) for config in (json.loads((folder / RECORD).read_text())["config"], record))
    differing = [
        f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, ...) != here.get(key, ...)
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"output_dir {folder} holds another run ({'; '.join(differing[:5])}{more}): "
            "choose another output_dir or set overwrite=true"
        )
    if not resume:
        raise UserError(
            f"output_dir {folder} holds this very run already: set resume=true to go on, overwrite=true to "
            "start over, or choose another output_dir"
        )


def _identity(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config as dotted keys and plain values, without the keys that do not change a result."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + key
        if isinstance(value, dict) and value:
            flat |= _identity(value, name + ".")
        elif name not in NOT_IDENTITY:
            flat[name] = value
    return flat


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold an exclusive flock on folder/.lock; the kernel drops it however this process dies."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"output_dir {folder} is in use by another run: wait for it or choose another output_dir"
            ) from None
        _locks.add(descriptor)
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


def _forget_locks() -> None:
    """In a forked child: close its copies, or an orphaned data worker would hold the lock of a killed run."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)


def _git(*arguments: str) -> str | None:
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        return None
    return subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
