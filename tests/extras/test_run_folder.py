"""A folder belongs to one run, and to one process at a time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llmhalluc.extras import run_folder
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.extras.run_folder import environment, open_run, write_json

RECORD = {"train": {"learning_rate": 1e-5, "resume": False, "output_dir": "a"}, "data": {"split": "train"}}


def test_a_run_is_recorded_with_what_made_it(tmp_path):
    with open_run(tmp_path / "deep/run", RECORD | {"pair": (1, 2)}) as folder:
        written = json.loads((folder / "run.json").read_text())
    assert written["config"] == RECORD | {"pair": [1, 2]}
    assert written["environment"].keys() == environment().keys()
    assert written["environment"]["packages"]["omegaconf"]
    assert written["environment"]["command"][0] == Path(sys.executable).name


def test_the_same_run_goes_on_when_asked(tmp_path):
    with open_run(tmp_path, RECORD):
        pass
    with open_run(tmp_path, RECORD):  # nothing was made yet: an early failure does not block the second try
        (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(UserError, match="holds this very run already: set resume=true to resume it, overwrite=true"):
        open_run(tmp_path, RECORD).__enter__()
    moved = {
        "train": RECORD["train"] | {"resume": True, "output_dir": "b"},
        "data": {"split": "train", "num_proc": 2},
    }
    with open_run(tmp_path, moved, resume=True):
        assert (tmp_path / "checkpoint-1").is_dir()


def test_another_run_is_refused_with_the_keys_that_differ(tmp_path):
    with open_run(tmp_path, {"a": 1}):
        pass
    with open_run(tmp_path, RECORD):  # nothing came of the first, so a corrected config may have its folder
        (tmp_path / "checkpoint-1").mkdir()
    other = {"train": {"learning_rate": 1e-4, "resume": True, "output_dir": "a"}, "data": {}}
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, other, resume=True).__enter__()
    assert caught.value.sentences == (
        f"output_dir {tmp_path} holds another run (data: absent there, {{}} here; data.split: train there, "
        "absent here; train.learning_rate: 1e-05 there, 0.0001 here): choose another one or set "
        "overwrite=true, which deletes what it holds",
    )
    many = {"a": {str(i): i for i in range(9)}}
    with pytest.raises(UserError, match=r" and \d+ more\): choose another"):
        open_run(tmp_path, many).__enter__()


def test_overwrite_deletes_a_run_and_nothing_else(tmp_path):
    run, foreign = tmp_path / "run", tmp_path / "home"
    with open_run(run, RECORD):
        (run / "checkpoint-1").mkdir()
        (run / "link").symlink_to(tmp_path)
    with open_run(run, {"other": 1}, overwrite=True):
        assert {path.name for path in run.iterdir()} == {".lock", "run.json"}
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds files that none of our runs wrote: choose another one"):
            open_run(foreign, RECORD, overwrite=overwrite).__enter__()
    assert (foreign / "thesis.txt").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="is a file: choose another one"):
        open_run(tmp_path / "x", RECORD).__enter__()


def test_two_runs_at_once_are_refused(tmp_path):
    with (
        open_run(tmp_path, RECORD),
        pytest.raises(UserError, match="in use by another run: wait for it or choose"),
    ):
        open_run(tmp_path, RECORD, overwrite=True).__enter__()
    with open_run(tmp_path, RECORD):
        pass


def test_the_lock_dies_with_a_killed_run_whose_workers_live_on(tmp_path):
    code = """
import os, sys, time
from llmhalluc.extras.run_folder import open_run
with open_run(sys.argv[1], {}):
    worker = os.fork()
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""
    run = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    worker = int(run.stdout.readline())
    try:
        with pytest.raises(UserError, match="in use by another run"):
            open_run(tmp_path, {}).__enter__()
        run.kill()
        run.wait()
        os.kill(worker, 0)  # raises if the worker were gone
        with open_run(tmp_path, {}):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        run.stdout.close()


def test_a_worker_that_ends_takes_no_lock_along(tmp_path):
    other = f"from llmhalluc.extras.run_folder import open_run\nwith open_run({str(tmp_path)!r}, {{}}): pass"
    with open_run(tmp_path, RECORD):
        worker = os.fork()
        if worker == 0:
            os._exit(0)
        os.waitpid(worker, 0)
        ran = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, cwd=REPOSITORY)
    assert ran.returncode == 1 and "in use by another run" in ran.stderr
    assert subprocess.run([sys.executable, "-c", other], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize(
    ("rank", "writes"), [({"RANK": "1"}, False), ({"LOCAL_RANK": "2"}, False), ({"RANK": "0"}, True)]
)
def test_one_process_of_several_locks_and_writes(tmp_path, monkeypatch, rank, writes):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    with open_run(tmp_path / "run", RECORD) as folder:
        assert folder == tmp_path / "run"
        assert (folder / "run.json").exists() is writes


def test_a_json_file_is_whole_or_old(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", {"é": [1, None]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"é": [1, None]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    monkeypatch.setattr(run_folder.os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "x.json", {"b": 1})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"é": [1, None]}
    monkeypatch.undo()
    with open_run(tmp_path / "run", {}):
        (tmp_path / "run" / ".run.json.123").write_text("{")  # left by a killed write
    with open_run(tmp_path / "run", {}):
        pass
