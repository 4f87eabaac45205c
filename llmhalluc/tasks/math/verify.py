"""Answers that are no plain numbers, compared by math-verify in a process of its own with a time limit.

sympy may compute for ever, and its own alarm does not reach into C code: the process is killed instead. It is started
by the first comparison and used again: `python -m llmhalluc.tasks.math.verify`, with lines of JSON in and out.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
import time

_LONGEST = 1000  # characters of an answer; a longer one is not verified


class Verifier:
    """Whether two answers are the same; start: seconds until the process is ready."""

    def __init__(self, start: float = 120.0, command: tuple[str, ...] = ()):
        self.start = start
        self.command = command or (sys.executable, "-m", "llmhalluc.tasks.math.verify")
        self._process: subprocess.Popen | None = None
        atexit.register(self.close)

    def verify(self, gold: str, answer: str, limit: float = 5.0) -> bool | None:
        """Return whether `answer` equals `gold`; None when `limit` seconds pass, which kills the process.

        Raises ValueError for a gold answer that cannot be read, RuntimeError where the process fails.
        """
        if len(answer) > _LONGEST:
            return False
        if self._process is None:
            # A pipe that nobody reads would fill up and hold the process.
            self._said = tempfile.TemporaryFile()  # noqa: SIM115
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
            )
            if self._read(self.start) is None:
                self.close()
                raise RuntimeError(f"the verifier was not ready after {self.start:g} s")
        try:
            self._process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()
        reply = self._read(limit)
        if reply is None:
            self.close()
            return None
        if "error" in reply:
            raise ValueError(f"the problem's answer {gold!r} cannot be read: {reply['error']}")
        return reply["same"]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _read(self, limit: float) -> dict | None:
        """The next line of the process; None when `limit` seconds pass. Raises RuntimeError when it has ended."""
        end, line = time.monotonic() + limit, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                self._fail()
            line += part
        return json.loads(line)

    def _fail(self) -> None:
        process, self._process = self._process, None
        process.kill()
        process.communicate()
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace").strip()[-500:]
        raise RuntimeError(f"the verifier ended with code {process.returncode}: {said}")


def serve() -> None:
    """Answer each line `[gold, answer]` with `{"same": bool}`, or `{"error": …}` for a gold without a meaning."""
    import logging

    logging.disable(logging.WARNING)  # that the time limit is off
    from math_verify import parse, verify

    def read(text: str) -> list:
        return parse(text if "$" in text or "\\boxed" in text else f"${text}$", parsing_timeout=None)

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        if not (wanted := read(gold)):
            print(json.dumps({"error": "math-verify finds no mathematics in it"}), flush=True)
            continue
        same = verify(wanted, read(answer), timeout_seconds=None)
        print(json.dumps({"same": bool(same)}), flush=True)


if __name__ == "__main__":
    serve()
