"""The commands on a tiny Sudoku model: what they write, that they resume, and what they refuse."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmhalluc.extras.constant import REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.interp import run as runs
from llmhalluc.interp.attention import attention
from llmhalluc.interp.conditions import compare_conditions, nats
from llmhalluc.interp.config import build
from llmhalluc.interp.counterfactual import compare_runs, counterfactual, importance, resample
from llmhalluc.interp.detect import SAMPLE_COLUMNS, detect_events, points_of
from llmhalluc.interp.generate import generate
from llmhalluc.interp.lens_stage import logit_lens
from llmhalluc.interp.load import generations_of, load_model, model_of, prepare_data
from llmhalluc.interp.pipeline import run_everything
from llmhalluc.interp.scan import ablation_scan
from llmhalluc.models.loader import load
from llmhalluc.train.sft import SFTExecutor
from tests.train.tiny_run import config as train_config

FIGURES = (
    "backtracking_rate_by_variant", "backtracking_vs_accuracy", "wait_logit_lens_bt_vs_control",
    "ablation_importance_by_layer", "backtracking_rate_by_condition",
)  # fmt: skip


def raw(folder: Path, model: Path, **dotted) -> dict:
    config: dict = {
        "seed": 0,
        "model": {"name_or_path": str(model), "device": "cpu"},
        "data": {"dataset": "sudoku", "converter": "sudoku",
                 "task": {"count": 12, "min_blanks": 8, "max_blanks": 8, "seed": 1}},
        "gen": {"max_new_tokens": 32, "temperature": 1.0, "backtrack_bias": 2.0},
        "interp": {"runs_dir": str(folder), "examples": 8, "samples": 2, "triggers": [],
                   "variants": {"plain": {}, "asked": {"instruction": " solve"}}},
        "scan": {"max_events": 12, "layers": 1, "counterfactual_events": 9, "resamples": 3, "traces": 1,
                 "random_directions": 3, "lens_rows": 4},
    }  # fmt: skip
    for name, value in dotted.items():
        section, key = name.split("__")
        config[section][key] = value
    return config


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Sudoku models of two layers in two contexts, barely trained: they erase because of a bias."""
    made = {}
    for context in ("block", "soft"):
        folder = tmp_path_factory.mktemp(context)
        sizes = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2}  # fmt: skip
        settings = dict(model__from_config=sizes, train__max_steps=30, data__task={"count": 200})
        SFTExecutor(train_config(folder / "train", backtrack__context=context, **settings)).run()
        made[context] = folder / "train"
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory, models) -> runs.Run:
    """A run with everything done."""
    config = build(
        raw(tmp_path_factory.mktemp("runs"), models["block"], interp__base={"name_or_path": str(models["soft"])})
    )
    run = runs.init(config, "whole")
    run_everything(run, "plain")
    return run


def rows(run: runs.Run, name: str) -> list[dict[str, str]]:
    with run.path("analysis", name).open() as file:
        return list(csv.DictReader(file))


