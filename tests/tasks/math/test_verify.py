"""Answers that are no plain numbers: a process that is used again, killed at its limit, and whose failure is told."""

import contextlib
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmhalluc.extras.errors import UserError
from llmhalluc.tasks.math.task import Math
from llmhalluc.tasks.math.verify import Verifier


def right(text, answer, verifier):
    return Math(verifier).check(text, {"question": "q", "answer": answer}, limit=30).right


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier()
    yield verifier
    verifier.close()


def test_answers_are_compared_as_mathematics(verifier):
    half = "\\boxed{\\frac{1}{2}}"
    assert right("so \\boxed{\\frac12}", half, verifier)
    assert right("#### 1/2", half, verifier)
    assert not right("#### 2", half, verifier)
    assert not right("\\boxed{nonsense}", half, verifier)
    assert right("The answer is 1 + x.", "x+1", verifier)
    process = verifier._process
    assert right("#### \\sqrt{9}", "3", verifier)
    assert verifier._process is process, "one process for all"
    assert not verifier.verify("1", "1" * 5000, 30)
    with pytest.raises(ValueError, match="cannot be read"):
        verifier.verify("", "1", 30)
    assert verifier.verify("1", "2/2", 30), "it goes on after that"


def test_plain_numbers_start_no_process():
    verifier = Verifier(command=(sys.executable, "-c", "raise SystemExit(3)"))
    assert right("#### 54", "so\n#### 54", verifier)
    assert not right("nobody knows; the answer is hidden", "#### 54", verifier)


def test_the_limit_ends_an_answer_and_not_the_run():
    slow = "import sys, time; print('{}', flush=True)\nfor line in sys.stdin:\n"
    slow += "    time.sleep(99 if 'slow' in line else 0); print('{\"same\": true}', flush=True)"
    verifier = Verifier(command=(sys.executable, "-c", slow))
    assert verifier.verify("1", "1", 2)
    start = time.monotonic()
    assert verifier.verify("1", "slow", 0.2) is None
    assert time.monotonic() - start < 30
    assert verifier.verify("1", "1", 30), "another process has taken its place"
    verifier.close()


def test_an_endless_computation_is_killed(verifier):
    assert verifier.verify("3", "3", 30)
    record = {"question": "q", "answer": "3"}
    hostile = "\\sqrt{9^{9^{9^{9^9}}}}"
    assert Math(verifier).check(f"\\boxed{{{hostile}}}", record, 1) == (False, hostile, False, True)
    start = time.monotonic()
    assert verifier.verify("3", hostile, 30) is None and time.monotonic() - start < 1, "it is not asked again"
    assert Math(verifier).check("\\boxed{9^{9^{9^{9^9}}}}", record, 1).timed_out is False  # too large a number


def test_the_verifier_works_with_many_files_threads_and_forks(verifier):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limit[1]), limit[1]))
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(open(os.devnull))
        fresh = Verifier()
        assert fresh.verify("18", "\\frac{36}{2}", 30)
        with ThreadPoolExecutor(8) as pool:
            answers = [f"\\frac{{{n}}}{{2}}" for n in range(40)]
            found = list(pool.map(lambda answer: fresh.verify("18", answer, 30), answers))
        assert found == [n == 36 for n in range(40)]
        child = os.fork()
        if not child:
            os._exit(0 if fresh.verify("5", "\\sqrt{25}", 60) and fresh.verify("18", "\\frac{36}{2}", 60) else 1)
        assert fresh.verify("7", "\\sqrt{49}", 60), "the parent's process is the parent's"
        assert os.waitpid(child, 0)[1] == 0
        fresh.close()


def test_a_killed_trainer_leaves_no_process_behind():
    program = (
        "from llmhalluc.tasks.math.verify import Verifier; v = Verifier(); print(v.verify('3', '3', 60), flush=True);"
        "print(v._process.pid, flush=True); v.verify('3', r'\\sqrt{9^{9^{9^{9^9}}}}', 2)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout.readline() == "True\n"
    pid = int(trainer.stdout.readline())
    time.sleep(0.5)
    trainer.kill()
    trainer.wait()
    end = time.monotonic() + 20
    while time.monotonic() < end and _runs(pid):
        time.sleep(0.2)
    assert not _runs(pid)


def _runs(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_missing_math_verify_is_said_at_the_start(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install math-verify"):
        Verifier().verify("1", "1")


@pytest.mark.parametrize(
    "program",
    ["import sys; sys.exit('no such module')",
     "import sys; print('{}', flush=True); input(); sys.exit('no such module')"],
)  # fmt: skip
def test_trap7_a_verifier_that_crashes_stops_the_run(program):
    verifier = Verifier(command=(sys.executable, "-c", program))
    with pytest.raises(RuntimeError, match="ended with code 1: no such module"):
        verifier.verify("1", "1", 30)
