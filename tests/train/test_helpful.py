"""Errors are kept where the start model finds what follows no harder with them; compared one record at a time."""

import json

import pytest
import torch
from torch.nn import functional

from llmhalluc.backtrack import layout, replay
from llmhalluc.data.collator import TraceCollator
from llmhalluc.hparams.parser import build
from llmhalluc.train.helpful import compare
from llmhalluc.train.techniques import TechniqueExecutor
from tests.train.tiny_run import raw


def prepared(output_dir, context: str, **dotted) -> TechniqueExecutor:
    executor = TechniqueExecutor(
        build(raw(output_dir, backtrack__keep_if_helps=True, backtrack__context=context, **dotted))
    )
    executor.load_model()
    executor.load_data()
    return executor


def losses(model, prompt, ids, backtrack_id, context) -> dict[int, float]:
    """Loss of each surviving token, by its position, under a mask that is spelled out."""
    rows = layout(prompt, ids, backtrack_id, context)
    n = len(rows.input_ids)
    mask = torch.tensor([[[[j <= i < rows.visible_until[j] for j in range(n)] for i in range(n)]]])
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([rows.input_ids]),
            position_ids=torch.tensor([rows.position_ids]),
            attention_mask=mask,
        ).logits[0]
    return {
        at: functional.cross_entropy(logits[len(prompt) + at - 1], torch.tensor(ids[at])).item()
        for at in replay(ids, backtrack_id)
    }


def reference(executor, index: int, context: str) -> tuple[float, float] | None:
    """Over all survivors after the first corrected error, in any context: with the errors, without them."""
    backtrack_id, model = executor.backtrack_id, executor.model
    prompt, ids = executor.dataset.trace(0, index, 1.0)
    if backtrack_id not in ids:
        return None
    clean = executor.dataset.clean(index)[1]
    with_errors = losses(model, prompt, ids, backtrack_id, context)
    without = losses(model, prompt, clean, backtrack_id, context)
    after = [n for n, at in enumerate(replay(ids, backtrack_id)) if at > ids.index(backtrack_id)]
    listed = list(with_errors.values()), list(without.values())
    return tuple(sum(values[n] for n in after) for values in listed)


@pytest.mark.parametrize("converter", ["sudoku_backtrack", "backtrack"])
@pytest.mark.parametrize("context", ["soft", "block"])
def test_an_error_is_kept_where_the_rest_is_no_harder(tmp_path, context, converter):
    dotted = {"data__converter": converter, "backtrack__rate": 0.1}
    if converter == "backtrack":
        (tmp_path / "records.jsonl").write_text(
            "".join(
                json.dumps({"prompt": f"a1={1 + i % 4} solve", "completion": "b1=2 c1=3 d1=4 a2=1"}) + "\n"
                for i in range(24)
            )
        )
        dotted |= {"data__dataset": str(tmp_path / "records.jsonl"), "data__task": None}
    executor = prepared(tmp_path / "run", context, **dotted)
    firsts = {index: executor.dataset.trace(0, index, 1.0) for index in range(len(executor.dataset))}
    expected = {index: found for index in firsts if (found := reference(executor, index, context))}
    collator = TraceCollator(0)
    shares = [compare(executor.model, executor.dataset, range(i, len(firsts), 2), collator, 3) for i in range(2)]
    compared = {index: (with_errors, without) for share in shares for index, with_errors, without in share}
    assert compared.keys() == expected.keys()
    for index, (with_errors, without) in expected.items():  # in block the rest has the same loss either way: law 4
        found = compared[index]
        assert found[0] - found[1] == pytest.approx(with_errors - without, abs=1e-9)
    executor.make_trainer()
    kept = {index for index, (with_errors, without) in expected.items() if with_errors <= without}
    assert executor.dataset.kept == kept
    assert 0 < len(kept) < len(expected)
    assert executor.errors == {"drawn": len(expected), "kept": len(kept)}
    for index, first in firsts.items():
        assert executor.dataset.trace(4, index, 0.2) == (first if index in kept else executor.dataset.clean(index))


def test_a_run_says_how_many_were_kept_and_resumes(tmp_path, caplog):
    keys = {"backtrack__keep_if_helps": True, "backtrack__context": "soft", "train__save_strategy": "steps",
            "train__save_steps": 2}  # fmt: skip
    record = TechniqueExecutor(build(raw(tmp_path / "a", **keys))).run()
    counts = record["errors"]
    assert 0 < counts["kept"] <= counts["drawn"] <= 50
    assert f"keeps the errors of {counts['kept']} of {counts['drawn']} records" in caplog.text
    (tmp_path / "b").mkdir()
    for name in ("run.json", "checkpoint-2"):
        (tmp_path / "a" / name).rename(tmp_path / "b" / name)
    again = TechniqueExecutor(build(raw(tmp_path / "b", **keys, train__resume=True))).run()
    assert again | {"seconds": 0} == record | {"seconds": 0}


def test_max_tokens_counts_the_traces_that_train(tmp_path):
    executor = prepared(tmp_path, "soft", train__max_steps=None, train__max_tokens=6000, data__task={"count": 100})
    executor.make_trainer()
    n = len(executor.dataset)
    mean = sum(sum(map(len, executor.dataset.trace(0, i, 1.0))) for i in range(n)) / n
    assert executor.trainer.args.max_steps == pytest.approx(6000 / mean / 4, abs=1)
