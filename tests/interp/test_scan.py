"""A planted circuit is found and its null says so; where none is, nothing is."""

import random

import numpy as np
import pytest
import torch

from llmhalluc.interp.ablate import Ablations, collect_references, random_sets
from llmhalluc.interp.events import Point, Points
from llmhalluc.interp.importance import Effects, choose_layers, importance, split_off
from llmhalluc.interp.packed import Edit
from llmhalluc.interp.scan import attributions, effects
from tests.interp.models import causal_lm, sample, some_ids, taken_apart

ERROR, TRIGGER = 9, 7


def planted(layer: int | None, layers: int = 12, seed: int = 0):
    """A model whose MLP of one layer alone, where it reads ERROR, writes the direction of TRIGGER."""
    model = causal_lm("llama", layers=layers, seed=seed)
    for block in model.model.layers:
        for parameter in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            parameter.data *= 0.02
    if layer is not None:
        mlp = model.model.layers[layer].mlp
        reads = torch.nn.functional.normalize(model.model.embed_tokens.weight.data[ERROR], dim=0)
        mlp.gate_proj.weight.data[0] = mlp.up_proj.weight.data[0] = 2 * reads
        mlp.down_proj.weight.data[:, 0] = 0.01 * torch.nn.functional.normalize(
            model.lm_head.weight.data[TRIGGER], dim=0
        )
    return taken_apart(model)


def texts(seed: int, problems: int = 20) -> Points:
    """An event a problem, after ERROR, and a control elsewhere."""
    rng, samples, events, controls = random.Random(seed), [], [], []
    for number in range(problems):
        ids = [rng.randrange(10, 64) for _ in range(14)]
        at = rng.randrange(4, 12)
        ids[at : at + 2] = [ERROR, TRIGGER]
        samples.append(sample(some_ids(seed + number, 3), ids, f"test-{number}"))
        events.append(Point(number, 3 + at, TRIGGER, number))
        controls.append(Point(number, 4, TRIGGER, number))
    return Points(samples, events, controls)


def scanned(model, points, method="zero", seed=0):
    rng = random.Random(seed)
    offered = [(model.rows(one), range(2, 16)) for one in points.samples]
    references = collect_references(model.sites, offered, rng)
    edits = Ablations(method, [[site] for site in model.sites.components], references)
    both = [effects(model, points.samples, own, edits) for own in (points.events, points.controls)]
    return both, importance(*both, points.problems, [True] * len(points.events)), references


@pytest.mark.parametrize("method", ["zero", "mean", "resample", "scale"])
def test_a_planted_circuit_is_ranked_first_and_the_null_says_so(method):
    model, points = planted(5), texts(1)
    _, found, references = scanned(model, points, method)
    components = model.sites.components
    best = components[int(np.argmax(found["contrast"]))]
    assert best == ("mlp", 5)
    assert found["specific"][components.index(("mlp", 5))] == 1
    assert found["effect_significant"][components.index(("mlp", 5))] == 1
    rows = [
        {"method": method, "split": "choose", "kind": kind, "layer": layer}
        | {name: found[name][k] for name in ("effect", "contrast", "token_contrast")}
        for k, (kind, layer) in enumerate(components)
    ]
    assert choose_layers(rows, method, 1) == [5]
    rng, chosen = random.Random(0), [("attn", 5), ("mlp", 5)]
    sets = [chosen, *random_sets(model.sites, chosen, 100, rng)]
    edits = Ablations(method, sets, references)
    means = effects(model, points.samples, points.events, edits).target.mean(0)
    assert len(sets) == 101 and means[0] > max(means[1:])


def without_circuit(seed: int, problems: int = 12) -> Points:
    """TRIGGER at random places, after whatever stands there."""
    points, rng = texts(seed, problems), random.Random(-seed)
    for event, one in zip(points.events, points.samples, strict=True):
        one["completion_ids"][event.row - 3] = rng.randrange(10, 64)
    return points


def significant(seed: int) -> bool:
    """Whether a scan of a model without a circuit calls any component specific to taking back."""
    _, found, _ = scanned(planted(None, layers=4, seed=seed), without_circuit(seed), seed=seed)
    return any(found["specific"])


