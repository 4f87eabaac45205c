"""Files of JSON lines: written at once, or line by line as results come and resumed by the next run."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from llmhalluc.extras.run_folder import write_text


def resume_lines(path: Path) -> tuple[list[dict[str, Any]], TextIO]:
    """Return the records in `path`, and the file opened to append more; a line that a kill has torn is cut off."""
    path.touch()
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    file = path.open("r+", encoding="utf-8")
    file.truncate(len(whole))
    file.seek(len(whole))
    return [json.loads(line) for line in whole.splitlines()], file


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a line a record, so that a reader sees the old file or the new one, whole."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records))
