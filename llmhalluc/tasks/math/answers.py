"""The final answer that a text states: where it is marked, which mark counts, what it comes to, what follows it.

One reader for reward, gold, evaluation and own errors (law 9).
"""

import re
from functools import lru_cache
from typing import NamedTuple

from llmhalluc.tasks.math.reading import LONGEST, NOTHING, Reading, read_statement

_MOST_MARKS = 16  # of a text: the last ones
_MARK = re.compile(
    r"(?P<hashes>(?<!#)####(?!#))|(?P<box>\\boxed\s*(?=[{0-9]))"
    r"|(?P<words>(?<!/)\banswer\b(?:,\s+[a-z]+,)?(?:\s+(?:to|of|for)\s+(?:the|this|your)\s[^.\n:?=]{0,60}?)?(?:[*_]{0,2}\s*[:=]|[*_\s]+"
    r"(?:is|was|equals|becomes|(?:must|should|would|will)\s+be)\b)[*_]{0,2}\s*:?)",
    re.IGNORECASE,
)
# A full stop that ends a sentence: not in a number, not after one letter as in `i.e.`
_SENTENCE = re.compile(r"[.!](?<![\W_][A-Za-z]\.)(?<!Rs\.)(?<!approx\.)(?=\s|\Z)|[.!](?<=[0-9)]\.)(?=[A-Z])|\n")
_DISPLAY = re.compile(r"\s*(?:\\\[(.*?)\\\]|\$\$(.*?)\$\$)", re.DOTALL)
_HEADING = re.compile(r"####\s*[0-9]{1,2}[.):]\s+[^\W\d_]")
_CORRECTION = re.compile(
    r"\b(?:no|wait|actually|sorry|correction|oops|mistake|rather|i mean|should be|wrong|incorrect)\b", re.IGNORECASE
)
_DIGITS, _BLANK = re.compile(r"[0-9]+(?:\.[0-9]+)?"), re.compile(r"[\s:*]*")
_LAST_NUMBER = re.compile(r"[-\u2212]?[$€£]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?")


class Answer(NamedTuple):
    """A stated answer: its `text`, what that comes to, where it begins, what stands behind it, and is it complete?

    complete: something that ends it was written; `#### 4` at the end of a text may be the beginning of 42.
    """

    text: str
    reading: Reading
    start: int
    after: str
    complete: bool


def final_answer(text: str, flexible: bool = False) -> Answer | None:
    """Return the answer that counts, the last one that is stated after `####`, in `\\boxed{}` or after "answer is".

    A heading `#### 2. Sell them` is none, nor are words without a number behind a number. flexible: of a text without
    a mark, the last number.
    """
    answers = stated_answers(text)
    if answers:
        return answers[-1]
    return _unmarked(text) if flexible else None


def stated_answers(text: str) -> list[Answer]:
    """Return the marked answers in their order, at most 16; the last one counts."""
    marks = [mark for mark in _MARK.finditer(text) if not _is_in_passing(text, mark)][-_MOST_MARKS:]
    answers = [_box(text, mark) if mark.lastgroup == "box" else _line(text, mark) for mark in marks]
    answers = [answer for answer in answers if answer is not None]
    if len(answers) > 1:
        answers = [answer for answer in answers if not _HEADING.match(text, answer.start)]
    # What states no number and has no digit is a remark: `the answer is reasonable`.
    return [answer for answer in answers if not answer.reading.is_empty or re.search(r"[0-9]", answer.text)]


@lru_cache(4096)
def gold_reading(answer: str) -> Reading:
    """Return what a problem's answer is: its marked answer, or else the whole of it."""
    found = final_answer(answer)
    return found.reading if found else read_statement(answer.strip())


def _is_in_passing(text: str, mark: re.Match[str]) -> bool:
    """Whether `answer:` or `answer =` is no title: `2 points per answer = 48`."""
    if mark.lastgroup != "words" or not re.search(r"[:=]\W*\Z", mark.group()) or " is" in mark.group().lower():
        return False
    line = text[max(0, mark.start() - 40) : mark.start()].rpartition("\n")[2].strip(" \t*_#>-").lower()
    return bool(line) and line.split()[-1] not in ("final", "the", "my", "our", "your", "correct", "so", "numerical")


def _box(text: str, mark: re.Match[str]) -> Answer | None:
    """The contents of the braces after a mark, or the digits without braces."""
    at, depth = mark.end(), 0
    if text[at] != "{":
        stop = _DIGITS.match(text, at).end()
        return _answer(text, mark.start(), at, stop, len(text) > stop)
    for brace in re.finditer(r"[{}]", text[at : at + LONGEST]):
        depth += 1 if brace.group() == "{" else -1
        if not depth:
            return _answer(text, mark.start(), at + 1, at + brace.start(), True, at + brace.end())
    return None


def _line(text: str, mark: re.Match[str]) -> Answer | None:
    """The rest of the line or of the sentence after a mark, or the next line where that is empty."""
    at = mark.end()
    if display := _DISPLAY.match(text, at, at + LONGEST):
        return _answer(text, mark.start(), display.start(), display.end(), True)
    at = _BLANK.match(text, at).end()
    end = _SENTENCE.search(text, at, at + LONGEST)
    stop = end.start() if end else min(len(text), at + LONGEST)
    return _answer(text, mark.start(), at, stop, _completes(text, end))


def _completes(text: str, end: re.Match[str] | None) -> bool:
    """Whether what ends a statement shows that it is whole: a line's end, or a full stop with something behind it."""
    return end is not None and (end.group() == "\n" or end.end() < len(text))


def _answer(text: str, start: int, at: int, stop: int, complete: bool, after: int = 0) -> Answer | None:
    stated = text[at:stop].strip()
    if not stated:
        return None
    reading = read_statement(stated)
    if reading.values and _takes_back(text[max(after, stop) :][:LONGEST], reading):
        reading = NOTHING
    return Answer(stated, reading, start, text[max(after, stop) :].lstrip(" \t.!$*)}]\"'\\"), complete)


def _takes_back(after: str, reading: Reading) -> bool:
    """Whether the text behind an answer corrects it: `No, wait: it is 43.`"""
    for sentence in _SENTENCE.split(after):
        if _CORRECTION.search(sentence) and (corrected := _unmarked(sentence)):
            return bool(corrected.reading.values) and set(reading.values).isdisjoint(corrected.reading.values)
    return False


def _unmarked(text: str) -> Answer | None:
    """The last sentence with a number, all of it read, else from its last number on."""
    numbers = list(_LAST_NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    begin = max(text.rfind("\n", 0, last.start()) + 1, last.start() - LONGEST // 2)
    for stop in _SENTENCE.finditer(text, begin, last.start()):
        begin = stop.end()
    end = _SENTENCE.search(text, last.end(), last.end() + LONGEST // 2)
    stop_at = end.start() if end else min(len(text), last.end() + LONGEST // 2)
    whole = text[begin:stop_at].strip(" #")
    reading = read_statement(whole)
    complete = _completes(text, end)
    if reading.values:
        return Answer(whole, reading, begin, "", complete)
    rest = text[last.start() : stop_at]
    reading = read_statement(rest)
    return None if reading.is_empty else Answer(rest, reading, last.start(), "", complete)
