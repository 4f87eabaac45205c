"""Pairs: what the shared part, chosen and rejected hold, what a draw depends on, what is refused."""

import json
import re
from functools import cache
from itertools import product
from random import Random

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.data.collator import Draw
from llmhalluc.data.dpo import PairDataset
from llmhalluc.data.manager import load_datasets, load_eval_dataset, load_records
from llmhalluc.data.pairs import BacktrackDPOConverter
from llmhalluc.data.selfgen import tokenizer_fingerprint
from llmhalluc.data.traces import TraceDataset
from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments
from llmhalluc.tasks.sudoku import text as sudoku
from tests.data.toy import GSM8K, QA, bpe_tokenizer, sudoku_tokenizer

EOS = bpe_tokenizer().eos_token_id
BACKTRACK = bpe_tokenizer().convert_tokens_to_ids(BACKTRACK_TOKEN)
OWN = [  # the second sample stopped where its only wrong step ends; the third was right
    {
        "prompt_ids": [1, 9],
        "prefix_ids": [10, 11],
        "own_steps": [[20, 21], [22], [23, EOS]],
        "right_ids": [12, 13, EOS],
    },
    {"prompt_ids": [1, 8], "prefix_ids": [], "own_steps": [[30]], "right_ids": [14, EOS]},
    {"prompt_ids": [1, 7], "prefix_ids": [15], "own_steps": [], "right_ids": [16, EOS]},
]
SOURCES = ("own", "sudoku", "math", "text")
sections = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["random", "shuffled", "digits"]),
        "run_length": st.sampled_from(["uniform", "geometric"]),
        "max_run": st.integers(1, 12),
        "nesting": st.sampled_from([0.0, 0.5, 0.9]),
        "curriculum": st.sampled_from(["none", "linear"]),
    }
)


@pytest.fixture(scope="session")
def own_file(tmp_path_factory) -> str:
    """What run_selfgen would have written."""
    folder = tmp_path_factory.mktemp("selfgen")
    (folder / "traces.jsonl").write_text("".join(json.dumps({"problem": "p", **record}) + "\n" for record in OWN))
    fingerprint = tokenizer_fingerprint(bpe_tokenizer(), BACKTRACK)
    about = {"tokenizer": fingerprint, "model": "m", "problems": {"dataset": "gsm8k", "split": "train"}}
    (folder / "selfgen.json").write_text(json.dumps(about))
    return str(folder / "traces.jsonl")


@cache
def records(source: str) -> list[dict]:
    if source == "sudoku":
        return load_records(DataArguments(task={"count": 60}), "train").to_list()
    return {"math": GSM8K, "text": QA, "own": OWN}[source]


def pairs(kind: str, own_file: str = "", seed: int = 0, max_length: int | None = None, **section) -> PairDataset:
    """The pairs of the records of a source; `section` are keys of `backtrack`."""
    tokenizer = sudoku_tokenizer() if kind == "sudoku" else bpe_tokenizer()
    data = DataArguments(converter="backtrack_dpo", dataset=own_file if kind == "own" else "records.jsonl")
    backtrack_id = tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN)
    made = BacktrackDPOConverter(tokenizer, backtrack_id, data, BacktrackArguments(**section))
    return PairDataset(TraceDataset(made, made.encode_batch(records(kind)), seed, max_length))


