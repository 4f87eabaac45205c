"""One loaded model and its tasks: decode some documents in some way, and what came of it."""

from dataclasses import dataclass, field, replace
from typing import Any

from llmhalluc.benchmark.config import Benchmark
from llmhalluc.eval.metrics import Counts, trace_metrics
from llmhalluc.eval.model import BacktrackLM
from llmhalluc.eval.runner import check_chat_template, leaves, records, run_harness
from llmhalluc.eval.stats import accuracy, paired
from llmhalluc.eval.tasks import load_tasks
from llmhalluc.eval.variants import Variant
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import DataArguments
from llmhalluc.hparams.task_args import test_options

COSTS = ("erasures_per_sample", "samples_with_erasure", "emitted_per_sample", "emitted_per_kept", "cut_off")
Documents = dict[str, list[int]]  # task -> numbers of its documents, ascending


@dataclass
class Outcome:
    """What decoding gave: a record a document (llmhalluc/eval/runner.py, and its `task`), and the seconds it took."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.answers + other.answers, self.seconds + other.seconds)

    def summary(self) -> dict[str, Any]:
        """Accuracy with Wilson's 95% interval over the documents of all tasks together, and what they cost."""
        n = len(self.answers)
        by_task: dict[str, list[int]] = {}
        for answer in self.answers:
            by_task.setdefault(answer["task"], []).append(answer["correct"])
        counts = [Counts(one["emitted"], one["kept"], one["erasures"], cut=one["cut"]) for one in self.answers]
        costs = trace_metrics(counts)
        forward_passes = sum(answer["forward_passes"] for answer in self.answers)
        summary: dict[str, Any] = {"n": n} | accuracy([answer["correct"] for answer in self.answers])
        summary["accuracy_by_task"] = {task: sum(scores) / len(scores) for task, scores in by_task.items()}
        summary |= {key: costs[key] for key in COSTS}
        return summary | {"forward_passes_per_sample": forward_passes / n, "seconds": self.seconds}


class Session:
    """The model and the tasks of a benchmark, loaded once; `tune` and `held_out` are the parts of the two splits.

    Raises UserError for invalid tasks: log-likelihood tasks, or too few documents.
    """

    def __init__(self, benchmark: Benchmark):
        self.benchmark = benchmark
        options = test_options(benchmark.config.eval, DataArguments())
        self.manager, tasks = load_tasks(benchmark.config.eval, options)
        self.tasks = leaves(tasks)
        tunes = benchmark.top.operator_to_tune is not None
        tune, held_out = {}, {}
        for task in self.tasks:
            name = task.task_name
            if task.OUTPUT_TYPE != "generate_until":
                raise UserError(
                    f"evaluation.tasks names {name}, which scores likelihoods of given texts: nothing is generated "
                    "that an operator could erase; name a task that generates"
                )
            n = min(len(task.eval_docs), benchmark.config.eval.limit or len(task.eval_docs))
            cut = min(max(round(n * benchmark.hpo.tune_share), 1), n - 1) if tunes else 0
            if n < 1 + tunes:
                raise UserError(
                    f"task {name} has {n} document{'s' * (n != 1)}: give it more, or raise evaluation.limit"
                )
            tune[name], held_out[name] = list(range(cut)), list(range(cut, n))
        self.tune, self.held_out = (_parts(split, benchmark.hpo.parts) for split in (tune, held_out))
        self.lm = BacktrackLM(benchmark.config.model, batch_size=benchmark.config.eval.batch_size)
        self.lm.quiet = True
        check_chat_template(self.lm, benchmark.config.eval)

    def decode(self, parameters: dict[str, Any] | None, documents: Documents) -> Outcome:
        """Decode with the operator at these parameters; None: without it."""
        changes: dict[str, Any] = {"operator": None, "operator_args": {}}
        if parameters is not None:
            top = self.benchmark.top
            changes = {"operator": top.operator_to_tune, "operator_args": top.operator_args | parameters}
        config = self.benchmark.config
        self.lm.begin(Variant(replace(config.gen, **changes), config.gen_given | changes.keys()))
        tasks = [task for task in self.tasks if task.task_name in documents]
        found = run_harness(self.lm, self.manager, tasks, self.benchmark.config.eval, documents)
        outcome = Outcome(seconds=self.lm.seconds)
        for task in tasks:
            name = task.task_name
            answers, _ = records(self.lm, task, found["samples"][name], documents[name])
            if any(answer["correct"] is None for answer in answers):
                raise UserError(f"evaluation.tasks names {name}, whose first metric is not 0 or 1: choose another task")
            outcome.answers += [{"task": name} | answer for answer in answers]
        return outcome

    def warm_up(self) -> None:
        """Decode one batch for nothing, so that the first to be timed pays no more than the others."""
        name, numbers = next(iter((self.tune or self.held_out)[0].items()))
        self.decode(None, {name: numbers[: self.benchmark.config.eval.batch_size]})


def paired_difference(ours: list[int], theirs: list[int]) -> dict[str, Any]:
    """Difference of two accuracies on the same documents (`stats.paired`), and the documents that made it."""
    gained = sum(a > b for a, b in zip(ours, theirs, strict=True))
    lost = sum(a < b for a, b in zip(ours, theirs, strict=True))
    found = paired(gained, lost, len(ours))
    return {
        "difference": found.mean,
        "difference_low": found.low,
        "difference_high": found.high,
        "gained": gained,
        "lost": lost,
        "n": len(ours),
    }


def _parts(split: Documents, count: int) -> list[Documents]:
    """The documents in at most `count` parts, each with its share of every task."""
    made: list[Documents] = []
    for i in range(count):
        part = {
            task: numbers[len(numbers) * i // count : len(numbers) * (i + 1) // count]
            for task, numbers in split.items()
        }
        made.append({task: numbers for task, numbers in part.items() if numbers})
    return [part for part in made if part]
