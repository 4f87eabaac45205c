"""The documents say what the code does: drawn tables, commands, paths and make targets are checked."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from llmhalluc.backtrack import CONTEXTS, ERROR_LABELS, IGNORE, apply_backtracking, labels, layout
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.hparams.command_line import read
from llmhalluc.hparams.parser import build

DOCS = sorted(
    [
        *REPOSITORY.glob("*.md"),
        *REPOSITORY.glob("docs/**/*.md"),
        *REPOSITORY.glob("lm-evaluation-harness/*.md"),
    ]
)
BACKTRACK = "⌫"
PROMPT, COMPLETION = "3 × 4 =".split(), f"2 1 {BACKTRACK} {BACKTRACK} 1 2 ⏎".split()
# The tokens of the drawn example stand for their own ids: the functions only compare ids.
WORDS = sorted({*PROMPT, *COMPLETION})
PROMPT_IDS, COMPLETION_IDS = [WORDS.index(w) for w in PROMPT], [WORDS.index(w) for w in COMPLETION]
BACKTRACK_ID = WORDS.index(BACKTRACK)


def table(header: list[str], rows: list[list]) -> str:
    """A markdown table, as docs/architecture.md holds it."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def context_table(context: str) -> str:
    """What each row is fed, where it stands, how long it is seen, and what it sees."""
    ids, positions, until = layout(PROMPT_IDS, COMPLETION_IDS, BACKTRACK_ID, context)
    rows = []
    for i, emitted in enumerate(PROMPT + COMPLETION):
        seen = " ".join(WORDS[ids[j]] for j in range(i + 1) if i < until[j])
        rows.append([i, emitted, WORDS[ids[i]], positions[i], until[i], seen])
    return table(["row", "emitted", "fed", "position", "visible until", "this row sees"], rows)


def label_table() -> str:
    """The target at each row, in the three modes; IGNORE is an empty cell."""
    columns = [labels(PROMPT_IDS, COMPLETION_IDS, BACKTRACK_ID, mode) for mode in ERROR_LABELS]
    shown = [["" if t == IGNORE else WORDS[t] for t in row] for row in zip(*columns, strict=True)]
    emitted = [[i, word, *row] for i, (word, row) in enumerate(zip(PROMPT + COMPLETION, shown, strict=True))]
    return table(["row", "emitted", *(f"`{mode}`" for mode in ERROR_LABELS)], emitted)


@pytest.mark.parametrize("expected", [*map(context_table, CONTEXTS), label_table()])
def test_architecture_draws_what_the_code_computes(expected):
    assert expected in (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")


def test_the_drawn_example_reads_as_the_document_says():
    assert [WORDS[i] for i in apply_backtracking(COMPLETION_IDS, BACKTRACK_ID)] == ["1", "2", "⏎"]


def _everywhere(pattern: str) -> list:
    """`(document, match)` wherever the pattern stands in a document, as parameters with readable names."""
    found = {(doc, hit) for doc in DOCS for hit in re.findall(pattern, doc.read_text(encoding="utf-8"))}
    return [pytest.param(*pair, id=f"{pair[0].name}:{pair[1]}") for pair in sorted(found)]


@pytest.mark.parametrize(("doc", "link"), _everywhere(r"\]\(([^)#:]+)[)#]"))
def test_links_lead_to_files(doc, link):
    assert (doc.parent / link).exists()


@pytest.mark.parametrize(("doc", "path"), _everywhere(r"`((?!outputs)[\w.-]+/(?:[\w.-]+/)*(?:[\w-]+\.\w+)?)`"))
def test_paths_in_documents_exist(doc, path):
    assert any((root / path).exists() for root in (doc.parent, REPOSITORY, REPOSITORY / "llmhalluc"))


@pytest.mark.parametrize(("doc", "target"), _everywhere(r"(?:`|^ {4}|; )make ((?!\w+=)[\w-]+)"))
def test_make_targets_in_documents_exist(doc, target):
    found = subprocess.run(["make", "-n", "VENV=/nonexistent", target], cwd=REPOSITORY, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(("doc", "module"), _everywhere(r"-m (llmhalluc[\w.]*)"))
def test_modules_in_documents_exist(doc, module):
    path = Path(REPOSITORY, *module.split("."))
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize(("doc", "command"), _everywhere(r"-m llmhalluc\.(run_\w+ --config [^`\n]+)"))
def test_commands_in_documents_are_configurations(doc, command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    program, *arguments = command.split()
    build(read(arguments, program, ()))


@pytest.mark.parametrize("name", ["sudoku_3_seeds", "sudoku_chain_3_seeds"])
def test_the_log_and_the_readme_say_what_the_committed_results_say(name):
    rows = json.loads((REPOSITORY / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    log, readme = ((REPOSITORY / path).read_text(encoding="utf-8") for path in ("docs/lab-log.md", "README.md"))
    rows = [row for row in rows if row["level"] == "arm"]
    assert len(rows) >= 10
    for row in rows:
        accuracy, low, high = (f"{100 * row[key]:.1f}" for key in ("accuracy", "accuracy_low", "accuracy_high"))
        assert f"| {accuracy} [{low}, {high}] |" in log, row["arm"]
        if row["difference"] is not None:
            points = [f"{100 * row[key]:+.1f}" for key in ("difference", "difference_low", "difference_high")]
            points = [number.replace("-", "\u2212") for number in points]
            assert f"| {points[0]} [{points[1]}, {points[2]}] |" in log, row["arm"]
            if row["variant"] == "sampled" and row["arm"] not in ("grpo_no_curriculum", "own_dpo"):
                assert f"| {accuracy} | {points[0]} [{points[1]}, {points[2]}] |" in readme, row["arm"]
