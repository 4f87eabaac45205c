"""attention: how much later tokens look at what was erased; under block and rewind, the proof that they cannot."""

from collections.abc import Sequence

import torch

from llmhalluc.backtrack import erasures
from llmhalluc.eval.stats import clustered
from llmhalluc.extras.errors import UserError
from llmhalluc.interp.events import Sample
from llmhalluc.interp.load import Model, generations_of, model_of
from llmhalluc.interp.run import BASELINE, Row, Run, Stage, write_csv

COLUMNS = (
    "variant",
    "context",
    "layer",
    "samples",
    "problems",
    "mass_on_erased",
    "low",
    "high",
    "largest",
    "mass_if_even",
)
MOST_SAMPLES = 100


def attention(run: Run, variant: str) -> None:
    """Write attention.csv: by layer, the attention of tokens after an erasure to erased tokens and their BACKTRACKs.

    mass_if_even: what it would be if a row looked at all rows before it alike. Raises UserError for a model without
    BACKTRACK, and where nothing was erased.
    """
    samples = generations_of(run, variant, BASELINE)
    inputs, output = [run.path("generations", f"{variant}__baseline.jsonl")], run.path("analysis", "attention.csv")
    own = run.path("analysis", f"attention__{variant}.csv")
    stage = Stage(f"attention {variant}", inputs, {}, [own], [output])
    if run.is_done(stage):
        return
    model = model_of(run)
    if model.loaded.backtrack_id is None:
        raise UserError("attention looks at what BACKTRACK erased, and the model has no BACKTRACK token")
    erasing = [sample for sample in samples if sample["erasures"]][:MOST_SAMPLES]
    if not erasing:
        raise UserError(f"variant {variant} of run {run.folder.name} has no erasure: generate more (interp.samples)")
    rows = [{"variant": variant, "context": model.context} | row for row in masses(model, erasing)]
    write_csv(output, rows, COLUMNS, variant=variant)
    write_csv(own, rows, COLUMNS)
    run.mark_done(stage)


def masses(model: Model, samples: Sequence[Sample]) -> list[Row]:
    """Return the rows of attention.csv without their variant."""
    shares, even, largest = [], [], torch.zeros(model.sites.layers)
    for sample in samples:
        gone_QK = later_and_erased(sample, model.loaded.backtrack_id)
        looking, n = gone_QK.any(1), len(gone_QK)
        layers = model.attentions(model.rows(sample), n - 1)
        mass_LQ = torch.stack([(layer.mean(0).cpu() * gone_QK).sum(1)[looking] for layer in layers])
        largest = largest.maximum(mass_LQ.max(1).values)
        shares.append(mass_LQ.mean(1).tolist())
        seen = torch.arange(1, n + 1)[looking]
        even.append(float((gone_QK.sum(1)[looking] / seen).mean()))
    clusters = [sample["example_id"] for sample in samples]
    return [
        {"layer": layer, "samples": len(samples), "problems": len(set(clusters)), "mass_on_erased": one.mean,
         "low": max(one.low, 0.0), "high": min(one.high, 1.0), "largest": float(largest[layer]),
         "mass_if_even": sum(even) / len(even)}
        for layer, one in enumerate(clustered(shares, clusters))
    ]  # fmt: skip


def later_and_erased(sample: Sample, backtrack_id: int) -> torch.Tensor:
    """Return a boolean (T, T): query row i is that of a token written after the run of BACKTRACKs that erased row j.

    The BACKTRACKs themselves count as erased with their token.
    """
    ids, n_prompt = sample["completion_ids"], len(sample["prompt_ids"])
    n = n_prompt + len(ids)
    gone = torch.zeros(n, n, dtype=torch.bool)
    for one in erasures(ids, backtrack_id):
        end = one.at
        while end < len(ids) and ids[end] == backtrack_id:
            end += 1
        gone[n_prompt + end :, [n_prompt + one.token, n_prompt + one.at - 1]] = True
    return gone
