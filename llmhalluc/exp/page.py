"""What the reports share: the page around their sections, and samples with what was erased struck out."""

import html
import json
import re
from pathlib import Path
from typing import Any

from llmhalluc.exp.traces import Decode, pieces
from llmhalluc.hparams.yaml_files import to_yaml

PAGE, STYLE = (Path(__file__).with_name(name) for name in ("page.html", "style.css"))
LEGEND = (
    "<span class='trace'><del>Struck out</del></span> is what the model wrote and erased by its BACKTRACK "
    "<span class='back'>⌫</span>, <span class='trace'><del class='rule'>so</del></span> what an operator erased."
)
CUTS = {"length": "… cut off", "budget": "… out of budget"}  # finish_reason -> what is said behind the text


def fill(sections: Path, results: dict[str, Any], parts: dict[str, str]) -> str:
    """The page of a report's sections, its `<!--name-->`s filled in; style, legend and configuration come from here."""
    parts = parts | {
        "style": STYLE.read_text(encoding="utf-8").rstrip(),
        "legend": LEGEND,
        "config": html.escape(to_yaml(results["config"])),
        "environment": html.escape(json.dumps(results["environment"], indent=2)),
    }
    page, inner = (path.read_text(encoding="utf-8") for path in (PAGE, sections))
    # One pass: what a part holds is not searched again.
    return re.sub(r"<!--(\w+)-->", lambda match: parts[match[1]], page.replace("<!--sections-->\n", inner))


def made_at(environment: dict[str, Any]) -> str:
    """When, and at which commit."""
    time = environment["time"].replace("T", " ").replace("+00:00", " UTC")
    return time + (f" · commit {environment['commit'][:10]}" if environment["commit"] else "")


def sample_card(heading: str, sample: dict[str, Any], decode: Decode | None, lines: str) -> str:
    """A problem: its prompt and target folded, then a line (`sample_line`) for each answer to it."""
    prompt = f"<pre>{html.escape(decode(sample['prompt_ids']))}</pre>" if decode and sample["prompt_ids"] else ""
    return (
        f"<div class='card'><h3>{html.escape(heading)}</h3>"
        f"<details class='soft'><summary>prompt and target</summary>{prompt}"
        f"<pre>{html.escape(str(sample['target']))}</pre></details>{lines}</div>"
    )


def sample_line(name: str, sample: dict[str, Any], decode: Decode | None, backtrack_id: int | None) -> str:
    """One answer: verdict, counts, and the text with what was erased struck out and who erased it in the tooltip."""
    verdict = "<span class='ok'>✓</span>" if sample["correct"] else "<span class='no'>✗</span>"
    ids, events = sample["completion_ids"], sample["events"]
    if ids is None:
        counts, text = "scored, not generated", ""
    else:
        who = " and ".join(dict.fromkeys(source for _, _, source in events))
        counts = (
            f"{sample['emitted']} tokens, {sample['erasures']} erased{' by ' * bool(who)}{who}, "
            f"{sample['forward_passes']} forward passes"
        )
        parts = pieces(ids, backtrack_id, decode, events) if decode else [("kept", sample["text"], "")]
        text = "".join(_piece(*part) for part in parts).strip()
    cut = f" <span class='soft'>{CUTS[sample['finish_reason']]}</span>" if sample["finish_reason"] in CUTS else ""
    return (
        f"<div class='run'><div>{verdict} {html.escape(name)}<small>{html.escape(counts)}</small></div>"
        f"<div class='trace'>{text}{cut}</div></div>"
    )


def _piece(kind: str, text: str, who: str) -> str:
    if kind == "back":
        return "<span class='back' title='BACKTRACK'>⌫</span>"
    if kind == "kept":
        return html.escape(text)
    rule = "" if who == "BACKTRACK" else " class='rule'"
    return f"<del{rule} title='erased by {html.escape(who)}'>{html.escape(text)}</del>"
