"""report.html: what was asked, who won and what it costs, every trial, Optuna's pictures, answers to read.

One file without outside resources or scripts; everything that a model or a config wrote is escaped.
"""

import html
import json
from pathlib import Path
from typing import Any

import optuna

from llmhalluc.benchmark import table
from llmhalluc.benchmark.measure import Outcome
from llmhalluc.exp.page import fill, made_at, sample_card, sample_line

SECTIONS = Path(__file__).with_name("sections.html")
SAMPLES = 6  # documents whose answers are shown


def write(
    results: dict[str, Any], study: optuna.Study | None, held_out: dict[str, Outcome], lm: Any, folder: Path
) -> None:
    """Write report.html to `folder`."""
    from llmhalluc.benchmark import pictures

    drawn = {}
    if study is not None:
        drawn = pictures.draw(study, results["baseline"]["tune"] if results["baseline"] else None)
    operator = results["config"]["operator_to_tune"]
    model = Path(str(results["config"]["model_name_or_path"] or "a fresh model")).name.removeprefix("package:")
    figures = "".join(
        f"<figure class='card'>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for svg, caption in drawn.values()
    )
    parts = {
        "title": html.escape(f"{operator or 'plain decoding'} on {model}"),
        "subtitle": html.escape(_subtitle(results)),
        "cards": _cards(results),
        "asked": _asked(results),
        "held_out": _table([row for row in table.rows(results) if row["split"] == "held_out"]),
        "sentence": html.escape(table.sentence(results) if results["comparison"] else ""),
        "tuning": "" if study is not None else "hidden",
        "trials": _table([row for row in table.rows(results) if row["split"] == "tune"], _winning(results)),
        "figures": figures,
        "samples": _samples(held_out, lm),
    }
    (folder / "report.html").write_text(fill(SECTIONS, results, parts), encoding="utf-8")


def _subtitle(results: dict[str, Any]) -> str:
    states = [trial["state"] for trial in results["trials"]]
    told = [f"{states.count(state)} {state}" for state in ("scored", "pruned", "failed") if state in states]
    trials = f"{len(states)} trial{'s' * (len(states) != 1)} ({', '.join(told)}) · " if states else ""
    return trials + made_at(results["environment"])


def _cards(results: dict[str, Any]) -> str:
    """What came of it in large letters: the difference, and the price."""
    found = results["comparison"]
    if found is None:
        name = "winner" if results["winner"] else "baseline"
        summary = results[name]["held_out"]
        low, high = 100 * summary["accuracy_low"], 100 * summary["accuracy_high"]
        return _card(
            f"{name}, {summary['n']} documents", f"{100 * summary['accuracy']:.1f}%", "",
            f"95% interval {low:.1f} to {high:.1f}%; "
            f"{summary['forward_passes_per_sample']:.1f} forward passes a sample",
        )  # fmt: skip
    low, high = 100 * found["difference_low"], 100 * found["difference_high"]
    tone, said = ("", "Not clearly apart from plain decoding")
    if low > 0 or high < 0:
        tone, said = ("up", "Better than plain decoding") if low > 0 else ("down", "Worse than plain decoding")
    winner, plain = results["winner"]["held_out"], results["baseline"]["held_out"]
    return _card(
        f"accuracy on {found['n']} held-out documents", f"{100 * found['difference']:+.1f} points", tone,
        f"{said}: {100 * winner['accuracy']:.1f}% against {100 * plain['accuracy']:.1f}%; 95% interval {low:+.1f} to "
        f"{high:+.1f} points. {found['gained']} gained, {found['lost']} lost.",
    ) + _card(
        "forward passes", f"{found['forward_passes_over_baseline']:.2f}×", "",
        f"{winner['forward_passes_per_sample']:.1f} a sample against {plain['forward_passes_per_sample']:.1f}; "
        f"{winner['emitted_per_kept'] or 0:.2f} tokens emitted for each kept.",
    ) + _card(
        "time", f"{found['seconds_over_baseline']:.2f}×", "",
        f"{winner['seconds']:.3g} s against {plain['seconds']:.3g} s, measured in turn in one run.",
    )  # fmt: skip


def _card(heading: str, big: str, tone: str, text: str) -> str:
    return (
        f"<div class='card'><div class='soft'>{html.escape(heading)}</div>"
        f"<div class='big {tone}'>{html.escape(big)}</div><div>{html.escape(text)}</div></div>"
    )


