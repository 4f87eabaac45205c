"""GSM8K: the prompt, the solution and the verdict are those of llmhalluc/prompts/math.py."""

from llmhalluc.eval.metrics import math_match, text_overlap
from llmhalluc.eval.tasks import require_columns
from llmhalluc.prompts import math


def records(dataset):
    """The records, once it is sure that they have what the prompt needs."""
    return require_columns(dataset, "gsm8k", "question", "answer")


def prompt(doc: dict) -> str:
    """The prompt that models are trained on."""
    return math.prompt_text(doc["question"])


def solution(doc: dict) -> str:
    """The worked solution that models are trained on; its last line is `#### N`."""
    return math.clean_solution(doc["answer"])


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """Strict and flexible match of a surviving text, and its overlap with the worked solution."""
    return math_match(results[0], doc["answer"]) | text_overlap(results[0], solution(doc))
