"""detect-events: a row a sample, a row an onset, the controls, and how often each variant takes something back."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from llmhalluc.eval.stats import Estimate, clustered, clustered_share
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import write_json
from llmhalluc.interp.events import Event, Point, Points, Sample, controls, find_erasures, find_phrases, spread
from llmhalluc.interp.load import generations_of, model_of, problems_of, task_of
from llmhalluc.interp.run import BASELINE, Row, Run, Stage, read_csv, write_csv
from llmhalluc.models.loader import load_tokenizer
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import CutOff

SAMPLE_COLUMNS = (
    "example_id", "sample_id", "variant", "condition", "has_backtracking_strict", "has_backtracking_relaxed",
    "onset_phrase", "onset_char", "onset_token_in_completion", "onset_token_in_full", "onset_token_id",
    "onset_token_text", "pred_pos_in_full", "predicted_answer", "is_correct", "prompt_tokens", "completion_tokens",
    "finish_reason", "events", "events_strict", "taken_back", "first_at", "repetition",
)  # fmt: skip
ONSET_COLUMNS = (
    "event", "variant", "condition", "example_id", "sample_id", "onset_phrase", "strict", "onset_char",
    "onset_token_in_completion", "onset_token_in_full", "onset_token_id", "onset_token_text", "pred_pos_in_full",
    "burst", "is_correct", "measured", "control_example_id", "control_sample_id", "control_pos_in_full",
)  # fmt: skip


def detect_events(run: Run) -> None:
    """Write backtracking_events.csv, onsets.csv and summary_metrics.json from all generations.

    Generations of other problems than those of data/problems.jsonl are left out, and said to be. Raises UserError where
    nothing is generated.
    """
    config = run.config
    found = sorted(run.path("generations").glob("*__*.jsonl"))
    if not found:
        raise UserError(f"{run.path('generations')} holds no generations: run generate first")
    outputs = [run.path("analysis", name) for name in ("backtracking_events.csv", "onsets.csv", "summary_metrics.json")]
    settings = {"triggers": config.interp.triggers, "seed": config.interp.seed, "most": config.scan.max_events}
    stage = Stage("detect-events", found, settings, outputs)
    if run.is_done(stage):
        return
    tokenizer, records = load_tokenizer(config.config.model), problems_of(run)
    backtrack_id = _backtrack_id(run) if not config.interp.triggers else None
    samples_csv: list[Row] = []
    onsets_csv: list[Row] = []
    for path in found:
        variant, _, condition = path.stem.rpartition("__")
        samples = generations_of(run, variant, condition)
        if not {sample["example_id"] for sample in samples} <= records.keys():
            print(f"{path.name} is of other problems: run generate --variant {variant} --condition {condition} again")
            continue
        onsets = events_of(samples, config.interp.triggers, backtrack_id, tokenizer.decode)
        verdicts = [_verdict(run, sample, records[sample["example_id"]]) for sample in samples]
        for at, sample in enumerate(samples):
            own = [event for number, event in onsets if number == at]
            row = {"variant": variant, "condition": condition} | verdicts[at]
            samples_csv.append(row | _sample_row(sample, own, tokenizer.decode))
        rows = _onset_rows(run, samples, onsets, verdicts, tokenizer.decode)
        onsets_csv += [{"variant": variant, "condition": condition} | row for row in rows]
    write_csv(outputs[0], samples_csv, SAMPLE_COLUMNS)
    write_csv(outputs[1], onsets_csv, ONSET_COLUMNS)
    write_json(outputs[2], summary(read_csv(outputs[0]), read_csv(outputs[1])))
    run.mark_done(stage)


def events_of(samples: list[Sample], triggers: list[str], backtrack_id: int | None, decode) -> list[tuple[int, Event]]:
    """Return (number of the sample, event) of every onset: of phrases, or without triggers of BACKTRACK."""
    found = []
    for at, sample in enumerate(samples):
        ids = sample["completion_ids"]
        here = find_phrases(ids, decode, triggers) if triggers else find_erasures(ids, backtrack_id, decode)
        found += [(at, event) for event in here]
    return found


def points_of(run: Run, variant: str) -> Points:
    """Return the baseline samples of a variant, the events that are measured and their controls.

    Raises UserError before detect-events, where it found none, and where it has seen other generations.
    """
    path = run.need(run.path("analysis", "onsets.csv"), "detect-events")
    samples, source = generations_of(run, variant), run.path("generations", f"{variant}__{BASELINE}.jsonl")
    if not run.was_read(source, "detect-events"):
        raise UserError(f"{source} is newer than {path}: run detect-events first (--run-id {run.folder.name})")
    where = {(sample["example_id"], str(sample["sample_id"])): at for at, sample in enumerate(samples)}
    events: list[Point] = []
    others: list[Point | None] = []
    for row in read_csv(path):
        if row["variant"] != variant or row["condition"] != BASELINE or row["measured"] != "1":
            continue
        at, target, number = where[row["example_id"], row["sample_id"]], int(row["onset_token_id"]), int(row["event"])
        events.append(Point(at, int(row["pred_pos_in_full"]), target, number))
        other = (row["control_example_id"], row["control_sample_id"])
        others.append(Point(where[other], int(row["control_pos_in_full"]), target, number) if other[0] else None)
    if not events:
        words = ", ".join(run.config.interp.triggers) or "BACKTRACK"
        raise UserError(
            f"variant {variant} of run {run.folder.name} has no events ({words}): generate more (interp.samples, "
            "interp.examples), or name other phrases in interp.triggers, and run detect-events again"
        )
    return Points(samples, events, others)


def summary(samples: list[dict[str, str]], onsets: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the summary of each variant and condition: rates with intervals, the hazard, bursts, and correctness."""
    found = []
    for variant, condition in dict.fromkeys((row["variant"], row["condition"]) for row in samples):
        rows = [row for row in samples if (row["variant"], row["condition"]) == (variant, condition)]
        own = [row for row in onsets if (row["variant"], row["condition"]) == (variant, condition)]
        tokens, clusters = sum(int(row["completion_tokens"]) for row in rows), [row["example_id"] for row in rows]
        entry: dict[str, Any] = {"variant": variant, "condition": condition, "samples": len(rows)}
        entry |= {"problems": len(set(clusters)), "events": len(own), "tokens": tokens}
        for name in ("has_backtracking_strict", "has_backtracking_relaxed", "is_correct"):
            entry[name] = interval(clustered_share([int(row[name]) for row in rows], clusters))
        entry["answers_stated"] = interval(
            clustered_share([int(bool(row["predicted_answer"])) for row in rows], clusters)
        )
        entry["hazard_per_1000_tokens"] = interval(hazard(rows))
        entry["mean_burst"] = sum(int(row["burst"]) for row in own) / len(own) if own else None
        entry["without_control"] = sum(row["measured"] == "1" and not row["control_example_id"] for row in own)
        entry["measured"] = sum(row["measured"] == "1" for row in own)
        entry["correct_by_first_event"] = _correct_by(rows, _place_of_first)
        entry["correct_by_events"] = _correct_by(rows, lambda row: min(int(row["events"]), 3))
        entry["correct_by_tokens_taken_back"] = _correct_by(rows, _depth)
        found.append(entry)
    return found


