"""Finished traces on disk, one JSON a line, so that an interrupted evaluation resumes where it stopped."""

import json
from dataclasses import asdict
from pathlib import Path

from llmhalluc.decoding.sequence import Cost, Erasure, Trace
from llmhalluc.extras.jsonl import resume_lines


class Journal:
    """Key -> finished trace. Lines are flushed as they are written, and one torn by a kill is cut off.

    A key names everything that decides a trace (weights, prompt, options), so a line is never wrong, at most
    unused. Close it, or use it as a context manager.
    """

    def __init__(self, path: Path):
        self._found: dict[str, dict] = {}
        records, self._file = resume_lines(path)
        for record in records:
            self._found[record.pop("key")] = record

    def get(self, key: str, prompt_ids: list[int]) -> Trace | None:
        """The trace written under `key`, or None."""
        record = self._found.get(key)
        if record is None:
            return None
        events, cost = [Erasure(*event) for event in record["events"]], record["cost"]
        return Trace(prompt_ids, **record | {"events": events, "cost": cost and Cost(**cost)})

    def add(self, key: str, trace: Trace) -> None:
        """Write a finished trace; its prompt is part of the key."""
        record = asdict(trace)
        del record["prompt_ids"]
        self._found[key] = record
        self._file.write(json.dumps({"key": key} | record) + "\n")
        self._file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()