def test_every_artefact_is_there(whole):
    for name in FIGURES:
        assert whole.path("figures", f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (whole.path("figures", "formatting_effect_on_backtracking.png")).exists()
    page = whole.path("reports", "backtracking_state_transition_report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "") and '<script type="application/json"' in page
    markdown = whole.path("reports", "backtracking_state_transition_report.md").read_text().splitlines()
    assert markdown[2].startswith("Hooked and packed forward less the model's own: at most ")
    for name in ("logit_lens", "ablation_importance", "condition_comparison", "formatting_summary", "probes",
                 "patching", "dose_response", "attention", "model_comparison", "backtracking_events"):  # fmt: skip
        assert rows(whole, f"{name}.csv"), name
    meta = json.loads(whole.path("meta.json").read_text())
    assert {"commit", "packages", "model", "run_id"} <= meta.keys() and "platform" not in meta
    assert (whole.folder.parent / runs.CURRENT).read_text() == "whole\n"


def test_a_row_of_an_event_points_at_the_token_that_is_taken_back(whole):
    samples = {(one["example_id"], str(one["sample_id"])): one for one in generations_of(whole, "plain")}
    tokens = load(whole.config.config.model, None)
    found = [
        row
        for row in rows(whole, "backtracking_events.csv")
        if row["variant"] == "plain" and row["condition"] == "baseline"
    ]
    assert tuple(found[0]) == SAMPLE_COLUMNS and len(found) == 16 == len(
        {tuple(list(row.values())[:2]) for row in found}
    )
    for row in found:
        sample = samples[row["example_id"], row["sample_id"]]
        ids = sample["prompt_ids"] + sample["completion_ids"]
        assert (int(row["prompt_tokens"]), int(row["completion_tokens"])) == (
            len(sample["prompt_ids"]),
            len(sample["completion_ids"]),
        )
        assert (row["has_backtracking_relaxed"] == "1") == (tokens.backtrack_id in sample["completion_ids"])
        if row["onset_token_id"]:
            assert ids[int(row["onset_token_in_full"])] == int(row["onset_token_id"]) == tokens.backtrack_id
            assert int(row["pred_pos_in_full"]) == int(row["onset_token_in_full"]) - 1


def test_the_last_layer_of_the_lens_is_what_decoding_saw(whole):
    samples, points = {}, points_of(whole, "plain")
    last = max(int(row["layer"]) for row in rows(whole, "logit_lens.csv"))
    model = model_of(whole)
    for point in points.events:
        samples[point.event] = point
    for row in [row for row in rows(whole, "logit_lens.csv") if row["kind"] == "event" and int(row["layer"]) == last]:
        point = samples[int(row["event"])]
        layout = model.rows(points.samples[point.at])
        inputs = {name: torch.tensor([part]) for name, part in layout._asdict().items()}
        logits = model.loaded.model(**inputs).logits[0, point.row].detach()
        assert float(row["logit"]) == pytest.approx(float(logits[point.target]), abs=1e-6)


def test_a_second_time_nothing_is_done_and_no_row_is_doubled(whole, capsys):
    before = {path.name: path.read_bytes() for path in whole.path("analysis").iterdir()}
    run_everything(runs.find(whole.config, "whole"), "plain")
    said = capsys.readouterr().out.splitlines()
    assert said and all(line.endswith("up to date") for line in said)
    assert {path.name: path.read_bytes() for path in whole.path("analysis").iterdir()} == before


def test_another_variant_keeps_the_rows_of_the_first(whole, tmp_path):
    shutil.copytree(whole.folder.parent, tmp_path / "runs")
    config = whole.config
    config.interp.runs_dir, before = str(tmp_path / "runs"), config.interp.runs_dir
    try:
        run = runs.find(config, "whole")
        for stage in (logit_lens, ablation_scan):
            stage(run, "asked")
        for name in ("logit_lens.csv", "ablation_importance.csv"):
            kept = [row for row in rows(run, name) if row["variant"] == "plain"]
            assert kept == rows(whole, name) and {row["variant"] for row in rows(run, name)} == {"plain", "asked"}
    finally:
        config.interp.runs_dir = before


def test_generation_resumes_where_it_was_stopped(tmp_path, models):
    config = build(raw(tmp_path, models["block"]))
    run = runs.init(config, "one")
    prepare_data(run)
    generate(run, "plain", ["baseline"])
    path = run.path("generations", "plain__baseline.jsonl")
    whole, calls = path.read_text(), []
    from llmhalluc.interp import generate as module

    def stopped(model, prompts, spec, **more):
        calls.append(len(prompts))
        finish = more.pop("on_finish")

        def finished(at, trace):
            if len(calls) == 1 and at == 3:
                raise KeyboardInterrupt
            finish(at, trace)

        return decode(model, prompts, spec, on_finish=finished, **more)

    decode = module.decode
    path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "decode", stopped)
        with pytest.raises(KeyboardInterrupt):
            generate(run, "plain", ["baseline"])
        assert not path.exists()
        generate(run, "plain", ["baseline"])
    assert path.read_text() == whole and calls[1] < calls[0] == 16
    assert not list(run.path("generations").glob(".*"))


def test_generations_of_other_problems_are_left_out(tmp_path, models, capsys):
    run = runs.init(build(raw(tmp_path, models["block"])), "one")
    prepare_data(run)
    for variant in ("plain", "asked"):
        generate(run, variant, ["baseline"])
    run.config.interp.examples = 4
    prepare_data(run)
    generate(run, "plain", ["baseline"])
    detect_events(run)
    assert "asked__baseline.jsonl is of other problems: run generate --variant asked" in capsys.readouterr().out
    assert {row["variant"] for row in rows(run, "backtracking_events.csv")} == {"plain"}
    assert len(rows(run, "backtracking_events.csv")) == 8


def test_conditions_differ_from_the_baseline_and_are_paired(whole):
    by_condition = {row["condition"]: row for row in rows(whole, "condition_comparison.csv")}
    assert list(by_condition) == ["baseline", "targeted", "random"]
    assert by_condition["baseline"]["perplexity_difference"] == ""
    for name in ("targeted", "random"):
        assert float(by_condition[name]["perplexity"]) != float(by_condition["baseline"]["perplexity"])
        assert by_condition[name]["has_backtracking_relaxed_p"] != ""


def test_law3_the_likelihood_of_a_completion_is_the_one_that_decoding_saw(whole):
    for sample in generations_of(whole, "plain"):
        assert nats(model_of(whole), sample) == pytest.approx(sample["nats"], abs=1e-6)


def test_two_runs_are_compared_over_their_problems(whole, capsys):
    compare_runs(whole, runs.named(whole.config, "whole"), "plain")
    said = capsys.readouterr().out
    assert said.count("+0.0 points") == 3 and "forced less banned, whole less whole" in said
    path = whole.path("analysis", "compared__whole__plain.json")
    found = json.loads(path.read_text())
    path.unlink()
    assert found["forced_minus_banned"]["mean"] == 0.0 and found["runs"] == ["whole", "whole"]


def test_forced_and_banned_hold_at_the_event_and_nothing_else_changes(whole):
    model, points = model_of(whole), points_of(whole, "plain")
    point = points.events[0]
    sample = points.samples[point.at]
    at = point.row + 1 - len(sample["prompt_ids"])
    found = resample(whole, model, sample, point)
    assert sorted(name for name, _ in found) == sorted(["left", "banned", "forced"] * 3)
    for name, trace in found:
        assert trace.completion_ids[:at] == sample["completion_ids"][:at]
        if name != "left":
            assert (trace.completion_ids[at] == point.target) == (name == "forced")
    assert len({tuple(trace.completion_ids) for _, trace in found}) > 3


def test_the_importance_of_an_event_is_a_difference_of_accuracies():
    found = importance(
        [{"example_id": f"p{i}", "event": i, "left": [1, 0], "banned": [0, 0], "forced": [1, 1]} for i in range(6)]
    )
    assert found["forced_minus_banned"]["mean"] == 1.0 and found["left_minus_banned"]["mean"] == 0.5
    assert (found["events"], found["problems"]) == (6, 6)


def test_attention_to_erased_tokens_is_none_in_block_and_some_in_soft(whole, tmp_path, models):
    assert {row["largest"] for row in rows(whole, "attention.csv")} == {"0.0"}
    run = runs.init(build(raw(tmp_path, models["soft"])), "soft")
    prepare_data(run)
    generate(run, "plain", ["baseline"])
    attention(run, "plain")
    assert all(float(row["mass_on_erased"]) > 0.01 for row in rows(run, "attention.csv"))


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        (lambda run: generate(run, "plain", ["baseline"]), r"problems.jsonl does not exist: run prepare-data first"),
        (detect_events, r"holds no generations: run generate first"),
        (lambda run: logit_lens(run, "plain"), r"onsets.csv does not exist: run detect-events first"),
        (lambda run: ablation_scan(run, "plain"), r"onsets.csv does not exist: run detect-events first"),
        (lambda run: counterfactual(run, "plain"), r"onsets.csv does not exist: run detect-events first"),
        (lambda run: compare_conditions(run, "plain"), r"problems.jsonl does not exist: run prepare-data first"),
        (lambda run: run.config.variant("other"), r"--variant is 'other'; valid: plain, asked"),
        (lambda run: generate(run, "plain", ["other"]), r"--condition is 'other'; valid: baseline, targeted, random"),
    ],
)
def test_a_stage_out_of_turn_names_the_command_to_run_first(tmp_path, models, stage, sentence):
    run = runs.init(build(raw(tmp_path, models["block"])), "one")
    with pytest.raises(UserError, match=sentence):
        stage(run)


