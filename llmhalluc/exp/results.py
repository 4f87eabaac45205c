"""From the cells' folders to rows with intervals: results.json and results.csv.

A row of level `cell` is one trained model under one decoding variant on one task; a row of level `arm` pools
the seeds of an arm at a point of the grid. A difference is taken against the baseline arm at the same point,
variant and task, over the seeds and problems that both have. With one arm, its first point is the baseline.
"""

import csv
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmhalluc.eval import stats
from llmhalluc.exp.grid import Cell
from llmhalluc.exp.table import label
from llmhalluc.extras.run_folder import write_json
from llmhalluc.hparams.sections import ExpArguments

METRICS = (
    "erasures_per_sample",
    "samples_with_erasure",
    "emitted_per_kept",
    "backtrack_precision",
    "backtrack_recall",
    "cut_off",
)
TRAINING = ("tokens", "steps", "seconds")
CHAIN = ("chain_tokens", "chain_seconds")  # of a cell and all cells that it builds on
ACCURACY, ALL = "accuracy", "all"
Row = dict[str, Any]
Baseline = Callable[[Cell], tuple[str, dict]]  # from a cell to the arm and point that it is compared with


class Sheet(NamedTuple):
    """What one cell did on one task under one variant."""

    cell: Cell
    variant: str
    task: str
    correct: dict[str, float]  # 0 or 1 by the identity of the problem, or another `score`
    emitted: dict[str, float]  # tokens, by the same
    metrics: dict[str, float | None]
    training: dict[str, Any]
    score: str = ACCURACY
    documents: dict[str, int] | None = None  # the problems' numbers in their data set


def sheets(cell: Cell, folder: Path) -> list[Sheet]:
    """One sheet a variant and task of a finished cell; a group of tasks, which has no samples, has none."""
    training, made = spent(folder), []
    line = [training, *(spent(folder.with_name(name)) for name in cell.line)]
    training |= {name: sum(part[name.removeprefix("chain_")] for part in line) for name in CHAIN}
    for variant, tasks in json.loads((folder / "eval" / "results.json").read_text())["results"].items():
        for task, metrics in tasks.items():
            samples = {identity(sample): sample for sample in read_samples(folder, variant, task)}
            if not samples:
                continue
            score, values = _scores(samples, metrics)
            emitted = {key: sample["emitted"] for key, sample in samples.items() if key in values}
            documents = {key: sample["doc_id"] for key, sample in samples.items()}
            made.append(Sheet(cell, variant, task, values, emitted or {ALL: 0.0}, metrics, training, score, documents))
    return made


