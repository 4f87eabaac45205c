"""A run's folder: locked while it is written, labelled with what made it, never shared by two runs."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.keys import flat

RECORD, LOCK = "run.json", ".lock"
# Keys that change where, how fast or how verbosely a run works, and nothing of its result.
NOT_IDENTITY = {
    *("train.resume", "train.overwrite", "train.output_dir", "eval.overwrite", "eval.output_dir"),
    *("train.report_to", "train.run_name", "train.disable_tqdm", "train.dataloader_num_workers"),
    *("exp.overwrite", "exp.output_dir", "exp.parallel", "exp.python", "exp.reference"),
    *("selfgen.overwrite", "selfgen.output_dir", "selfgen.batch_size"),
    *("data.num_proc", "eval.batch_size"),
}  # fmt: skip
_PACKAGES = ("llmhalluc", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers",
             "lm_eval", "omegaconf", "numpy")  # fmt: skip
_held: set[Path] = set()  # the locks of this process


@contextlib.contextmanager
def open_run(
    folder: str | Path, record: dict[str, Any], overwrite: bool = False, resume: bool = False,
    key: Callable[[str], str] = str,
) -> Iterator[Path]:  # fmt: skip
    """Create and lock `folder` for the run whose resolved config is `record`; write run.json; yield the path.

    A folder that holds the same run is resumed with `resume`; one that holds nothing but run.json is free.
    `overwrite` deletes what an earlier run left. Of several processes (RANK) only the first locks and writes.
    key: what the YAML calls output_dir, overwrite and resume (`Section.key`).
    Raises UserError when the folder is in use, holds another run, or holds files that are no run's.
    """
    folder = Path(folder).expanduser()
    if not is_main_process():
        yield folder
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{key('output_dir')} {folder} is a file: choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder, key):
        record = json.loads(json.dumps(record))  # as it will be read back: tuples are lists, keys are strings
        _claim(folder, record, overwrite, resume, key)
        write_json(folder / RECORD, {"config": record, "environment": environment()})
        yield folder


def write_json(path: str | Path, obj: Any) -> None:
    """Write JSON as `write_text` writes text."""
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def environment() -> dict[str, Any]:
    """What ran, where and on what: git commit, versions, command, platform, cores, UTC time."""
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: version for name, version in versions.items() if version},
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "platform": platform.platform(),
        "cores": cores(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_main_process() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0


def _claim(folder: Path, record: dict, overwrite: bool, resume: bool, key: Callable[[str], str]) -> None:
    """Empty the folder or leave it, as the flags say; raise UserError when neither is allowed."""
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if not present - {RECORD}:  # nothing came of it: a mistake that was reported after the folder was made
        return
    if RECORD not in present:
        raise UserError(f"{key('output_dir')} {folder} holds files that none of our runs wrote: choose another one")
    if overwrite:
        # run.json goes last: until then an interrupted deletion is still recognised as a run's folder.
        for name in sorted(present, key=lambda name: name == RECORD):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return
    earlier = json.loads((folder / RECORD).read_text())["config"]
    there, here = _identity(earlier), _identity(record)
    differing = [
        f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name, ...) != here.get(name, ...)
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"{key('output_dir')} {folder} holds another run ({'; '.join(differing[:5])}{more}): "
            f"choose another one or set {key('overwrite')}=true, which deletes what it holds"
        )
    if not resume:
        raise UserError(
            f"{key('output_dir')} {folder} holds this very run already: set {key('resume')}=true to resume it, "
            f"{key('overwrite')}=true to delete what it holds and start over, or choose another one"
        )


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """The config as dotted keys and plain values, without the keys that do not change a result."""
    return {name: value for name, value in flat(config) if name not in NOT_IDENTITY}


@contextlib.contextmanager
def _lock(folder: Path, key: Callable[[str], str]) -> Iterator[None]:
    """Hold a POSIX record lock on folder/.lock; the kernel drops it however this process dies.

    No forked child inherits it, so an orphaned data worker does not hold the lock of a killed run. Within a process it
    stops nobody, and closing any descriptor of the file drops it: hence `_held`.
    """
    path = (folder / LOCK).resolve()
    in_use = UserError(f"{key('output_dir')} {folder} is in use by another run: wait for it or choose another one")
    if path in _held:
        raise in_use
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise in_use from None
        _held.add(path)
        yield
    finally:
        _held.discard(path)
        os.close(descriptor)


def _git(*arguments: str) -> str | None:
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        return None
    return subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
