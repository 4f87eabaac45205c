"""Operators that read the surviving text: `BannedPhrases` keeps strings out of it, `Replace` writes others instead.

What they know of a text lies in the sequence's `operator_state`, an entry a surviving token, so that it rewinds with
the sequence. The text is what the tokenizer makes of the surviving ids: a piece is what decoding a few ids more adds to
it, so byte-level, sentencepiece and word-level tokenizers all come out right. Tokens that spell a character together
make one group; its text is settled with the last one.
"""

import functools
import math
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from llmhalluc.decoding.sequence import Erase, Sequence, Step
from llmhalluc.extras.errors import UserError

TAIL = 256  # most characters of a regular expression's match
AROUND = 64  # characters before those that it may look back to


class BannedPhrases:
    """Keeps phrases out of the surviving text: erases back to the token where one begins and penalises that token.

    phrases are strings, found wherever they stand; patterns regular expressions, whose matches are at most TAIL
    characters long and count once another token has not undone them. Either may be a mapping to penalties of their
    own. A penalty of -inf is a hard ban: the sequence ends rather than keep the phrase. A softer one is a nudge, given
    once at a place: a phrase that comes all the same stands. Raises UserError for invalid input.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        phrases: Collection[str] | Mapping[str, float] = (),
        patterns: Collection[str] | Mapping[str, float] = (),
        penalty: float = -math.inf,
        ignore_case: bool = True,
    ):
        strings, regexes = _penalties("phrases", phrases, penalty), _penalties("patterns", patterns, penalty)
        if not strings and not regexes:
            raise UserError("phrases and patterns are both empty: give at least one")
        self.patterns = [(_compiled(regex, ignore_case), hardness) for regex, hardness in regexes.items()]
        self.reader = Reader(tokenizer, strings, str.casefold if ignore_case else str, special=False)

    def __call__(self, step: Step) -> dict[int, Erase]:
        wishes = ((i, self._wish(sequence)) for i, sequence in enumerate(step.sequences))
        return {i: wish for i, wish in wishes if wish is not None}

    def _wish(self, sequence: Sequence) -> Erase | None:
        reader, n = self.reader, len(sequence.surviving)
        found = [(reader.place(sequence, back)[0], penalty) for back, penalty in reader.read(sequence)]
        if self.patterns:
            found += [(reader.place(sequence, back, str)[0], penalty) for back, penalty in self._matches(sequence)]
        if hard := [place for place, penalty in found if penalty == -math.inf]:
            return Erase(n - min(hard), must=True, source="banned_phrases")
        for place, penalty in sorted(found):
            if sequence.surviving[place] not in sequence.tape.penalties.get(place, {}):
                return Erase(n - place, penalty, source="banned_phrases")
        return None

    def _matches(self, sequence: Sequence) -> list[tuple[int, float]]:
        """(characters from a match's beginning to the end of the text, its penalty)."""
        text = self.reader.tail(sequence, TAIL + AROUND)
        before = len(text) - len(sequence.operator_state[self.reader][-1].text)  # the end of the text one token ago
        found = []
        for pattern, penalty in self.patterns:
            for match in pattern.finditer(text, max(0, len(text) - TAIL)):
                start, end = match.span()
                # A match at the very end may be undone by the next token (`\bcat\b` by "alog").
                settled = end < len(text) or sequence.finish_reason or pattern.match(text, start, before)
                if start < end and settled:
                    found.append((len(text) - start, penalty))
        return found


class Replace:
    """Writes `write` in the place of each `find` that the model samples, at most `at_most` times.

    Where the text would end (eos) with fewer than `at_least` replacements the eos makes room for `write`: budget
    forcing, as in s1 (arXiv:2501.19393), is `Replace(tokenizer, "</think>", "Wait, but", at_least=n, at_most=n)`.
    Only sampled text is searched; a replacement that is erased no longer counts. `find` may hold special tokens.
    Raises UserError for invalid input.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        find: str = "",
        write: str | None = None,
        at_least: int = 0,
        at_most: int | None = None,
    ):
        if not isinstance(find, str) or not find:
            raise UserError(f"find is {find!r}, expected a text that is not empty")
        if not isinstance(write, str):
            raise UserError(f"write is {write!r}, expected a text")
        if type(at_least) is not int or at_least < 0:
            raise UserError(f"at_least is {at_least!r}, expected a whole number from 0 on")
        if at_least and not write:
            raise UserError(f"at_least is {at_least}, but write is empty: give a text to write")
        if at_most is not None and (type(at_most) is not int or at_most < max(1, at_least)):
            raise UserError(f"at_most is {at_most!r}, expected none or a whole number from {max(1, at_least)} on")
        self.find, self.write, self.at_least, self.at_most = find, write, at_least, at_most
        self.tokenizer, self.source = tokenizer, f"replace {find!r}"
        special = bool({*tokenizer.encode(find, add_special_tokens=False)} & {*tokenizer.all_special_ids})
        self.reader = Reader(tokenizer, {find: 0.0}, str, special, self.source)

    def __call__(self, step: Step) -> dict[int, Erase]:
        wishes = ((i, self._wish(sequence)) for i, sequence in enumerate(step.sequences))
        return {i: wish for i, wish in wishes if wish is not None}

    def _wish(self, sequence: Sequence) -> Erase | None:
        found = self.reader.read(sequence)
        done = sequence.operator_state[self.reader][-1].writes
        if found and (self.at_most is None or done < self.at_most):
            back = max(back for back, _ in found)
            place, skipped = self.reader.place(sequence, back)
            text = self.reader.tail(sequence, back + skipped)
            limit = -1 if self.at_most is None else 1
            return self._instead(sequence, place, text[:skipped] + text[skipped:].replace(self.find, self.write, limit))
        if sequence.finish_reason == "eos" and done < self.at_least:
            return self._instead(sequence, len(sequence.surviving) - 1, self.write)
        return None

    def _instead(self, sequence: Sequence, place: int, text: str) -> Erase:
        """Erase from `place` on and write ids that add exactly `text`; the tokenizer's own where no other way does.

        A tokenizer that puts a space before all it encodes is asked about a text inside a line and without its space.
        """
        before = tuple((sequence.prompt_ids[-4:] + sequence.surviving[:place])[-4:])
        ids = functools.partial(self.tokenizer.encode, add_special_tokens=False)
        ways = [ids(text), ids("\n" + text)[len(ids("\n")) :], *([ids(text[1:])] if text.startswith(" ") else [])]
        write = next((way for way in ways if _added(self.tokenizer, True, before, tuple(way)) == text), ways[0])
        return Erase(len(sequence.surviving) - place, 0.0, write, source=self.source)


class _Entry(NamedTuple):
    """What is known once a surviving token is read."""

    text: str  # of its group so far
    first: int  # where the group begins
    anchor: int  # where decoding begins, for the group to stand in a text
    open: bool  # the group ends within a character
    state: int  # of the automaton, behind the last group that is not open
    writes: int  # our replacements so far


class Reader:
    """Follows the surviving text of sequences, a token at a time, and finds strings in it.

    fold is applied to strings and text; special says whether special tokens are part of the text; with `source` the
    writes of that source are counted, and what any operator wrote is not searched.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        strings: Mapping[str, float],
        fold: Callable[[str], str],
        special: bool,
        source: str = "",
    ):
        self.fold, self.source = fold, source
        folded: dict[str, float] = {}
        for string, penalty in strings.items():
            folded[fold(string)] = min(penalty, folded.get(fold(string), 0.0))
        self.automaton = Automaton(folded)
        self.added = functools.lru_cache(1 << 16)(functools.partial(_added, tokenizer, special))

    def read(self, sequence: Sequence) -> list[tuple[int, float]]:
        """Read what is new: (characters from a string's beginning to the end of the folded text, its penalty)."""
        ids, entries = sequence.surviving, sequence.operator_state.setdefault(self, [])
        new, hits = len(entries), {}
        for at in range(new, len(ids)):
            last = entries[-1] if entries else _Entry("", 0, 0, False, 0, 0)
            first, anchor = (
                (last.first, last.anchor) if last.open else (at, last.first if last.text.strip() else last.anchor)
            )
            while (text := self.added(tuple(ids[anchor:first]), tuple(ids[first : at + 1]))) is None:
                hits.pop(first, None)  # what stood before is read otherwise now (invalid bytes do that): one group more
                first, anchor = entries[first - 1].first, entries[first - 1].anchor
            state, writes, is_open = entries[first - 1].state if first else 0, last.writes, text.endswith("\ufffd")
            if self.source and sequence.written_by[at]:
                writes += at == new and sequence.written_by[at] == self.source
                state, is_open = 0, False
            else:
                after, hits[first] = self.automaton.run(state, self.fold(text))
                state = state if is_open else after
            entries.append(_Entry(text, first, anchor, is_open, state, writes))
        found, back, at = [], 0, len(ids) - 1
        while any(hits.values()):
            back += len(self.fold(entries[at].text))
            found += [(back - start, penalty) for start, penalty in hits.pop(entries[at].first, ())]
            at = entries[at].first - 1
        return found

    def place(self, sequence: Sequence, back: int, fold: Callable[[str], str] | None = None) -> tuple[int, int]:
        """Return the surviving token in which the last `back` (folded) characters begin, and how many it has before.

        Within a group it is the token that follows those which spell what stands before.
        """
        ids, entries, fold = sequence.surviving, sequence.operator_state[self], fold or self.fold
        at = len(ids) - 1
        while (size := len(fold(entries[at].text))) < back:
            back, at = back - size, entries[at].first - 1
        text, first, anchor = fold(entries[at].text), entries[at].first, entries[at].anchor
        skipped = len(text) - back
        for stop in range(at, first, -1):
            head = self.added(tuple(ids[anchor:first]), tuple(ids[first:stop]))
            if head is not None and len(fold(head)) <= skipped and text.startswith(fold(head)):
                return stop, skipped - len(fold(head))
        return first, skipped

    def tail(self, sequence: Sequence, size: int) -> str:
        """Return the last `size` characters of the surviving text, or all of it."""
        entries, parts, at = sequence.operator_state[self], deque[str](), len(sequence.surviving) - 1
        missing = size
        while at >= 0 and missing > 0:
            parts.appendleft(entries[at].text)
            missing, at = missing - len(entries[at].text), entries[at].first - 1
        return "".join(parts)[-size:]


