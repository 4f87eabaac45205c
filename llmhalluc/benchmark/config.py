"""A benchmark's YAML -> a `Benchmark`; every mistake is reported at once, before torch is imported.

Its keys are renamed at the door, where each has its published name; behind it everything is shared with other programs.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from llmhalluc.decoding.operators import OPERATORS, make_operator
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.keys import value_at
from llmhalluc.hparams import command_line, parser, yaml_files
from llmhalluc.hparams.benchmark_args import (
    BenchmarkArguments,
    EvaluationArguments,
    Generation,
    HpoArguments,
    ModelKwargs,
)
from llmhalluc.hparams.mapping import accepts, check_mapping, keys_of, make
from llmhalluc.hparams.task_args import test_mistakes

# Our sections, under the names of a benchmark's.
KINDS: dict[str, Any] = {"model": ModelKwargs, "gen": Generation, "eval": EvaluationArguments}
SECTIONS: dict[str, Any] = {kind.section: kind for kind in (*KINDS.values(), HpoArguments)}
# Keys of these classes that a benchmark says on its top level, or not at all.
ELSEWHERE = {"name_or_path", "device", "operator", "operator_args", "variants"}
TOP = keys_of(BenchmarkArguments)
KEYS = {
    section: {name: key for name, key in keys_of(kind).items() if name not in ELSEWHERE}
    for section, kind in SECTIONS.items()
}
VERBOSE = ("--verbose", "-v")
_FLAGS = "  --verbose, -v      show more of each trial, with progress bars and the harness's own messages\n"


@dataclass
class Benchmark:
    """A checked configuration: what every program takes, what is tuned, and how."""

    config: parser.Config
    top: BenchmarkArguments
    hpo: HpoArguments

    def plain(self) -> dict[str, Any]:
        """The configuration as the YAML would hold it, every key written out but those of `generation` not given."""
        plain = asdict(self.top)
        for section in (self.config.model, self.config.gen, self.config.eval, self.hpo):
            kept = self.config.gen_given if section is self.config.gen else KEYS[section.section]
            plain[section.section] = {key: value for key, value in asdict(section).items() if key in kept}
        return plain


def parse(argv: list[str]) -> Benchmark:
    """The Benchmark of a command line; `--help` and `--print-config` print and exit. Raises UserError."""
    if "--help" in argv or "-h" in argv:
        groups = {"": (BenchmarkArguments.__doc__, TOP)} | {name: (SECTIONS[name].__doc__, KEYS[name]) for name in KEYS}
        command_line.show(command_line.help_text("run_benchmark", None, groups, "hpo.n_trials=50", _FLAGS))
        sys.exit(0)
    raw, problems = yaml_files.read_words(argv, None, ("--print-config", *VERBOSE))
    try:
        benchmark = build(raw)
    except UserError as error:
        problems += error.sentences
    if problems:
        raise UserError(*problems)
    if "--print-config" in argv:
        command_line.show(yaml_files.to_yaml(benchmark.plain()))
        sys.exit(0)
    return benchmark


def build(raw: dict[str, Any]) -> Benchmark:
    """Check and convert plain data. Raises UserError with a sentence for every mistake."""
    given = raw | {section: {} for section in SECTIONS if raw.get(section) is None}
    if problems := [*_key_problems(given), *_operator_problems(given)]:
        raise UserError(*problems)
    top = make(BenchmarkArguments, {key: value for key, value in given.items() if key in TOP})
    ours = {name: given[kind.section] for name, kind in KINDS.items()}
    ours["model"] = ours["model"] | {"name_or_path": top.model_name_or_path, "device": top.device}
    config = parser.build(ours, ("model", "eval"), KINDS)
    if top.operator_to_tune is None and not top.run_baseline:
        raise UserError("operator_to_tune is none and run_baseline is false: nothing is left to run")
    return Benchmark(config, top, make(HpoArguments, given["hpo"]))


def values(name: str, span: Any) -> list[Any]:
    """What a range of the search space may give: its ends, or its choices. Raises UserError for what is no range."""
    if isinstance(span, dict) and span.keys() == {"choices"} and isinstance(span["choices"], list) and span["choices"]:
        return span["choices"]
    ends = span if isinstance(span, list) else [span.get("low"), span.get("high")] if isinstance(span, dict) else []
    more = {key: value for key, value in span.items() if key not in ("low", "high")} if isinstance(span, dict) else {}
    if (
        len(ends) != 2
        or not all(accepts(float, end) and math.isfinite(end) for end in ends)
        or not ends[0] < ends[1]
        or not more.keys() <= {"log", "step"}
        or not isinstance(more.get("log", False), bool)
        or not (more.get("step") is None or (accepts(float, more["step"]) and more["step"] > 0))
    ):
        raise UserError(
            f"hpo.search_space.{name} is {span!r}, expected [low, high], {{low, high, log, step}} or {{choices: […]}} "
            "with low below high"
        )
    if more.get("log") and (ends[0] <= 0 or more.get("step")):
        raise UserError(f"hpo.search_space.{name} is {span!r}: log wants low above 0, and no step")
    return ends


def _key_problems(given: dict[str, Any]) -> Iterator[str]:
    """Sentences about single keys: unknown, of another type, out of range."""
    names = [f"{section}.{key}" for section, keys in KEYS.items() for key in keys]
    top = {name: value for name, value in given.items() if name not in SECTIONS}
    problems = check_mapping("", top, TOP, [*SECTIONS, *names])
    for section in SECTIONS:
        problems += check_mapping(section, given[section], KEYS[section], names)
    yield from (sentence for _, sentence in problems)
    yield from test_mistakes("evaluation.task_options", value_at(given, "evaluation.task_options"))


def _operator_problems(given: dict[str, Any]) -> Iterator[str]:
    """Sentences about the operator, the parameters that stay, and the ranges of the others, where these have a type."""
    operator, fixed, space = given.get("operator_to_tune"), given.get("operator_args", {}), given["hpo"]
    space = space.get("search_space", {}) if isinstance(space, dict) else {}
    if not (isinstance(operator, str) and accepts(dict[str, Any], fixed) and accepts(dict[str, Any], space)):
        return
    if operator not in OPERATORS:
        try:
            make_operator(operator)
        except UserError as error:
            yield f"operator_to_tune: {error}"
        return
    kinds = {field.name: field.type for field in dataclasses.fields(OPERATORS[operator])}
    if not space:
        names = ", ".join(kinds) or "it has none"
        yield (
            f"hpo.search_space is empty: give ranges for parameters of {operator} ({names}), "
            "or set operator_to_tune to null"
        )
        return
    if twice := sorted(fixed.keys() & space.keys()):
        yield f"{', '.join(twice)} stands in operator_args and in hpo.search_space: keep one"
    candidates = {name: [value] for name, value in fixed.items()}
    for name, span in space.items():
        try:
            candidates[name] = values(name, span)
            step = span.get("step") if isinstance(span, dict) else None
            if kinds.get(name) is int and isinstance(step, float):
                yield f"hpo.search_space.{name} is {span!r}: its steps are whole numbers"
        except UserError as error:
            yield str(error)
    found: dict[str, None] = {}
    for i in range(max(map(len, candidates.values()), default=0)):
        try:
            make_operator(operator, **{name: options[min(i, len(options) - 1)] for name, options in candidates.items()})
        except UserError as error:
            found |= dict.fromkeys(error.sentences)
    yield from found
