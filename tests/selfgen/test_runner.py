"""run_selfgen end to end on a tiny Sudoku model: the files, going on after a kill, refusals."""

import json
import logging
import os
import re

import pytest

from llmhalluc.data.selfgen import ABOUT
from llmhalluc.extras.errors import UserError
from llmhalluc.selfgen import runner, sample
from llmhalluc.selfgen.runner import generate
from tests.selfgen import noisy
from tests.selfgen.noisy import problems, solution_ids


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return noisy.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, generate(noisy.config(model, folder))


def lines(folder, name=runner.TRACES):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_a_run_writes_samples_traces_and_what_they_are(model, finished):
    folder, about = finished
    counts, traces = about["counts"], lines(folder)
    assert json.loads((folder / ABOUT).read_text()) == about
    assert counts["samples"] == len(lines(folder, "samples.jsonl")) == 72 == counts["right"] + counts["wrong"]
    assert counts["right"] > 9 and counts["wrong"] > 9, "the fixture has to be right now and then"
    errors = [trace for trace in traces if trace["own_steps"]]
    assert len(errors) == counts["traces_with_an_error"] == counts["located"] > 9
    assert len(traces) - len(errors) == counts["clean_traces"] <= len(errors)
    by_key = {one.key: one for one in problems()}
    for trace in traces:
        problem = by_key[trace["problem"]]
        assert trace["prompt_ids"] == problem.prompt_ids
        assert sorted(trace["prefix_ids"] + trace["right_ids"][:-1]) == sorted(solution_ids(problem))
    assert [int(trace["problem"].partition("-")[2]) for trace in traces] == sorted(
        int(trace["problem"].partition("-")[2]) for trace in traces
    )
    assert lines(folder, "rejections.jsonl") == [], "nothing here erases"
    assert about["problems"]["split"] == "train" and about["problems"]["count"] == 12
    assert about["backtrack_id"] == 69 and about["model"] == str(model)


def test_what_samples_took_back_is_kept_for_training(model, tmp_path):
    rule = dict(gen__operator="probability_threshold", gen__operator_args={"minimum": 0.3})
    generate(noisy.config(model, tmp_path, selfgen__samples=2, **rule))
    found, prompts = lines(tmp_path, "rejections.jsonl"), [one.prompt_ids for one in problems()]
    assert found and {one["source"] for one in found} == {"probability_threshold"}
    for one in found:
        assert any(one["prompt_ids"][: len(ids)] == ids for ids in prompts)
        assert one["chosen"] and one["rejected"] not in one["chosen"]


def test_the_same_run_again_has_nothing_to_do(model, finished, caplog):
    folder, about = finished
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}
    with caplog.at_level(logging.WARNING):
        assert generate(noisy.config(model, folder)) == about
    assert "nothing is left to do" in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"} == before


@pytest.mark.parametrize(("locator", "torn", "after"), [("departure", 0, 1), ("departure", 20, 30), ("value", 5, 100)])
def test_a_killed_run_goes_on_to_the_same_file(model, tmp_path, monkeypatch, locator, torn, after):
    whole = generate(noisy.config(model, tmp_path / "whole", selfgen__locator=locator))
    with monkeypatch.context() as patch:
        written = []
        kept = sample.Sampler._kept

        def dies(self, trace):
            written.append(trace)
            if len(written) > after:
                raise KeyboardInterrupt
            return kept(self, trace)

        patch.setattr(sample.Sampler, "_kept", dies)
        with pytest.raises(KeyboardInterrupt):
            generate(noisy.config(model, tmp_path / "killed", selfgen__locator=locator))
    for name in ("samples.jsonl", "rollouts.jsonl"):
        path = tmp_path / "killed" / name
        os.truncate(path, max(0, path.stat().st_size - torn))
    assert not (tmp_path / "killed" / ABOUT).exists()
    assert (tmp_path / "killed" / "samples.jsonl").stat().st_size > 0
    again = generate(noisy.config(model, tmp_path / "killed", selfgen__locator=locator))
    assert again["counts"] == whole["counts"]
    traces = [(tmp_path / run / runner.TRACES).read_bytes() for run in ("killed", "whole")]
    assert traces[0] == traces[1]
    for name in ("samples.jsonl", "rollouts.jsonl"):
        ours, theirs = (sorted((tmp_path / run / name).read_bytes().splitlines()) for run in ("killed", "whole"))
        assert ours == theirs, "each completion is decoded once, and comes out the same"
    taken_back = [{*(tmp_path / run / "rejections.jsonl").read_bytes().splitlines()} for run in ("killed", "whole")]
    assert taken_back[0] == taken_back[1]


