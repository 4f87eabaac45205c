"""Generations of a variant under a condition: ids, true lengths and finish reasons, sample by sample on disk."""

import hashlib
import json
from collections.abc import Sequence as Items
from random import Random
from typing import Any

import torch

from llmhalluc.data.base import encode_prompts, tokenise
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Sequence, Spec, Trace
from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.extras.jsonl import resume_lines, write_lines
from llmhalluc.hparams.interp_args import VariantArguments
from llmhalluc.interp.ablate import Ablations, load_references, random_sets, selection
from llmhalluc.interp.load import Model, generations_of, model_of, problems_of, task_of, write_check
from llmhalluc.interp.packed import Edit, change_at
from llmhalluc.interp.run import BASELINE, Run, Stage
from llmhalluc.interp.sites import SUBLAYERS, Change, Site, Sites
from llmhalluc.tasks import TASKS

CONDITIONS = (BASELINE, "targeted", "random")
THINK = {"none": "", "newline": "<think>\n", "inline": "<think>"}


def generate(run: Run, variant: str, conditions: Items[str]) -> None:
    """Complete every problem `interp.samples` times under each condition; those that are missing share their batches.

    targeted: the layers of selected_layers.json are ablated, as the first of scan.ablations says, at every token, that
    of the prompt included; random: as many other sublayers, a set of its own for each sample. Raises UserError for an
    unknown condition, and for these two before ablation-scan.
    """
    for condition in conditions:
        if condition not in CONDITIONS:
            raise UserError(f"--condition is {condition!r}{did_you_mean(condition, CONDITIONS)}")
    problems = run.need(run.path("data", "problems.jsonl"), "prepare-data")
    selected = run.path("analysis", "selected_layers.json")
    plain, scan = run.config.plain(), run.config.scan
    settings = {
        "gen": plain["gen"], "variant": plain["interp"]["variants"][variant], "examples": run.config.interp.examples,
        "samples": run.config.interp.samples,
    }  # fmt: skip
    stages: dict[str, Stage] = {}
    todo = []
    for condition in conditions:
        asked = settings
        if condition != BASELINE:
            run.need(selected, f"ablation-scan --variant {variant}")
            chosen = selection(run, variant)["layers"]
            asked = settings | {"method": scan.ablations[0], "scale": scan.scale, "layers": chosen}
        output = run.path("generations", f"{variant}__{condition}.jsonl")
        stages[condition] = Stage(f"generate {variant} {condition}", [problems], asked, [output])
        if not run.is_done(stages[condition]):
            todo.append(condition)
    if not todo:
        return
    model = model_of(run)
    _complete(run, model, variant, _condition_edits(run, model, variant, todo), stages[todo[-1]].settings)
    for condition in todo:
        run.mark_done(stages[condition])
    if BASELINE in todo:
        write_check(run, model, max(generations_of(run, variant), key=lambda one: len(one["completion_ids"])))


def prompts(model: Model, variant: VariantArguments, texts: list[str]) -> list[list[int]]:
    """Return the ids that are fed: the instruction, the chat template and <think> of the variant, tokenised at once."""
    tokenizer, think = model.tokenizer, THINK[variant.think]
    texts = [text + variant.instruction for text in texts]
    if not variant.chat:
        return encode_prompts(tokenizer, [f"{text}\n{think}" if think else text for text in texts])
    if tokenizer.chat_template is None:
        raise UserError("a variant has chat true, but the tokenizer has no chat template: set false")
    turns = [[{"role": "user", "content": text}] for text in texts]
    chats = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tokenise(tokenizer, [chat + think for chat in chats], special_tokens=False)[0]


class Key(str):
    """Names a sample's stream of draws; `edits` are what is changed in the model for it, and no part of the name."""

    edits: tuple[Edit, ...] = ()


def edits_of(key: str) -> tuple[Edit, ...]:
    """Return what is changed in the model for a sequence of that key."""
    return key.edits if isinstance(key, Key) else ()


