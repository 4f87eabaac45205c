"""Every converter, every draw: what survives, what is trained, what depends on what."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from llmhalluc.backtrack import CONTEXTS, ERROR_LABELS, IGNORE, apply_backtracking
from llmhalluc.data.collator import Draw, DrawSampler
from llmhalluc.data.traces import TraceDataset
from llmhalluc.hparams.sections import CONVERTERS
from tests.data.toy import RECORDS, converter, erased_positions

CORRUPTING = ["backtrack", "gsm8k_backtrack", "sudoku_backtrack"]
sections = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["random", "shuffled", "digits"]),
        "rate": st.sampled_from([0.02, 0.1, 0.5, 2.0]),
        "run_length": st.sampled_from(["uniform", "geometric"]),
        "max_run": st.integers(1, 12),
        "nesting": st.sampled_from([0.0, 0.5, 0.9]),
        "curriculum": st.sampled_from(["none", "linear"]),
        "context": st.sampled_from(CONTEXTS),
    }
)

TRACED = [name for name in CONVERTERS if name != "rejections"]  # its records are places, not traces


def traces(name: str, seed: int = 0, max_length: int | None = None, training: bool = True, **section) -> TraceDataset:
    made = converter(name, training, **section)
    return TraceDataset(made, made.encode_batch(RECORDS[name]), seed, max_length)


@pytest.mark.parametrize("name", TRACED)
@settings(max_examples=25, deadline=None)
@given(section=sections, seed=st.integers(0, 99), epoch=st.integers(0, 9), progress=st.floats(0, 1))
def test_law1_what_survives_of_a_draw_is_the_clean_completion(name, section, seed, epoch, progress):
    dataset = traces(name, seed, **section)
    for index, clean in enumerate(dataset.encoded):
        prompt_ids, completion_ids = dataset.trace(epoch, index, progress)
        assert prompt_ids == clean["prompt_ids"].tolist()
        assert apply_backtracking(completion_ids, dataset.converter.backtrack_id) == clean["completion_ids"].tolist()


@pytest.mark.parametrize("name", CORRUPTING)
@settings(max_examples=25, deadline=None)
@given(section=sections, seed=st.integers(0, 999))
def test_law2_labels_of_drawn_traces(name, section, seed):
    for mode in ERROR_LABELS:
        dataset = traces(name, seed, error_labels=mode, **section)
        backtrack_id = dataset.converter.backtrack_id
        for index in range(len(dataset)):
            key = Draw(1, index, 0.7)
            prompt_ids, completion_ids = dataset.trace(1, index, 0.7)
            labels = dataset[key]["labels"]
            assert labels[: len(prompt_ids)] == [IGNORE] * len(prompt_ids)
            erased = erased_positions(completion_ids, backtrack_id)
            for i, (label, token) in enumerate(zip(labels[len(prompt_ids) :], completion_ids, strict=True)):
                if i not in erased or mode == "train":
                    assert label == token
                elif mode == "mask":
                    assert label == IGNORE
                else:  # never the erased token: no converter writes an error that is right
                    assert label != token


@pytest.mark.parametrize("name", TRACED)
def test_trap3_no_converter_trains_on_the_prompt_and_all_train_alike_on_the_answer(name):
    for mode in ERROR_LABELS:
        dataset = traces(name, error_labels=mode, rate=0.0)
        for index, clean in enumerate(dataset.encoded):
            labels = dataset[index]["labels"]
            assert labels[: len(clean["prompt_ids"])] == [IGNORE] * len(clean["prompt_ids"])
            # These err whatever the rate.
            if name not in ("sudoku_backtrack", "countdown_backtrack", "backtrack_dpo", "selfgen"):
                assert labels[len(clean["prompt_ids"]) :] == clean["completion_ids"].tolist()


@pytest.mark.parametrize("name", TRACED)
def test_a_completion_ends_with_the_only_eos(name):
    dataset = traces(name, rate=0.5)
    eos = dataset.converter.tokenizer.eos_token_id
    for index in range(len(dataset)):
        prompt_ids, completion_ids = dataset.trace(0, index, 1.0)
        assert completion_ids.index(eos) == len(completion_ids) - 1
        assert eos not in prompt_ids


@pytest.mark.parametrize("name", CORRUPTING)
def test_trap6_draws_differ_by_epoch_and_by_seed_and_by_nothing_else(name):
    dataset, again, other = (traces(name, seed, rate=0.3) for seed in (3, 3, 4))
    keys = [Draw(epoch, 0, 0.5) for epoch in range(20)]
    assert [dataset[key] for key in keys] == [again[key] for key in reversed(keys)][::-1]
    assert len({tuple(dataset[key]["input_ids"]) for key in keys}) > 3
    assert [dataset[key] for key in keys] != [other[key] for key in keys]


@pytest.mark.parametrize("name", CORRUPTING)
def test_trap6_draws_do_not_depend_on_the_number_of_workers(name):
    dataset = traces(name, rate=0.3)
    batches = []
    for workers in (0, 2):
        sampler = DrawSampler(len(dataset), seed=5, total=3 * len(dataset))
        sampler.set_epoch(2)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=list)
        batches.append(list(loader))
    assert batches[0] == batches[1]


@pytest.mark.parametrize("name", CORRUPTING)
def test_law8_off_the_training_split_every_draw_is_clean(name):
    dataset = traces(name, training=False, data={"split": "test"}, rate=1.0, max_run=5)
    for index, clean in enumerate(dataset.encoded):
        assert dataset.trace(0, index, 1.0)[1] == clean["completion_ids"].tolist()


@pytest.mark.parametrize("name", TRACED)
def test_encoding_does_not_depend_on_the_batch(name):
    made = converter(name)
    assert made.encode_batch(RECORDS[name]) == [made.encode(record) for record in RECORDS[name]]


def test_a_trace_that_stays_too_long_is_drawn_again_and_clean_in_the_end():
    clean = [len(item["prompt_ids"]) + len(item["completion_ids"]) for item in traces("backtrack").encoded]
    longest = max(clean)
    for room, possible in ((0, {longest}), (2, {longest, longest + 2})):
        dataset = traces("backtrack", max_length=longest + room, rate=0.1)
        lengths = {len(dataset[Draw(epoch, clean.index(longest), 1.0)]["input_ids"]) for epoch in range(50)}
        assert dataset.left_out == 0
        assert lengths == possible
    shorter = traces("backtrack", max_length=longest - 1)
    assert (shorter.left_out, len(shorter)) == (clean.count(longest), len(clean) - clean.count(longest))


def test_mean_length_is_the_mean_over_the_curriculum():
    dataset = traces("backtrack", rate=1.0, max_run=9, run_length="uniform", curriculum="linear", curriculum_end=1.0)
    lengths = [sum(map(len, dataset.trace(0, i, i / 3))) for i in range(3)]
    assert dataset.mean_length() == sum(lengths) / 3


def test_an_int_key_is_the_end_of_the_curriculum():
    dataset = traces("backtrack", rate=0.5, curriculum="linear")
    assert dataset[1] == dataset[Draw(0, 1, 1.0)]


def test_rng_alone_is_the_randomness_of_a_draw():
    made = converter("gsm8k_backtrack", rate=0.5)
    encoded = made.encode(RECORDS["gsm8k_backtrack"][1])
    draws = [made.draw(encoded, Random(7), 0.5) for _ in range(2)]
    assert draws[0] == draws[1]
    assert made.encode(RECORDS["gsm8k_backtrack"][1]) == encoded  # a draw leaves it as it is
