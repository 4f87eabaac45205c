"""`evaluate`: every task under every decoding variant, by lm-eval's simple_evaluate with our model class."""

import re
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmhalluc.eval.lm_eval_patches import no_environment_probe
from llmhalluc.eval.variants import make_variants
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.jsonl import write_lines
from llmhalluc.extras.run_folder import environment, open_run, write_json

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from llmhalluc.eval.model import BacktrackLM
    from llmhalluc.hparams.sections import Config, EvalArguments

Results = dict[str, dict[str, dict[str, Any]]]  # variant -> task -> metric -> value


def evaluate(config: "Config") -> dict[str, Any]:
    """Evaluate `config.model` on `config.eval.tasks`; write and return results.json.

    It holds `results` (variant -> task -> metric), `decoding` (variant -> task -> the options that held), `config` and
    `environment`. Beside it lie one samples_<variant>_<task>.jsonl each, and journal.jsonl, from which an interrupted
    evaluation of the same configuration resumes; eval.overwrite starts over. Raises UserError for bad input, before
    the model is loaded where it can be known then.
    """
    variants = make_variants(config.gen, config.gen_given, config.eval.variants)
    from llmhalluc.eval.journal import Journal
    from llmhalluc.eval.model import BacktrackLM
    from llmhalluc.eval.tasks import load_tasks
    from llmhalluc.hparams.parser import resolved
    from llmhalluc.hparams.task_args import test_options

    settings, plain = config.eval, resolved(config)
    record = {section: plain[section] for section in ("model", "gen", "eval")}
    record["task_options"] = options = test_options(settings, config.data)
    with open_run(settings.output_dir, record, settings.overwrite, resume=True, key=settings.key) as folder:
        manager, tasks = load_tasks(settings, options)
        lm = BacktrackLM(config.model, batch_size=settings.batch_size)
        check_chat_template(lm, settings)
        results: Results = {}
        decoding: dict[str, Any] = {}
        with Journal(folder / "journal.jsonl") as journal:
            lm.journal = journal
            for name, variant in variants.items():
                lm.begin(variant)
                found = run_harness(lm, manager, tasks, settings)
                results[name] = _collect(lm, tasks, found, folder, name)
                decoding[name] = {task: asdict(options) for task, options in lm.options.items()}
        written = {"results": results, "decoding": decoding, "config": plain, "environment": environment()}
        write_json(folder / "results.json", written)
    return written


