"""Generator: text in and out, streams that add up to it, and one clear sentence for whatever cannot be."""

import inspect
import random
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM

from llmhalluc.backtrack import CONTEXTS, apply_backtracking
from llmhalluc.decoding import streaming
from llmhalluc.decoding.generator import TEXT_OPERATORS, Generator
from llmhalluc.decoding.operators import OPERATORS, ProbabilityThreshold, Repetition
from llmhalluc.decoding.options import generation_options, operator_parameters
from llmhalluc.decoding.sequence import Erase, Trace
from llmhalluc.decoding.streaming import TextStream
from llmhalluc.extras import constant
from llmhalluc.extras.errors import UserError
from tests.decoding.bpe import byte_tokenizer
from tests.models.saved import saved_gguf
from tests.tiny import tiny_model

BT = 3


def generator(context="rewind", wish=2.0, family="llama", **config):
    """A tiny model over characters in pieces, which likes its BACKTRACK."""
    model = tiny_model(family, vocab_size=len(byte_tokenizer()), **config)
    model.config.backtrack = {"token": "<|BACKTRACK|>", "token_id": BT, "context": context}

    def like(_module, _args, out):
        out.logits[..., BT] += wish

    model.register_forward_hook(like)
    return Generator(model, byte_tokenizer())


def applied(events, text=""):
    """What stands after the events."""
    for kind, value in events:
        assert kind in ("add", "erase") and value
        assert kind == "add" or value <= len(text)
        text = text + value if kind == "add" else text[: len(text) - value]
    return text


def test_a_string_gives_a_string_and_a_list_a_list():
    made = generator()
    one = made.generate("the cat", max_new_tokens=12, seed=1)
    assert isinstance(one, str) and one
    assert made.generate(["the cat"], max_new_tokens=12, seed=1) == [one]
    assert made.generate([], seed=1) == []
    ids = byte_tokenizer()("the cat").input_ids
    assert made.generate(ids, max_new_tokens=12, seed=1) == one
    trace = made.generate_traces("the cat", max_new_tokens=12, seed=1)
    assert isinstance(trace, Trace) and trace.text == one and trace.prompt_ids == ids
    assert trace.surviving_ids == apply_backtracking(trace.completion_ids, BT)
    (same,) = made.generate_traces([ids], max_new_tokens=12, seed=1)
    assert same == trace


def test_seeds_temperature_and_top_k():
    made = generator()
    draws = [made.generate("a", max_new_tokens=30) for _ in range(3)]
    assert len(set(draws)) == 3  # no seed: fresh randomness
    greedy = [made.generate("a", max_new_tokens=30, temperature=0, seed=seed) for seed in (1, 2)]
    assert greedy[0] == greedy[1] == made.generate("a", max_new_tokens=30, top_k=1, seed=3)
    assert made.generate("a", seed=4, top_p=0.9) != made.generate("a", seed=4, top_p=0.1)


def test_without_backtrack_it_is_transformers_generate():
    model = tiny_model("gpt2", vocab_size=len(byte_tokenizer()))
    made = Generator(model, byte_tokenizer())
    assert (made.backtrack_id, made.context, made.eos_ids) == (None, "soft", [2])
    ids = torch.tensor([byte_tokenizer()("the mat").input_ids])
    expected = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    text = byte_tokenizer().decode(expected, skip_special_tokens=True)
    assert made.generate("the mat", temperature=0, max_new_tokens=20) == text


def test_operators_by_name_by_instance_and_as_a_function():
    made = generator(wish=-1000.0)
    run = dict(max_new_tokens=20, seed=2)
    traces = [made.generate_traces("a", operator=o, **run) for o in ("probability_threshold", ProbabilityThreshold())]
    assert traces[0] == traces[1] and traces[0].erasures

    def vowels(step):  # a user's own rule
        letters = [made.tokenizer.decode(row.surviving[-1:]) for row in step.sequences]
        return {i: Erase(1) for i, text in enumerate(letters) if set(text) & set("aeiou")}

    assert not set(made.generate("the", operator=vowels, max_erasures=1000, **run)) & set("aeiou")
    seldom = made.generate_traces("a", operator="probability_threshold", backtrack_every_n=5, **run)
    assert seldom.events and all(event.at % 5 == 0 or event.at >= 20 for event in seldom.events)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(CONTEXTS), st.booleans(), st.booleans())