def test_without_a_circuit_hardly_a_seed_finds_one():
    assert sum(significant(seed) for seed in range(8)) <= 1


@pytest.mark.slow
def test_without_a_circuit_at_most_5_of_100_seeds_find_one():
    assert sum(significant(seed) for seed in range(100)) <= 5


def test_effects_are_those_of_a_forward_by_hand():
    model, points = planted(1, layers=2), texts(3, 4)
    edits = [(Edit(site),) for site in model.sites.components]
    found = effects(model, points.samples, points.events, lambda _: edits)
    point = points.events[2]
    ids = torch.tensor([(points.samples[2]["prompt_ids"] + points.samples[2]["completion_ids"])[: point.row + 1]])
    base = model.loaded.model(ids).logits[0, -1].log_softmax(-1)
    for number, (kind, layer) in enumerate(model.sites.components):
        block = model.loaded.model.model.layers[layer]
        weight = (block.self_attn.o_proj if kind == "attn" else block.mlp.down_proj).weight
        # At the last row alone: what the row before wrote still stands in keys and values.
        hook = (block.self_attn if kind == "attn" else block.mlp).register_forward_hook(
            lambda module, args, output: zero_last(output)
        )
        without = model.loaded.model(ids).logits[0, -1].log_softmax(-1)
        hook.remove()
        assert weight.shape[0] == 32
        assert found.target[2, number] == pytest.approx(float((base - without)[TRIGGER].detach()), abs=1e-9)
        assert found.written[2, number] == found.target[2, number]  # the trigger was written there


def zero_last(output):
    first = output[0] if isinstance(output, tuple) else output
    first = torch.cat([first[:, :-1], torch.zeros_like(first[:, -1:])], 1)
    return (first, *output[1:]) if isinstance(output, tuple) else first


def test_attribution_patching_agrees_with_the_exact_effects():
    model, points = planted(1, layers=3), texts(4, 6)
    both, _, references = scanned(model, points, "scale")
    guess = attributions(model, points, references, 0.5)["scale"]
    assert np.corrcoef(guess.ravel(), both[0].target.ravel())[0, 1] > 0.9


def test_an_event_without_a_control_counts_for_the_effect_and_not_for_the_contrast():
    at_events = Effects(np.array([[1.0], [3.0], [8.0]]), np.zeros((3, 1)))
    at_others = Effects(np.array([[0.5], [np.nan], [1.5]]), np.array([[1.0], [np.nan], [2.0]]))
    found = importance(at_events, at_others, ["a", "b", "c"], [True] * 3)
    assert found["effect"] == [4.0] and found["contrast"] == [3.5] and found["token_contrast"] == [3.0]
    assert (found["control_effect"], found["token_effect"], found["problems"]) == ([1.0], [1.5], [3])
    none = importance(at_events, at_others, ["a", "b", "c"], [False, True, False])
    assert none["effect"] == [3.0] and not {"contrast", "specific", "control_effect"} & none.keys()


def test_random_sets_are_shaped_as_the_chosen_one_and_apart_from_it():
    sites = planted(None).sites
    chosen = [("attn", 3), ("mlp", 3), ("attn", 7), ("mlp", 7)]
    found = random_sets(sites, chosen, 150, random.Random(1))
    assert len({frozenset(one) for one in found}) == 150
    for one in found:
        assert not set(one) & set(chosen)
        assert [kind for kind, _ in one].count("attn") == [kind for kind, _ in one].count("mlp") == 2
    few = random_sets(sites, [("attn", 0), ("mlp", 0)], 500, random.Random(1))
    assert len(few) == 121  # all that there are
    assert (
        random_sets(sites, [(kind, layer) for layer in range(8) for kind in ("attn", "mlp")], 9, random.Random(1)) == []
    )


def test_problems_for_the_test_are_others_than_those_that_choose():
    names = [f"p{number}" for number in range(10)] * 2
    found = split_off(names, 0.3, 0)
    assert len(found) == 3 and found < set(names) and found == split_off(names, 0.3, 0)
    assert split_off(["a", "a"], 0.5, 0) == set() and len(split_off(["a", "b"], 0.99, 0)) == 1
