"""YAML files, their `base` files and dotted overrides -> plain data, and back."""

import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmhalluc.extras.errors import UserError, one_line
from llmhalluc.hparams.mapping import accepts

_OVERRIDE = re.compile(r"\w+(\.[\w-]+|\[[^][=]+])*=")  # exp.grid[backtrack.context]=[soft]


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


def to_yaml(plain: dict[str, Any]) -> str:
    """Plain data as YAML that `load_raw` reads back as it was, `${` in a string included."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(plain)))


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


def _escape(value: Any) -> Any:
    """Plain data without interpolations: `${` becomes `\\${`, and backslashes before it are doubled."""
    if isinstance(value, dict):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _reason(error: Exception) -> str:
    """The error's text without OmegaConf's appendix."""
    return one_line(str(error).split("\n    full_key")[0])
