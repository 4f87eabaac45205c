"""Run an experiment: each cell trains and is evaluated in processes of its own, a few cells at a time.

Folder exp.output_dir: cells/<name>/ with log.txt and what commands.py lists, then results.json, results.csv,
accuracy.png, loss.png and report.html. A cell waits for the model of the cell it starts from. Finished cells are kept;
one that was cut off is resumed.
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

from llmhalluc.exp import budgets
from llmhalluc.exp import results as tables
from llmhalluc.exp.commands import Command, commands, finished, trained, write_configs
from llmhalluc.exp.experiment import read_experiment
from llmhalluc.exp.grid import Cell, cells
from llmhalluc.exp.table import label, latex, markdown, table
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import cores, environment, open_run, write_text
from llmhalluc.hparams import parser
from llmhalluc.hparams.sections import ExpArguments

# Keys of exp that may change between two runs on one folder: cells can be added, and the tables drawn anew.
MAY_CHANGE = ("arms", "grid", "baseline", "name", "samples_in_report")
LOG_LINES = 15  # of a failed cell's log, shown
STATUS_SECONDS = 60  # between status lines where there is no terminal


def run(raw: dict[str, Any]) -> int:
    """Run what is not finished, write tables and report: 0, 1 with failed cells, 130 when stopped.

    Raises UserError for a wrong config of any cell before the first one starts, and for another run's folder.
    """
    experiment = read_experiment(raw)
    todo, exp = cells(experiment), experiment.exp
    reference = _read_reference(exp.reference)
    if exp.python and not shutil.which(exp.python):
        raise UserError(f"exp.python is {exp.python}, which is no program: name a Python interpreter")
    # Each cell is held to its own config (commands.py); what only an evaluation reads may change.
    record = parser.resolved(parser.build(raw))
    for section in ("eval", "gen"):
        del record[section]
    record["exp"] = {key: value for key, value in record["exp"].items() if key not in MAY_CHANGE}
    with open_run(exp.output_dir, record, exp.overwrite, resume=True, key=exp.key) as folder:
        folders = {cell.name: folder / "cells" / cell.name for cell in todo}
        for sentence in write_configs(todo, folders):
            print(sentence, flush=True)
        queue = Queue(todo, folders, exp)
        try:
            with _sigterm_interrupts():
                queue.run()
        except KeyboardInterrupt:
            but = " without exp.overwrite=true" if exp.overwrite else ""
            print(f"stopped: run the same command again{but} to resume, finished cells are kept", flush=True)
            return 130
        if done := [cell for cell in todo if cell.name not in queue.failed]:
            results = _results(raw, todo, folders, list(queue.failed), exp)
            _write(results, done, folders, exp, reference, folder)
        for name, where in queue.failed.items():
            print(f"failed: {name}, {where}")
        return 1 if queue.failed else 0


def _results(
    raw: dict[str, Any], todo: list[Cell], folders: dict[str, Path], failed: list[str], exp: ExpArguments
) -> dict[str, Any]:
    """What the finished cells show: results.json."""
    baseline = tables.baseline_of(todo, exp)
    sheets = [sheet for cell in todo if cell.name not in failed for sheet in tables.sheets(cell, folders[cell.name])]
    spent = budgets.rows(sheets, folders, baseline)
    return ({"budgets": spent} if spent else {}) | {
        "name": exp.name,
        "baseline": label(*baseline(todo[0])),
        "failed": failed,
        "rows": tables.rows(sheets, baseline),
        "pairs": tables.pairs(sheets),
        "config": raw,
        "environment": environment(),
    }


def _write(
    results: dict[str, Any], done: list[Cell], folders: dict[str, Path], exp: ExpArguments,
    reference: dict[str, Any] | None, folder: Path,
) -> None:  # fmt: skip
    """Write and print the tables; write the report."""
    from llmhalluc.exp import browse, pictures, report  # matplotlib takes a second

    tables.write(results, folder)
    write_text(folder / "results.md", markdown(results))
    write_text(folder / "results.tex", latex(results))
    print(f"\n{table(results)}\n")
    if "budgets" in results:
        write_text(folder / "budgets.txt", budgets.table(results["budgets"]) + "\n")
        print(f"{budgets.table(results['budgets'])}\n")
    if reference:
        print(f"For comparison, {exp.reference}:\n{table(reference)}\n")
    stages = {cell.name: cell.stage for cell in done}
    drawn = pictures.draw(results, {name: folders[name] for name in stages}, stages, folder)
    report.write(results, done, folders, drawn, exp, reference, folder)
    browse.write(results, done, folders, tables.baseline_of(done, exp), folder)
    print(f"written to {folder}: results.json, .csv, .md and .tex, report.html")


@dataclass
class Running:
    """A cell that is running: its share of the machine, and the process of the command it is at."""

    cell: Cell
    slot: int
    commands: Iterator[Command]
    started: float
    section: str = ""
    process: subprocess.Popen | None = None


class Queue:
    """The cells that are not finished, `exp.parallel` of them at a time; `failed`: why each failed cell did."""

    def __init__(self, todo: list[Cell], folders: dict[str, Path], exp: ExpArguments):
        self.folders, self.exp, self.screen, self.begun = folders, exp, Screen(), time.monotonic()
        self.count, self.failed = len(todo), dict[str, str]()
        self.waiting = [cell for cell in todo if not finished(folders[cell.name])]
        self.running: list[Running] = []

    def run(self) -> None:
        """Run until no cell is left; whatever ends it, no process is left behind."""
        kept = self.count - len(self.waiting)
        self.screen.say(f"{self.count} cells, {kept} of them finished before; {self.exp.parallel} at a time")
        try:
            while self.waiting or self.running:
                self._begin_cells()
                for job in list(self.running):
                    if job.process is None or job.process.poll() is not None:
                        self._next_command(job)
                self._drop_followers()
                self._show_status()
                time.sleep(0.1)
        finally:
            _stop([job.process for job in self.running if job.process])
            self.screen.status("")

    def _begin_cells(self) -> None:
        """Begin the first waiting cells whose start has its model, be it still evaluated or not."""
        ready = [cell for cell in self.waiting if not cell.line or trained(self.folders[cell.line[0]])]
        for cell in ready[: self.exp.parallel - len(self.running)]:
            self.waiting.remove(cell)
            slot = min(set(range(self.exp.parallel)) - {job.slot for job in self.running})
            job = Running(cell, slot, commands(cell, self.folders, self.exp), time.monotonic())
            self.running.append(job)

    def _next_command(self, job: Running) -> None:
        """Start what comes after the command that has ended; without any, or after a failure, the cell is over."""
        name, folder, why = job.cell.name, self.folders[job.cell.name], ""
        if job.process is not None and (code := job.process.poll()) != 0:
            why = f"exit code {code}"
        else:
            try:
                command = next(job.commands, None)
            except UserError as error:
                why = str(error)
            else:
                if command is not None:
                    job.section, words = command
                    job.process = _start(words, folder, job.slot, self.exp.parallel)
                    self._say(f"{job.section:7} {name}")
                    return
        self.running.remove(job)
        if not why:
            self._say(f"done   {name} in {_clock(job.started)}")
            return
        self.failed[name] = f"see {folder / 'log.txt'}"
        self._say(f"FAILED {name} ({job.section}: {why})")
        self.screen.say(_tail(folder / "log.txt"))

    def _drop_followers(self) -> None:
        """Fail the cells that wait for the model of one that failed before it had any."""
        for cell in list(self.waiting):
            if cell.line and (start := cell.line[0]) in self.failed and not trained(self.folders[start]):
                self.waiting.remove(cell)
                self.failed[cell.name] = f"not run: cell {start} failed"
                self._say(f"FAILED {cell.name} ({self.failed[cell.name]})")

    def _show_status(self) -> None:
        over = self.count - len(self.waiting) - len(self.running) - len(self.failed)
        now = ", ".join(f"{job.cell.name} ({job.section} {_clock(job.started)})" for job in self.running)
        counts = f"{over}/{self.count} done, {len(self.failed)} failed"
        self.screen.status(f"{_clock(self.begun)}  {counts}; running: {now or 'nothing'}")

    def _say(self, text: str) -> None:
        self.screen.say(f"{_clock(self.begun)}  {text}")


def _start(command: list[str], folder: Path, slot: int, parallel: int) -> subprocess.Popen:
    """Start a step in a session of its own (Ctrl-C is ours to pass on); its output goes to the cell's log."""
    env = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // parallel)), "PYTHONUNBUFFERED": "1"}
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if gpus and parallel > 1:  # or every cell would spread over all of them
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot % len(gpus) :: parallel])
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, start_new_session=True
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
    lines = log.read_bytes().decode(errors="replace").rstrip().split("\n")[-LOG_LINES:]
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
    """Lines that stay, and below them a status line; without a terminal one every STATUS_SECONDS."""

    def __init__(self):
        self.live, self.last, self.shown_at = sys.stdout.isatty(), "", time.monotonic()

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
        elif text and not self.live and time.monotonic() - self.shown_at > STATUS_SECONDS:
            print(text, flush=True)
            self.shown_at = time.monotonic()