def test_a_stream_adds_up_to_the_text(seed, context, with_operator, with_stop):
    made, rng = generator(context, family=random.Random(seed).choice(["llama", "qwen3"])), random.Random(seed)
    given = dict(
        seed=seed, max_new_tokens=rng.randrange(1, 80), operator=Repetition(2) if with_operator else None,
        stop_sequences=["e", "th", "\ufffd "] if with_stop else None, top_k=rng.choice([None, 20]),
    )  # fmt: skip
    assert applied(made.generate("猫 🐱", stream=True, **given)) == made.generate("猫 🐱", **given)


def test_a_stream_comes_while_it_is_written():
    made, forwards = generator(), []
    made.model.register_forward_hook(lambda *_: forwards.append(1) and None)
    events = made.generate("the", stream=True, max_new_tokens=50, seed=3)
    assert not forwards
    next(events)
    assert len(forwards) < 20


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 329), st.integers(-6, -1)), max_size=60), st.integers(2, 70))
def test_random_traces_stream_exactly(trace, segment):
    # Non-negative: a token is added; negative: so many are erased. Most tokens are single bytes of characters.
    tokenizer, ids, shown = byte_tokenizer(), [], ""
    text = TextStream(tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "SEGMENT", segment)
        for step in trace:
            if step >= 0:
                ids.append(step)
                events = text.add(step)
                assert [kind for kind, _ in events] in ([], ["add"])  # nothing shown is taken back by an addition
            else:
                n = min(-step, len(ids))
                ids = ids[: len(ids) - n]
                events = text.erase(n)
            shown = applied(events, shown)
            whole = tokenizer.decode(ids, skip_special_tokens=True)
            assert shown == whole.rstrip("\ufffd") == text.shown
        assert applied(text.finish(whole if trace else ""), shown) == (whole if trace else "")


def test_characters_and_stop_strings_are_held_back_until_they_are_whole():
    tokenizer = byte_tokenizer()
    ids = tokenizer("a🙂", add_special_tokens=False).input_ids
    assert len(ids) > 2
    text = TextStream(tokenizer)
    assert [text.add(id) for id in ids] == [[("add", "a")], *[[]] * (len(ids) - 2), [("add", "🙂")]]
    text = TextStream(tokenizer, ["stop"])
    seen = [text.add(id) for word in ("s", "t", "o", "r") for id in tokenizer(word).input_ids]
    assert seen == [[], [], [], [("add", "stor")]]


def test_no_double_bos():
    tokenizer = byte_tokenizer.__wrapped__()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A $B <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    made = Generator(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    (a,) = byte_tokenizer()("a").input_ids
    assert made.encode("a") == made.encode("<bos>a") == [1, a]  # and no EOS that a tokenizer puts at the end
    assert made.encode("a<eos>")[-1] == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(top_k=0), "top_k is 0"),
        (dict(temperature=-1.0), "temperature is -1.0"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(top_p=0.0), "top_p is 0.0"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(backtrack_every_n=0), "backtrack_every_n is 0"),
        (dict(stop_sequences=["a", ""]), "stop_sequences holds an empty string"),
        (dict(stop_sequences=3), "stop_sequences is 3, expected str or list of str or none"),
        (dict(seed="x"), "seed is 'x'"),
        (dict(temprature=1.0), "temprature is no generation setting; did you mean temperature?"),
        (dict(operator="repitition"), "operator 'repitition' is unknown; did you mean repetition?"),
        (dict(operator=Repetition), "operator is the class Repetition"),
        (dict(operator=3), "operator is 3"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_settings_are_one_sentence_before_anything_runs(given, sentence, stream):
    made = generator()
    made.model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    with pytest.raises(UserError, match=sentence) as told:
        made.generate("a", stream=stream, **given)
    assert len(told.value.sentences) == 1


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "the prompt is empty"),
        (["a", ""], "prompt 1 is empty"),
        (["a", []], "prompt 1 is empty"),
        ("a" * 300, "the prompt has 300 tokens, more than the model's window of 256: shorten it"),
        (["a", "b" * 200], "prompt 1 has 200 tokens, with max_new_tokens 100, .*lower max_new_tokens to 56"),
        (["a", 3], "prompt 1 is 3"),
        (None, "the prompt is None"),
        ({"a": 1}, "the prompt is {'a': 1}"),
    ],
)
def test_bad_prompts_are_one_sentence(prompt, sentence):
    with pytest.raises(UserError, match=sentence) as told:
        generator().generate(prompt)
    assert len(told.value.sentences) == 1


