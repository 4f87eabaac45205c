"""`gen.compile`: a fixed cache and a compiled step give the traces of the plain loop, and are compiled seldom."""

import random
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.decoding.generator import Generator
from llmhalluc.decoding.remote import Server, decode_remote
from llmhalluc.decoding.slots import SlotCache
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.models.context import apply_context
from tests.decoding.operating import Careless, decode, some_prompts, spec_of
from tests.decoding.test_engine import gemma, layout_logits, random_trace, scripted
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

BT, EOS = 63, 2
RUN = {"eos_ids": [EOS], "backtrack_id": BT, "batch_size": 4}
OPTIONS = GenArguments(max_new_tokens=30, temperature=1.0, top_k=40, backtrack_bias=2.0, max_erasures=60, seed=4)


@pytest.fixture
def uncompiled():
    """The fixed cache and its masks without the compiler, which takes seconds a model."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def fresh():
    """Nothing compiled yet; the counter of compiled graphs."""
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def same_traces(model, context, operator, options=OPTIONS, atol=1e-9, prompts=None):
    """Both ways of decoding these prompts, with an operator or none; they have erased something."""
    prompts = prompts or some_prompts(random.Random(f"{context}"), 9, longest=20)
    both = [
        decode(model, prompts, replace(options, compile=compile), context=context,
               operator=Careless(5) if operator else None, **RUN)
        for compile in (False, True)
    ]  # fmt: skip
    assert sum(trace.erasures for trace in both[0]) > 3
    for plain, compiled in zip(*both, strict=True):
        assert compiled.logprobs == pytest.approx(plain.logprobs, abs=atol)
        assert replace(compiled, logprobs=[]) == replace(plain, logprobs=[])


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_text"])
def test_a_fixed_cache_gives_the_same_traces(uncompiled, family, context):
    same_traces(gemma() if family == "gemma3_text" else tiny_model(family), context, operator=True)


def test_a_fixed_cache_adds_the_mask_in_eager_attention(uncompiled):
    model = tiny_model("qwen3")
    model.set_attn_implementation("eager")
    same_traces(model, "block", True, atol=1e-5)  # its softmax is float32


def test_prompts_of_one_token_have_a_cache_too(uncompiled):
    same_traces(tiny_model("llama"), "rewind", False, prompts=[[5], [6], [7]])


def apply_hook(model):
    """The model as `load` gives it: with the hook that lays out traces in its forward."""
    apply_context(model, "soft", BT)
    return model


def test_law3_compiled_logits_equal_the_layout_and_steps_are_compiled_once(fresh):
    # GPT-2 is float64 throughout; the norms of the other families are float32 in any case.
    model = apply_hook(tiny_model("gpt2"))
    same_traces(model, "block", True)
    assert fresh() == 1
    with torch._dynamo.config.patch(error_on_recompile=True):
        for context in CONTEXTS:
            same_traces(model, context, False)
            same_traces(model, context, True)
            rng = random.Random(context)
            prompts = some_prompts(rng, 4)
            traces = [random_trace(rng, 8) for _ in prompts]
            seen, sampler = scripted(traces)
            options = GenArguments(max_new_tokens=64, compile=True)
            decode(model, prompts, options, context=context, sampler=sampler, **RUN)
            for i, (prompt, trace) in enumerate(zip(prompts, traces, strict=True)):
                expected = layout_logits(model, prompt, trace, context)[len(prompt) - 1 :]
                torch.testing.assert_close(torch.stack(seen[i]), expected, rtol=0, atol=1e-9)
    assert fresh() == 1
    # Beyond 64 columns the cache has 128: once more, however many steps there are.
    same_traces(model, "soft", False, replace(OPTIONS, max_new_tokens=100))
    assert fresh() == 2


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_compiled_families_give_the_same_traces(fresh, family):
    model = gemma() if family == "gemma3_text" else tiny_model(family)
    for context in CONTEXTS:
        for operator in (False, True):
            same_traces(model, context, operator, atol=1e-4)  # their norms are float32, and rounded elsewhere
    assert fresh() == 1


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_graphs_give_the_same_traces(fresh, family):
    # Each call has a cache of its own, which grows on the way: graphs are recorded again, logits that are kept stay.
    model = tiny_model(family).to("cuda")
    for context in CONTEXTS:
        same_traces(model, context, True, replace(OPTIONS, max_new_tokens=100), atol=1e-4)
    assert fresh() == 2


@pytest.mark.slow
def test_two_models_of_a_kind_are_not_mixed_up(fresh):
    for seed in (0, 1):
        same_traces(tiny_model("gpt2", seed=seed), "soft", False)


@pytest.mark.slow
def test_a_model_that_must_break_its_graph_is_compiled_in_pieces_or_refused(fresh):
    model = tiny_model("gpt2")
    model.lm_head.register_forward_pre_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(UserError, match="torch cannot compile GPT2LMHeadModel .*: set it to false") as caught:
        decode(model, [[5, 6]], GenArguments(compile=True), context="soft", **RUN)
    assert len(caught.value.sentences) == 1
    model._can_compile_fullgraph = False
    same_traces(model, "rewind", True)
    pieces = fresh()
    same_traces(model, "rewind", True)
    assert fresh() == pieces > 1


def test_columns_double():
    cache, sizes = SlotCache(fixed=True), []
    for width in (1, 64, 65, 100, 129, 300, 400):
        cache.step(torch.tensor([width - 1]), width)
        sizes.append((cache.columns, cache.width, cache.start))
    assert [columns for columns, _, _ in sizes] == [64, 64, 128, 128, 256, 512, 512]
    assert all(columns == width == start + 1 for columns, width, start in sizes)


def test_the_generator_and_the_errors(uncompiled):
    generator = Generator(tiny_model("llama"), tiny_tokenizer())
    how = {"max_new_tokens": 12, "seed": 1}
    assert generator.generate(["cat sat", "mat"], compile=True, **how) == generator.generate(["cat sat", "mat"], **how)
    with pytest.raises(UserError, match="compile is 'yes', expected bool"):
        generator.generate("cat", compile="yes")
    compiled = spec_of(GenArguments(compile=True), eos_ids=[], backtrack_id=None, context="soft")
    with pytest.raises(UserError, match="gen.compile is true, but a server"):
        decode_remote(Server("http://127.0.0.1:1"), [[5]], compiled)
