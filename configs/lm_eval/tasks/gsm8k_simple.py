"""GSM8K: the prompt, the solution and the verdict are those of llmhalluc/tasks/math."""

from llmhalluc.eval.metrics import text_overlap
from llmhalluc.eval.tasks import require_columns
from llmhalluc.tasks import TASKS


def records(dataset):
    """The records, once it is sure that they have what the prompt needs."""
    return require_columns(dataset, "gsm8k", "question", "answer")


def prompt(doc: dict) -> str:
    """The prompt that models are trained on."""
    return TASKS["math"].prompt(doc)


def solution(doc: dict) -> str:
    """The worked solution that models are trained on; its last line is `#### N`."""
    return TASKS["math"].solution(doc)


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """Strict and flexible match of a surviving text, and its overlap with the worked solution."""
    return TASKS["math"].metrics(results[0], doc) | text_overlap(results[0], solution(doc))
