"""Chains with stand-ins for the programs (tests/exp/links.py): order, rounds, failures, going on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from llmhalluc.exp import commands, runner
from llmhalluc.extras.errors import UserError
from tests.exp import links

FAULT = {name: number for number, name in links.FAULTS.items()}
ARMS = {
    "grpo": {"start": "own", "train.stage": "grpo"},
    "own": {"start": "sft", "rounds": 2, "data.converter": "selfgen"},
    "sft": {},
    "more": {"start": "sft"},
}


class Process:
    """A step that was run at once, in this process."""

    def __init__(self, command):
        self.code = links.main(command[2], Path(command[-1]))

    def poll(self):
        return self.code


@pytest.fixture(scope="module", autouse=True)
def stand_ins():
    with pytest.MonkeyPatch.context() as patch:
        for step in commands.PROGRAMS:
            patch.setitem(commands.PROGRAMS, step, ["-m", step])
        patch.setattr(runner, "_start", start)
        yield


def start(command, folder, slot, parallel):
    (folder / "log.txt").touch()
    return Process(command)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a chain that has run, two cells at a time."""
    folder = tmp_path_factory.mktemp("done") / "run"
    assert runner.run(experiment(folder, parallel=2)) == 0
    return folder


@pytest.fixture
def called(monkeypatch):
    """The steps that are started from here on, as `cell/part/step`."""
    names = []

    def note(command, folder, *rest):
        names.append(str(Path(command[-1]).with_suffix("").relative_to(folder.parent)))
        return start(command, folder, *rest)

    monkeypatch.setattr(runner, "_start", note)
    return names


def experiment(folder, faults=None, **exp):
    arms = {arm: dict(keys) for arm, keys in ARMS.items()}
    for arm, fault in (faults or {}).items():
        arms[arm]["data.max_length"] = FAULT[fault]
    return {
        "model": {
            "from_config": {"model_type": "llama"},
            "tokenizer": "sudoku4",
            "device": "cpu",
            "finetuning": "lora",
        },
        "data": {"converter": "sudoku", "max_samples": 7, "eval_split": "test"},
        "train": {"packing": True},
        "eval": {"tasks": ["sudoku"]},
        "exp": {"arms": arms, "output_dir": str(folder), "samples_in_report": 1} | exp,
    }


def read(path):
    return yaml.safe_load(path.read_text())


def test_a_cell_waits_for_the_model_it_starts_from(tmp_path, called):
    assert runner.run(experiment(tmp_path)) == 0
    assert called == [
        "sft/train", "sft/eval", "own/round_1/selfgen", "own/round_1/train", "own/round_2/selfgen",
        "own/train", "own/eval",
        "grpo/train", "grpo/eval", "more/train", "more/eval",
    ]  # fmt: skip


def test_what_can_run_runs_while_a_start_is_evaluated(tmp_path, called, capsys):
    assert runner.run(experiment(tmp_path, parallel=2)) == 0
    assert called.index("own/round_1/selfgen") < called.index("more/eval") and called[0] == "sft/train"
    assert "4 cells, 0 of them finished before" in capsys.readouterr().out


def test_each_round_starts_from_the_one_before_and_trains_on_its_own_errors(done):
    own, sft = done / "cells" / "own", done / "cells" / "sft"
    loaded = {"device": "cpu"}
    gen = [read(own / f"round_{number}" / "selfgen.yaml") for number in (1, 2)]
    train = [read(own / "round_1" / "train.yaml"), read(own / "train.yaml")]
    models = [str(sft / "train"), str(own / "round_1" / "train")]
    assert [config["model"] for config in gen] == [loaded | {"name_or_path": name} for name in models]
    assert [config["model"] for config in train] == [
        loaded | {"finetuning": "lora", "name_or_path": name} for name in models
    ]
    for number, (generation, training) in enumerate(zip(gen, train, strict=True), 1):
        assert generation["data"] == {"converter": "sudoku", "max_samples": 7, "eval_split": "test"}
        assert generation["selfgen"] == {"output_dir": str(own / f"round_{number}" / "selfgen"), "overwrite": False}
        assert training["data"] == {
            "converter": "selfgen", "dataset": str(own / f"round_{number}" / "selfgen" / "traces.jsonl"),
            "split": "train",
            "subset": None, "max_samples": None, "eval_dataset": None, "eval_split": None,
        }  # fmt: skip
        assert training["train"]["resume"] is True
    assert read(own / "eval.yaml")["model"]["name_or_path"] == str(own / "train")


def test_rounds_need_no_start(tmp_path, called):
    raw = experiment(tmp_path)
    raw["exp"]["arms"] = {"own": {"rounds": 2, "data.converter": "selfgen"}}
    assert runner.run(raw) == 0
    assert called == ["own/round_1/selfgen", "own/round_1/train", "own/round_2/selfgen", "own/train", "own/eval"]
    own = tmp_path / "cells" / "own"
    for first in ("selfgen.yaml", "train.yaml"):
        assert read(own / "round_1" / first)["model"] == raw["model"]
    start = {"device": "cpu", "finetuning": "lora", "name_or_path": str(own / "round_1" / "train")}
    assert read(own / "train.yaml")["model"] == start