@pytest.mark.parametrize("source", SOURCES)
@settings(max_examples=25, deadline=None)
@given(section=sections, seed=st.integers(0, 99), epoch=st.integers(0, 9), progress=st.floats(0, 1))
def test_law1_chosen_erases_the_error_and_rejected_keeps_it(own_file, source, section, seed, epoch, progress):
    dataset = pairs(source, own_file, seed, **section)
    tokenizer, backtrack_id = dataset.converter.tokenizer, dataset.converter.backtrack_id
    for index, encoded in enumerate(dataset.encoded):
        clean = list(encoded["completion_ids"])
        prompt, shared, chosen, rejected = dataset.pair(epoch, index, progress)
        assert prompt == list(encoded["prompt_ids"])
        assert apply_backtracking(shared + chosen, backtrack_id) == clean
        wrong = apply_backtracking(shared, backtrack_id)
        n_right = next(i for i, (a, b) in enumerate(zip(wrong, clean, strict=False)) if a != b)
        n_wrong = len(wrong) - n_right
        # Chosen opens with the BACKTRACKs of the whole error (more if it began like the right text), and has no more.
        n_backtracks = chosen.count(backtrack_id)
        if source == "sudoku":  # a search turns back one move at a time
            assert chosen[0] == backtrack_id and n_wrong > 0
        else:
            assert n_backtracks >= n_wrong > 0 and chosen[:n_backtracks] == [backtrack_id] * n_backtracks
            assert n_backtracks == n_wrong or source == "own"
        # Rejected erases nothing, and the wrong text stands to the end.
        assert backtrack_id not in rejected
        assert apply_backtracking(shared + rejected, backtrack_id)[: len(wrong)] == wrong
        for side in (chosen, rejected):
            assert side.index(tokenizer.eos_token_id) == len(side) - 1
        assert tokenizer.eos_token_id not in shared
        item = dataset[Draw(epoch, index, progress)]
        assert item == {"prompt_ids": prompt + shared, "chosen_ids": chosen, "rejected_ids": rejected}


@pytest.mark.parametrize("source", SOURCES)
def test_keep_share_mixes_in_pairs_in_which_chosen_does_not_erase(own_file, source):
    made = pairs(source, own_file, max_run=9, run_length="uniform").converter
    dataset = PairDataset(TraceDataset(made, made.encode_batch(records(source)), 0), keep_share=0.5)
    backtrack_id, keep, erase = made.backtrack_id, 0, 0
    for index, epoch in product(range(len(dataset)), range(400 // len(dataset))):
        clean = list(dataset.encoded[index]["completion_ids"])
        _, shared, chosen, rejected = dataset.pair(epoch, index, 1.0)
        assert apply_backtracking(shared + chosen, backtrack_id) == clean
        erase += chosen[0] == backtrack_id
        if chosen[0] != backtrack_id:
            keep += 1
            assert shared and chosen and rejected[0] == backtrack_id
            if source != "sudoku":
                assert shared == clean[: len(shared)] and rejected.count(backtrack_id) <= len(shared)
                assert apply_backtracking(shared + rejected, backtrack_id) == clean
    assert abs(keep / (keep + erase) - 0.5) < 0.1
    everything = PairDataset(TraceDataset(made, made.encode_batch(records(source)), 0))
    assert all(everything[i]["chosen_ids"][0] == backtrack_id for i in range(len(everything)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999))
def test_sudoku_turns_back_where_no_digit_is_left_and_not_where_one_is(seed):
    made = pairs("sudoku", seed=seed).converter
    dataset = PairDataset(TraceDataset(made, made.encode_batch(records("sudoku")), seed), keep_share=0.5)
    tokenizer, backtrack_id = made.tokenizer, made.backtrack_id
    for index in range(len(dataset)):
        prompt, shared, chosen, rejected = dataset.pair(0, index, 1.0)
        given_cells = tokenizer.decode(prompt).replace("solve", "")
        standing = apply_backtracking(shared, backtrack_id)
        board = sudoku.fill(sudoku.fill("." * 16, given_cells), tokenizer.decode(standing))
        assert not sudoku.conflicts(board)
        full = sudoku.fill("." * 16, given_cells + tokenizer.decode(
            apply_backtracking(shared + rejected, backtrack_id), skip_special_tokens=True))  # fmt: skip
        assert "." not in full
        cell = board.index(".")
        if chosen[0] == backtrack_id:
            # Every digit of the next cell breaks a rule or was erased there, and so does what rejected writes.
            assert sudoku.conflicts(board[:cell] + full[cell] + board[cell + 1 :])
            tried = set(tokenizer.decode(shared).split())
            legal = {
                sudoku.cell_token(4, cell, digit) for digit in range(1, 5)
                if not sudoku.conflicts(f"{board[:cell]}{digit}{board[cell + 1 :]}")
            }  # fmt: skip
            assert legal <= tried and sudoku.conflicts(full)
        else:
            assert rejected[0] == backtrack_id and rejected[1] != standing[-1]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), max_run=st.integers(1, 40))
