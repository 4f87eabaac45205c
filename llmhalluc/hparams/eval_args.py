"""The `eval` section: which lm-eval tasks, on what data, with which decoding variants."""

from dataclasses import dataclass
from typing import Any, ClassVar

from llmhalluc.extras.option import Section, option
from llmhalluc.tasks import DEFAULT_EVALUATION


@dataclass
class EvalArguments(Section):
    """What `run_eval` runs; names as in lm-eval's `simple_evaluate` where it has them."""

    section: ClassVar[str] = "eval"
    tasks: list[str] = option([DEFAULT_EVALUATION], "lm-eval tasks, ours (configs/lm_eval/tasks) or the harness's own")
    include_path: list[str] = option([], "more folders with task YAMLs")
    data_files: dict[str, str] = option({}, "task: local file that takes the place of its hub data set")
    fewshot_files: dict[str, str] = option({}, "task: local file for its few-shot examples")
    num_fewshot: int | None = option(None, "few-shot examples; none: the task's own number", bounds="[0, inf)")
    limit: int | None = option(None, "only the first so many documents of each task", bounds="[1, inf)")
    batch_size: int = option(64, "prompts decoded at a time", bounds="[1, inf)")
    apply_chat_template: bool = option(False, "wrap prompts with the tokenizer's chat template")
    fewshot_as_multiturn: bool = option(False, "few-shot examples as turns of the chat")
    system_instruction: str | None = option(None, "system message")
    variants: dict[str, dict[str, Any]] = option(
        {}, "name: keys of gen that differ; each is evaluated on its own; none: one variant named default"
    )
    output_dir: str = option("outputs/eval", "folder for results.json and the samples")
    overwrite: bool = option(False, "delete what output_dir holds first")
    seed: int = option(0, "seed of few-shot sampling")
    task_options: dict[str, dict[str, Any]] = option({}, "task of ours that is generated: how its test is")
