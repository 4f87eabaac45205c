"""`--help`: every key with its type, default and meaning."""

import itertools
import shutil
import textwrap
from pathlib import Path

import yaml

from llmhalluc.hparams.mapping import Key, describe

_USAGE = """\
usage: python -m llmhalluc.{program} [--config FILE] [section.key=value ...]

  --config FILE      a YAML file with the sections below; it inherits from a `base: other.yaml`{default}
  section.key=value  overrides the file: {example}
  --print-config     print the whole resolved config as YAML, and stop
{flags}  --help             print this, and stop
"""


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


def _type(key: Key) -> str:
    """The type in words, with the choices or the bounds where there are some."""
    if key.choices:
        return "one of " + ", ".join(map(str, key.choices))
    return describe(key.type) + (f" in {key.bounds}" if key.bounds else "")


def _default(value: object) -> str:
    """The default as one would write it in YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
