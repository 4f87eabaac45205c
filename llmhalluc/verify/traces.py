"""What a judge learns from: texts that the model samples, kept on disk, with a label at the end of each step."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

from llmhalluc.data.problems import Problem
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Spec, Trace
from llmhalluc.extras.jsonl import resume_lines
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.models.helper import eos_ids
from llmhalluc.models.loader import Loaded
from llmhalluc.selfgen.sample import Rollouts, Sampler
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import CutOff
from llmhalluc.tasks.steps import pieces_of
from llmhalluc.verify.labels import Judged, label
from llmhalluc.verify.options import JudgeOptions
from llmhalluc.verify.places import places

TRACES, ROLLOUTS = "judged.jsonl", "rollouts.jsonl"


class Labelled(NamedTuple):
    """A trace of a problem, its judged places, and for each of these whether what stands is good (None: unknown)."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    judged: Judged
    good: list[float | None]


def labelled_traces(
    loaded: Loaded, problems: Sequence[Problem], gen: GenArguments, options: JudgeOptions, folder: Path, batch_size: int
) -> list[Labelled]:
    """Sample `samples` texts a problem and label them; what a killed run had sampled is read from the folder."""
    gen = replace(gen, temperature=options.temperature)
    model, tokenizer, backtrack_id, context = loaded
    ends = eos_ids(model, tokenizer)
    keys = [f"{problem.key}/{i}" for problem in problems for i in range(options.samples)]
    owners = [problem for problem in problems for _ in range(options.samples)]
    lines, file = resume_lines(folder / TRACES)
    found = {line["key"]: line for line in lines}
    open_ = [number for number, key in enumerate(keys) if key not in found]

    def finished(at: int, trace: Trace) -> None:
        line = {
            "key": keys[open_[at]],
            "completion_ids": trace.completion_ids,
            "logprobs": trace.logprobs,
            "text": trace.text,
            "cut": trace.finish_reason == "length",
        }
        found[line["key"]] = line
        file.write(json.dumps(line) + "\n")
        file.flush()

    with file:
        spec = Spec(gen, ends, backtrack_id, gen.context or context, tokenizer)
        decode(
            model, [owners[number].prompt_ids for number in open_], spec, keys=[keys[number] for number in open_],
            batch_size=batch_size, on_finish=finished,
        )  # fmt: skip
    piece = pieces_of(tokenizer)
    traces = []
    for key, problem in zip(keys, owners, strict=True):
        line, task = found[key], TASKS[problem.task]
        text = CutOff(line["text"]) if line["cut"] else line["text"]
        ours = places(line["completion_ids"], backtrack_id, ends, task, piece)
        traces.append(Judged(problem, ours, task.check(text, problem.record).right))
    with Sampler(loaded, gen, batch_size, folder / ROLLOUTS) as sampler:
        rollouts = Rollouts(sampler, options.rollouts)

        def value(prefixes: Sequence[tuple[Problem, list[int]]]) -> list[float]:
            return [sum(right for _, right in tries) / len(tries) for tries in rollouts(prefixes)]

        goods = label(options.labels, traces, lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True), value)
    return [
        Labelled(problem.prompt_ids, found[key]["completion_ids"], found[key]["logprobs"], trace, good)
        for key, problem, trace, good in zip(keys, owners, traces, goods, strict=True)
        if trace.places
    ]


def split(traces: Sequence[Labelled], share: float, seed: int) -> list[list[Labelled]]:
    """Return those that train, those that set the threshold and those that test, by problem."""
    names = sorted({trace.judged.problem.key for trace in traces})
    Random(seed).shuffle(names)
    count = max(1, round(share * len(names)))
    parts = {name: min(at // count, 2) for at, name in enumerate(names)}
    return [[trace for trace in traces if parts[trace.judged.problem.key] == part] for part in (2, 0, 1)]