def test_the_value_of_prefixes_finds_the_move_that_departure_finds(model, finished, tmp_path):
    folder, _ = finished
    config = noisy.config(model, tmp_path / "value", selfgen__locator="value", selfgen__rollouts=12)
    counts = generate(config)["counts"]
    assert counts["rollouts"] > 0
    exact = {json.dumps(trace) for trace in lines(folder) if trace["own_steps"]}
    found = {json.dumps(trace) for trace in lines(tmp_path / "value") if trace["own_steps"]}
    assert len(exact & found) > 0.6 * len(exact)
    # It may be wrong about where, never about what is right and what is not.
    for trace in map(json.loads, found):
        right = set(solution_ids(next(one for one in problems() if one.key == trace["problem"])))
        assert trace["own_steps"][0][0] not in right - {*trace["prefix_ids"]} and {*trace["prefix_ids"]} <= right


def test_max_rollouts_bounds_the_search(model, tmp_path):
    config = noisy.config(model, tmp_path, selfgen__locator="value", selfgen__max_rollouts=40, selfgen__rollouts=4)
    counts = generate(config)["counts"]
    assert counts["rollouts"] <= 40 and counts["located"] <= 5


def test_the_share_of_clean_traces_is_kept(model, tmp_path):
    for share in (0.0, 0.2):
        counts = generate(noisy.config(model, tmp_path / str(share), selfgen__clean_share=share))["counts"]
        assert counts["clean_traces"] == round(counts["traces_with_an_error"] * share / (1 - share))


def test_a_model_without_a_backtrack_makes_the_same_traces(model, finished, tmp_path):
    plain = noisy.save(tmp_path / "plain", backtrack=False)
    config = noisy.config(plain, tmp_path / "out")
    about = generate(config)
    assert about["backtrack_id"] is None
    assert about["tokenizer"] == finished[1]["tokenizer"], "a BACKTRACK alone makes no other tokenizer"


def refusal(config) -> str:
    with pytest.raises(UserError) as error:
        generate(config)
    (sentence,) = error.value.sentences
    return sentence


def test_another_run_in_the_folder_is_refused(model, finished, tmp_path):
    folder, _ = finished
    assert "selfgen.samples: 6 there, 5 here" in refusal(noisy.config(model, folder, selfgen__samples=5))
    other = noisy.save(tmp_path / "other")
    weights = (other / "model.safetensors").read_bytes()
    run = tmp_path / "run"
    generate(noisy.config(other, run))
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert re.search(r"weights: \w+ there, \w+ here", refusal(noisy.config(other, run)))
    assert generate(noisy.config(other, run, selfgen__overwrite=True))["counts"]["samples"] == 72


def test_what_makes_no_sense_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("llmhalluc.models.loader.load", None)
    nowhere = tmp_path / "none"
    same = noisy.config(nowhere, tmp_path, selfgen__temperature=0.0)
    assert refusal(same).startswith("selfgen.temperature is 0 and selfgen.samples is 6")
    by_arithmetic = noisy.config(nowhere, tmp_path, selfgen__locator="arithmetic")
    assert "the task sudoku holds no equations" in refusal(by_arithmetic)


def test_law8_problems_of_an_evaluation_split_are_refused(model, tmp_path):
    with pytest.raises(UserError, match="test is an evaluation split"):
        noisy.config(model, tmp_path, data__split="test")
    sentence = refusal(noisy.config(model, tmp_path, data__converter="selfgen"))
    assert sentence.startswith("data.converter is selfgen, whose answers cannot be checked")


def test_temperature_zero_is_one_for_samples_unless_it_is_asked_for(model, tmp_path):
    config = noisy.config(model, tmp_path / "a", selfgen__samples=1, selfgen__temperature=0.0)
    greedy = generate(config)["counts"]
    assert greedy["samples"] == 12
    sampled = noisy.config(model, tmp_path / "b", selfgen__samples=3, gen__temperature=0.0)
    generate(sampled)
    texts = [tuple(line["ids"]) for line in lines(tmp_path / "b", "samples.jsonl")]
    assert len(set(texts)) > 12


def test_nothing_to_learn_from_leaves_an_empty_file_and_a_warning(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("llmhalluc.selfgen.build.locate", lambda *_: [])
    with caplog.at_level(logging.WARNING):
        counts = generate(noisy.config(model, tmp_path))["counts"]
    assert counts["traces_with_an_error"] == counts["clean_traces"] == 0 and lines(tmp_path) == []
    assert "no trace could be made of 72 samples" in caplog.text
