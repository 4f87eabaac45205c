"""SQuAD: a passage, a question, and the first of its answers."""

from typing import Any

from llmhalluc.data.base import DatasetConverter, column
from llmhalluc.prompts import qa


class SquadConverter(DatasetConverter):
    """Columns `question`, `context` and `answers` (`{"text": […]}`; an empty list: unanswerable)."""

    def texts(self, record: dict[str, Any]) -> tuple[str, str]:
        question, context, answers = (
            column(record, name, "data.converter squad") for name in ("question", "context", "answers")
        )
        answer = answers["text"][0] if answers["text"] else qa.UNANSWERABLE
        return qa.prompt_text(question, context), self.delimiter + answer.strip()
