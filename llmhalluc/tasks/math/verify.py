"""Answers that are no plain numbers, compared by math-verify in a process of its own with a time limit.

sympy may compute for ever, and its own alarm does not reach into C code: the process is killed instead. It is started
by the first comparison and used again: `python -m llmhalluc.tasks.math.verify`, with lines of JSON in and out.
"""

import atexit
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time

from llmhalluc.extras.errors import UserError

_LONGEST = 1000  # characters of an answer; a longer one is not verified
_REMEMBERED = 10_000  # comparisons whose result is kept


class Verifier:
    """Whether two answers are the same; start: seconds until the process is ready.

    Threads take turns; a forked child starts a process of its own.
    """

    def __init__(self, start: float = 120.0, command: tuple[str, ...] = ()):
        self.start = start
        self.command = command or (sys.executable, "-m", "llmhalluc.tasks.math.verify")
        self._process: subprocess.Popen | None = None
        self._owner, self._number = os.getpid(), 0
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], bool | None] = {}
        atexit.register(self.close)

    def verify(self, gold: str, answer: str, limit: float = 5.0) -> bool | None:
        """Return whether `answer` equals `gold`; None when `limit` seconds pass, which kills the process.

        A comparison is made once: its result is kept, that it took too long among them. Raises ValueError for a gold
        answer that cannot be read, UserError where math-verify is not installed, RuntimeError where the process fails.
        """
        if len(answer) > _LONGEST:
            return False
        if os.getpid() != self._owner:  # the parent's pipes are the parent's
            self._process, self._owner, self._lock = None, os.getpid(), threading.Lock()
        with self._lock:
            if (gold, answer) not in self._known:
                if limit <= 0:
                    return None
                same = self._ask(gold, answer, limit)
                while len(self._known) >= _REMEMBERED:
                    del self._known[next(iter(self._known))]
                self._known[gold, answer] = same
            return self._known[gold, answer]

    def close(self) -> None:
        """End the process, if there is one of this process's own."""
        if self._process is not None and os.getpid() == self._owner:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _ask(self, gold: str, answer: str, limit: float) -> bool | None:
        if self._process is None:
            self._begin()
        self._number += 1
        question = {"number": self._number, "gold": gold, "answer": answer, "limit": limit}
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        end = time.monotonic() + limit
        reply = self._read(end)
        while reply is not None and reply.get("number", self._number) != self._number:
            reply = self._read(end)
        if reply is None:
            self.close()
            return None
        if "error" in reply:
            raise ValueError(f"the problem's answer {gold!r} cannot be read: {reply['error']}")
        return reply["same"]

    def _begin(self) -> None:
        require_math_verify()
        # A pipe that nobody reads would fill up and hold the process.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said)
        if self._read(time.monotonic() + self.start) is None:
            self.close()
            raise RuntimeError(f"the verifier was not ready after {self.start:g} s")

    def _read(self, end: float) -> dict | None:
        """The next line of the process; None at the time `end`. Raises RuntimeError when the process has ended."""
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    return None
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    if time.monotonic() >= end:  # its own alarm was a little earlier
                        return None
                    self._fail()
                line += part
        return json.loads(line.splitlines()[-1])

    def _fail(self) -> None:
        process, self._process = self._process, None
        process.kill()
        process.communicate()
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace").strip()[-500:]
        raise RuntimeError(f"the verifier ended with code {process.returncode}: {said}")


def require_math_verify() -> None:
    """Raise UserError where math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "math-verify, which compares answers that are no numbers, is not installed: pip install math-verify"
        )


def serve() -> None:
    """Reply to each line `{"number", "gold", "answer", "limit"}` with `{"number", "same"}`, or `error` for the gold.

    An alarm that no handler catches ends the process soon after the limit, also when the one that asked was killed.
    """
    import logging

    logging.disable(logging.WARNING)  # that the time limit is off
    from math_verify import parse, verify

    def read(text: str) -> list:
        return parse(text if "$" in text or "\\boxed" in text else f"${text}$", parsing_timeout=None)

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, question["limit"] + 1)
        reply = {"number": question["number"]}
        if wanted := read(question["gold"]):
            reply["same"] = bool(verify(wanted, read(question["answer"]), timeout_seconds=None))
        else:
            reply["error"] = "math-verify finds no mathematics in it"
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    serve()
