"""Start values of the BACKTRACK rows, made from the rows of tokens that the model knows already."""

import logging
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmhalluc.hparams.sections import ModelArguments

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """What a start value is made from: rows of one embedding matrix, D wide."""

    plain: torch.Tensor  # (n, D) every token but the special and the unused ones
    words: torch.Tensor  # (n, D) one row a word: delete, undo, …
    description: torch.Tensor  # (n, D) the tokens of the sentence that says what a BACKTRACK does
    noise: torch.Tensor  # (D,) standard normal


START_VALUES = {
    "mean": lambda rows: rows.plain.mean(0),
    "description": lambda rows: rows.description.mean(0),
    "semantic": lambda rows: rows.words.mean(0),
    "combined": lambda rows: (rows.words.mean(0) + rows.description.mean(0)) / 2,
    "random": lambda rows: rows.plain.mean(0) + rows.plain.std(0) * rows.noise,
}


@torch.no_grad()
def set_start_values(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, backtrack_id: int, args: ModelArguments, seed: int
) -> None:
    """Set the BACKTRACK's input row, and its output row where that is another, as `args.token_init` says.

    Always, whether or not the vocabulary grew: rows that were there before were never trained. The mean of
    the plain rows takes the place of words that the tokenizer does not know.
    """
    special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    plain = sorted(set(tokenizer.get_vocab().values()) - special)
    words = [ids for word in args.token_init_words if (ids := _word_ids(tokenizer, word))]
    description = tokenizer.encode(args.token_init_description, add_special_tokens=False)
    description = [i for i in description if i != tokenizer.unk_token_id]
    for name, known, used_by in (("words", words, "semantic"), ("description", description, "description")):
        if not known and args.token_init in (used_by, "combined"):
            logger.warning("model.token_init_%s is unknown to the tokenizer: the mean row takes its place", name)
    generator = torch.Generator().manual_seed(seed)
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for weight in matrices[:1] if matrices[0] is matrices[1] else matrices:
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
        mean = exact[plain].mean(0, keepdim=True)
        rows = Rows(
            plain=exact[plain],
            words=torch.stack([exact[ids].mean(0) for ids in words]) if words else mean,
            description=exact[description] if description else mean,
            noise=torch.randn(weight.shape[1], generator=generator).to(exact),
        )
        # A standard normal vector is about √D long.
        scale = args.token_init_noise * rows.plain.norm(dim=1).mean() / weight.shape[1] ** 0.5
        weight[backtrack_id] = (START_VALUES[args.token_init](rows) + scale * rows.noise).to(weight.dtype)


def _word_ids(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """The fewest tokens that spell `word`, with or without the space before it that running text has."""
    spellings = [tokenizer.encode(text, add_special_tokens=False) for text in (f" {word}", word)]
    return min((ids for ids in spellings if ids and tokenizer.unk_token_id not in ids), key=len, default=[])