def test_a_batch_size_of_none_is_refused():
    with pytest.raises(UserError, match="batch_size is 0"):
        generator().generate(["a"], batch_size=0)


def test_a_stream_of_several_prompts_is_refused():
    with pytest.raises(UserError, match="stream takes one prompt"):
        generator().generate(["a", "b"], stream=True)


def test_a_context_that_the_model_cannot_do_is_refused():
    config = AutoConfig.for_model("bloom", hidden_size=16, n_layer=1, n_head=2, vocab_size=330)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="takes no position_ids"):
        Generator(model, byte_tokenizer(), context="rewind")
    with pytest.raises(UserError, match="context is 'blok'"):
        Generator(model, byte_tokenizer(), context="blok")
    assert Generator(model, byte_tokenizer()).context == "soft"


def test_from_pretrained_respects_the_record(tmp_path):
    made = generator("block")
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = Generator.from_pretrained(str(tmp_path), device="cpu", dtype=torch.float64)
    assert (loaded.backtrack_id, loaded.context) == (BT, "block")
    assert loaded.model.dtype == torch.float64
    assert Generator.from_pretrained(str(tmp_path), context="soft", device="cpu").context == "soft"
    given = dict(max_new_tokens=30, temperature=0, backtrack_bias=2.0)
    assert loaded.generate("the", **given) == generator("block").generate("the", max_new_tokens=30, temperature=0)
    with pytest.raises(UserError, match="model.dtyp is no key; did you mean model.dtype?"):
        Generator.from_pretrained(str(tmp_path), dtyp="float64")
    with pytest.raises(UserError, match="does not exist"):
        Generator.from_pretrained(str(tmp_path / "nothing"))


def test_from_pretrained_takes_a_gguf_file(tmp_path, monkeypatch):
    monkeypatch.setattr(constant, "CACHE", tmp_path / "cache")
    model = saved_gguf(tmp_path / "tiny.gguf")
    loaded = Generator.from_pretrained(str(tmp_path / "tiny.gguf"), device="cpu")
    assert torch.equal(loaded.model.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert isinstance(loaded.generate("the rat", max_new_tokens=5), str)
    with pytest.raises(UserError, match="a GGUF file that does not exist"):
        Generator.from_pretrained(str(tmp_path / "other.gguf"))


def test_operator_parameters_are_read_off_the_source_as_they_are():
    expected = {name: {field.name for field in fields(kind)} for name, kind in OPERATORS.items()}
    for name, kind in TEXT_OPERATORS.items():
        expected[name] = {*inspect.signature(kind).parameters} - {"tokenizer"}
    assert {name: set(parameters) for name, parameters in operator_parameters().items()} == expected


def test_operators_that_read_text_get_the_tokenizer():
    made = generator(wish=-1000.0)
    banned = made.operator("banned_phrases", phrases=["e", "a"])
    text = made.generate("the", operator=banned, max_new_tokens=40, seed=5)
    assert text and not set(text.casefold()) & {"a", "e"}
    with pytest.raises(UserError, match="phrases and patterns are both empty"):
        made.generate("the", operator="banned_phrases")


def test_whole_numbers_are_taken_where_floats_are_meant():
    options = generation_options({"repetition_penalty": 3, "temperature": 1, "seed": 0})
    assert options.repetition_penalty == 3 and type(options.repetition_penalty) is type(options.temperature) is float
