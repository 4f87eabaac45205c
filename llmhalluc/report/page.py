"""The page around every report: Jinja2 with autoescape, one style, one file without outside resources.

A report's template extends `report/page.html.j2` and stands beside the Python that prepares its data. Whatever a model
or a config wrote is escaped there, and in the JSON that the page's script reads; the script sets text, never markup.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from llmhalluc.extras.constant import PACKAGE
from llmhalluc.hparams.yaml_files import to_yaml

STYLE = Path(__file__).with_name("style.css")
ENVIRONMENT = Environment(
    loader=FileSystemLoader(PACKAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
ENVIRONMENT.policies["json.dumps_kwargs"] = {"sort_keys": False}  # arms stay in the order of the config


def percent(share: float, sign: str = "") -> str:
    """A share in percent, or a difference in points: `percent(0.125, "+")` is `+12.5`."""
    return f"{100 * share:{sign}.1f}"


ENVIRONMENT.filters["percent"] = percent


def write(path: Path, template: str, results: dict[str, Any], **parts: Any) -> None:
    """Write the page of a template, which is named by its path in the package; `results` holds config and environment.

    Raises jinja2.UndefinedError where the template asks for a part that is not there.
    """
    page = ENVIRONMENT.get_template(template).render(
        parts,
        results=results,
        config=to_yaml(results["config"]),
        environment=json.dumps(results["environment"], indent=2),
        made=_made(results["environment"]),
    )
    path.write_text(page, encoding="utf-8")


def _made(environment: dict[str, Any]) -> str:
    """When a run was made, and at which commit."""
    time = environment["time"].replace("T", " ").replace("+00:00", " UTC")
    return time + (f" · commit {environment['commit'][:10]}" if environment["commit"] else "")
