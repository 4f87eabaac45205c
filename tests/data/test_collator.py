"""Draws to batches: padding, packing, and an order that can be resumed."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.backtrack import CONTEXTS, IGNORE, labels, layout
from llmhalluc.data.collator import FIELDS, Draw, DrawSampler, TraceCollator, first_fit_decreasing

BACKTRACK, PAD = 9, 0
completions = st.lists(st.sampled_from([1, 2, 3, BACKTRACK]), min_size=1, max_size=12)


def trace(number: int, completion: list[int], context: str) -> dict[str, list[int]]:
    """A trace whose prompt says which one it is."""
    prompt = [100 + number]
    rows = layout(prompt, completion, BACKTRACK, context)
    return rows._asdict() | {"labels": labels(prompt, completion, BACKTRACK, "redirect")}


def seen(batch: dict[str, torch.Tensor]) -> dict[int, list]:
    """By the trace's number: each of its positions' id, label, place, and the ids and places it sees."""
    found: dict[int, list] = {}
    for row in range(len(batch["input_ids"])):
        ids, targets, places, until = (batch[name][row].tolist() for name in FIELDS)
        number = None
        for i, token in enumerate(ids):
            visible = [(ids[j], places[j]) for j in range(i + 1) if i < until[j]]
            if token == PAD:
                assert targets[i] == IGNORE
                assert visible == [(PAD, places[i])]
                continue
            number = token if token >= 100 else number
            found.setdefault(number, []).append((token, targets[i], places[i], visible))
    return found


@given(st.lists(completions, min_size=1, max_size=6), st.sampled_from(CONTEXTS), st.none() | st.integers(1, 40))
def test_packed_traces_see_train_and_stand_as_padded_ones(all_ids, context, max_length):
    traces = [trace(number, ids, context) for number, ids in enumerate(all_ids)]
    padded = TraceCollator(PAD)(traces)
    packed = TraceCollator(PAD, packing=True, max_length=max_length)(traces)
    assert seen(packed) == seen(padded)
    assert len(packed["input_ids"]) <= len(padded["input_ids"])
    assert packed["input_ids"].shape[1] <= max(max_length or 0, padded["input_ids"].shape[1])
    for batch in (padded, packed):
        assert {name: (t.dtype, t.shape) for name, t in batch.items()} == dict.fromkeys(
            FIELDS, (torch.int64, batch["labels"].shape)
        )


def test_the_examples_of_the_docstring():
    traces = [trace(0, [1], "soft"), trace(1, [1, 2], "soft")]
    padded = TraceCollator(PAD)(traces)
    assert padded["input_ids"].tolist() == [[100, 1, 0], [101, 1, 2]]
    assert padded["visible_until"].tolist() == [[2, 2, 3], [3, 3, 3]]
    packed = TraceCollator(PAD, packing=True, max_length=6)(traces)
    assert packed["input_ids"].tolist() == [[101, 1, 2, 100, 1]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert packed["visible_until"].tolist() == [[3, 3, 3, 5, 5]]
    assert packed["labels"].tolist() == [[IGNORE, 1, 2, IGNORE, 1]]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(20, 60))
def test_first_fit_decreasing_places_each_once_within_the_capacity(lengths, capacity):
    rows = first_fit_decreasing(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= capacity for row in rows)
    assert len(rows) <= 2 * -(-sum(lengths) // capacity)


@given(st.integers(1, 50), st.integers(0, 5), st.integers(0, 4), st.integers(0, 60))
def test_a_resumed_sampler_goes_on_where_it_stopped(size, seed, epoch, drawn):
    whole, resumed = (DrawSampler(size, seed, total=5 * size) for _ in range(2))
    for sampler in (whole, resumed):
        sampler.set_epoch(epoch)
    assert list(islice(resumed, drawn, None)) == list(whole)[drawn:]
    assert list(whole) == list(whole)
    assert len(whole) == size


@given(st.integers(2, 30), st.integers(0, 5))
def test_each_epoch_draws_every_record_once_and_progress_is_the_share_of_all_draws(size, seed):
    sampler, draws = DrawSampler(size, seed, total=3 * size), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        draws.append(list(sampler))
        assert sorted(draw.index for draw in draws[-1]) == list(range(size))
        assert {draw.epoch for draw in draws[-1]} == {epoch}
    assert [draw.progress for epoch in draws for draw in epoch] == pytest.approx(
        [i / (3 * size) for i in range(3 * size)]
    )
    sampler.set_epoch(7)
    assert {draw.progress for draw in sampler} == {1.0}


def test_the_order_differs_by_epoch_and_by_seed():
    orders = set()
    for seed in range(3):
        sampler = DrawSampler(40, seed, 120)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.add(tuple(draw.index for draw in sampler))
    assert len(orders) == 9
    assert Draw(1, 2, 0.5) == (1, 2, 0.5)
