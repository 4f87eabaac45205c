"""The token is added once, found by its name, and never at the cost of rows that are there."""

import pytest
import torch

from llmhalluc.extras.constant import BACKTRACK_TOKEN, RESERVED_BACKTRACK_TOKEN
from llmhalluc.extras.errors import UserError
from llmhalluc.models.patcher import add_token, fit_embeddings, token_id
from tests.tiny import tiny_model, tiny_tokenizer


def bos_first(tokenizer):
    """As on Llama: `encode` puts BOS first."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_trap2_the_id_is_the_tokens_and_not_bos():
    tokenizer = bos_first(tiny_tokenizer())
    size = len(tokenizer)
    backtrack_id = add_token(tokenizer)
    assert tokenizer.encode(BACKTRACK_TOKEN)[0] == tokenizer.bos_token_id != backtrack_id
    assert backtrack_id == size == tokenizer.encode(BACKTRACK_TOKEN)[1]
    assert backtrack_id in tokenizer.all_special_ids
    assert tokenizer.decode([7, backtrack_id], skip_special_tokens=True) == tokenizer.decode([7])


def test_trap2_a_token_that_would_be_unk_is_refused():
    tokenizer = tiny_tokenizer()
    assert tokenizer.convert_tokens_to_ids("<|nobody|>") == tokenizer.unk_token_id
    with pytest.raises(UserError, match=r"'<\|nobody\|>' is unknown to the tokenizer"):
        token_id(tokenizer, "<|nobody|>")


def test_each_family_gets_its_token_and_twice_is_once():
    llama3 = tiny_tokenizer(["cat", RESERVED_BACKTRACK_TOKEN])
    size = len(llama3)
    assert add_token(llama3) == token_id(llama3, RESERVED_BACKTRACK_TOKEN) == 5
    assert add_token(llama3) == 5 and len(llama3) == size
    assert add_token(llama3, "<|oops|>") == size
    assert llama3.eos_token == "<eos>"  # the other special tokens stay


@pytest.mark.parametrize("name", ["pad", "bos", "eos", "unk"])
def test_a_token_with_another_meaning_is_refused(name):
    with pytest.raises(UserError, match=f"tokenizer's {name} token"):
        add_token(tiny_tokenizer(), f"<{name}>")


@pytest.mark.parametrize("tied", [True, False])
def test_trap11_the_matrix_grows_only_when_it_must(tied):
    tokenizer = tiny_tokenizer()
    for rows in (len(tokenizer), len(tokenizer) + 20):
        model = tiny_model("qwen3", vocab_size=rows, tie_word_embeddings=tied)
        before = model.get_output_embeddings().weight.detach().clone()
        add_token(tokenizer)
        fit_embeddings(model, tokenizer)
        assert model.config.vocab_size == max(rows, len(tokenizer))
        assert torch.equal(model.get_output_embeddings().weight[: min(rows, len(before))], before)
