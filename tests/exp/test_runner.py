import contextlib
import csv
import io
import json
import os
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
from llmhalluc.hparams.yaml_files import load_raw
from tests.exp.synthetic import FAULTS

FAULT = {name: number for number, name in FAULTS.items()}


@pytest.fixture(scope="module", autouse=True)
def stand_ins():
    with pytest.MonkeyPatch.context() as patch:
        for step in ("train", "eval"):
            patch.setitem(commands.PROGRAMS, step, ["-m", "tests.exp.synthetic", step])
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Folder and output of an experiment of two arms and two seeds that has run."""
    folder = tmp_path_factory.mktemp("done") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert runner.run(experiment(folder, grid={"seed": [1, 2]}, parallel=2)) == 0
    return folder, said.getvalue()


@pytest.fixture
def moved(done, tmp_path):
    """A copy of that folder elsewhere."""
    return Path(shutil.copytree(done[0], tmp_path / "moved"))


def experiment(folder, faults=None, **exp):
    """Two arms, as many cells; `faults` makes an arm's cell fail."""
    arms = {"clean": {"data.converter": "sudoku"}, "block": {"data.converter": "sudoku_backtrack"}}
    for arm, fault in (faults or {}).items():
        arms.setdefault(arm, {"data.converter": "sudoku"})["data.max_samples"] = FAULT[fault]
    return {
        "model": {"from_config": {"model_type": "llama"}, "tokenizer": "sudoku4"},
        "data": {"max_samples": 1},
        "eval": {"tasks": ["sudoku"]},
        "exp": {"arms": arms, "output_dir": str(folder), "samples_in_report": 2} | exp,
    }


def read(folder):
    return json.loads((folder / "results.json").read_text())


def log(folder, cell):
    return (folder / "cells" / cell / "log.txt").read_text()


def test_an_experiment_from_end_to_end(done):
    folder, said = done
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "accuracy.pdf", "accuracy.png", "cells", "loss.pdf", "loss.png", "report.html", "results.csv", "results.json",
        "results.md", "results.tex", "run.json", "samples.html",
    ]  # fmt: skip
    results = read(folder)
    assert results["config"] == experiment(folder, grid={"seed": [1, 2]}, parallel=2)
    assert results["environment"]["python"] and results["failed"] == []
    assert [(row["level"], row["cell"], row["arm"]) for row in results["rows"]] == [
        ("arm", None, "clean"), ("arm", None, "block"), ("cell", "clean__seed=1", "clean"),
        ("cell", "clean__seed=2", "clean"), ("cell", "block__seed=1", "block"), ("cell", "block__seed=2", "block"),
    ]  # fmt: skip
    assert "2 seeds, 40 problems of sudoku" in said and "differences against clean are paired" in said
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"train with {threads} threads" in log(folder, "clean__seed=1")
    model = yaml.safe_load((folder / "cells" / "clean__seed=1" / "eval.yaml").read_text())["model"]
    assert model == {"name_or_path": str(folder / "cells" / "clean__seed=1" / "train")}


def test_csv_and_json_agree(done):
    with (done[0] / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = read(done[0])["rows"]
    assert len(lines) == len(rows) == 6
    for line, row in zip(lines, rows, strict=True):
        told = {key: value for key, value in row.items() if key not in ("point", "metrics")} | row["point"]
        assert line == {key: "" if told.get(key) is None else str(told[key]) for key in line}


def test_finished_cells_are_kept_and_cells_can_be_added(moved, capsys):
    before = log(moved, "clean__seed=1")
    assert runner.run(experiment(moved, grid={"seed": [1, 2, 3]}, parallel=2)) == 0
    assert log(moved, "clean__seed=1") == before
    assert "6 cells, 4 of them finished before" in capsys.readouterr().out
    assert {row["seeds"] for row in read(moved)["rows"] if row["level"] == "arm"} == {3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw["model"].update(tokenizer="sudoku6"), "model.tokenizer"),
        (lambda raw: raw["exp"]["arms"]["block"].update({"backtrack.context": "block"}), "backtrack.context"),
    ],
)
def test_a_folder_of_another_experiment_is_refused(moved, change, words):
    raw = experiment(moved, grid={"seed": [1, 2]})
    change(raw)
    with pytest.raises(UserError, match=words):
        runner.run(raw)


@pytest.mark.parametrize("change", [{"task_options": {"sudoku": {"count": 50}}}, {"limit": 7}])
def test_law13_another_evaluation_costs_no_training(moved, capsys, change):
    raw = experiment(moved, grid={"seed": [1, 2]})
    raw["eval"] |= change
    raw["gen"] = {"max_new_tokens": 30}
    trained = {path: path.stat().st_mtime_ns for path in moved.glob("cells/*/train/train.json")}
    assert runner.run(raw) == 0
    said = capsys.readouterr().out
    assert len(trained) == 4 and all(path.stat().st_mtime_ns == time for path, time in trained.items())
    assert "clean__seed=1 is evaluated again, with other values of eval." in said
    assert all((path.parents[1] / "eval_before_1" / "results.json").exists() for path in trained)
    assert all((path.parents[1] / "eval" / "results.json").exists() for path in trained)


def test_law13_a_batch_size_costs_nothing(moved, capsys):
    raw = experiment(moved, grid={"seed": [1, 2]})
    raw["eval"]["batch_size"] = 4
    assert runner.run(raw) == 0
    assert "4 cells, 4 of them finished before" in capsys.readouterr().out