def interval(estimate: Estimate) -> dict[str, float | None]:
    """Return an estimate as JSON holds it; ends that are not finite are None."""
    named = zip(("mean", "low", "high"), estimate[:3], strict=True)
    return {name: value if abs(value) != float("inf") else None for name, value in named}


def hazard(rows: Sequence[dict[str, Any]]) -> Estimate:
    """Return events per 1,000 emitted tokens: the ratio over problems, its interval by the linearised ratio."""
    events = [int(row["events"]) for row in rows]
    tokens = [int(row["completion_tokens"]) for row in rows]
    rate, mean_tokens = sum(events) / max(1, sum(tokens)), sum(tokens) / max(1, len(tokens))
    off = [[(one - rate * many) / max(mean_tokens, 1)] for one, many in zip(events, tokens, strict=True)]
    around = clustered(off, [row["example_id"] for row in rows])[0]
    return Estimate(1000 * rate, max(0.0, 1000 * (rate + around.low)), 1000 * (rate + around.high))


def _correct_by(rows: list[dict[str, str]], group_of: Callable[[dict[str, str]], Any]) -> dict[str, Any]:
    """Accuracy of the samples of each group, in the order of the groups' names."""
    found: dict[str, Any] = {}
    for name in sorted({str(group_of(row)) for row in rows}):
        own = [row for row in rows if str(group_of(row)) == name]
        scores, clusters = [int(row["is_correct"]) for row in own], [row["example_id"] for row in own]
        found[name] = {"samples": len(own)} | interval(clustered_share(scores, clusters))
    return found


