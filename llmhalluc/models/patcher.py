"""Add the BACKTRACK token to a tokenizer, and rows for it to a model."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmhalluc.extras.constant import BACKTRACK_TOKEN, RESERVED_BACKTRACK_TOKEN
from llmhalluc.extras.errors import UserError


def add_token(tokenizer: PreTrainedTokenizerBase, token: str | None = None) -> int:
    """Make `token` (none: the one of the tokenizer's family) a special token; return its id.

    Llama 3 has reserved tokens and keeps its vocabulary; the others grow by one. Raises as `token_id`.
    """
    if token is None:
        reserved = RESERVED_BACKTRACK_TOKEN in tokenizer.get_vocab()
        token = RESERVED_BACKTRACK_TOKEN if reserved else BACKTRACK_TOKEN
    tokenizer.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False)
    return token_id(tokenizer, token)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str, key: str = "model.tokenizer") -> int:
    """Return the id of a BACKTRACK token, by `convert_tokens_to_ids`: `encode` puts BOS first on many tokenizers.

    key: what names a tokenizer in the user's YAML. Raises UserError when the tokenizer does not know the token, or uses
    it for something else.
    """
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or token not in tokenizer.get_vocab():  # else unk
        raise UserError(
            f"the BACKTRACK token {token!r} is unknown to the tokenizer: use the one that was saved with the "
            f"model, drop {key}"
        )
    for name in ("pad", "bos", "eos", "unk"):
        if found == getattr(tokenizer, f"{name}_token_id"):
            raise UserError(f"backtrack.token is {token!r}, which is the tokenizer's {name} token: give another")
    return found


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Grow the model's embeddings to the tokenizer's length; rows beyond it (Qwen's padding) stay."""
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        # The new row gets its start value from us: no normal need be fitted for it.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
