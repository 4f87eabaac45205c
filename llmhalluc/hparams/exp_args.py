"""The `exp` section: a table of cells, each trained, merged and evaluated."""

from dataclasses import dataclass
from typing import Any, ClassVar

from llmhalluc.extras.option import Section, option


@dataclass
class ExpArguments(Section):
    """Arms and a grid; a cell is one arm at one point of the grid."""

    section: ClassVar[str] = "exp"
    name: str = option("experiment", "title of the table and the report")
    output_dir: str = option("outputs/exp", "folder for cells, results.json, results.csv and report.html")
    arms: dict[str, dict[str, Any]] = option(
        {}, "name: dotted keys or sections that this arm sets; start and rounds make a chain (docs/architecture.md)"
    )
    grid: dict[str, list[Any]] = option({}, "dotted key (or seed): values; every combination is a cell of each arm")
    baseline: str | None = option(None, "arm the others are compared with; none: the first")
    parallel: int = option(1, "cells at a time; each gets an equal share of the processor's cores", bounds="[1, inf)")
    python: str | None = option(None, "interpreter of the evaluation environment; none: this one")
    overwrite: bool = option(False, "forget finished cells")
    reference: str | None = option(None, "committed results.json whose table is printed beside this run's")
    bootstrap: int = option(2000, "bootstrap resamples for the 95% intervals", bounds="[1, inf)")
    samples_in_report: int = option(6, "traces an arm shows in report.html", bounds="[0, inf)")
