"""Which decoding options hold: the `gen` section, a variant of it, or the task's own generation_kwargs.

The order, highest first: keys of the variant; keys of `gen` that were given, be it their default; the task's
generation_kwargs (max_gen_toks is gen's max_new_tokens); the defaults of `gen`. Stop strings add up instead: `until` of
the task always stops, and `stop` of gen or the variant beside it.
"""

import logging
import re
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any

from llmhalluc.decoding.operators import Operator, make_operator
from llmhalluc.eval.lm_eval_patches import generation_options
from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.hparams.mapping import check_mapping
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.search.options import search_options

JUDGES = ("verifier", "prm")  # operators that were trained, and what they take
JUDGE_KEYS = {"threshold": (0.0, 1.0), "penalty": (-inf, 0.0), "retries": (1, inf), "judge": (0.0, 0.0)}
logger = logging.getLogger(__name__)
GEN_KEYS = tuple(field.name for field in fields(GenArguments))


@dataclass(frozen=True)
class Variant:
    """Decoding options, and which of their keys were asked for and so win over a task's own."""

    options: GenArguments
    given: frozenset[str]

    def for_task(self, generation_kwargs: dict[str, Any]) -> GenArguments:
        """The options under which a request with lm-eval `generation_kwargs` is decoded.

        Names of `gen` may stand in generation_kwargs (a task's, or --gen_kwargs of the harness); names that
        neither side knows are ignored with a warning. do_sample=False is temperature 0.
        """
        task = generation_options(generation_kwargs, self.options.max_new_tokens)
        if task.pop("do_sample"):
            task.setdefault("temperature", 1.0)
        stop = dict.fromkeys([*self.options.stop, *task.pop("until")])
        if ignored := sorted(task.keys() - set(GEN_KEYS)):
            logger.warning("generation_kwargs without a meaning here are ignored: %s", ", ".join(ignored))
        values = {key: value for key, value in task.items() if key in GEN_KEYS and key not in self.given}
        return replace(self.options, **values | {"stop": [string for string in stop if string]})


def operator_of(options: GenArguments) -> Operator | None:
    """The rule that `options` name, None without one or for a trained judge. Raises UserError as `make_operator`."""
    if options.operator in JUDGES:
        _check_judge(options.operator, options.operator_args)
        return None  # it needs the model: `judge_operator`
    if options.operator is None:
        if options.operator_args:
            raise UserError("gen.operator_args is given without gen.operator: name the operator")
        return None
    return make_operator(options.operator, **options.operator_args)


def _check_judge(name: str, arguments: dict[str, Any]) -> None:
    for key, value in arguments.items():
        if key not in JUDGE_KEYS:
            raise UserError(f"operator {name} has no parameter {key!r}{did_you_mean(key, JUDGE_KEYS)}")
        low, high = JUDGE_KEYS[key]
        if key == "judge":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{key} of operator {name} is {value!r}, expected a number from {low:g} to {high:g}")


def make_variants(gen: GenArguments, given: frozenset[str], changes: dict[str, dict[str, Any]]) -> dict[str, Variant]:
    """The variants of an evaluation by name; without any, the one named default. `given`: keys of `gen` asked for.

    Raises UserError with a sentence for each unknown key and each value that `gen` would not take.
    """
    variants, errors = {}, []
    for name, keys in (changes or {"default": {}}).items():
        problems = []
        if not re.fullmatch(r"[\w.-]+", name):
            problems.append(f"eval.variants has the name {name!r}: use letters, digits, -, _ and ., it names files")
        problems += [sentence for _, sentence in check_mapping(f"eval.variants.{name}", keys, GenArguments)]
        if not problems:
            variants[name] = Variant(replace(gen, **keys), given | keys.keys())
            try:
                operator_of(variants[name].options)
                search_options(variants[name].options)
            except UserError as error:
                problems += error.sentences
        errors += problems
    if errors:
        raise UserError(*errors)
    return variants
