"""What a caller may say about a generation, checked before torch is imported."""

import contextlib
import dataclasses
import importlib.util
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmhalluc.decoding.operators import OPERATORS
from llmhalluc.extras.errors import UserError, did_you_mean, one_line
from llmhalluc.hparams.mapping import Key, key_problem, keys_of, make
from llmhalluc.hparams.sections import GenArguments

# Where generating freely differs from the `gen` section, whose defaults are for measuring.
DEFAULTS = {"max_new_tokens": 100, "temperature": 1.0, "top_k": 50, "stop_sequences": None, "seed": None}
# The operators of phrases.py, which need a tokenizer, with their parameters.
TEXT_OPERATORS = {
    "banned_phrases": ["phrases", "patterns", "penalty", "ignore_case"],
    "replace": ["find", "write", "at_least", "at_most"],
}
_NOT_OURS = ("stop", "context", "operator", "operator_args")  # said elsewhere, or under another name
_KEYS = {name: key for name, key in keys_of(GenArguments).items() if name not in _NOT_OURS}
_KEYS["stop_sequences"] = Key(str | list[str] | None, None, "stop strings, looked for in the surviving text")
_KEYS["seed"] = _KEYS["seed"]._replace(type=int | None)
NAMES = tuple(_KEYS)


def generation_options(given: dict[str, Any]) -> GenArguments:
    """Return the engine's options; seed None is a fresh one. Raises UserError, a sentence for every mistake."""
    values, problems = DEFAULTS | given, []
    for name, value in values.items():
        if name not in _KEYS:
            problems.append(f"{name} is no generation setting{did_you_mean(name, NAMES)}")
        elif problem := key_problem(name, value, _KEYS[name]):
            problems.append(problem)
    stops = values.pop("stop_sequences")
    stops = [stops] if isinstance(stops, str) else stops or []
    if isinstance(stops, list) and "" in stops:
        problems.append("stop_sequences holds an empty string, which stands everywhere: take it out")
    if problems:
        raise UserError(*problems)
    seed = values.pop("seed")
    return make(GenArguments, values | {"stop": stops, "seed": secrets.randbits(32) if seed is None else seed})


def operator_parameters() -> dict[str, list[str]]:
    """Return the parameters of each operator by name."""
    own = {name: [field.name for field in dataclasses.fields(kind)] for name, kind in OPERATORS.items()}
    return own | TEXT_OPERATORS


def model_section(name: str, **more: Any) -> dict[str, Any]:
    """Return the `model` section for a hub name, a folder, package:NAME or a GGUF file's path."""
    name = only_gguf(name)
    if not name.endswith(".gguf"):
        return {"name_or_path": name, **more}
    folder, _, file = name.rpartition("/")
    path = Path(name).expanduser()
    if not path.is_file() and (folder.count("/") != 1 or path.parent.is_dir() or name[0] in "./~"):
        raise UserError(f"model is {name}, a GGUF file that does not exist: correct the path")
    return {"name_or_path": folder or ("." if "/" not in name else "/"), "gguf_file": file, **more}


def only_gguf(name: str) -> str:
    """Return the path of the one GGUF file where a package or a folder holds nothing else to load, else `name`."""
    package = name.removeprefix("package:")
    spec = importlib.util.find_spec(package) if package != name and package.isidentifier() else None
    folder = Path(*(spec.submodule_search_locations or ()) if spec else [name]).expanduser()
    files = [] if (folder / "config.json").exists() else sorted(folder.glob("*.gguf"))
    return str(files[0]) if len(files) == 1 else name


@dataclass
class Settings:
    """What /operator and /set change: the operator by name, its parameters, the generation's settings."""

    operator: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)

    def select_operator(self, name: str | None) -> None:
        """Take another operator, with its defaults. Raises UserError for an unknown name."""
        if name is not None and name not in (known := operator_parameters()):
            raise UserError(f"operator {name!r} is unknown{did_you_mean(name, known)}")
        self.operator, self.parameters = name, {}

    def set(self, assignments: list[str]) -> None:
        """Set `name=value` each, or nothing. Raises UserError with a sentence for every mistake."""
        parameters, generation, problems = dict(self.parameters), dict(self.generation), []
        own = operator_parameters()[self.operator] if self.operator else []
        for assignment in assignments:
            name, equals, value = assignment.partition("=")
            if not equals:
                problems.append(f"{assignment} cannot be read: expected name=value")
            elif name in NAMES:
                generation[name] = plain(value)
            elif name in own:
                parameters[name] = plain(value)
            else:
                whose = f"operator {self.operator} has" if self.operator else "without an operator there is"
                problems.append(f"{whose} no setting {name!r}{did_you_mean(name, [*NAMES, *own])}")
        if problems:
            raise UserError(*problems)
        generation_options(generation)
        self.parameters, self.generation = parameters, generation

    def keywords(self, make: Callable[..., Any]) -> dict[str, Any]:
        """Return keywords of `Generator.generate`; `make` is its `operator`. Raises UserError as that does."""
        operator = make(self.operator, **self.parameters) if self.operator else None
        return {"operator": operator, **self.generation}

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in (self.parameters | self.generation).items()]
        return ", ".join([f"operator {self.operator or 'none'}", *parts])


def plain(value: str) -> Any:
    """Return a value as YAML reads it, and 1e-3 as the number it is."""
    with contextlib.suppress(ValueError):
        return int(value) if value.lstrip("-").isdigit() else float(value)
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"{value} cannot be read as YAML: {one_line(error)}") from None