class Automaton:
    """Aho–Corasick: finds all strings that end in a text in one pass over it (Aho and Corasick, 1975)."""

    def __init__(self, strings: Mapping[str, float]):
        self.next: list[dict[str, int]] = [{}]
        self.ends: dict[int, tuple[int, float]] = {}  # state -> length and penalty of the string that ends there
        for string, penalty in strings.items():
            state = 0
            for character in string:
                if character not in self.next[state]:
                    self.next[state][character] = len(self.next)
                    self.next.append({})
                state = self.next[state][character]
            self.ends[state] = (len(string), penalty)
        # The state of the longest proper suffix, and the nearest state on that chain, itself included, with an end.
        self.fail, self.hit = [0] * len(self.next), [0] * len(self.next)
        todo = deque(self.next[0].values())
        while todo:
            state = todo.popleft()
            self.hit[state] = state if state in self.ends else self.hit[self.fail[state]]
            for character, child in self.next[state].items():
                self.fail[child] = self._step(self.fail[state], character)
                todo.append(child)

    def _step(self, state: int, character: str) -> int:
        while state and character not in self.next[state]:
            state = self.fail[state]
        return self.next[state].get(character, 0)

    def run(self, state: int, text: str) -> tuple[int, list[tuple[int, float]]]:
        """Return the state after `text`, and (start, negative before the text; penalty) of each string."""
        found = []
        for end, character in enumerate(text, 1):
            state = self._step(state, character)
            hit = self.hit[state]
            while hit:
                length, penalty = self.ends[hit]
                found.append((end - length, penalty))
                hit = self.hit[self.fail[hit]]
        return state, found


