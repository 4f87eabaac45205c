"""The sections of a YAML: one dataclass each, whose fields say their default, meaning, bounds and choices."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from llmhalluc import tasks
from llmhalluc.backtrack import CONTEXTS
from llmhalluc.extras.option import Section, option

# Converters that know no task; of these, the ones that train on the errors that run_selfgen found.
GENERIC_CONVERTERS = ("sft", "backtrack", "dpo", "backtrack_dpo", "selfgen", "rejections")
OWN_ERRORS = ("selfgen", "backtrack_dpo")
CONVERTERS = (*GENERIC_CONVERTERS, *tasks.CONVERTERS)


@dataclass
class ModelArguments(Section):
    """Which model, which tokenizer, how the BACKTRACK row starts, what trains."""

    section: ClassVar[str] = "model"
    name_or_path: str | None = option(None, "hub name, local folder, or package:NAME (an installed Python package)")
    gguf_file: str | None = option(None, "GGUF file inside name_or_path; converted once to safetensors and cached")
    from_config: dict[str, Any] | None = option(
        None, "a fresh model: model_type (llama, qwen3, gpt2) and any key of its transformers config"
    )
    tokenizer: str | None = option(
        None, f"tokenizer when it is not the model's own: hub name, local folder, or {', '.join(tasks.TOKENIZERS)}"
    )
    adapter: str | None = option(None, "folder of a PEFT adapter to put on the model")
    revision: str = option("main", "hub revision")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = option("auto", "dtype of the weights")
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] = option(
        "sdpa", "attention kernel; flex_attention is for long rows on a GPU"
    )
    device: str | None = option(None, "cpu, cuda, cuda:0, mps; none: the best one there is")
    trust_remote_code: bool = option(False, "run Python code that comes with the model")
    token_init: Literal["mean", "description", "semantic", "combined", "random"] = option(
        "semantic", "start value of the BACKTRACK rows"
    )
    token_init_words: list[str] = option(
        ["delete", "undo", "erase", "remove", "backspace"], "words whose embeddings semantic averages"
    )
    token_init_description: str = option(
        "a special token that erases the token before it", "sentence whose token embeddings description averages"
    )
    token_init_noise: float = option(
        0.01, "standard deviation of the noise, relative to the row's norm", bounds="[0, inf)"
    )
    finetuning: Literal["full", "lora", "qlora"] = option("full", "which weights train")
    lora_r: int = option(16, "LoRA rank", bounds="[1, inf)")
    lora_alpha: int = option(32, "LoRA alpha", bounds="[1, inf)")
    lora_dropout: float = option(0.0, "LoRA dropout", bounds="[0, 1)")
    lora_target_modules: str | list[str] = option("all-linear", "modules that get a LoRA adapter (peft's syntax)")


@dataclass
class DataArguments(Section):
    """Which records train, and which converter turns them into traces."""

    section: ClassVar[str] = "data"
    dataset: str = option(
        tasks.DEFAULT_DATASET,
        f"hub name, local .json/.jsonl/.csv/.parquet file, or a generator: {', '.join(tasks.GENERATORS)}",
    )
    task: dict[str, Any] = option({}, "options of the task that dataset generates, or else that converter is of")
    subset: str | None = option(None, "configuration of a hub data set, such as main")
    split: str = option("train", "split that trains; the name of an evaluation split is refused")
    eval_dataset: str | None = option(None, "records for the evaluation loss during training; never corrupted")
    eval_split: str | None = option(None, "split of eval_dataset (or of dataset) for the evaluation loss")
    converter: str = option("sft", "what turns records into traces (docs/data.md)", choices=CONVERTERS)
    prompt_column: str = option("prompt", "column of the prompt (sft, backtrack)")
    completion_column: str = option("completion", "column of the answer (sft, backtrack)")
    template: Literal["none", "math", "qa"] = option("none", "prompt template of llmhalluc/prompts")
    apply_chat_template: bool = option(False, "wrap the prompt with the tokenizer's chat template")
    max_samples: int | None = option(None, "use the first so many records", bounds="[1, inf)")
    max_length: int | None = option(None, "longest trace in tokens; longer ones are left out", bounds="[1, inf)")
    num_proc: int | None = option(None, "processes that tokenise", bounds="[1, inf)")


@dataclass
class BacktrackArguments(Section):
    """What a BACKTRACK means to the model and how the training errors are drawn."""

    section: ClassVar[str] = "backtrack"
    token: str | None = option(None, "the special token; none: the one of the model's family")
    context: Literal["soft", "block", "rewind"] = option("soft", "what the model still sees after an erasure")
    error_labels: Literal["train", "mask", "redirect"] = option("mask", "what the loss does with erased tokens")
    source: Literal["random", "shuffled", "digits"] = option(
        "random", "errors: random plain tokens, tokens of the same answer, or other digits of a number"
    )
    rate: float = option(0.05, "expected error runs per token of the answer", bounds="[0, inf)")
    run_length: Literal["uniform", "geometric"] = option("geometric", "distribution of the length of an error run")
    min_run: int = option(1, "shortest error run, tokens", bounds="[1, inf)")
    max_run: int = option(5, "longest error run, tokens", bounds="[1, inf)")
    mean_run: float = option(2.0, "mean of the geometric distribution before truncation", bounds="[1, inf)")
    nesting: float = option(0.0, "probability that an error run holds an erased run of its own", bounds="[0, 1)")
    curriculum: Literal["none", "linear"] = option("none", "linear: the longest run grows from min_run to max_run")
    curriculum_end: float = option(0.5, "share of training after which the longest run is max_run", bounds="(0, 1]")
    keep_if_helps: bool = option(False, "sft: drop errors that raise the start model's loss on what follows")


@dataclass
class TrainArguments(Section):
    """Our keys in `train`; `trl` collects the rest as given and is handed to the stage's TRL config class."""

    section: ClassVar[str] = "train"
    stage: Literal["sft", "dpo", "ftpo", "grpo", "verifier", "prm"] = option("sft", "which executor trains")
    judge: dict[str, Any] = option({}, "verifier, prm: labels, samples, layers, ... (docs/search.md)")
    resume: bool = option(False, "resume from the newest checkpoint in output_dir, if there is one")
    overwrite: bool = option(False, "delete what output_dir holds first")
    max_tokens: int | None = option(None, "stop after about so many trace tokens (sets max_steps)", bounds="[1, inf)")
    loss: Literal["sequence", "token"] = option("sequence", "dpo: weigh tokens alike, or the decision to erase more")
    rollout_batch_size: int | None = option(None, "grpo: rollouts at a time; none: all of a process", bounds="[1, inf)")
    loss_decay: float = option(0.9, "dpo loss token, sft weighting position: decay a token", bounds="(0, 1]")
    keep_share: float = option(0.0, "backtrack_dpo: share of pairs that reject erasing right text", bounds="[0, 1)")
    weighting: Literal["none", "position", "confidence"] = option("none", "sft: weights of corrections")
    correction_weight: float = option(2.0, "sft, position: weight of a correction's first token", bounds="[0, inf)")
    warmup_embeddings: int = option(0, "sft: first steps, in which the BACKTRACK rows alone train", bounds="[0, inf)")
    targets: Literal["one", "set"] = option("one", "sft, set: any right first token of a task's move is right")
    merge: bool = option(True, "after LoRA or QLoRA, save the merged model beside the adapter")
    trl: dict[str, Any] = option({}, "(filled by the parser)")


