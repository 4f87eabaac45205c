"""report.html of an experiment: what was asked, the table, the pictures, traces to read and boards to step through."""

from pathlib import Path
from typing import Any

from llmhalluc.exp import budgets, samples
from llmhalluc.exp import table as tables
from llmhalluc.exp.grid import Cell
from llmhalluc.extras.keys import flat
from llmhalluc.hparams.sections import ExpArguments
from llmhalluc.report import page
from llmhalluc.report.boards import stepper
from llmhalluc.report.tables import VERDICTS, Column, Field, Row, Table, plain, span
from llmhalluc.report.traces import problem
from llmhalluc.tasks import board_of

LEFT = ("arm", "task", "variant")  # columns of text
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
    page.write(
        folder / "report.html",
        "exp/report.html.j2",
        results,
        title=results["name"],
        subtitle=_subtitle(results, rows),
        baseline=baseline,
        headlines=[_headline(rows, group) for group in groups],
        **_asked(exp, done, results["config"]),
        notes=" ".join(tables.notes(results)),
        by_arm=_table(rows, baseline),
        by_cell=_table(tables.in_order(results, "cell"), baseline),
        pairs=[pair | {"said": _said(pair)} for pair in results["pairs"]],
        reference=_reference(exp.reference, reference),
        pictures=svg,
        budgets=_budgets(results.get("budgets") or []),
        games=stepper(chosen, board_of, accuracy, baseline),
        samples=[(", ".join(group), list(map(_problem, chosen[group].values()))) for group in groups],
    )


def _budgets(rows: list[dict[str, Any]]) -> dict[str, str] | None:
    if not rows:
        return None
    against = dict.fromkeys(row["against"] for row in rows if row["against"])
    return {"against": ", ".join(against), "table": budgets.table(rows)}


def _subtitle(results: dict[str, Any], rows: list[dict]) -> str:
    arms = len({tables.label(row["arm"], row["point"]) for row in rows})
    cells = len({row["cell"] for row in results["rows"]} - {None})
    return f"{arms} arm{'s' * (arms != 1)}, {cells} trained model{'s' * (cells != 1)}"


def _headline(rows: list[dict], group: tuple[str, str]) -> dict[str, Any]:
    """The arm with the largest difference of a task and variant, or the best one where there is none."""
    mine = [row for row in rows if (row["task"], row["variant"]) == group]
    others = [row for row in mine if row["difference"] is not None]
    best = max(others or mine, key=lambda row: row["difference" if others else "accuracy"])
    said = VERDICTS[best["verdict"]] if others else None
    model = "this model of " if others and best["paired_seeds"] == 1 else ""
    arm = tables.label(best["arm"], best["point"])
    name, sign = ("difference", "+") if others else ("accuracy", "")
    value, _, interval = tables.spread(best, name, sign).partition(" ")
    unit = "%" if not others else " points"
    return {
        "place": ", ".join(group),
        "arm": model + arm,
        "row": best,
        "of": len(others),
        "verdict": said,
        "value": value + (unit if tables.is_accuracy(best) else f" {best['score']}"),
        "interval": interval,
        "score": tables.spread(best, "accuracy"),
    }


def _asked(exp: ExpArguments, done: list[Cell], config: dict[str, Any]) -> dict[str, Any]:
    """What each arm sets, what the grid varies, and what the words mean."""
    variants = (config.get("eval") or {}).get("variants") or {}
    decoding = [f"{name} ({_settings(keys)})" for name, keys in variants.items()]
    used = {(key, value): None for cell in done for key, value in flat(cell.raw) if key in MEANINGS}
    return {
        "arms": [(arm, [f"{key}={plain(value)}" for key, value in flat(keys)]) for arm, keys in exp.arms.items()],
        "grid": " × ".join(f"{key} {', '.join(map(plain, values))}" for key, values in exp.grid.items()),
        "decoding": "; ".join(decoding),
        "words": [(f"{key.partition('.')[2]} {value}", MEANINGS[key][value]) for key, value in used],
    }


def _settings(keys: dict[str, Any]) -> str:
    return ", ".join(f"{key} {plain(value)}" for key, value in keys.items())


def _reference(name: str | None, reference: dict[str, Any] | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    table = _table(tables.in_order(reference, "arm"), reference["baseline"])
    return {"name": name, "notes": " ".join(tables.notes(reference)), "table": table}


def _table(rows: list[dict], baseline: str) -> Table:
    """The printed table, with a picture of the differences' intervals."""
    compared = [row for row in rows if row["difference"] is not None]
    bounds = [row[key] for row in compared for key in ("difference_low", "difference_high")]
    low, high = min([0, *bounds]), max([0, *bounds])
    columns: list[Column] = []
    fields: list[list[Field]] = [[] for _ in rows]
    for heading, texts in tables.columns(rows, baseline).items():
        columns.append(Column(heading, heading[1] in LEFT))
        for line, text in zip(fields, texts, strict=True):
            value, bracket, interval = text.partition("[")
            line.append(Field(value, bracket + interval))
        if heading[0] == tables.AGAINST:
            columns.append(Column(("",)))
            for line, row in zip(fields, rows, strict=True):
                line.append(Field("", span=span(_difference(row), low, high)))
    return Table(columns, [Row(line, _mark(rows, i, bool(compared))) for i, line in enumerate(fields)])


def _said(pair: dict[str, Any]) -> tuple[str, str]:
    """A difference and its interval as two texts."""
    value, _, interval = tables.spread(pair, "difference", "+").partition(" ")
    return value, interval


def _difference(row: dict[str, Any]) -> tuple[float, float, float] | None:
    if row["difference"] is None:
        return None
    return row["difference"], row["difference_low"], row["difference_high"]


def _mark(rows: list[dict], i: int, compared: bool) -> str:
    """The row's marks: it is what others are compared with; it is the first of its task and variant."""
    row, above = rows[i], rows[i - 1]
    base = "base" if compared and row["difference"] is None else ""
    new = "new" if i and (row["task"], row["variant"]) != (above["task"], above["variant"]) else ""
    return f"{base} {new}".strip()


def _problem(arms: samples.Arms) -> Any:
    sample = next(iter(arms.values())).sample
    return problem(f"Problem {sample['doc_id'] + 1}", arms)
