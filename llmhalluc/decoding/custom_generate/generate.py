"""Generation with a backspace for stock transformers: `model.generate(**inputs, custom_generate=FOLDER)`.

FOLDER is a checkpoint that carries this file; transformers asks for `trust_remote_code=True` beside it. The file needs
torch and transformers alone. Which token is BACKTRACK and what the model still sees of erased text stands in the
model's config: `backtrack = {"token", "token_id", "context"}`. Shapes: B rows, T tokens, V vocabulary.
"""

import inspect
import math

import torch
from transformers import DynamicCache, GenerationMixin, StoppingCriteriaList, StopStringCriteria
from transformers.generation import GenerateDecoderOnlyOutput


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
    text. `context` overrides the config's; `return_trace` answers with the tokens as emitted, BACKTRACKs and erased
    ones included. Raises ValueError for a model without BACKTRACK and for what erasing cannot be combined with.
    """
    record = getattr(model.config, "backtrack", None)
    if record is None:
        raise ValueError("model.config.backtrack is missing: this model was not trained with BACKTRACK")
    backtrack_id, context = record["token_id"], context or record["context"]
    width, limit = input_ids.shape[1], generation_config.max_length - input_ids.shape[1]
    _check(model, model_kwargs, generation_config, context)
    max_erasures = limit // 2 if max_erasures is None else max_erasures
    mask_BT = model_kwargs.get("attention_mask")
    mask_BT = torch.ones_like(input_ids) if mask_BT is None else mask_BT
    if not mask_BT[:, -1].all():
        raise ValueError("attention_mask ends in 0, so prompts are padded on the right: use padding_side='left'")
    prompts = [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, mask_BT, strict=True)]
    rows = [_Row(prompt_ids, width - 1, backtrack_id, context) for prompt_ids in prompts]
    device, pad_id = input_ids.device, generation_config._pad_token_tensor
    pad_id = 0 if pad_id is None else int(pad_id)
    seen = torch.cat([mask_BT, mask_BT.new_ones(len(rows), limit)], dim=1)
    cache = DynamicCache(config=model.config)
    keep_one = {"logits_to_keep": 1} if "logits_to_keep" in model_kwargs else {}
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def logits_of(ids_BT, positions_BT):
        more = {"position_ids": positions_BT.to(model.device)} if takes_positions else {}
        columns = cache.get_seq_length() + ids_BT.shape[1]
        out = model(
            input_ids=ids_BT.to(model.device), attention_mask=seen[:, :columns].to(model.device),
            past_key_values=cache, use_cache=True, return_dict=True, **more, **keep_one,
        )  # fmt: skip
        return out.logits[:, -1].to(device, torch.float32)

    logits_BV = logits_of(input_ids, (mask_BT.cumsum(-1) - 1).clamp(min=0))
    for emitted in range(limit):
        scores_BV = logits_BV.clone()
        for i, row in enumerate(rows):
            if banned := row.banned(max_erasures, scores_BV.shape[1]):
                scores_BV[i, banned] = -math.inf
        scores_BV = logits_processor(_texts(rows, input_ids), scores_BV)
        if generation_config.do_sample:
            tokens_B = torch.multinomial(scores_BV.softmax(-1), num_samples=1)[:, 0]
        else:
            tokens_B = scores_BV.argmax(-1)
        column, feeds = width + emitted, []
        for i, (row, token) in enumerate(zip(rows, tokens_B.tolist(), strict=True)):
            feeds.append((pad_id, 0) if row.done else row.write(token, column, ban_erased))
            if row.hidden:
                seen[i, row.hidden] = 0
                row.hidden = []
        for row, stops in zip(rows, stopping_criteria(_texts(rows, input_ids), scores_BV).tolist(), strict=True):
            row.done |= stops and row.trace[-1] != backtrack_id
        if emitted + 1 == limit or all(row.done for row in rows):
            break
        ids_B, positions_B = torch.tensor(feeds, device=device).unbind(1)
        logits_BV = logits_of(ids_B[:, None], positions_B[:, None])
    completions = [row.trace if return_trace else row.surviving for row in rows]
    longest = max(map(len, completions))
    padded = input_ids.new_tensor([ids + [pad_id] * (longest - len(ids)) for ids in completions]).view(
        len(rows), longest
    )
    sequences = torch.cat([input_ids, padded], dim=1)
    return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences


class _Row:
    """One completion on its way, after a prompt that ends in `last_column` of the cache."""

    def __init__(self, prompt_ids, last_column, backtrack_id, context):
        if not prompt_ids:
            raise ValueError("a prompt is empty: give it at least one token")
        self.prompt_ids, self.backtrack_id, self.context = prompt_ids, backtrack_id, context
        self.trace, self.surviving, self.erased, self.done = [], [], 0, False
        self.columns = []  # cache column and position of each surviving token
        self.last_column, self.position = last_column, len(prompt_ids) - 1  # the latter: of the newest row
        self.hidden, self.hidden_next = [], []  # columns that go out of sight now; when the run of BACKTRACKs ends
        self.bans = {}  # number of surviving tokens -> ids that are not offered there

    def banned(self, max_erasures, vocabulary):
        """The ids that may not come next."""
        place = len(self.surviving)
        no_erasure = not place or self.erased >= max_erasures
        here = self.bans.get(place, ())
        # Where nothing at all would be left the bans are lifted: a text must end.
        here = list(here) if len(here) + no_erasure < vocabulary else []
        return here + [self.backtrack_id] * no_erasure

    def write(self, token, column, ban_erased):
        """Append a token, whose row will lie in `column`; answer the id and the position that are fed for it."""
        self.trace.append(token)
        if token != self.backtrack_id:
            self.hidden += self.hidden_next
            self.hidden_next = []
            place = len(self.prompt_ids) + len(self.surviving)
            self.position = self.position + 1 if self.context == "soft" else place
            self.surviving.append(token)
            self.columns.append((column, self.position))
            return token, self.position
        erased, (erased_column, _) = self.surviving.pop(), self.columns.pop()
        self.erased += 1
        place = len(self.surviving)
        self.bans = {p: ids for p, ids in self.bans.items() if p <= place}
        if ban_erased:
            self.bans.setdefault(place, set()).add(erased)
        if self.context != "rewind":
            self.hidden_next += [erased_column, column] if self.context == "block" else []
            self.position += 1
            return token, self.position
        # The surviving top is fed again in its own position; its older copy goes with the erased token.
        self.hidden.append(erased_column)
        if self.surviving:
            old_column, self.position = self.columns[-1]
            self.columns[-1] = (column, self.position)
        else:
            old_column, self.position = self.last_column, len(self.prompt_ids) - 1
            self.last_column = column
        self.hidden.append(old_column)
        return (self.prompt_ids + self.surviving)[-1], self.position


def _texts(rows, input_ids):
    """(B, T) the prompts as given, padding included, and the surviving ids.

    Between padding and prompt a row that has erased more gets copies of the prompt's first id, which no penalty counts.
    """
    longest, texts = max(len(row.surviving) for row in rows), []
    for row, given in zip(rows, input_ids.tolist(), strict=True):
        n_padding = len(given) - len(row.prompt_ids)
        fill = row.prompt_ids[:1] * (longest - len(row.surviving))
        texts.append(given[:n_padding] + fill + row.prompt_ids + row.surviving)
    return input_ids.new_tensor(texts)


def _check(model, model_kwargs, generation_config, context):
    """Raise ValueError for what this loop cannot do."""
    if context not in ("soft", "block", "rewind"):
        raise ValueError(f"context is {context!r}, expected soft, block or rewind")
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
