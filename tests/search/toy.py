"""A task whose steps are tokens: `a` is always right, so that a search that is told so finds what samples miss."""

from llmhalluc.decoding.backend import TorchBackend
from llmhalluc.decoding.sequence import Spec
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.search.guides import Check
from llmhalluc.search.run import search
from llmhalluc.search.tree import Problem
from llmhalluc.tasks.base import Task, Verdict, word_tokenizer
from tests.tiny import tiny_model

WORDS = ("a", "b")
TOKENIZER = word_tokenizer(WORDS)
EOS, A = 2, TOKENIZER("a").input_ids[0]


class Letters(Task):
    """The first `n` letters have to be `a`."""

    def promising(self, text, record):
        return set(text.split()) <= {"a"}

    def check(self, text, record, limit=5.0):
        words = text.split()
        return Verdict(words == ["a"] * record["n"], text.strip() or None)

    def step_ends(self, pieces):
        return list(range(1, len(pieces) + 1))


def letters(n):
    """A sampler that draws each letter with the same chance, and ends after `n` of them."""

    def sampler(logits_BV, sequences, spec):
        return [EOS if len(s.surviving) >= n else A + s.draws.randrange(len(WORDS)) for s in sequences]

    return sampler


def problems(count, n=8, prompt=8):
    return [Problem([A + (i >> j) % 2 for j in range(prompt)], f"doc {i}", Letters(), {"n": n}) for i in range(count)]


def found(method, count=20, n=8, guide=None, model=None, batch_size=64, prompt=8, **gen):
    """(traces, forward tokens of the backend, problems) of a search with `letters`, or with a model's own samples."""
    backend = TorchBackend(model or tiny_model("llama"))
    args = gen.pop("search_args", {})
    options = GenArguments(
        **{"max_new_tokens": 24, "temperature": 0.0 if method == "greedy" else 1.0, "search": method}
        | {"search_args": ({"guide": "check"} if method != "greedy" else {}) | args} | gen
    )  # fmt: skip
    spec = Spec(options, [EOS], None, "soft", TOKENIZER, sampler=letters(n) if model is None else None)
    asked = problems(count, n, prompt)
    traces = search(backend, asked, spec, guide=guide or Check(TOKENIZER), batch_size=batch_size)
    return traces, backend.forward_tokens, asked
