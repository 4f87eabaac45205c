"""The keys read from TRL's source are those of the class itself."""

import dataclasses
import subprocess
import sys
import types
from typing import Literal, Union, get_args, get_origin

import pytest

from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.hparams.trl_fields import trl_keys


@pytest.fixture(params=["sft", "dpo", "ftpo", "grpo"])
def stage(request):
    pytest.importorskip("trl")
    return request.param


def test_keys_and_their_order_are_the_class_own(stage):
    assert list(trl_keys(stage)) == [field.name for field in _fields(stage)]


def test_defaults_and_meanings_are_the_class_own(stage):
    for field in _fields(stage):
        key = trl_keys(stage)[field.name]
        factory = field.default_factory
        if factory is dataclasses.MISSING or factory in (list, dict):  # any other would have to be run
            assert key.default == (field.default if factory is dataclasses.MISSING else factory()), field.name
        assert key.help == field.metadata["help"], field.name
        if isinstance(field.metadata.get("choices"), list):
            found = get_args(key.type)[0] if get_origin(key.type) in (Union, types.UnionType) else key.type
            assert list(get_args(found)) == field.metadata["choices"], field.name


def _fields(stage: str) -> list[dataclasses.Field]:
    import trl

    from llmhalluc.train import ftpo_config

    home = ftpo_config if stage == "ftpo" else trl
    return [field for field in dataclasses.fields(getattr(home, f"{stage.upper()}Config")) if field.init]


def test_enums_become_their_values():
    pytest.importorskip("trl")
    from transformers.trainer_utils import SchedulerType

    assert trl_keys("sft")["lr_scheduler_type"].type == Literal[tuple(member.value for member in SchedulerType)]
    assert trl_keys("sft")["eval_strategy"].type == Literal["no", "steps", "epoch"]


def test_annotations_are_understood():
    kinds = {name: key.type for name, key in trl_keys("sft").items()}
    assert kinds["learning_rate"] is float and kinds["max_steps"] is int and kinds["packing"] is bool
    assert kinds["max_length"] == int | None
    assert kinds["report_to"] == str | list[str] | None


def test_without_trl_there_are_no_keys_and_none_is_refused():
    code = """
import importlib.util as util
found = util.find_spec
util.find_spec = lambda name, *rest: None if name == "trl" else found(name, *rest)
from llmhalluc.hparams.parser import build
config = build({"seed": 3, "train": {"learning_rate": 1e-3, "anything": [1]}})
print(sorted(config.train.trl.items()))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    given = {"learning_rate": 1e-3, "anything": [1], "seed": 3, "data_seed": 3, "output_dir": "outputs/train"}
    assert ran.stdout == f"{sorted(given.items())}\n"


def test_a_stage_without_a_class_of_trls_takes_the_trainers_own_keys():
    pytest.importorskip("trl")
    from transformers import TrainingArguments

    fields = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    assert list(trl_keys("verifier")) == fields and "packing" not in fields
