"""A byte-level BPE tokenizer whose tokens cut characters apart, as those of real models do."""

import functools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "the cat sat on the mat, the cats",
    "naïve café — déjà vu",
    "猫がマットに座った",
    "🐱🙂👩‍👩‍👧 ok",
    "<|x|> a\n\nb  c",
]


@functools.cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """330 tokens: three special ones, the bytes, merges; id 3 is a special token in the middle of texts."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<pad>", "<bos>", "<eos>", "<|BACKTRACK|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    inner.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|BACKTRACK|>"]})
    return tokenizer
