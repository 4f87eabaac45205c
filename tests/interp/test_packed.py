"""Packed copies against one forward an intervention: every architecture, context and kind of site."""

import random

import pytest
import torch

from llmhalluc.backtrack import CONTEXTS
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Spec
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.interp import packed
from llmhalluc.interp.generate import Key, RowEdits
from llmhalluc.interp.packed import Copy, Edit, change_at, forward, forward_tokens, rows_of
from llmhalluc.interp.sites import Sites
from tests.interp.models import ARCHITECTURES, BT, EOS, causal_lm, some_ids, taken_apart
from tests.tiny import tiny_model


def naive(model, rows, row, edits):
    """The last logits of one forward of the rows up to `row`, with the hooks on that row alone."""
    changes = {edit.site: change_at((0, [row]), [edit], model.sites, ()) for edit in edits}
    inputs = {name: torch.tensor([part[: row + 1]]) for name, part in rows._asdict().items()}
    if model.context == "soft":
        inputs = {"input_ids": inputs["input_ids"]}
    else:
        inputs["visible_until"] = inputs["visible_until"].clamp(max=row + 1)
    with model.sites.hooked(changes):
        return model.loaded.model(**inputs).logits[0, -1]


def all_sites(model):
    return [*model.sites.components, ("resid", 1), ("heads", 0)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_copies_equal_one_forward_each(architecture):
    model = taken_apart(causal_lm(architecture))
    rows = rows_of(some_ids(0, 8), some_ids(1, 14), None, "soft")
    tolerance = 1e-5 if architecture == "gemma2" else 1e-9  # eager softmax of transformers is in float32
    copies, expected = [Copy(12), Copy(21)], [naive(model, rows, 12, ()), naive(model, rows, 21, ())]
    for number, site in enumerate(all_sites(model)):
        shift = torch.randn(packed.site_width(model.sites, site), dtype=torch.float64)
        edits = (Edit(site, 0.3, shift),)
        row = (9, 21, 15)[number % 3]
        copies.append(Copy(row, edits))
        expected.append(naive(model, rows, row, edits))
    found = forward(model.sites, rows, copies).logits
    assert torch.allclose(found, torch.stack(expected), atol=tolerance, rtol=0)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("seed", range(4))
def test_law3_copies_see_what_the_context_shows(context, seed):
    rng = random.Random(seed)
    model = taken_apart(causal_lm("llama", seed=seed), context, BT)
    completion = [rng.choice([BT, rng.randrange(6, 64), rng.randrange(6, 64)]) for _ in range(20)]
    rows = rows_of(some_ids(seed, 5), completion, BT, context)
    copies = [Copy(row, (Edit(site),)) for row in range(5, 25, 4) for site in model.sites.components]
    expected = torch.stack([naive(model, rows, copy.row, copy.edits) for copy in copies])
    assert torch.allclose(forward(model.sites, rows, copies).logits, expected, atol=1e-9, rtol=0)


def test_many_copies_go_in_several_forwards(monkeypatch):
    model, rows = taken_apart(causal_lm("qwen3")), rows_of(some_ids(0, 4), some_ids(1, 8), None, "soft")
    copies = [Copy(row, (Edit(site),)) for row in (5, 11) for site in model.sites.components]
    whole = forward(model.sites, rows, copies, [("resid", 1)])
    assert forward_tokens(copies) == 11 + len(copies)
    monkeypatch.setattr(packed, "MOST_COPIES", 5)
    parts = forward(model.sites, rows, copies, [("resid", 1)])
    assert torch.allclose(parts.logits, whole.logits, atol=1e-12)
    assert torch.allclose(parts.kept["resid", 1], whole.kept["resid", 1], atol=1e-12)
    assert forward_tokens(copies) == 5 + 5 + 11 + 5 + 11 + 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_looking_changes_nothing_and_the_last_lens_is_the_logits(architecture):
    model = taken_apart(causal_lm(architecture))
    found = model.same_as_unhooked(rows_of(some_ids(0, 8), some_ids(1, 9), None, "soft"))
    assert found["last_lens_minus_logits"] == 0
    assert found["hooked_minus_unhooked"] < (1e-5 if architecture == "gemma2" else 1e-9)


def test_the_hooks_go_when_the_block_ends_even_by_an_error():
    model = taken_apart(causal_lm("llama"))
    with pytest.raises(ZeroDivisionError), model.sites.hooked({}, model.sites.components):
        raise ZeroDivisionError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.sites.modules.values())


def test_an_unknown_architecture_is_refused():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gpt_neox", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8,
                                  intermediate_size=16)  # fmt: skip
    with pytest.raises(UserError, match=r"model.name_or_path is a gpt_neox model, .*: it knows llama, qwen2"):
        Sites(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_under_edits_equals_a_loop_without_a_cache(family, context):
    torch.manual_seed(3)
    model = taken_apart(tiny_model(family), context, BT)
    shift = torch.randn(32, dtype=torch.float64)
    sets = [(), (Edit(("mlp", 0)),), (Edit(("attn", 1), 0.5, shift), Edit(("mlp", 1)))]
    prompt, keys = some_ids(9, 20), []
    for number in range(6):  # equal prompts, whose cache must not be shared
        keys.append(Key(f"{number // 3}"))
        keys[-1].edits = sets[number % 3]
    options = GenArguments(max_new_tokens=12, ban_erased=False, backtrack_bias=4.0, max_erasures=12)
    intervene = RowEdits(model.sites, keys)
    spec = Spec(options, [EOS], BT, context, intervene=intervene)
    with model.sites.hooked(intervene.changes):
        traces = decode(model.loaded.model, [prompt] * 6, spec, keys=keys, batch_size=4)
    assert any(trace.erasures for trace in traces) and len({tuple(trace.completion_ids) for trace in traces}) > 1
    for trace, own in zip(traces, sets * 2, strict=True):
        for at, token in enumerate(trace.completion_ids):
            rows = rows_of(prompt, trace.completion_ids[:at], BT, context)
            inputs = {name: torch.tensor([part]) for name, part in rows._asdict().items()}
            changes = {edit.site: change_at(([0],), [edit], model.sites, (1,)) for edit in own}
            with model.sites.hooked(changes):
                logits = model.loaded.model(**inputs).logits[0, -1]
            assert trace.logprobs[at] == pytest.approx(float(logits.detach().log_softmax(-1)[token]), abs=1e-9)


def test_the_key_of_a_sample_names_its_draws_and_not_its_edits():
    model = taken_apart(tiny_model("llama"))
    keys = [Key("a"), Key("a")]
    keys[1].edits = (Edit(("mlp", 1), 1.0),)  # changes nothing
    intervene = RowEdits(model.sites, keys)
    spec = Spec(GenArguments(max_new_tokens=10, temperature=1.0), [EOS], None, "soft", intervene=intervene)
    with model.sites.hooked(intervene.changes):
        one, other = decode(model.loaded.model, [some_ids(1, 5)] * 2, spec, keys=keys)
    assert one.completion_ids == other.completion_ids
