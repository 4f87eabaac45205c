"""Law 7 and trap 1: the BACKTRACK rows train, are saved, and say the same in stock transformers and peft."""

from dataclasses import asdict, replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.benchmark_args import ModelKwargs
from llmhalluc.hparams.sections import BacktrackArguments, ModelArguments
from llmhalluc.models.loader import load
from llmhalluc.models.peft import BacktrackPeftModel, add_adapter, merge, rows_in_place
from tests.models.saved import saved_model, train
from tests.tiny import FAMILIES, tiny_model

SOFT = BacktrackArguments(context="soft")


def rows_of(model, backtrack_id):
    """The BACKTRACK's input and output row as the model computes them now."""
    return [
        e.weight[backtrack_id].detach().clone() for e in (model.get_input_embeddings(), model.get_output_embeddings())
    ]


def trained(folder, family, finetuning, backtrack=SOFT, **config):
    """Train a tiny model whose text holds BACKTRACKs; answer it, what it says, and where its rows began."""
    args = replace(saved_model(folder / "base", family, **config), finetuning=finetuning)
    loaded = load(args, backtrack)
    ids = torch.tensor([[5, 6, 7, loaded.backtrack_id, 8, 9, loaded.backtrack_id, 10]])
    start = rows_of(loaded.model, loaded.backtrack_id)
    first_read = int(backtrack.context == "rewind")  # rewind never feeds a BACKTRACK, so its input row rests
    model = add_adapter(loaded.model, args, loaded.backtrack_id)
    train(model, ids)
    for before, after in list(zip(start, rows_of(model, loaded.backtrack_id), strict=True))[first_read:]:
        assert (before - after).abs().max() > 1e-3
    logits = model(input_ids=ids).logits.detach()
    model.save_pretrained(folder / "out")
    loaded.tokenizer.save_pretrained(folder / "out")
    return args, loaded, model, ids, logits


def assert_says(model, ids, logits, atol=1e-9):
    # With gradients: without them bitsandbytes works in bfloat16 on processors that have it.
    torch.testing.assert_close(model(input_ids=ids).logits.detach(), logits, rtol=0, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_law7_full(tmp_path, family, tied):
    _, loaded, _, ids, logits = trained(tmp_path, family, "full", tie_word_embeddings=tied)
    assert_says(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), ids, logits)
    again = load(replace(saved_model(tmp_path / "other"), name_or_path=str(tmp_path / "out")), None)
    assert_says(again.model, ids, logits)
    assert (again.backtrack_id, again.context) == (loaded.backtrack_id, "soft")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare_rows", [0, 7], ids=["grown", "with padding rows"])
