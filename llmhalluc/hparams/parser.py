"""YAML files and dotted overrides -> dataclasses; every mistake is reported at once, before torch is imported.

`load_raw` reads (base files, overrides, interpolations), `build` checks and makes a `Config`, `resolved`
makes plain data of it again, `parse` is what a program calls with its command line.
"""

import copy
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmhalluc.extras.errors import UserError, did_you_mean, one_line
from llmhalluc.hparams import checks
from llmhalluc.hparams.backtrack_args import BacktrackArguments
from llmhalluc.hparams.data_args import DataArguments
from llmhalluc.hparams.eval_args import EvalArguments
from llmhalluc.hparams.exp_args import ExpArguments
from llmhalluc.hparams.gen_args import GenArguments
from llmhalluc.hparams.help import help_text
from llmhalluc.hparams.mapping import Key, Problem, accepts, check_mapping, convert, key_problem, keys_of, make
from llmhalluc.hparams.model_args import ModelArguments
from llmhalluc.hparams.reward_args import RewardArguments
from llmhalluc.hparams.selfgen_args import SelfgenArguments
from llmhalluc.hparams.train_args import TrainArguments
from llmhalluc.hparams.trl_fields import trl_keys

SECTIONS: dict[str, Any] = {
    "model": ModelArguments,
    "data": DataArguments,
    "backtrack": BacktrackArguments,
    "train": TrainArguments,
    "reward": RewardArguments,
    "gen": GenArguments,
    "selfgen": SelfgenArguments,
    "eval": EvalArguments,
    "exp": ExpArguments,
}
SEED = Key(
    int | None, None, "sets train.seed, train.data_seed, gen.seed and eval.seed where they are not given",
    bounds="[0, 4294967295]",
)  # fmt: skip
_OVERRIDE = re.compile(r"\w+(\.[\w-]+|\[[^][=]+])*=")  # exp.grid[backtrack.context]=[soft]
STAGES = get_args(TrainArguments.__dataclass_fields__["stage"].type)
SEEDED = (("train", "seed"), ("train", "data_seed"), ("gen", "seed"), ("eval", "seed"))
# Where ours differ from TRL's defaults.
TRL_DEFAULTS = {"output_dir": "outputs/train"}


@dataclass
class Config:
    """A whole configuration: one dataclass a section; `gen_given` are the keys of `gen` that win over a task's own."""

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    backtrack: BacktrackArguments = field(default_factory=BacktrackArguments)
    train: TrainArguments = field(default_factory=TrainArguments)
    reward: RewardArguments = field(default_factory=RewardArguments)
    gen: GenArguments = field(default_factory=GenArguments)
    selfgen: SelfgenArguments = field(default_factory=SelfgenArguments)
    eval: EvalArguments = field(default_factory=EvalArguments)
    exp: ExpArguments = field(default_factory=ExpArguments)
    seed: int | None = None
    gen_given: frozenset[str] = frozenset()


def parse(argv: list[str], program: str, sections: tuple[str, ...], default: Path | None = None) -> Config:
    """The Config of a command line; `--help` and `--print-config` print and exit. Raises UserError."""
    return build(read(argv, program, sections, default), sections)


def read(argv: list[str], program: str, sections: tuple[str, ...], default: Path | None = None) -> dict:
    """`parse` without the last step: the raw config of a command line."""
    if "--help" in argv or "-h" in argv:
        stage = stage_of(read_words([word for word in argv if word not in ("--help", "-h")], default)[0])
        groups = {name: (SECTIONS[name].__doc__, section_keys(name, stage)) for name in sections}
        show(help_text(program, default, {"": ("Above all sections.", {"seed": SEED})} | groups))
        sys.exit(0)
    raw, problems = read_words(argv, default)
    if problems:
        try:
            build(raw, sections)
        except UserError as error:
            problems += error.sentences
        raise UserError(*problems)
    if "--print-config" in argv:
        plain = resolved(build(raw))
        for section, key in SEEDED:  # so that `seed` still reaches them when the printed config is used
            if plain[section].get(key) == plain.get("seed", ...):
                del plain[section][key]
        show(to_yaml(plain))
        sys.exit(0)
    return raw


def read_words(
    argv: list[str], default: Path | None, flags: tuple[str, ...] = ("--print-config",)
) -> tuple[dict[str, Any], list[str]]:
    """The raw config of a command line, as far as it could be read, and sentences about the rest."""
    path, overrides, problems, words = default, [], [], list(argv)
    while words:
        word = words.pop(0)
        if word == "--config" and words:
            path = Path(words.pop(0))
        elif word.startswith("--config="):
            path = Path(word.removeprefix("--config="))
        elif "=" in word and not word.startswith("-"):
            overrides.append(word)
        elif word not in flags:
            problems.append(f"{word} is none of --config FILE, {', '.join(flags)}, --help, section.key=value")
    raw, found = _load(path, overrides)
    return raw, problems + found


