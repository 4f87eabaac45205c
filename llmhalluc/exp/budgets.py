"""Accuracy against what a search may spend: methods at equal budgets, and where one overtakes another."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmhalluc.eval import stats
from llmhalluc.exp.results import Baseline, Sheet, compare, point, values_of
from llmhalluc.exp.table import label
from llmhalluc.report.tables import aligned

UNITS = {"emitted": "emitted tokens", "forward": "forward tokens"}
COSTS = ("emitted", "forward", "flops", "seconds", "leaves")
Row = dict[str, Any]


def options_of(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return how a cell was decoded: variant -> task -> keys of `gen`."""
    return json.loads((folder / "eval" / "results.json").read_text(encoding="utf-8")).get("decoding", {})


def rows(made: list[Sheet], folders: dict[str, Path], baseline: Baseline) -> list[Row]:
    """Return a row a method and budget: accuracy, what was spent on a problem, and the paired difference.

    A method is an arm and its variants that differ in `gen.budget` alone. It is compared at the same budget with the
    first method of the baseline arm; verdict: better or worse after Holm over the methods of a task at that budget.
    """
    decoding = {sheet.cell.name: options_of(folders[sheet.cell.name]) for sheet in made}
    groups: dict[tuple, list[Sheet]] = {}
    first: dict[tuple, str] = {}  # (task, budget, unit) -> the method to compare with
    for sheet in made:
        keys = decoding[sheet.cell.name].get(sheet.variant, {}).get(sheet.task) or {}
        if keys.get("search") is None or keys.get("budget") is None:
            continue
        method = f"{label(sheet.cell.arm, point(sheet.cell))} {_without_budget(sheet.variant, keys['budget'])}"
        place = (sheet.task, keys["budget"], keys["budget_unit"])
        groups.setdefault((*place, method), []).append(sheet)
        if baseline(sheet.cell) == (sheet.cell.arm, point(sheet.cell)):
            first.setdefault(place, method)
    found = []
    for (task, budget, unit, method), group in groups.items():
        base = first.get((task, budget, unit))
        gain, _, seeds = (None, {}, 0) if base in (None, method) else compare(group, groups[task, budget, unit, base])
        accuracy = stats.mean(values_of(group))
        row: Row = {"task": task, "unit": unit, "budget": budget, "method": method, "against": base}
        row |= dict(zip(("accuracy", "accuracy_low", "accuracy_high"), accuracy[:3], strict=True))
        row |= {"seeds": len(group), "problems": len(group[0].correct), "paired_seeds": seeds or None}
        spread = gain[:4] if gain else (None,) * 4
        row |= dict(zip(("difference", "difference_low", "difference_high", "difference_p"), spread, strict=True))
        for name in COSTS:
            costs = [sheet.metrics[f"search_{name}"] for sheet in group]
            row[name] = sum(costs) / len(costs)
        found.append(row | {"verdict": None})
    tested: dict[tuple, list[Row]] = {}
    for row in found:
        if row["difference"] is not None:
            tested.setdefault((row["task"], row["budget"], row["unit"]), []).append(row)
    for some in tested.values():
        for row, apart in zip(some, stats.holm([row["difference_p"] for row in some]), strict=True):
            row["verdict"] = ("better" if row["difference"] > 0 else "worse") if apart else None
    return sorted(found, key=lambda row: (row["task"], row["unit"], row["method"], row["budget"]))


def crossings(found: list[Row]) -> list[Row]:
    """Return where a method overtakes the one it is compared with, or falls behind: between two neighbouring budgets.

    at: the budget where a line through both differences, over the logarithm of the budget, is 0. sure: both have a
    verdict.
    """
    made = []
    lines: dict[tuple, list[Row]] = {}
    for row in found:
        if row["difference"] is not None:
            lines.setdefault((row["task"], row["unit"], row["method"]), []).append(row)
    for (task, unit, method), line in lines.items():
        for one, other in pairwise(line):
            before, after = one["difference"], other["difference"]
            if before * after < 0:
                share = before / (before - after)
                at = math.exp(math.log(one["budget"]) * (1 - share) + math.log(other["budget"]) * share)
                which = {"task": task, "unit": unit, "method": method, "against": one["against"]}
                sure = bool(one["verdict"] and other["verdict"])
                made.append(which | {"at": at, "overtakes": after > 0, "sure": sure})
    return made


def said(found: list[Row]) -> list[str]:
    """Return a sentence for each crossing."""
    sentences = []
    for row in crossings(found):
        verb, unit = "overtakes" if row["overtakes"] else "falls behind", UNITS.get(row["unit"], row["unit"])
        sure = "" if row["sure"] else " (within the intervals)"
        place = f"{row['task']}: {row['method']} {verb} {row['against']}"
        sentences.append(f"{place} at about {row['at']:.3g} {unit}{sure}")
    return sentences


def table(found: list[Row]) -> str:
    """Return the rows as aligned plain text, a column a budget, and the crossings below it."""
    parts = []
    for task, unit in dict.fromkeys((row["task"], row["unit"]) for row in found):
        own = [row for row in found if (row["task"], row["unit"]) == (task, unit)]
        budgets = sorted({row["budget"] for row in own})
        lines = [[f"{task}, accuracy in % at a budget of {unit}", *(f"{budget:g}" for budget in budgets)]]
        for method in dict.fromkeys(row["method"] for row in own):
            by_budget = {row["budget"]: row for row in own if row["method"] == method}
            lines.append([method, *(_cell(by_budget.get(budget)) for budget in budgets)])
        parts.append("\n".join(aligned(lines, left=1)))
    return "\n\n".join([*parts, "\n".join(said(found))]).rstrip()


def _cell(row: Row | None) -> str:
    """`43.5 +4.0 [+1.2, +6.8]`; a star where the difference is one after Holm."""
    if row is None:
        return ""
    text = f"{100 * row['accuracy']:.1f}"
    if row["difference"] is None:
        return text
    gain, low, high = (100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{text} {gain:+.1f} [{low:+.1f}, {high:+.1f}]{'*' if row['verdict'] else ''}"


def _without_budget(variant: str, budget: float) -> str:
    """The variant's name without the budget at its end: `beam-16` -> `beam`."""
    return variant.removesuffix(f"{budget:g}").rstrip("-_.") or variant
