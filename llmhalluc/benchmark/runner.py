"""`run`: plain decoding, then trials of an operator's parameters, then the winner on documents that no trial saw."""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmhalluc.benchmark import table
from llmhalluc.benchmark.config import Benchmark
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.jsonl import write_lines
from llmhalluc.extras.run_folder import environment, open_run, write_json

if TYPE_CHECKING:
    from llmhalluc.benchmark.measure import Outcome, Session

# What may change between two runs of one study: where it lies, what it runs on, how many trials it makes.
NOT_IDENTITY = (("hpo", "n_trials"), ("evaluation", "output_dir"), ("evaluation", "overwrite"), (None, "device"))


def run(benchmark: Benchmark, verbose: bool = False) -> dict[str, Any]:
    """Run what is left of the benchmark; write and return results.json, beside it results.csv and report.html.

    Tuning scores trials on the first documents of each task; baseline and winner then decode the other ones part by
    part in turn, so that whatever slows the machine slows both. Raises UserError for bad input.
    """
    plain = benchmark.plain()
    record = json.loads(json.dumps(plain))
    for section, key in NOT_IDENTITY:
        (record[section] if section else record).pop(key, None)
    test = benchmark.config.eval
    _be_quiet(verbose)
    with open_run(test.output_dir, record, test.overwrite, resume=True, key=test.key) as folder:
        done = folder / "results.json"
        if done.exists() and len((found := json.loads(done.read_text()))["trials"]) >= _wanted(benchmark):
            more = f"; hpo.n_trials={len(found['trials']) + 10} adds trials" if found["trials"] else ""
            print(f"{test.output_dir} holds this benchmark finished{more}")
            return found
        return _run(benchmark, plain, folder, verbose)


def _run(benchmark: Benchmark, plain: dict[str, Any], folder: Path, verbose: bool) -> dict[str, Any]:
    from llmhalluc.benchmark import report, study
    from llmhalluc.benchmark.measure import Outcome, Session

    session, top = Session(benchmark), benchmark.top
    session.lm.quiet = not verbose
    documents = {"tune": _counted(session.tune), "held_out": _counted(session.held_out)}
    to_tune, to_report = (sum(counted.values()) for counted in documents.values())
    print(f"{to_tune} documents to tune on, {to_report} held out", flush=True)
    session.warm_up()
    on_tune: list[Outcome] | None = None
    if top.run_baseline and session.tune:
        on_tune = [session.decode(None, part) for part in session.tune]
        print(table.line("baseline", sum(on_tune, Outcome()).summary(), verbose), flush=True)
    search, trials, winner = None, [], None
    if top.operator_to_tune is not None:
        search = study.open_study(folder)
        _tune(session, search, on_tune, verbose)
        trials, winner = study.finished(search), study.winner(search)
        if winner is None:
            reasons = sorted({trial.user_attrs["reason"] for trial in trials})
            raise UserError(f"no trial could be scored ({'; '.join(reasons)}): see {folder / 'study.db'}")
    parameters: dict[str, dict[str, Any] | None] = {}  # of the operator, by way of decoding
    if top.run_baseline:
        parameters["baseline"] = None
    if winner is not None:
        parameters["winner"] = winner.params
    held_out = _in_turn(session, parameters)
    results: dict[str, Any] = {"documents": documents, "baseline": None, "trials": table.trials(trials), "winner": None}
    if top.run_baseline:
        summary = sum(on_tune, Outcome()).summary() if on_tune else None
        results["baseline"] = {"tune": summary, "held_out": held_out["baseline"].summary()}
    if winner is not None:
        number = [trial.number for trial in trials].index(winner.number) + 1
        settings = top.operator_args | winner.params
        results["winner"] = {"trial": number, "parameters": settings, "held_out": held_out["winner"].summary()}
    results["comparison"] = _comparison(**held_out) if len(held_out) == 2 else None
    results |= {"config": plain, "environment": environment()}
    samples = [{"decoding": name} | answer for name, outcome in held_out.items() for answer in outcome.answers]
    write_lines(folder / "samples.jsonl", samples)
    table.write_csv(results, folder / "results.csv")
    report.write(results, search, held_out, session.lm, folder)
    write_json(folder / "results.json", results)  # last: its presence says that all is there
    return results


def _tune(session: "Session", search: Any, on_tune: "list[Outcome] | None", verbose: bool) -> None:
    """Run what is left of the search, with a line a trial."""
    from llmhalluc.benchmark import study

    def show(number, trial):
        print(table.trial_line(number, session.benchmark.hpo.n_trials, trial, verbose), flush=True)

    study.tune(session, search, on_tune, show)


def _in_turn(session: "Session", parameters: dict[str, dict[str, Any] | None]) -> "dict[str, Outcome]":
    """What each way of decoding came to on the held-out documents: part by part, first the one, then the other."""
    from llmhalluc.benchmark.measure import Outcome

    held_out = dict.fromkeys(parameters, Outcome())
    for i, part in enumerate(session.held_out):
        for name in list(parameters)[:: 1 if i % 2 == 0 else -1]:
            held_out[name] += session.decode(parameters[name], part)
    return held_out


def _comparison(winner: "Outcome", baseline: "Outcome") -> dict[str, Any]:
    """Accuracy document by document, and the cost as ratios."""
    from llmhalluc.benchmark.measure import paired_difference

    scores = [[answer["correct"] for answer in outcome.answers] for outcome in (winner, baseline)]
    passes = [sum(answer["forward_passes"] for answer in outcome.answers) for outcome in (winner, baseline)]
    return paired_difference(*scores) | {
        "forward_passes_over_baseline": passes[0] / passes[1],
        "seconds_over_baseline": winner.seconds / baseline.seconds,
    }


def _wanted(benchmark: Benchmark) -> int:
    return benchmark.hpo.n_trials if benchmark.top.operator_to_tune is not None else 0


def _counted(parts: list[dict[str, list[int]]]) -> dict[str, int]:
    """Task -> number of documents."""
    tasks = dict.fromkeys(task for part in parts for task in part)
    return {task: sum(len(part.get(task, ())) for part in parts) for task in tasks}


def _be_quiet(verbose: bool) -> None:
    """Without --verbose no progress bars, and of the harness its errors alone."""
    if not verbose:
        os.environ.setdefault("TQDM_DISABLE", "1")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
