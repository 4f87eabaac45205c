"""A process reward model: a causal LM that says, at the end of a step, whether what stands there is good.

Its answer is one bit: the logit of one token less that of another (BACKTRACK, where the model has it), as Math-Shepherd
(arXiv 2312.08935) asks with `+` and `-`. It reads the text as it was emitted, erasures and all, in the model's context.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from llmhalluc.data.collator import TraceCollator
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import ModelArguments
from llmhalluc.models.loader import Loaded, load
from llmhalluc.verify.learn import Places, as_places, batches, rows_of
from llmhalluc.verify.options import JudgeOptions
from llmhalluc.verify.traces import Labelled

FOLDER = "prm"  # beside the model


def fit_prm(
    loaded: Loaded, parts: Sequence[Sequence[Labelled]], options: JudgeOptions, pad_id: int, seed: int
) -> tuple[Loaded, list[dict[str, float]]]:
    """Train a copy of a model on the first part, until the loss on the second rises; return it and the curve."""
    model, tokenizer, backtrack_id, context = loaded
    good_id = int(tokenizer.eos_token_id)
    bad_id = backtrack_id if backtrack_id is not None else next(i for i in range(len(tokenizer)) if i != good_id)
    prm = copy.deepcopy(model)
    prm.config.prm = {"good": good_id, "bad": bad_id}
    made = Loaded(prm, tokenizer, backtrack_id, context)
    rows, dev = parts[0], parts[1]
    optimizer, rng, curve, best = torch.optim.AdamW(prm.parameters(), options.learning_rate), Random(seed), [], None
    for epoch in range(options.epochs):
        prm.train()
        order, losses = list(range(len(rows))), []
        rng.shuffle(order)
        for at in range(0, len(order), options.batch_size):
            some = [rows[number] for number in order[at : at + options.batch_size]]
            logits, targets = _logits(made, some, pad_id)
            loss = binary_cross_entropy_with_logits(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        prm.eval()
        held = prm_places(made, dev, pad_id)
        logits = torch.logit(held.features[:, 0], eps=1e-6)
        value = binary_cross_entropy_with_logits(logits, held.good).item()
        curve.append({"step": epoch + 1, "tokens": (epoch + 1) * len(rows), "loss": fmean(losses), "dev_loss": value})
        if best is None or value < best[0]:
            best = (value, copy.deepcopy(prm.state_dict()))
    assert best is not None
    prm.load_state_dict(best[1])
    return made, curve


def _logits(prm: Loaded, traces: Sequence[Labelled], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of "good" at all labelled places of some traces, and the labels."""
    rows, ats, targets = [], [], []
    for number, trace in enumerate(traces):
        rows.append(rows_of(trace, prm.backtrack_id, prm.context))
        for place, good in zip(trace.judged.places, trace.good, strict=True):
            if good is not None:
                ats.append((number, len(trace.prompt_ids) + place.at))
                targets.append(good)
    return read(prm, rows, ats, pad_id), torch.tensor(targets, device=prm.model.device)


def read(prm: Loaded, rows: list[dict], ats: Sequence[tuple[int, int]], pad_id: int) -> torch.Tensor:
    """Return the logit of "good" at (text, row) places of texts that are laid out, float32."""
    batch = TraceCollator(pad_id)(rows)
    inputs = {key: part.to(prm.model.device) for key, part in batch.items() if key != "labels"}
    states_BTH = prm.model.base_model(**inputs, use_cache=False).last_hidden_state
    numbers, places = zip(*ats, strict=True)
    logits_PV = prm.model.get_output_embeddings()(states_BTH[list(numbers), list(places)])
    about = prm.model.config.prm
    return (logits_PV[:, about["good"]] - logits_PV[:, about["bad"]]).float()


@torch.inference_mode()
def prm_places(prm: Loaded, traces: Sequence[Labelled], pad_id: int) -> Places:
    """Return the labelled places with P(good) as their only feature, trace by trace."""
    scores: dict[int, list[float]] = {}
    for numbers in batches(traces):
        for number in numbers:
            scores[number] = []
        some = [number for number in numbers if any(good is not None for good in traces[number].good)]
        if some:
            logits, _ = _logits(prm, [traces[number] for number in some], pad_id)
            found = iter(logits.sigmoid().tolist())
            for number in some:
                scores[number] = [next(found) for good in traces[number].good if good is not None]
    flat = [score for number in range(len(traces)) for score in scores[number]]
    return as_places(torch.tensor(flat)[:, None], traces)


def load_prm(folder: str | Path, model: Any) -> Loaded:
    """Load the PRM in a folder, or in its `prm/`. Raises UserError where there is none, or it has other ids."""
    path = Path(folder).expanduser()
    path = path / FOLDER if (path / FOLDER).is_dir() else path
    if not path.is_dir():
        raise UserError(f"{path} does not exist: train a model with train.stage=prm, or set judge to its folder")
    loaded = load(ModelArguments(name_or_path=str(path), device=str(model.device)), None)
    if not getattr(loaded.model.config, "prm", None):
        raise UserError(f"{path} holds no process reward model: train one with train.stage=prm")
    ours, theirs = (one.get_input_embeddings().weight.shape[0] for one in (model, loaded.model))
    if ours != theirs:
        raise UserError(f"{path} knows {theirs} ids, the model has {ours}: train a PRM with the model's tokenizer")
    return loaded
