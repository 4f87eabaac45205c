"""The rows of an experiment as a printed table: its columns, and what its reader must know."""

from typing import Any

from llmhalluc.exp.grid import cell_name
from llmhalluc.report.tables import aligned

AGAINST = "points against"  # headings of columns that not every table has
TOKENS, WITH_STARTS, SECONDS = ("training", "tokens"), ("with its", "starts"), ("seconds", "of these")
Row = dict[str, Any]


def label(arm: str, where: dict[str, Any]) -> str:
    """An arm and its point of the grid, seed left out, in words: `block context=soft`."""
    return cell_name(arm, {key: value for key, value in where.items() if key != "seed"}).replace("__", " ")


def in_order(results: dict[str, Any], level: str) -> list[Row]:
    """The rows of a level, those of one task and variant together."""
    found = [row for row in results["rows"] if row["level"] == level]
    groups = list(dict.fromkeys((row["task"], row["variant"]) for row in found))
    return sorted(found, key=lambda row: groups.index((row["task"], row["variant"])))


def columns(found: list[Row], baseline: str) -> dict[tuple[str, str], list[str]]:
    """The table's columns: a heading in two lines, then a text a row; empty columns are left out."""
    texts, left_out = [_texts(row, baseline) for row in found], set()
    if len({row["task"] for row in found}) == 1:
        left_out.add(("", "task"))
    if not has_chains(found):
        left_out |= {WITH_STARTS, SECONDS}
        if trained_on(found):
            left_out.add(TOKENS)
    made = {heading: [text[heading] for text in texts] for heading in texts[0] if heading not in left_out}
    return {heading: column for heading, column in made.items() if any(column)}


def _texts(row: Row, baseline: str) -> dict[tuple[str, str], str]:
    """A row's text under every heading."""
    return {
        ("", "arm"): label(row["arm"], row["point"]),
        ("", "task"): row["task"],
        ("", "variant"): row["variant"],
        ("", "n"): str(row["problems"]),
        ("", "accuracy, %"): spread(row, "accuracy") if is_accuracy(row) else "",
        ("other", "score"): "" if is_accuracy(row) else f"{row['score']} {spread(row, 'accuracy')}",
        (AGAINST, baseline): spread(row, "difference", "+"),
        ("erasures", "a sample"): _number(row["erasures_per_sample"], "{:.2f}"),
        ("% with an", "erasure"): _number(row["samples_with_erasure"], "{:.1%}").removesuffix("%"),
        ("emitted", "per kept"): _number(row["emitted_per_kept"], "{:.2f}"),
        ("% cut", "off"): _number(row.get("cut_off"), "{:.1%}").removesuffix("%"),
        ("BACKTRACK", "precision"): _number(row["backtrack_precision"], "{:.2f}"),
        ("", "recall"): _number(row["backtrack_recall"], "{:.2f}"),
        TOKENS: _millions(row["train_tokens"]),
        WITH_STARTS: _millions(_all_tokens(row)),
        SECONDS: _number(row.get("chain_seconds"), "{:.0f}"),
    }


def table(results: dict[str, Any], level: str = "arm") -> str:
    """The rows of a level as aligned plain text under what was measured."""
    made = columns(in_order(results, level), results["baseline"])
    texts = [(*heading, *column) for heading, column in made.items()]
    lines = aligned(list(zip(*texts, strict=True)), left=3)
    lines.insert(2, "─" * len(lines[0]))
    return "\n".join([results["name"], *notes(results), "", *(line.rstrip() for line in lines)])


def markdown(results: dict[str, Any], level: str = "arm") -> str:
    """The rows of a level as a Markdown table, with the notes above it."""
    head, *lines = _lines(results, level)
    every = [head, ["---"] * len(head), *lines]
    rows = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in every]
    return "\n".join([f"# {results['name']}", "", *notes(results), "", *rows, ""])


def latex(results: dict[str, Any], level: str = "arm") -> str:
    """The rows of a level as a LaTeX tabular (booktabs), with the notes as a comment."""
    lines = _lines(results, level)
    head, *rows = [" & ".join(map(_latex_text, line)) + r" \\" for line in lines]
    body = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    comments = [f"% {note}" for note in notes(results)]
    return "\n".join([*comments, rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}", *body, r"\end{tabular}", ""])


def _lines(results: dict[str, Any], level: str) -> list[list[str]]:
    """The headings in one line each, then the rows of a level."""
    made = columns(in_order(results, level), results["baseline"])
    return [[" ".join(heading).strip() for heading in made], *map(list, zip(*made.values(), strict=True))]


def _latex_text(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader of the table must know: how many seeds and problems, and what the intervals are."""
    found = [row for row in results["rows"] if row["level"] == "arm"]
    tasks = {row["task"]: row["problems"] for row in found}
    seeds, compared = sorted({row["seeds"] for row in found}), any(row["paired_seeds"] for row in found)
    count = " or ".join(map(str, seeds))
    # Tables from before rows had a score have the intervals of then.
    method = (
        "(docs/statistics.md)" if all("score" in row for row in found) else "by a bootstrap over seeds and problems"
    )
    lines = [
        f"{count} seed{'s' if seeds != [1] else ''}, "
        + ", ".join(f"{problems} problems of {task}" for task, problems in tasks.items())
        + f"; 95% intervals {method}"
        + (f"; differences against {results['baseline']} are paired." if compared else ".")
    ]
    if trained_on(found):
        starts = ", those of the arms it starts from counted" if has_chains(found) else ""
        lines.append(f"Every arm was trained on {trained_on(found)} tokens{starts}, to within 1%.")
    elif has_chains(found):
        lines.append(
            "Arms differ in training tokens: an arm's own, and with those of the arms it starts from. GRPO counts what "
            "its rollouts read and write; what run_selfgen generates between two trainings is not counted."
        )
    if 1 in seeds:
        lines.append("With one seed a row is about that one trained model, not about how another seed would come out.")
    if results["failed"]:
        lines.append(f"Without the cells that failed: {', '.join(results['failed'])}.")
    return lines


def trained_on(found: list[Row]) -> str | None:
    """The number of training tokens of the whole chain, where that of all rows is the same to within 1%."""
    numbers = sorted(found, key=_all_tokens)
    return _millions(_all_tokens(numbers[0])) if _all_tokens(numbers[-1]) <= 1.01 * _all_tokens(numbers[0]) else None


def has_chains(found: list[Row]) -> bool:
    """Whether any arm starts from another."""
    return any(_all_tokens(row) != row["train_tokens"] for row in found)


def _all_tokens(row: Row) -> float:
    return row.get("chain_tokens", row["train_tokens"])  # tables from before there were chains have none


def _millions(number: float) -> str:
    return f"{number / 1e6:.3g}M"


def is_accuracy(row: Row) -> bool:
    """Whether a row's score is 0 or 1 a problem; tables from before there were others have no score."""
    return row.get("score", "accuracy") == "accuracy"


def spread(row: Row, name: str, sign: str = "") -> str:
    """A mean and its interval, of an accuracy in percent."""
    mean, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
    if mean is None:
        return ""
    if is_accuracy(row):
        return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
    return f"{mean:{sign}.4g} [{low:{sign}.4g}, {high:{sign}.4g}]"


def _number(value: float | None, form: str) -> str:
    return form.format(value) if value is not None else ""
