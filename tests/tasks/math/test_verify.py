"""Answers that are no plain numbers: a process that is used again, killed at its limit, and whose failure is told."""

import sys
import time

import pytest

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
    process = verifier._process
    assert right("The answer is 1 + x.", "x+1", verifier)
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
    assert Math(verifier).check("\\boxed{9^{9^{9^{9^9}}}}", record, 1) == (False, "9^{9^{9^{9^9}}}", True)


@pytest.mark.parametrize(
    "program",
    ["import sys; sys.exit('no such module')",
     "import sys; print('{}', flush=True); input(); sys.exit('no such module')"],
)  # fmt: skip
def test_trap7_a_verifier_that_crashes_stops_the_run(program):
    verifier = Verifier(command=(sys.executable, "-c", program))
    with pytest.raises(RuntimeError, match="ended with code 1: no such module"):
        verifier.verify("1", "1", 30)
