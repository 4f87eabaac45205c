"""Sums of two small numbers, generated: a task in which a small model is right often, and a sampled token matters."""

import random
import re

import datasets


def sums(**_metadata) -> dict[str, datasets.Dataset]:
    """Columns `question` and `answer`; no sum of the test stands among the worked ones."""
    pairs = [(a, b) for a in range(2, 20) for b in range(2, 20)]
    random.Random(0).shuffle(pairs)
    records = [{"question": f"{a} + {b}", "answer": str(a + b)} for a, b in pairs]
    return {"train": datasets.Dataset.from_list(records[:24]), "test": datasets.Dataset.from_list(records[24:])}


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """Whether the first number of a surviving text is the sum."""
    found = re.search(r"\d+", results[0])
    return {"right": float(found is not None and found[0] == doc["answer"])}
