"""logit-lens: at events and their controls, what every layer would say of the event's onset id."""

from pathlib import Path
from random import Random
from typing import Any

from llmhalluc.interp import lens as lenses
from llmhalluc.interp.detect import points_of
from llmhalluc.interp.events import Sample, offered_rows
from llmhalluc.interp.load import Model, model_of
from llmhalluc.interp.run import Run, Stage, write_csv

COLUMNS = (
    "variant", "lens", "event", "kind", "example_id", "sample_id", "pos_in_full", "target_id", "layer", "logit",
    "logprob", "rank", "trigger_mass", "kl_to_final",
)  # fmt: skip


def logit_lens(run: Run, variant: str) -> None:
    """Write logit_lens.csv of a variant, and the lens where it was fitted. Raises UserError before detect-events."""
    config = run.config
    inputs = [run.path("generations", f"{variant}__baseline.jsonl")]
    settings = {key: config.plain()["scan"][key] for key in ("lens", "lens_file", "lens_rows", "lens_steps")}
    settings["seed"] = config.interp.seed
    output = run.path("analysis", "logit_lens.csv")
    points = points_of(run, variant)
    settings["points"] = points.digest
    fitted = run.path("analysis", f"lens__{variant}.safetensors")
    stage = Stage(f"logit-lens {variant}", inputs, settings, [fitted], [output])
    if run.is_done(stage):
        return
    model = model_of(run)
    lens = the_lens(run, model, points.samples)
    lenses.save(lens, fitted)
    triggers = sorted({point.target for point in points.events})
    rows: list[dict[str, Any]] = []
    for kind, own in (("event", points.events), ("control", points.paired().controls)):
        states = model.states(points.samples, own) if own else None
        found = lenses.read(model.sites, lens, states, [point.target for point in own], triggers) if own else []
        for point, readings in zip(own, found, strict=True):
            sample = points.samples[point.at]
            place = {"variant": variant, "lens": lens.kind, "event": point.event, "kind": kind}
            place |= {"example_id": sample["example_id"], "sample_id": sample["sample_id"], "pos_in_full": point.row}
            for layer, reading in enumerate(readings):
                values = zip(COLUMNS[9:], reading, strict=True)
                rows.append(place | {"target_id": point.target, "layer": layer} | dict(values))
    write_csv(output, rows, COLUMNS, variant=variant)
    run.mark_done(stage)


def the_lens(run: Run, model: Model, samples: list[Sample]) -> lenses.Lens:
    """Return the lens of scan.lens: read from scan.lens_file, or fitted on rows of the samples."""
    scan, rng = run.config.scan, Random(run.config.interp.seed)
    if scan.lens_file is not None:
        return lenses.load(Path(scan.lens_file).expanduser(), model.sites)
    rows = [(at, row) for at, sample in enumerate(samples) for row in offered_rows(sample)]
    chosen = sorted(rng.sample(rows, min(scan.lens_rows, len(rows))))
    by_sample: dict[int, list[int]] = {}
    for at, row in chosen:
        by_sample.setdefault(at, []).append(row)
    texts = [(model.rows(samples[at]), own) for at, own in by_sample.items()]
    return lenses.fit(scan.lens, model.sites, texts, scan.lens_steps)
