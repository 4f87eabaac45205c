"""Where models come from, what a saved one brings along, and one sentence for each thing that cannot be used."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llmhalluc.extras import constant
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import BacktrackArguments, ModelArguments
from llmhalluc.models.loader import load, load_model, load_tokenizer
from tests.models.saved import saved_gguf, saved_model
from tests.tiny import tiny_tokenizer

FRESH = ModelArguments(
    from_config=dict(
        model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    ),
    tokenizer="sudoku4",
    device="cpu",
)
BLOCK = BacktrackArguments(context="block")
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constant, "CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "gguf"


def test_a_fresh_model_follows_its_tokenizer_and_its_seed():
    loaded = load(FRESH, None)
    config, tokenizer = loaded.model.config, loaded.tokenizer
    assert config.vocab_size == len(tokenizer) and loaded.backtrack_id is None and loaded.context == "soft"
    for name in ("pad", "bos", "eos"):
        assert getattr(config, f"{name}_token_id") == getattr(tokenizer, f"{name}_token_id")
    state = torch.get_rng_state()
    other = load(FRESH, None, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(loaded.model.lm_head.weight, other.model.lm_head.weight)
    same = load(FRESH, BLOCK)
    # The rows of BACKTRACK come last: an arm with it starts from the same weights as an arm without.
    assert same.model.config.vocab_size == len(tokenizer) + 1 == same.backtrack_id + 1
    n = len(tokenizer)
    for ours, theirs in zip(loaded.model.parameters(), same.model.parameters(), strict=True):
        assert torch.equal(ours, theirs[:n] if len(ours) == n else theirs)
    assert not same.model.training and same.model.dtype == torch.float32
    assert load_model(replace(FRESH, dtype="bfloat16")).dtype == torch.bfloat16


@pytest.mark.parametrize("model_type", ["qwen3", "gpt2"])
def test_other_fresh_families_and_tokenizers(model_type, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    sizes = {"qwen3": {"head_dim": 8}, "gpt2": {}}[model_type]
    config = dict(model_type=model_type, hidden_size=32, num_hidden_layers=1, num_attention_heads=4) | sizes
    loaded = load(replace(FRESH, from_config=config, tokenizer=str(tmp_path)), BLOCK)
    assert loaded.model.config.model_type == model_type and loaded.backtrack_id == len(tiny_tokenizer())


def test_a_saved_model_brings_token_rows_and_context(tmp_path):
    first = load(saved_model(tmp_path / "base"), BLOCK)
    for model in (first.model, first.tokenizer):
        model.save_pretrained(tmp_path / "saved")
    args = ModelArguments(name_or_path=str(tmp_path / "saved"), device="cpu")
    record = json.loads((tmp_path / "saved" / "config.json").read_text())["backtrack"]
    assert record == {"token": "<|BACKTRACK|>", "token_id": first.backtrack_id, "context": "block"}
    ids = torch.tensor([[5, 6, 7, first.backtrack_id, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(load(args, None).model(ids).logits, first.model(ids).logits, rtol=0, atol=1e-9)
        # Another start value or context is no reason to touch trained rows.
        again = load(replace(args, token_init="random"), BacktrackArguments(context="soft"), seed=9)
        assert again.context == "soft" and again.model.config.backtrack["context"] == "soft"
    for ours, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    tiny_tokenizer().save_pretrained(tmp_path / "without")
    with pytest.raises(UserError, match=r"BACKTRACK token '<\|BACKTRACK\|>' is unknown to the tokenizer"):
        load(replace(args, tokenizer=str(tmp_path / "without")), None)
    shifted = tiny_tokenizer(["x"])
    shifted.add_tokens("<|BACKTRACK|>")
    shifted.save_pretrained(tmp_path / "shifted")
    with pytest.raises(UserError, match=f"the id 5, the model was trained with {first.backtrack_id}"):
        load(replace(args, tokenizer=str(tmp_path / "shifted")), None)
    with pytest.raises(UserError, match=r"backtrack.token is '<x>', but the model has"):
        load(args, BacktrackArguments(token="<x>"))


def test_a_model_without_backtrack_takes_packed_batches(tmp_path):
    loaded = load(saved_model(tmp_path), None)
    assert loaded[2:] == (None, "soft") and not hasattr(loaded.model.config, "backtrack")
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9]]),
        "position_ids": torch.tensor([[0, 1, 0, 1, 2]]),
        "visible_until": torch.tensor([[2, 2, 5, 5, 5]]),
    }
    with torch.no_grad():
        alone = loaded.model(batch["input_ids"][:, 2:]).logits
        torch.testing.assert_close(loaded.model(**batch).logits[:, 2:], alone, rtol=0, atol=1e-9)


def test_a_package_is_found_and_not_imported(tmp_path, monkeypatch):
    saved_model(tmp_path / "carries_weights")
    (tmp_path / "carries_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load(ModelArguments(name_or_path="package:carries_weights", device="cpu"), None)
    assert loaded.model.name_or_path == str(tmp_path / "carries_weights")
    with pytest.raises(UserError, match="no package 'nobody_made_this' is installed: pip install it"):
        load(ModelArguments(name_or_path="package:nobody_made_this"), None)


def test_a_gguf_file_is_converted_once_and_saves_as_a_stock_model(tmp_path, cache):
    original = saved_gguf(tmp_path / "tiny.gguf")
    args = ModelArguments(name_or_path=str(tmp_path), gguf_file="tiny.gguf", device="cpu")
    loaded = load(args, None)
    (folder,) = cache.iterdir()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert Path(load(args, None).model.name_or_path) == folder
    assert [*cache.iterdir()] == [folder] and (folder / "model.safetensors").stat().st_mtime_ns == made
    loaded.model.save_pretrained(tmp_path / "saved")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert stock.dtype == torch.float32
    assert torch.equal(stock(IDS).logits, original(IDS).logits)
    assert loaded.tokenizer.decode(loaded.tokenizer("inthat").input_ids) == "inthat"
    saved_gguf(tmp_path / "tiny.gguf", seed=1)
    assert not torch.equal(load(args, None).model(IDS).logits, original(IDS).logits)
    assert load_model(replace(args, dtype="bfloat16")).dtype == torch.bfloat16
    assert len([*cache.iterdir()]) == 3


def test_a_broken_conversion_leaves_nothing_behind(tmp_path, cache):
    (tmp_path / "broken.gguf").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"broken.gguf, which cannot be converted"):
        load(ModelArguments(name_or_path=str(tmp_path), gguf_file="broken.gguf"), None)
    assert [*cache.iterdir()] == []


def test_pickled_weights_are_never_loaded(tmp_path):
    args = saved_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin.*never loaded: convert them"):
        load(args, None)


def test_code_of_the_model_runs_only_when_it_is_asked_for(tmp_path):
    args = saved_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "of_its_own", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise RuntimeError('ran')")
    with pytest.raises(UserError, match="cannot be loaded.*trust_remote_code"):
        load_model(args, tiny_tokenizer())


def test_a_model_without_attention_is_refused_before_its_weights_are_read(tmp_path):
    AutoConfig.for_model("mamba", vocab_size=43).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(UserError, match=r"context is 'block'.*\(mamba\) has linear_attention layers.*use soft"):
        load(ModelArguments(name_or_path=str(tmp_path)), BLOCK)
    with pytest.raises(UserError, match=r"context is 'block'.*\(mamba\)"):
        load(replace(FRESH, from_config={"model_type": "mamba"}), BLOCK)


CONFIG = FRESH.from_config
REFUSED = {
    "no model": (ModelArguments(), "model.name_or_path is not set"),
    "no folder": (ModelArguments(name_or_path="/no/such/folder"), "no such folder: check the path"),
    "no tokenizer": (replace(FRESH, tokenizer=None), "model.from_config needs model.tokenizer"),
    "two models": (replace(FRESH, name_or_path="x"), "set beside model.name_or_path"),
    "no type": (replace(FRESH, from_config={}), "model_type None"),
    "unknown key": (replace(FRESH, from_config=CONFIG | {"hiden_size": 3}), "did you mean hidden_size"),
    "wrong type": (replace(FRESH, from_config=CONFIG | {"hidden_size": "x"}), "'hidden_size' expected int"),
    "odd size": (replace(FRESH, from_config=CONFIG | {"hidden_size": 33}), "not a multiple"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_sentence(case):
    args, match = REFUSED[case]
    with pytest.raises(UserError, match=match) as caught:
        load(args, None)
    assert len(caught.value.sentences) == 1 and "\n" not in str(caught.value)


def test_folders_that_hold_something_else_are_refused_with_what_they_hold(tmp_path):
    args = ModelArguments(name_or_path=str(tmp_path))
    with pytest.raises(UserError, match="holds no config.json: name a model's folder"):
        load(args, None)
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(UserError, match=r"set model.gguf_file too \(weights.gguf\)"):
        load(args, None)
    with pytest.raises(UserError, match=r"gguf_file is 'other.gguf', but .* holds weights.gguf"):
        load(replace(args, gguf_file="other.gguf"), None)
    saved_model(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer: name one in model.tokenizer"):
        load(args, None)


@pytest.mark.parametrize("gguf_file", [None, "x.gguf"])
@pytest.mark.parametrize("name", ["nobody/nothing", "no name!"])
def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch, name, gguf_file):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"{name}.*check the name and the network|{name}.*cannot be loaded"):
        load(ModelArguments(name_or_path=name, gguf_file=gguf_file), None)


def test_a_tokenizer_without_pad_pads_with_eos(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelArguments(tokenizer=str(tmp_path))).pad_token_id == tokenizer.eos_token_id