def test_gsm8k_rejected_solutions_carry_the_wrong_result_on_to_the_last_line(seed, max_run):
    dataset = pairs("math", seed=seed, max_run=max_run, run_length="uniform")
    assert len(dataset) == 3  # the fourth has no calculator marks
    tokenizer = dataset.converter.tokenizer
    _, shared, _, rejected = dataset.pair(0, 0, 1.0)
    text = tokenizer.decode(shared + rejected, skip_special_tokens=True)
    found = re.fullmatch(
        r" There are 48/2 = ([\d.,]+) ducks\.\nTogether there are 48\+(.+) = (.+) birds\.\n#### (.+)", text
    )
    ducks, again, birds, answer = (float(number.replace(",", "")) for number in found.groups())
    assert ducks == again and birds == answer
    assert (ducks != 24) != (birds != 48 + ducks)  # one of the two results is wrong, and the other follows from it
    for index, epoch in product(range(3), range(10)):
        _, shared, _, rejected = dataset.pair(epoch, index, 1.0)
        text = tokenizer.decode(shared + rejected, skip_special_tokens=True)
        assert re.search(r"\n#### [\d.,]+$", text) and text.count("\n") == GSM8K[index]["answer"].count("\n")


def test_own_errors_are_cut_between_steps_and_samples_without_one_are_left_out(own_file):
    dataset = pairs("own", own_file, run_length="uniform", max_run=9)
    assert (len(dataset), dataset.left_out) == (2, 1)
    seen = {tuple(map(tuple, dataset.pair(epoch, 0, 1.0)[1:])) for epoch in range(60)}
    erase = (BACKTRACK,)
    assert seen == {
        ((10, 11, 20, 21), erase * 2 + (12, 13, EOS), (22, 23, EOS)),
        ((10, 11, 20, 21, 22), erase * 3 + (12, 13, EOS), (23, EOS)),
        ((10, 11, 20, 21, 22, 23), erase * 4 + (12, 13, EOS), (EOS,)),
    }
    assert dataset.pair(0, 1, 1.0)[1:] == ([30], [BACKTRACK, 14, EOS], [EOS])


@pytest.mark.parametrize("source", ["sudoku", "math", "text"])
def test_trap6_pairs_differ_by_epoch_and_by_seed_and_by_nothing_else(source):
    dataset, again, other = (pairs(source, seed=seed) for seed in (3, 3, 4))
    keys = [Draw(epoch, 0, 0.5) for epoch in range(20)]
    drawn = [dataset[key] for key in keys]
    assert drawn == [again[key] for key in reversed(keys)][::-1]
    assert len({str(item) for item in drawn}) > 2
    assert drawn != [other[key] for key in keys]
    assert dataset[0] == dataset[Draw(0, 0, 1.0)]


def test_max_length_counts_the_prompt_and_the_longer_completion():
    everything = pairs("math")
    lengths = {}
    for index in range(len(everything)):
        drawn = (everything.pair(epoch, index, 1.0) for epoch in range(200))
        lengths[index] = [len(p[0] + p[1]) + max(len(p[2]), len(p[3])) for p in drawn]
    assert any(len(p[3]) > len(p[2]) for p in (everything.pair(epoch, 1, 1.0) for epoch in range(200)))
    limit = min(lengths[1])  # too little for most draws of the second record, all draws of it redrawn
    dataset = pairs("math", max_length=limit)
    kept = [list(item["prompt_ids"]) for item in dataset.encoded]
    for index, item in enumerate(everything.encoded):
        if list(item["prompt_ids"]) not in kept:
            assert min(lengths[index]) >= limit
    for index in range(len(dataset)):
        for epoch in range(200):
            item = dataset[Draw(epoch, index, 1.0)]
            longest = max(len(item["chosen_ids"]), len(item["rejected_ids"]))
            assert len(item["prompt_ids"]) + longest <= limit
    assert dataset.left_out == len(GSM8K) - len(dataset) > 0


