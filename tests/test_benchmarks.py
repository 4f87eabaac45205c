"""Every benchmark starts: its imports and its arguments."""

import os
import subprocess
import sys

import pytest

from llmhalluc.extras.constant import REPOSITORY


@pytest.mark.parametrize("script", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_starts(script):
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run([sys.executable, str(script), "--help"], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