def _scores(samples: dict[str, dict[str, Any]], metrics: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """What a task is scored by, and its values by problem: 0 or 1, else its first metric that a problem has alone.

    A metric of all problems together (perplexity) has one value, under the key ALL.
    """
    correct = {key: sample["correct"] for key, sample in samples.items()}
    if None not in correct.values():
        return ACCURACY, correct
    of_one = [sample.get("metrics") or {} for sample in samples.values()]
    for name in of_one[0]:
        if all(isinstance(scores.get(name), (int, float)) for scores in of_one):
            return name, {key: float(sample["metrics"][name]) for key, sample in samples.items()}
    for name in of_one[0]:
        if isinstance(metrics.get(name), (int, float)):
            return name, {ALL: float(metrics[name])}
    return "no score", {ALL: 0.0}


def spent(folder: Path) -> dict[str, float]:
    """Training tokens, steps and seconds of a cell, its rounds added up; run_selfgen's generation is not counted."""
    files = [*folder.glob("round_*/train/train.json"), folder / "train" / "train.json"]
    records = [json.loads(path.read_text()) for path in files]
    return {name: sum(record[name] for record in records) for name in TRAINING}


def read_samples(folder: Path, variant: str, task: str) -> Iterator[dict[str, Any]]:
    """The samples that run_eval wrote for a cell; none for a group of tasks, which has no file."""
    file_name = re.sub(r"[^\w.-]", "_", task)
    path = folder / "eval" / f"samples_{variant}_{file_name}.jsonl"
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def baseline_of(cells: list[Cell], exp: ExpArguments) -> Baseline:
    """A function from a cell to the arm and point (without seed) that it is compared with."""
    if len({cell.arm for cell in cells}) > 1:
        return lambda cell: (exp.baseline or cells[0].arm, point(cell))
    return lambda cell: (cells[0].arm, point(cells[0]))


def rows(made: list[Sheet], baseline: Baseline) -> list[Row]:
    """Rows of the level `arm`, then of the level `cell`, both in the order of the sheets.

    `verdict` of a row of an arm is better or worse where its difference is one after Holm's correction for all arms
    under its variant on its task.
    """
    by_arm: dict[str, list[Sheet]] = {}
    by_cell: dict[str, list[Sheet]] = {}
    for sheet in made:
        by_arm.setdefault(_key(sheet, (sheet.cell.arm, point(sheet.cell))), []).append(sheet)
        by_cell.setdefault(_key(sheet, sheet.cell.name), []).append(sheet)
    found = []
    for level, groups in (("arm", by_arm), ("cell", by_cell)):
        for group in groups.values():
            first, place = group[0], baseline(group[0].cell)
            others = by_arm.get(_key(first, place), [])
            same = place == (first.cell.arm, point(first.cell))
            found.append(_row(level, group, [] if same else others))
    compared: dict[str, list[Row]] = {}
    for row in found:
        if row["level"] == "arm" and row["difference"] is not None:
            compared.setdefault(json.dumps([row["variant"], row["task"]]), []).append(row)
    for group in compared.values():
        _set_verdicts(group)
    return found


def _set_verdicts(compared: list[Row]) -> None:
    """Say of each difference whether it is one after Holm's correction for all of them."""
    for row, apart in zip(compared, stats.holm([row["difference_p"] for row in compared]), strict=True):
        row["verdict"] = ("better" if row["difference"] > 0 else "worse") if apart else None


def _key(sheet: Sheet, place: Any) -> str:
    """Equal for sheets of one place (an arm and its point, or a cell), variant and task."""
    return json.dumps([place, sheet.variant, sheet.task])


def write(results: dict[str, Any], folder: Path) -> None:
    """Write results.json and results.csv, a line a row, a column a key of the grid."""
    write_json(folder / "results.json", results)
    lines = []
    for row in results["rows"]:
        line = row | row["point"]
        del line["point"], line["metrics"]
        lines.append(line)
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)))
        writer.writeheader()
        writer.writerows(lines)


def point(cell: Cell) -> dict[str, Any]:
    """Where on the grid a cell lies, its seed left out."""
    return {key: value for key, value in cell.point.items() if key != "seed"}


def _row(level: str, group: list[Sheet], others: list[Sheet]) -> Row:
    """A group of sheets as one row, compared with the sheets of the baseline."""
    first, problems = group[0], _shared(group)
    accuracy = stats.mean(values_of(group))
    emitted = stats.mean([_values(sheet.emitted, problems) for sheet in group])
    gain, gains, paired_seeds = compare(group, others)
    metrics, training = [sheet.metrics for sheet in group], [sheet.training for sheet in group]
    return {
        "level": level,
        "cell": first.cell.name if level == "cell" else None,
        "arm": first.cell.arm,
        "point": point(first.cell) if level == "arm" else first.cell.point,
        "variant": first.variant,
        "task": first.task,
        "score": first.score,
        "seeds": len(group),
        "problems": len(problems),
        **_spread("accuracy", accuracy),
        **_spread("difference", gain),
        "difference_p": gain.p if gain else None,
        "verdict": None,
        "paired_seeds": paired_seeds or None,
        "paired_problems": len(gains) or None,
        **_spread("emitted_per_sample", emitted),
        **_means(metrics, METRICS),
        **{f"train_{name}": mean for name, mean in _means(training, TRAINING).items()},
        **_means(training, CHAIN),
        "metrics": _means(metrics, first.metrics),
    }


