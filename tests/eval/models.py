"""Models for evaluation tests: a tiny saved Sudoku model, and one that says what a script says."""

from pathlib import Path

import torch
from tokenizers import decoders

from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.hparams.parser import build
from llmhalluc.hparams.sections import Config
from llmhalluc.models.loader import Loaded
from llmhalluc.tasks.sudoku.text import build_tokenizer
from tests.tiny import tiny_model, tiny_tokenizer


def save_sudoku_model(folder: Path, context: str | None = "block", seed: int = 3) -> Path:
    """A random float64 model with the 4×4 tokenizer and a BACKTRACK of `context`; None: without a BACKTRACK."""
    tokenizer = build_tokenizer(4)
    if context:
        tokenizer.add_special_tokens({"additional_special_tokens": [BACKTRACK_TOKEN]})
    model = tiny_model("llama", vocab_size=len(tokenizer), seed=seed)
    if context:
        backtrack_id = tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN)
        model.config.backtrack = {"token": BACKTRACK_TOKEN, "token_id": backtrack_id, "context": context}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sudoku_config(model: Path, output_dir: Path, **settings) -> Config:
    """An evaluation of six puzzles with a saved model; `settings` are keys of `eval`, and `gen`."""
    gen = {"max_new_tokens": 40} | settings.pop("gen", {})
    chosen = {
        "tasks": ["sudoku"],
        "output_dir": str(output_dir),
        "task_options": {"sudoku": {"count": 6}},
        "batch_size": 4,
    } | settings
    return build({"model": {"name_or_path": str(model), "device": "cpu"}, "gen": gen, "eval": chosen})


def word_tokenizer():
    """Words, digits and punctuation, one token each, that decode to the text they came from."""
    words = "Question Answer What is The the answer".split() + list("0123456789+-*/=.,:?#$ \n")
    tokenizer = tiny_tokenizer(words)
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens({"additional_special_tokens": [BACKTRACK_TOKEN]})
    return tokenizer


def scripted(script: str, backtrack: bool = True) -> Loaded:
    """What `load` would give for a model that says `script` to its one prompt; `<` is a BACKTRACK, and eos ends it."""
    tokenizer = word_tokenizer()
    erase = tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN)
    pieces = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in script.split("<")]
    ids = iter([token for i, piece in enumerate(pieces) for token in ([erase] * bool(i)) + piece])
    model = tiny_model("llama", vocab_size=len(tokenizer))
    honest = model.forward

    def forward(*args, **kwargs):
        out = honest(*args, **kwargs)
        out.logits = torch.nn.functional.one_hot(
            torch.full(out.logits.shape[:2], next(ids, tokenizer.eos_token_id)), len(tokenizer)
        ).double()
        return out

    model.forward = forward
    return Loaded(model, tokenizer, erase if backtrack else None, "soft")
