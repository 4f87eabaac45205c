"""What we use of lm-eval that is not its public interface: a named function each, with its reason.

tests/eval/test_lm_eval_patches.py has a canary for each: it fails, with the reason given here, when the library moves.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmhalluc.extras.errors import UserError


def run_command_line(include_path: Path) -> None:
    """Run lm-eval's command line on sys.argv with a folder of tasks before the user's own.

    Its public entry parses and executes in one; between the two our folder comes before those of --include_path or of
    the file that --config names. Raises UserError for --use_cache with our model: the harness's cache knows neither the
    weights nor the decoding options, and would hand out one model's answers as another's.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import setup_logging

    setup_logging()
    cli = HarnessCLI()
    arguments = cli.parse_args()
    if hasattr(arguments, "include_path"):
        file = EvaluatorConfig.load_yaml_config(arguments.config) if getattr(arguments, "config", None) else {}
        cache, model = (getattr(arguments, name, None) or file.get(name) for name in ("use_cache", "model"))
        if cache and model == "backtrack":
            raise UserError(
                f"use_cache is {cache}, and the cache would give one model's answers as another's: take it out; "
                "`python -m llmhalluc.run_eval` resumes what was interrupted"
            )
        given = arguments.include_path if arguments.include_path is not None else file.get("include_path")
        arguments.include_path = [str(include_path), *([given] if isinstance(given, str) else given or [])]
    cli.execute(arguments)


@contextlib.contextmanager
def metrics_beside_results(measure: Callable[[Any, Any, dict[str, list]], dict[str, dict[str, Any]]]) -> Iterator[None]:
    """Within it `measure(lm, tasks, samples)`, metrics by task, is added to what lm-eval's evaluate found.

    Its command line prints and writes the results that `evaluate` returns; metrics of a model's traces have no other
    way into them.
    """
    from lm_eval import evaluator

    original = evaluator.evaluate

    def evaluate(lm, task_dict, *arguments, log_samples: bool = True, **keys):
        results = original(lm, task_dict, *arguments, log_samples=True, **keys)
        if results is None:  # not the first process
            return None
        for name, metrics in measure(lm, task_dict, results["samples"]).items():
            results["results"][name] |= {f"{key},none": value for key, value in metrics.items() if value is not None}
        if not log_samples:
            del results["samples"]
        return results

    evaluator.evaluate = evaluate
    try:
        yield
    finally:
        evaluator.evaluate = original


def task_config(path: Path) -> dict[str, Any]:
    """A task's YAML with its `include`s and functions: the TaskManager gives a task, whose data cannot be replaced."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(path)


def generation_options(generation_kwargs: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    """A task's generation_kwargs as HFLM reads them: a helper has four names of one number and rules of sampling."""
    from lm_eval.models.utils import normalize_gen_kwargs

    options = dict(normalize_gen_kwargs(generation_kwargs, max_new_tokens))
    options["max_new_tokens"] = options.pop("max_gen_toks")
    return options


@contextlib.contextmanager
def no_environment_probe() -> Iterator[None]:
    """Within it simple_evaluate does not run pip, two seconds a call, to describe the environment; run.json has it."""
    from lm_eval import evaluator

    probe = evaluator.add_env_info
    evaluator.add_env_info = lambda results: None
    try:
        yield
    finally:
        evaluator.add_env_info = probe


@contextlib.contextmanager
def silent_model() -> Iterator[None]:
    """Within it HFLM does not warn that the model which it is given is loaded already; no argument says so."""
    from lm_eval.models import huggingface

    logger = logging.getLogger(huggingface.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
