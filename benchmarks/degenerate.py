"""Does the degenerate answer spread under GRPO: one true equation without sense, and its result as the answer?

A small model of characters learns two-step sums by SFT; one in `--seeded` of its examples is degenerate, so that the
policy has it to reinforce. Then GRPO starts from it under the reward of this checkout and, with --against, under that
of another commit's checkout: same data, seeds and settings. Prints the shares of sampled answers (T = 1, test
problems) that are right, degenerate and bare before and after, with Wilson's intervals.
Usage: python benchmarks/degenerate.py FOLDER [--against CHECKOUT] [--steps 150] [--seeded 5] [--seed 1]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmhalluc.decoding.generator import Generator
from llmhalluc.eval.stats import wilson
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.math.equations import equations
from llmhalluc.tasks.math.process import _worked
from llmhalluc.tasks.math.solution import clean_solution

STORIES = (
    ("Ann has {a} pens, buys {b} and loses {c}.", "pens"),
    ("A bus holds {a}, then {b} enter and {c} leave.", "riders"),
)


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer with a token a character."""
    characters = [chr(i) for i in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *characters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r".|\n"), "isolated")
    inner.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip


def problem(rng: Random) -> dict[str, str]:
    """A question of two steps and its worked solution with calculator marks."""
    a, b = rng.randrange(11, 60), rng.randrange(11, 40)
    c = rng.randrange(2, a)
    story, unit = rng.choice(STORIES)
    total, left = a + b, a + b - c
    answer = f"{a}+{b} = <<{a}+{b}={total}>>{total}\n{total}-{c} = <<{total}-{c}={left}>>{left}\n#### {left}"
    return {"question": f"{story.format(a=a, b=b, c=c)} How many {unit}?", "answer": answer, "first": str(a)}


def degenerate(record: dict[str, str]) -> dict[str, str]:
    """The same question with a degenerate answer."""
    doubled = 2 * int(record["first"])
    return record | {"answer": f"{record['first']}*2 = <<{record['first']}*2={doubled}>>{doubled}\n#### {doubled}"}


def write_lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def train(checkout: Path, config: dict, path: Path) -> None:
    """Train in a process of the checkout."""
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    env = os.environ | {"PYTHONPATH": str(checkout), "WANDB_MODE": "offline"}
    command = [sys.executable, "-m", "llmhalluc.run_train", "--config", str(path)]
    subprocess.run(command, cwd=checkout, env=env, check=True, stdout=subprocess.DEVNULL)


def shares(model: Path, records: list[dict[str, str]], seed: int) -> dict[str, int]:
    """How many sampled answers are right, degenerate, and bare."""
    prompts = [TASKS["math"].prompt(record) + " " for record in records]
    texts = Generator.from_pretrained(str(model)).generate(prompts, max_new_tokens=60, top_k=None, seed=seed)
    found = dict.fromkeys(("right", "degenerate", "bare"), 0)
    for text, record in zip(texts, records, strict=True):
        steps, worked = equations(text), _worked(record["answer"], record["question"])
        verdict = TASKS["math"].check(text, record)
        senseless = [step for step in steps if step.true and step.result not in worked.results]
        found["right"] += verdict.right
        found["degenerate"] += not verdict.right and verdict.stated is not None and len(steps) == len(senseless) == 1
        found["bare"] += verdict.stated is not None and not steps
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--sft-steps", type=int, default=900)
    parser.add_argument("--seeded", type=int, default=5)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder, rng = given.folder.resolve(), Random(given.seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder / "tokenizer")
    plain = [problem(rng) for _ in range(4000)]
    mixed = [degenerate(record) if i % given.seeded == 0 else record for i, record in enumerate(plain)]
    write_lines(
        folder / "sft_data.jsonl", [{"question": r["question"], "answer": clean_solution(r["answer"])} for r in mixed]
    )
    write_lines(folder / "grpo_data.jsonl", plain)
    unseen = [problem(rng) for _ in range(given.problems)]
    model = {"model_type": "llama", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3,
             "num_attention_heads": 4, "max_position_embeddings": 256}  # fmt: skip
    steps = {"save_strategy": "no", "report_to": "none", "logging_steps": 50, "seed": given.seed}
    sft = {
        "model": {"from_config": model, "tokenizer": str(folder / "tokenizer")},
        "data": {"dataset": str(folder / "sft_data.jsonl"), "converter": "gsm8k"},
        "train": {"output_dir": str(folder / "sft"), "overwrite": True, "max_steps": given.sft_steps,
                  "per_device_train_batch_size": 32, "learning_rate": 2e-3, **steps},
    }  # fmt: skip
    train(REPOSITORY, sft, folder / "sft.yaml")
    start = folder / "sft"
    print("| model | right | degenerate | bare |\n| --- | --- | --- | --- |")
    print(row("after SFT", shares(start, unseen, given.seed), given.problems), flush=True)
    arms = {"GRPO, this reward": REPOSITORY} | ({"GRPO, the other": given.against.resolve()} if given.against else {})
    for name, checkout in arms.items():
        output = folder / ("new" if checkout == REPOSITORY else "old")
        grpo = {
            "model": {"name_or_path": str(start)},
            "data": {"dataset": str(folder / "grpo_data.jsonl"), "converter": "gsm8k"},
            "train": {"stage": "grpo", "output_dir": str(output), "overwrite": True, "max_steps": given.steps,
                      "per_device_train_batch_size": 128, "num_generations": 8, "max_completion_length": 60,
                      "learning_rate": 1e-4, **steps},
            "reward": {"curriculum": "linear", "curriculum_end": 1.0},
        }  # fmt: skip
        train(checkout, grpo, folder / f"{output.name}.yaml")
        print(row(name, shares(output, unseen, given.seed), given.problems), flush=True)


def row(name: str, found: dict[str, int], n: int) -> str:
    fields = []
    for count in found.values():
        share = wilson(count, n)
        fields.append(f"{100 * share.mean:.1f}% [{100 * share.low:.1f}, {100 * share.high:.1f}]")
    return f"| {name} | " + " | ".join(fields) + " |"


if __name__ == "__main__":
    main()
