"""Completions by our engine, each on disk as soon as it is finished, so that a killed run goes on where it stopped."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from llmhalluc.data.problems import Problem
from llmhalluc.data.rejections import rejections_of
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.operators import make_operator
from llmhalluc.decoding.sequence import Spec, Trace
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.jsonl import resume_lines
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.models.helper import eos_ids
from llmhalluc.models.loader import Loaded
from llmhalluc.tasks import TASKS


class Completion(NamedTuple):
    """Surviving ids, without eos and without what a stop string cut off; not `ended` by one of these: for length."""

    ids: list[int]
    ended: bool


class Sampler:
    """Answers requests from the file at `path`, decodes the others and appends them; a context manager.

    Every request has a key of its own, which names its stream of draws: a completion does not depend on the batch. A
    line that a kill has torn is cut off and decoded again. What completions took back goes to the file at `rejections`.
    """

    def __init__(
        self, loaded: Loaded, options: GenArguments, batch_size: int, path: Path, rejections: Path | None = None
    ):
        self.loaded, self.options, self.batch_size, self.path = loaded, options, batch_size, path
        self.operator = make_operator(options.operator, **options.operator_args) if options.operator else None
        self.eos_ids = eos_ids(loaded.model, loaded.tokenizer)
        records, self._file = resume_lines(path)
        self.found = {record.pop("key"): Completion(**record) for record in records}
        self._rejections = None if rejections is None else resume_lines(rejections)[1]

    def complete(self, requests: dict[str, tuple[list[int], list[int]]]) -> dict[str, Completion]:
        """Key -> completion of `(prompt ids, ids that are written already)`; the latter count for max_new_tokens.

        Raises UserError where the model has too few positions.
        """
        open_ = [key for key in requests if key not in self.found]
        prompts = [[*requests[key][0], *requests[key][1]] for key in open_]
        limits = [self.options.max_new_tokens - len(requests[key][1]) for key in open_]
        self._check_room(prompts, limits)
        bar = tqdm(total=len(requests), initial=len(requests) - len(open_), desc=self.path.stem, disable=None)

        def finished(at: int, trace: Trace) -> None:
            completion = Completion(self._kept(trace), trace.finish_reason in ("eos", "stop"))
            self.found[open_[at]] = completion
            self._keep_rejections(trace)
            self._file.write(json.dumps({"key": open_[at]} | completion._asdict()) + "\n")
            self._file.flush()
            bar.update()

        if open_:
            model, tokenizer, backtrack_id, context = self.loaded
            context = self.options.context or context
            spec = Spec(self.options, self.eos_ids, backtrack_id, context, tokenizer, self.operator)
            decode(
                model, prompts, spec, keys=open_, limits=limits, batch_size=self.batch_size, on_finish=finished
            )  # fmt: skip
        bar.close()
        return {key: self.found[key] for key in requests}

    def _keep_rejections(self, trace: Trace) -> None:
        """Write what a trace took back, before the completion: a killed run may write it twice, but loses none."""
        if self._rejections is not None:
            context = self.options.context or self.loaded.context
            for record in rejections_of(trace, self.loaded.backtrack_id, context):
                self._rejections.write(json.dumps(record) + "\n")
            self._rejections.flush()

    def _kept(self, trace: Trace) -> list[int]:
        """A trace's surviving ids up to its end; the token in which a stop string begins goes too."""
        ids, tokenizer = list(trace.surviving_ids), self.loaded.tokenizer
        if trace.finish_reason == "eos":
            ids.pop()
        elif trace.finish_reason == "stop":
            while ids and len(tokenizer.decode(ids, skip_special_tokens=True)) > len(trace.text):
                ids.pop()
        return ids

    def _check_room(self, prompts: list[list[int]], limits: list[int]) -> None:
        room = getattr(self.loaded.model.config, "max_position_embeddings", None)
        longest = max((len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)), default=0)
        if room is not None and longest > room:
            raise UserError(
                f"gen.max_new_tokens is {self.options.max_new_tokens}, which with the longest prompt makes {longest} "
                f"tokens, but the model has {room} positions: lower it, or set data.max_length"
            )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()
        if self._rejections is not None:
            self._rejections.close()


class Rollouts:
    """Completions from a prefix and whether they come out right, `count` of each; equal prefixes share theirs."""

    def __init__(self, sampler: Sampler, count: int):
        self.sampler, self.count = sampler, count
        self._right: dict[str, bool] = {}

    def __call__(self, prefixes: Sequence[tuple[Problem, list[int]]]) -> list[list[tuple[Completion, bool]]]:
        keys = [
            [
                f"{problem.key}:{hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]}/{i}"
                for i in range(self.count)
            ]
            for problem, ids in prefixes
        ]
        requests = {
            key: (problem.prompt_ids, ids) for (problem, ids), mine in zip(prefixes, keys, strict=True) for key in mine
        }
        done = self.sampler.complete(requests)
        for (problem, ids), mine in zip(prefixes, keys, strict=True):
            for key in mine:
                if key not in self._right:
                    self._right[key] = is_right(self.sampler.loaded.tokenizer, problem, [*ids, *done[key].ids])
        return [[(done[key], self._right[key]) for key in mine] for mine in keys]


def is_right(tokenizer: PreTrainedTokenizerBase, problem: Problem, ids: Sequence[int]) -> bool:
    """Whether the text of a completion's surviving ids answers the problem."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    return TASKS[problem.task].check(text, problem.record).right
