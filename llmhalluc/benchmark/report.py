"""report.html of a benchmark: what was asked, who won and what it costs, every trial, Optuna's pictures, answers."""

from pathlib import Path
from typing import Any

import optuna

from llmhalluc.benchmark import table
from llmhalluc.benchmark.measure import Outcome
from llmhalluc.report import page
from llmhalluc.report.tables import Column, Field, Row, Table, plain, verdict
from llmhalluc.report.traces import Problem, Shown, problem

SAMPLES = 6  # documents whose answers are shown
COLUMNS = [
    Column(("",)), Column(("parameters",), left=True), Column(("n",)), Column(("accuracy",)), Column(("95%",)),
    Column(("erasures", "a sample")), Column(("emitted", "per kept")), Column(("forward passes", "a sample")),
    Column(("seconds",)), Column(("time ×", "baseline")),
]  # fmt: skip
COSTS = ("erasures_per_sample", "emitted_per_kept", "forward_passes_per_sample", "seconds", "seconds_over_baseline")


def write(
    results: dict[str, Any], study: optuna.Study | None, held_out: dict[str, Outcome], lm: Any, folder: Path
) -> None:
    """Write report.html to `folder`."""
    from llmhalluc.benchmark import pictures

    config, found = results["config"], results["comparison"]
    model = Path(str(config["model_name_or_path"] or "a fresh model")).name.removeprefix("package:")
    on_tune = results["baseline"]["tune"] if results["baseline"] else None
    page.write(
        folder / "report.html",
        "benchmark/report.html.j2",
        results,
        title=f"{config['operator_to_tune'] or 'plain decoding'} on {model}",
        subtitle=_subtitle(results["trials"]),
        verdict=verdict(found["difference_low"], found["difference_high"]) if found else None,
        asked=_asked(config, results["documents"]),
        sentence=table.sentence(results) if found else "",
        held_out=_table(results, "held_out"),
        searched=study is not None,
        trials=_table(results, "tune"),
        figures=pictures.draw(study, on_tune) if study is not None else [],
        samples=_samples(held_out, lm),
    )


def _subtitle(trials: list[dict[str, Any]]) -> str:
    states = [trial["state"] for trial in trials]
    counted = [f"{states.count(state)} {state}" for state in ("scored", "pruned", "failed") if state in states]
    return f"{len(states)} trial{'s' * (len(states) != 1)} ({', '.join(counted)})" if states else ""


def _asked(config: dict[str, Any], documents: dict[str, dict[str, int]]) -> list[tuple[str, str | list[str]]]:
    """The operator, its ranges, the documents and the decoding."""
    lines: list[tuple[str, str | list[str]]] = []
    if config["operator_to_tune"] is not None:
        ranges = {name: _range(span) for name, span in config["hpo"]["search_space"].items()}
        lines.append(("tuned", _settings({"operator": config["operator_to_tune"]} | ranges)))
    if config["operator_args"]:
        lines.append(("fixed", _settings(config["operator_args"])))
    lines.append(("decoding", _settings(config["generation"]) or ["as the tasks say"]))
    for split, meaning in (("tune", "trials are scored on"), ("held_out", "held out for the comparison")):
        counted = [f"{count} of {task}" for task, count in documents[split].items() if count]
        if counted:
            lines.append((meaning, ", ".join(counted)))
    return lines


def _settings(keys: dict[str, Any] | None) -> list[str]:
    return [f"{key} {plain(value)}" for key, value in (keys or {}).items()]


def _range(span: Any) -> str:
    """A range of the search space in words."""
    if isinstance(span, list):
        return f"{span[0]:g} to {span[1]:g}"
    if "choices" in span:
        return "one of " + ", ".join(map(str, span["choices"]))
    more = ["log"] if span.get("log") else []
    more += [f"step {span['step']:g}"] if span.get("step") else []
    return f"{span['low']:g} to {span['high']:g}" + (f" ({', '.join(more)})" if more else "")


def _table(results: dict[str, Any], split: str) -> Table:
    """Accuracy and cost of each way of decoding; a failed one has its reason, the winning one a mark."""
    won = f"trial {results['winner']['trial']}" if results["winner"] else None
    rows = [row for row in table.rows(results) if row["split"] == split]
    return Table(COLUMNS, [_row(row, row["decoding"] == won) for row in rows])


def _row(row: dict[str, Any], won: bool) -> Row:
    base = row["decoding"] == "baseline"
    settings = "" if base else table.settings(row.get("parameters", {}))
    fields = [Field(row["decoding"] + " ★" * won), Field(settings)]
    if row["state"] == "failed":
        return Row([*fields, Field("failed", f": {row['reason']}", tone="no", width=len(COLUMNS) - len(fields))])
    notes = " pruned" * (row["state"] == "pruned") + (f" as trial {row['same_as']}" if "same_as" in row else "")
    low, high = page.percent(row["accuracy_low"]), page.percent(row["accuracy_high"])
    fields += [Field(str(row["n"])), Field(f"{page.percent(row['accuracy'])}%", notes), Field("", f"[{low}, {high}]")]
    return Row([*fields, *(Field(_figure(row.get(name))) for name in COSTS)], "base" if base else "")


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _samples(held_out: dict[str, Outcome], lm: Any) -> list[Problem]:
    """Answers to the same documents: those on which the ways differ first, then those with erasures."""
    hidden = {lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id, *lm.eos_ids}

    def decode(ids: list[int]) -> str:
        return lm.tokenizer.decode([i for i in ids if i not in hidden])

    def order(answers: tuple[dict[str, Any], ...]) -> tuple[bool, bool]:
        agree = len({answer["correct"] for answer in answers}) == 1
        return agree, not any(answer["erasures"] for answer in answers)

    together = sorted(zip(*(outcome.answers for outcome in held_out.values()), strict=True), key=order)
    made = []
    for answers in together[:SAMPLES]:
        shown = {name: Shown(one, decode, lm.backtrack_id) for name, one in zip(held_out, answers, strict=True)}
        made.append(problem(f"{answers[0]['task']}, document {answers[0]['doc_id'] + 1}", shown))
    return made
