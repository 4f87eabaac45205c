"""Generation with a backspace for stock transformers: `model.generate(**inputs, custom_generate=FOLDER)`.

FOLDER is a checkpoint that carries this file and, beside it, `backtrack.py`; transformers asks for
`trust_remote_code=True`. They need torch and transformers alone. Which token is BACKTRACK and what the model still sees
of erased text stands in the model's config: `backtrack = {"token", "token_id", "context"}`. Shapes: B sequences, T
tokens, V vocabulary.
"""

import inspect

import torch
from transformers import DynamicCache, GenerationMixin, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput

from llmhalluc.backtrack import CONTEXTS, Tape


def generate(*args, model, **kwargs):
    """`model.generate(*args, **kwargs)` with erasures; further keywords are those of `backtrack_generate`.

    Raises ValueError for a streamer, which cannot take text back.
    """
    for name in ("custom_generate", "trust_remote_code"):
        kwargs.pop(name, None)
    if kwargs.pop("streamer", None) is not None:
        raise ValueError("streamer is set, but a streamer cannot take back what is erased: leave it out")
    stop_strings, tokenizer = kwargs.pop("stop_strings", None), kwargs.pop("tokenizer", None)
    if stop_strings:
        if tokenizer is None:
            raise ValueError("stop_strings are set without a tokenizer: pass tokenizer=... too")
        stop = StopStringCriteria(tokenizer, stop_strings)
        kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), stop])
    return GenerationMixin.generate(model, *args, custom_generate=backtrack_generate, **kwargs)


@torch.no_grad()
def backtrack_generate(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    context=None,
    ban_erased=True,
    max_erasures=None,
    return_trace=False,
    **model_kwargs,
):
    """The decoding loop, as `custom_generate` of `generate`: (B, T) prompts and what survives after them.

    Prompts are padded on the left. BACKTRACK is offered where it has something to erase, `max_erasures` times at
    most (default: half of the new tokens), which count every token emitted; with `ban_erased` an erased token is not
    offered again at its place while its prefix stands. Logits processors and stopping criteria read the surviving
    text. `context` overrides the config's; `return_trace` returns the tokens as emitted, BACKTRACKs and erased
    ones included. Raises ValueError for a model without BACKTRACK and for what erasing cannot be combined with.
    """
    record = getattr(model.config, "backtrack", None)
    if record is None:
        raise ValueError("model.config.backtrack is missing: this model was not trained with BACKTRACK")
    backtrack_id, context = record["token_id"], context or record["context"]
    width, limit = input_ids.shape[1], generation_config.max_length - input_ids.shape[1]
    _check(model, model_kwargs, generation_config, context)
    mask_BT = model_kwargs.get("attention_mask")
    mask_BT = torch.ones_like(input_ids) if mask_BT is None else mask_BT
    if not mask_BT[:, -1].all():
        raise ValueError("attention_mask ends in 0, so prompts are padded on the right: use padding_side='left'")
    max_erasures = limit // 2 if max_erasures is None else max_erasures
    sequences = [
        _Sequence(Tape(ids[kept.bool()].tolist(), backtrack_id, context, ban_erased, max_erasures), kept)
        for ids, kept in zip(input_ids, mask_BT, strict=True)
    ]
    device, pad_id = input_ids.device, generation_config._pad_token_tensor
    pad_id = 0 if pad_id is None else int(pad_id)
    seen = torch.cat([mask_BT, mask_BT.new_ones(len(sequences), limit)], dim=1)
    logits_of = _forward(model, seen, "logits_to_keep" in model_kwargs)
    logits_BV = logits_of(input_ids, (mask_BT.cumsum(-1) - 1).clamp(min=0))
    for emitted in range(limit):
        scores_BV = logits_BV.clone()
        for i, sequence in enumerate(sequences):
            for token, penalty in sequence.tape.penalties_here(scores_BV.shape[1]).items():
                scores_BV[i, token] += penalty
        scores_BV = logits_processor(_texts(sequences, input_ids), scores_BV)
        if generation_config.do_sample:
            tokens_B = torch.multinomial(scores_BV.softmax(-1), num_samples=1)[:, 0]
        else:
            tokens_B = scores_BV.argmax(-1)
        feeds = []
        for i, (sequence, token) in enumerate(zip(sequences, tokens_B.tolist(), strict=True)):
            feed, hidden = ((pad_id, 0), []) if sequence.done else sequence.write(token, width + emitted)
            feeds.append(feed)
            seen[i, hidden] = 0
        stops = stopping_criteria(_texts(sequences, input_ids), scores_BV).tolist()
        for sequence, stop in zip(sequences, stops, strict=True):
            sequence.done |= stop and sequence.trace[-1] != backtrack_id
        if emitted + 1 == limit or all(sequence.done for sequence in sequences):
            break
        ids_B, positions_B = torch.tensor(feeds, device=device).unbind(1)
        logits_BV = logits_of(ids_B[:, None], positions_B[:, None])
    completions = [sequence.trace if return_trace else sequence.tape.surviving for sequence in sequences]
    longest = max(map(len, completions))
    padded = input_ids.new_tensor([ids + [pad_id] * (longest - len(ids)) for ids in completions])
    texts_BT = torch.cat([input_ids, padded.view(len(sequences), longest)], dim=1)
    return GenerateDecoderOnlyOutput(sequences=texts_BT) if generation_config.return_dict_in_generate else texts_BT


