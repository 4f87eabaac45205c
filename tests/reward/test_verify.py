"""Answers that are no plain numbers: a process that is used again, killed at its limit, and whose failure is told."""

import sys
import time

import pytest

from llmhalluc.reward.bt import Task, outcome_accuracy
from llmhalluc.reward.verify import Verifier


@pytest.fixture(scope="module")
def verifier():
    verifier = Verifier(limit=30)
    yield verifier
    verifier.close()


def test_answers_are_compared_as_mathematics(verifier):
    half = Task("math", "q", "\\boxed{\\frac{1}{2}}")
    assert outcome_accuracy("so \\boxed{\\frac12}", half, verifier) == 1
    assert outcome_accuracy("#### 1/2", half, verifier) == 1
    assert outcome_accuracy("#### 2", half, verifier) == 0
    assert outcome_accuracy("\\boxed{nonsense}", half, verifier) == 0
    process = verifier._process
    assert outcome_accuracy("The answer is 1 + x.", Task("math", "q", "x+1"), verifier) == 1
    assert outcome_accuracy("#### \\sqrt{9}", Task("math", "q", "3"), verifier) == 1
    assert verifier._process is process, "one process for all"
    assert not verifier.verify("1", "1" * 5000)
    with pytest.raises(ValueError, match="cannot be read"):
        verifier.verify("", "1")
    assert verifier.verify("1", "2/2"), "it goes on after that"


def test_plain_numbers_start_no_process():
    verifier = Verifier(command=(sys.executable, "-c", "raise SystemExit(3)"))
    assert outcome_accuracy("#### 54", Task("math", "q", "so\n#### 54"), verifier) == 1
    assert outcome_accuracy("nobody knows; the answer is hidden", Task("math", "q", "#### 54"), verifier) == 0


def test_the_limit_ends_an_answer_and_not_the_run():
    slow = "import sys, time; print('{}', flush=True)\nfor line in sys.stdin:\n"
    slow += "    time.sleep(99 if 'slow' in line else 0); print('{\"same\": true}', flush=True)"
    verifier = Verifier(limit=2, command=(sys.executable, "-c", slow))
    assert verifier.verify("1", "1")
    verifier.limit = 0.2
    start = time.monotonic()
    assert not verifier.verify("1", "slow")
    assert time.monotonic() - start < 30 and verifier.timeouts == 1
    verifier.limit = 30
    assert verifier.verify("1", "1"), "another process has taken its place"
    verifier.close()


def test_an_endless_computation_is_killed(verifier):
    assert verifier.verify("3", "3")
    verifier.limit = 1
    assert not verifier.verify("3", "9^{9^{9^{9^9}}}")
    assert verifier.timeouts == 1
    verifier.limit = 30


@pytest.mark.parametrize(
    "program",
    ["import sys; sys.exit('no such module')",
     "import sys; print('{}', flush=True); input(); sys.exit('no such module')"],
)  # fmt: skip
def test_trap7_a_verifier_that_crashes_stops_the_run(program):
    verifier = Verifier(limit=30, command=(sys.executable, "-c", program))
    with pytest.raises(RuntimeError, match="ended with code 1: no such module"):
        verifier.verify("1", "1")
