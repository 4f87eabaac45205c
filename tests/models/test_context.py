"""Law 4 through the hook, against plain forwards of the clean text; what it leaves alone, what it refuses."""

import copy
from functools import cache
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llmhalluc.backtrack import CONTEXTS, IGNORE, apply_backtracking, layout
from llmhalluc.extras.errors import UserError
from llmhalluc.models.context import (
    apply_context,
    check_architecture,
    check_context,
    visible_block_mask,
    visible_mask,
)
from tests.tiny import FAMILIES, tiny_model

BT, PAD = 63, 0
plain_ids = st.integers(4, 59)


@cache
def stock(family):
    return tiny_model(family)


def hooked(family, context, **config):
    model = copy.deepcopy(stock(family)) if not config else tiny_model(family, **config)
    apply_context(model, context, BT)
    return model


@st.composite
def trace(draw):
    """A prompt, and a completion whose erasures nest and never reach the prompt; the last token survives."""
    completion, depth = [], 0
    for wants_erasure in draw(st.lists(st.booleans(), max_size=14)):
        erases = wants_erasure and depth > 0
        completion.append(BT if erases else draw(plain_ids))
        depth += -1 if erases else 1
    return draw(st.lists(plain_ids, min_size=1, max_size=4)), [*completion, draw(plain_ids)]


batches = st.lists(trace(), min_size=1, max_size=3)
CASE = [([4, 5], [6, 7, 8, BT, BT, 9, 10, BT, 11]), ([12, 13, 14], [15, 16])]


def pad(rows, value, left=False):
    """Lists of ids -> (B, T), padded with `value`."""
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(r)) * left + r + [value] * (width - len(r)) * (not left) for r in rows])


def collated(traces, context):
    """A right-padded batch with its layout, as a collator makes it."""
    made = [layout(p, c, BT, context) for p, c in traces]
    width = max(len(m.input_ids) for m in made)
    visible = [m.visible_until + list(range(len(m.input_ids) + 1, width + 1)) for m in made]
    return {
        "input_ids": pad([m.input_ids for m in made], PAD),
        "position_ids": pad([m.position_ids for m in made], 0),
        "visible_until": torch.tensor(visible),
    }


def packed(traces, context):
    """The same traces one behind the other in one row."""
    row = {"input_ids": [], "position_ids": [], "visible_until": []}
    for prompt, completion in traces:
        made, start = layout(prompt, completion, BT, context), len(row["input_ids"])
        row["visible_until"] += [start + until for until in made.visible_until]
        row["input_ids"] += made.input_ids
        row["position_ids"] += made.position_ids
    return {name: torch.tensor([values]) for name, values in row.items()}


@torch.no_grad()
def clean_logits(family, prompt, completion):
    """What the untouched model says after each prefix of the trace, erased text never written: (n, V)."""
    ends = range(len(prompt), len(prompt) + len(completion) + 1)
    prefixes = [prompt + apply_backtracking(completion[: end - len(prompt)], BT) for end in ends]
    logits = stock(family)(pad(prefixes, PAD)).logits
    return torch.stack([logits[i, len(prefix) - 1] for i, prefix in enumerate(prefixes)])