@dataclass
class RewardArguments(Section):
    """Weights of the components of llmhalluc/reward/bt.py, at the start of training and from curriculum_end on."""

    section: ClassVar[str] = "reward"
    curriculum: Literal["none", "linear", "cosine"] = option("linear", "how the weights move; none: the last ones")
    curriculum_end: float = option(0.5, "share of training after which the weights are the last ones", bounds="(0, 1]")
    outcome_start: float = option(0.6, "first weight of the verified answer, 0 or 1", bounds="[0, inf)")
    outcome_end: float = option(0.85, "last weight of the verified answer", bounds="[0, inf)")
    process_start: float = option(0.3, "first weight of the steps, and of erasing no right ones", bounds="[0, inf)")
    process_end: float = option(0.05, "last weight of the steps", bounds="[0, inf)")
    efficiency_start: float = option(0.05, "first weight of writing few tokens that do not survive", bounds="[0, inf)")
    efficiency_end: float = option(0.05, "last weight of writing few tokens that do not survive", bounds="[0, inf)")
    format_start: float = option(0.05, "first weight of one answer, stated once, at the end", bounds="[0, inf)")
    format_end: float = option(0.05, "last weight of one answer, stated once, at the end", bounds="[0, inf)")
    erasure_scale: float = option(32.0, "cost of erased tokens that halves the efficiency", bounds="[1, 10000]")
    verify_timeout: float = option(5.0, "seconds for one answer that is no plain number", bounds="(0, inf)")


