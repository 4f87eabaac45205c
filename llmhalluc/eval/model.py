"""The harness's view of our models: prompts become ids once, our engine decodes them, surviving text goes back."""

import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Spec, Trace
from llmhalluc.eval.journal import Journal
from llmhalluc.eval.lm_eval_patches import silent_model
from llmhalluc.eval.metrics import counts_of, trace_metrics
from llmhalluc.eval.variants import GEN_KEYS, JUDGES, Variant, operator_of
from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.hparams.sections import GenArguments, ModelArguments
from llmhalluc.models.helper import eos_ids
from llmhalluc.models.loader import load
from llmhalluc.models.weights import fingerprint
from llmhalluc.tasks import EVALUATIONS, TASKS
from llmhalluc.tasks.base import CutOff

if TYPE_CHECKING:
    from llmhalluc.search.tree import Problem

logger = logging.getLogger(__name__)
MODEL_KEYS = tuple(ModelArguments.__dataclass_fields__)


@register_model("backtrack")
class BacktrackLM(HFLM):
    """HFLM whose `generate_until` decodes with erasures; log-likelihoods are HFLM's own.

    `pretrained` is a `model` section, or a hub name or folder; then `keys` may be any key of the sections `model` and
    `gen` (`--model_args pretrained=…,gguf_file=…,context=block`). Gen keys given here win over a task's own.
    A model without a BACKTRACK of its own is decoded as the plain model that it is.

    After a run `traces[task][doc_id]` holds the traces of a document, one a repeat, `options[task]` how they were
    decoded, `truncated[task]` the number of prompts that were cut from the left to leave room for the answer, and
    `seconds` the time that decoding took.
    """

    def __init__(
        self,
        pretrained: str | ModelArguments,
        batch_size: int | str = 64,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        **keys,
    ):
        allowed = (*MODEL_KEYS, *GEN_KEYS)
        for key in keys.keys() - set(allowed):
            raise UserError(f"model_args has the unknown key {key}{did_you_mean(key, allowed)}")
        given = {key: value for key, value in keys.items() if key in GEN_KEYS}
        if not isinstance(pretrained, ModelArguments):
            model_keys = {key: value for key, value in keys.items() if key in MODEL_KEYS}
            # The harness names cuda:0 where nobody named a device, and HFLM falls back as well.
            device = device if torch.cuda.is_available() or not str(device).startswith("cuda") else None
            pretrained = ModelArguments(name_or_path=pretrained, device=device, **model_keys)
        loaded = load(pretrained, None)
        if not str(batch_size).isdigit():
            raise UserError(f"batch_size is {batch_size!r}: give a number")
        with silent_model():
            super().__init__(
                pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal",
                batch_size=int(batch_size), max_length=max_length,
            )  # fmt: skip
        self.backtrack_id, self.context = loaded.backtrack_id, loaded.context
        self.source = pretrained.adapter or pretrained.name_or_path
        self.eos_ids = eos_ids(self.model, self.tokenizer)
        self.templated, self.quiet = False, False
        self.journal: Journal | None = None
        self._fingerprint: str | None = None
        self._hashes: dict[tuple[str, str], str] = {}
        self.begin(Variant(GenArguments(**given), frozenset(given)))

    def begin(self, variant: Variant) -> None:
        """Decode with these options from now on, and forget the traces of the variant before."""
        self.variant = variant
        self.traces: dict[str, dict[int, list[Trace]]] = defaultdict(lambda: defaultdict(list))
        self.truncated: Counter[str] = Counter()
        self.options: dict[str, GenArguments] = {}
        self.seconds = 0.0

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """The surviving text of each request, up to its stop strings; finished traces come from the journal.

        One that ended by its length is a CutOff.
        """
        traces: list[Trace] = [None] * len(requests)  # type: ignore[list-item]
        groups: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(i)
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.quiet or self.rank != 0, desc="Decoding")
        for members in groups.values():
            options = self.variant.for_task(requests[members[0]].args[1])
            self.options |= {requests[i].task_name: options for i in members}
            prompts = {i: self._prompt_ids(requests[i], options) for i in members}
            keys = _stream_keys(prompts)
            pending = []
            for i in members:
                found = self.journal.get(self._journal_key(keys[i], options), prompts[i]) if self.journal else None
                if found is None:
                    pending.append(i)
                else:
                    traces[i] = found
            bar.update(len(members) - len(pending))

            def finished(at: int, trace: Trace, pending=pending, keys=keys, options=options) -> None:
                if self.journal is not None:
                    self.journal.add(self._journal_key(keys[pending[at]], options), trace)
                traces[pending[at]] = trace
                bar.update()

            started = time.perf_counter()
            context = options.context or self.context
            operator, guide = self._operator(options), self._guide(options)
            spec = Spec(options, self.eos_ids, self.backtrack_id, context, self.tokenizer, operator,
                        layers=tuple(getattr(getattr(operator, "judge", None), "layers", ())))  # fmt: skip
            how = dict(batch_size=self.batch_size, on_finish=finished)
            if options.search is not None:
                from llmhalluc.search.run import search

                problems = [problem_of(requests[i], prompts[i], keys[i]) for i in pending]
                search(self.model, problems, spec, guide=guide, **how)
            else:
                decode(self.model, [prompts[i] for i in pending], spec, keys=[keys[i] for i in pending], **how)
            self.seconds += time.perf_counter() - started
        bar.close()
        for request, trace in zip(requests, traces, strict=True):
            self.traces[request.task_name][request.doc_id].append(trace)
        return [CutOff(trace.text) if trace.finish_reason == "length" else trace.text for trace in traces]

    def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
        """HFLM's; and prompts made by a chat template bring their own special tokens, as in training."""
        self.templated = True
        return super().apply_chat_template(chat_history, add_generation_prompt)

    def get_model_info(self) -> dict:
        """What the harness writes beside its results: the model, its context, and what its traces did."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
            "context": self.variant.options.context or self.context,
            "backtrack_id": self.backtrack_id,
            "truncated_prompts": dict(self.truncated),
            "traces": {
                task: trace_metrics(
                    [counts_of(trace, self.backtrack_id) for traces in docs.values() for trace in traces]
                )
                for task, docs in self.traces.items()
            },
        }

    def _prompt_ids(self, request, options: GenArguments) -> list[int]:
        """The prompt's ids as training makes them, cut from the left as HFLM cuts so that the answer has room."""
        ids = self.tok_encode(request.args[0], add_special_tokens=False if self.templated else None)
        if not self.templated and ids and ids[-1] == self.eot_token_id:
            ids.pop()  # some tokenizers end every text with eos
        ids = ids or [self.prefix_token_id]
        room = self.max_length - options.max_new_tokens
        if room < 1:
            raise UserError(
                f"{options.key('max_new_tokens')} is {options.max_new_tokens}, but the model has {self.max_length} "
                "positions: lower it so that the prompt has room"
            )
        if len(ids) > room:
            if not self.truncated:
                logger.warning("a prompt of %d tokens is cut to its last %d; results count how many", len(ids), room)
            self.truncated[request.task_name] += 1
            ids = ids[-room:]
        return ids

    def _judges(self, options: GenArguments) -> list[str]:
        """Hashes of the judges that the options name: another judge decides otherwise."""
        asked = [(options.operator, options.operator_args), (options.search_args.get("guide"), options.search_args)]
        named = [(name, arguments.get("judge") or self.source or "") for name, arguments in asked if name in JUDGES]
        if not named:
            return []
        from llmhalluc.verify.use import judge_hash

        for one in named:
            if one not in self._hashes:
                self._hashes[one] = judge_hash(*one)
        return [self._hashes[one] for one in named]

    def _operator(self, options: GenArguments) -> Any:
        """The operator of the options; a trained one lies beside the model, or where `judge` says."""
        if options.operator not in JUDGES:
            return operator_of(options)
        from llmhalluc.verify.use import operator_of as trained

        parts = (self.model, self.tokenizer, self.eos_ids)
        return trained(options.operator, options.operator_args, self.source, parts)

    def _guide(self, options: GenArguments) -> Any:
        """The guide of a search, None without a search."""
        if options.search is None:
            return None
        from llmhalluc.verify.use import guide_of

        args = options.search_args
        return guide_of(args.get("guide", "likelihood"), args.get("judge") or self.source, self.model, self.tokenizer)

    def _journal_key(self, stream_key: str, options: GenArguments) -> str:
        self._fingerprint = self._fingerprint or fingerprint(self.model)
        parts = [self._fingerprint, options.context or self.context, self.backtrack_id, stream_key, asdict(options)]
        parts += self._judges(options)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def problem_of(request: Any, prompt_ids: list[int], key: str) -> "Problem":
    """Return what a search needs of a request: its document is the record of the task that its lm-eval task is of."""
    from llmhalluc.search.tree import Problem

    name = EVALUATIONS.get(request.task_name)
    return Problem(prompt_ids, key, TASKS[name] if name else None, request.doc)


def _stream_keys(prompts: dict[int, list[int]]) -> dict[int, str]:
    """A name for each prompt's sampling stream: its ids and how many of the same came before it.

    So a draw depends neither on the batch nor on what has been decoded already, and two models that get the same
    prompts sample with common random numbers.
    """
    seen: Counter[str] = Counter()
    keys = {}
    for i, ids in prompts.items():
        digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
        keys[i] = f"{digest}-{seen[digest]}"
        seen[digest] += 1
    return keys