@pytest.mark.parametrize(("max_length", "kept"), [(5, 0), (6, 1), (7, 1), (8, 2), (None, 2)])
def test_max_length_counts_the_longer_of_the_two(tmp_path, max_length, kept):
    rows = [
        {"prompt": [4, 5], "chosen": [6, EOS], "rejected": [7, 7, 7, 7, 7, EOS]},
        {"prompt": [4, 6], "chosen": [6, 6, 6, EOS], "rejected": [7, EOS]},
    ]
    file = write(tmp_path / "pairs.jsonl", rows)
    dataset = PairDataset(load(dataset=file, max_length=max_length))
    assert (len(dataset), dataset.left_out) == (kept, 2 - kept)


def test_mean_length_counts_both_traces_over_the_curriculum():
    dataset = pairs("text", max_run=9, run_length="uniform", curriculum="linear", curriculum_end=1.0)
    drawn = [dataset.pair(0, i, i / 3) for i in range(3)]
    assert dataset.mean_length() == sum(len(p[0] + p[1] + p[2]) + len(p[0] + p[1] + p[3]) for p in drawn) / 3


def load_training(*arguments):
    return load_datasets(*arguments)[0]


def load(call=load_training, tokenizer=None, **data):
    tokenizer = tokenizer or bpe_tokenizer()
    arguments = DataArguments(**{"converter": "dpo"} | data)
    return call(arguments, BacktrackArguments(), tokenizer, tokenizer.convert_tokens_to_ids(BACKTRACK_TOKEN), 0)


def write(path, rows) -> str:
    datasets.Dataset.from_list(rows).to_json(path)
    return str(path)


def test_trap4_ready_ids_are_taken_as_they_are(tmp_path):
    # 40 41 spell what the tokenizer would write with one token: text would not bring them back.
    row = {"prompt": [1, 40, 41, 99], "chosen": [BACKTRACK, 50, EOS], "rejected": [40, 41, EOS]}
    for suffix, save in (("jsonl", "to_json"), ("parquet", "to_parquet")):
        file = tmp_path / f"ids.{suffix}"
        getattr(datasets.Dataset.from_list([row]), save)(file)
        (pair,) = [PairDataset(load(dataset=str(file)))[0]]
        assert pair == {"prompt_ids": row["prompt"], "chosen_ids": row["chosen"], "rejected_ids": row["rejected"]}


def test_ready_text_is_tokenised_like_that_of_sft_and_ties_are_left_out(tmp_path):
    rows = [
        {"prompt": "What is 3?", "chosen": " It is 3.", "rejected": " It is 4."},
        {"prompt": "What is 4?", "chosen": " It is 4.", "rejected": " It is 4."},
    ]
    dataset = PairDataset(load(dataset=write(tmp_path / "pairs.jsonl", rows)))
    assert (len(dataset), dataset.left_out) == (1, 1)
    tokenise = bpe_tokenizer().encode
    assert dataset[0] == {
        "prompt_ids": tokenise("What is 3?"),
        "chosen_ids": [*tokenise(" It is 3."), EOS],
        "rejected_ids": [*tokenise(" It is 4."), EOS],
    }
    file = write(tmp_path / "asked.jsonl", [{"question": "Why?", "chosen": "a", "rejected": "b"}])
    assert len(PairDataset(load(dataset=file, prompt_column="question", template="math"))) == 1


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a", "chosen": "b"}, "data.converter dpo needs a column 'rejected'"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "data.prompt_column needs a column 'prompt'"),
        ({"prompt": "a", "chosen": [4], "rejected": [5]}, "neither all text nor all lists of token ids"),
        ({"prompt": "a", "chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}, "neither all text nor"),
        ({"prompt": "a", "chosen": f"{BACKTRACK_TOKEN}b", "rejected": "c"}, "text cannot say what it erases"),
        ({"prompt": [], "chosen": [4], "rejected": [5]}, "a pair without a prompt"),
        ({"prompt": [4], "chosen": [4], "rejected": [70000]}, "the id 70000"),
        ({"prompt": [4, 5], "chosen": [BACKTRACK] * 3, "rejected": [5]}, "with nothing left to erase"),
    ],
)
def test_ready_pairs_that_are_refused(tmp_path, row, sentence):
    with pytest.raises(UserError) as caught:
        load(dataset=write(tmp_path / "pairs.jsonl", [row]))
    (told,) = caught.value.sentences
    assert sentence in told


