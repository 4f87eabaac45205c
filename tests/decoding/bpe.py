"""BPE tokenizers whose tokens cut characters apart, as those of real models do, and rows of their ids."""

import functools

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmhalluc.decoding.sequence import Sequence, Spec
from llmhalluc.hparams.sections import GenArguments
from tests.tiny import tiny_tokenizer

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


@functools.cache
def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are ▁, one is put before every text, characters without a token are spelt in bytes."""
    letters = "▁abcdefghijklmnopqrstuvwxyz<>/.,"
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("a", "t"), ("c", "at"), ("▁", "cat"), ("▁", "s"), ("▁s", "at")]
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    words += [first + second for first, second in merges]
    inner = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


TOKENIZERS = {"bytes": byte_tokenizer, "sentencepiece": sentencepiece_tokenizer, "words": tiny_tokenizer}


def spelt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def sequence_of(ids: list[int], prompt: tuple[int, ...] = (5,)) -> Sequence:
    """A sequence that has sampled these ids."""
    sequence = Sequence.begin(Spec(GenArguments(), (), None, "soft"), 0, list(prompt), "0", 10**6)
    extend(sequence, ids)
    return sequence


def extend(sequence: Sequence, ids: list[int]) -> None:
    for token in ids:
        sequence.append(token, -1.0, None)
