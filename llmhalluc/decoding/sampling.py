"""The next token of every row: bans, then transformers' own logits processors, then a draw of the row's own.

Shapes: B rows, V vocabulary, K tokens left after top-k.
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

from llmhalluc.decoding.rows import Row
from llmhalluc.hparams.gen_args import GenArguments


def choose(
    logits_BV: torch.Tensor, rows: list[Row], options: GenArguments, erase_id: int | None, backtrack_id: int | None
) -> tuple[list[int], list[float]]:
    """The ids, argmax at temperature 0 and else a draw from the row's own stream, and their log-probabilities.

    These are of the full softmax at temperature 1, before anything is cut or banned. BACKTRACK needs something to
    erase and a budget; what was erased at a place keeps its penalty there. `rows` are the engine's.
    """
    tokens = _choose(logits_BV, rows, options, erase_id, backtrack_id)
    tokens = [row.forced[0] if row.forced else token for row, token in zip(rows, tokens, strict=True)]
    chosen_B = logits_BV.gather(1, torch.tensor(tokens, device=logits_BV.device)[:, None])[:, 0]
    return tokens, (chosen_B - logits_BV.logsumexp(-1)).tolist()


def _choose(logits_BV, rows, options, erase_id, backtrack_id) -> list[int]:
    added = penalties(rows, options, erase_id, backtrack_id, logits_BV.shape[1])
    biased = erase_id is not None and options.backtrack_bias
    if added or biased:
        logits_BV = logits_BV.clone()
    if biased:
        logits_BV[:, erase_id] += options.backtrack_bias
    if added:
        in_rows, ids, values = zip(*added, strict=True)
        logits_BV[list(in_rows), list(ids)] += torch.tensor(values, dtype=logits_BV.dtype, device=logits_BV.device)
    if options.repetition_penalty not in (None, 1.0):
        penalty = RepetitionPenaltyLogitsProcessor(options.repetition_penalty)
        logits_BV = penalty(_surviving_ids(rows, logits_BV.device), logits_BV)
    if options.temperature == 0:
        return logits_BV.argmax(-1).tolist()
    # Temperature keeps the order, so top-k may come first: the rest then works on K tokens, not on V.
    k = min(options.top_k or logits_BV.shape[1], logits_BV.shape[1])
    logits_BK, ids_BK = logits_BV.topk(k) if k < logits_BV.shape[1] else (logits_BV, None)
    probabilities_BK = _warpers(options)(None, logits_BK).softmax(-1)
    cumulative_BK = probabilities_BK.double().cumsum(-1)
    uniform_B = torch.tensor([row.draws.random() for row in rows], dtype=torch.float64, device=logits_BV.device)
    at_B1 = torch.searchsorted(cumulative_BK, (uniform_B * cumulative_BK[:, -1])[:, None], right=True)
    return (at_B1 if ids_BK is None else ids_BK.gather(1, at_B1))[:, 0].tolist()


def budget(options: GenArguments, limit: int) -> int:
    """Erasures that BACKTRACK may make in a completion of `limit` tokens, and the operator as many again."""
    return limit // 2 if options.max_erasures is None else options.max_erasures


def penalties(
    rows: list[Row], options: GenArguments, erase_id: int | None, backtrack_id: int | None, n_vocabulary: float
) -> list[tuple[int, int, float]]:
    """What is banned or nudged at the rows' places: (row, token, what is added to its logit)."""
    found: list[tuple[int, int, float]] = []
    for i, row in enumerate(rows):
        place = len(row.surviving)
        no_erasure = erase_id is None or not place or row.tape.erased - row.rewound >= budget(options, row.limit)
        if backtrack_id is not None and no_erasure:
            found.append((i, backtrack_id, -math.inf))
        at_place = row.penalties.get(place)
        # Where every token is banned and nothing may be erased, the bans are lifted: a prompt must end.
        closed = backtrack_id is not None and no_erasure
        if at_place and list(at_place.values()).count(-math.inf) + closed < n_vocabulary:
            found += [(i, token, penalty) for token, penalty in at_place.items()]
    return found


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


def _surviving_ids(rows, device) -> torch.Tensor:
    """(B, T) prompt and surviving ids, each row filled up with its own last id: the penalty counts an id once."""
    texts = [row.prompt_ids + row.tape.surviving for row in rows]
    longest = max(map(len, texts))
    return torch.tensor([text + [text[-1]] * (longest - len(text)) for text in texts], device=device)
