"""The decoding loop: parity with the layout (law 3), clean text after an erasure (law 4), bans, budgets, stops."""

import random
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from llmhalluc.backtrack import CONTEXTS, apply_backtracking, inject_error, layout
from llmhalluc.decoding import slots
from llmhalluc.decoding.backend import TorchBackend
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from tests.decoding.operating import decode
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

BT, EOS = 63, 2


def random_trace(rng: random.Random, length: int) -> list[int]:
    """A well-formed trace: nested errors, no BACKTRACK without something to erase."""
    trace = [rng.randrange(4, 60) for _ in range(length)]
    for _ in range(rng.randrange(1, 4)):
        error = [rng.randrange(4, 60) for _ in range(rng.randrange(1, 4))]
        trace = inject_error(trace, rng.randrange(len(trace) + 1), error, BT)
    return trace


def layout_logits(model, prompt, trace, context):
    """Teacher-forced logits of every row under the layout's 4D mask: (n, vocab)."""
    ids, positions, until = layout(prompt, trace, BT, context)
    query, key = torch.arange(len(ids))[:, None], torch.arange(len(ids))[None]
    mask = (key <= query) & (query < torch.tensor(until)[None])
    return model(
        torch.tensor([ids]),
        position_ids=torch.tensor([positions]),
        attention_mask=mask[None, None],
        use_cache=False,
    ).logits[0]


def scripted(traces):
    """A sampler that emits these traces, and where it collects the engine's own logits by prompt."""
    seen = defaultdict(list)

    def sampler(logits_BV, sequences, spec):
        tokens = []
        for logits_V, sequence in zip(logits_BV, sequences, strict=True):
            number, done = int(sequence.key), len(sequence.completion_ids)
            tokens.append((traces[number] + [EOS])[min(done, len(traces[number]))])
            seen[number].append(logits_V.clone())
        return tokens

    return seen, sampler


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_law3_engine_logits_equal_the_layout(family, context):
    model, rng = tiny_model(family), random.Random(f"{family}-{context}")
    prompts = [[rng.randrange(4, 60) for _ in range(n)] for n in (1, 3, 5, 8, 2, 13, 4, 7)]
    traces = [random_trace(rng, rng.randrange(4, 12)) for _ in prompts]
    seen, sampler = scripted(traces)
    options = GenArguments(max_new_tokens=64)
    done = decode(model, prompts, options, eos_ids=[EOS], backtrack_id=BT, context=context, sampler=sampler)
    assert any(BT in trace for trace in traces)
    for i, (prompt, trace) in enumerate(zip(prompts, traces, strict=True)):
        assert done[i].completion_ids == [*trace, EOS]
        expected = layout_logits(model, prompt, trace, context)[len(prompt) - 1 :]
        torch.testing.assert_close(torch.stack(seen[i]), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("context", ["block", "rewind"])
@pytest.mark.parametrize("family", FAMILIES)
def test_law4_after_an_erasure_logits_equal_the_clean_text(family, context):
    model, rng = tiny_model(family), random.Random(f"{family}-{context}")
    prompts = [[rng.randrange(4, 60) for _ in range(n)] for n in (2, 6, 3)]
    traces = [random_trace(rng, 8) for _ in prompts]
    seen, sampler = scripted(traces)
    options = GenArguments(max_new_tokens=64)
    decode(model, prompts, options, eos_ids=[EOS], backtrack_id=BT, context=context, sampler=sampler)
    for i, (prompt, trace) in enumerate(zip(prompts, traces, strict=True)):
        for step in range(1, len(trace) + 1):
            if context == "block" and trace[step - 1] == BT:
                continue  # still in sight of the error, by design
            clean = torch.tensor([prompt + apply_backtracking(trace[:step], BT)])
            expected = model(clean, use_cache=False).logits[0, -1]  # a fresh forward of the surviving text
            torch.testing.assert_close(seen[i][step], expected, rtol=0, atol=1e-9)


def test_trap10_a_backtrack_rewinds_its_own_row_and_no_more():
    # In `rewind` a BACKTRACK never enters the cache as itself: one erased token, one row fed again.
    model, fed = tiny_model("llama"), []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: fed.append((kwargs["input_ids"][0, -1].item(), kwargs["position_ids"][0, -1].item())),
        with_kwargs=True,
    )
    _, sampler = scripted([[10, 11, BT, 12]])
    options = GenArguments(max_new_tokens=9)
    decode(model, [[5, 6]], options, eos_ids=[EOS], backtrack_id=BT, context="rewind", sampler=sampler)
    assert fed == [(6, 1), (10, 2), (11, 3), (12, 3)]  # the logits after 10 are kept: no second forward


