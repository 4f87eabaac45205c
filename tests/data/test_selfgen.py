"""The converter selfgen: ids as they are in the file, as many own steps as are drawn, and its refusals."""

import json
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.backtrack import apply_backtracking
from llmhalluc.data.manager import load_datasets
from llmhalluc.data.selfgen import ABOUT, SelfgenConverter, tokenizer_fingerprint
from llmhalluc.extras.constant import BACKTRACK_TOKEN
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import BacktrackArguments, DataArguments
from llmhalluc.tasks.sudoku.text import build_tokenizer
from tests.data.toy import bpe_tokenizer, sudoku_tokenizer

BACKTRACK = bpe_tokenizer().convert_tokens_to_ids(BACKTRACK_TOKEN)
EOS = bpe_tokenizer().eos_token_id
IDS = st.lists(st.integers(10, 300), max_size=6)


def write(folder, records, tokenizer=None, backtrack_id=BACKTRACK, **problems):
    about = {
        "model": "a/model",
        "tokenizer": tokenizer_fingerprint(tokenizer or bpe_tokenizer(), backtrack_id),
        "problems": {"dataset": "openai/gsm8k", "split": "train"} | problems,
    }
    folder.mkdir(exist_ok=True)
    (folder / ABOUT).write_text(json.dumps(about))
    (folder / "traces.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "traces.jsonl"


def record(prefix, own, right, prompt=(7, 8)):
    return {
        "problem": "train-0", "prompt_ids": list(prompt), "prefix_ids": prefix, "own_steps": own,
        "right_ids": [*right, EOS],
    }  # fmt: skip


def convert(file, backtrack_id=BACKTRACK, training=True, tokenizer=None, **backtrack):
    data = DataArguments(dataset=str(file), converter="selfgen")
    tokenizer = tokenizer or bpe_tokenizer()
    return SelfgenConverter(tokenizer, backtrack_id, data, BacktrackArguments(**backtrack), training)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("traces"), [record([], [[11]], [12])])


@given(IDS, st.lists(IDS.filter(bool), max_size=5), IDS, st.integers(0, 99), st.floats(0, 1), st.integers(1, 4))
def test_law_what_survives_is_the_prefix_and_the_right_end(file, prefix, own, right, seed, progress, longest):
    made = convert(file, max_run=longest, curriculum="linear")
    encoded = made.encode(given_ := record(prefix, own, right))
    prompt, completion = made.draw(encoded, Random(seed), progress)
    assert prompt == given_["prompt_ids"]
    assert apply_backtracking(completion, BACKTRACK) == encoded["completion_ids"] == [*prefix, *right, EOS]
    assert completion[: len(prefix)] == prefix
    erased = completion.count(BACKTRACK)
    whole_steps = [sum(map(len, own[:n])) for n in range(len(own) + 1)]
    steps = whole_steps.index(erased)
    assert steps <= longest and (steps > 0 or not own)
    error = [token for step in own[:steps] for token in step]
    assert completion == [*prefix, *error, *[BACKTRACK] * erased, *right, EOS]
    assert made.draw(encoded, Random(seed), progress)[1] == completion, "a draw hangs on its seed alone"


def test_runs_are_counted_in_steps_by_the_backtrack_section(file):
    made = convert(file, min_run=2, max_run=3, run_length="uniform")
    encoded = made.encode(record([9], [[11, 12], [13], [14, 15, 16], [17]], [18]))
    drawn = Counter(made.draw(encoded, Random(i), 1.0)[1].count(BACKTRACK) for i in range(400))
    assert drawn.keys() == {3, 6} and min(drawn.values()) > 150


def test_without_training_every_draw_is_clean(file):
    made = convert(file, training=False)
    encoded = made.encode(record([9], [[11]], [18]))
    assert made.draw(encoded, Random(0), 1.0) == ([7, 8], [9, 18, EOS])


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_file_of_mostly_clean_records_is_read_as_it_was_written(tmp_path, num_proc):
    records = [record([i % 50 + 10], [], [12] * 20, prompt=[7, i]) for i in range(800)]
    records += [record([13], [[14, 15], [16]], [17]), record([13], [], [17])]
    data = DataArguments(dataset=str(write(tmp_path / "a", records)), converter="selfgen", num_proc=num_proc)
    traces, _ = load_datasets(data, BacktrackArguments(max_run=1), bpe_tokenizer(), BACKTRACK, 0)
    assert len(traces) == 802
    assert traces.trace(0, 3, 1.0) == ([7, 3], [13, *[12] * 20, EOS])
    assert traces.trace(0, 800, 1.0) == ([7, 8], [13, 14, 15, BACKTRACK, BACKTRACK, 17, EOS])


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    (sentence,) = error.value.sentences
    return sentence


def test_another_tokenizers_ids_are_refused(tmp_path, file):
    assert "whose ids are of another tokenizer (a/model)" in refusal(convert, file, tokenizer=sudoku_tokenizer())
    alone = tmp_path / "traces.jsonl"
    alone.write_text("{}\n")
    assert f"{tmp_path / ABOUT} does not exist: name the traces.jsonl of a run_selfgen" in refusal(convert, alone)


def test_trap4_a_tokenizer_with_and_without_its_backtrack_is_the_same_and_another_is_not():
    plain, ours = build_tokenizer(4), sudoku_tokenizer()
    added = ours.convert_tokens_to_ids(BACKTRACK_TOKEN)
    mark = tokenizer_fingerprint(plain, None)
    assert mark == tokenizer_fingerprint(ours, added)
    named = build_tokenizer(4)
    named.add_special_tokens({"additional_special_tokens": ["<undo>"]})
    assert mark == tokenizer_fingerprint(named, named.convert_tokens_to_ids("<undo>"))
    assert mark != tokenizer_fingerprint(named, None)
    assert mark != tokenizer_fingerprint(build_tokenizer(6), None)


@pytest.mark.parametrize("problems", [{"split": "test[:10]"}, {"dataset": "data/gsm8k_test.jsonl"}])
def test_law8_traces_of_evaluation_problems_do_not_train(tmp_path, problems):
    made = write(tmp_path / "a", [record([], [[11]], [12])], **problems)
    assert "test is an evaluation split" in refusal(convert, made)
    assert convert(made, training=False).encode(record([], [[11]], [12]))["own"] == [[11]]


def test_errors_need_a_backtrack(tmp_path):
    made = write(tmp_path / "a", [record([], [[11]], [12])], backtrack_id=None)
    assert "which needs a BACKTRACK: set backtrack.token" in refusal(convert, made, backtrack_id=None)


@pytest.mark.parametrize(
    "bad",
    [record([], [[BACKTRACK]], [12]), record([10**6], [], [12]), record([-1], [], [12]), record([], [], [12], ())],
)
def test_ids_that_cannot_be_are_refused(file, bad):
    assert "has a trace without a prompt, with a BACKTRACK, or with ids beyond" in refusal(convert(file).encode, bad)


def test_a_missing_column_is_named(file):
    assert "data.converter selfgen needs a column 'own_steps'" in refusal(
        convert(file).encode, {"prompt_ids": [1], "prefix_ids": [], "right_ids": [2]}
    )
