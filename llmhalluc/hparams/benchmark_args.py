"""The keys of a benchmark's YAML: flat on top, and the sections `evaluation` and `hpo`.

The sections `model_kwargs`, `generation` and `evaluation` hold the keys of `model`, `gen` and `eval`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from llmhalluc.extras.option import Section, option
from llmhalluc.hparams.sections import EvalArguments, GenArguments, ModelArguments


@dataclass
class BenchmarkArguments:
    """Which model, and which operator's parameters are looked for."""

    model_name_or_path: str | None = option(None, "hub name, local folder, or package:NAME")
    device: str | None = option(None, "cpu, cuda, cuda:0, mps; none: the best one there is")
    run_baseline: bool = option(True, "decode without an operator too, and compare with it")
    operator_to_tune: str | None = option(None, "operator, such as probability_threshold; none: the baseline alone")
    operator_args: dict[str, Any] = option({}, "parameters of the operator that stay as they are")


@dataclass
class ModelKwargs(ModelArguments):
    """How the model is loaded: the keys of the section `model` of other YAMLs."""

    section: ClassVar[str] = "model_kwargs"

    @classmethod
    def key(cls, name: str) -> str:
        """Return the name of a key; where a model comes from stands on top of a benchmark's YAML."""
        return {"name_or_path": "model_name_or_path", "device": "device"}.get(name) or super().key(name)


@dataclass
class Generation(GenArguments):
    """How completions are decoded: the keys of the section `gen` of other YAMLs."""

    section: ClassVar[str] = "generation"


@dataclass
class EvaluationArguments(EvalArguments):
    """The tasks, as in the section `eval` of other YAMLs; limit counts the documents of both splits together."""

    section: ClassVar[str] = "evaluation"
    output_dir: str = option("outputs/benchmark", "folder for results.json, results.csv, report.html and the study")


@dataclass
class HpoArguments(Section):
    """The search by Optuna: trials are scored on the first documents of each task, the winner on the others."""

    section: ClassVar[str] = "hpo"
    n_trials: int = option(
        20, "parameter settings that are tried; more of them resume a finished study", bounds="[1, inf)"
    )
    search_space: dict[str, Any] = option({}, "by parameter: [low, high], {low, high, log, step} or {choices: [a, b]}")
    tune_share: float = option(
        0.5, "share of each task's documents, the first, that trials are scored on", bounds="(0, 1)"
    )
    parts: int = option(4, "parts in which these are decoded; after each a poor trial may be pruned", bounds="[1, inf)")
    startup_trials: int = option(
        5, "random trials, never pruned, before the search learns from them", bounds="[1, inf)"
    )
    seed: int = option(0, "seed of the search", bounds="[0, 4294967295]")
