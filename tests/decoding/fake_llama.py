"""What our backend uses of llama_cpp, over a torch model that reads the whole text again at each call."""

import ctypes
from types import SimpleNamespace

import numpy as np
import torch

WINDOW = 256


class FakeLlama:
    """A `llama_cpp.Llama` of one text."""

    def __init__(self, model, path):
        self.torch_model, self.model_path, self.model, self.ctx = model, path, None, self
        self.input_ids, self.n_tokens = np.zeros(WINDOW, dtype=np.int32), 0
        self.last = np.zeros(self.n_vocab(), dtype=np.float32)

    def n_ctx(self):
        return WINDOW

    def n_vocab(self):
        return self.torch_model.config.vocab_size

    @torch.inference_mode()
    def eval(self, ids):
        end = self.n_tokens + len(ids)
        self.input_ids[self.n_tokens : end] = ids
        self.n_tokens = end
        text = torch.tensor(self.input_ids[:end][None].astype(np.int64))
        self.last[:] = self.torch_model(text, use_cache=False).logits[0, -1].float().numpy()


def fake_library(eos_id):
    """The functions of the module `llama_cpp`."""
    return SimpleNamespace(
        llama_model_is_recurrent=lambda model: False,
        llama_model_is_hybrid=lambda model: False,
        llama_model_n_swa=lambda model: 0,
        llama_model_n_ctx_train=lambda model: 4096,
        llama_model_get_vocab=lambda model: None,
        llama_vocab_is_eog=lambda vocabulary, id: id == eos_id,
        llama_get_logits_ith=lambda llama, i: (ctypes.c_float * len(llama.last)).from_buffer(llama.last),
    )
