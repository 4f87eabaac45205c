"""What is suggested for an unknown name, and what is listed where nothing is near."""

import pytest

from llmhalluc.extras.errors import did_you_mean, nearest, one_line
from llmhalluc.hparams.parser import section_keys
from llmhalluc.hparams.sections import SECTIONS

KNOWN = [f"{section}.{key}" for section in SECTIONS for key in section_keys(section)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gen.max_tokens", "gen.max_new_tokens"),
        ("train.learnig_rate", "train.learning_rate"),
        ("data.learning_rate", "train.learning_rate"),
        ("train.context", None),  # gen and backtrack have one
        ("train.batch_size", None),  # not auto_find_batch_size, and not another section's
        ("gen.min_probability", None),
        ("gen.max_repetitions", None),
        ("gen.do_sample", None),
        ("model.parallelize", None),
        ("gen.lr", None),
    ],
)
def test_trap23_what_is_not_near_is_not_suggested(name, meant):
    assert nearest(name, KNOWN) == meant


def test_trap23_where_nothing_is_near_the_valid_names_are_listed():
    assert did_you_mean("repitition", ["never", "repetition"]) == "; did you mean repetition?"
    assert did_you_mean("x", ["never", "repetition"]) == "; valid: never, repetition"
    assert did_you_mean("gen.parallelize", KNOWN).startswith("; valid: gen.max_new_tokens, gen.temperature, ")
    assert did_you_mean("train.parallelize", KNOWN).endswith(" more (see --help)")
    assert did_you_mean("x", ["y"] * 2, "`ls`") == "; `ls` lists the valid names"
    assert did_you_mean("x", []) == ""


def test_an_error_on_one_line():
    assert one_line(ValueError("a\n  b")) == "a b" and one_line("abc", 2) == "ab"
