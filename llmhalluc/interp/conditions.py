"""compare-conditions and formatting-sweep: what ablations and the writing of the prompt do to whole completions."""

import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from llmhalluc.eval.stats import Estimate, clustered, clustered_difference, clustered_share, holm
from llmhalluc.interp.detect import detect_events, hazard
from llmhalluc.interp.events import offered_rows
from llmhalluc.interp.generate import CONDITIONS, generate
from llmhalluc.interp.load import Model, generations_of, model_of
from llmhalluc.interp.packed import inputs_of
from llmhalluc.interp.run import BASELINE, Row, Run, Stage, digest, read_csv, write_csv

RATES = ("has_backtracking_strict", "has_backtracking_relaxed", "is_correct", "answer_stated")
MEASURES = (*RATES, "events_per_1000_tokens", "completion_tokens", "perplexity", "repetition")
COLUMNS = (
    "variant",
    "condition",
    "samples",
    "problems",
    *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")),
)
DIFFERENCES = tuple(
    f"{name}_{end}" for name in MEASURES for end in ("difference", "difference_low", "difference_high", "p")
)
CONDITION_COLUMNS = (*COLUMNS, *DIFFERENCES, *(f"{name}_significant" for name in MEASURES))


def compare_conditions(run: Run, variant: str) -> None:
    """Generate what is missing, and write condition_comparison.csv: each condition against the baseline, paired.

    perplexity is that of the completion to the model without an intervention. Raises UserError before ablation-scan.
    """
    generate(run, variant, CONDITIONS)
    detect_events(run)
    inputs = [run.path("generations", f"{variant}__{condition}.jsonl") for condition in CONDITIONS]
    inputs.append(run.path("analysis", "backtracking_events.csv"))
    output, guard = run.path("analysis", "condition_comparison.csv"), run.path("analysis", f"perplexity__{variant}.csv")
    stage = Stage(f"compare-conditions {variant}", inputs, {}, [guard], [output])
    if run.is_done(stage):
        return
    model = model_of(run)
    samples: dict[str, list[dict[str, Any]]] = {}
    perplexities: list[Row] = []
    for condition in CONDITIONS:
        own: list[dict[str, Any]] = [
            row for row in read_csv(inputs[-1]) if (row["variant"], row["condition"]) == (variant, condition)
        ]
        for row, sample in zip(own, generations_of(run, variant, condition), strict=True):
            # Without an intervention decoding has seen it already.
            row["nats"] = sample["nats"] if condition == BASELINE else nats(model, sample)
            perplexities.append({key: row[key] for key in ("condition", "example_id", "sample_id", "nats")})
        samples[condition] = own
    write_csv(guard, perplexities, ("condition", "example_id", "sample_id", "nats"))
    write_csv(output, compare(samples, variant), CONDITION_COLUMNS, variant=variant)
    run.mark_done(stage)


def formatting_sweep(run: Run) -> None:
    """Generate every variant, and write formatting_summary.csv: each variant against the first one, paired."""
    variants = list(run.config.variants)
    for variant in variants:
        generate(run, variant, [BASELINE])
    detect_events(run)
    source, output = run.path("analysis", "backtracking_events.csv"), run.path("analysis", "formatting_summary.csv")
    rows = [row for row in read_csv(source) if row["condition"] == BASELINE and row["variant"] in variants]
    settings = {"variants": variants, "rows": digest(json.dumps(rows))}
    stage = Stage("formatting-sweep", [], settings, [output])
    if run.is_done(stage):
        return
    samples = {variant: [row | {"nats": ""} for row in rows if row["variant"] == variant] for variant in variants}
    found = [row | {"variant": row["condition"], "condition": BASELINE} for row in compare(samples, "")]
    write_csv(output, found, CONDITION_COLUMNS)
    run.mark_done(stage)


def nats(model: Model, sample: dict[str, Any]) -> float | str:
    """Return the mean negative log-likelihood of a completion's tokens in nats; empty for an empty completion."""
    offered = offered_rows(sample)
    if not offered:
        return ""
    inputs = inputs_of(model.sites, model.rows(sample), [offered[-1]])
    with torch.inference_mode():
        states = model.sites.decoder(**inputs).last_hidden_state[0, offered.start : offered.stop]
        logprobs = model.sites.unembed(states).log_softmax(-1)
    written = torch.tensor(sample["completion_ids"], device=logprobs.device)[:, None]
    return float(-logprobs.gather(1, written).mean())


def compare(samples: dict[str, list[dict[str, Any]]], variant: str) -> list[Row]:
    """Return a row a condition: each measure with its interval, and its difference from the first condition's."""
    first, *others = samples
    rows: dict[str, Row] = {
        name: {"variant": variant, "condition": name} | _measures(own) for name, own in samples.items()
    }
    for name in others:
        rows[name] |= _differences(samples[name], samples[first])
    for measure in MEASURES:
        tested = [rows[name] for name in others if rows[name].get(f"{measure}_p", "") != ""]
        for row, fallen in zip(tested, holm([row[f"{measure}_p"] for row in tested]), strict=True):
            row[f"{measure}_significant"] = int(fallen)
    return list(rows.values())


def _measures(rows: Sequence[dict[str, Any]]) -> Row:
    found: Row = {"samples": len(rows), "problems": len({row["example_id"] for row in rows})}
    clusters = [row["example_id"] for row in rows]
    for name in MEASURES:
        values = [_value(row, name) for row in rows]
        known = [(value, cluster) for value, cluster in zip(values, clusters, strict=True) if value is not None]
        if not known:
            continue
        numbers, own = [value for value, _ in known], [cluster for _, cluster in known]
        if name in RATES:
            estimate = clustered_share(numbers, own)
        elif name == "events_per_1000_tokens":
            estimate = hazard(rows)
        else:
            estimate = clustered([[number] for number in numbers], own)[0]
        if name == "perplexity":
            estimate = Estimate(*(math.exp(value) if value < 700 else math.inf for value in estimate[:3]))
        for end, value in zip(("", "_low", "_high"), estimate[:3], strict=True):
            found[name + end] = value if math.isfinite(value) else ""
    return found


def _differences(rows: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> Row:
    """Paired by sample."""
    by_sample = {(row["example_id"], row["sample_id"]): row for row in base}
    found: Row = {}
    for name in MEASURES:
        pairs = [
            (row["example_id"], _value(row, name), _value(by_sample[row["example_id"], row["sample_id"]], name))
            for row in rows
        ]
        known = [(problem, now - before) for problem, now, before in pairs if None not in (now, before)]
        if not known:
            continue
        differences, problems = [value for _, value in known], [problem for problem, _ in known]
        if name in RATES:
            estimate = clustered_difference(differences, problems)
        else:
            estimate = clustered([[value] for value in differences], problems)[0]
        for end, value in zip(("difference", "difference_low", "difference_high", "p"), estimate, strict=True):
            found[f"{name}_{end}"] = value if math.isfinite(value) else ""
    return found


def _value(row: dict[str, Any], name: str) -> float | None:
    """A sample's measure; that of perplexity is in nats."""
    if name == "answer_stated":
        return float(bool(row["predicted_answer"]))
    if name == "events_per_1000_tokens":
        return 1000 * int(row["events"]) / max(1, int(row["completion_tokens"]))
    if name == "perplexity":
        return None if row["nats"] in ("", None) else float(row["nats"])
    return float(row[name])
