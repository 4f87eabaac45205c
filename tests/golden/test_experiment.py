"""The results.json of a small chain of stages is what it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.golden import compare, configs

NAME = "experiment"
RUN_EXP, FORKING = "llmhalluc.run_exp", "tests.golden.forking"
CLOCK = "seconds"  # in the names of wall times
ECHOED = ("config", "environment")  # what was asked for, and of what machine


def run(module: str, *arguments: str) -> None:
    """`python -m module arguments`, on two cores: their number decides how many threads a cell gets."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=Path(__file__).parents[2], preexec_fn=two_cores,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def two_cores() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def results(folder: Path) -> dict[str, Any]:
    """A results.json without wall times and what is echoed of configuration and machine."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return timeless({key: value for key, value in found.items() if key not in ECHOED})


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if CLOCK not in key}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def by_row(found: dict[str, Any]) -> dict[str, Any]:
    """The results, a row an entry beside the others."""
    rows = {f"{row['level']} {row['cell'] or row['arm']} {row['variant']}": row for row in found["rows"]}
    return {key: value for key, value in found.items() if key != "rows"} | rows


def numbers_of(folder: Path, module: str) -> dict[str, Any]:
    """The results of the chain."""
    config = yaml.safe_dump(configs.experiment(folder / "run"), sort_keys=False)
    (folder / "chain.yaml").write_text(config, encoding="utf-8")
    run(module, "--config", str(folder / "chain.yaml"))
    return by_row(results(folder / "run"))


def measure(folder: Path) -> dict[str, Any]:
    return numbers_of(folder, RUN_EXP)


@pytest.mark.timeout(900)  # half a minute or three, twice that where others work
@pytest.mark.parametrize("module", [FORKING, pytest.param(RUN_EXP, marks=pytest.mark.slow)])
def test_the_results_are_what_they_were(tmp_path, module):
    compare.check(compare.read(NAME), numbers_of(tmp_path, module))


def test_the_kept_results_tell_the_arms_apart():
    kept = compare.read(NAME)
    for variant in ("greedy", "sampled"):
        rows = [kept[f"arm {arm} {variant}"] for arm in ("sft", "own", "dpo", "grpo")]
        assert len({(row["accuracy"], row["emitted_per_sample"]) for row in rows}) == 4
        assert len({row["erasures_per_sample"] for row in rows}) == 4
        assert all(row["accuracy"] > 0 and row["erasures_per_sample"] > 0 and row["seeds"] == 2 for row in rows)
