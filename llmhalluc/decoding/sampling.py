"""The next token of every row: bans, then transformers' own logits processors, then a draw of the row's own.

Shapes: B rows, V vocabulary, K tokens left after top-k.
"""

import torch
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from llmhalluc.hparams.gen_args import GenArguments


def choose(
    logits_BV: torch.Tensor, rows: list, options: GenArguments, erase_id: int | None, backtrack_id: int | None
) -> list[int]:
    """Argmax at temperature 0, else a draw from the row's own stream; `rows` are the engine's.

    BACKTRACK needs something to erase and a budget, and what was erased at a place stays banned there.
    """
    logits_BV = logits_BV.float() if logits_BV.dtype != torch.float64 else logits_BV.clone()
    if erase_id is not None and options.backtrack_bias:
        logits_BV[:, erase_id] += options.backtrack_bias
    if forbidden := _forbidden(rows, options, erase_id, backtrack_id, logits_BV.shape[1]):
        at = torch.tensor(forbidden, device=logits_BV.device).T
        logits_BV[at[0], at[1]] = -torch.inf
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
    uniform_B = torch.tensor(
        [row.draws.random() for row in rows], dtype=torch.float64, device=logits_BV.device
    )
    at_B1 = torch.searchsorted(cumulative_BK, (uniform_B * cumulative_BK[:, -1])[:, None], right=True)
    return (at_B1 if ids_BK is None else ids_BK.gather(1, at_B1))[:, 0].tolist()


def _forbidden(rows, options, erase_id, backtrack_id, n_vocabulary) -> list[tuple[int, int]]:
    """(row, token) pairs that are not offered."""
    budget = options.max_new_tokens // 2 if options.max_erasures is None else options.max_erasures
    forbidden: list[tuple[int, int]] = []
    for i, row in enumerate(rows):
        place = len(row.tape.surviving)
        no_erasure = erase_id is None or not place or row.tape.erased >= budget
        if backtrack_id is not None and no_erasure:
            forbidden.append((i, backtrack_id))
        banned = row.banned.get(place)
        # Where every token is banned and nothing may be erased, the bans are lifted: a prompt must end.
        if banned and len(banned) + no_erasure < n_vocabulary:
            forbidden += [(i, token) for token in banned]
    return forbidden


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
