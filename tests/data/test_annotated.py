"""Corrections, right first tokens and kept errors, against slow references."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import ERROR_LABELS, IGNORE, apply_backtracking
from llmhalluc.data.annotated import NONE, AnnotatedCollator, AnnotatedTraces, first_ids, since_backtracks
from llmhalluc.data.collator import Draw, TraceCollator
from llmhalluc.data.traces import TraceDataset
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.countdown import CountdownOptions
from llmhalluc.train.sft import RecordCollator, RecordDataset
from tests.data.toy import converter, erased_positions

B = 9  # BACKTRACK
RECORDS = TASKS["countdown"].generate(CountdownOptions(count=12), "train")


def annotated(records=RECORDS, name="countdown_backtrack", sets=True, **section) -> AnnotatedTraces:
    made = converter(name, **section)
    return AnnotatedTraces(TraceDataset(made, made.encode_batch(records), seed=1), sets=sets)


def slow_since(ids: list[int], replaced_only: bool) -> list[int]:
    """For each token look back for the run, and count again."""
    found = []
    for i, token in enumerate(ids):
        runs_end = max((j for j in range(i) if ids[j] == B), default=None)
        if token == B or runs_end is None or i in erased_positions(ids, B):
            found.append(NONE)
            continue
        run = 0
        while run <= runs_end and ids[runs_end - run] == B:
            run += 1
        distance = i - runs_end - 1
        found.append(distance if distance < run or not replaced_only else NONE)
    return found


@given(st.lists(st.sampled_from([1, 2, B]), max_size=12), st.booleans())
def test_corrections_are_what_a_look_back_finds(ids, replaced_only):
    assert since_backtracks(ids, B, replaced_only) == slow_since(ids, replaced_only)


def test_corrections_of_an_example():
    assert since_backtracks([1, 2, B, 3, 4], B) == [NONE, NONE, NONE, 0, 1]
    assert since_backtracks([1, 2, B, 3, 4], B, replaced_only=True) == [NONE, NONE, NONE, 0, NONE]
    assert since_backtracks([1, 2, B, 3, B, B, 4, 5, 6], B, True) == [NONE] * 6 + [0, 1, NONE]


def test_first_ids_are_those_of_every_right_move():
    made = converter("countdown_backtrack")
    task = TASKS["countdown"]
    several = 0
    for record in RECORDS:
        start = first_ids(task, made.tokens, record)
        clean, moves = made.encode(record)["completion_ids"], task.moves(record)
        at = 0
        for n, move in enumerate(moves):
            lead = made.delimiter + move.lstrip() if n == 0 else move
            right = {clean[at]}
            for other in task.next_moves(record, moves[:n]):
                assert task.rest([*moves[:n], other], record) is not None
                right.add(made.tokens.of(other, first=n == 0)[0])
            assert start.get(at, [clean[at]]) == sorted(right)
            several += at in start
            at += len(made.tokens.of(lead))
    assert several > len(RECORDS) / 2


@pytest.mark.parametrize("mode", ERROR_LABELS)
@settings(max_examples=15, deadline=None)
@given(epoch=st.integers(0, 50), index=st.integers(0, len(RECORDS) - 1))
def test_choices_stand_where_the_prefix_survives_and_the_target_is_the_clean_token(mode, epoch, index):
    dataset = annotated(error_labels=mode)
    backtrack_id, made = dataset.converter.backtrack_id, dataset.converter
    item, (prompt, ids) = dataset[Draw(epoch, index, 1.0)], dataset.trace(epoch, index, 1.0)
    clean, start = apply_backtracking(ids, backtrack_id), first_ids(made.task, made.tokens, RECORDS[index])
    expected = {}
    for i, token in enumerate(ids):
        standing = apply_backtracking(ids[:i], backtrack_id)
        at, target = len(standing), item["labels"][len(prompt) + i]
        # The standing tokens are never erased later where the rest of the trace erases no further than here.
        depths = [len(apply_backtracking(ids[:j], backtrack_id)) for j in range(i, len(ids) + 1)]
        if token != backtrack_id and min(depths) >= at and at in start and target == clean[at]:
            expected[len(prompt) + i] = start[at]
    assert item["choices"] == expected
    assert set(start) <= {len(apply_backtracking(ids[: i - len(prompt)], backtrack_id)) for i in expected}


@pytest.mark.parametrize("name", ["countdown_backtrack", "sudoku_backtrack"])
def test_annotated_items_are_the_items_and_more(name):
    records = (
        RECORDS if name.startswith("countdown") else TASKS["sudoku"].generate(TASKS["sudoku"].options(count=5), "train")
    )
    made = converter(name, context="block", error_labels="redirect")
    plain = TraceDataset(made, made.encode_batch(records), seed=1)
    for index in range(len(plain)):
        item = AnnotatedTraces(plain)[Draw(3, index, 0.5)]
        assert plain[Draw(3, index, 0.5)] == {
            key: value for key, value in item.items() if key not in ("after", "choices")
        }
        assert item["choices"] == {} and len(item["after"]) == len(item["input_ids"])


@pytest.mark.parametrize("packing", [False, True])
def test_a_batch_says_of_each_place_what_the_items_say(packing):
    dataset = RecordDataset(annotated(error_labels="redirect", context="rewind"))
    rows = [dataset[i] for i in range(6)]
    batch = AnnotatedCollator(RecordCollator(TraceCollator(0, packing, 400)))(rows)
    seen = {(row, column): ids for row, column, *ids in batch["choices"].tolist()}
    assert len(seen) == len(batch["choices"])
    spans = []  # of each trace: its row and where it starts, found by its labels and tokens
    for item, (row, column) in product(rows, ((r, c) for r in range(len(batch["labels"])) for c in range(400))):
        n = len(item["input_ids"])
        same = all(
            batch[name][row, column : column + n].tolist() == item[name]
            for name in ("input_ids", "labels", "position_ids")
        )
        if same:
            spans.append((item, row, column))
    assert len(spans) == len(rows)
    found, left = {}, batch["after"].clone()
    for item, row, column in spans:
        n = len(item["input_ids"])
        assert left[row, column : column + n].tolist() == item["after"]
        left[row, column : column + n] = NONE
        found |= {(row, column + at): ids for at, ids in item["choices"].items()}
    assert (left == NONE).all() and found
    assert {place: [i for i in ids if i != NONE] for place, ids in seen.items()} == found


def test_rows_without_annotations_are_collated_as_they_are():
    made = converter("countdown")
    rows = [RecordDataset(TraceDataset(made, made.encode_batch(RECORDS), seed=1))[i] for i in range(3)]
    plain, other = (kind(0) for kind in (TraceCollator, TraceCollator))
    batch = AnnotatedCollator(RecordCollator(other))(rows)
    for name, value in RecordCollator(plain)(rows).items():
        assert torch.equal(value, batch[name])
    assert "after" not in batch


def test_kept_records_keep_their_first_draw_and_others_are_clean():
    dataset = annotated()
    firsts = [dataset.trace(0, index, 1.0) for index in range(len(dataset))]
    dataset.kept = {0, 2}
    for epoch, index in product(range(3), range(len(dataset))):
        expected = firsts[index] if index in dataset.kept else dataset.clean(index)
        assert dataset.trace(epoch, index, 0.3) == expected
    assert IGNORE not in dataset.clean(1)[1]