def favour(model, tokens: dict[int, float]):
    """Make the model want these tokens everywhere, by a constant added to their logits."""

    def add(_module, _args, out):
        for token, logit in tokens.items():
            out.logits[..., token] += logit

    model.register_forward_hook(add)
    return model


@pytest.mark.parametrize("context", CONTEXTS)
def test_trap9_an_erased_token_is_banned_and_every_prompt_ends(context):
    model = favour(tiny_model("llama"), {20: 1000.0, BT: 990.0, 21: 980.0})
    options = GenArguments(max_new_tokens=40, max_erasures=6)
    (trace,) = decode(model, [[5, 6]], options, eos_ids=[EOS], backtrack_id=BT, context=context)
    # Greedy writes 20 for ever. Banning 20 at a place leaves BACKTRACK, then 21.
    assert trace.erasures <= 6 and len(trace.completion_ids) == 40
    places = defaultdict(set)
    stack = []
    for token in trace.completion_ids:
        if token == BT:
            places.pop(len(stack), None)
            places[len(stack) - 1].add(stack.pop())
        else:
            assert token not in places[len(stack)]
            stack.append(token)


def test_trap9_without_the_ban_a_greedy_rewound_model_errs_again():
    model = favour(tiny_model("llama"), {20: 1000.0})

    def regret(_module, _args, kwargs, out):
        out.logits[..., BT] += 5000.0 * (kwargs["input_ids"] == 20).to(out.logits.dtype)

    model.register_forward_hook(regret, with_kwargs=True)
    runs = {}
    for ban in (True, False):
        options = GenArguments(max_new_tokens=6, max_erasures=9, ban_erased=ban)
        (trace,) = decode(model, [[5]], options, eos_ids=[EOS], backtrack_id=BT, context="rewind")
        runs[ban] = trace.completion_ids
    assert runs[False] == [20, BT, 20, BT, 20, BT]
    assert runs[True][:2] == [20, BT] and runs[True][2] not in (20, BT)


def test_budget_of_erasures_and_no_erasure_of_the_prompt():
    model = favour(tiny_model("llama"), {BT: 1000.0})
    for budget in (0, 3):
        options = GenArguments(max_new_tokens=30, max_erasures=budget)
        (trace,) = decode(model, [[5, 6]], options, eos_ids=[EOS], backtrack_id=BT, context="block")
        assert trace.erasures == trace.completion_ids.count(BT) == budget
        assert trace.completion_ids[0] != BT
    (trace,) = decode(model, [[5]], GenArguments(max_new_tokens=9, backtrack=False), eos_ids=[EOS],
                      backtrack_id=BT, context="soft")  # fmt: skip
    assert BT not in trace.completion_ids


def test_where_all_is_banned_the_prompt_still_ends():
    model = tiny_model("llama", vocab_size=6)  # 4 plain ids, eos, BACKTRACK
    options = GenArguments(max_new_tokens=50, max_erasures=40, backtrack_bias=3.0, temperature=1.0)
    (trace,) = decode(model, [[4]], options, eos_ids=[], backtrack_id=5, context="block")
    assert len(trace.completion_ids) == 50


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(CONTEXTS), st.sampled_from([0.0, 1.0]))
def test_a_batch_gives_what_single_runs_give(seed, context, temperature):
    model, rng = tiny_model("qwen3"), random.Random(seed)
    prompts = [[rng.randrange(4, 60) for _ in range(rng.randrange(1, 9))] for _ in range(5)]
    options = GenArguments(max_new_tokens=20, temperature=temperature, top_k=40, backtrack_bias=2.0, seed=seed)
    run = {"eos_ids": [EOS, 30], "backtrack_id": BT, "context": context}
    batch = decode(model, prompts, options, batch_size=4, **run)
    single = [decode(model, [p], options, keys=[str(i)], **run)[0] for i, p in enumerate(prompts)]
    for one, other in zip(batch, single, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)
        assert replace(one, logprobs=[]) == replace(other, logprobs=[])
    for trace in batch:
        assert trace.surviving_ids == apply_backtracking(trace.completion_ids, BT)


GEMMA = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1,
             head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
             vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3)  # fmt: skip


