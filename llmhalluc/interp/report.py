"""make-report: figures as PNG, the report as Markdown, and a self-contained page in which tokens can be looked into."""

import json
from math import isfinite
from typing import Any

from matplotlib import pyplot as plt

from llmhalluc.extras.run_folder import environment, write_text
from llmhalluc.interp import figures, look
from llmhalluc.interp.ablate import selection
from llmhalluc.interp.detect import points_of
from llmhalluc.interp.importance import QUANTITIES
from llmhalluc.interp.load import model_of
from llmhalluc.interp.run import BASELINE, Run, Stage, read_csv
from llmhalluc.report import page
from llmhalluc.report.pictures import STYLE, inline_svg
from llmhalluc.report.tables import Column, Field, Row, Table

Fact = tuple[str, str | list[str]]
NAME = "backtracking_state_transition_report"


def make_report(run: Run, variant: str) -> None:
    """Write figures/*.png and reports/ from what the run has found. Raises UserError before detect-events."""
    run.need(run.path("analysis", "backtracking_events.csv"), "detect-events")
    sources = [path for path in sorted(run.path("analysis").iterdir()) if not path.name.startswith(".")]
    outputs = [run.path("reports", f"{NAME}.{suffix}") for suffix in ("md", "html")]
    settings = {"variant": variant, "traces": run.config.scan.traces}
    stage = Stage("make-report", sources, settings, outputs)
    if run.is_done(stage):
        return
    with plt.rc_context(STYLE):
        drawn = figures.draw(run, variant)
        for one in drawn:
            one.figure.savefig(run.path("figures", f"{one.name}.png"), dpi=150, facecolor="white", bbox_inches="tight")
        pictures = [(one.name, inline_svg(one.figure), one.caption, table_of(one.rows)) for one in drawn]
        plt.close("all")
    facts = _facts(run, variant)
    write_text(outputs[0], markdown(run, variant, facts, drawn))
    traces = _traces(run, variant)
    page.write(
        outputs[1], "interp/report.html.j2", {"config": run.config.plain(), "environment": environment()},
        title=f"Taking it back: run {run.folder.name}", subtitle=f"variant {variant}", check=_check(run), facts=facts,
        pictures=pictures, traces=traces, components=[" ".join(map(str, site)) for site in _components(run, traces)],
    )  # fmt: skip
    run.mark_done(stage)


def markdown(run: Run, variant: str, facts: list[Fact], drawn: list[figures.Drawn]) -> str:
    """Return the report as Markdown: the check of the hooks first, then what was found, then each figure's table."""
    lines = [f"# Taking it back: run {run.folder.name}, variant {variant}", "", *_check(run), ""]
    lines += [f"- {name}: {text if isinstance(text, str) else ', '.join(text)}" for name, text in facts] + [""]
    for one in drawn:
        lines += [f"## {one.name}", "", one.caption, "", f"![{one.caption}](../figures/{one.name}.png)", ""]
        columns = list(one.rows[0])
        lines += ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---"] * len(columns)) + " |"]
        for row in one.rows:
            cells = [short(row[column]).replace("|", "\\|") for column in columns]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def table_of(rows: figures.Rows) -> Table:
    """Return rows as a table of the page; texts stand on the left, numbers are rounded."""
    columns = list(rows[0])
    texts = {column for column in columns if any(_is_text(row[column]) for row in rows)}
    heads = [Column(tuple(column.split("_", 1)), column in texts) for column in columns]
    return Table(heads, [Row([Field(short(row[column])) for column in columns]) for row in rows])


def short(value: Any) -> str:
    """Return a value as a reader wants it: three significant digits, a dash for nothing."""
    if value in ("", None):
        return "–"
    if _is_text(value):
        return str(value)
    number = float(value)
    if not isfinite(number):
        return "–"
    return str(int(number)) if number == int(number) and abs(number) < 1e6 else f"{number:.3g}"


def _is_text(value: Any) -> bool:
    try:
        float(value or 0)
    except (TypeError, ValueError):
        return True
    return False


def _check(run: Run) -> list[str]:
    """The first lines of the report: that looking changed nothing."""
    path = run.path("analysis", "hook_check.json")
    if not path.exists():
        return ["The hooks were not checked: run generate again."]
    found = json.loads(path.read_text(encoding="utf-8"))
    return [
        f"Hooked and packed forward less the model's own: at most {found['hooked_minus_unhooked']:.2g} in a logit "
        f"({found['dtype'].removeprefix('torch.')}).",
        f"Lens of the last layer less the logits: at most {found['last_lens_minus_logits']:.2g}. "
        "No cache of a prefix is shared where something is changed.",
    ]