def test_law8_evaluation_data_do_not_train_and_are_not_corrupted(tmp_path, own_file):
    file = write(tmp_path / "records.jsonl", QA)
    with pytest.raises(UserError, match="test is an evaluation split"):
        load(dataset=file, split="test", converter="backtrack_dpo")
    held_out = write(tmp_path / "test.jsonl", [{"prompt": "What?", "completion": "That."}])
    for name in ("dpo", "backtrack_dpo"):
        with pytest.raises(UserError, match="is an evaluation split"):
            load(dataset=held_out, converter=name)
    with pytest.raises(UserError, match="evaluation data are never corrupted"):
        load(dataset=file, eval_dataset=held_out, converter="backtrack_dpo")
    assert len(PairDataset(load(load_eval_dataset, eval_dataset=own_file, converter="backtrack_dpo"))) == 2
    ready = [{"prompt": f"What is {i}?", "chosen": "a", "rejected": "b"} for i in range(3)]
    train, test = write(tmp_path / "train.jsonl", ready), write(tmp_path / "eval_test.jsonl", ready[2:])
    assert len(PairDataset(load(load_eval_dataset, dataset=train, eval_dataset=test))) == 1
    with pytest.raises(UserError, match="1 of 3 prompts"):
        load(dataset=train, eval_dataset=test)


def test_sources_that_are_refused(tmp_path, own_file):
    with pytest.raises(UserError, match="needs a tokenizer with a token for each move"):
        load(dataset="sudoku", task={"count": 5}, converter="backtrack_dpo")
    with pytest.raises(UserError, match="has no calculator marks"):
        load(dataset=write(tmp_path / "a.jsonl", [GSM8K[3]]), converter="backtrack_dpo")
    with pytest.raises(UserError, match="data.prompt_column needs a column 'prompt'"):
        load(dataset=write(tmp_path / "b.jsonl", [{"text": "a"}]), converter="backtrack_dpo")
    with pytest.raises(UserError, match="of another tokenizer"):
        load(dataset=own_file, tokenizer=sudoku_tokenizer(), converter="backtrack_dpo")
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps(OWN[0]))
    with pytest.raises(UserError, match="does not exist: name the traces.jsonl of a run_selfgen"):
        load(dataset=str(alone), converter="backtrack_dpo")
    data = DataArguments(converter="backtrack_dpo")
    with pytest.raises(UserError, match="needs a BACKTRACK"):
        BacktrackDPOConverter(bpe_tokenizer(), None, data, BacktrackArguments())


def test_trap6_processes_do_not_change_the_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr("llmhalluc.data.manager._BATCH", 2)
    file = write(tmp_path / "records.jsonl", GSM8K * 2)
    one, two = (PairDataset(load(dataset=file, converter="backtrack_dpo", num_proc=n)) for n in (1, 2))
    assert [one[i] for i in range(len(one))] == [two[i] for i in range(len(two))]
    assert len(one) == 6


def test_sft_on_the_converter_trains_on_the_chosen_side():
    made = pairs("sudoku").converter
    traces = TraceDataset(made, made.encode_batch(records("sudoku")), seed=5)
    for index, encoded in enumerate(made.encode_batch(records("sudoku"))):
        pair = made.pair(encoded, Random(f"5-0-{index}"), 1.0)
        expected = encoded["completion_ids"] if pair is None else pair.shared_ids + pair.chosen_ids
        assert traces.trace(0, index, 1.0) == (encoded["prompt_ids"], expected)
