"""samples.html: every sample of an experiment, to search and to filter."""

from pathlib import Path
from typing import Any

from llmhalluc.exp import results as tables
from llmhalluc.exp.grid import Cell
from llmhalluc.exp.table import label
from llmhalluc.report import page

LONGEST = 4000  # characters of a text; the rest is in the cell's samples file


def write(
    results: dict[str, Any], done: list[Cell], folders: dict[str, Path], baseline: tables.Baseline, folder: Path
) -> None:
    """Write samples.html to `folder`."""
    places = sorted({(row["task"], row["variant"]) for row in results["rows"]})
    samples = [one for place in places for one in _samples(place, done, folders, baseline)]
    page.write(
        folder / "samples.html",
        "exp/samples.html.j2",
        results,
        title=f"{results['name']}: samples",
        subtitle=f"{len(samples)} samples",
        baseline=results["baseline"],
        samples=samples,
    )


def _samples(
    place: tuple[str, str], done: list[Cell], folders: dict[str, Path], baseline: tables.Baseline
) -> list[dict[str, Any]]:
    """The samples of a task and variant; `flipped` says whether one is right where the baseline's is not, or not."""
    task, variant = place
    read = {
        cell.name: {tables.identity(one): one for one in tables.read_samples(folders[cell.name], variant, task)}
        for cell in done
    }
    cells = {(label(cell.arm, cell.point), cell.point.get("seed")): cell.name for cell in done}
    found = []
    for cell in done:
        other = cells.get((label(*baseline(cell)), cell.point.get("seed")))
        theirs = {} if other is None else read[other]
        for key, sample in read[cell.name].items():
            before, now = theirs[key]["correct"] if key in theirs else None, sample["correct"]
            flipped = "" if None in (before, now) or before == now else "won" if now > before else "lost"
            found.append(
                {
                    "task": task, "variant": variant, "arm": label(cell.arm, cell.point), "cell": cell.name,
                    "problem": sample["doc_id"], "correct": now, "flipped": flipped, "erasures": sample["erasures"],
                    "cut": bool(sample.get("cut")), "target": str(sample["target"])[:LONGEST],
                    "text": str(sample["text"] or "")[:LONGEST],
                }
            )  # fmt: skip
    return found
