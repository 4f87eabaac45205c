"""Traces of run_selfgen: a right prefix, the model's own wrong steps, the BACKTRACKs that erase them, a right end."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmhalluc.backtrack import inject_error
from llmhalluc.data.base import ErringConverter, Ids, column
from llmhalluc.extras.constant import BACKTRACK_TOKEN, RESERVED_BACKTRACK_TOKEN
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.checks import refuse_evaluation_split
from llmhalluc.hparams.sections import DataArguments

ABOUT = "selfgen.json"  # lies beside traces.jsonl
COLUMNS = ("prompt_ids", "prefix_ids", "own_steps", "right_ids")


class SelfgenConverter(ErringConverter):
    """`prefix_ids`, the first of `own_steps`, as many BACKTRACKs as they have tokens, `right_ids`.

    How many steps: a run length of the `backtrack` section, counted in steps. A record without own steps is clean.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_source(self.data, self.tokenizer, self.backtrack_id, self.training)

    def encode_batch(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The ids as the file has them. Raises UserError for ids that are none of the tokenizer's, or a BACKTRACK."""
        encoded, size = [], len(self.tokenizer)
        for record in records:
            prompt, prefix, own, right = (column(record, name, "data.converter selfgen") for name in COLUMNS)
            ids = [*prompt, *prefix, *(token for step in own for token in step), *right]
            if not prompt or not all(0 <= token < size for token in ids) or self.backtrack_id in ids:
                raise UserError(
                    f"data.dataset {self.data.dataset} has a trace without a prompt, with a BACKTRACK, or with ids "
                    f"beyond the tokenizer's {size}: write it with run_selfgen"
                )
            encoded.append({"prompt_ids": prompt, "completion_ids": [*prefix, *right], "at": len(prefix), "own": own})
        return encoded

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> Ids:
        if not encoded["own"]:
            return encoded["completion_ids"]
        count = self.errors.length(rng, self.errors.longest(progress))
        error = [token for step in encoded["own"][:count] for token in step]
        return inject_error(encoded["completion_ids"], encoded["at"], error, self.backtrack_id)


def check_source(
    data: DataArguments, tokenizer: PreTrainedTokenizerBase, backtrack_id: int | None, training: bool = True
) -> dict[str, Any]:
    """What selfgen.json beside `data.dataset` says.

    Raises UserError where there is none, where the ids are another tokenizer's, and, with `training`, where the
    problems came from an evaluation split (law 8).
    """
    path = Path(data.dataset).expanduser().with_name(ABOUT)
    if not path.is_file():
        raise UserError(
            f"data.dataset is {data.dataset}, but {path} does not exist: name the traces.jsonl of a run_selfgen"
        )
    about = json.loads(path.read_text(encoding="utf-8"))
    if about["tokenizer"] != tokenizer_fingerprint(tokenizer, backtrack_id):
        raise UserError(
            f"data.dataset is {data.dataset}, whose ids are of another tokenizer ({about['model']}): run run_selfgen "
            "with this model, or train the one it was run with"
        )
    if training:
        refuse_evaluation_split(about["problems"]["dataset"], about["problems"]["split"])
    return about


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, backtrack_id: int | None) -> str:
    """SHA-256 of the vocabulary without BACKTRACK, which one of two models may have before the other."""
    own = {BACKTRACK_TOKEN, RESERVED_BACKTRACK_TOKEN}
    vocabulary = [(i, token) for token, i in tokenizer.get_vocab().items() if i != backtrack_id and token not in own]
    return hashlib.sha256(json.dumps(sorted(vocabulary)).encode()).hexdigest()