def test_events_of_other_generations_than_those_at_hand_are_refused(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "runs" / "whole")
    run = runs.Run(tmp_path / "runs" / "whole", whole.config)
    path = run.path("generations", "plain__baseline.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    for stage in (logit_lens, ablation_scan, counterfactual):
        with pytest.raises(UserError, match=r"plain__baseline.jsonl is newer than .*: run detect-events first"):
            stage(run, "plain")


def test_no_events_are_said_as_such_and_targeted_wants_a_scan(tmp_path, models):
    run = runs.init(build(raw(tmp_path, models["block"], gen__backtrack=False)), "one")
    prepare_data(run)
    generate(run, "plain", ["baseline"])
    with pytest.raises(
        UserError, match=r"selected_layers.json does not exist: run ablation-scan --variant plain first"
    ):
        generate(run, "plain", ["targeted"])
    detect_events(run)
    for stage in (logit_lens, ablation_scan, counterfactual):
        with pytest.raises(UserError, match=r"variant plain of run one has no events \(BACKTRACK\): generate more"):
            stage(run, "plain")


def test_a_run_of_another_model_is_refused(whole, models):
    other = build(raw(whole.folder.parent, models["soft"]))
    for call in (runs.find, runs.init):
        with pytest.raises(
            UserError, match=r"run whole has model.name_or_path .*run init-run with another --run-id first"
        ):
            call(other, "whole")
    with pytest.raises(UserError, match=r"--run-id whale is no run of .*; did you mean whole\?"):
        runs.find(whole.config, "whale")


@pytest.mark.parametrize(
    ("section", "key", "value", "sentence"),
    [
        ("interp", "variants", {}, "interp.variants is empty"),
        ("interp", "variants", {"a/b": {}}, "interp.variants has the name 'a/b'"),
        ("interp", "variants", {"a": {"chatt": True}}, r"chatt is no key; did you mean interp.variants.a.chat\?"),
        ("interp", "triggers", ["Wait", " "], "interp.triggers holds an empty phrase"),
        ("scan", "ablations", ["zeros"], r"scan.ablations holds 'zeros'; did you mean zero\?"),
        ("scan", "ablations", [], "scan.ablations is empty"),
        ("scan", "lens", "tunes", r"scan.lens is 'tunes', expected one of logit, tuned, jacobian"),
        ("data", "converter", "squad", "data.converter is squad, whose answers cannot be checked"),
        ("gen", "operator", "repetition", r"gen.operator is repetition: what a rule erased cannot be fed again"),
        ("interp", "exampels", 3, r"interp.exampels is no key; did you mean interp.examples\?"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_config_is_one_sentence(tmp_path, models, section, key, value, sentence):
    with pytest.raises(UserError, match=sentence):
        build(raw(tmp_path, models["block"], **{f"{section}__{key}": value}))


def test_the_program_lists_its_commands_and_ends_with_2_for_bad_input(tmp_path):
    def program(*words):
        command = [sys.executable, "-m", "llmhalluc.run_interp", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)

    listed = program("--help")
    names = ("init-run", "prepare-data", "generate", "detect-events", "logit-lens", "ablation-scan",
             "compare-conditions", "formatting-sweep", "make-report", "counterfactual", "compare-models")  # fmt: skip
    assert listed.returncode == 0 and all(name in listed.stdout for name in names)
    refused = program("logit-lens", "--config", "configs/interp/sudoku_backtrack.yaml", f"interp.runs_dir={tmp_path}",
                      f"model.name_or_path={tmp_path}")  # fmt: skip
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr
    assert "run init-run first" in refused.stderr


def test_a_model_without_backtrack_needs_phrases(tmp_path, models):
    config = build(raw(tmp_path, models["block"]))
    model = load_model(config)
    run = runs.init(config, "one")
    prepare_data(run)
    generate(run, "plain", ["baseline"])
    model.loaded = model.loaded._replace(backtrack_id=None)
    run.model = model
    with pytest.raises(UserError, match="interp.triggers is empty, and the model has no BACKTRACK token"):
        detect_events(run)
