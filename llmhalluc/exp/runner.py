"""Run an experiment: each cell trains and is evaluated in processes of its own, a few cells at a time.

Folder exp.output_dir: cells/<name>/{config.yaml, eval.yaml, train/, eval/, log.txt}, then results.json,
results.csv, accuracy.png, loss.png and report.html. Finished cells are kept; one that was cut off goes on.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhalluc.exp import results as tables
from llmhalluc.exp.grid import Cell, cells, flat
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import environment, open_run
from llmhalluc.hparams import parser
from llmhalluc.hparams.exp_args import ExpArguments
from llmhalluc.train.base import final_model

# What the interpreter of a step is called with; the path of the cell's YAML follows.
COMMANDS = {
    "train": ["-m", "llmhalluc.run_train", "--config"],
    "eval": ["-m", "llmhalluc.run_eval", "--config"],
}
# Keys of exp that may change between two runs on one folder: cells can be added, and the tables drawn anew.
FREE = ("arms", "grid", "baseline", "name", "bootstrap", "samples_in_report")
# Where a trained model is loaded from is the cell's business; how, is the config's.
LOADING = ("dtype", "attn_implementation", "device", "trust_remote_code")
TAIL = 15  # lines of a failed cell's log that are shown
BEAT = 60  # seconds between status lines where there is no terminal


@dataclass
class Job:
    """A cell that is running: the step it is at, and that step's process."""

    cell: Cell
    slot: int
    steps: Iterator[tuple[str, list[str]]]
    started: float
    step: str = ""
    process: subprocess.Popen | None = None


def run(raw: dict[str, Any]) -> int:
    """Run what is not finished, write tables and report: 0, 1 with failed cells, 130 when stopped.

    Raises UserError for a wrong config of any cell before the first one starts, and for another run's folder.
    """
    todo, exp = cells(raw), parser.build({"exp": raw.get("exp") or {}}).exp
    reference = _read_reference(exp.reference)
    if exp.python and not shutil.which(exp.python):
        raise UserError(f"exp.python is {exp.python}, which is no program: name a Python interpreter")
    record = parser.resolved(parser.build(raw))
    record["exp"] = {key: value for key, value in record["exp"].items() if key not in FREE}
    with open_run(exp.output_dir, record, exp.overwrite, resume=True) as folder:
        folders = {cell.name: folder / "cells" / cell.name for cell in todo}
        _write_configs(todo, folders)
        try:
            with _sigterm_interrupts():
                failed = _run_cells(todo, folders, exp)
        except KeyboardInterrupt:
            but = " without exp.overwrite=true" if exp.overwrite else ""
            print(f"stopped: run the same command again{but} to go on, finished cells are kept", flush=True)
            return 130
        return _tell(raw, todo, folders, failed, exp, folder, reference)


def finished(folder: Path) -> bool:
    """Whether a cell has been trained and evaluated."""
    return (folder / "eval" / "results.json").exists()


def _tell(
    raw: dict, todo: list[Cell], folders: dict[str, Path], failed: list[str], exp: ExpArguments, folder: Path,
    reference: dict | None,
) -> int:  # fmt: skip
    """Write and print what the finished cells show."""
    from llmhalluc.exp import pictures, report  # matplotlib takes a second

    done = [cell for cell in todo if cell.name not in failed]
    if done:
        baseline = tables.baseline_of(todo, exp)
        made = [sheet for cell in done for sheet in tables.sheets(cell, folders[cell.name])]
        results = {
            "name": exp.name,
            "baseline": tables.label(*baseline(todo[0])),
            "failed": failed,
            "rows": tables.rows(made, baseline, exp.bootstrap),
            "config": raw,
            "environment": environment(),
        }
        tables.write(results, folder)
        print(f"\n{tables.table(results)}\n")
        if reference:
            print(f"For comparison, {exp.reference}:\n{tables.table(reference)}\n")
        drawn = pictures.draw(results, {cell.name: folders[cell.name] for cell in done}, folder)
        report.write(results, done, folders, drawn, exp, reference, folder)
        print(f"written to {folder}: results.json, results.csv, report.html")
    for name in failed:
        print(f"failed: {name}, see {folders[name] / 'log.txt'}")
    return 1 if failed else 0


def _write_configs(todo: list[Cell], folders: dict[str, Path]) -> None:
    """Write each cell's YAML for training; UserError where one of that name was begun with another config."""
    wrong, made = [], {}
    for cell in todo:
        path = folders[cell.name] / "config.yaml"
        output = {"output_dir": str(folders[cell.name] / "train"), "resume": True, "overwrite": False}
        made[path] = cell.raw | {"train": (cell.raw.get("train") or {}) | output}
        now = dict(flat(made[path]))
        before = dict(flat(parser.load_raw(path))) if path.exists() else now
        keys = [key for key in sorted(before | now) if before.get(key, ...) != now.get(key, ...)]
        if set(keys) - {"train.output_dir"}:  # a folder may have been moved
            wrong.append(
                f"{path.parent} was begun with other values of {', '.join(keys)}: "
                "choose another exp.output_dir or set exp.overwrite=true"
            )
    if wrong:
        raise UserError(*wrong)
    for path, config in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_yaml(path, config)


