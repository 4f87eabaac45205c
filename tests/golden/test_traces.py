"""What tiny models write, greedy and sampled, with a BACKTRACK of their own and with every operator, is what it was."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from llmhalluc.decoding.generator import Generator
from llmhalluc.decoding.operators import Chain
from tests.decoding.bpe import byte_tokenizer
from tests.golden import compare
from tests.tiny import FAMILIES, tiny_model

NAME = "traces"
CONTEXTS = ("soft", "block", "rewind")
EOS, BACKTRACK = 2, 3  # their ids in `byte_tokenizer`
LIKINGS = {EOS: 1.5, BACKTRACK: 4.5}  # what a model adds to their logits
GREEDY, SAMPLED = {"temperature": 0.0}, {"temperature": 1.0, "top_k": None, "seed": 5}
LIMITS = {"max_new_tokens": 32, "batch_size": 2}  # prompts enter as others leave
LENGTHS = (3, 17, 1)  # of the prompts, in tokens


class Case(NamedTuple):
    """A call of `generate_traces`; context None is a model without a BACKTRACK."""

    family: str
    context: str | None
    options: dict[str, Any]
    operators: tuple[str, ...] = ()  # keys of OPERATORS; several are a Chain


# Each with parameters that make it erase what a random model writes.
OPERATORS: dict[str, dict[str, Any]] = {
    "never": {},
    "probability_threshold": {"minimum": 0.01},
    "entropy_threshold": {"maximum": 4.0, "erase": 2},
    "probability_margin": {"minimum": 0.02, "penalty": -2.0},
    "probability_drop": {"maximum": 0.8},
    "probability_trend": {"window": 3, "share": 0.3, "erase": 3},
    "repetition": {"maximum": 1, "penalty": -3.0},
    "ngram_overlap": {"n": 1},
    "logit_threshold": {"minimum": 0.0},
    "backtrack_token": {"token_id": BACKTRACK},
    "banned_phrases": {"phrases": {"a": -1.0, "th": -float("inf")}, "patterns": ["[i-o]"]},
    "replace": {"find": "a", "write": "the mat", "at_most": 2},
}
# Options of the `gen` section that change which token comes next, or where a text ends.
OPTION_CASES = {
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.1},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "stop_sequences": {"stop_sequences": ["e", "th"]},
    "max_erasures": {"max_erasures": 2},
    "no ban_erased": {"ban_erased": False},
    "no backtrack": {"backtrack": False},
    "backtrack_bias": {"backtrack_bias": -2.0},
}


def cases() -> dict[str, Case]:
    made = {}
    for family in FAMILIES:
        for context in CONTEXTS:
            made[f"{family} {context} greedy"] = Case(family, context, GREEDY)
            made[f"{family} {context} sampled"] = Case(family, context, SAMPLED)
    for name, options in OPTION_CASES.items():
        made[f"option {name}"] = Case("llama", "block", SAMPLED | options)
    cool = SAMPLED | {"temperature": 0.8}
    for name in OPERATORS:
        made[f"operator {name}"] = Case("llama", None, cool, (name,))
    for name in ("repetition", "ngram_overlap"):
        made[f"operator {name} greedy"] = Case("gpt2", None, GREEDY, (name,))
    made["chain"] = Case("llama", None, cool, ("probability_threshold", "banned_phrases", "ngram_overlap"))
    made["operator without a budget"] = Case("llama", None, SAMPLED | {"max_erasures": 1}, ("banned_phrases",))
    for context in CONTEXTS:
        now_and_then = SAMPLED | {"backtrack_every_n": 2}
        made[f"operator beside BACKTRACK {context}"] = Case("qwen3", context, now_and_then, ("probability_threshold",))
    return made


CASES = cases()


def generator(family: str, context: str | None) -> Generator:
    """A random model over characters in pieces; where it has a BACKTRACK, it likes it."""
    tokenizer = byte_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer))
    likings = torch.zeros(len(tokenizer), dtype=torch.float64)
    for token_id, liking in LIKINGS.items():
        likings[token_id] = liking
    model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, logits: logits + likings)
    if context is not None:
        model.config.backtrack = {"token": "<|BACKTRACK|>", "token_id": BACKTRACK, "context": context}
    return Generator(model, tokenizer)


def numbers_of(name: str) -> list[dict[str, Any]]:
    """The traces of a case, one a prompt."""
    case, rng = CASES[name], random.Random(name)
    made = generator(case.family, case.context)
    prompts = [[rng.randrange(4, 330) for _ in range(length)] for length in LENGTHS]
    judges = [made.operator(name, **OPERATORS[name]) for name in case.operators]
    judge = Chain(*judges) if len(judges) > 1 else next(iter(judges), None)
    return [told(trace) for trace in made.generate_traces(prompts, operator=judge, **LIMITS | case.options)]


def told(trace: Any) -> dict[str, Any]:
    """What is kept of a trace."""
    return {
        "completion_ids": trace.completion_ids,
        "surviving_ids": trace.surviving_ids,
        "text": trace.text,
        "erasures": trace.erasures,
        "events": [[event.at, event.n, event.source] for event in trace.events],
        "finish_reason": trace.finish_reason,
        "forward_passes": trace.forward_passes,
        "logprobs": [compare.short(logprob) for logprob in trace.logprobs],
    }


def measure(folder: Path) -> dict[str, Any]:
    """All cases."""
    return {name: numbers_of(name) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_trace_is_what_it_was(name):
    compare.check(compare.read(NAME)[name], numbers_of(name))


def test_the_kept_traces_hold_what_can_happen():
    kept = compare.read(NAME)
    assert list(kept) == list(CASES)
    for name, traces in kept.items():
        erases = not name.endswith((" never", " no backtrack"))
        assert any(trace["erasures"] for trace in traces) == erases, name
    traces = [trace for made in kept.values() for trace in made]
    assert {trace["finish_reason"] for trace in traces} == {"eos", "stop", "length", "budget"}
    sources = {source.split()[0] for trace in traces for _, _, source in trace["events"]}  # replace tells the text too
    assert sources == OPERATORS.keys() - {"never"} | {"BACKTRACK"}
