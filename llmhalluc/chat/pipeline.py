"""Conversation on top of a Generator: stateless turns through the model's own chat template."""

from collections.abc import Iterator, Sequence
from typing import Any

from llmhalluc.decoding.generator import Generator
from llmhalluc.extras.errors import UserError

Message = dict[str, str]  # {"role": "user", "content": "…"}


class ChatPipeline:
    """Turns of a conversation; nothing is kept between them but what the caller hands back.

    A model without a chat template gets a plain one: `User: …`, `Assistant: …`. With `raw` the question itself is the
    prompt and earlier turns are not shown, as models want that were trained on prompts and completions.
    `template_kwargs` go to the chat template (`enable_thinking=False`).
    """

    def __init__(self, generator: Generator, system: str | None = None, raw: bool = False, **template_kwargs: Any):
        self.generator, self.system, self.raw, self.template_kwargs = generator, system, raw, template_kwargs

    def run_turn(self, question: str, history: Sequence[Message] = (), **kw: Any) -> tuple[str, list[Message]]:
        """The answer, and the history with question and answer added; `kw` as for `Generator.generate`."""
        *_, (_, trace) = self.stream_turn(question, history, **kw)
        answer = trace.text.strip()
        return answer, self.extended(history, question, answer)

    def stream_turn(self, question: str, history: Sequence[Message] = (), **kw: Any) -> Iterator[tuple[str, Any]]:
        """The turn's ("add", text) and ("erase", characters) events, and ("end", Trace) after them."""
        if not self.raw and not self.generator.tokenizer.chat_template:
            stops = kw.get("stop_sequences") or []
            kw["stop_sequences"] = [*([stops] if isinstance(stops, str) else stops), "\nUser:"]
        return self.generator.stream_events(self.prompt(question, history), **kw)

    def prompt(self, question: str, history: Sequence[Message] = ()) -> str | list[int]:
        """What the model completes: ids where a chat template made them, for it has put BOS there itself."""
        if not question.strip():
            raise UserError("the question is empty: ask something")
        if self.raw:
            return question
        messages, tokenizer = self.extended(history, question), self.generator.tokenizer
        if tokenizer.chat_template:
            return tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False, **self.template_kwargs
            )
        lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return "\n".join([*lines, "Assistant:"])

    def extended(self, history: Sequence[Message], question: str, answer: str | None = None) -> list[Message]:
        """A new history: the old one, begun with the system message if there is one, and this turn."""
        start = [{"role": "system", "content": self.system}] if self.system and not history else []
        turn = [{"role": "user", "content": question}]
        turn += [] if answer is None else [{"role": "assistant", "content": answer}]
        return [*start, *history, *turn]
