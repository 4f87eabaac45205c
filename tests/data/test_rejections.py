"""Records of what was erased: hand-made traces, the law that ties them to redirect, samples of run_eval, refusals."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import CONTEXTS, IGNORE, Tape, labels
from llmhalluc.data.collator import Draw
from llmhalluc.data.manager import load_datasets
from llmhalluc.data.rejections import RejectionDataset, merged, rejections, rejections_of
from llmhalluc.data.selfgen import tokenizer_fingerprint
from llmhalluc.decoding.sequence import Erasure, Trace
from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments
from tests.data.toy import bpe_tokenizer

BT = bpe_tokenizer().convert_tokens_to_ids(BACKTRACK_TOKEN)
A, B, C, D, X, Y = range(40, 46)


def short(records) -> list[tuple]:
    return [(one["prompt_ids"], one["rejected"], one["chosen"], one["source"]) for one in records]


@pytest.mark.parametrize(
    ("ids", "events", "expected"),
    [
        ([A, B], [], []),
        ([A, BT, B], [], [([1], A, [B], "BACKTRACK")]),
        # a run of two erases two tokens and rejects the first
        ([X, A, B, BT, BT, C], [], [([1, X], A, [C], "BACKTRACK")]),
        # two tries at a place: both are rejected for what survived there
        ([X, A, BT, B, BT, C], [], [([1, X], A, [C], "BACKTRACK"), ([1, X, A, BT], B, [C], "BACKTRACK")]),
        # nested: b was taken back within an error that was taken back too, so nothing stands in its place
        ([X, A, B, BT, C, BT, BT, D], [], [([1, X], A, [D], "BACKTRACK")]),
        # the place itself was taken back later
        ([X, A, BT, B, BT, BT, Y], [], [([1], X, [Y], "BACKTRACK")]),
        # nothing came after it, the same came after it
        ([X, A, BT], [], []),
        ([X, A, BT, A], [], []),
        # an operator's erasures leave no row behind
        ([X, A, B, C], [(3, 2, "rule")], [([1, X], A, [C], "rule")]),
        ([X, A, B, C], [(2, 1, "rule"), (3, 1, "rule")], [([1, X], A, [C], "rule"), ([1, X], B, [C], "rule")]),
        # two wishes after one token; of both kinds in turn
        ([X, A, B, C], [(3, 1, "rule"), (3, 1, "other")], [([1, X], A, [C], "other")]),
        ([X, A, BT, B, C], [(3, 1, "BACKTRACK"), (4, 1, "rule")],
         [([1, X], A, [C], "BACKTRACK"), ([1, X, A, BT], B, [C], "rule")]),
        ([A, B, BT, C], [(3, 1, "BACKTRACK"), (4, 2, "rule")], []),
    ],
)  # fmt: skip
def test_records_of_traces_made_by_hand(ids, events, expected):
    trace = Trace([1], ids, [], 0, "eos", events=[Erasure(*event) for event in events])
    assert short(rejections_of(trace, BT)) == expected
    assert rejections([1], ids, [list(event) for event in events], BT) == rejections_of(trace, BT)


def test_the_prefix_is_what_the_model_saw_in_its_context():
    """After x, a was taken back, and then b: rewind leaves nothing of a, in block the next try sees it."""
    ids = [X, A, BT, B, BT, C, D, BT, Y]
    prefixes = {
        "soft": [[1, X], [1, X, A, BT], [1, X, A, BT, B, BT, C]],
        "block": [[1, X], [1, X, A, BT], [1, X, C]],
        "rewind": [[1, X], [1, X], [1, X, C]],
    }
    for context, expected in prefixes.items():
        found = short(rejections([1], ids, [], BT, context))
        assert [(prompt, token) for prompt, token, _, _ in found] == list(zip(expected, (A, B, D), strict=True))


def test_without_a_backtrack_operators_alone_erase():
    assert short(rejections([1], [X, A, B], [(2, 1, "rule")], None)) == [([1, X], A, [B], "rule")]


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.sampled_from([A, B, C, BT]), max_size=14),
    wishes=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 3)), max_size=3),
    context=st.sampled_from(CONTEXTS),
)
def test_every_record_is_a_place_of_the_final_text(ids, wishes, context):
    """Its prefix is what a tape sees there, and the redirected label of the erased token is what is chosen."""
    tape, events, seen, offered = Tape([1], BT, context), [], {}, []
    for i, token in enumerate(ids):
        if token == BT and not tape.surviving:
            return  # decoding offers none
        seen[i] = [*tape.columns]
        offered.append(len(tape.surviving))
        tape.feed(token)
        for at, count in wishes:
            if at == i + 1 and token != BT and len(tape.surviving) >= count:
                tape.erase(count)
                events.append((at, count, "rule"))
    final = tape.surviving
    found = rejections([1], ids, events, BT, context)
    for record in found:
        places = [i for i, token in enumerate(ids) if token == record["rejected"] and seen[i] == record["prompt_ids"]]
        assert any(final[offered[i]] in record["chosen"] for i in places if offered[i] < len(final))
        assert record["rejected"] not in record["chosen"]
    if not events:
        redirected = labels([1], ids, BT, "redirect")[1:]
        pairs = {(tuple(seen[i]), token, target) for i, (token, target) in enumerate(zip(ids, redirected, strict=True))
                 if target not in (IGNORE, token)}  # fmt: skip
        assert pairs == {(tuple(r["prompt_ids"]), r["rejected"], one) for r in found for one in r["chosen"]}


def test_records_of_one_place_are_merged():
    records = [
        {"prompt_ids": [1, 2], "rejected": A, "chosen": [B], "source": "rule"},
        {"prompt_ids": [1], "rejected": A, "chosen": [B], "source": "rule"},
        {"prompt_ids": [1, 2], "rejected": A, "chosen": [C, B], "source": "BACKTRACK"},
        {"prompt_ids": [1, 2], "rejected": B, "chosen": [A], "source": "rule"},
    ]
    before = json.dumps(records)
    assert [(r["prompt_ids"], r["rejected"], r["chosen"]) for r in merged(records)] == [
        ([1, 2], A, [B, C]), ([1], A, [B]), ([1, 2], B, [A]),
    ]  # fmt: skip
    assert json.dumps(records) == before


def load(path: Path | str, context: str = "soft", **data):
    arguments = DataArguments(converter="rejections", dataset=str(path), **data)
    return load_datasets(arguments, BacktrackArguments(context=context), bpe_tokenizer(), BT, 0)[0]


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ready_records_become_places(tmp_path):
    rows = [
        {"prompt_ids": [1, X, A, BT, Y], "rejected": B, "chosen": [C], "source": "rule", "note": "mine"},
        {"prompt_ids": [1, X, A, BT, Y], "rejected": B, "chosen": [D], "source": None, "note": None},
        {"prompt_ids": [1], "rejected": A, "chosen": [B], "source": "rule", "note": None},
    ]
    places = RejectionDataset(load(write(tmp_path / "r.jsonl", rows), "block"))
    assert len(places) == 2 and places.mean_length() == 3
    assert places[0] == places[Draw(3, 0, 0.5)] == {
        "input_ids": [1, X, A, BT, Y], "position_ids": [0, 1, 2, 3, 2], "visible_until": [5, 5, 4, 4, 5],
        "labels": [IGNORE] * 4 + [B], "chosen": [C, D],
    }  # fmt: skip
    assert len(RejectionDataset(load(tmp_path / "r.jsonl", max_length=3))) == 1


SAMPLES = [
    {"doc_id": 0, "doc": {"q": 1}, "prompt_ids": [1], "completion_ids": [X, A, BT, B, BT, C],
     "events": [[3, 1, "BACKTRACK"], [5, 1, "BACKTRACK"]]},
    {"doc_id": 1, "doc": {"q": "two"}, "prompt_ids": [1, 2], "completion_ids": [X, A, B],
     "events": [[2, 1, "banned_phrases"]]},
    {"doc_id": 2, "doc": None, "prompt_ids": None, "completion_ids": None, "events": None},
]  # fmt: skip


def evaluated(folder: Path, files: dict[str, str], name: str = "samples_default_a_task.jsonl", samples=SAMPLES) -> Path:
    """What run_eval leaves: the samples, and run.json beside them."""
    write(folder / name, samples)
    (folder / "run.json").write_text(json.dumps({"config": {"eval": {"tasks": ["a/task"], "data_files": files}}}))
    return folder / name


def test_samples_of_a_training_file_are_read_as_they_are(tmp_path):
    path = evaluated(tmp_path / "sampled", {"a/task": "data/train.jsonl"})
    found = RejectionDataset(load(path, "block")).records
    assert [(r["prompt_ids"], r["rejected"], r["chosen"], r["source"]) for r in found] == [
        ([1, X], A, [C], "BACKTRACK"), ([1, X, A, BT], B, [C], "BACKTRACK"), ([1, 2, X], A, [B], "banned_phrases"),
    ]  # fmt: skip
    rewound = RejectionDataset(load(path, "rewind")).records
    assert [r["prompt_ids"] for r in rewound] == [[1, X], [1, X], [1, 2, X]]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "samples of a task's own test data"),
        ({"other": "train.jsonl"}, "samples of a task's own test data"),
        ({"a/task": "data/test.jsonl"}, "test is an evaluation split"),
        ({"task": "train.jsonl", "a/task": "data/validation.jsonl"}, "validation is an evaluation split"),
    ],
)
def test_law8_samples_of_an_evaluation_do_not_train(tmp_path, files, sentence):
    path = evaluated(tmp_path / "sampled", files)
    with pytest.raises(UserError, match=sentence):
        load(path)
    (tmp_path / "sampled/run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json does not exist: name what run_eval wrote"):
        load(path)
    with pytest.raises(UserError, match="evaluation split"):  # by the folder's name alone
        load(evaluated(tmp_path / "eval", {"a/task": "train.jsonl"}))


def test_law8_rejections_of_run_selfgen_come_from_training_problems_of_this_tokenizer(tmp_path):
    path = write(tmp_path / "rejections.jsonl", [{"prompt_ids": [1], "rejected": A, "chosen": [B], "source": "rule"}])
    about = {"tokenizer": tokenizer_fingerprint(bpe_tokenizer(), BT), "model": "m"}
    for change, problem in (({}, None), ({"tokenizer": "x"}, "another tokenizer"), ({"split": "test"}, "evaluation")):
        problems = {"dataset": "tasks.jsonl", "split": change.get("split", "train")}
        (tmp_path / "selfgen.json").write_text(json.dumps(about | change | {"problems": problems}))
        if problem is None:
            assert len(RejectionDataset(load(path))) == 1
        else:
            with pytest.raises(UserError, match=problem):
                load(path)


def test_samples_whose_events_do_not_fit_are_refused(tmp_path):
    broken = [SAMPLES[1] | {"events": [[2, 9, "rule"]]}]
    with pytest.raises(UserError, match="erase what its completion_ids do not hold"):
        load(evaluated(tmp_path / "sampled", {"a/task": "train.jsonl"}, samples=broken))


def test_traces_that_took_nothing_back_are_refused(tmp_path):
    plain = [SAMPLES[1] | {"events": []}]
    with pytest.raises(UserError, match="holds no rejection"):
        load(evaluated(tmp_path / "sampled", {"a/task": "train.jsonl"}, samples=plain))