def _forward(model, seen, keeps_one):
    """A function (ids, positions) (B, T) -> logits (B, V) of the next tokens; a cache grows with it.

    seen: (B, columns) 1 where a column of the cache is in sight.
    """
    cache = DynamicCache(config=model.config)
    keep_one = {"logits_to_keep": 1} if keeps_one else {}
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def logits_of(ids_BT, positions_BT):
        more = {"position_ids": positions_BT.to(model.device)} if takes_positions else {}
        columns = cache.get_seq_length() + ids_BT.shape[1]
        out = model(
            input_ids=ids_BT.to(model.device), attention_mask=seen[:, :columns].to(model.device),
            past_key_values=cache, use_cache=True, return_dict=True, **more, **keep_one,
        )  # fmt: skip
        return out.logits[:, -1].to(ids_BT.device, torch.float32)

    return logits_of


class _Sequence:
    """One completion, after a prompt that lies in the `kept` columns of the cache."""

    def __init__(self, tape, kept):
        if not tape.columns:
            raise ValueError("a prompt is empty: give it at least one token")
        self.tape, self.trace, self.done = tape, [], False
        self.prompt_ids = tape.columns[:]
        self.columns = kept.nonzero()[:, 0].tolist()  # in which each position lies that the newest row sees

    def write(self, token, column):
        """Append a token, whose row will lie in `column`; return what is fed for it, and the columns it hides.

        The cache only grows: whatever lay at this position or later goes out of sight.
        """
        self.trace.append(token)
        feed = self.tape.feed(token)
        position = feed[1]
        hidden = self.columns[position:]
        self.columns[position:] = [column]
        return feed, hidden


def _texts(sequences, input_ids):
    """(B, T) the prompts as given, padding included, and the surviving ids.

    Between padding and prompt one that has erased more gets copies of the prompt's first id, which no penalty counts.
    """
    longest, texts = max(len(sequence.tape.surviving) for sequence in sequences), []
    for sequence, given in zip(sequences, input_ids.tolist(), strict=True):
        n_padding = len(given) - len(sequence.prompt_ids)
        fill = sequence.prompt_ids[:1] * (longest - len(sequence.tape.surviving))
        texts.append(given[:n_padding] + fill + sequence.prompt_ids + sequence.tape.surviving)
    return input_ids.new_tensor(texts)


def _check(model, model_kwargs, generation_config, context):
    """Raise ValueError for what this loop cannot do."""
    if context not in CONTEXTS:
        raise ValueError(f"context is {context!r}, expected {', '.join(CONTEXTS)}")
    if generation_config.num_beams > 1:
        raise ValueError(f"num_beams is {generation_config.num_beams}, but erasing goes with one beam: set num_beams=1")
    given = model_kwargs.get("past_key_values")
    if given is not None and given.get_seq_length():
        raise ValueError("past_key_values holds text already: pass the whole prompt as input_ids instead")
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if context != "soft" and kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(f"context is {context!r}, but the model's layers ({', '.join(sorted(kinds))}) keep no rows")
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    if context != "soft" and window and generation_config.max_length > window:
        raise ValueError(
            f"context is {context!r}, but the text of up to {generation_config.max_length} tokens is longer than the "
            f"model's attention window of {window}: lower max_new_tokens"
        )