@dataclass
class GenArguments(Section):
    """How completions are decoded; the names are transformers' GenerationConfig's where it has them."""

    section: ClassVar[str] = "gen"
    max_new_tokens: int = option(256, "most tokens emitted, erased tokens and BACKTRACKs counted", bounds="[1, inf)")
    temperature: float = option(0.0, "0 is greedy", bounds="[0, inf)")
    top_k: int | None = option(None, "sample among the k most likely tokens", bounds="[1, inf)")
    top_p: float | None = option(None, "sample among the most likely tokens of so much probability", bounds="(0, 1]")
    min_p: float | None = option(None, "drop tokens less likely than so much of the most likely one", bounds="[0, 1]")
    repetition_penalty: float | None = option(None, "as transformers'; 1 is none", bounds="(0, inf)")
    stop: list[str] = option([], "stop strings, looked for in the surviving text")
    context: str | None = option(None, "soft, block or rewind; none: as the model was trained", choices=CONTEXTS)
    backtrack: bool = option(True, "false: BACKTRACK is never offered")
    ban_erased: bool = option(True, "an erased token is not offered again at its place while its prefix stands")
    max_erasures: int | None = option(None, "most erasures; none: half of max_new_tokens", bounds="[0, inf)")
    backtrack_bias: float = option(0.0, "added to the logit of BACKTRACK")
    operator: str | None = option(None, "rule that erases, such as probability_threshold; none: BACKTRACK alone erases")
    operator_args: dict[str, Any] = option({}, "parameters of the operator that differ from its defaults")
    backtrack_every_n: int = option(1, "an operator is asked after every so many emitted tokens", bounds="[1, inf)")
    search: str | None = option(None, "greedy, majority, best_of_n, beam, dvts, tree, pool; none: one text a prompt")
    search_args: dict[str, Any] = option({}, "how it searches: width, expand, guide, ... (docs/search.md)")
    budget: float | None = option(None, "what a search may spend on a problem, in budget_unit", bounds="(0, inf)")
    budget_unit: Literal["emitted", "forward", "flops", "seconds"] = option("emitted", "unit of the budget")
    compile: bool = option(False, "static cache and a compiled forward: faster on a GPU after a warm-up")
    seed: int = option(0, "seed of the sampling; a prompt's draws do not depend on its batch")


@dataclass
class SelfgenArguments(Section):
    """How many solutions are sampled for a problem, and how the first wrong step of a wrong one is found."""

    section: ClassVar[str] = "selfgen"
    samples: int = option(4, "solutions sampled for each problem", bounds="[1, inf)")
    temperature: float | None = option(None, "of samples; none: gen.temperature, or 1 where it is 0", bounds="[0, inf)")
    batch_size: int = option(64, "prompts decoded at a time", bounds="[1, inf)")
    locator: Literal["arithmetic", "departure", "value"] = option(
        "departure", "first false calculation, first departure from a right solution, or a search by prefix values"
    )
    rollouts: int = option(8, "completions sampled from a prefix to value it or to find a right one", bounds="[1, inf)")
    value_threshold: float = option(0.0, "value: highest share of right rollouts of a fallen prefix", bounds="[0, 1)")
    max_rollouts: int | None = option(None, "value: most rollouts in all; the rest stays unlocated", bounds="[0, inf)")
    clean_share: float = option(0.5, "share of the traces that are right samples as they are", bounds="[0, 1)")
    output_dir: str = option(
        "outputs/selfgen", "folder for samples.jsonl, rejections.jsonl, traces.jsonl, selfgen.json"
    )
    overwrite: bool = option(False, "delete what output_dir holds first")


