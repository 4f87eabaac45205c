"""SVAMP as it comes from its authors (numbers as floats) or from the hub (numbers as text, other columns beside)."""

from llmhalluc.eval.tasks import require_columns
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.math.reading import read_statement


def records(dataset):
    """Columns `question` (the story and what it asks) and `answer` (`#### N`, as in GSM8K)."""
    require_columns(dataset, "svamp", "Body", "Question", "Answer")

    def as_gsm8k(doc: dict) -> dict[str, str]:
        [number] = read_statement(str(doc["Answer"])).values
        return {"question": f"{doc['Body'].strip()} {doc['Question'].strip()}", "answer": f"#### {number}"}

    return dataset.map(as_gsm8k, remove_columns=dataset.column_names)


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """Strict and flexible match of a surviving text, as for GSM8K."""
    return TASKS["math"].metrics(results[0], doc)
