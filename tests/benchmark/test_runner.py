"""A whole benchmark on a tiny saved model: what it writes, how it goes on, what a failed trial does."""

import csv
import json
import re
import subprocess
import sys

import pytest

from llmhalluc import run_benchmark
from llmhalluc.benchmark import config, measure, report, runner, study, table
from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.yaml_files import to_yaml
from llmhalluc.report.page import STYLE
from tests.eval.models import save_sudoku_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_sudoku_model(tmp_path_factory.mktemp("model"), context=None)


def plain(model, folder, **changes):
    """A benchmark's YAML as plain data; `changes` are dotted keys with `__` for the dot."""
    raw = {
        "model_name_or_path": str(model),
        "device": "cpu",
        "operator_to_tune": "probability_threshold",
        "generation": {"max_new_tokens": 12, "temperature": 1.0},
        "evaluation": {
            "tasks": ["sudoku"],
            "task_options": {"sudoku": {"count": 10}},
            "limit": 8,
            "output_dir": str(folder),
            "batch_size": 4,
        },
        "hpo": {"n_trials": 4, "parts": 2, "startup_trials": 2, "search_space": {"minimum": [0.01, 0.3]}},
    }
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (raw[section] if section else raw)[key] = value
    return raw


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    """A finished benchmark: its folder and its results."""
    folder = tmp_path_factory.mktemp("done") / "run"
    return folder, runner.run(config.build(plain(model, folder)))


def test_results_csv_and_samples_agree(done):
    folder, results = done
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["documents"] == {"tune": {"sudoku": 4}, "held_out": {"sudoku": 4}}
    samples = [json.loads(line) for line in (folder / "samples.jsonl").open()]
    for name, found in (("baseline", results["baseline"]["held_out"]), ("winner", results["winner"]["held_out"])):
        mine = [sample for sample in samples if sample["decoding"] == name]
        assert [sample["doc_id"] for sample in mine] == [4, 5, 6, 7], "the documents that no trial saw"
        assert found["n"] == 4 and found["accuracy"] == sum(s["correct"] for s in mine) / 4
        assert found["forward_passes_per_sample"] == sum(s["forward_passes"] for s in mine) / 4
        kept = sum(sample["kept"] for sample in mine)
        assert found["emitted_per_kept"] == pytest.approx(sum(s["emitted"] for s in mine) / kept)
    assert (
        results["baseline"]["held_out"]["erasures_per_sample"]
        == 0
        < results["winner"]["held_out"]["erasures_per_sample"]
    )
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["decoding"] for row in rows] == [
        "baseline", "trial 1", "trial 2", "trial 3", "trial 4", "baseline", "winner",
    ]  # fmt: skip
    assert float(rows[-1]["parameter.minimum"]) == results["winner"]["parameters"]["minimum"]
    assert "held-out documents" in table.text(results)


def test_the_winner_is_the_best_trial_and_the_first_trial_the_defaults(done):
    _, results = done
    assert results["trials"][0]["parameters"] == {"minimum": 0.05}
    best = max(t["accuracy"] for t in results["trials"] if t["state"] == "scored")
    assert results["trials"][results["winner"]["trial"] - 1]["accuracy"] == best
    assert all(trial["seconds_over_baseline"] > 0 for trial in results["trials"])


def test_the_report_is_one_file_and_escapes(done, model, tmp_path, capsys):
    page = (done[0] / "report.html").read_text()
    assert page.count("<svg") >= 4 and "<script" not in page and not re.search(r"<!--\w+-->", page)
    assert '<del class="rule" title="erased by probability_threshold">' in page and STYLE.read_text().rstrip() in page
    assert "src=" not in page and "<link" not in page and "probability_threshold" in page
    evil = save_sudoku_model(tmp_path / "<b>model")
    raw = plain(evil, tmp_path / "run", operator_to_tune=None)
    results = runner.run(config.build(raw))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<b>model" not in page and "&lt;b&gt;model" in page
    assert results["winner"] is None and results["documents"]["held_out"] == {"sudoku": 8}
    capsys.readouterr()
    runner.run(config.build(raw))
    assert capsys.readouterr().out == f"{tmp_path / 'run'} holds this benchmark finished\n", (
        "there are no trials to add"
    )


def test_a_finished_benchmark_decodes_nothing_and_more_trials_go_on(done, model, monkeypatch, tmp_path):
    folder, results = done
    with monkeypatch.context() as patched:
        patched.setattr(measure.Session, "decode", lambda *_: pytest.fail("decoded again"))
        assert runner.run(config.build(plain(model, folder))) == json.loads(json.dumps(results))
    with pytest.raises(UserError, match=r"holds another run \(hpo\.search_space.* or set evaluation\.overwrite=true"):
        runner.run(config.build(plain(model, folder, hpo__search_space={"minimum": [0.1, 0.2]})))


SECONDS = {"seconds", "seconds_over_baseline"}


def settled(results):
    """The results without what a clock measured."""
    text = json.dumps({key: results[key] for key in ("baseline", "trials", "winner", "comparison")})
    return json.loads(text, object_hook=lambda d: {key: value for key, value in d.items() if key not in SECONDS})