def _facts(run: Run, variant: str) -> list[Fact]:
    """What was found, in a line each, with its interval."""
    summary = json.loads(run.path("analysis", "summary_metrics.json").read_text(encoding="utf-8"))
    (own,) = [entry for entry in summary if (entry["variant"], entry["condition"]) == (variant, BASELINE)]
    facts: list[Fact] = [
        ("completions", f"{own['samples']} of {own['problems']} problems, {own['tokens']} tokens"),
        ("take something back", f"{_percent(own['has_backtracking_relaxed'])}, strictly "
                                f"{_percent(own['has_backtracking_strict'])}"),
        ("hazard", f"{_spread(own['hazard_per_1000_tokens'])} events per 1,000 tokens"),
        ("length of an event", f"{short(own['mean_burst'])} tokens on average"),
        ("right answers", _percent(own["is_correct"])),
        ("measured events", f"{own['measured']} of {own['events']}, {own['without_control']} without a control"),
    ]  # fmt: skip
    for name, key in (
        ("first event", "first_event"),
        ("number of events", "events"),
        ("tokens erased", "tokens_taken_back"),
    ):
        groups = own[f"correct_by_{key}"]
        shown = [f"{group}: {_percent(one)} of {one['samples']}" for group, one in groups.items()]
        if len(shown) > 1:
            facts.append((f"right answers by {name}", shown))
    if run.path("analysis", "selected_layers.json").exists():
        facts += _facts_of_scan(selection(run, variant))
        facts += _specific(run, variant)
    path = run.path("analysis", f"counterfactual__{variant}.json")
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        parts = [f"{name} {_percent(found[name])}" for name in ("left", "banned", "forced")]
        facts.append(("resampled from just before an event", f"right {', '.join(parts)} ({found['events']} events)"))
        facts.append(
            ("forced less banned", f"{_percent(found['forced_minus_banned'], '+')} (context {found['context']})")
        )
    return facts


def _facts_of_scan(chosen: dict[str, Any]) -> list[Fact]:
    facts = [("chosen layers", f"{', '.join(map(str, chosen['layers']))} ({chosen['method']} ablation)")]
    meanings = ("their effect on the onset id", "less that at controls", "less that on the token written there")
    for name, meaning in zip(QUANTITIES, meanings, strict=True):
        if name in chosen:
            one = chosen[name]
            facts.append((meaning, f"{_spread(one)} nats on {chosen['test_events']} test events; p = {one['p']:.3g} "
                                   f"among {chosen['random_sets']} random sets"))  # fmt: skip
    agreement = [f"{method} {value:.2f}" for method, value in chosen["attribution_agreement"].items()]
    return [*facts, ("attribution patching against exact (Spearman)", ", ".join(agreement) or "too few components")]


def _specific(run: Run, variant: str) -> list[Fact]:
    """The components that are about taking back, those that promote it and those that suppress it."""
    method = selection(run, variant)["method"]
    rows = [row for row in read_csv(run.path("analysis", "ablation_importance.csv")) if row["variant"] == variant]
    own = [
        row
        for row in rows
        if (row["method"], row["split"], row["specific"]) == (method, "all", "1") and not row["head"]
    ]
    found: list[Fact] = []
    for name, sign in (("specific promoters", 1), ("specific suppressors", -1)):
        signed = sorted(
            (row for row in own if sign * float(row["contrast"]) > 0), key=lambda row: -sign * float(row["contrast"])
        )
        shown = [f"{row['kind']} {row['layer']}: {float(row['contrast']):+.2f}" for row in signed]
        found.append((name, shown or "none"))
    return found


def _percent(one: dict[str, Any], sign: str = "") -> str:
    scaled = {key: None if one[key] is None else 100 * one[key] for key in ("mean", "low", "high")}
    return _spread(scaled, sign, "%")


def _spread(one: dict[str, Any], sign: str = "", unit: str = "") -> str:
    low, high = ("–" if one[end] in (None, "") else f"{one[end]:{sign}.3g}" for end in ("low", "high"))
    return f"{one['mean']:{sign}.3g}{unit} [{low}, {high}]"


def _traces(run: Run, variant: str) -> list[dict[str, Any]]:
    """The traces of the page; none before logit-lens, ablation-scan and probe."""
    needed = [f"lens__{variant}.safetensors", f"probe__{variant}.safetensors", f"references__{variant}.safetensors"]
    if not run.config.scan.traces or not all(run.path("analysis", name).exists() for name in needed):
        return []
    return look.traces(run, model_of(run), points_of(run, variant), variant)


def _components(run: Run, traces: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return model_of(run).sites.components if traces else []