def _added(
    tokenizer: PreTrainedTokenizerBase, special: bool, before: tuple[int, ...], ids: tuple[int, ...]
) -> str | None:
    """What `ids` add to the text of `before`; None where they change it."""
    old, new = (tokenizer.decode(list(part), skip_special_tokens=not special) for part in (before, before + ids))
    return new[len(old) :] if new.startswith(old) else None


def _penalties(name: str, given: Collection[str] | Mapping[str, float], penalty: float) -> dict[str, float]:
    """Each text with its penalty. Raises UserError."""
    if isinstance(given, str) or not isinstance(given, Collection):
        raise UserError(f"{name} is {given!r}, expected a list of texts")
    for text in given:
        if not isinstance(text, str) or not text:
            raise UserError(f"{name} holds {text!r}, expected texts that are not empty")
    penalties = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, penalty)
    for text, value in penalties.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 0:
            raise UserError(f"the penalty of {text!r} in {name} is {value!r}, expected a number from -inf to 0")
    return penalties


def _compiled(pattern: str, ignore_case: bool) -> re.Pattern:
    """Raises UserError for what is no pattern, or matches nothing at all."""
    try:
        compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise UserError(f"patterns holds {pattern!r}, which is no regular expression: {error}") from error
    if compiled.match(""):
        raise UserError(f"patterns holds {pattern!r}, which matches the empty text: let it need a character")
    return compiled
