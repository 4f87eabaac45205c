"""What is refused, each with its sentence; and what is not."""

import pytest

from llmhalluc.benchmark import config as benchmark
from llmhalluc.extras.constant import EVAL_SPLITS
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams import trl_fields
from llmhalluc.hparams.checks import refuse_evaluation_split
from llmhalluc.hparams.parser import SEED, STAGES, build, section_keys
from llmhalluc.hparams.sections import CONVERTERS, GENERIC_CONVERTERS, SECTIONS

# Every key by its dotted name; a key of `train` as its first stage knows it.
KEYS = {f"{section}.{key}": k for section, keys in benchmark.KEYS.items() for key, k in keys.items()} | {"seed": SEED}
for _stage_name in reversed(STAGES):
    for _section in SECTIONS:
        KEYS |= {f"{_section}.{key}": k for key, k in section_keys(_section, _stage_name).items()}
LLAMA = {"from_config": {"model_type": "llama"}}


def sentences(raw: dict, *sections: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        build(raw, sections)
    return list(caught.value.sentences)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"train": {"learnig_rate": 1}}, "train.learnig_rate is no key; did you mean train.learning_rate?"),
        ({"gen": {"max_tokens": 1}}, "gen.max_tokens is no key; did you mean gen.max_new_tokens?"),
        ({"data": {"learning_rate": 1}}, "data.learning_rate is no key; did you mean train.learning_rate?"),
        ({"learning_rate": 1}, "learning_rate is no section; did you mean train.learning_rate?"),
        ({"modell": {}}, "modell is no section; did you mean model?"),
        ({"gen": 3}, "gen is 3, expected a section of keys"),
        ({"seed": "one"}, "seed is 'one', expected int or none"),
        ({"seed": -1}, "seed is -1, expected a number in [0, 4294967295]"),
        ({"train": {"learning_rate": "fast"}}, "train.learning_rate is 'fast', expected float"),
        ({"train": {"max_steps": 1.5}}, "train.max_steps is 1.5, expected int"),
        ({"train": {"max_steps": True}}, "train.max_steps is True, expected int"),
        ({"train": {"packing": "yes"}}, "train.packing is 'yes', expected bool"),
        ({"train": {"report_to": [1]}}, "train.report_to is [1], expected str or list of str or none"),
        ({"train": {"stage": "grpo", "packing": True}}, "train.packing is a key of train.stage sft alone: take it out"),
        ({"train": {"stage": "ppo"}}, "train.stage is 'ppo', expected one of sft, dpo, ftpo, grpo, verifier, prm"),
        ({"train": {"save_strategy": "always"}},
         "train.save_strategy is 'always', expected one of no, steps, epoch, best"),
        ({"backtrack": {"context": "blok"}},
         "backtrack.context is 'blok', expected one of soft, block, rewind"),
        ({"gen": {"context": "blok"}}, "gen.context is 'blok', expected one of soft, block, rewind"),
        ({"data": {"task": {"size": 5}}}, "data.task.size is 5, expected one of 4, 6"),
        ({"eval": {"task_options": {"sudoku": {"size": 5}}}},
         "eval.task_options.sudoku.size is 5, expected one of 4, 6"),
        ({"data": {"converter": "x"}}, f"data.converter is 'x', expected one of {', '.join(CONVERTERS)}"),
        ({"eval": {"data_files": {"a": 1}}}, "eval.data_files is {'a': 1}, expected dict of str"),
        ({"eval": {"variants": {"a": {"temperatur": 1}}}},
         "eval.variants.a.temperatur is no key; did you mean eval.variants.a.temperature?"),
        ({"eval": {"variants": {"a": {"temperature": -1}}}},
         "eval.variants.a.temperature is -1, expected a number in [0, inf)"),
        ({"model": {"name_or_path": "???"}}, "model.name_or_path is ???, a placeholder: give it a value"),
        ({"backtrack": {"min_run": 6}}, "backtrack.min_run is 6, more than backtrack.max_run 5"),
        ({"data": {"task": {"min_blanks": 12}}},
         "data.task.min_blanks is 12 and data.task.max_blanks is 11, expected min <= max <= 16, "
         "the cells of the grid"),
        ({"data": {"task": {"max_blanks": 17}}},
         "data.task.min_blanks is 8 and data.task.max_blanks is 17, expected min <= max <= 16, "
         "the cells of the grid"),
        ({"eval": {"task_options": {"sudoku": {"blanks": 17}}}},
         "eval.task_options.sudoku.blanks is 17, more than the grid's 16 cells"),
        ({"train": {"resume": True, "overwrite": True}},
         "train.resume and train.overwrite are both true: keep one"),
        ({"train": {"hub_token": "x"}},
         "train.hub_token would be saved beside the results: set HF_TOKEN instead"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_sentence(raw, sentence):
    assert sentences(raw) == [sentence]


@pytest.mark.parametrize("name", [name for name, key in KEYS.items() if key.bounds])
def test_bounds_hold_at_their_ends(name):
    section, _, key = name.rpartition(".")
    bounds, kind = KEYS[name].bounds, KEYS[name].type
    whole = float not in (kind, *getattr(kind, "__args__", ()))
    for end, inward, inclusive in ((0, 1, bounds[0] == "["), (1, -1, bounds[-1] == "]")):
        bound = float(bounds[1:-1].split(",")[end])
        if bound in (float("inf"), float("-inf")):
            continue
        step = 1 if whole else 1e-6
        at, inside, outside = (type(step)(bound + k * inward * step) for k in (0, 1, -1))
        for value, fine in ((at, inclusive), (inside, True), (outside, False)):
            stage = {"stage": _stage(key)} if section == "train" else {}
            told = _told({section: {key: value} | stage} if section else {key: value})
            assert (f"{name} is {value}, expected a number in {bounds}" in told) is not fine


def _stage(key: str) -> str:
    """The first stage whose `train` section takes the key."""
    return next((stage for stage in STAGES if key in section_keys("train", stage)), "sft")


def _told(raw: dict) -> list[str]:
    try:
        benchmark.build({"model_name_or_path": "some/model"} | raw) if raw.keys() & benchmark.KEYS else build(raw)
    except UserError as error:
        return list(error.sentences)
    return []


def test_bounds_speak_of_keys_that_are_there_and_allow_the_defaults():
    assert {f"train.{key}" for key in trl_fields.BOUNDS} <= KEYS.keys()
    assert _told({}) == []
    for stage in STAGES:
        plain = {section: {key: k.default for key, k in section_keys(section, stage).items()} for section in SECTIONS}
        plain["train"]["stage"] = stage
        if stage == "dpo":
            plain["train"]["loss_type"] = ["sigmoid"]  # its default comes from a factory, which is not run
        assert _told(plain) == [], f"{stage}: every default is of its own type and in its own range"
    assert (
        _told({section: {key: k.default for key, k in keys.items()} for section, keys in benchmark.KEYS.items()}) == []
    )


def test_converters_are_those_of_the_data_room():
    from llmhalluc.data import manager

    assert set(GENERIC_CONVERTERS) == set(manager.GENERIC)


def test_what_the_parser_fills_is_no_key():
    assert sentences({"train": {"trl": {}}})[0].startswith("train.trl is no key")


def test_no_means_no_where_no_is_a_choice():
    assert build({"train": {"eval_strategy": False}}).train.trl["eval_strategy"] == "no"
    assert sentences({"backtrack": {"curriculum": False}})[0].startswith("backtrack.curriculum is False, expected")


@pytest.mark.parametrize("split", [*EVAL_SPLITS, "test[:10]", "train+validation", "test_seen", "TEST", "validation1"])
def test_law8_evaluation_splits_are_refused(split):
    word = "data.split is "
    assert sentences({"data": {"dataset": "a/b", "split": split}})[0].startswith(word + split)


@pytest.mark.parametrize(
    "name",
    [
        "test.jsonl",
        "a/my-dev-set.json",
        "gsm8k_test.parquet",
        "data/test/0000.parquet",
        "~/Val.csv",
        "x/y/eval_1.json",
    ],
)
def test_law8_files_of_evaluation_splits_are_refused(name):
    with pytest.raises(UserError, match=rf"^data\.dataset is {name}, and \w+ is an evaluation split: name data that"):
        refuse_evaluation_split(name, "train")


@pytest.mark.parametrize(
    "name", ["apple/GSM-Symbolic", "x/gsm_symbolic", "data/GSM_symbolic.jsonl", "gsm-symbolic/a.json"]
)
def test_law8_trap12_gsm_symbolic_is_refused(name):
    with pytest.raises(UserError, match=f"^data.dataset is {name}, made from GSM8K's test templates"):
        refuse_evaluation_split(name, "train")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("openai/gsm8k", "train"),
        ("org/test-data", "train[:90%]"),
        ("latest.jsonl", "contest"),
        ("dev/train.jsonl", "train"),
        ("a/b/attested/x.json", "all"),
    ],
)
def test_law8_training_data_is_not_refused(name, split):
    refuse_evaluation_split(name, split)


