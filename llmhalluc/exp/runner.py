"""Run an experiment: each cell trains and is evaluated in processes of its own, a few cells at a time.

Folder exp.output_dir: cells/<name>/ with log.txt and what steps.py lists, then results.json, results.csv, accuracy.png,
loss.png and report.html. A cell waits for the model of the cell it starts from. Finished cells are kept; one that was
cut off goes on.
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
from llmhalluc.exp.grid import Cell, cells
from llmhalluc.exp.steps import finished, steps, trained, write_configs
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import environment, open_run
from llmhalluc.hparams import parser
from llmhalluc.hparams.exp_args import ExpArguments

# Keys of exp that may change between two runs on one folder: cells can be added, and the tables drawn anew.
FREE = ("arms", "grid", "baseline", "name", "bootstrap", "samples_in_report")
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
        write_configs(todo, folders)
        try:
            with _sigterm_interrupts():
                failed = _run_cells(todo, folders, exp)
        except KeyboardInterrupt:
            but = " without exp.overwrite=true" if exp.overwrite else ""
            print(f"stopped: run the same command again{but} to go on, finished cells are kept", flush=True)
            return 130
        return _tell(raw, todo, folders, failed, exp, folder, reference)


def _tell(
    raw: dict, todo: list[Cell], folders: dict[str, Path], failed: dict[str, str], exp: ExpArguments, folder: Path,
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
            "failed": list(failed),
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
    for name, where in failed.items():
        print(f"failed: {name}, {where}")
    return 1 if failed else 0


def _run_cells(todo: list[Cell], folders: dict[str, Path], exp: ExpArguments) -> dict[str, str]:
    """Run what is not finished, `exp.parallel` cells at a time; of the cells that failed, where to read why."""
    begun = time.monotonic()
    running: list[Job] = []
    failed: dict[str, str] = {}
    waiting = [cell for cell in todo if not finished(folders[cell.name])]
    kept = len(todo) - len(waiting)
    screen = Screen()
    screen.say(f"{len(todo)} cells, {kept} of them finished before; {exp.parallel} at a time")
    try:
        while waiting or running:
            for cell in _startable(waiting, folders, exp.parallel - len(running)):
                waiting.remove(cell)
                slot = min(set(range(exp.parallel)) - {job.slot for job in running})
                running.append(Job(cell, slot, steps(cell, folders, exp), time.monotonic()))
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
                    screen.say(f"{_clock(begun)}  {job.step:7} {name}")
                    continue
                running.remove(job)
                if why:
                    failed[name] = f"see {folders[name] / 'log.txt'}"
                    screen.say(f"{_clock(begun)}  FAILED {name} ({job.step}: {why})")
                    screen.say(_tail(folders[name] / "log.txt"))
                else:
                    screen.say(f"{_clock(begun)}  done   {name} in {_clock(job.started)}")
            for cell in [cell for cell in waiting if cell.line and _lost(cell.line[0], folders, failed)]:
                waiting.remove(cell)
                failed[cell.name] = f"not run: cell {cell.line[0]} failed"
                screen.say(f"{_clock(begun)}  FAILED {cell.name} ({failed[cell.name]})")
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


def _startable(waiting: list[Cell], folders: dict[str, Path], count: int) -> list[Cell]:
    """The first `count` waiting cells whose start has its model, be it still evaluated or not."""
    return [cell for cell in waiting if not cell.line or trained(folders[cell.line[0]])][:count]


def _lost(name: str, folders: dict[str, Path], failed: dict[str, str]) -> bool:
    """Whether a cell failed before it had a model that others can start from."""
    return name in failed and not trained(folders[name])


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
