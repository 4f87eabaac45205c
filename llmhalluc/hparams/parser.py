"""A raw config -> dataclasses, and back; every mistake is reported at once, before torch is imported."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.extras.keys import value_at
from llmhalluc.hparams import checks, task_args
from llmhalluc.hparams.mapping import Key, Problem, accepts, check_mapping, convert, key_problem, keys_of, make
from llmhalluc.hparams.sections import SECTIONS, Config, TrainArguments
from llmhalluc.hparams.trl_fields import trl_keys

SEED = Key(
    int | None, None, "sets train.seed, train.data_seed, gen.seed and eval.seed where they are not given",
    bounds="[0, 4294967295]",
)  # fmt: skip
STAGES = get_args(TrainArguments.__dataclass_fields__["stage"].type)
SEEDED = (("train", "seed"), ("train", "data_seed"), ("gen", "seed"), ("eval", "seed"))
# Where ours differ from TRL's defaults.
TRL_DEFAULTS = {"output_dir": "outputs/train"}


def build(raw: dict[str, Any], sections: tuple[str, ...] = (), kinds: dict[str, Any] = SECTIONS) -> Config:
    """Check and convert; `sections` names those whose inputs (files, folders, a model) must be there as well.

    kinds: the dataclass of each section; a benchmark's name their keys otherwise. Raises UserError with a sentence for
    every mistake.
    """
    given = copy.deepcopy(raw)
    given |= {section: {} for section in kinds if given.get(section) is None}
    seed = given.get("seed")
    for section, key in SEEDED if accepts(int, seed) else ():
        if isinstance(given[section], dict):
            given[section].setdefault(key, seed)
    problems = list(_problems(given))
    bad = {name for name, _ in problems}
    config = Config(seed=None if "seed" in bad else seed)
    for section, kind in kinds.items():
        if section not in bad:
            part = {key: value for key, value in given[section].items() if f"{section}.{key}" not in bad}
            setattr(config, section, _instance(kind, part))
    found = [*checks.together(config)]
    if sections:
        from llmhalluc.hparams import inputs

        found += inputs.missing(config, sections)
    for names, sentence in found:
        # What was reported of a key, or of its whole section, is not reported again as its consequence.
        if not any(f"{name}.".startswith(f"{other}.") for name in names for other in bad):
            problems.append((names[0], sentence))
    if problems:
        raise UserError(*(sentence for _, sentence in problems))
    task_args.fill(config.data, config.eval)
    config.gen_given = frozenset(given["gen"])
    return config


def resolved(config: Config, sections: tuple[str, ...] = tuple(SECTIONS)) -> dict[str, Any]:
    """The sections as plain data, of `gen` the keys that were given: `build(resolved(config)) == config`."""
    plain: dict[str, Any] = {} if config.seed is None else {"seed": config.seed}
    for section in sections:
        plain[section] = dataclasses.asdict(getattr(config, section))
        plain[section] |= plain[section].pop("trl", {})
    if "gen" in plain:  # a key that is written out would win over a task's own
        plain["gen"] = {key: value for key, value in plain["gen"].items() if key in config.gen_given}
    return plain


def section_keys(section: str, stage: str = "sft") -> dict[str, Key]:
    """Every key that a section takes; in `train` also those of the stage's TRL config."""
    ours = keys_of(SECTIONS[section])
    if section != "train":
        return ours
    theirs = trl_keys(stage) or {}
    return ours | {name: key._replace(default=TRL_DEFAULTS.get(name, key.default)) for name, key in theirs.items()}


def stage_of(raw: dict[str, Any]) -> str:
    """The stage whose TRL keys `train` takes; sft where what is given is none."""
    stage = raw["train"].get("stage") if isinstance(raw.get("train"), dict) else None
    return stage if stage in STAGES else "sft"


def _problems(given: dict[str, Any]) -> Iterator[Problem]:
    """(dotted name, sentence) of everything that can be said of one key."""
    if sentence := key_problem("seed", given.get("seed"), SEED):
        yield "seed", sentence
    known = {section: section_keys(section, stage_of(given)) for section in SECTIONS}
    names = [f"{section}.{key}" for section, keys in known.items() for key in keys]
    for section, part in given.items():
        if section == "seed":
            continue
        if section not in SECTIONS:
            yield section, f"{section} is no section{did_you_mean(str(section), [*SECTIONS, 'seed', *names])}"
            continue
        if section == "train" and isinstance(part, dict):
            part = dict(part)
            yield from _take_out_foreign(part, known["train"])
        yield from check_mapping(section, part, known[section], names)
    for sentence in task_args.data_mistakes(given.get("data")):
        yield "data.task", sentence
    for sentence in task_args.test_mistakes("eval.task_options", value_at(given, "eval.task_options")):
        yield "eval.task_options", sentence
    variants = value_at(given, "eval.variants")
    for variant, keys in variants.items() if accepts(dict[str, dict], variants) else ():
        for _, sentence in check_mapping(f"eval.variants.{variant}", keys, known["gen"], names):
            yield "eval.variants", sentence


def _take_out_foreign(train: dict[str, Any], known: dict[str, Key]) -> Iterator[Problem]:
    """Take the keys of other stages out of `train`, with a sentence each; without trl all that could be TRL's."""
    for key in [key for key in train if key not in known]:
        stages = [stage for stage in STAGES if key in section_keys("train", stage)]
        if stages:
            yield f"train.{key}", f"train.{key} is a key of train.stage {' and '.join(stages)} alone: take it out"
        if stages or trl_keys("sft") is None:
            del train[key]


def _instance(kind: Any, part: dict[str, Any]) -> Any:
    """The section's dataclass; what `train` does not know is TRL's."""
    names = {field.name for field in dataclasses.fields(kind)}
    made = make(kind, {key: value for key, value in part.items() if key in names})
    if kind is TrainArguments:
        known = trl_keys(made.stage) or {}
        theirs = {key: value for key, value in part.items() if key not in names}
        rest = {key: convert(value, known[key].type if key in known else Any) for key, value in theirs.items()}
        made.trl = rest | {key: TRL_DEFAULTS[key] for key in TRL_DEFAULTS if rest.get(key) is None}
    return made