def run_harness(
    lm: "BacktrackLM", manager: "TaskManager", tasks: list, settings: "EvalArguments",
    documents: dict[str, list[int]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What lm-eval's simple_evaluate finds; `documents` (task -> ascending numbers) in the place of settings.limit."""
    from lm_eval import evaluator

    with no_environment_probe():
        return evaluator.simple_evaluate(
            lm, tasks=tasks, task_manager=manager, num_fewshot=settings.num_fewshot,
            limit=settings.limit if documents is None else None, samples=documents,
            apply_chat_template=settings.apply_chat_template, system_instruction=settings.system_instruction,
            fewshot_as_multiturn=settings.fewshot_as_multiturn, random_seed=settings.seed,
            numpy_random_seed=settings.seed, torch_random_seed=settings.seed, fewshot_random_seed=settings.seed,
        )  # fmt: skip


def check_chat_template(lm: "BacktrackLM", settings: "EvalArguments") -> None:
    """Raise UserError where a chat template is asked for and the tokenizer has none."""
    if settings.apply_chat_template and not lm.tokenizer.chat_template:
        raise UserError(
            f"{settings.key('apply_chat_template')} is true, but the model's tokenizer has no chat template: "
            "set it to false"
        )


def leaves(tasks: list) -> list:
    """The tasks, with those of a group in its place."""
    from lm_eval.api.group import Group

    return [leaf for task in tasks for leaf in (task.get_all_tasks() if isinstance(task, Group) else [task])]


def metrics_of_traces(lm: Any, loaded: dict[str, Any], samples: dict[str, list]) -> dict[str, dict[str, Any]]:
    """The metrics of our model's traces by task, where `loaded` is the harness's own index; none of another model's."""
    from llmhalluc.eval.metrics import trace_metrics
    from llmhalluc.eval.model import BacktrackLM

    if not isinstance(lm, BacktrackLM):
        return {}
    by_name = {task.task_name: task for task in leaves([*loaded.get("groups", {}).values(), *loaded["tasks"].values()])}
    return {name: trace_metrics(records(lm, by_name[name], logged)[1]) for name, logged in samples.items()}


def _collect(lm: "BacktrackLM", tasks: list, found: dict, folder: Path, variant: str) -> dict[str, dict[str, Any]]:
    """One variant's metrics by task and group; the samples of each task go to their file."""
    from llmhalluc.eval.metrics import trace_metrics
    from llmhalluc.eval.stats import accuracy

    by_name = {task.task_name: task for task in leaves(tasks)}
    results = {}
    for name, harness in found["results"].items():
        metrics = {"n": harness.get("sample_len")}
        if name in by_name:
            samples, counts = records(lm, by_name[name], found["samples"][name])
            file_name = re.sub(r"[^\w.-]", "_", name)
            write_lines(folder / f"samples_{variant}_{file_name}.jsonl", samples)
            scores = [sample["correct"] for sample in samples]
            metrics |= accuracy([] if None in scores else scores) | trace_metrics(counts)
            metrics["truncated_prompts"] = lm.truncated[name]
        for key, value in harness.items():
            metric, comma, filter_name = key.partition(",")
            if comma:
                metric = metric if filter_name == "none" else key
                metrics[metric] = value if isinstance(value, (int, float)) and isfinite(value) else None
        results[name] = metrics
    return results


def records(
    lm: "BacktrackLM", task, logged: list[dict[str, Any]], documents: list[int] | None = None
) -> tuple[list[dict[str, Any]], list]:
    """One record a document, its filters merged, and the counts of every trace of the task.

    `documents` are the numbers of the documents that were asked for, where not all were. A document that is answered
    several times is shown with its first trace, the one lm-eval scores; one that is only scored (log-likelihoods) emits
    nothing.
    """
    from llmhalluc.eval.metrics import Counts, counts_of

    about = task.config.metadata or {}
    merged: dict[int, dict[str, Any]] = {}
    counts: list[Counts] = []
    for sample in sorted(logged, key=lambda sample: sample["doc_id"]):
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        scores = {name + suffix: sample[name] for name in sample["metrics"]}
        if sample["doc_id"] in merged:
            merged[sample["doc_id"]]["metrics"] |= scores
            continue
        record = {key: sample[key] for key in ("doc_id", "target", "doc")} | {"metrics": scores}
        primary = scores.get(about.get("primary")) if about.get("primary") else next(iter(scores.values()))
        record["correct"] = int(primary) if primary in (0, 1) else None
        gold = None
        if about.get("gold_completion"):
            gold = [*lm.tok_encode(sample["target"], add_special_tokens=False), lm.eot_token_id]
        # The harness counts the documents that it was asked for from 0 where it makes requests of them.
        at = sample["doc_id"] if documents is None else documents.index(sample["doc_id"])
        traces = lm.traces[task.task_name][at]
        mine = [counts_of(trace, lm.backtrack_id, gold) for trace in traces]
        counts += mine
        for key in ("prompt_ids", "completion_ids", "text", "finish_reason", "events", "forward_passes"):
            record[key] = getattr(traces[0], key) if traces else None
        own = (mine[0] if mine else Counts(0, 0, 0))._asdict()
        cost = own.pop("cost")
        merged[sample["doc_id"]] = record | own | ({"cost": asdict(cost)} if cost else {})
    return list(merged.values()), counts
