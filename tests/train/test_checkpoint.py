"""Which checkpoint a resumed run takes."""

import io
import json

import pytest
import torch

from llmhalluc.extras.errors import UserError
from llmhalluc.train.checkpoint import newest_checkpoint

SAVED = io.BytesIO()
torch.save({"state": torch.zeros(3)}, SAVED)


def save(output_dir, step: int, processes: int = 1):
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir()
    for rank in range(processes):
        (folder / f"progress_{rank}.json").write_text("{}")
        name = f"rng_state_{rank}.pth" if processes > 1 else "rng_state.pth"
        (folder / name).write_bytes(SAVED.getvalue())
    for name in ("optimizer.pt", "scheduler.pt"):
        (folder / name).write_bytes(SAVED.getvalue())
    (folder / "model.safetensors").touch()
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "optimizer.pt", "rng_state.pth", "progress_0.json", "model.safetensors"]
)
def test_a_checkpoint_without_one_of_its_files_is_skipped(tmp_path, name, caplog):
    good = save(tmp_path, 9)
    (save(tmp_path, 10) / name).unlink()
    assert newest_checkpoint(tmp_path, 1) == good
    assert "checkpoint-10 is skipped" in caplog.text


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_with_a_file_cut_off_is_skipped(tmp_path, name):
    good, torn = save(tmp_path, 9), save(tmp_path, 10) / name
    torn.write_bytes(torn.read_bytes()[:-1])
    assert newest_checkpoint(tmp_path, 1) == good


def test_the_largest_step_is_the_newest(tmp_path):
    assert newest_checkpoint(tmp_path, 1) is None
    save(tmp_path, 9), save(tmp_path, 100)
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path, 1).name == "checkpoint-100"


def test_another_number_of_processes_is_refused(tmp_path):
    save(tmp_path, 9, processes=2)
    assert newest_checkpoint(tmp_path, 2).name == "checkpoint-9"
    with pytest.raises(UserError, match="saved by 2 process"):
        newest_checkpoint(tmp_path, 1)