def test_a_merged_model_is_what_the_next_cell_starts_from(done, tmp_path):
    folder = Path(shutil.copytree(done, tmp_path / "run"))
    shutil.rmtree(folder / "cells" / "more")
    (folder / "cells" / "sft" / "train" / "merged").mkdir()
    shutil.copy(folder / "cells" / "sft" / "train" / "train.json", folder / "cells" / "sft" / "train" / "merged")
    assert runner.run(experiment(folder)) == 0
    model = read(folder / "cells" / "more" / "train.yaml")["model"]
    assert model["name_or_path"] == str(folder / "cells" / "sft" / "train" / "merged")


def test_the_table_counts_the_whole_chain(done):
    rows = {row["arm"]: row for row in json.loads((done / "results.json").read_text())["rows"]}
    one = json.loads((done / "cells" / "sft" / "train" / "train.json").read_text())
    assert [rows[arm]["train_tokens"] / one["tokens"] for arm in ARMS] == [1, 2, 1, 1]
    assert [rows[arm]["chain_tokens"] / one["tokens"] for arm in ARMS] == [4, 3, 1, 2]
    assert rows["own"]["train_seconds"] == 2 * one["seconds"]
    assert rows["grpo"]["chain_seconds"] == 4 * one["seconds"]


def test_finished_cells_are_kept_and_an_arm_can_be_added(done, tmp_path, called):
    folder = Path(shutil.copytree(done, tmp_path / "run"))
    raw = experiment(folder)
    raw["exp"]["arms"]["late"] = {"start": "grpo", "train.stage": "grpo"}
    assert runner.run(raw) == 0
    assert called == ["late/train", "late/eval"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda raw: raw["exp"]["arms"]["own"].update(rounds=3), "chain.rounds"),
        (lambda raw: raw["exp"]["arms"]["more"].update(start="own"), "chain.line"),
    ],
)
def test_a_folder_of_another_chain_is_refused(done, change, key):
    raw = experiment(done)
    change(raw)
    with pytest.raises(UserError, match=key):
        runner.run(raw)


def test_a_failed_start_fails_its_followers_and_nobody_else(tmp_path, capsys):
    assert runner.run(experiment(tmp_path, {"own": "selfgen fails"}, parallel=2)) == 1
    said = capsys.readouterr().out
    assert "FAILED own (selfgen: exit code 1)" in said and "FAILED grpo (not run: cell own failed)" in said
    assert "failed: grpo, not run: cell own failed\n" in said and not (tmp_path / "cells" / "grpo" / "train").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    assert sorted(results["failed"]) == ["grpo", "own"] and {row["arm"] for row in results["rows"]} == {"sft", "more"}


def test_a_failure_goes_down_the_whole_chain(tmp_path, capsys):
    assert runner.run(experiment(tmp_path, {"sft": "train fails"})) == 1
    said = capsys.readouterr().out
    for arm, start in (("own", "sft"), ("more", "sft"), ("grpo", "own")):
        assert f"FAILED {arm} (not run: cell {start} failed)" in said


def test_a_start_that_has_its_model_serves_although_its_evaluation_failed(tmp_path, capsys):
    assert runner.run(experiment(tmp_path, {"sft": "eval fails"})) == 1
    said = capsys.readouterr().out
    assert "failed: sft, see" in said and "not run" not in said
    assert {row["arm"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]} == {
        "grpo",
        "own",
        "more",
    }


def test_a_generation_without_traces_is_a_failure(tmp_path, capsys):
    assert runner.run(experiment(tmp_path, {"own": "selfgen leaves nothing"})) == 1
    assert "FAILED own (selfgen: the generation left no selfgen.json in" in capsys.readouterr().out


def test_a_killed_chain_goes_on_where_it_was(tmp_path, called):
    raw = experiment(tmp_path / "run", {"own": "train hangs once"})
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    program = (
        "import json, sys\nfrom llmhalluc.exp import commands, runner\n"
        "for step in commands.PROGRAMS: commands.PROGRAMS[step] = ['-m', 'tests.exp.links', step]\n"
        "sys.exit(runner.run(json.load(open(sys.argv[1]))))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "raw.json"], stdout=subprocess.PIPE)
    hung, deadline = tmp_path / "run" / "cells" / "own" / "round_1" / "hung", time.monotonic() + 60
    while not hung.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130
    (tmp_path / "run" / "cells" / "own" / "hung").touch()  # the last round does not hang at all
    assert runner.run(raw) == 0
    assert called[:4] == ["own/round_1/train", "own/round_2/selfgen", "own/train", "own/eval"]
    assert "sft/train" not in called and "sft/eval" not in called
