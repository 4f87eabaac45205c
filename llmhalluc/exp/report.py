"""report.html: what was asked, the table, the pictures, traces to read and Sudoku boards to step through.

One file without outside resources. Everything that a model or a config wrote is escaped, in the page and in
the JSON that its script reads; the script sets text, never markup.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

from llmhalluc.exp import results as tables
from llmhalluc.exp import samples
from llmhalluc.exp.grid import Cell
from llmhalluc.exp.page import fill, made_at
from llmhalluc.extras.keys import flat
from llmhalluc.hparams.exp_args import ExpArguments

SECTIONS = Path(__file__).with_name("sections.html")
MEANINGS = {
    "backtrack.context": {
        "soft": "erased tokens stay in the model's view; only the reader loses them",
        "block": "the model sees an error while it erases it and picks the correction, then never again",
        "rewind": "an erased token is out of the model's view at once",
    },
    "backtrack.error_labels": {
        "train": "the loss trains on erased tokens as on any other",
        "mask": "the loss leaves erased tokens out",
        "redirect": "where an error begins, the loss trains on the token that should have stood there",
    },
}


def write(
    results: dict[str, Any], done: list[Cell], folders: dict[str, Path], svg: dict[str, str],
    exp: ExpArguments, reference: dict[str, Any] | None, folder: Path,
) -> None:  # fmt: skip
    """Write report.html to `folder`; `svg` holds the pictures accuracy and loss."""
    rows, baseline = tables.in_order(results, "arm"), results["baseline"]
    groups = list(dict.fromkeys((row["task"], row["variant"]) for row in rows))
    chosen = samples.choose(groups, done, folders, exp.samples_in_report)
    accuracy = {tables.label(row["arm"], row["point"]): row["accuracy"] for row in reversed(rows)}
    games = samples.games(chosen, accuracy, baseline)
    parts = {
        "title": html.escape(results["name"]),
        "subtitle": html.escape(_subtitle(results, rows)),
        "cards": "".join(_card(rows, group, baseline) for group in groups),
        "asked": _asked(exp, done, results["config"]),
        "notes": _notes(results),
        "table": _table(rows, baseline),
        "seeds": _folded("Every trained model by itself", _table(tables.in_order(results, "cell"), baseline)),
        "reference": _reference(exp, reference) if reference else "",
        **svg,
        "stepper": "" if games else "hidden",
        "samples": samples.to_html(chosen),
        "games": _json(games),
    }
    (folder / "report.html").write_text(fill(SECTIONS, results, parts), encoding="utf-8")


def _subtitle(results: dict[str, Any], rows: list[dict]) -> str:
    arms = len({tables.label(row["arm"], row["point"]) for row in rows})
    cells = len({row["cell"] for row in results["rows"]} - {None})
    when = made_at(results["environment"])
    return f"{arms} arm{'s' * (arms != 1)}, {cells} trained model{'s' * (cells != 1)} · {when}"


def _card(rows: list[dict], group: tuple[str, str], baseline: str) -> str:
    """The largest difference of a task and variant, in large letters."""
    mine = [row for row in rows if (row["task"], row["variant"]) == group]
    others = [row for row in mine if row["difference"] is not None]
    best = max(others or mine, key=lambda row: row["difference"] if others else row["accuracy"])
    where, arm = html.escape(", ".join(group)), html.escape(tables.label(best["arm"], best["point"]))
    accuracy = f"{100 * best['accuracy']:.1f}%"
    if not others:
        return f"<div class='card'><div class='soft'>{where}</div><div class='big'>{accuracy}</div>{arm}</div>"
    low, high = 100 * best["difference_low"], 100 * best["difference_high"]
    tone, said = ("", "is not clearly apart from")
    if low > 0 or high < 0:
        tone, said = ("up", "is better than") if low > 0 else ("down", "is worse than")
    of = f", the best of {len(others)} arms," if len(others) > 1 else ""
    return (
        f"<div class='card'><div class='soft'>{where}</div>"
        f"<div class='big {tone}'>{100 * best['difference']:+.1f} points</div>"
        f"<div><b>{arm}</b>{of} {said} <b>{html.escape(baseline)}</b></div>"
        f"<div class='soft'>{accuracy} correct; 95% interval {low:+.1f} to {high:+.1f} points</div></div>"
    )


def _asked(exp: ExpArguments, done: list[Cell], config: dict[str, Any]) -> str:
    """What each arm sets, what the grid varies, and what the words mean."""
    lines = []
    for arm, keys in exp.arms.items():
        chips = "".join(
            f"<code class='chip'>{html.escape(f'{key}={_plain(value)}')}</code>" for key, value in flat(keys)
        )
        lines.append(f"<tr><th scope='row'>{html.escape(arm)}</th><td class='left keys'>{chips}</td></tr>")
    grid = " × ".join(f"{key} {', '.join(map(_plain, values))}" for key, values in exp.grid.items())
    variants = (config.get("eval") or {}).get("variants") or {}
    decoding = "; ".join(
        f"{name} ({', '.join(f'{key} {_plain(value)}' for key, value in keys.items())})"
        for name, keys in variants.items()
    )
    used = {(key, value): None for cell in done for key, value in flat(cell.raw) if key in MEANINGS}
    words = "".join(
        f"<dt>{key.partition('.')[2]} {value}</dt><dd>{html.escape(MEANINGS[key][value])}</dd>" for key, value in used
    )
    return (
        (f"<div class='card wide asked'><table><tbody>{''.join(lines)}</tbody></table></div>" if lines else "")
        + (f"<p>Every arm was trained at {html.escape(grid)}.</p>" if grid else "")
        + (f"<p>Decoding: {html.escape(decoding)}.</p>" if decoding else "")
        + (f"<dl>{words}</dl>" if words else "")
    )


def _reference(exp: ExpArguments, reference: dict[str, Any]) -> str:
    table = _table(tables.in_order(reference, "arm"), reference["baseline"])
    return _folded(f"For comparison: {exp.reference}", _notes(reference) + table, is_open=True)


def _notes(results: dict[str, Any]) -> str:
    return f"<p>{html.escape(' '.join(tables.notes(results)))}</p>"


def _table(rows: list[dict], baseline: str) -> str:
    """The printed table's columns in HTML, with a picture of the differences' intervals."""
    compared = [row for row in rows if row["difference"] is not None]
    bounds = [100 * row[key] for row in compared for key in ("difference_low", "difference_high")]
    low, high = min([0, *bounds]), max([0, *bounds])
    heads, lines = "", [""] * len(rows)
    for i, (heading, texts) in enumerate(tables.columns(rows, baseline).items()):
        side = " class='left'" if heading[1] in ("arm", "task", "variant") else ""
        heads += f"<th{side} scope='col'>{'<br>'.join(map(html.escape, filter(None, heading)))}</th>"
        tag = "td" if i else "th scope='row'"
        for at, text in enumerate(texts):
            shown = re.sub(r"\[.*\]", r"<span class='low'>\g<0></span>", html.escape(text))
            lines[at] += f"<{tag}{side}>{shown}</{tag[:2]}>"
        if heading[0] == tables.AGAINST:
            heads += "<th></th>"
            lines = [f"{line}<td>{_span(row, low, high)}</td>" for line, row in zip(lines, rows, strict=True)]
    places = [(row["task"], row["variant"]) for row in rows]
    body = ""
    for i, (line, row) in enumerate(zip(lines, rows, strict=True)):
        base = "base " if compared and row not in compared else ""
        new = "new" if i and places[i] != places[i - 1] else ""
        body += f"<tr class='{base}{new}'>{line}</tr>"
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _span(row: dict[str, Any], low: float, high: float) -> str:
    """A difference with its interval on a scale from low to high, in points, zero marked."""
    zero, left, middle, right = (
        100 * (100 * (value or 0) - low) / (high - low or 1)
        for value in (0, row["difference_low"], row["difference"], row["difference_high"])
    )
    marks = ""
    if row["difference"] is not None:
        marks = f"<b style='left:{left:.1f}%;width:{right - left:.1f}%'></b><u style='left:{middle:.1f}%'></u>"
    return f"<div class='span'><i style='left:{zero:.1f}%'></i>{marks}</div>"


def _folded(heading: str, body: str, is_open: bool = False) -> str:
    opened = " open" if is_open else ""
    return f"<details class='card wide'{opened}><summary>{html.escape(heading)}</summary>{body}</details>"


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
