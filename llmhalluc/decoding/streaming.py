"""Token events become text events: characters added, characters taken back."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

TextEvent = tuple[str, str | int]  # ("add", text) or ("erase", how many characters)
CUT_CHARACTER = "\ufffd"  # what bytes of an unfinished character decode to
SEGMENT, LEAD = 64, 8  # tokens after which decoding starts anew, and those decoded again before it


class TextStream:
    """The text of the surviving tokens, shown as it grows and shrinks.

    A character is shown once its last byte is there, and the beginning of a stop string only when it turns out to be
    none. What was shown is always right after `finish`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()):
        self.tokenizer, self.stops = tokenizer, stops
        self.ids: list[int] = []
        self.shown = ""
        self._marks = [(0, "")]  # (number of tokens, their text)

    def add(self, token: int) -> list[TextEvent]:
        """Add a token, and return what changes."""
        self.ids.append(token)
        return self._show_stable()

    def erase(self, count: int) -> list[TextEvent]:
        """Take back the last `count` tokens, and return what changes."""
        del self.ids[len(self.ids) - count :]
        return self._show_stable()

    def finish(self, text: str) -> list[TextEvent]:
        """Show the text that is known to be whole."""
        shorter = min(len(self.shown), len(text))
        common = next((i for i in range(shorter) if self.shown[i] != text[i]), shorter)
        events: list[TextEvent] = [("erase", len(self.shown) - common)] if common < len(self.shown) else []
        if common < len(text):
            events.append(("add", text[common:]))
        self.shown = text
        return events

    def _show_stable(self) -> list[TextEvent]:
        """Show the text without what may still become another character or a stop string."""
        text = self._text().rstrip(CUT_CHARACTER)
        held = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return self.finish(text[: len(text) - held])

    def _text(self) -> str:
        """Everything decoded; only the newest segment is decoded again."""
        while self._marks[-1][0] > len(self.ids):
            self._marks.pop()
        start, before = self._marks[-1]
        lead = max(0, start - LEAD)
        overlap, tail = self._decode(self.ids[lead:start]), self._decode(self.ids[lead:])
        text = before + tail[len(overlap) :] if tail.startswith(overlap) else self._decode(self.ids)
        if len(self.ids) >= start + SEGMENT and not text.endswith(CUT_CHARACTER):
            self._marks.append((len(self.ids), text))
        return text

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True) if ids else ""
