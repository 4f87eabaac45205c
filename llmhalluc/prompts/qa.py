"""Extractive question answering as in SQuAD: the prompt, and the two scores of Rajpurkar et al. (2016)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

UNANSWERABLE = "unanswerable"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def prompt_text(question: str, context: str = "") -> str:
    """The passage if there is one, the question, the cue to answer it; the answer follows after a space."""
    passage = f"Context: {context.strip()}\n" if context else ""
    return f"{passage}Question: {question.strip()}\nAnswer:"


def extract_answer(text: str) -> str:
    """The first line that says something."""
    return text.strip().partition("\n")[0].strip()


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1.0 when the answer equals a gold one after normalisation, else 0.0; without golds: UNANSWERABLE."""
    return float(normalise_answer(answer) in map(normalise_answer, golds or [UNANSWERABLE]))


def f1(answer: str, golds: Sequence[str]) -> float:
    """The best overlap of words with a gold answer, 0..1, as the harmonic mean of precision and recall."""
    words = normalise_answer(answer).split()
    return max(_f1(words, normalise_answer(gold).split()) for gold in golds or [UNANSWERABLE])


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    return 2 * (Counter(answer) & Counter(gold)).total() / (len(answer) + len(gold))
