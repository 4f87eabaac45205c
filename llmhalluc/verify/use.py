"""Judges at work: the guide of a search, and the operator that erases a step."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch

from llmhalluc.backtrack import IGNORE, layout
from llmhalluc.decoding.sequence import Erase, Step
from llmhalluc.decoding.sequence import Sequence as Decoding
from llmhalluc.models.loader import Loaded
from llmhalluc.models.weights import fingerprint
from llmhalluc.search.budget import flops_of
from llmhalluc.search.guides import Check, Guide, Judged, Likelihood
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.steps import ends_step, pieces_of
from llmhalluc.verify import head as heads
from llmhalluc.verify.prm import FOLDER, load_prm, read

Hidden = dict[str, torch.Tensor]


class Judge(Protocol):
    """Says whether what stands is good; layers: what it wants of the engine. cost: tokens read and flops for a text."""

    layers: tuple[str, ...]
    threshold: float
    task: str

    def good(self, sequences: Sequence[Decoding], hidden: Hidden, lengths: Sequence[int]) -> list[float]:
        """Return P(good) of each sequence after its newest token, which ends a step of so many tokens."""

    def cost(self, sequence: Decoding) -> tuple[int, float]:
        """Return tokens read and floating-point operations for a sequence."""


class VerifierJudge:
    """A head on states that decoding has computed."""

    def __init__(self, head: heads.Head, model: Any):
        self.head, self.embed = head, model.get_input_embeddings()
        self.layers, self.threshold, self.task = head.about.layers, head.about.threshold, head.about.task

    def good(self, sequences: Sequence[Decoding], hidden: Hidden, lengths: Sequence[int]) -> list[float]:
        newest = torch.tensor([one.surviving[-1] for one in sequences], device=self.embed.weight.device)
        likely = [heads.likelihoods(one.logprobs, length) for one, length in zip(sequences, lengths, strict=True)]
        due, _ = self.head.judge(heads.features(hidden, self.layers, self.embed(newest), likely))
        return [1 - one for one in due]

    def cost(self, sequence: Decoding) -> tuple[int, float]:
        return 0, 2.0 * self.head.parameters_count


class PRMJudge:
    """A process reward model, which reads each text anew."""

    layers: tuple[str, ...] = ()

    def __init__(self, prm: Loaded):
        self.prm, about = prm, prm.model.config.prm
        self.threshold, self.task = about["threshold"], about["task"]
        self.flops = flops_of(prm.model)

    @torch.inference_mode()
    def good(self, sequences: Sequence[Decoding], hidden: Hidden, lengths: Sequence[int]) -> list[float]:
        rows, ats = [], []
        for number, one in enumerate(sequences):
            backtrack_id = -1 if self.prm.backtrack_id is None else self.prm.backtrack_id
            laid = layout(one.prompt_ids, self._text(one), backtrack_id, self.prm.context)
            rows.append(laid._asdict() | {"labels": [IGNORE] * len(laid.input_ids)})
            ats.append((number, len(laid.input_ids) - 1))
        return read(self.prm, rows, ats, 0).sigmoid().tolist()

    def cost(self, sequence: Decoding) -> tuple[int, float]:
        n = len(sequence.prompt_ids) + len(self._text(sequence))
        return n, self.flops.of(n, n / 2)

    def _text(self, sequence: Decoding) -> list[int]:
        """What was emitted; where an operator has erased, what stands."""
        return sequence.surviving if sequence.operator_erased else sequence.completion_ids


class JudgeGuide:
    """Values a text by a judge: the geometric mean of P(good) at the ends of its steps, 0 for an empty text."""

    by_step = True

    def __init__(self, judge: Judge):
        self.judge, self.layers = judge, judge.layers

    def __call__(self, judged: Sequence[Judged]) -> list[tuple[float, int, float]]:
        found = [(0.0, 0, 0.0)] * len(judged)
        there = [number for number, one in enumerate(judged) if one.branch.sequence.surviving]
        branches = [judged[number].branch for number in there]
        sequences = [branch.sequence for branch in branches]
        hidden = {name: torch.stack([one.hidden[name] for one in sequences]) for name in self.layers if there}
        lengths = [branch.step_length for branch in branches]
        scores = self.judge.good(sequences, hidden, lengths) if there else []
        for number, branch, good in zip(there, branches, scores, strict=True):
            steps = len(branch.marks) - 1
            if branch.trace is None:
                branch.goods[steps - 1 :] = [good]
                own = branch.goods[:steps]
            else:
                own = [*branch.goods[:steps], good]
            found[number] = (prod(own) ** (1 / len(own)), *self.judge.cost(branch.sequence))
        return found


@dataclass
class JudgeOperator:
    """Erases the step that has just ended where P(an erasure is due) is at least `threshold` (None: the judge's own).

    At each place it does so `retries` times: what comes next is unlikely, which looks like an error in itself.
    """

    judge: Judge
    piece: Callable[[int], str]
    eos_ids: Sequence[int]
    source: str
    threshold: float | None = None
    penalty: float = float("-inf")
    retries: int = 1
    read: int = field(default=0)  # tokens that the judge has read

    def __call__(self, step: Step) -> dict[int, Erase]:
        task, due = TASKS[self.judge.task], []
        limit = self.judge.threshold if self.threshold is None else self.threshold
        for i, sequence in enumerate(step.sequences):
            if length := self._step_length(sequence, task):
                due.append((i, length))
        if not due:
            return {}
        rows = [i for i, _ in due]
        sequences = [step.sequences[i] for i in rows]
        hidden = {name: states_BH[rows] for name, states_BH in step.hidden.items()}
        self.read += sum(self.judge.cost(one)[0] for one in sequences)
        return {
            i: Erase(length, self.penalty, source=self.source)
            for (i, length), good in zip(due, self.judge.good(sequences, hidden, [n for _, n in due]), strict=True)
            if 1 - good >= limit
        }

    def _step_length(self, sequence: Decoding, task: Any) -> int:
        """How many tokens the step has that the newest token ends; 0 where it ends none."""
        marks = sequence.operator_state.setdefault(self.source, [])  # of each surviving token: where its step began
        for at in range(len(marks), len(sequence.surviving)):
            begun = at if not at or marks[-1][1] else marks[-1][0]
            texts = [self.piece(token) for token in sequence.surviving[begun : at + 1]]
            marks.append((begun, ends_step(task, texts)))
        if not marks or not marks[-1][1] or sequence.surviving[-1] in self.eos_ids:
            return 0
        begun = marks[-1][0]
        if len(sequence.tape.penalties.get(begun, {})) >= self.retries:
            return 0
        return len(sequence.surviving) - begun


def load_judge(name: str, folder: str | Path, model: Any) -> Judge:
    """Load a verifier head or a PRM. Raises UserError as `head.load` and `load_prm`."""
    if name == "prm":
        return PRMJudge(load_prm(folder, model))
    return VerifierJudge(heads.load(folder, model, fingerprint(model)), model)


def judge_hash(name: str, folder: str | Path) -> str:
    """Return the hash of a judge's weights; empty where they are not there."""
    root = Path(folder).expanduser()
    files = [root / heads.FILE] if name == "verifier" else sorted((root / FOLDER).glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def guide_of(name: str, folder: str | Path | None, loaded_model: Any, tokenizer: Any) -> Guide:
    """Return the guide that `gen.search_args.guide` names."""
    if name == "likelihood":
        return Likelihood()
    if name == "check":
        return Check(tokenizer)
    return JudgeGuide(load_judge(name, folder or "", loaded_model))


def operator_of(name: str, arguments: dict[str, Any], folder: str | Path | None, parts: tuple) -> JudgeOperator:
    """Return the operator `verifier` or `prm`; parts: model, tokenizer, eos ids."""
    model, tokenizer, eos_ids = parts
    rest = dict(arguments)
    judge = load_judge(name, rest.pop("judge", None) or folder or "", model)
    return JudgeOperator(judge, pieces_of(tokenizer), eos_ids, name, **rest)
