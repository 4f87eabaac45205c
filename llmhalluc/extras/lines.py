"""A file of JSON lines that is written as results come, and that a killed run goes on with."""

import json
from pathlib import Path
from typing import Any, TextIO


def go_on(path: Path) -> tuple[list[dict[str, Any]], TextIO]:
    """The records in `path`, and the file opened to append more; a line that a kill has torn is cut off."""
    path.touch()
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    file = path.open("r+", encoding="utf-8")
    file.truncate(len(whole))
    file.seek(len(whole))
    return [json.loads(line) for line in whole.splitlines()], file
