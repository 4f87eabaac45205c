"""Several processes train as one does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmhalluc.hparams.parser import build
from llmhalluc.hparams.yaml_files import to_yaml
from llmhalluc.train.dpo import DPOExecutor
from llmhalluc.train.sft import SFTExecutor
from tests.train.tiny_run import raw

OPTIONS = dict(train__max_steps=10, train__save_strategy="steps", train__save_steps=3, train__logging_steps=2,
               data__task={"count": 32})  # fmt: skip


def torchrun(folder: Path, config: dict) -> dict:
    """The record of a run of two processes."""
    (folder.parent / f"{folder.name}.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "llmhalluc.run_train", "--config", str(folder.parent / f"{folder.name}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "train.json").read_text())


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch_and_resume_in_the_second_epoch(tmp_path):
    alone = SFTExecutor(build(raw(tmp_path / "one", **OPTIONS, train__per_device_train_batch_size=4))).run()
    config = raw(tmp_path / "two", **OPTIONS, train__per_device_train_batch_size=2)
    together = torchrun(tmp_path / "two", config)
    for entry, expected in zip(together["loss"], alone["loss"], strict=True):
        assert entry == pytest.approx(expected, rel=1e-6)  # the Trainer adds up in float32
    assert (together["tokens"], together["examples"]) == (alone["tokens"], alone["examples"]) == (alone["tokens"], 40)

    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "two/run.json", tmp_path / "again")
    shutil.copytree(tmp_path / "two/checkpoint-9", tmp_path / "again/checkpoint-9")  # an epoch is of 8 steps
    config["train"] |= {"output_dir": str(tmp_path / "again"), "resume": True}
    resumed = torchrun(tmp_path / "again", config)
    for entry, expected in zip(resumed["loss"], together["loss"], strict=True):
        assert entry == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [["sigmoid", "sft"], ["sft"]])
def test_trap24_two_processes_have_the_dpo_loss_of_one_with_twice_the_batch(tmp_path, loss):
    options = dict(
        train__stage="dpo", data__converter="backtrack_dpo", train__beta=0.5, train__loss_type=loss,
        train__max_steps=5, train__gradient_accumulation_steps=2, data__task={"count": 64},
    )  # fmt: skip
    alone = DPOExecutor(build(raw(tmp_path / "one", **options, train__per_device_train_batch_size=4))).run()
    together = torchrun(tmp_path / "two", raw(tmp_path / "two", **options, train__per_device_train_batch_size=2))
    losses = [[entry["loss"] for entry in record["loss"]] for record in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