def gemma():
    """Layers with a sliding window of 6 beside full ones: the architecture whose cache cannot simply be cropped."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma3_text", **GEMMA)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FAMILIES, "gemma3_text"])
def test_without_erasures_it_is_transformers_generate(family, attention):
    model = gemma() if family == "gemma3_text" else tiny_model(family)
    model.set_attn_implementation(attention)
    prompts = [[5, 6, 7, 8], [9, 10], [11] * 9]
    traces = decode(model, prompts, GenArguments(max_new_tokens=20), eos_ids=[EOS], backtrack_id=None, context="soft")
    for prompt, trace in zip(prompts, traces, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=EOS)
        assert prompt + trace.completion_ids == expected[0].tolist()


def test_a_sliding_window_rewinds_too():
    # No column is thrown away before the window has passed it, so an erased text can be taken back.
    model, trace = gemma(), random_trace(random.Random(1), 12)
    seen, sampler = scripted([trace])
    options = GenArguments(max_new_tokens=64)
    decode(model, [[5, 6, 7]], options, eos_ids=[EOS], backtrack_id=BT, context="rewind", sampler=sampler)
    for step in range(1, len(trace) + 1):
        clean = torch.tensor([[5, 6, 7, *apply_backtracking(trace[:step], BT)]])
        expected = model(clean, use_cache=False).logits[0, -1]
        torch.testing.assert_close(seen[0][step], expected, rtol=0, atol=1e-9)


def test_layers_that_keep_more_than_keys_and_values_are_refused():
    config = AutoConfig.for_model(
        "mamba2", hidden_size=32, num_heads=4, head_dim=16, num_hidden_layers=1, vocab_size=64
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="mamba2"):
        decode(model, [[4]], GenArguments(), eos_ids=[EOS], backtrack_id=BT, context="soft")


def test_long_prompts_are_filled_in_chunks(monkeypatch):
    monkeypatch.setattr(slots, "PREFILL_TOKENS", 16)
    model, rng = tiny_model("qwen3"), random.Random(3)
    prompts = [[rng.randrange(4, 60) for _ in range(n)] for n in (50, 3, 33, 1, 17, 16)]
    run = dict(eos_ids=[EOS], backtrack_id=BT, context="soft")
    traces = decode(model, prompts, GenArguments(max_new_tokens=5), batch_size=4, **run)
    for prompt, trace in zip(prompts, traces, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=EOS)
        assert prompt + trace.completion_ids == expected[0].tolist()


def test_a_model_that_takes_one_row_at_a_time_gets_one():
    model, rows = tiny_model("llama"), set()
    prompts, run = [[5, 6], [7], [8, 9, 10]], {"eos_ids": [EOS], "backtrack_id": BT, "context": "rewind"}
    expected = decode(model, prompts, GenArguments(max_new_tokens=9), **run)
    one = TorchBackend(model)
    one.most_slots = 1
    model.register_forward_pre_hook(lambda _, __, kwargs: rows.add(len(kwargs["input_ids"])), with_kwargs=True)
    traces = decode(one, prompts, GenArguments(max_new_tokens=9), **run)
    assert rows == {1} and [t.completion_ids for t in traces] == [t.completion_ids for t in expected]


def test_law6_stop_strings_read_the_surviving_text():
    tokenizer = tiny_tokenizer()
    erase = tokenizer.add_tokens(["<|BACKTRACK|>"], special_tokens=True) and len(tokenizer) - 1
    model = tiny_model("llama", vocab_size=len(tokenizer))
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in "cat dog sat on # 4 2".split()}
    ids["dog"] = ids["on"]
    # "#" is erased, so the first "# #" of the raw trace is no stop; the second, surviving one is.
    trace = [
        ids["cat"],
        ids["#"],
        erase,
        ids["#"],
        ids["4"],
        ids["#"],
        erase,
        ids["2"],
        ids["#"],
        ids["#"],
        ids["4"],
    ]
    _, sampler = scripted([trace])
    options = GenArguments(max_new_tokens=30, stop=["# #"])
    (done,) = decode(
        model, [[5]], options, eos_ids=[EOS], backtrack_id=erase, context="soft", tokenizer=tokenizer, sampler=sampler
    )
    assert done.finish_reason == "stop"
    assert done.completion_ids == trace[:10]
    assert done.text.split() == ["cat", "#", "4", "2"]


def test_sampling_follows_the_distribution_and_the_seed():
    model = tiny_model("llama", vocab_size=8)
    prompts = [[4, 5]] * 4000
    options = GenArguments(max_new_tokens=1, temperature=0.7, seed=3)
    run = {"eos_ids": [], "backtrack_id": None, "context": "soft", "batch_size": 1000}
    first = [t.completion_ids[0] for t in decode(model, prompts, options, **run)]
    assert first == [t.completion_ids[0] for t in decode(model, prompts, options, **run)]
    expected = (model(torch.tensor([[4, 5]])).logits[0, -1] / 0.7).softmax(-1)
    observed = torch.bincount(torch.tensor(first), minlength=8) / len(first)
    torch.testing.assert_close(observed.double(), expected, rtol=0, atol=0.03)


def test_bad_input_is_named():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        decode(model, [[4], []], GenArguments(), eos_ids=[EOS], backtrack_id=BT, context="soft")
    with pytest.raises(ValueError, match="tokenizer"):
        decode(model, [[4]], GenArguments(stop=["x"]), eos_ids=[EOS], backtrack_id=BT, context="soft")
