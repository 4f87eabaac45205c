"""Results as text: a line a trial while they run, the table at the end, results.csv."""

import csv
import json
from pathlib import Path
from typing import Any

from llmhalluc.report.tables import aligned, verdict

COLUMNS = {
    "n": "n", "accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high",
    "erasures_per_sample": "erasures", "emitted_per_kept": "emitted/kept", "cut_off": "cut off",
    "forward_passes_per_sample": "forwards", "seconds": "seconds",
}  # fmt: skip


def trials(finished: list) -> list[dict[str, Any]]:
    """Optuna's trials as plain records, numbered from 1 in the order in which they ended."""
    numbers = {trial.number: i + 1 for i, trial in enumerate(finished)}
    made = []
    for trial in finished:
        attributes = dict(trial.user_attrs)
        attributes.pop("traceback", None)
        if "same_as" in attributes:
            attributes["same_as"] = numbers[attributes["same_as"]]
        state = {"COMPLETE": "scored", "PRUNED": "pruned", "FAIL": "failed"}[trial.state.name]
        made.append({"trial": numbers[trial.number], "state": state, "parameters": trial.params} | attributes)
    return made


def trial_line(number: int, of: int, trial: Any, verbose: bool) -> str:
    """What is printed when a trial ends."""
    name = f"trial {number} of {of}, {settings(trial.params)}"
    if "reason" in trial.user_attrs:
        more = f"\n{trial.user_attrs['traceback']}" if verbose else ""
        return f"{name}: failed, {trial.user_attrs['reason']}{more}"
    return line(name, trial.user_attrs, verbose) + (" (pruned)" if trial.state.name == "PRUNED" else "")


def line(name: str, summary: dict[str, Any], verbose: bool) -> str:
    """`baseline: 25.0% of 4 right`, and with `verbose` what it cost."""
    said = f"{name}: {100 * summary['accuracy']:.1f}% of {summary['n']} right"
    if verbose:
        said += (
            f"; {summary['erasures_per_sample']:.1f} erasures, {summary['emitted_per_sample']:.1f} tokens and "
            f"{summary['forward_passes_per_sample']:.1f} forward passes a sample; {summary['seconds']:.1f} s"
        )
    return said


def settings(parameters: dict[str, Any]) -> str:
    """`minimum 0.05, erase 2`; numbers to four figures."""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in parameters.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "no parameters"


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record for each way of decoding and split."""
    made = []
    for split in ("tune", "held_out"):
        if results["baseline"] and results["baseline"][split]:
            made.append({"decoding": "baseline", "split": split, "state": "scored"} | results["baseline"][split])
        if split == "tune":
            made += [{"decoding": f"trial {trial['trial']}", "split": split} | trial for trial in results["trials"]]
    if results["winner"]:
        won = {"decoding": "winner", "split": "held_out", "state": "scored"} | results["winner"]["held_out"]
        made.append(won | {"parameters": results["winner"]["parameters"]} | (results["comparison"] or {}))
    return made


def write_csv(results: dict[str, Any], path: Path) -> None:
    """The rows; a parameter is a column of its own, what has no column is JSON."""
    flat = []
    for row in rows(results):
        row = dict(row)
        row |= {f"parameter.{name}": value for name, value in row.pop("parameters", {}).items()}
        row |= {f"accuracy.{task}": value for task, value in row.pop("accuracy_by_task", {}).items()}
        flat.append({k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in row.items() if k != "trial"})
    names = list(dict.fromkeys(name for row in flat for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(flat)


def text(results: dict[str, Any]) -> str:
    """The table that the program ends with, and the comparison in a sentence."""
    lines = [("", "documents", *COLUMNS.values(), "parameters")]
    for row in rows(results):
        values = [row.get(key) for key in COLUMNS]
        shown = ["-" if value is None else f"{value:.4g}" for value in values]
        note = settings(row["parameters"]) if "parameters" in row else ""
        note += {"pruned": " (pruned)", "failed": f" (failed: {row.get('reason')})"}.get(row["state"], "")
        lines.append((row["decoding"], row["split"].replace("_", " "), *shown, note))
    said = "\n".join(line.rstrip() for line in aligned(lines, left=len(lines[0])))
    return said + (f"\n\n{sentence(results)}" if results["comparison"] else "")


def sentence(results: dict[str, Any]) -> str:
    """The comparison on the held-out documents in words."""
    found = results["comparison"]
    low, high = 100 * found["difference_low"], 100 * found["difference_high"]
    _, verb = verdict(low, high)
    return (
        f"On {found['n']} held-out documents the winner ({settings(results['winner']['parameters'])}) {verb} plain "
        f"decoding: {100 * found['difference']:+.1f} points (95% interval {low:+.1f} to {high:+.1f}) at "
        f"{found['forward_passes_over_baseline']:.2f} times its forward passes and "
        f"{found['seconds_over_baseline']:.2f} times its time."
    )
