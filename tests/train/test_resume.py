"""A run that is killed and resumed ends where an unbroken one ends: same curve, same weights, bit by bit."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from llmhalluc.extras.errors import UserError, exit_code
from llmhalluc.hparams.parser import build
from llmhalluc.train.sft import SFTExecutor
from tests.train.tiny_run import raw

# Saving and logging out of step with each other and with the epochs (50 records, 13 steps); dropout draws at random.
STEPS = dict(train__max_steps=150, train__save_strategy="steps", train__save_steps=7, train__logging_steps=4)
DROPOUT = dict(
    model__from_config=dict(
        model_type="gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=128, resid_pdrop=0.1, initializer_range=0.2
    )
)


def train(config: dict) -> None:
    sys.exit(exit_code(lambda: SFTExecutor(build(config)).run() and 0))


def result(folder: Path) -> tuple:
    """What has to be the same: the record but for its wall time, and the bytes of the weights."""
    record = json.loads((folder / "train.json").read_text())
    assert record.pop("seconds") > 0
    weights = next(folder.glob("*model.safetensors")).read_bytes()
    return record, weights


def steps(folder: Path) -> int:
    """The step of the newest checkpoint, complete or not."""
    return max([0, *(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))])


def wait_for(process, folder: Path, step: int) -> None:
    while steps(folder) < step:
        assert process.is_alive(), f"it ended at step {steps(folder)}"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def start():
    """Start a run in a process of its own; the imports are paid for once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llmhalluc.train.sft"])
    running = []

    def start(config: dict):
        running.append(context.Process(target=train, args=(config,)))
        running[-1].start()
        return running[-1]

    yield start
    for process in running:
        process.kill()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Path, tuple]:
    """The folder of a run that nobody disturbed, and its result."""
    folder = tmp_path_factory.mktemp("unbroken")
    SFTExecutor(build(raw(folder, **STEPS, **DROPOUT))).run()
    return folder, result(folder)


def test_killed_at_random_steps_and_resumed_it_ends_like_an_unbroken_run(tmp_path, start, unbroken):
    config, rng = raw(tmp_path, **STEPS, **DROPOUT, train__resume=True), random.Random(time.time_ns())
    for step in sorted(rng.sample(range(8, 140), 2)):
        process = start(config)
        wait_for(process, tmp_path, step)
        time.sleep(rng.random() * 0.03)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "train.json").exists()
    process = start(config)
    process.join()
    assert process.exitcode == 0
    assert result(tmp_path) == unbroken[1]


def test_sigterm_saves_a_checkpoint_and_no_final_model(tmp_path, start, unbroken):
    config = raw(tmp_path, **STEPS, **DROPOUT, train__resume=True, train__enable_jit_checkpoint=True)
    process = start(config)
    wait_for(process, tmp_path, 14)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 2
    assert 14 <= steps(tmp_path) < 150
    assert not list(tmp_path.glob("*.safetensors"))
    process = start(config)
    process.join()
    assert result(tmp_path) == unbroken[1]


# In the middle of an epoch, at the end of one (13 steps), and after the last step, before the final model.
@pytest.mark.parametrize("step", [7, 91, 150])
def test_resumed_from_any_checkpoint_it_ends_like_an_unbroken_run(tmp_path, unbroken, step):
    folder, expected = unbroken
    shutil.copy(folder / "run.json", tmp_path)
    shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    SFTExecutor(build(raw(tmp_path, **STEPS, **DROPOUT, train__resume=True))).run()
    assert result(tmp_path) == expected


def test_lora_packed_accumulated_and_evaluated_resumes_as_exactly(tmp_path):
    base = raw(tmp_path / "base", train__max_steps=1)
    SFTExecutor(build(base)).run()
    options = dict(
        model__from_config=None, model__tokenizer=None, model__name_or_path=str(tmp_path / "base"),
        model__finetuning="lora", model__lora_dropout=0.2, model__dtype="float32", train__packing=True,
        train__gradient_accumulation_steps=2, train__max_steps=12, train__save_strategy="steps", train__save_steps=5,
        train__logging_steps=4, train__eval_strategy="steps", train__eval_steps=5, data__eval_split="test[:8]",
        train__dataloader_num_workers=1,
    )  # fmt: skip
    SFTExecutor(build(raw(tmp_path / "a", **options))).run()
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a/run.json", tmp_path / "b")
    shutil.copytree(tmp_path / "a/checkpoint-5", tmp_path / "b/checkpoint-5")
    SFTExecutor(build(raw(tmp_path / "b", **options, train__resume=True))).run()
    assert result(tmp_path / "a") == result(tmp_path / "b")


def test_a_finished_folder_of_another_config_is_refused(tmp_path, unbroken):
    with pytest.raises(UserError, match="train.learning_rate"):
        SFTExecutor(build(raw(unbroken[0], **STEPS, **DROPOUT, train__resume=True, train__learning_rate=0.5))).run()