def test_law7_trap1_lora(tmp_path, family, tied, spare_rows):
    rows = {"vocab_size": 43 + spare_rows}
    args, loaded, model, ids, logits = trained(tmp_path, family, "lora", tie_word_embeddings=tied, **rows)
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        saved = {name: file.get_slice(name).get_shape() for name in list(file.keys()) if "lora_" not in name}
    assert sorted(saved.values()) == [[1, 32]] * (1 if tied else 2)  # the rows, and no whole matrix
    assert_says(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out"), ids, logits)

    adapter = replace(args, name_or_path=str(tmp_path / "out"))
    going_on = load(adapter, None)
    assert isinstance(going_on.model, BacktrackPeftModel)
    assert_says(going_on.model, ids, logits)
    assert add_adapter(going_on.model, adapter, going_on.backtrack_id) is going_on.model
    before = rows_of(going_on.model, going_on.backtrack_id)
    train(going_on.model, ids)
    assert not torch.equal(before[0], rows_of(going_on.model, going_on.backtrack_id)[0])

    plain = load(replace(adapter, finetuning="full"), None)
    assert not isinstance(plain.model, BacktrackPeftModel) and plain.backtrack_id == loaded.backtrack_id
    assert all(p.requires_grad for p in plain.model.parameters())
    assert_says(plain.model, ids, logits)

    merge(model, loaded.tokenizer, tmp_path / "merged")
    assert_says(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids, logits)
    merged = load(replace(args, name_or_path=str(tmp_path / "merged"), finetuning="full"), None)
    assert_says(merged.model, ids, logits)
    assert merged.model.config.backtrack == loaded.model.config.backtrack


@pytest.mark.parametrize("context", ["block", "rewind"])
def test_law7_the_context_comes_back_from_model_adapter_and_merged_model(tmp_path, context):
    args, loaded, model, ids, logits = trained(tmp_path, "llama", "lora", BacktrackArguments(context=context))
    merge(model, loaded.tokenizer, tmp_path / "merged")
    for name in ("out", "merged"):
        again = load(replace(args, name_or_path=str(tmp_path / name), finetuning="full"), None)
        assert again.context == context and again.backtrack_id == loaded.backtrack_id
        assert_says(again.model, ids, logits)
        soft = load(replace(args, name_or_path=str(tmp_path / name), finetuning="full"), SOFT)
        assert (soft.model(ids).logits - logits).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_law7_trap1_qlora(tmp_path, family, tied):
    pytest.importorskip("bitsandbytes")
    # On a processor bitsandbytes wants matrices of 32 by 64 or a multiple of it.
    sizes = {"hidden_size": 64, "num_key_value_heads": 4, "head_dim": 16}
    config = {"tie_word_embeddings": tied, "dtype": torch.float32} | sizes
    args, loaded, model, ids, logits = trained(tmp_path, family, "qlora", **config)
    assert loaded.model.is_loaded_in_4bit
    adapter = replace(args, name_or_path=str(tmp_path / "out"))
    going_on = load(adapter, None).model
    assert going_on.get_base_model().is_loaded_in_4bit
    assert_says(going_on, ids, logits, atol=1e-6)
    assert_says(load(replace(adapter, finetuning="full"), None).model, ids, logits, atol=1e-4)
    merge(model, loaded.tokenizer, tmp_path / "merged")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_says(stock, ids, logits, atol=1e-4)
    unquantised = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    weight = "model.layers.0.mlp.down_proj.weight"
    assert (stock.get_parameter(weight) - unquantised.get_parameter(weight)).abs().max() > 1e-3


def test_law7_qlora_refuses_what_it_could_not_merge(tmp_path):
    pytest.importorskip("bitsandbytes")
    args = replace(saved_model(tmp_path, "gpt2", dtype=torch.float32), finetuning="qlora")
    with pytest.raises(UserError, match="gpt2 has transposed weights"):
        add_adapter(load(args, SOFT).model, args, 43)


def test_qlora_without_bitsandbytes_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="model.finetuning is 'qlora', which needs bitsandbytes"):
        load(replace(saved_model(tmp_path), finetuning="qlora"), SOFT)


def test_an_adapter_of_another_make_is_merged_before_ours_goes_on(tmp_path):
    from peft import LoraConfig, get_peft_model

    args = saved_model(tmp_path / "base")
    other = get_peft_model(load(args, None).model, LoraConfig(task_type="CAUSAL_LM"))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    train(other, ids)
    other.save_pretrained(tmp_path / "other")
    args = replace(args, adapter=str(tmp_path / "other"), finetuning="lora")
    loaded = load(args, SOFT)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits[..., :43], other(ids).logits, rtol=0, atol=1e-9)
    model = add_adapter(loaded.model, args, loaded.backtrack_id)
    assert model.peft_config["default"].trainable_token_indices == {
        "model.embed_tokens": [43],
        "lm_head": [43],
    }


def test_refusals(tmp_path):
    args = replace(saved_model(tmp_path), finetuning="lora")
    biased = tiny_model("llama")
    biased.lm_head = torch.nn.Linear(32, 64)
    with pytest.raises(UserError, match="output layer of llama has a bias"):
        add_adapter(biased, args, 5)
    with pytest.raises(UserError, match=r"from_config makes fresh weights.*use full"):
        add_adapter(tiny_model("llama"), replace(args, name_or_path=None, from_config={}), 5)
    with pytest.raises(UserError, match=r"^model\.adapter is .* holds no adapter_model.safetensors"):
        load(replace(args, adapter=str(tmp_path)), SOFT)
    with pytest.raises(UserError, match=r"^model_kwargs\.adapter is .* holds no adapter_model.safetensors"):
        load(ModelKwargs(**asdict(args) | {"adapter": str(tmp_path)}), None)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_place_change_nothing_and_go_again(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied)
    if family == "gpt2" and not tied:
        pytest.skip("peft drops the bias of such a layer")
    model = add_adapter(model, ModelArguments(name_or_path="x", finetuning="lora", lora_r=2), 63).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.2
    ids = torch.tensor([[4, 63, 6, 63, 7]])
    before, weights = model(ids).logits, {name: value.clone() for name, value in model.state_dict().items()}
    with rows_in_place(model):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "trainable_tokens" in name:
                    parameter += 1.0  # made once: nothing that comes later is seen
        assert torch.equal(model(ids).logits, before)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "trainable_tokens" in name:
                    parameter.copy_(weights[name])
    with pytest.raises(RuntimeError, match="stopped"), rows_in_place(model):
        raise RuntimeError("stopped")
    assert torch.equal(model(ids).logits, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