def test_law8_a_file_that_is_evaluated_on_does_not_train(tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "x.jsonl")
    raw = {
        "data": {"dataset": str(tmp_path / "x.jsonl")},
        "eval": {"data_files": {"t": str(tmp_path / "link.jsonl")}},
    }
    [sentence] = sentences(raw)
    assert sentence.startswith("data.dataset is ") and "which eval.data_files.t evaluates on" in sentence


@pytest.mark.parametrize(
    ("raw", "sections", "sentence"),
    [
        ({}, ["model"], "exactly one of model.name_or_path and model.from_config must be given, neither is"),
        ({"model": LLAMA | {"name_or_path": "a"}}, ["model"],
         "exactly one of model.name_or_path and model.from_config must be given, both are"),
        ({"model": {"name_or_path": "./nowhere"}}, ["model"],
         "model.name_or_path is ./nowhere, a folder that does not exist: correct the path"),
        ({"model": {"name_or_path": "a/b/c"}}, ["model"],
         "model.name_or_path is a/b/c, a folder that does not exist: correct the path"),
        ({"model": LLAMA | {"adapter": "/nowhere"}}, ["model"],
         "model.adapter is /nowhere, a folder that does not exist: correct the path"),
        ({"model": {"name_or_path": "package:no_where"}}, ["model"],
         "model.name_or_path is package:no_where, which is not installed: pip install no-where"),
        ({"data": {"dataset": "nowhere.jsonl"}}, ["data"],
         "data.dataset is nowhere.jsonl, a file that does not exist: correct the path"),
        ({"data": {"eval_dataset": "~/no/where"}}, ["data"],
         "data.eval_dataset is ~/no/where, a file that does not exist: correct the path"),
        ({"eval": {"data_files": {"a": "no.b"}}}, ["eval"],
         "eval.data_files.a is no.b, a file that does not exist: correct the path"),
        ({"eval": {"fewshot_files": {"a": "no.b"}}}, ["eval"],
         "eval.fewshot_files.a is no.b, a file that does not exist: correct the path"),
        ({"eval": {"include_path": ["nowhere"]}}, ["eval"],
         "eval.include_path is nowhere, a folder that does not exist: correct the path"),
    ],
)  # fmt: skip
def test_inputs_that_are_not_there_are_told_to_who_needs_them(raw, sections, sentence):
    assert sentences(raw, *sections) == [sentence]
    build(raw)


def test_names_of_the_hub_are_not_looked_for(tmp_path):
    (tmp_path / "x.csv").touch()
    for model, data in (("org/name.v2", "org/data-v1.5"), (str(tmp_path), str(tmp_path / "x.csv"))):
        raw = {"model": {"name_or_path": model, "tokenizer": "sudoku4"}, "data": {"dataset": data}}
        build(raw, ("model", "data"))


def test_a_mistake_is_not_told_again_as_its_consequence():
    assert sentences({"model": {"name_or_path": 3}}, "model") == ["model.name_or_path is 3, expected str or none"]
    assert len(sentences({"model": 3}, "model")) == 1
    assert len(sentences({"backtrack": {"max_run": 0}})) == 1
    assert len(sentences({"eval": {"data_files": 3}}, "eval")) == 1