def _write_eval_config(cell: Cell, folder: Path) -> None:
    """Write the cell's YAML for the evaluation of what it trained."""
    model = {key: value for key, value in (cell.raw.get("model") or {}).items() if key in LOADING}
    model["name_or_path"] = str(final_model(folder / "train"))
    output = {"output_dir": str(folder / "eval"), "overwrite": False}
    sections = {key: value for key, value in cell.raw.items() if key != "train"}
    _write_yaml(folder / "eval.yaml", sections | {"model": model, "eval": (cell.raw.get("eval") or {}) | output})


def _write_yaml(path: Path, config: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(parser.to_yaml(config), encoding="utf-8")
    os.replace(temporary, path)


def _steps(cell: Cell, folder: Path, exp: ExpArguments) -> Iterator[tuple[str, list[str]]]:
    """Name and command of what is left to do for a cell; the next is asked for when the last one succeeded.

    Raises UserError when a step left nothing behind.
    """
    if not (folder / "train" / "train.json").exists():
        yield "train", [sys.executable, *COMMANDS["train"], str(folder / "config.yaml")]
    _write_eval_config(cell, folder)
    yield "eval", [exp.python or sys.executable, *COMMANDS["eval"], str(folder / "eval.yaml")]
    if not finished(folder):
        raise UserError(f"the evaluation left no results.json in {folder / 'eval'}")


def _run_cells(todo: list[Cell], folders: dict[str, Path], exp: ExpArguments) -> list[str]:
    """Run what is not finished, `exp.parallel` cells at a time; names of the cells that failed."""
    begun, running, failed = time.monotonic(), [], []
    waiting = [cell for cell in todo if not finished(folders[cell.name])]
    kept = len(todo) - len(waiting)
    screen = Screen()
    screen.say(f"{len(todo)} cells, {kept} of them finished before; {exp.parallel} at a time")
    try:
        while waiting or running:
            while waiting and len(running) < exp.parallel:
                cell = waiting.pop(0)
                slot = min(set(range(exp.parallel)) - {job.slot for job in running})
                job = Job(cell, slot, _steps(cell, folders[cell.name], exp), time.monotonic())
                running.append(job)
            for job in list(running):
                name, code = job.cell.name, job.process.poll() if job.process else 0
                if code is None:
                    continue
                try:
                    step, why = (next(job.steps, None), "") if code == 0 else (None, f"exit code {code}")
                except UserError as error:
                    step, why = None, str(error)
                if step:
                    job.step, job.process = step[0], _start(step[1], folders[name], job.slot, exp.parallel)
                    screen.say(f"{_clock(begun)}  {job.step:6} {name}")
                    continue
                running.remove(job)
                if why:
                    failed.append(name)
                    screen.say(f"{_clock(begun)}  FAILED {name} ({job.step}: {why})")
                    screen.say(_tail(folders[name] / "log.txt"))
                else:
                    screen.say(f"{_clock(begun)}  done   {name} in {_clock(job.started)}")
            over = len(todo) - len(waiting) - len(running) - len(failed)
            now = ", ".join(f"{job.cell.name} ({job.step} {_clock(job.started)})" for job in running)
            screen.status(
                f"{_clock(begun)}  {over}/{len(todo)} done, {len(failed)} failed; running: {now or 'nothing'}"
            )
            time.sleep(0.1)
    finally:
        _stop([job.process for job in running if job.process])
        screen.status("")
    return failed


def _start(command: list[str], folder: Path, slot: int, parallel: int) -> subprocess.Popen:
    """Start a step in a session of its own (Ctrl-C is ours to pass on); its output goes to the cell's log."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // parallel)), "PYTHONUNBUFFERED": "1"}
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if gpus and parallel > 1:  # or every cell would spread over all of them
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot % len(gpus) :: parallel])
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )


def _stop(processes: list[subprocess.Popen], patience: float = 10) -> None:
    """End the process groups: SIGTERM, then SIGKILL for what is still there."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, number)
        deadline = time.monotonic() + patience
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)


def _tail(log: Path) -> str:
    """The last lines of a log, indented; of a progress bar only its last state."""
    lines = log.read_bytes().decode(errors="replace").rstrip().split("\n")[-TAIL:]
    return "\n".join("    " + line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def _read_reference(name: str | None) -> dict[str, Any] | None:
    """The results.json to compare with, looked for here and in the repository."""
    if name is None:
        return None
    for path in (Path(name).expanduser(), REPOSITORY / name):
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    raise UserError(f"exp.reference is {name}, which does not exist: name a results.json or set exp.reference=null")


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """A SIGTERM (a cluster's way to stop a job) ends the cells as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _clock(since: float) -> str:
    seconds = int(time.monotonic() - since)
    return f"{seconds // 60:02}:{seconds % 60:02}"


class Screen:
    """Lines that stay, and below them a status line; without a terminal one every BEAT seconds."""

    def __init__(self):
        self.live, self.last, self.told = sys.stdout.isatty(), "", time.monotonic()

    def say(self, text: str) -> None:
        """Print lines that stay."""
        print(("\r\033[K" if self.live else "") + text, flush=True)
        self.last = ""

    def status(self, text: str) -> None:
        """Replace the status line; an empty text removes it."""
        if self.live and text != self.last:
            width = shutil.get_terminal_size().columns
            print("\r\033[K" + text[: width - 1], end="", flush=True)
            self.last = text
        elif text and not self.live and time.monotonic() - self.told > BEAT:
            print(text, flush=True)
            self.told = time.monotonic()
