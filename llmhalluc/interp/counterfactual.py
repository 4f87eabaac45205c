"""counterfactual: what an event is worth, by resampling from just before it with the trigger left, banned or forced.

(Thought anchors: Bogdan et al. 2025, arXiv 2506.19143, here for one token and exact prefixes.) A prefix is computed
once, its continuations are forks of the engine.
"""

import json
import math
from collections.abc import Sequence as Items
from statistics import fmean
from typing import Any

import torch

from llmhalluc.decoding.backend import TorchBackend
from llmhalluc.decoding.engine import Engine
from llmhalluc.decoding.sampling import sample as choose
from llmhalluc.decoding.sequence import Sequence, Spec, Trace
from llmhalluc.eval.stats import clustered_difference, clustered_share, independent
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.jsonl import resume_lines
from llmhalluc.extras.run_folder import write_json
from llmhalluc.interp.detect import interval, points_of
from llmhalluc.interp.events import Point, Sample
from llmhalluc.interp.load import Model, model_of, problems_of, task_of
from llmhalluc.interp.run import Run, Stage
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import CutOff

TREATMENTS = ("left", "banned", "forced")


def counterfactual(run: Run, variant: str) -> None:
    """Write counterfactual.json of a variant: accuracy under each treatment and their differences, with intervals.

    Raises UserError before detect-events and where it found no event.
    """
    config, scan = run.config, run.config.scan
    inputs = [run.path("generations", f"{variant}__baseline.jsonl")]
    settings = {"resamples": scan.resamples, "events": scan.counterfactual_events, "gen": config.plain()["gen"]}
    output = run.path("analysis", f"counterfactual__{variant}.json")
    points = points_of(run, variant)
    settings["points"] = points.digest
    lines_path = run.path("analysis", f"resamples__{variant}.jsonl")
    stage = Stage(f"counterfactual {variant}", inputs, settings, [output])
    if run.is_done(stage):
        return
    model = model_of(run)
    lines, file = resume_lines(lines_path)
    if lines and lines[0] != {"settings": json.loads(json.dumps(settings))}:
        lines = []
        file.truncate(0)
        file.seek(0)
    if not lines:
        file.write(json.dumps({"settings": settings}) + "\n")
    records, task = problems_of(run), TASKS[task_of(run)]
    found = lines[1:]
    done = {line["event"] for line in found}
    for point in points.events[: scan.counterfactual_events]:
        if point.event in done:
            continue
        sample = points.samples[point.at]
        right: dict[str, list[int]] = {name: [] for name in TREATMENTS}
        for treatment, trace in resample(run, model, sample, point):
            text = CutOff(trace.text) if trace.finish_reason == "length" else trace.text
            right[treatment].append(int(task.check(text, records[sample["example_id"]]).right))
        found.append({"event": point.event, "example_id": sample["example_id"]} | right)
        file.write(json.dumps(found[-1]) + "\n")
        file.flush()
    file.close()
    write_json(output, importance(found) | {"context": model.context, "resamples": scan.resamples})
    run.mark_done(stage)


def importance(found: Items[dict[str, Any]]) -> dict[str, Any]:
    """Return mean accuracies and their differences, with intervals over problems."""
    clusters = [line["example_id"] for line in found]
    result: dict[str, Any] = {"events": len(found), "problems": len(set(clusters))}
    means = {}
    for name in TREATMENTS:
        scores = [score for line in found for score in line[name]]
        owners = [line["example_id"] for line in found for _ in line[name]]
        result[name] = interval(clustered_share(scores, owners))
        means[name] = [fmean(line[name]) for line in found]
    for one, other in (("forced", "banned"), ("left", "banned"), ("forced", "left")):
        differences = [a - b for a, b in zip(means[one], means[other], strict=True)]
        estimate = clustered_difference(differences, clusters)
        result[f"{one}_minus_{other}"] = interval(estimate) | {"p": estimate.p}
    return result


def compare_runs(run: Run, other: Run, variant: str) -> None:
    """Print how the importance of the events differs between two runs' models, and write it down.

    Raises UserError where one of them has not run counterfactual.
    """
    sides = []
    for one in (run, other):
        path = one.need(one.path("analysis", f"resamples__{variant}.jsonl"), f"counterfactual --variant {variant}")
        sides.append([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]])
        if len({line["example_id"] for line in sides[-1]}) < 2:
            raise UserError(f"run {one.folder.name} has resampled events of one problem alone: raise interp.examples")
    found: dict[str, Any] = {"runs": [run.folder.name, other.folder.name]}
    for treated, untreated in (("forced", "banned"), ("left", "banned"), ("forced", "left")):
        values = [_by_problem(lines, treated, untreated) for lines in sides]
        estimate = independent(*values)
        found[f"{treated}_minus_{untreated}"] = interval(estimate) | {"p": estimate.p}
        low, high = 100 * estimate.low, 100 * estimate.high
        spread = f"{100 * estimate.mean:+.1f} points [{low:+.1f}, {high:+.1f}], p = {estimate.p:.2g}"
        counts = f"{len(values[0])} and {len(values[1])} problems"
        print(f"{treated} less {untreated}, {run.folder.name} less {other.folder.name}: {spread}, {counts}")
    write_json(run.path("analysis", f"compared__{other.folder.name}__{variant}.json"), found)


def _by_problem(lines: Items[dict[str, Any]], treated: str, untreated: str) -> list[float]:
    """The mean difference of the events of each problem."""
    differences: dict[str, list[float]] = {}
    for line in lines:
        differences.setdefault(line["example_id"], []).append(fmean(line[treated]) - fmean(line[untreated]))
    return [fmean(values) for values in differences.values()]


def resample(run: Run, model: Model, sample: Sample, point: Point) -> list[tuple[str, Trace]]:
    """Return `scan.resamples` continuations for each treatment from just before an event.

    banned and forced hold for the event's own token alone; what follows is sampled as the config says.
    """
    options, count = run.config.config.gen, run.config.scan.resamples
    at = point.row + 1 - len(sample["prompt_ids"])
    written = sample["completion_ids"][:at]

    def sampler(logits: torch.Tensor, sequences: list[Sequence], spec: Spec) -> list[int]:
        treatments = [s.key.partition("/")[0] if len(s.completion_ids) == at else "" for s in sequences]
        banned = [i for i, treatment in enumerate(treatments) if treatment == "banned"]
        if banned:
            logits = logits.clone()
            logits[banned, point.target] = -math.inf
        tokens = choose(logits, sequences, spec)
        for i, sequence in enumerate(sequences):
            if len(sequence.completion_ids) < at:
                tokens[i] = written[len(sequence.completion_ids)]
            elif treatments[i] == "forced":
                tokens[i] = point.target
        return tokens

    spec = Spec(options, model.eos_ids, model.loaded.backtrack_id, model.context, model.tokenizer, sampler=sampler)
    engine = Engine(TorchBackend(model.loaded.model), spec)
    first = engine.add(sample["prompt_ids"], key="left/0")
    while len(first.completion_ids) < at:
        engine.step()
    names = [f"{name}/{number}" for name in TREATMENTS for number in range(count)][1:]
    forks = {engine.fork(first, key=name): name for name in names} | {first: "left/0"}
    traces = []
    while engine.running or engine.waiting:
        for sequence, kind, value in engine.step():
            if kind == "end":
                traces.append((forks[sequence].partition("/")[0], value))
    return traces
