"""Records, tokenizers and a slow oracle for the tests of the data room."""

import json
import tempfile
from functools import cache
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llmhalluc.data.manager import converter_class
from llmhalluc.data.selfgen import ABOUT, tokenizer_fingerprint
from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.countdown import CountdownOptions
from llmhalluc.tasks.sudoku.text import build_tokenizer

_FOLDER = tempfile.TemporaryDirectory()
GSM8K = [
    {
        "question": "A coop holds 48 hens and half as many ducks. How many birds are there?",
        "answer": "There are 48/2 = <<48/2=24>>24 ducks.\nTogether there are 48+24 = <<48+24=72>>72 birds.\n#### 72",
    },
    {
        "question": "A van costs $1,000 a month for 12 months, and 5% of the sum is paid back. What is paid?",
        "answer": "The year costs 1000*12 = $<<1000*12=12000>>12,000.\n"
        "Back come 12000*.05 = $<<12000*.05=600>>600.\n"
        "So (12000-600) = $<<(12000-600)=11400>>11,400 is paid.\n#### 11,400",
    },
    {
        "question": "Ann shares $7.50 among 3 friends. How much does each get, and how much do two of them?",
        "answer": "Each gets 7.5/3 = $<<7.5/3=2.5>>2.50.\nTwo get 2.5*2 = $<<2.5*2=5>>5.\n#### 5",
    },
    {"question": "How many legs has a cat?", "answer": "A cat has four legs.\n#### 4"},
]
QA = [
    {"prompt": f"What is {a} and {b}?", "completion": f"{a} and {b} is {a + b}, as {b} and {a} is."}
    for a, b in ((3, 4), (12, 30), (55, 6))
]
SQUAD = [
    {"question": "Where?", "context": "It stood in Rome.", "answers": {"text": ["in Rome", "Rome"]}},
    {"question": "Who?", "context": "It stood in Rome.", "answers": {"text": []}},
]
SUDOKU = [{"puzzle": "4...1......42.1.", "solution": "4231134231242413"}]  # of the training part
PAIRS = [{"prompt": "What is 3 and 4?", "chosen": "It is 7.", "rejected": f"It is {i}."} for i in (6, 8)]
OWN = [  # ids of bpe_tokenizer: a prefix, two own steps, a right end with eos; a clean one
    {"prompt_ids": [9, 10], "prefix_ids": [11], "own_steps": [[12, 13], [14]], "right_ids": [15, 16, 2]},
    {"prompt_ids": [9, 10], "prefix_ids": [], "own_steps": [], "right_ids": [11, 15, 2]},
]
COUNTDOWN = TASKS["countdown"].generate(CountdownOptions(count=5), "train")
RECORDS = {
    "sft": QA, "backtrack": QA, "gsm8k": GSM8K, "gsm8k_backtrack": GSM8K, "squad": SQUAD,
    "sudoku": SUDOKU, "sudoku_backtrack": SUDOKU, "dpo": PAIRS, "backtrack_dpo": GSM8K[:3],
    "selfgen": OWN, "countdown": COUNTDOWN, "countdown_backtrack": COUNTDOWN,
}  # fmt: skip


@cache
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges digits (GPT-2's way): what `24` becomes depends on its neighbours."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    rng = Random(0)
    texts = [" ".join(record.values()) for record in GSM8K + QA]
    texts += [
        f"{rng.randrange(100)} = ${rng.randrange(30000)}, 1{rng.randrange(10)}.{rng.randrange(99)}" for _ in range(2000)
    ]
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.add_special_tokens({"additional_special_tokens": [BACKTRACK_TOKEN, "<|reserved|>"]})
    return tokenizer


@cache
def sudoku_tokenizer(size: int = 4) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(size)
    tokenizer.add_special_tokens({"additional_special_tokens": [BACKTRACK_TOKEN]})
    return tokenizer


@cache
def own_file() -> str:
    """Where traces of run_selfgen would lie: what they are stands beside them."""
    about = {"model": "a/model", "problems": {"dataset": "sudoku", "split": "train"}}
    tokenizer = bpe_tokenizer()
    about["tokenizer"] = tokenizer_fingerprint(tokenizer, tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN))
    (Path(_FOLDER.name) / ABOUT).write_text(json.dumps(about))
    return str(Path(_FOLDER.name) / "traces.jsonl")


def converter(name: str, training: bool = True, data: dict | None = None, **backtrack):
    """A converter with a tokenizer that suits it."""
    tokenizer = sudoku_tokenizer() if name.startswith("sudoku") else bpe_tokenizer()
    if name == "selfgen":
        data = {"dataset": own_file()} | (data or {})
    arguments = DataArguments(converter=name, **({"dataset": "records.jsonl"} | (data or {})))
    backtrack_id = tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN)
    return converter_class(name)(tokenizer, backtrack_id, arguments, BacktrackArguments(**backtrack), training)


def erased_positions(ids: list[int], backtrack_id: int) -> set[int]:
    """Positions whose token a BACKTRACK erases, one step at a time."""
    stack: list[int] = []
    erased = set()
    for i, token in enumerate(ids):
        if token != backtrack_id:
            stack.append(i)
        elif stack:
            erased.add(stack.pop())
    return erased
