"""Extractive question answering, as in SQuAD: a passage, a question, and the first of its answers."""

from llmhalluc.prompts import qa
from llmhalluc.tasks.base import Record, Task, Verdict


class QA(Task):
    """Columns `question`, `context` and `answers` (`{"text": […]}`; an empty list: unanswerable)."""

    columns = ("question", "context", "answers")

    def prompt(self, record: Record) -> str:
        return qa.prompt_text(record["question"], record["context"])

    def solution(self, record: Record) -> str:
        golds = record["answers"]["text"]
        return (golds[0] if golds else qa.UNANSWERABLE).strip()

    def check(self, text: str, record: Record, limit: float = 5.0) -> Verdict:
        """Return whether the first line equals one of the answers after normalisation."""
        stated = qa.extract_answer(text)
        return Verdict(bool(qa.exact_match(stated, record["answers"]["text"])), stated or None)


TASK = QA()
