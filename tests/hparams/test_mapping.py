"""A mapping against the dataclass that says what it may hold, and types in plain values and in words."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from llmhalluc.extras.option import option
from llmhalluc.hparams.mapping import accepts, check_mapping, describe, make


@dataclass
class Options:
    """Options of a task."""

    size: Literal[4, 6] = option(4, "side")
    share: float = option(0.5, "share", bounds="(0, 1]")
    level: str | None = option(None, "level", choices=("easy", "hard"))
    when: Literal["no", "epoch"] = option("epoch", "when")


@pytest.mark.parametrize(
    ("mapping", "problems"),
    [
        ({"size": 6, "share": 1, "level": None, "when": False}, []),
        ({"level": "hard"}, []),
        ([4], [("data.task", "data.task is [4], expected a section of keys")]),
        ({"sice": 4}, [("data.task.sice", "data.task.sice is no key; did you mean data.task.size?")]),
        ({"x": 4}, [("data.task.x", "data.task.x is no key; valid: data.task.size, data.task.share, data.task.level, "
                     "data.task.when")]),
        ({"top_k": 1}, [("data.task.top_k", "data.task.top_k is no key; did you mean gen.top_k?")]),
        ({"size": 5, "share": 0}, [("data.task.size", "data.task.size is 5, expected one of 4, 6"),
                                   ("data.task.share", "data.task.share is 0, expected a number in (0, 1]")]),
        ({"level": "x"}, [("data.task.level", "data.task.level is 'x', expected one of easy, hard")]),
        ({"when": True}, [("data.task.when", "data.task.when is True, expected one of no, epoch")]),
    ],
)  # fmt: skip
def test_each_mistake_of_a_mapping_has_its_name_and_sentence(mapping, problems):
    assert check_mapping("data.task", mapping, Options, ["gen.top_k"]) == problems


def test_what_has_no_mistake_becomes_an_instance():
    made = make(Options, {"size": 6, "share": 1, "when": False})
    assert made == Options(size=6, share=1.0, when="no") and isinstance(made.share, float)


@pytest.mark.parametrize(
    ("kind", "good", "bad", "words"),
    [
        (float, [1, 1.5], [True, "1"], "float"),
        (int, [1], [True, 1.0, None], "int"),
        (bool, [True], [1, "true"], "bool"),
        (Literal[4, 6], [4], [4.0, True, 5], "one of 4, 6"),
        (Literal[False], [False], [0, None], "False"),
        (list[str], [[], ["a"]], ["a", [1], None], "list of str"),
        (dict[str, list[Any]], [{}, {"a": [1]}], [{1: []}, {"a": 1}, []], "dict of list of any"),
        (dict[str, Any] | None, [None, {"a": 1}], [1], "dict or none"),
        (dict, [{"a": 1}], [[]], "dict"),
    ],
)
def test_types_of_plain_values(kind, good, bad, words):
    assert all(accepts(kind, value) for value in good)
    assert not any(accepts(kind, value) for value in bad)
    assert describe(kind) == words
