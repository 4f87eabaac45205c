"""`python -m tests.golden.forking …` is `python -m llmhalluc.run_exp …` that imports the libraries once.

A step of a cell is a `python -m …` of its own, and importing takes it longer than a test's few steps of training. Here
such a process is a fork of this one, which has the libraries already. Whatever else is started is started as ever.
"""

import os
import runpy
import subprocess
import sys
import traceback
from typing import Any, NoReturn

import lm_eval.evaluator
import lm_eval.tasks
import torch
import trl

LIBRARIES = (lm_eval.evaluator, lm_eval.tasks, torch, trl.SFTTrainer, trl.DPOTrainer, trl.GRPOTrainer)


class Popen(subprocess.Popen):
    """A process that is forked where the command is this interpreter and a module of ours."""

    def __init__(self, command: Any, **options: Any):
        self.forked = list(command[:2]) == [sys.executable, "-m"] and command[2].startswith("llmhalluc.")
        if not self.forked:
            super().__init__(command, **options)
            return
        self.args, self.returncode, self.stdin, self.stdout, self.stderr = command, None, None, None, None
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            become(command[2:], options["env"], options["stdout"].fileno())

    def poll(self) -> int | None:
        if self.forked and self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode if self.forked else super().poll()


def become(arguments: list[str], env: dict[str, str], log: int) -> NoReturn:
    """Run the module as `python -m` does, in a session of its own, and end this process as it ends."""
    code = 1
    try:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= env
        code = run_module(arguments)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_module(arguments: list[str]) -> int:
    """`python -m MODULE …`; its exit code."""
    sys.argv = list(arguments)
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


if __name__ == "__main__":
    subprocess.Popen = Popen  # type: ignore[misc]
    sys.exit(run_module(["llmhalluc.run_exp", *sys.argv[1:]]))
