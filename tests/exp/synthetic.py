"""What run_train and run_eval leave behind, made without a model; as a script, a stand-in for both.

`python -m tests.exp.synthetic train|eval cell.yaml`; data.max_samples of the YAML may name one of FAULTS.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

import yaml

from llmhalluc.backtrack import inject_error
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.sudoku.generate import sudoku_records
from llmhalluc.tasks.sudoku.text import answer_text, prompt_text

EOS = 2
FAULTS = {901: "train fails", 902: "train hangs", 903: "eval fails", 904: "eval leaves nothing"}


def write_training(folder: Path, seed: int, floor: float = 0.05, tokenizer=None) -> None:
    """train.json with a loss that falls to about `floor`; model.safetensors is not there, config.json is."""
    rng, points = random.Random(seed), range(20, 801, 20)
    loss = [{"step": i, "loss": floor + 2.2 * 0.992**i + rng.uniform(0, 0.02), "tokens": i * 2625} for i in points]
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(
            json.dumps({"model_type": "llama", "backtrack": {"token_id": len(tokenizer) - 1}})
        )
    record = {"tokens": 2_100_000, "steps": 800, "examples": 102_400, "loss": loss, "seconds": 61.5}
    (folder / "train.json").write_text(json.dumps(record))


def write_evaluation(
    folder: Path, variants: dict[str, float], traces: bool, seed: int, count: int = 60, tokenizer=None
) -> None:
    """results.json and the samples of `count` Sudokus; `variants` maps a name to its accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for variant, accuracy in variants.items():
        samples = [
            sample(i, record, accuracy, traces, random.Random(f"{seed}-{variant}-{i}"), tokenizer)
            for i, record in enumerate(sudoku_records(count, 4, 11, 11, "test", 20, 1))
        ]
        lines = "".join(json.dumps(line) + "\n" for line in samples)
        (folder / f"samples_{variant}_sudoku.jsonl").write_text(lines)
        erasures = sum(line["erasures"] for line in samples)
        results[variant] = {"sudoku": {
            "n": count, "accuracy": sum(line["correct"] for line in samples) / count,
            "erasures_per_sample": erasures / count,
            "samples_with_erasure": sum(line["erasures"] > 0 for line in samples) / count,
            "emitted_per_kept": sum(s["emitted"] for s in samples) / sum(s["kept"] for s in samples),
            "backtrack_precision": 0.9 if erasures else None, "backtrack_recall": 0.8 if traces else 0.0,
        }}  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"results": results, "config": {}, "environment": {}}))


def sample(i: int, record: dict, accuracy: float, traces: bool, rng: random.Random, tokenizer=None) -> dict:
    """One line of a samples file: the answer, right with probability `accuracy`, with erased errors if `traces`."""
    answer = answer_text(record["puzzle"], record["solution"])
    moves = tokens(answer)
    if rng.random() > accuracy:
        moves[-1] = wrong(moves[-1])
    trace, back = moves, "<|BACKTRACK|>"
    for at in reversed(range(len(moves))) if traces else ():
        if rng.random() < 0.25:
            error = [wrong(move) for move in moves[at : at + rng.randint(1, 4)]]
            trace = inject_error(trace, at, error, back)
    text, erasures = (" " if " " in answer else "").join(moves), trace.count(back)
    ids = tokenizer.convert_tokens_to_ids if tokenizer else lambda words: [10 if word == back else 3 for word in words]
    return {
        "doc_id": i, "prompt_ids": ids(tokens(prompt_text(record["puzzle"]))), "completion_ids": [*ids(trace), EOS],
        "text": text, "target": answer, "metrics": {}, "doc": record,
        "correct": int(TASKS["sudoku"].check(text, record).right),
        "finish_reason": "eos", "erasures": erasures, "emitted": len(trace) + 1, "kept": len(moves) + 1,
        "events": [[i + 1, 1, "BACKTRACK"] for i, word in enumerate(trace) if word == back],
        "forward_passes": len(trace) + 1,
    }  # fmt: skip


def tokens(text: str) -> list[str]:
    """A Sudoku text's tokens: words where it has spaces, else characters."""
    return text.split() if " " in text else list(text)


def wrong(move: str) -> str:
    """The token with another digit."""
    return move[:-1] + str(int(move[-1]) % 4 + 1)


def main(step: str, path: Path) -> int:
    config = yaml.safe_load(path.read_text())
    fault = FAULTS.get(config["data"].get("max_samples"), "")
    print(f"{step} with {os.environ['OMP_NUM_THREADS']} threads", flush=True)
    if fault == f"{step} hangs":
        path.with_name("hanging").touch()
        time.sleep(60)
    if fault == f"{step} fails":
        print("a line of progress 1%\rand 50%\nerror: this cell was made to fail", flush=True)
        return 1
    seed = config.get("seed", 0)
    if step == "train":
        write_training(Path(config["train"]["output_dir"]), seed)
    elif fault != "eval leaves nothing":
        traces = config["data"]["converter"] != "sudoku"
        accuracy = 0.9 if traces else 0.6
        write_evaluation(Path(config["eval"]["output_dir"]), {"greedy": accuracy}, traces, seed, count=40)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