def compare(group: list[Sheet], others: list[Sheet]) -> tuple[stats.Estimate | None, dict[str, float], int]:
    """Return the difference of two groups of sheets, its mean by problem, and over how many seeds it was taken.

    It is taken over the seeds and problems that both have; None, nothing and 0 where there are none.
    """
    by_seed = {_seed(other): other for other in others}
    ours = [sheet for sheet in group if _seed(sheet) in by_seed]
    theirs = [by_seed[_seed(sheet)] for sheet in ours]
    paired = _shared([*ours, *theirs])
    if not paired:
        return None, {}, 0
    first, second = (np.array([_values(sheet.correct, paired) for sheet in side]) for side in (ours, theirs))
    gains = dict(zip(paired, (first - second).mean(0).tolist(), strict=True))
    return stats.difference(first, second), gains, len(ours)


def pairs(made: list[Sheet]) -> list[Row]:
    """Every two arms at their points, under each variant on each task: their difference, and who won which problem.

    won, lost: numbers of the problems that the first arm has right more often than the other, and less often.
    verdict: after Holm's correction for all pairs of that variant and task.
    """
    groups: dict[tuple[str, str], dict[str, list[Sheet]]] = {}
    for sheet in made:
        arms = groups.setdefault((sheet.task, sheet.variant), {})
        arms.setdefault(label(sheet.cell.arm, sheet.cell.point), []).append(sheet)
    found: list[Row] = []
    for (task, variant), arms in groups.items():
        here: list[Row] = []
        for (arm, group), (other, others) in itertools.combinations(arms.items(), 2):
            estimate, gains, seeds = compare(group, others)
            if estimate is None:
                continue
            numbers = group[0].documents or {}
            won = [numbers[key] for key, gain in gains.items() if gain > 0 and key in numbers]
            lost = [numbers[key] for key, gain in gains.items() if gain < 0 and key in numbers]
            place = {"task": task, "variant": variant, "arm": arm, "against": other, "score": group[0].score}
            counts = {"seeds": seeds, "problems": len(gains), "won": sorted(won), "lost": sorted(lost)}
            here.append(place | _spread("difference", estimate) | {"difference_p": estimate.p} | counts)
        _set_verdicts(here)
        found += here
    return found


def identity(sample: dict[str, Any]) -> str:
    """Equal for the same problem in two cells: two arms with other test data are not compared."""
    doc = json.dumps([sample["doc_id"], sample["doc"]], sort_keys=True)
    return hashlib.sha256(doc.encode()).hexdigest()


def _shared(group: list[Sheet]) -> list[str]:
    """The problems that all sheets have, in the first one's order."""
    return [key for key in group[0].correct if all(key in sheet.correct for sheet in group)] if group else []


def values_of(group: list[Sheet]) -> np.ndarray:
    """Return the scores (seeds, problems) of the problems that all sheets have."""
    problems = _shared(group)
    return np.array([_values(sheet.correct, problems) for sheet in group])


def _values(values: dict[str, float], keys: list[str]) -> np.ndarray:
    return np.array([values[key] for key in keys])


def _seed(sheet: Sheet) -> Any:
    return sheet.cell.point.get("seed")


def _spread(name: str, found: stats.Estimate | None) -> dict[str, float | None]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found[:3] if found else (None, None, None), strict=True))


def _means(records: list[dict[str, float | None]], names: Iterable[str]) -> dict[str, float | None]:
    """The mean of each name over the records that have a value for it, None where none has."""
    made = {}
    for name in names:
        numbers = [record[name] for record in records if record.get(name) is not None]
        made[name] = sum(numbers) / len(numbers) if numbers else None
    return made
