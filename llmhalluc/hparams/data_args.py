"""The `data` section: records, columns, converter."""

from dataclasses import dataclass
from typing import Literal

from llmhalluc.hparams.field import option


@dataclass
class DataArguments:
    """Which records train, and which converter turns them into traces."""

    dataset: str = option("sudoku", "hub name, local .json/.jsonl/.csv/.parquet file, or the generator sudoku")
    subset: str | None = option(None, "configuration of a hub data set (gsm8k: main)")
    split: str = option("train", "split that trains; the name of an evaluation split is refused")
    eval_dataset: str | None = option(None, "records for the evaluation loss during training; never corrupted")
    eval_split: str | None = option(None, "split of eval_dataset (or of dataset) for the evaluation loss")
    converter: str = option("sft", "sft, backtrack, gsm8k, gsm8k_backtrack, squad, sudoku or sudoku_backtrack")
    prompt_column: str = option("prompt", "column of the prompt (sft, backtrack)")
    completion_column: str = option("completion", "column of the answer (sft, backtrack)")
    template: Literal["none", "math", "qa"] = option("none", "prompt template of llmhalluc/prompts")
    apply_chat_template: bool = option(False, "wrap the prompt with the tokenizer's chat template")
    max_samples: int | None = option(None, "use the first so many records")
    max_length: int | None = option(None, "records whose trace is longer (tokens) are left out, and counted")
    num_proc: int | None = option(None, "processes that tokenise")
    sudoku_size: Literal[4, 6] = option(4, "side of the generated Sudoku grids")
    sudoku_count: int = option(20000, "puzzles to generate")
    sudoku_min_blanks: int = option(8, "fewest empty cells")
    sudoku_max_blanks: int = option(11, "most empty cells")
    sudoku_test_percent: int = option(20, "share of solution grids, by hash, that only evaluation may see")
    sudoku_seed: int = option(0, "seed of the generator")