def load_raw(path: str | Path | None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The file, on top of its `base` files, under the dotted overrides: plain data, `${…}` resolved."""
    raw, problems = _load(path, overrides)
    if problems:
        raise UserError(*problems)
    return raw


def _load(path: str | Path | None, overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """`load_raw` that hands on its sentences, with what could be read."""
    plain: Any = {}
    problems: list[str] = []
    try:
        plain = _load_file(Path(path)) if path is not None else plain
    except UserError as error:
        problems += error.sentences
    for override in overrides:
        if not _OVERRIDE.match(override):
            problems.append(f"{override} cannot be read: expected section.key=value")
            continue
        try:
            plain = _over(plain, OmegaConf.to_container(OmegaConf.from_dotlist([override])))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            problems.append(f"{override} cannot be read: {_reason(error)}")
    raw: dict[str, Any] = {}
    config = OmegaConf.create(plain)
    for name in config:
        try:
            part = config[name]
            raw[name] = OmegaConf.to_container(part, resolve=True) if OmegaConf.is_config(part) else part
        except OmegaConfBaseException as error:
            problems.append(f"{error.full_key or name} cannot be resolved: {_reason(error)}")
    return raw, problems


def build(raw: dict[str, Any], sections: tuple[str, ...] = ()) -> Config:
    """Check and convert; `sections` names those whose inputs (files, folders, a model) must be there as well.

    Raises UserError with a sentence for every mistake.
    """
    given = copy.deepcopy(raw)
    given |= {section: {} for section in SECTIONS if given.get(section) is None}
    _spread_seed(given)
    problems = list(_problems(given))  # (dotted name of the key, sentence)
    bad = {name for name, _ in problems}
    seed = None if "seed" in bad else given.get("seed")
    config = Config(seed=seed)
    for section in SECTIONS.keys() - bad:
        part = {k: v for k, v in given.get(section, {}).items() if f"{section}.{k}" not in bad}
        setattr(config, section, _instance(section, part))
    for names, sentence in [*checks.together(config), *checks.inputs(config, sections)]:
        # What is already told, of the key or of its whole section, is not told again as its consequence.
        if not bad & {prefix for name in names for prefix in _prefixes(name)}:
            problems.append((names[0], sentence))
    if problems:
        raise UserError(*(sentence for _, sentence in problems))
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


def to_yaml(plain: dict[str, Any]) -> str:
    """Plain data as YAML that `load_raw` reads back as it was, `${` in a string included."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(plain)))


def section_keys(section: str, stage: str = "sft") -> dict[str, Key]:
    """Every key that a section takes; in `train` also those of the stage's TRL config."""
    ours = keys_of(SECTIONS[section])
    if section != "train":
        return ours
    theirs = trl_keys(stage) or {}
    return ours | {name: key._replace(default=TRL_DEFAULTS.get(name, key.default)) for name, key in theirs.items()}


def show(text: str) -> None:
    """Print, and be content when the reader stops early (`--help | head`)."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _load_file(path: Path, seen: tuple[Path, ...] = ()) -> Any:
    """The file over its bases, the last base on top, as plain data with its `${…}` as they stand."""
    path = path.expanduser().resolve()
    if path in seen:
        raise UserError(f"base of {seen[-1]} is {path}, which is built on it: take one of the two out")
    if not path.is_file():
        raise UserError(f"{f'base of {seen[-1]}' if seen else 'config'} is {path}, which does not exist")
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read as YAML: {_reason(error)}") from None
    if not OmegaConf.is_dict(config):
        raise UserError(f"{path} holds a list, expected sections")
    base = OmegaConf.to_container(config).get("base") or []
    config.pop("base", None)
    bases = [base] if isinstance(base, str) else base
    if not accepts(list[str], bases):
        raise UserError(f"base of {path} is {base!r}, expected a YAML file or a list of them")
    parts = [_load_file(path.parent / name, (*seen, path)) for name in bases]
    return functools.reduce(_over, [*parts, OmegaConf.to_container(config)], {})


def _over(below: Any, above: Any) -> Any:
    """`above` on top of `below`: dicts are merged by key, lists and values replaced."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: _over(below.get(key), value) for key, value in above.items()}


def _spread_seed(given: dict[str, Any]) -> None:
    """Put the one seed where the sections want theirs and do not give it."""
    seed = given.get("seed")
    for section, key in SEEDED if accepts(int, seed) else ():
        if isinstance(given[section], dict):
            given[section].setdefault(key, seed)


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
        variants = part.get("variants") if section == "eval" and isinstance(part, dict) else None
        for variant, keys in variants.items() if isinstance(variants, dict) else ():
            if isinstance(keys, dict):
                found = check_mapping(f"eval.variants.{variant}", keys, known["gen"], names)
                yield from (("eval.variants", sentence) for _, sentence in found)


def stage_of(raw: dict[str, Any]) -> str:
    """The stage whose TRL keys `train` takes; sft where what is given is none."""
    stage = raw["train"].get("stage") if isinstance(raw.get("train"), dict) else None
    return stage if stage in STAGES else "sft"


def _take_out_foreign(train: dict[str, Any], known: dict[str, Key]) -> Iterator[Problem]:
    """Take the keys of other stages out of `train`, with a sentence each; without trl all that could be TRL's."""
    for key in [key for key in train if key not in known]:
        stages = [stage for stage in STAGES if key in section_keys("train", stage)]
        if stages:
            yield f"train.{key}", f"train.{key} is a key of train.stage {' and '.join(stages)} alone: take it out"
        if stages or trl_keys("sft") is None:
            del train[key]


def _instance(section: str, part: dict[str, Any]) -> Any:
    """The section's dataclass; what `train` does not know is TRL's."""
    names = {f.name for f in dataclasses.fields(SECTIONS[section])}
    ours = {key: part[key] for key in part if key in names}
    made = make(SECTIONS[section], ours)
    if section == "train":
        known = trl_keys(made.stage) or {}
        theirs = {key: value for key, value in part.items() if key not in ours}
        rest = {key: convert(value, known[key].type if key in known else Any) for key, value in theirs.items()}
        made.trl = rest | {key: TRL_DEFAULTS[key] for key in TRL_DEFAULTS if rest.get(key) is None}
    return made


def _escape(value: Any) -> Any:
    """Plain data without interpolations: `${` becomes `\\${`, and backslashes before it are doubled."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _prefixes(name: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _reason(error: Exception) -> str:
    """The error's text without OmegaConf's appendix."""
    return one_line(str(error).split("\n    full_key")[0])
