"""Which decoding options hold for a task."""

import pytest

from llmhalluc.decoding.operators import ProbabilityThreshold
from llmhalluc.eval.variants import Variant, make_variants, operator_of
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.parser import build, resolved
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.hparams.yaml_files import load_raw

TASK = {"until": ["\n\n", ""], "do_sample": True, "temperature": 0.7, "max_gen_toks": 64, "top_p": 0.9}


def only(gen: dict, **keys) -> Variant:
    changes = {"v": keys} if keys else {}
    return make_variants(GenArguments(**gen), frozenset(gen), changes)["v" if keys else "default"]


def test_the_task_decides_where_nobody_else_does():
    options = only({}).for_task(TASK)
    assert (options.temperature, options.top_p, options.max_new_tokens) == (0.7, 0.9, 64)
    assert options.stop == ["\n\n"]


def test_gen_wins_over_the_task_and_a_variant_over_both():
    gen = {"max_new_tokens": 99, "temperature": 0.3, "stop": ["END"]}
    options = only(gen).for_task(TASK)
    assert (options.temperature, options.top_p, options.max_new_tokens) == (0.3, 0.9, 99)
    assert options.stop == ["END", "\n\n"], "stop strings of a task are always added"
    greedy = only(gen, temperature=0.0).for_task(TASK)
    assert (greedy.temperature, greedy.max_new_tokens) == (0.0, 99), "a variant may ask for a default"


def test_a_default_that_was_asked_for_wins_over_the_task():
    config = build(load_raw(None, ["gen.max_new_tokens=256", "gen.top_p=null", "eval.variants={v: {}}"]))
    for again in (config, build(resolved(config))):
        options = make_variants(again.gen, again.gen_given, again.eval.variants)["v"].for_task(TASK)
        assert (options.max_new_tokens, options.top_p, options.temperature) == (256, None, 0.7)


def test_sampling_flags_of_a_task():
    plain = only({})
    assert plain.for_task({"until": [], "do_sample": False, "temperature": 0.7}).temperature == 0.0
    assert plain.for_task({"until": [], "do_sample": True}).temperature == 1.0
    assert plain.for_task({"until": []}).temperature == 0.0
    assert plain.for_task({"until": []}).max_new_tokens == GenArguments().max_new_tokens


def test_names_of_gen_may_stand_in_generation_kwargs_and_others_are_told(caplog):
    options = only({}).for_task({"until": [], "ban_erased": False, "num_beams": 4})
    assert options.ban_erased is False
    assert "num_beams" in caplog.text


def test_unknown_and_wrong_keys_are_told_together():
    with pytest.raises(UserError) as raised:
        make_variants(GenArguments(), frozenset(), {"a": {"temprature": 1.0}, "b": {"top_k": "many"}})
    first, second = raised.value.sentences
    assert "eval.variants.a.temprature" in first and "temperature" in first
    assert "eval.variants.b.top_k" in second and "'many'" in second


def test_an_operator_is_named_by_gen_or_a_variant_and_checked_before_anything_is_loaded():
    gen = {"operator": "probability_threshold", "operator_args": {"minimum": 0.2}}
    assert operator_of(only(gen).for_task({"until": []})) == ProbabilityThreshold(minimum=0.2)
    assert operator_of(only(gen, operator=None, operator_args={}).options) is None
    with pytest.raises(UserError) as raised:
        make_variants(
            GenArguments(),
            frozenset(),
            {"a": {"operator": "probability_treshold"}, "b": {"operator": "repetition", "operator_args": {"n": 2}},
             "c": {"operator_args": {"n": 2}}},
        )  # fmt: skip
    unknown, parameter, alone = raised.value.sentences
    assert "did you mean probability_threshold?" in unknown and "no parameter 'n'" in parameter
    assert "without gen.operator" in alone
