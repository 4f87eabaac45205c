"""A command line -> a Config; `--help` shows every key with its type, default and meaning."""

import itertools
import os
import shutil
import sys
import textwrap
from pathlib import Path

import yaml

from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.mapping import Key, describe, keys_of
from llmhalluc.hparams.parser import SEED, SEEDED, build, resolved, section_keys, stage_of
from llmhalluc.hparams.sections import SECTIONS, Config
from llmhalluc.hparams.yaml_files import read_words, to_yaml
from llmhalluc.tasks import TASKS

_USAGE = """\
usage: python -m llmhalluc.{program} [--config FILE] [section.key=value ...]

  --config FILE      a YAML file with the sections below; it inherits from a `base: other.yaml`{default}
  section.key=value  overrides the file: {example}
  --print-config     print the whole resolved config as YAML, and stop
{flags}  --help             print this, and stop
"""


def parse(argv: list[str], program: str, sections: tuple[str, ...], default: Path | None = None) -> Config:
    """The Config of a command line; `--help` and `--print-config` print and exit. Raises UserError."""
    return build(read(argv, program, sections, default), sections)


def read(argv: list[str], program: str, sections: tuple[str, ...], default: Path | None = None) -> dict:
    """`parse` without the last step: the raw config of a command line."""
    if "--help" in argv or "-h" in argv:
        stage = stage_of(read_words([word for word in argv if word not in ("--help", "-h")], default)[0])
        groups = {}
        for name in sections:
            groups |= {name: (SECTIONS[name].__doc__, section_keys(name, stage))} | option_groups(name)
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


def show(text: str) -> None:
    """Print, and be content when the reader stops early (`--help | head`)."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def help_text(
    program: str, default: Path | None, groups: dict[str, tuple[str | None, dict[str, Key]]],
    example: str = "train.learning_rate=1e-5", flags: str = "",
) -> str:  # fmt: skip
    """The usage, then a table a section: `groups` maps its name to what it is and its keys.

    example: an override; flags: lines of the usage about more flags.
    """
    width = max(shutil.get_terminal_size((120, 24)).columns, 90)
    shown = f" (default: {default})" if default else ""
    lines = [_USAGE.format(program=program, default=shown, example=example, flags=flags)]
    for section, (meaning, keys) in groups.items():
        dot = f"{section.partition(' ')[0]}." if section else ""  # `data.task of NAME`
        lines += [f"{section or 'top level'}: {meaning}", ""]
        rows = [
            (dot + name, _type(key), _default(key.default), key.help.replace("%%", "%")) for name, key in keys.items()
        ]
        limits = (width, 24, 20)
        margins = [min(max(len(row[i]) for row in rows), limit) for i, limit in enumerate(limits)]
        margins.append(max(width - sum(margins) - 8, 30))
        for row in rows:
            wrapped = [textwrap.wrap(*cell, break_on_hyphens=False) for cell in zip(row, margins, strict=True)]
            for line in itertools.zip_longest(*wrapped, fillvalue=""):
                lines.append("  " + "  ".join(map(str.ljust, line, margins)).rstrip())
        lines.append("")
    return "\n".join(lines)


def option_groups(section: str) -> dict[str, tuple[str | None, dict[str, Key]]]:
    """Return the tables of `--help` that a section has beside its own: heading -> what it is, keys."""
    found = {}
    for name, task in TASKS.items():
        if section == "data" and task.options is not None:
            found[f"data.task of {name}"] = (task.options.__doc__, keys_of(task.options))
        if section == "eval" and task.test_options is not None:
            found[f"eval.task_options.{name}"] = (task.test_options.__doc__, keys_of(task.test_options))
    return found


def _type(key: Key) -> str:
    """The type in words, with the choices or the bounds where there are some."""
    if key.choices:
        return "one of " + ", ".join(map(str, key.choices))
    return describe(key.type) + (f" in {key.bounds}" if key.bounds else "")


def _default(value: object) -> str:
    """The default as one would write it in YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
