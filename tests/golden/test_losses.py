"""The first 50 steps of every stage are what they were: losses, rewards, tokens, and the size of the final weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llmhalluc.hparams.parser import build
from llmhalluc.train.executors import executor_of
from tests.golden import compare, configs

NAME = "losses"
LABELS = {"soft": "train", "block": "redirect", "rewind": "mask"}
SFT = {
    f"sft {context} {rows}": (context, labels, rows == "packed")
    for context, labels in LABELS.items()
    for rows in ("padded", "packed")
}
CURVES = (*SFT, "lora on random errors", "dpo", "grpo")
# Of what train.json logs at each step; a stage has some of them.
LOGGED = ("loss", "accuracy", "tokens", "reward", "reward_std", "kl", "completions/mean_length", "erasures/mean",
          "rewards/margins", "logps/chosen", "logps/rejected")  # fmt: skip
TOTALS = ("tokens", "examples", "steps", "trainable_parameters")


def train(config: configs.Config) -> dict[str, Any]:
    """Train, and read what train.json says."""
    folder = Path(config["train"]["output_dir"])
    built = build(config)
    executor_of(built.train.stage)(built).run()
    return json.loads((folder / "train.json").read_text(encoding="utf-8"))


def config_of(curve: str, folder: Path) -> configs.Config:
    """The configuration of a curve; LoRA, DPO and GRPO begin where 50 steps of SFT end."""
    if curve in SFT:
        return configs.sft(folder / "run", *SFT[curve])
    start = folder / "start"
    train(configs.sft(start, "block", "redirect", packing=True))
    if curve == "lora on random errors":
        return configs.random_errors(folder / "run", start, write_records(folder / "train.jsonl"))
    return {"dpo": configs.dpo, "grpo": configs.grpo}[curve](folder / "run", start)


def write_records(path: Path) -> Path:
    """40 prompts with completions of 3 to 10 moves."""
    lines = [{"prompt": f"a1={1 + i % 4} solve", "completion": answer(i)} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def answer(i: int) -> str:
    return " ".join(f"{'abcd'[(i + j) % 4]}{1 + j % 4}={1 + (i * j) % 4}" for j in range(3 + i % 8))


def numbers_of(curve: str, folder: Path) -> dict[str, Any]:
    """What is kept of a curve: a list a logged quantity, the totals, and the norm of the weights that were saved."""
    config = config_of(curve, folder)
    record = train(config)
    logged = {name: [entry[name] for entry in record["loss"]] for name in LOGGED if name in record["loss"][0]}
    weights = load_file(next(Path(config["train"]["output_dir"]).glob("*model.safetensors")))
    norm = sum(weight.double().pow(2).sum().item() for weight in weights.values()) ** 0.5
    return logged | {f"total {name}": record[name] for name in TOTALS} | {"norm of the weights": norm}


def measure(folder: Path) -> dict[str, Any]:
    """All curves."""
    found = {}
    for curve in CURVES:
        (folder / curve).mkdir()
        found[curve] = numbers_of(curve, folder / curve)
    return found


@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_is_what_it_was(tmp_path, curve):
    compare.check(compare.read(NAME)[curve], numbers_of(curve, tmp_path))


def test_the_kept_curves_are_of_fifty_steps_that_learn():
    kept = compare.read(NAME)
    assert list(kept) == list(CURVES)
    for curve, numbers in kept.items():
        assert len(numbers["loss"]) == numbers["total steps"] == configs.STEPS, curve
        assert all(later > earlier for earlier, later in zip(numbers["tokens"], numbers["tokens"][1:], strict=False))
    for curve in (*SFT, "dpo"):
        assert sum(kept[curve]["loss"][-10:]) < 0.9 * sum(kept[curve]["loss"][:10]), curve
    for context in LABELS:  # rows end elsewhere, the loss is the same: but for rounding, packing adds nothing
        assert not compare.differences(kept[f"sft {context} padded"]["loss"], kept[f"sft {context} packed"]["loss"])
    assert len({round(numbers["loss"][-1], 6) for numbers in kept.values()}) == len(CURVES) - len(LABELS)
