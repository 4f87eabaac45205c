"""Every erasure is training data: what was taken back at a place of a text, and what stands there instead.

A record is one place: {"prompt_ids": the rows that the model saw before it, "rejected": the id that was erased there,
"chosen": the ids that were written there instead and survived, "source": who erased, "BACKTRACK" or an operator}.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from torch.utils.data import Dataset

from llmhalluc.backtrack import BACKTRACK, IGNORE, Tape, erasures, layout
from llmhalluc.data.base import BacktrackDatasetConverter, Ids
from llmhalluc.data.collator import Draw
from llmhalluc.data.selfgen import ABOUT, check_source
from llmhalluc.data.traces import TraceDataset, unpack
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import RECORD
from llmhalluc.hparams.checks import refuse_evaluation_split

FIELDS = ("prompt_ids", "rejected", "chosen", "source")
SAMPLE = ("prompt_ids", "completion_ids", "events")  # what a samples_*.jsonl of run_eval holds of a trace


def rejections_of(trace: Any, backtrack_id: int | None, context: str = "soft") -> list[dict[str, Any]]:
    """Return the records of a decoded Trace; `context` is the one that it was decoded in.

    A run of BACKTRACKs, or an operator, that erases several tokens rejects the first of them. Where one place was tried
    several times each try is rejected for the token that survived there. No record is made where nothing survived,
    where the text before the place was itself taken back later, and where the same token was written again.
    """
    return rejections(trace.prompt_ids, trace.completion_ids, trace.events, backtrack_id, context)


def rejections(
    prompt_ids: Ids, completion_ids: Ids, events: Sequence[Any], backtrack_id: int | None, context: str = "soft"
) -> list[dict[str, Any]]:
    """Return what `rejections_of` does, for the parts of a trace; `a b ⌫ c` gives a record: after a, c and not b.

    `prompt_ids` of a record are the rows that the model still saw, in their order: fed as they are they give the logits
    that decoding had there.
    """
    erased = {one.token: one.source for one in erasures(completion_ids, backtrack_id, events)}
    final = [i for i, token in enumerate(completion_ids) if token != backtrack_id and i not in erased]
    wishes = [event for event in events if event[2] != BACKTRACK]
    tape, standing, records = Tape(prompt_ids, backtrack_id, context), list[int](), []
    for i, token in enumerate(completion_ids):
        place = len(standing)
        if i in erased and place < len(final) and standing[-1:] == final[:place][-1:]:
            instead = completion_ids[final[place]]
            if instead != token:
                made = ([*tape.columns], token, [instead], erased[i])
                records.append(dict(zip(FIELDS, made, strict=True)))
        tape.feed(token)
        if token != backtrack_id:
            standing.append(i)
        elif standing:
            standing.pop()
        while wishes and wishes[0][0] == i + 1:
            count = wishes.pop(0)[1]
            tape.erase(count)
            del standing[-count:]
    return merged(records)


def merged(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one record for each prefix and rejected token, with everything that was chosen there."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        key = (*record["prompt_ids"], record["rejected"])
        first = found.setdefault(key, record | {"chosen": []})
        first["chosen"] += [token for token in record["chosen"] if token not in first["chosen"]]
    return list(found.values())


class RejectionConverter(BacktrackDatasetConverter):
    """Records of single places, ready ones or those of the traces in a samples_*.jsonl of run_eval; for stage ftpo.

    A trace is read in `backtrack.context`. Raises UserError where samples, or a file beside a selfgen.json, came from
    an evaluation split (law 8).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.checked = False  # whether the samples may train
        if Path(self.data.dataset).expanduser().with_name(ABOUT).is_file():
            check_source(self.data, self.tokenizer, self.backtrack_id, self.training)

    def encode_batch(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The records of all places; none for a trace that erased nothing.

        Raises UserError for records that are neither of the two, and for ids that cannot train.
        """
        found = []
        for record in records:
            if set(FIELDS[:3]) <= record.keys():
                found.append({name: record.get(name) for name in FIELDS})
            elif set(SAMPLE) <= record.keys():
                found += self._of_sample(record)
            else:
                raise UserError(
                    f"data.converter rejections needs the columns {', '.join(FIELDS[:3])}, or those of a "
                    f"samples_*.jsonl of run_eval, and data.dataset {self.data.dataset} has {', '.join(record)}"
                )
        for record in found:
            self._check(record)
        return [record | {"completion_ids": []} for record in found]

    def check(self, encoded: Sequence[dict[str, Any]]) -> None:
        """Raise UserError where there is nothing to train on."""
        if not encoded:
            raise UserError(
                f"data.dataset {self.data.dataset} holds no rejection (data.max_length is {self.data.max_length}): "
                "name traces in which something was erased and written anew"
            )

    def draw(self, encoded: dict[str, Any], rng: Random, progress: float) -> tuple[Ids, Ids]:
        """Raise UserError: one place of a text is no trace that another stage could train on."""
        raise UserError("data.converter is rejections, which makes single places: set train.stage=ftpo")

    def _of_sample(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """The records of a sample; none where the document was only scored."""
        if self.training and not self.checked:
            refuse_evaluation_samples(Path(self.data.dataset).expanduser())
            self.checked = True
        prompt_ids, completion_ids, events = (record[name] for name in SAMPLE)
        if not prompt_ids or not completion_ids:
            return []
        self._check_ids([*prompt_ids, *completion_ids])
        try:
            return rejections(prompt_ids, completion_ids, events or [], self.backtrack_id, self.backtrack.context)
        except (IndexError, TypeError) as error:
            raise UserError(
                f"data.dataset {self.data.dataset} has a sample whose events {_short(events)} erase what its "
                "completion_ids do not hold: write it with run_eval"
            ) from error

    def _check(self, record: dict[str, Any]) -> None:
        """Raise UserError for a record without a prefix or a choice, and for ids that are none of the tokenizer's."""
        prompt_ids, rejected, chosen, _ = (record[name] for name in FIELDS)
        named = f"data.dataset {self.data.dataset} has a record"
        if not _are_ids(prompt_ids) or not _are_ids(chosen) or type(rejected) is not int:
            raise UserError(
                f"{named} whose prompt_ids {_short(prompt_ids)}, rejected {_short(rejected)} and chosen "
                f"{_short(chosen)} are not a list of ids, an id and a list of ids, none empty: remove it"
            )
        self._check_ids([*prompt_ids, rejected, *chosen])
        if rejected in chosen:
            raise UserError(f"{named} whose rejected token {rejected} is also among the chosen {chosen}: remove it")
        depth = 0
        for token in prompt_ids:
            depth += -1 if token == self.backtrack_id else 1
            if depth < 0:
                raise UserError(f"{named} whose prompt_ids hold a BACKTRACK with nothing left to erase: remove it")

    def _check_ids(self, ids: Iterable[int]) -> None:
        size = len(self.tokenizer)
        outside = next((token for token in ids if not 0 <= token < size), None)
        if outside is not None:
            raise UserError(
                f"data.dataset {self.data.dataset} has a record with the id {outside}, and the tokenizer has {size} "
                "tokens: was another one used?"
            )


def refuse_evaluation_samples(path: Path) -> None:
    """Raise UserError for samples of run_eval whose prompts were not those of a training file (law 8).

    run.json beside them says which file took the place of the task's own test: `eval.data_files`.
    """
    about = path.with_name(RECORD)
    if not about.is_file():
        raise UserError(
            f"data.dataset is {path}, samples of run_eval, but {about} does not exist: name what run_eval wrote"
        )
    settings = json.loads(about.read_text(encoding="utf-8"))["config"].get("eval") or {}
    files = settings.get("data_files") or {}
    of_task = [task for task in files if path.stem.endswith("_" + re.sub(r"[^\w.-]", "_", task))]
    if not of_task:
        raise UserError(
            f"data.dataset is {path}, samples of a task's own test data: run run_eval on a training file "
            "(eval.data_files), or train on the rejections.jsonl of a run_selfgen"
        )
    refuse_evaluation_split(files[max(of_task, key=len)], "train")


class RejectionDataset(Dataset):
    """The places of `traces`, whose converter is a RejectionConverter, equal prefixes merged; keys as of TraceDataset.

    Items are dicts of lists of int: the layout of the prefix, one entry a row (`input_ids`, `position_ids`,
    `visible_until`), `labels` (IGNORE, and the rejected id at the last row, whose logits count), and `chosen`.
    """

    def __init__(self, traces: TraceDataset):
        self.converter, self.left_out = traces.converter, traces.left_out
        self.records = merged(unpack(item) for item in traces.encoded)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Draw | int) -> dict[str, Ids]:
        record = self.records[key.index if isinstance(key, Draw) else key]
        prompt_ids, made = record["prompt_ids"], self.converter
        rows = layout([], prompt_ids, made.backtrack_id, made.backtrack.context)
        labels = [IGNORE] * (len(prompt_ids) - 1) + [record["rejected"]]
        return rows._asdict() | {"labels": labels, "chosen": record["chosen"]}

    def mean_length(self) -> float:
        """Mean tokens of a prefix."""
        return sum(len(record["prompt_ids"]) for record in self.records) / len(self)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and {*map(type, value)} == {int}


def _short(value: Any) -> str:
    return value if len(value := str(value)) < 40 else f"{value[:40]}…"