def test_overwrite_forgets_what_was_there(moved):
    assert runner.run(experiment(moved, overwrite=True)) == 0
    assert sorted(path.name for path in (moved / "cells").iterdir()) == ["block", "clean"]


def test_the_reference_is_printed_below(moved, done, capsys):
    reference = str(done[0] / "results.json")
    runner.run(experiment(moved, grid={"seed": [1]}, reference=reference))
    said = capsys.readouterr().out
    assert f"{reference}:\nexperiment\n2 seeds, 40 problems of sudoku" in said
    assert reference in (moved / "report.html").read_text()


def test_a_failed_cell_is_reported_and_the_rest_is_finished(tmp_path, capsys):
    faults = {"broken": "train fails", "silent": "eval leaves nothing"}
    assert runner.run(experiment(tmp_path, faults)) == 1
    said = capsys.readouterr().out
    assert "FAILED broken (train: exit code 1)" in said
    assert "FAILED silent (eval: the evaluation left no" in said
    assert "    and 50%\n    error: this cell was made to fail" in said and "progress 1%" not in said
    results = read(tmp_path)
    assert results["failed"] == ["broken", "silent"]
    assert [row["arm"] for row in results["rows"] if row["level"] == "arm"] == ["clean", "block"]


def test_a_cell_that_failed_goes_on_where_it_stopped(tmp_path, monkeypatch):
    assert runner.run(experiment(tmp_path, {"late": "eval fails"})) == 1
    monkeypatch.setitem(FAULTS, FAULT["eval fails"], "")
    called = []
    start = runner._start
    monkeypatch.setattr(runner, "_start", lambda command, *rest: called.append(command) or start(command, *rest))
    monkeypatch.setitem(commands.PROGRAMS, "eval", ["-c", "raise SystemExit(3)"])
    assert runner.run(experiment(tmp_path, {"late": "eval fails"})) == 1
    assert [command[1:3] for command in called] == [["-c", "raise SystemExit(3)"]]


def test_all_cells_failed_is_told_without_results(tmp_path, capsys):
    raw = experiment(tmp_path, {"clean": "train fails", "block": "train fails"})
    assert runner.run(raw) == 1
    assert not (tmp_path / "results.json").exists() and "failed: block, see" in capsys.readouterr().out


def test_nothing_runs_before_every_cell_is_right(tmp_path):
    raw = experiment(tmp_path / "run", reference=None)
    raw["exp"]["arms"]["block"]["backtrack.contxt"] = "block"
    with pytest.raises(UserError, match="cell block: backtrack.contxt"):
        runner.run(raw)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("exp", "words"),
    [
        ({"reference": "none.json"}, "exp.reference is none.json"),
        ({"python": "no-python"}, "exp.python is no-python"),
    ],
)
def test_what_is_named_must_be_there(tmp_path, exp, words):
    with pytest.raises(UserError, match=words):
        runner.run(experiment(tmp_path / "run", **exp))


def test_another_python_evaluates(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho other python\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    runner.run(experiment(tmp_path / "run", python=str(python)))
    said = log(tmp_path / "run", "clean")
    assert said.count("other python") == 1 and said.index("other python") > said.index("synthetic train")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_ends_the_cells_and_says_how_to_go_on(tmp_path, number):
    raw = experiment(tmp_path / "run", {"clean": "train hangs", "block": "train hangs"}, parallel=2)
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    program = (
        "import json, signal, sys\nfrom llmhalluc.exp import commands, runner\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background job has lost
        "for step in ('train', 'eval'): commands.PROGRAMS[step] = ['-m', 'tests.exp.synthetic', step]\n"
        "sys.exit(runner.run(json.load(open(sys.argv[1]))))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "raw.json"], stdout=subprocess.PIPE, text=True
    )
    hanging = [tmp_path / "run" / "cells" / arm / "hanging" for arm in ("clean", "block")]
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in hanging) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "run the same command again" in said
    assert children_of(tmp_path / "run") == []


def children_of(folder):
    """Processes whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path] if str(folder).encode() in path.read_bytes() else []
        except OSError:  # the process ended in between
            continue
    return found


def test_each_of_several_cells_gets_its_share_of_the_gpus(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.setattr(
        runner.subprocess,
        "Popen",
        lambda command, env, **_: seen.update({command[0]: env["CUDA_VISIBLE_DEVICES"]}),
    )
    for slot in range(2):
        runner._start([str(slot)], tmp_path, slot, 2)
    runner._start(["alone"], tmp_path, 0, 1)
    assert seen == {"0": "4,6", "1": "5", "alone": "4,5,6"}


def test_a_terminal_gets_one_line_that_is_redrawn(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    screen = runner.Screen()
    screen.status("1/2 done")
    screen.status("1/2 done")
    screen.say("done a")
    screen.status("")
    assert capsys.readouterr().out == "\r\033[K1/2 done\r\033[Kdone a\n"


def test_the_yaml_of_a_cell_is_read_back_as_it_was(tmp_path):
    config = {"gen": {"stop": ["${x}", "\\n"]}, "train": {"learning_rate": 1e-6}}
    commands._write(tmp_path / "cell.yaml", config)
    assert load_raw(tmp_path / "cell.yaml") == config
