"""Decoding on llama.cpp: a GGUF file, quantised as it is, behind the same engine as a torch model.

The engine's cache rule, a token at position p lies in column p and erasing is overwriting, is what llama.cpp's own
cache does when it forgets everything from a position on, so nothing of the bookkeeping is written here again.
"""

import importlib
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from llmhalluc.decoding.generator import Generator
from llmhalluc.decoding.options import model_section
from llmhalluc.decoding.sequence import Output
from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.helper import local_folder
from llmhalluc.models.patcher import token_id
from llmhalluc.models.weights import gguf_path


class LlamaCppBackend:
    """The backend over a `llama_cpp.Llama`, whose cache holds one text at a time.

    Raises UserError for a model that cannot forget the end of a text.
    """

    name, device, dtype = "llama.cpp", torch.device("cpu"), torch.float32
    hard_window = True
    most_slots: int | None = 1

    def __init__(self, llama: Any):
        llama_cpp = _library()
        self.llama, self.path, model = llama, llama.model_path, llama.model
        if llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model):
            raise UserError(f"{self.path} keeps more than keys and values: this decoding loop cannot erase in it")
        if llama_cpp.llama_model_n_swa(model) > 0 and not llama.context_params.swa_full:
            raise UserError(f"{self.path} has a sliding window, whose past is thrown away: load it with swa_full=True")
        self.backtrack: dict[str, Any] | None = None
        self.window = min(llama.n_ctx(), llama_cpp.llama_model_n_ctx_train(model))
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        self.eos_ids = [id for id in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, id)]
        self.forward_tokens = 0
        self._logits = lambda: llama_cpp.llama_get_logits_ith(llama.ctx, -1)

    def open(self, compiled: bool) -> "LlamaCppSlots":
        if compiled:
            raise UserError("gen.compile is true, but only models of torch can be compiled: set it to false")
        return LlamaCppSlots(self)

    def last_logits(self) -> np.ndarray:
        """Return the (V) float32 logits after the last token fed, in llama.cpp's own memory."""
        return np.ctypeslib.as_array(self._logits(), (self.llama.n_vocab(),))

    def hold(self, ids: list[int]) -> None:
        """Make the cache hold these ids; what it shares with the text before is not computed again.

        The last one always is, for its logits.
        """
        known = min(self.llama.n_tokens, len(ids) - 1)
        differing = np.flatnonzero(self.llama.input_ids[:known] != np.array(ids[:known]))
        known = int(differing[0]) if len(differing) else known
        self.llama.n_tokens = known  # `eval` drops the cache from here on
        self.llama.eval(ids[known:])
        self.forward_tokens += len(ids) - known


class LlamaCppSlots:
    """The text of each sequence. They take turns in the one cache: what two do not share is computed at each turn."""

    def __init__(self, backend: LlamaCppBackend):
        self.backend = backend
        self.texts: list[list[int]] = []

    def reserve(self, slots: int) -> None:
        self.texts += [[] for _ in range(slots - len(self.texts))]

    def copy(self, sources: list[int], targets: list[int], columns: int) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.texts[target] = self.texts[source][:columns]

    def fill(self, first: int, start: int, ids: list[list[int]]) -> None:
        """Note the prompts; the first step computes them."""
        for slot, more in enumerate(ids, first):
            self.texts[slot] = self.texts[slot][:start] + more

    def step(self, feeds: list[tuple[int, int]], layers: tuple[str, ...]) -> Output:
        if layers:
            raise UserError("hidden states of layers are asked for, which llama.cpp does not give: use the torch model")
        logits = []
        for slot, (token, position) in enumerate(feeds):
            self.texts[slot] = [*self.texts[slot][:position], token]
            self.backend.hold(self.texts[slot])
            logits.append(torch.from_numpy(self.backend.last_logits().copy()))
        return Output(torch.stack(logits), {})


def load(args: ModelArguments, context: str = "soft", token: str | None = None, **llama: Any) -> tuple:
    """Return (LlamaCppBackend, tokenizer) of the GGUF file `args.gguf_file` in `args.name_or_path`.

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
        backend = LlamaCppBackend(llama_cpp.Llama(str(path), **options))
    except ValueError as error:
        raise UserError(f"model.gguf_file is {path}, which llama.cpp cannot load: {error}") from error
    if token is not None or BACKTRACK_TOKEN in tokenizer.get_vocab():
        token = token or BACKTRACK_TOKEN
        backend.backtrack = {"token": token, "token_id": token_id(tokenizer, token), "context": context}
    return backend, tokenizer


def _library() -> Any:
    """The module `llama_cpp`, of an extra that most installations lack."""
    try:
        return importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        raise UserError("llama.cpp is not installed: pip install 'llmhalluc[llamacpp]'") from error


class LlamaCppGenerator(Generator):
    """`Generator` on llama.cpp."""

    @classmethod
    def from_pretrained(
        cls, name: str, context: str | None = None, token: str | None = None, **llama: Any
    ) -> "LlamaCppGenerator":
        """Load a GGUF file: its path, or hub owner/name/file. `context`, `token` and `llama` as for `load`."""
        backend, tokenizer = load(ModelArguments(**model_section(name)), context or "soft", token, **llama)
        return cls(backend, tokenizer)