@dataclass
class EvalArguments(Section):
    """What `run_eval` runs; names as in lm-eval's `simple_evaluate` where it has them."""

    section: ClassVar[str] = "eval"
    tasks: list[str] = option([tasks.DEFAULT_EVALUATION], "lm-eval tasks: ours (configs/lm_eval/tasks) or its own")
    include_path: list[str] = option([], "more folders with task YAMLs")
    data_files: dict[str, str] = option({}, "task: local file that takes the place of its hub data set")
    fewshot_files: dict[str, str] = option({}, "task: local file for its few-shot examples")
    num_fewshot: int | None = option(None, "few-shot examples; none: the task's own number", bounds="[0, inf)")
    limit: int | None = option(None, "only the first so many documents of each task", bounds="[1, inf)")
    batch_size: int = option(64, "prompts decoded at a time", bounds="[1, inf)")
    apply_chat_template: bool = option(False, "wrap prompts with the tokenizer's chat template")
    fewshot_as_multiturn: bool = option(False, "few-shot examples as turns of the chat")
    system_instruction: str | None = option(None, "system message")
    variants: dict[str, dict[str, Any]] = option({}, "name: keys of gen that differ; none: one named default")
    output_dir: str = option("outputs/eval", "folder for results.json and the samples")
    overwrite: bool = option(False, "delete what output_dir holds first")
    seed: int = option(0, "seed of few-shot sampling")
    task_options: dict[str, dict[str, Any]] = option({}, "one of our generated tasks: what its test is like")


@dataclass
class ExpArguments(Section):
    """Arms and a grid; a cell is one arm at one point of the grid."""

    section: ClassVar[str] = "exp"
    name: str = option("experiment", "title of the table and the report")
    output_dir: str = option("outputs/exp", "folder for cells, results.json, results.csv and report.html")
    arms: dict[str, dict[str, Any]] = option(
        {}, "name: dotted keys or sections that this arm sets; start and rounds make a chain (docs/architecture.md)"
    )
    grid: dict[str, list[Any]] = option({}, "dotted key (or seed): values; every combination is a cell of each arm")
    baseline: str | None = option(None, "arm the others are compared with; none: the first")
    parallel: int = option(1, "cells at a time; each gets an equal share of the processor's cores", bounds="[1, inf)")
    python: str | None = option(None, "interpreter of the evaluation environment; none: this one")
    overwrite: bool = option(False, "forget finished cells")
    reference: str | None = option(None, "committed results.json whose table is printed beside this run's")
    samples_in_report: int = option(6, "traces an arm shows in report.html", bounds="[0, inf)")


@dataclass
class Config:
    """A whole configuration: one dataclass a section; `gen_given` are the keys of `gen` that win over a task's own."""

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    backtrack: BacktrackArguments = field(default_factory=BacktrackArguments)
    train: TrainArguments = field(default_factory=TrainArguments)
    reward: RewardArguments = field(default_factory=RewardArguments)
    gen: GenArguments = field(default_factory=GenArguments)
    selfgen: SelfgenArguments = field(default_factory=SelfgenArguments)
    eval: EvalArguments = field(default_factory=EvalArguments)
    exp: ExpArguments = field(default_factory=ExpArguments)
    seed: int | None = None
    gen_given: frozenset[str] = frozenset()

    def techniques(self) -> bool:
        """Return whether a key of docs/sft.md is set, for which a run then imports what it takes."""
        t = self.train
        keys = (t.weighting, t.correction_weight, t.warmup_embeddings, t.targets, self.backtrack.keep_if_helps)
        return keys != ("none", 2.0, 0, "one", False)


SECTIONS: dict[str, Any] = {part.name: part.type for part in fields(Config) if part.name not in ("seed", "gen_given")}