class RowEdits:
    """Changes the model for each sequence of a batch as its key says: the `intervene` of a Spec."""

    def __init__(self, sites: Sites, keys: Items[str]):
        self.sites = sites
        self.changes: dict[Site, Change | None] = dict.fromkeys(edit.site for key in keys for edit in edits_of(key))
        self._fed: list[int] = []  # the sequences of the last forward: most are followed by one of the same

    def __call__(self, sequences: list[Sequence]) -> None:
        fed = [sequence.index for sequence in sequences]
        if fed == self._fed:
            return
        self._fed = fed
        for site in self.changes:
            found = [
                (row, edit) for row, one in enumerate(sequences) for edit in edits_of(one.key) if edit.site == site
            ]
            rows = torch.tensor([row for row, _ in found], device=self.sites.model.device)
            edits = [edit for _, edit in found]
            self.changes[site] = change_at((rows,), edits, self.sites, (1,)) if found else None


def _complete(run: Run, model: Model, variant: str, edits: dict[str, list[tuple[Edit, ...]]], mark: Any) -> None:
    """Decode what is missing under each condition, all in one batch, and write the files; sample i has edit set i."""
    interp, options, records = run.config.interp, run.config.config.gen, problems_of(run)
    texts = [TASKS[task_of(run)].prompt(record) for record in records.values()]
    ids = dict(zip(records, prompts(model, run.config.variants[variant], texts), strict=True))
    mark = hashlib.sha256(json.dumps([mark, ids]).encode()).hexdigest()[:12]
    wanted = [(example, number) for example in records for number in range(interp.samples)]
    files, partial, requests = {}, {}, []
    for condition, sets in edits.items():
        partial[condition] = run.path("generations", f".{variant}__{condition}.{mark}")
        lines, files[condition] = resume_lines(partial[condition])
        have = {(line["example_id"], line["sample_id"]) for line in lines}
        for at, (example, number) in enumerate(wanted):
            key = Key(f"{example}/{number}")
            key.edits = sets[at % len(sets)]
            if (example, number) not in have:
                requests.append((condition, example, number, key))
    keys: list[str] = [key for *_, key in requests]
    intervene = RowEdits(model.sites, keys)
    spec = Spec(
        options, model.eos_ids, model.loaded.backtrack_id, model.context, model.tokenizer,
        intervene=intervene if intervene.changes else None,
    )  # fmt: skip

    def finished(at: int, trace: Trace) -> None:
        condition, example, number, _ = requests[at]
        files[condition].write(json.dumps(_line(example, number, trace), ensure_ascii=False) + "\n")
        files[condition].flush()

    with model.sites.hooked(intervene.changes):
        fed = [ids[example] for _, example, *_ in requests]
        decode(model.loaded.model, fed, spec, keys=keys, batch_size=interp.batch_size, on_finish=finished)
    for condition, path in partial.items():
        files[condition].close()
        lines = {(line["example_id"], line["sample_id"]): line for line in map(json.loads, path.open(encoding="utf-8"))}
        write_lines(run.path("generations", f"{variant}__{condition}.jsonl"), (lines[one] for one in wanted))
        for stale in path.parent.glob(f".{variant}__{condition}.*"):
            stale.unlink()


def _line(example: str, number: int, trace: Trace) -> dict[str, Any]:
    return {
        "example_id": example, "sample_id": number, "prompt_ids": trace.prompt_ids,
        "completion_ids": trace.completion_ids, "surviving_ids": trace.surviving_ids, "text": trace.text,
        "finish_reason": trace.finish_reason, "erasures": trace.erasures, "events": trace.events,
        "nats": -sum(trace.logprobs) / len(trace.logprobs) if trace.logprobs else None,
    }  # fmt: skip


def _condition_edits(run: Run, model: Model, variant: str, conditions: Items[str]) -> dict[str, list[tuple[Edit, ...]]]:
    """The edits of every sample, in their order, under each condition."""
    edits: dict[str, list[tuple[Edit, ...]]] = {}
    selected, scan = selection(run, variant) if set(conditions) != {BASELINE} else None, run.config.scan
    for condition in conditions:
        if condition == BASELINE:
            edits[condition] = [()]
            continue
        count, rng = run.config.interp.examples * run.config.interp.samples, Random(run.config.interp.seed)
        chosen = [(kind, layer) for layer in selected["layers"] for kind in SUBLAYERS]
        sets = [chosen] if condition == "targeted" else random_sets(model.sites, chosen, count, rng)
        made = Ablations(scan.ablations[0], sets, load_references(run, variant), scan.scale, run.config.interp.seed)
        edits[condition] = [made(number)[number % len(sets)] for number in range(count)]
    return edits
