"""`generate`: sample solutions, find where the wrong ones go wrong, write traces that take the error back."""

import hashlib
import json
import logging
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from llmhalluc.extras.errors import UserError
from llmhalluc.extras.jsonl import write_lines
from llmhalluc.extras.run_folder import open_run, write_json
from llmhalluc.tasks import CONVERTERS, TASKS

if TYPE_CHECKING:
    from llmhalluc.data.problems import Problem
    from llmhalluc.hparams.sections import Config, GenArguments
    from llmhalluc.models.loader import Loaded
    from llmhalluc.selfgen.build import Record

SAMPLES, ROLLOUTS, TRACES = "samples.jsonl", "rollouts.jsonl", "traces.jsonl"
REJECTIONS = "rejections.jsonl"  # what the samples took back, for train.stage ftpo
logger = logging.getLogger(__name__)


def generate(config: "Config") -> dict[str, Any]:
    """Write samples.jsonl, rejections.jsonl, traces.jsonl and, last, selfgen.json; return what the last holds.

    An interrupted run resumes where it stopped, a finished one is left as it is; a run of another configuration, of
    other weights or of other problems is refused. Raises UserError for bad input.
    """
    settings = config.selfgen
    temperature = (config.gen.temperature or 1.0) if settings.temperature is None else settings.temperature
    if temperature == 0 and settings.samples > 1:
        raise UserError(
            f"selfgen.temperature is 0 and selfgen.samples is {settings.samples}, which would all be the same: set "
            "selfgen.samples=1, or a temperature"
        )
    task = CONVERTERS.get(config.data.converter)
    if settings.locator == "arithmetic" and task is not None and not TASKS[task].can("is_false"):
        raise UserError(
            f"selfgen.locator is arithmetic, but the task {task} holds no equations: set departure or value"
        )
    from llmhalluc.data.problems import load_problems
    from llmhalluc.data.selfgen import ABOUT, tokenizer_fingerprint
    from llmhalluc.hparams.parser import resolved
    from llmhalluc.models.loader import load
    from llmhalluc.models.weights import fingerprint

    loaded = load(config.model, None)
    problems = load_problems(config.data, loaded.tokenizer)
    if not problems:
        raise UserError(f"data.max_length is {config.data.max_length}, and every prompt is longer: raise it")
    source = {
        "weights": fingerprint(loaded.model),
        "problems": hashlib.sha256(json.dumps(problems).encode()).hexdigest(),
    }
    record = resolved(config, ("model", "data", "gen", "selfgen")) | source
    with open_run(settings.output_dir, record, settings.overwrite, resume=True, key=settings.key) as folder:
        if (folder / ABOUT).is_file():
            logger.warning("%s holds this run finished: nothing is left to do", folder)
            return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        records, counts = _records(config, replace(config.gen, temperature=temperature), loaded, problems, folder)
        if not records:
            logger.warning("no trace could be made of %d samples; %s is empty", counts["samples"], folder / TRACES)
        write_lines(folder / TRACES, records)
        data = config.data
        about = {
            "model": config.model.name_or_path,
            "weights": source["weights"],
            "backtrack_id": loaded.backtrack_id,
            "tokenizer": tokenizer_fingerprint(loaded.tokenizer, loaded.backtrack_id),
            "problems": {key: getattr(data, key) for key in ("dataset", "subset", "split", "converter")}
            | {"count": len(problems), "sha256": source["problems"]},
            "selfgen": asdict(settings),
            "counts": counts,
        }
        write_json(folder / ABOUT, about)
    return about


def _records(
    config: "Config", options: "GenArguments", loaded: "Loaded", problems: "list[Problem]", folder: Path
) -> tuple[list["Record"], dict[str, int]]:
    """The lines of traces.jsonl, problem by problem, and what became of the samples."""
    from llmhalluc.selfgen import build
    from llmhalluc.selfgen.sample import Rollouts, Sampler

    settings, tokenizer = config.selfgen, loaded.tokenizer
    delimiter = "" if config.data.apply_chat_template else " "
    with (
        Sampler(loaded, options, settings.batch_size, folder / SAMPLES, folder / REJECTIONS) as sampler,
        Sampler(loaded, options, settings.batch_size, folder / ROLLOUTS) as rolling,
    ):
        rollouts = Rollouts(rolling, settings.rollouts)
        done = iter(
            sampler.complete(
                {f"{one.key}/{i}": (one.prompt_ids, []) for one in problems for i in range(settings.samples)}
            ).values()
        )
        samples = [list(islice(done, settings.samples)) for _ in problems]
        judged = build.judge(problems, samples, tokenizer)
        missed = {attempt.problem.key: attempt.problem for attempt in judged.wrong}
        references = {key: build.reference(problem, tokenizer, delimiter) for key, problem in missed.items()}
        attempts = build.locate(judged, references, settings.locator, rollouts, settings.value_threshold,
                              settings.max_rollouts)  # fmt: skip
        traces = build.traces(attempts, judged, references, rollouts, delimiter)
    clean = [build.record(one.problem, [], [], one.ids(), tokenizer) for many in judged.right.values() for one in many]
    wanted = round(len(traces) * settings.clean_share / (1 - settings.clean_share))
    clean = Random(config.gen.seed).sample(clean, min(wanted, len(clean)))
    counts = {
        "samples": sum(map(len, samples)),
        **judged.counts,
        "distinct_wrong": len(judged.wrong),
        "located": len(attempts),
        "traces_with_an_error": len(traces),
        "clean_traces": len(clean),
        "rollouts": len(rolling.found),
    }
    order = {problem.key: i for i, problem in enumerate(problems)}
    return sorted([*traces, *clean], key=lambda trace: order[trace["problem"]]), counts