def test_a_killed_study_ends_as_an_uninterrupted_one(done, model, tmp_path, monkeypatch, without_report):
    _, results = done
    calls, decode = [0], measure.Session.decode

    def killed(session, *arguments):
        calls[0] += 1
        if calls[0] == 9:  # warm-up, two parts of the baseline, two of each trial: in the middle of the third trial
            raise KeyboardInterrupt
        return decode(session, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(measure.Session, "decode", killed)
        with pytest.raises(KeyboardInterrupt):
            runner.run(config.build(plain(model, tmp_path / "run")))
    assert len(study.finished(study.open_study(tmp_path / "run"))) == 2
    assert not (tmp_path / "run" / "results.json").exists()
    again = runner.run(config.build(plain(model, tmp_path / "run")))
    assert settled(again) == settled(results)


def test_a_failed_trial_is_told_with_its_reason_and_never_scored(model, tmp_path, monkeypatch, capsys):
    decode = measure.Session.decode

    def sometimes(session, parameters, documents):
        if parameters and parameters["minimum"] == 0.05:
            raise RuntimeError("out of\nluck")
        return decode(session, parameters, documents)

    monkeypatch.setattr(measure.Session, "decode", sometimes)
    results = runner.run(config.build(plain(model, tmp_path / "run", hpo__n_trials=3)))
    first = results["trials"][0]
    assert (first["state"], first["reason"], first.get("accuracy")) == ("failed", "RuntimeError: out of luck", None)
    assert results["winner"]["trial"] != 1 and len(results["trials"]) == 3
    assert "trial 1 of 3, minimum 0.05: failed, RuntimeError: out of luck" in capsys.readouterr().out
    assert "out of luck" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.setattr(measure.Session, "decode", lambda s, p, d: decode(s, p, d) if p is None else 1 / 0)
    with pytest.raises(UserError, match="no trial could be scored.*ZeroDivisionError"):
        runner.run(config.build(plain(model, tmp_path / "none", hpo__n_trials=2)))


def test_a_poor_trial_is_pruned_and_not_the_winner(model, tmp_path, monkeypatch, without_report):
    decode = measure.Session.decode

    def scored(session, parameters, documents):
        outcome = decode(session, parameters, documents)
        for answer in outcome.answers:
            answer["correct"] = int(parameters is not None and len(seen) < 3)
        if parameters is not None:
            seen[parameters["minimum"]] = True
        return outcome

    seen: dict[float, bool] = {}
    monkeypatch.setattr(measure.Session, "decode", scored)
    results = runner.run(config.build(plain(model, tmp_path / "run", hpo__n_trials=4)))
    assert [trial["state"] for trial in results["trials"]] == ["scored", "scored", "scored", "pruned"]
    assert results["trials"][3]["n"] == 2 and results["winner"]["trial"] < 4


@pytest.fixture
def without_report(monkeypatch):
    """Spare a test the seconds that pictures take."""
    monkeypatch.setattr(report, "write", lambda *_: None)


def test_sampling_settings_reach_the_model(model, tmp_path, monkeypatch, without_report):
    seen, decode_all = [], measure.BacktrackLM.generate_until

    def generate(lm, requests, **keywords):
        made = decode_all(lm, requests, **keywords)
        seen.extend(lm.options.values())
        return made

    monkeypatch.setattr(measure.BacktrackLM, "generate_until", generate)
    given = {"max_new_tokens": 5, "temperature": 0.0, "top_k": 3, "backtrack_every_n": 2}
    runner.run(config.build(plain(model, tmp_path / "run", generation=given, hpo__n_trials=1)))
    assert {(o.max_new_tokens, o.temperature, o.top_k, o.backtrack_every_n) for o in seen} == {(5, 0.0, 3, 2)}
    assert {o.operator for o in seen} == {None, "probability_threshold"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"evaluation__tasks": []}, "evaluation.tasks is empty: name at least one task"),
        ({"evaluation__limit": 1}, "task sudoku has 1 document: give it more, or raise evaluation.limit"),
        ({"evaluation__apply_chat_template": True}, "evaluation.apply_chat_template is true"),
        (
            {"evaluation__fewshot_files": {"svamp": __file__}},
            "evaluation.fewshot_files names svamp, which is not among",
        ),
    ],
)
def test_what_the_loaded_tasks_tell_is_said_in_the_names_of_the_file(model, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        runner.run(config.build(plain(model, tmp_path / "run", **changes)))


def test_a_stopped_program_says_how_to_go_on(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "b.yaml").write_text(to_yaml(plain(model, tmp_path / "run")))
    monkeypatch.setattr(measure.Session, "warm_up", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    for words, told in (
        ((), "again to"),
        (("evaluation.overwrite=true",), "again without evaluation.overwrite=true to"),
    ):
        monkeypatch.setattr(sys, "argv", ["run_benchmark", "--config", str(tmp_path / "b.yaml"), *words])
        assert run_benchmark.main() == 130
        assert f"stopped: run the same command {told} resume" in capsys.readouterr().out


def test_the_program_runs_and_prints_the_comparison(model, tmp_path):
    (tmp_path / "b.yaml").write_text(to_yaml(plain(model, tmp_path / "run")))
    command = [sys.executable, "-m", "llmhalluc.run_benchmark", "--config", str(tmp_path / "b.yaml"), "hpo.n_trials=1"]
    ran = subprocess.run([*command, "--verbose"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "trial 1 of 1, minimum 0.05: " in ran.stdout and "forward passes a sample" in ran.stdout
    assert "On 4 held-out documents the winner (minimum 0.05)" in ran.stdout
    assert (tmp_path / "run" / "report.html").exists()
