"""The next token of every sequence: bans, then transformers' own logits processors, then a draw of its own.

Shapes: B sequences, V vocabulary, K tokens left after top-k.
"""

import math

import torch
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from llmhalluc.decoding.sequence import Sequence, Spec
from llmhalluc.hparams.sections import GenArguments


def sample(logits_BV: torch.Tensor, sequences: list[Sequence], spec: Spec) -> list[int]:
    """Return the ids: argmax at temperature 0, else a draw from each sequence's own stream.

    BACKTRACK needs something to erase and a budget; what was erased at a place keeps its penalty there.
    """
    options = spec.options
    logits_BV = _penalised(logits_BV, sequences, spec)
    if options.repetition_penalty not in (None, 1.0):
        texts = [sequence.prompt_ids + sequence.surviving for sequence in sequences]
        longest = max(map(len, texts))
        # Filled up with its own last id, for the penalty counts an id once.
        rows = [text + [text[-1]] * (longest - len(text)) for text in texts]
        penalty = RepetitionPenaltyLogitsProcessor(options.repetition_penalty)
        logits_BV = penalty(torch.tensor(rows, device=logits_BV.device), logits_BV)
    if options.temperature == 0:
        return logits_BV.argmax(-1).tolist()
    # Temperature keeps the order, so top-k may come first: the rest then works on K tokens, not on V.
    k = min(options.top_k or logits_BV.shape[1], logits_BV.shape[1])
    logits_BK, ids_BK = logits_BV.topk(k) if k < logits_BV.shape[1] else (logits_BV, None)
    probabilities_BK = _warpers(options)(None, logits_BK).softmax(-1)
    cumulative_BK = probabilities_BK.double().cumsum(-1)
    draws = [sequence.draws.random() for sequence in sequences]
    uniform_B = torch.tensor(draws, dtype=torch.float64, device=logits_BV.device)
    at_B1 = torch.searchsorted(cumulative_BK, (uniform_B * cumulative_BK[:, -1])[:, None], right=True)
    return (at_B1 if ids_BK is None else ids_BK.gather(1, at_B1))[:, 0].tolist()


def logprobs_of(logits_BV: torch.Tensor, tokens: list[int]) -> list[float]:
    """Return log-probabilities of the full softmax at temperature 1, before anything is cut or banned."""
    chosen_B = logits_BV.gather(1, torch.tensor(tokens, device=logits_BV.device)[:, None])[:, 0]
    return (chosen_B - logits_BV.logsumexp(-1)).tolist()


def _penalised(logits_BV: torch.Tensor, sequences: list[Sequence], spec: Spec) -> torch.Tensor:
    """The logits with what is banned or nudged at each place."""
    erase_id, backtrack_id = spec.erase_id, spec.backtrack_id
    never = backtrack_id is not None and erase_id is None
    biased = erase_id is not None and spec.options.backtrack_bias
    rows: list[int] = []
    ids: list[int] = []
    added: list[float] = []
    for i, sequence in enumerate(sequences):
        if not sequence.tape.nothing_to_add():
            here = sequence.tape.penalties_here(logits_BV.shape[1] - never)
            rows += [i] * len(here)
            ids += here
            added += here.values()
    if not (rows or never or biased):
        return logits_BV
    logits_BV = logits_BV.clone()
    if never:
        logits_BV[:, backtrack_id] = -math.inf
    if biased:
        logits_BV[:, erase_id] += spec.options.backtrack_bias
    if rows:
        logits_BV[rows, ids] += torch.tensor(added, dtype=logits_BV.dtype, device=logits_BV.device)
    return logits_BV


def _warpers(options: GenArguments) -> LogitsProcessorList:
    """transformers' own processors after top-k, in the order of its `generate`."""
    warpers = LogitsProcessorList()
    if options.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(float(options.temperature)))
    if options.top_p is not None and options.top_p < 1:
        warpers.append(TopPLogitsWarper(options.top_p))
    if options.min_p is not None:
        warpers.append(MinPLogitsWarper(options.min_p))
    return warpers
