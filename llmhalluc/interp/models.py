"""compare-models: the same events, and the same direction, in the tuned and the untuned model."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from safetensors.torch import load_file

from llmhalluc.eval.stats import clustered, holm
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams import parser
from llmhalluc.interp.ablate import selection
from llmhalluc.interp.detect import points_of
from llmhalluc.interp.directions import RESPONSE, Direction, dose_response
from llmhalluc.interp.events import Point, Points, Sample
from llmhalluc.interp.importance import finite
from llmhalluc.interp.lens import Lens, read
from llmhalluc.interp.load import Model, load_model, model_of
from llmhalluc.interp.run import Run, Stage, write_csv

COLUMNS = ("variant", "layer", "events", "problems", "tuned_logprob", "base_logprob", "difference", "low", "high", "p",
           "significant", "direction_cosine")  # fmt: skip
DOSE_COLUMNS = ("variant", "model", "layer", *RESPONSE)


def compare_models(run: Run, variant: str) -> None:
    """Write model_comparison.csv and model_doses.csv. Raises UserError without interp.base, before steer, and where the
    two models do not share ids or width.
    """
    config = run.config
    if not config.interp.base:
        raise UserError("interp.base is empty: name the untuned model, such as {name_or_path: FOLDER}")
    inputs = [run.path("analysis", f"direction__{variant}.safetensors")]
    run.need(inputs[0], f"steer --variant {variant}")
    outputs = [run.path("analysis", name) for name in ("model_comparison.csv", "model_doses.csv")]
    settings = {"base": config.interp.base, "doses": config.scan.doses}
    points = points_of(run, variant)
    settings["points"] = points.digest
    samples, events, problems = points.samples, points.events, points.problems
    stage = Stage(f"compare-models {variant}", inputs, settings, outputs)
    if run.is_done(stage):
        return
    tuned, base = model_of(run), load_base(run)
    if tuned.sites.width != base.sites.width or tuned.sites.layers != base.sites.layers:
        raise UserError(
            f"interp.base has {base.sites.layers} layers of width {base.sites.width}, the model has "
            f"{tuned.sites.layers} of {tuned.sites.width}: name the model that it was trained from"
        )
    most = max(max(sample["prompt_ids"] + sample["completion_ids"]) for sample in samples)
    if most >= base.sites.head.weight.shape[0]:
        raise UserError(f"interp.base has no row for the id {most}: add the token to it, or name another model")
    found = {name: _logprobs(model, samples, events) for name, model in (("tuned", tuned), ("base", base))}
    cosines = _cosines(tuned, base, points.paired())
    estimates = clustered((found["tuned"] - found["base"]).numpy(), problems)
    fallen = holm([one.p for one in estimates])
    rows = []
    for layer, (one, is_fallen) in enumerate(zip(estimates, fallen, strict=True)):
        means = {f"{name}_logprob": float(values[:, layer].mean()) for name, values in found.items()}
        place = {"variant": variant, "layer": layer, "events": len(events), "problems": len(set(problems))}
        spread = {"low": finite(one.low), "high": finite(one.high), "p": one.p, "significant": int(is_fallen)}
        cosine = {"direction_cosine": float(cosines[layer])}
        rows.append(place | means | {"difference": one.mean} | spread | cosine)
    write_csv(outputs[0], rows, COLUMNS)
    direction = load_file(inputs[0])["direction"]
    layer, paired = selection(run, variant)["layers"][0], points.paired()
    doses = []
    for name, model in (("tuned", tuned), ("base", base)):
        vector = direction[layer].to(model.sites.model.device, model.sites.model.dtype)
        own = dose_response(run, model, paired, paired.controls, Direction(layer, vector))
        doses += [{"variant": variant, "model": name, "layer": layer} | row for row in own]
    write_csv(outputs[1], doses, DOSE_COLUMNS)
    run.mark_done(stage)


def load_base(run: Run) -> Model:
    """Load the model of `model` under `interp.base`. Raises UserError as `load_model`."""
    config = run.config
    plain = parser.resolved(config.config, ("model",))
    plain["model"] |= config.interp.base
    made = replace(config, config=replace(config.config, model=parser.build(plain, ("model",)).model))
    return load_model(made)


def _logprobs(model: Model, samples: Sequence[Sample], points: Sequence[Point]) -> torch.Tensor:
    """(points, L): the logit lens's log-probability of each point's target."""
    targets = [point.target for point in points]
    found = read(model.sites, Lens("logit"), model.states(samples, points), targets, targets[:1])
    return torch.tensor([[reading.logprob for reading in readings] for readings in found])


def _cosines(tuned: Model, base: Model, points: Points) -> torch.Tensor:
    """(L): between the two models' differences of means, event less control."""
    means = []
    for model in (tuned, base):
        sides = [model.states(points.samples, own) for own in (points.events, points.controls)]
        means.append((sides[0] - sides[1]).mean(1).double())
    return torch.nn.functional.cosine_similarity(means[0], means[1], dim=1)
