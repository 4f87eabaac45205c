"""The samples that report.html shows: which problems, and how a cell's ids become text."""

import json
from pathlib import Path

from llmhalluc.exp import results
from llmhalluc.exp.grid import Cell
from llmhalluc.exp.table import label
from llmhalluc.report.traces import Decode, Shown
from llmhalluc.train.finished import final_model

Arms = dict[str, Shown]  # arm -> its sample of a problem
Place = tuple[str, str]  # task and variant


def choose(
    groups: list[Place], done: list[Cell], folders: dict[str, Path], count: int
) -> dict[Place, dict[str, Arms]]:  # fmt: skip
    """For each task and variant `count` problems, by identity, with the samples of all arms, each by its first seed.

    Half are the first problems of the test, half the first in which any arm erased something.
    """
    cells: dict[str, Cell] = {}
    for cell in done:
        cells.setdefault(label(cell.arm, cell.point), cell)
    decoders = {arm: load_decoder(folders[cell.name]) for arm, cell in cells.items()}
    chosen = {}
    for task, variant in groups:
        erasures: dict[str, int] = {}
        for cell in cells.values():
            for sample in results.read_samples(folders[cell.name], variant, task):
                key = results.identity(sample)
                erasures[key] = erasures.get(key, 0) + sample["erasures"]
        erasing = [key for key, times in erasures.items() if times][:count]
        keys = list(dict.fromkeys([*list(erasures)[: (count + 1) // 2], *erasing, *erasures]))[:count]
        problems: dict[str, Arms] = {key: {} for key in keys}
        for arm, cell in cells.items():
            for sample in results.read_samples(folders[cell.name], variant, task):
                if (key := results.identity(sample)) in problems:
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
