"""A stand-in for the steps of a chain: `python -m tests.exp.links gen|train|eval FILE.yaml`.

`data.max_length` of the YAML may name one of FAULTS; what a step was given is written down beside what it leaves.
"""

import json
import sys
import time
from pathlib import Path

import yaml

from tests.exp import synthetic

FAULTS = {
    901: "selfgen fails",
    902: "train fails",
    903: "eval fails",
    904: "selfgen leaves nothing",
    905: "train hangs once",
}


def main(step: str, path: Path) -> int:
    config = yaml.safe_load(path.read_text())
    fault, model = FAULTS.get(config["data"].get("max_length"), ""), config["model"]
    if "name_or_path" in model:
        assert (Path(model["name_or_path"]) / "train.json").is_file() and "from_config" not in model
    if fault == f"{step} hangs once" and not (hung := path.with_name("hung")).exists():
        hung.touch()
        time.sleep(60)
    if fault == f"{step} fails":
        return 1
    if step == "selfgen" and fault != "selfgen leaves nothing":
        folder = Path(config["selfgen"]["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "traces.jsonl").write_text(f"{config['data']['converter']} by {model}\n")
        (folder / "selfgen.json").write_text("{}")
    elif step == "train":
        dataset = config["data"].get("dataset", "sudoku")
        assert dataset == "sudoku" or Path(dataset).is_file()
        folder = Path(config["train"]["output_dir"])
        synthetic.write_training(folder, config.get("seed", 0))
        if config["train"].get("stage") == "grpo":
            record = json.loads((folder / "train.json").read_text())
            record["loss"] = [{"tokens": i * 1000, "loss": 0.0, "reward": i / 10} for i in range(5)]
            (folder / "train.json").write_text(json.dumps(record))
    elif step == "eval":
        synthetic.write_evaluation(Path(config["eval"]["output_dir"]), {"greedy": 0.7}, True, 0, count=10)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
