"""A Sudoku model that is right now and then: a tiny Llama that saw a dozen easy puzzles for a second or two."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from llmhalluc.data.problems import Problem, load_problems
from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.hparams.parser import build
from llmhalluc.hparams.sections import Config, DataArguments
from llmhalluc.tasks import TASKS
from tests.data.toy import sudoku_tokenizer
from tests.tiny import tiny_model

DATA = {"dataset": "sudoku", "converter": "sudoku", "task": {"count": 12, "min_blanks": 4, "max_blanks": 6}}


@cache
def problems(count: int = 12) -> list[Problem]:
    return load_problems(DataArguments(**DATA | {"task": DATA["task"] | {"count": count}}), sudoku_tokenizer())


def solution_ids(problem: Problem) -> list[int]:
    """The right moves row by row, without eos."""
    return sudoku_tokenizer().convert_tokens_to_ids(TASKS["sudoku"].solution(problem.record).split())


@cache
def weights() -> dict[str, torch.Tensor]:
    """Trained until about every other sample is right."""
    tokenizer = sudoku_tokenizer()
    rows = [one.prompt_ids + solution_ids(one) + [tokenizer.eos_token_id] for one in problems()]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    model = tiny_model("llama", vocab_size=len(tokenizer), dtype=torch.float32, initializer_range=0.1)
    with torch.enable_grad():
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(26):
            optimizer.zero_grad()
            model(ids, labels=labels).loss.backward()
            optimizer.step()
    return {name: weight.double() for name, weight in model.state_dict().items()}


def save(folder: Path, backtrack: bool = True) -> Path:
    """The model in float64 (draws do not hang on the batch), with a BACKTRACK that it never learned to use."""
    tokenizer = sudoku_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.load_state_dict(weights())
    if backtrack:
        token_id = tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN)
        model.config.backtrack = {"token": BACKTRACK_TOKEN, "token_id": token_id, "context": "block"}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def raw(model: Path, output_dir: Path, **dotted: Any) -> dict[str, Any]:
    """Sections for run_selfgen, with `section__key=value` changed."""
    config: dict[str, Any] = {
        "seed": 5,
        "model": {"name_or_path": str(model), "device": "cpu"},
        "data": dict(DATA),
        "gen": {"max_new_tokens": 12},
        "selfgen": {"samples": 6, "batch_size": 8, "rollouts": 4, "output_dir": str(output_dir)},
    }
    for name, value in dotted.items():
        section, key = name.split("__")
        config.setdefault(section, {})[key] = value
    return config


def config(model: Path, output_dir: Path, **dotted: Any) -> Config:
    return build(raw(model, output_dir, **dotted))