def assert_law4(family, context, traces, logits_BTV, starts):
    """Every row of `rewind`, and in `block` every row but the BACKTRACKs', speaks as after the clean text."""
    for (prompt, completion), logits_TV, start in zip(traces, logits_BTV, starts, strict=True):
        rows = torch.tensor([context == "rewind" or token != BT for token in [*prompt[-1:], *completion]])
        first = start + len(prompt) - 1
        ours = logits_TV[first : first + len(completion) + 1]
        torch.testing.assert_close(ours[rows], clean_logits(family, prompt, completion)[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", ["block", "rewind"])
@settings(max_examples=20, deadline=None)
@given(traces=batches, left=st.booleans())
def test_law4_from_ids_alone(family, context, traces, left):
    rows = [p + c for p, c in traces]
    ids, mask = pad(rows, PAD, left), pad([[1] * len(row) for row in rows], 0, left)
    # Left-padded positions are the caller's affair, unless the hook lays the batch out.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = hooked(family, context)(ids, attention_mask=mask, position_ids=positions).logits
    width = ids.shape[1]
    assert_law4(family, context, traces, logits, [(width - len(row)) * left for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", ["block", "rewind"])
@settings(max_examples=20, deadline=None)
@given(traces=batches)
def test_law4_from_a_layout_padded_or_packed(family, context, traces):
    model = hooked(family, context)
    with torch.no_grad():
        assert_law4(family, context, traces, model(**collated(traces, context)).logits, [0] * len(traces))
        logits = model(**packed(traces, context)).logits[0]
    ends = torch.tensor([len(p) + len(c) for p, c in traces]).cumsum(0).tolist()
    assert_law4(family, context, traces, [logits] * len(traces), [0, *ends[:-1]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", CONTEXTS)
def test_law4_eager_attention_equals_sdpa(family, context):
    model, eager = hooked(family, context), hooked(family, context)
    eager.set_attn_implementation("eager")
    for batch in (collated(CASE, context), packed(CASE, context)):
        # Llama's eager softmax is computed in float32 whatever the model's dtype.
        torch.testing.assert_close(eager(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.slow  # compiles for a minute on a processor, and has no backward there
@pytest.mark.parametrize("context", CONTEXTS)
def test_law4_flex_attention_equals_sdpa(context):
    model = hooked("llama", context, dtype=torch.float32, hidden_size=64)
    flex = copy.deepcopy(model)
    flex.set_attn_implementation("flex_attention")
    for batch in (collated(CASE, context), packed(CASE, context)):
        with torch.no_grad():
            torch.testing.assert_close(flex(**batch).logits, model(**batch).logits, rtol=0, atol=1e-4)


@given(batches, st.sampled_from(CONTEXTS))
def test_law4_block_mask_is_the_mask(traces, context):
    visible_until = packed(traces, context)["visible_until"]
    block_mask, n = visible_block_mask(visible_until), visible_until.shape[1]
    b, q, k = torch.meshgrid(torch.arange(1), torch.arange(n), torch.arange(n), indexing="ij")
    assert torch.equal(block_mask.mask_mod(b, 0, q, k), visible_mask(visible_until)[:, 0])
    assert block_mask.to_dense().all()  # one block holds it all, none is skipped


@pytest.mark.parametrize("context", CONTEXTS)
def test_packed_loss_and_gradients_equal_padded_ones_checkpointed_or_not(context):
    targets = [[IGNORE] * len(p) + c for p, c in CASE]
    runs = {}
    for name, batch, labels, checkpointing in (
        ("padded", collated(CASE, context), pad(targets, IGNORE), False),
        ("packed", packed(CASE, context), torch.tensor([[*chain(*targets)]]), False),
        ("checkpointed", packed(CASE, context), torch.tensor([[*chain(*targets)]]), True),
    ):
        model = hooked("llama", context)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        runs[name] = [loss.detach(), *(p.grad for p in model.parameters())]
    for other in ("packed", "checkpointed"):
        torch.testing.assert_close(runs[other], runs["padded"], rtol=0, atol=1e-9)


def test_under_ddp_and_peft_the_hook_still_runs(tmp_path):
    from peft import LoraConfig, get_peft_model

    batch = collated(CASE, "block")
    expected = hooked("llama", "block")(**batch).logits
    peft_model = get_peft_model(hooked("llama", "block"), LoraConfig(task_type="CAUSAL_LM"))
    torch.testing.assert_close(peft_model(**batch).logits, expected, rtol=0, atol=1e-9)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(peft_model)
        torch.testing.assert_close(wrapped(**batch).logits, expected, rtol=0, atol=1e-9)
    finally:
        torch.distributed.destroy_process_group()


def kernel_mask(model, **batch):
    """The attention mask that reaches the first layer."""
    seen = []
    layer = model.base_model.layers[0]
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    model(**batch, use_cache=False)  # as in training: with a cache transformers looks for no packed rows
    handle.remove()
    return seen[0]


def test_where_nothing_is_hidden_the_plain_causal_kernel_runs():
    clean = [([4, 5], [6, 7, 8]), ([9], [10])]
    for context in CONTEXTS:
        assert kernel_mask(hooked("llama", context), **collated(clean, context)) is None
    soft = collated(CASE, "soft")
    assert kernel_mask(hooked("llama", "soft"), **soft) is None
    assert kernel_mask(hooked("llama", "soft"), **packed(CASE, "soft")).shape == (1, 1, 16, 16)
    assert kernel_mask(hooked("llama", "block"), **collated(CASE, "block")).dtype == torch.bool


def test_soft_is_the_stock_model_and_a_cache_or_a_4d_mask_is_left_alone():
    ids = torch.tensor([CASE[0][0] + CASE[0][1]])
    expected = stock("llama")(ids).logits
    soft, block = hooked("llama", "soft"), hooked("llama", "block")
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    for logits in (
        soft(ids).logits,
        block(ids, past_key_values=DynamicCache()).logits,
        block(ids, attention_mask=mask).logits,
        block(inputs_embeds=block.get_input_embeddings()(ids)).logits,
    ):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    assert (block(ids).logits - expected).abs().max() > 1e-3


def test_a_second_context_replaces_the_first_and_a_copy_keeps_its_own():
    ids = torch.tensor([CASE[0][0] + CASE[0][1]])
    model = hooked("llama", "block")
    twin = copy.deepcopy(model)
    apply_context(model, "soft", BT)
    assert len(model.base_model._forward_pre_hooks) == 1
    torch.testing.assert_close(model(ids).logits, stock("llama")(ids).logits)
    torch.testing.assert_close(twin(ids).logits, hooked("llama", "block")(ids).logits)


REFUSED = {
    "mamba": ({}, "linear_attention"),
    "qwen3_next": ({}, "linear_attention"),
    "lfm2": ({"full_attn_idxs": [2]}, "conv"),
    "recurrent_gemma": ({}, "recurrent|linear_attention"),
    "rwkv": ({}, "recurrent state"),
    "bloom": ({}, "position_ids"),
    "falcon": ({"alibi": True}, "position_ids"),
    "gemma3_text": ({"sliding_window": 512}, "windows of 512"),
    "mistral": ({"sliding_window": 512}, "windows of 512"),
    "gpt_neo": ({"window_size": 512}, "windows of 512"),
}


@pytest.mark.parametrize("model_type", REFUSED)
@pytest.mark.parametrize("context", ["block", "rewind"])
def test_a_model_that_cannot_hide_rows_is_refused_with_the_reason(model_type, context):
    keys, reason = REFUSED[model_type]
    config = AutoConfig.for_model(model_type, **keys)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with pytest.raises(UserError, match=f"backtrack.context is '{context}'.*{reason}.*use soft"):
        check_architecture(model_class, config, context, length=1000)
    check_architecture(model_class, config, "soft", length=1000)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gpt2", "gemma3_text", "mistral", "phi3", "olmo2"])
def test_attention_models_are_taken(model_type):
    config = AutoConfig.for_model(model_type)
    check_architecture(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, "rewind", length=500)


def test_a_sliding_window_is_good_enough_for_shorter_text_and_refused_when_longer_text_comes():
    config = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    model = hooked_gemma(sliding_window=16, **config)
    check_context(model, "block", length=16)
    prompt, completion = CASE[0]
    clean = torch.tensor([prompt + apply_backtracking(completion, BT)])
    ids = torch.tensor([prompt + completion])
    torch.testing.assert_close(model(ids).logits[0, -1], model(clean).logits[0, -1], rtol=0, atol=1e-9)
    with pytest.raises(UserError, match="17 tokens.*windows of 16.*data.max_length"):
        model(torch.tensor([[5] * 6 + prompt + completion]))


def hooked_gemma(**config):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    made = AutoConfig.for_model("gemma3_text", vocab_size=64, num_key_value_heads=2, **config)
    model = AutoModelForCausalLM.from_config(made, dtype=torch.float64).eval()
    apply_context(model, "block", BT)
    return model


def test_packed_rows_without_visible_until_are_refused():
    ids = torch.tensor([CASE[0][0] + CASE[0][1] + CASE[1][0]])
    positions = torch.tensor([[*range(11), *range(3)]])
    with pytest.raises(UserError, match="visible_until"):
        hooked("llama", "block")(ids, position_ids=positions)
    hooked("llama", "soft")(ids, position_ids=positions)
