"""BacktrackDatasetConverter: a record becomes ids once (`encode`), and each draw makes a trace of them (`draw`)."""

from collections.abc import Sequence
from functools import cached_property
from random import Random
from typing import Any

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from llmhalluc.backtrack import inject_error
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.checks import refuse_evaluation_split
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments

Ids = list[int]


class BacktrackDatasetConverter:
    """A converter says what a record's `texts` are and, if it puts errors in, how it would `corrupt` its ids.

    With `training` (the default) an evaluation split is refused with a UserError, as is a corrupting converter
    without a BACKTRACK; without `training` every draw is clean.
    """

    offsets = False  # whether `details` asks which token holds a character

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        backtrack_id: int | None,
        data: DataArguments,
        backtrack: BacktrackArguments,
        training: bool = True,
    ):
        if training:
            refuse_evaluation_split(data.dataset, data.split)
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos token to end an answer with: name another model.tokenizer")
        if training and backtrack_id is None and type(self).corrupt is not BacktrackDatasetConverter.corrupt:
            raise UserError(
                f"data.converter {data.converter} erases errors, which needs a BACKTRACK: set backtrack.token"
            )
        self.tokenizer, self.backtrack_id, self.training = tokenizer, backtrack_id, training
        self.data, self.backtrack = data, backtrack
        self.delimiter = "" if data.apply_chat_template else " "

    def texts(self, record: dict[str, Any]) -> tuple[str, str]:
        """The prompt and the answer of a record, the delimiter between them included in the answer."""
        raise NotImplementedError

    def details(self, record: dict[str, Any], answer: str, encoding: Encoding | None) -> dict[str, Any]:
        """What `corrupt` needs beside the ids; `encoding` is the answer's, with its offsets if `offsets` is set."""
        return {}

    def encode(self, record: dict[str, Any]) -> dict[str, Any]:
        """`prompt_ids`, `completion_ids` (eos at its end) and the `details`; the same at every call."""
        return self.encode_batch([record])[0]

    def encode_batch(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """`encode` of many records at once, which is what a fast tokenizer is fast at.

        Raises UserError for a prompt without tokens and for an answer that spells out BACKTRACK.
        """
        prompts, answers = zip(*map(self.texts, records), strict=True)
        prompt_ids = encode_prompts(self.tokenizer, prompts, self.data.apply_chat_template)
        answer_ids, encodings = self.answer_ids(records, answers)
        encoded = []
        for record, answer, prompt, ids, encoding in zip(
            records, answers, prompt_ids, answer_ids, encodings, strict=True
        ):
            if not prompt:
                raise UserError(f"data.dataset {self.data.dataset} has a record without a prompt: remove it")
            if self.backtrack_id in ids:
                raise UserError(
                    f"data.dataset {self.data.dataset} has an answer whose text holds the BACKTRACK token: "
                    "text cannot say what it erases, so remove it"
                )
            ids.append(self.tokenizer.eos_token_id)
            details = self.details(record, answer, encoding)
            encoded.append({"prompt_ids": prompt, "completion_ids": ids} | details)
        return encoded

    def answer_ids(
        self, records: Sequence[dict[str, Any]], answers: Sequence[str]
    ) -> tuple[list[Ids], Sequence[Encoding | None]]:
        """Return the ids of each answer, without eos, and its encoding."""
        return tokenise(self.tokenizer, answers, special_tokens=False, offsets=self.offsets)

    def check(self, encoded: Sequence[dict[str, Any]]) -> None:
        """Raise UserError for training data of which none can be used as the converter says."""

    def draw(self, encoded: dict[str, Any], rng: Random, progress: float) -> tuple[Ids, Ids]:
        """Prompt and completion of one trace; `progress` is the share of training that is done, 0..1."""
        if self.training:
            return encoded["prompt_ids"], self.corrupt(encoded, rng, progress)
        return encoded["prompt_ids"], encoded["completion_ids"]

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> Ids:
        """A completion that erases back to the clean one; here the clean one itself."""
        return encoded["completion_ids"]


class ErringConverter(BacktrackDatasetConverter):
    """A converter whose traces hold error runs, each followed by the BACKTRACKs that erase it; drawn anew each time."""

    @cached_property
    def errors(self) -> Any:
        """The ErrorRuns of the `backtrack` section; a task that searches does without."""
        from llmhalluc.data.errors import ErrorRuns

        return ErrorRuns(self.tokenizer, self.backtrack_id, self.backtrack)

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> Ids:
        ids = trace = encoded["completion_ids"]
        longest = self.errors.longest(progress)
        for at in reversed(self.errors.places(self.errors.eligible(ids), len(ids), rng)):
            trace = inject_error(trace, at, self.errors.run(ids, at, longest, rng), self.backtrack_id)
        return trace


def column(record: dict[str, Any], name: str, key: str) -> Any:
    """A record's value; UserError naming the `key` that asks for it where the column is missing or empty."""
    value = record.get(name)
    if value is None:
        raise UserError(
            f"{key} needs a column {name!r}, and a record has none; its columns are {', '.join(record)}: "
            "name the right column or converter"
        )
    return value


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], chat: bool = False) -> list[Ids]:
    """Ids of prompts that a completion follows: with the tokenizer's bos, never with an eos at the end.

    chat: each prompt is the user's turn of the tokenizer's chat template. Raises UserError when it has none.
    """
    if chat:
        if tokenizer.chat_template is None:
            raise UserError("data.apply_chat_template is true, but the tokenizer has no chat template: set false")
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        prompts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids, _ = tokenise(tokenizer, prompts, special_tokens=not chat)
    if not chat:
        for row in ids:
            if row and row[-1] == tokenizer.eos_token_id:
                row.pop()
    return ids


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special_tokens: bool, offsets: bool = False
) -> tuple[list[Ids], Sequence[Encoding | None]]:
    """The ids that `tokenizer(texts)` gives, and a fast tokenizer's encodings; faster without offsets."""
    if not tokenizer.is_fast:
        return tokenizer(list(texts), add_special_tokens=special_tokens)["input_ids"], [None] * len(texts)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # as the tokenizer itself does; an earlier call may have left its own setting
    backend.no_padding()
    run = backend.encode_batch if offsets else backend.encode_batch_fast
    encodings = run(list(texts), add_special_tokens=special_tokens)
    return [encoding.ids for encoding in encodings], encodings