def _place_of_first(row: dict[str, str]) -> str:
    """Whether the first event lies in the first third of the text, later, or nowhere."""
    return "none" if not row["first_at"] else "early" if float(row["first_at"]) < 1 / 3 else "late"


def _depth(row: dict[str, str]) -> str:
    """How many tokens BACKTRACK erased, in groups."""
    erased = int(row["taken_back"])
    return "0" if not erased else "1-2" if erased < 3 else "3-8" if erased < 9 else "9+"


def _sample_row(sample: Sample, events: list[Event], decode) -> Row:
    ids, n_prompt = sample["completion_ids"], len(sample["prompt_ids"])
    row = {
        "example_id": sample["example_id"], "sample_id": sample["sample_id"],
        "has_backtracking_strict": int(any(event.strict for event in events)),
        "has_backtracking_relaxed": int(bool(events)), "prompt_tokens": n_prompt, "completion_tokens": len(ids),
        "finish_reason": sample["finish_reason"], "events": len(events),
        "events_strict": sum(event.strict for event in events), "taken_back": sample["erasures"],
        "repetition": round(repetition(ids), 4),
    }  # fmt: skip
    if events:
        row |= _place(ids, n_prompt, events[0], decode) | {"first_at": round(events[0].token / len(ids), 4)}
    return row


def _place(ids: list[int], n_prompt: int, event: Event, decode) -> Row:
    return {
        "onset_phrase": event.phrase, "onset_char": event.char, "onset_token_in_completion": event.token,
        "onset_token_in_full": n_prompt + event.token, "onset_token_id": ids[event.token],
        "onset_token_text": decode([ids[event.token]]), "pred_pos_in_full": n_prompt + event.token - 1,
    }  # fmt: skip


def _onset_rows(run: Run, samples: list[Sample], onsets: list, verdicts: list[Row], decode) -> list[Row]:
    """Rows of the onsets; those that are measured have a control, or say by its absence that there is none."""
    rng = Random(run.config.interp.seed)
    chosen = spread(onsets, lambda at: samples[at]["example_id"], run.config.scan.max_events, rng)
    matched = dict(zip(chosen, controls(samples, [onsets[number] for number in chosen], rng), strict=True))
    rows = []
    for number, (at, event) in enumerate(onsets):
        sample, control = samples[at], matched.get(number)
        row = {"event": number, "example_id": sample["example_id"], "sample_id": sample["sample_id"]}
        row |= _place(sample["completion_ids"], len(sample["prompt_ids"]), event, decode)
        row |= {"strict": int(event.strict), "burst": event.burst, "is_correct": verdicts[at]["is_correct"]}
        row |= {"measured": int(number in matched)}
        if control is not None:
            other = samples[control.at]
            row |= {"control_example_id": other["example_id"], "control_sample_id": other["sample_id"]}
            row |= {"control_pos_in_full": control.row}
        rows.append(row)
    return rows


def _verdict(run: Run, sample: Sample, record: dict[str, Any]) -> Row:
    text = CutOff(sample["text"]) if sample["finish_reason"] == "length" else sample["text"]
    verdict = TASKS[task_of(run)].check(text, record)
    return {"predicted_answer": verdict.stated or "", "is_correct": int(verdict.right)}


def repetition(ids: list[int], n: int = 4) -> float:
    """Return the share of n-grams of ids that were written before: 0 for a text that never repeats itself."""
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _backtrack_id(run: Run) -> int:
    found = model_of(run).loaded.backtrack_id
    if found is None:
        raise UserError("interp.triggers is empty, and the model has no BACKTRACK token: name phrases, such as [Wait]")
    return found
