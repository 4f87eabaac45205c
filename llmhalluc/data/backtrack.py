"""Records as they are: a prompt column, an answer column, and a template around the prompt; plain, or with errors."""

from typing import Any

from llmhalluc.data.base import BacktrackDatasetConverter, ErringConverter, column


class SFTConverter(BacktrackDatasetConverter):
    """`data.prompt_column` and `data.completion_column`; the template qa also reads a column `context`."""

    def texts(self, record: dict[str, Any]) -> tuple[str, str]:
        from llmhalluc.prompts import math, qa  # templates that most runs do without

        prompt = str(column(record, self.data.prompt_column, "data.prompt_column"))
        answer = str(column(record, self.data.completion_column, "data.completion_column"))
        if self.data.template == "math":
            return math.prompt_text(prompt), self.delimiter + answer.strip()
        if self.data.template == "qa":
            return qa.prompt_text(prompt, record.get("context") or ""), self.delimiter + answer.strip()
        return prompt, answer


class BacktrackConverter(ErringConverter, SFTConverter):
    """The answer with random error runs, as the `backtrack` section says."""
