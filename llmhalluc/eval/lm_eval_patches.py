"""What we use of lm-eval that is not its public interface: a named function each, with its reason.

tests/eval/test_lm_eval_patches.py has a canary for each: it fails, with the reason given here, when the library moves.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def run_command_line(include_path: Path) -> None:
    """Run lm-eval's command line on sys.argv with a folder of tasks before the user's own.

    Its public entry parses and executes in one; between the two our folder comes before those of --include_path or of
    the file that --config names.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import setup_logging

    setup_logging()
    cli = HarnessCLI()
    arguments = cli.parse_args()
    if hasattr(arguments, "include_path"):
        given = arguments.include_path
        if given is None and getattr(arguments, "config", None):
            given = EvaluatorConfig.load_yaml_config(arguments.config).get("include_path")
        arguments.include_path = [str(include_path), *([given] if isinstance(given, str) else given or [])]
    cli.execute(arguments)


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
