"""Decoding on llama.cpp: a GGUF file, quantised as it is, drives the same loop as a torch model (engine.py).

The engine's cache rule, a token at position p lies in column p and erasing is overwriting, is what llama.cpp's own
cache does when it forgets everything from a position on, so nothing of the bookkeeping is written here again.
"""

import importlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from llmhalluc.decoding import engine
from llmhalluc.decoding.generator import Generator
from llmhalluc.decoding.options import model_section
from llmhalluc.decoding.rows import Event, Trace
from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.gen_args import GenArguments
from llmhalluc.hparams.model_args import ModelArguments
from llmhalluc.models.helper import gguf_path, local_folder
from llmhalluc.models.patcher import token_id


class LlamaCppModel:
    """What the engine and `Generator` need of a model, over a `llama_cpp.Llama`; one row at a time.

    The ids that lie in the cache are known, so a prompt that begins as the text before it (the next turn of a chat)
    is not computed again. Raises UserError for a model that cannot forget the end of a text.
    """

    device, dtype, _is_stateful = torch.device("cpu"), torch.float32, False
    most_rows = 1  # that the engine may feed at once

    def __init__(self, llama: Any):
        llama_cpp = _library()
        self.llama, self.path, model = llama, llama.model_path, llama.model
        if llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model):
            raise UserError(f"{self.path} keeps more than keys and values: this decoding loop cannot erase in it")
        if llama_cpp.llama_model_n_swa(model) > 0 and not llama.context_params.swa_full:
            raise UserError(f"{self.path} has a sliding window, whose past is thrown away: load it with swa_full=True")
        self.config = SimpleNamespace(
            model_type="llama.cpp", vocab_size=llama.n_vocab(), backtrack=None, _attn_implementation="sdpa",
            max_position_embeddings=min(llama.n_ctx(), llama_cpp.llama_model_n_ctx_train(model)),
        )  # fmt: skip
        self.config.get_text_config = lambda: self.config
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        ends = [id for id in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, id)]
        self.generation_config = SimpleNamespace(eos_token_id=ends)
        self._logits = lambda: llama_cpp.llama_get_logits_ith(llama.ctx, -1)

    def base_model(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> None:
        """Put (1, T) tokens at their positions, contiguous, and forget what was there and later."""
        ids, start = input_ids[0].tolist(), int(position_ids[0, 0])
        held = self.llama.input_ids[start : self.llama.n_tokens].tolist()
        known = next((i for i, pair in enumerate(zip(ids, held, strict=False)) if pair[0] != pair[1]), len(held))
        self._feed(ids[known:], start + min(known, len(ids)))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        """As `base_model`; `logits` (1, 1, V) float32 of the last token, a copy."""
        self._feed(input_ids[0].tolist(), int(position_ids[0, 0]))
        return SimpleNamespace(logits=torch.from_numpy(self.last_logits().copy())[None, None])

    def last_logits(self) -> np.ndarray:
        """The (V) float32 logits after the last token fed, in llama.cpp's own memory."""
        return np.ctypeslib.as_array(self._logits(), (self.config.vocab_size,))

    __call__ = forward

    def _feed(self, ids: list[int], position: int) -> None:
        self.llama.n_tokens = position  # `eval` drops the cache from here on
        if ids:
            self.llama.eval(ids)


def load(args: ModelArguments, context: str = "soft", token: str | None = None, **llama: Any) -> tuple:
    """(LlamaCppModel, tokenizer) of the GGUF file `args.gguf_file` in `args.name_or_path`.

    A GGUF file does not say how the model was trained: give the context, and `token` where BACKTRACK has another name
    than ours. `llama` goes to `llama_cpp.Llama`: n_ctx (4096), n_threads, n_gpu_layers, … Raises UserError for a
    file or a token that is not there, and without the extra `llamacpp`.
    """
    llama_cpp = _library()
    if args.name_or_path is None or args.gguf_file is None:
        raise UserError("llama.cpp reads a GGUF file: set model.name_or_path and model.gguf_file")
    path = gguf_path(args, local_folder("model.name_or_path", args.name_or_path))
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    try:
        options = {"n_ctx": 4096, "n_threads_batch": llama.get("n_threads"), "swa_full": True, "verbose": False} | llama
        model = LlamaCppModel(llama_cpp.Llama(str(path), **options))
    except ValueError as error:
        raise UserError(f"model.gguf_file is {path}, which llama.cpp cannot load: {error}") from error
    if token is not None or BACKTRACK_TOKEN in tokenizer.get_vocab():
        token = token or BACKTRACK_TOKEN
        model.config.backtrack = {"token": token, "token_id": token_id(tokenizer, token), "context": context}
    return model, tokenizer


def _library() -> Any:
    """The module `llama_cpp`, of an extra that most installations lack."""
    try:
        return importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        raise UserError("llama.cpp is not installed: pip install 'llmhalluc[llamacpp]'") from error


def stream(model: LlamaCppModel, prompts: Sequence[list[int]], options: GenArguments, **how: Any) -> Iterator[Event]:
    """As `engine.stream`, one prompt after the other, whatever `batch_size`."""
    return engine.stream(model, _fitting(model, prompts, options), options, **how)  # type: ignore


def decode(model: LlamaCppModel, prompts: Sequence[list[int]], options: GenArguments, **how: Any) -> list[Trace]:
    """As `engine.decode`, one prompt after the other, whatever `batch_size`."""
    return engine.decode(model, _fitting(model, prompts, options), options, **how)  # type: ignore


def _fitting(model: LlamaCppModel, prompts: Sequence[list[int]], options: GenArguments) -> Sequence[list[int]]:
    """The prompts. Raises UserError where a text might outgrow the context that llama.cpp was loaded with."""
    longest, window = max(map(len, prompts), default=0), model.config.max_position_embeddings
    if longest + options.max_new_tokens > window:
        raise UserError(
            f"a prompt of {longest} tokens and gen.max_new_tokens {options.max_new_tokens} do not fit into the window "
            f"of {window} tokens: shorten it, or load the model with a larger n_ctx if it has one"
        )
    return prompts


class LlamaCppGenerator(Generator):
    """`Generator` on llama.cpp."""

    @classmethod
    def from_pretrained(
        cls, name: str, context: str | None = None, token: str | None = None, **llama: Any
    ) -> "LlamaCppGenerator":
        """Load a GGUF file: its path, or hub owner/name/file. `context`, `token` and `llama` as for `load`."""
        model, tokenizer = load(ModelArguments(**model_section(name)), context or "soft", token, **llama)
        return cls(model, tokenizer)