def _asked(results: dict[str, Any]) -> str:
    """The operator, its ranges, the documents and the decoding as a small table."""
    config, documents = results["config"], results["documents"]
    chips = {
        "tuned": {"operator": config["operator_to_tune"]}
        | {name: _range(span) for name, span in config["hpo"]["search_space"].items()},
        "fixed": config["operator_args"],
        "decoding": config["generation"] or {"as the tasks say": ""},
    }
    lines = {name: "".join(_chip(key, value) for key, value in keys.items()) for name, keys in chips.items() if keys}
    if config["operator_to_tune"] is None:
        del lines["tuned"]
    for split, meaning in (("tune", "trials are scored on"), ("held_out", "held out for the comparison")):
        counted = ", ".join(f"{count} of {task}" for task, count in documents[split].items() if count)
        if counted:
            lines[meaning] = html.escape(counted)
    body = "".join(
        f"<tr><th scope='row'>{name}</th><td class='left keys'>{text}</td></tr>" for name, text in lines.items()
    )
    return f"<div class='card wide asked'><table><tbody>{body}</tbody></table></div>"


def _range(span: Any) -> str:
    """A range of the search space in words."""
    if isinstance(span, list):
        return f"{span[0]:g} to {span[1]:g}"
    if "choices" in span:
        return "one of " + ", ".join(map(str, span["choices"]))
    more = [f"{key} {span[key]:g}" if key == "step" else key for key in ("log", "step") if span.get(key)]
    return f"{span['low']:g} to {span['high']:g}" + (f" ({', '.join(more)})" if more else "")


def _chip(key: str, value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    return f"<code class='chip'>{html.escape(f'{key} {shown}'.strip())}</code>"


def _winning(results: dict[str, Any]) -> str | None:
    return f"trial {results['winner']['trial']}" if results["winner"] else None


def _table(rows: list[dict[str, Any]], winning: str | None = None) -> str:
    """Accuracy and cost of each way of decoding; a failed one has its reason, the winning one a mark."""
    heads = ["", "parameters", "n", "accuracy", "95%", "erasures<br>a sample", "emitted<br>per kept",
             "forward passes<br>a sample", "seconds", "time ×<br>baseline"]  # fmt: skip
    body = ""
    for row in rows:
        name = html.escape(row["decoding"]) + (" <b class='ok'>★</b>" if row["decoding"] == winning else "")
        settings = "" if row["decoding"] == "baseline" else html.escape(table.settings(row.get("parameters", {})))
        cells = f"<th scope='row'>{name}</th><td class='left'>{settings}</td>"
        if row["state"] == "failed":
            reason = f"<span class='no'>failed</span>: {html.escape(row['reason'])}"
            cells += f"<td class='left keys' colspan='{len(heads) - 2}'>{reason}</td>"
        else:
            note = " <span class='soft'>pruned</span>" if row["state"] == "pruned" else ""
            same = f" <span class='soft'>as trial {row['same_as']}</span>" if "same_as" in row else ""
            low, high = 100 * row["accuracy_low"], 100 * row["accuracy_high"]
            shown = [
                row["n"], f"{100 * row['accuracy']:.1f}%{note}{same}",
                f"<span class='low'>[{low:.1f}, {high:.1f}]</span>",
                *(_figure(row.get(key)) for key in ("erasures_per_sample", "emitted_per_kept",
                  "forward_passes_per_sample", "seconds", "seconds_over_baseline")),
            ]  # fmt: skip
            cells += "".join(f"<td>{text}</td>" for text in shown)
        body += f"<tr class='{'base' if row['decoding'] == 'baseline' else ''}'>{cells}</tr>"
    left = "".join(f"<th scope='col'{' class=left' if i == 1 else ''}>{head}</th>" for i, head in enumerate(heads))
    return f"<table><thead><tr>{left}</tr></thead><tbody>{body}</tbody></table>"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _samples(held_out: dict[str, Outcome], lm: Any) -> str:
    """Answers to the same documents: those on which the ways differ first, then those with erasures."""
    names = list(held_out)
    together = list(zip(*(outcome.answers for outcome in held_out.values()), strict=True))
    together.sort(
        key=lambda many: (len({answer["correct"] for answer in many}) == 1, not any(a["erasures"] for a in many))
    )
    hidden = {lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id, *lm.eos_ids}

    def decode(ids: list[int]) -> str:
        return lm.tokenizer.decode([i for i in ids if i not in hidden])

    cards = ""
    for many in together[:SAMPLES]:
        lines = "".join(sample_line(*pair, decode, lm.backtrack_id) for pair in zip(names, many, strict=True))
        cards += sample_card(f"{many[0]['task']}, document {many[0]['doc_id'] + 1}", many[0], decode, lines)
    return cards
