"""Texts of the toy task of tests/search with labels, as the stages make them."""

from llmhalluc.data.problems import Problem
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Spec
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.models.loader import Loaded
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.steps import pieces_of
from llmhalluc.verify.labels import Judged
from llmhalluc.verify.places import places
from llmhalluc.verify.traces import Labelled
from tests.tiny import tiny_model

COUNTDOWN = TASKS["countdown"]
TOKENIZER = COUNTDOWN.tokenizer("countdown")
RECORD = {"numbers": [2, 3, 4], "target": 9, "solution": ["2 + 3 = 5", "5 + 4 = 9"]}
EOS = 2


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False).input_ids


def loaded(family="llama", context="soft", backtrack_id=None):
    from llmhalluc.models.context import apply_context

    model = tiny_model(family, vocab_size=len(TOKENIZER) + 1)
    apply_context(model, context, backtrack_id)
    return Loaded(model, TOKENIZER, backtrack_id, context)


def sampled(model, count=6, **gen):
    """Labelled texts that a model samples; a step is good where its number of tokens is even."""
    options = GenArguments(**{"max_new_tokens": 20, "temperature": 1.0, "backtrack_bias": 2.0} | gen)
    spec = Spec(options, [EOS], model.backtrack_id, model.context, TOKENIZER)
    prompts = [ids_of(f"{2 + i} 3 4 target 9 solve") for i in range(count)]
    made = []
    for i, trace in enumerate(decode(model.model, prompts, spec)):
        found = places(trace.completion_ids, model.backtrack_id, [EOS], Words(), pieces_of(TOKENIZER))
        judged = Judged(Problem(f"p{i}", "countdown", prompts[i], RECORD), found, bool(i % 2))
        good = [float(len(place.standing) % 2) for place in found]
        made.append(Labelled(prompts[i], trace.completion_ids, trace.logprobs, judged, good))
    return [one for one in made if one.judged.places]


class Words:
    """Each token is a step."""

    def step_ends(self, pieces):
        return list(range(1, len(pieces) + 1))
