"""The traces that report.html shows: which problems, their cards, Sudoku boards."""

import html
import json
from pathlib import Path
from typing import Any, NamedTuple

from llmhalluc.exp import results as tables
from llmhalluc.exp.grid import Cell
from llmhalluc.exp.page import sample_card, sample_line
from llmhalluc.exp.traces import Decode, frames
from llmhalluc.train.base import final_model


class Shown(NamedTuple):
    """One sample, and how its ids become text; `decode` is None where the model's folder is gone."""

    sample: dict[str, Any]
    decode: Decode | None
    backtrack_id: int | None


Chosen = dict[str, dict[str, Shown]]  # identity of a problem -> arm -> sample


def choose(
    groups: list[tuple[str, str]], done: list[Cell], folders: dict[str, Path], count: int
) -> dict[tuple[str, str], Chosen]:
    """For each (task, variant) `count` problems with the samples of all arms, each by its first seed.

    Half are the first problems of the test, half the first in which any arm erased something.
    """
    cells: dict[str, Cell] = {}
    for cell in done:
        cells.setdefault(tables.label(cell.arm, cell.point), cell)
    decoders = {arm: load_decoder(folders[cell.name]) for arm, cell in cells.items()}
    chosen = {}
    for task, variant in groups:
        erasures: dict[str, int] = {}
        for cell in cells.values():
            for sample in tables.read_samples(folders[cell.name], variant, task):
                key = tables.identity(sample)
                erasures[key] = erasures.get(key, 0) + sample["erasures"]
        erasing = [key for key, times in erasures.items() if times][:count]
        keys = list(dict.fromkeys([*list(erasures)[: (count + 1) // 2], *erasing, *erasures]))[:count]
        problems: Chosen = {key: {} for key in keys}
        for arm, cell in cells.items():
            for sample in tables.read_samples(folders[cell.name], variant, task):
                if (key := tables.identity(sample)) in problems:
                    problems[key][arm] = Shown(sample, *decoders[arm])
        chosen[task, variant] = problems
    return chosen


def load_decoder(folder: Path) -> tuple[Decode | None, int | None]:
    """How a cell's ids become text (end and padding tokens to nothing), and the id of its BACKTRACK."""
    model = final_model(folder / "train")
    if not (model / "tokenizer_config.json").exists():
        return None, None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    # An adapter keeps the record in a file of its own.
    files = (model / "config.json", model / "backtrack.json")
    record = next((json.loads(file.read_text()) for file in files if file.exists()), {})
    record = record.get("backtrack", record)
    hidden = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return lambda ids: tokenizer.decode([i for i in ids if i not in hidden]), record.get("token_id")


def games(chosen: dict[tuple[str, str], Chosen], accuracy: dict[str, float], baseline: str) -> dict[str, Any] | None:
    """The Sudoku boards as the page's script reads them, None without any.

    `accuracy` by arm picks the arm that is shown beside the baseline.
    """
    numbers: dict[tuple[str, str], int] = {}
    problems: list[dict[str, str]] = []
    runs: dict[str, dict[str, dict[int, Any]]] = {}
    for (task, variant), by_problem in chosen.items():
        for key, arms in by_problem.items():
            for arm, (sample, decode, backtrack_id) in arms.items():
                doc = sample["doc"]
                if decode is None or sample["completion_ids"] is None or not {"puzzle", "solution"} <= doc.keys():
                    continue
                number = numbers.setdefault((task, key), len(numbers))
                if number == len(problems):
                    name = str(sample["doc_id"] + 1)
                    problems.append({"name": name, "puzzle": doc["puzzle"], "solution": doc["solution"]})
                steps = frames(doc["puzzle"], sample["completion_ids"], backtrack_id, decode, sample["events"])
                run = {"steps": steps, "correct": bool(sample["correct"]), "emitted": sample["emitted"]}
                several = len({task for task, _ in chosen}) > 1
                runs.setdefault(f"{task}, {variant}" if several else variant, {}).setdefault(arm, {})[number] = run
    if not runs:
        return None
    first = next(iter(runs.values()))
    left = baseline if baseline in first else next(iter(first))
    right = max((arm for arm in first if arm != left), key=lambda arm: accuracy.get(arm, 0), default=left)
    erasing = (number for number, run in first[right].items() if any(s["kind"] == "erase" for s in run["steps"]))
    return {
        "problems": problems,
        "runs": runs,
        "left": left,
        "right": right,
        "problem": str(next(erasing, 0)),
    }


def to_html(chosen: dict[tuple[str, str], Chosen]) -> str:
    """A fold a task and variant, in it a card a problem, in it a line an arm."""
    folds = []
    for (task, variant), problems in chosen.items():
        cards = "".join(_card(arms) for arms in problems.values())
        is_open, name = "" if folds else " open", html.escape(f"{task}, {variant}")
        folds.append(f"<details{is_open}><summary><b>{name}</b></summary>{cards}</details>")
    return "".join(folds)


def _card(arms: dict[str, Shown]) -> str:
    sample, decode, _ = next(iter(arms.values()))
    lines = "".join(sample_line(arm, *shown) for arm, shown in arms.items())
    return sample_card(f"Problem {sample['doc_id'] + 1}", sample, decode, lines)
