"""Countdown problems that training never sees; text and verdict are those of llmhalluc/tasks/countdown.py."""

from llmhalluc.eval.tasks import generated
from llmhalluc.tasks import TASKS


def problems(**metadata) -> dict:
    """The data set: columns `numbers`, `target` and `solution`, all of the test part."""
    return generated("countdown", **metadata)


def prompt(doc: dict) -> str:
    """The numbers and the target."""
    return TASKS["countdown"].prompt(doc)


def answer(doc: dict) -> str:
    """The moves of one solution."""
    return TASKS["countdown"].solution(doc)


def score(doc: dict, results: list[str]) -> dict[str, float]:
    """Whether the surviving moves reach the target."""
    return TASKS["countdown"].metrics(results[0], doc)
