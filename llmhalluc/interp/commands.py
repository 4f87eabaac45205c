"""The commands of `run_interp`: each finds its run, and writes what it finds into the run's folder."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from llmhalluc.extras.constant import CONFIGS
from llmhalluc.interp import run as runs
from llmhalluc.interp.config import Interp, parse

DEFAULT = CONFIGS / "interp" / "backtracking_state_transition.yaml"
app = typer.Typer(
    help="Look inside models that take something back: run `all`, or the commands in their order.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
Config = Annotated[
    Path, typer.Option(help="a YAML with the sections model, data, gen, interp and scan (docs/interp.md)")
]
RunId = Annotated[str, typer.Option(help="the run's folder in interp.runs_dir; none: the current one")]
Variant = Annotated[str, typer.Option(help="an entry of interp.variants; none: the first")]
Condition = Annotated[str, typer.Option(help="baseline, targeted or random")]
Overrides = Annotated[list[str], typer.Argument(help="section.key=value ...", show_default=False)]


@app.command()
def init_run(config: Config = DEFAULT, run_id: RunId = None, overrides: Overrides = None) -> None:
    """Make a run's folder with its resolved config and meta.json, and make it the current one."""
    runs.init(parse(config, overrides or []), run_id)


@app.command()
def prepare_data(config: Config = DEFAULT, run_id: RunId = None, overrides: Overrides = None) -> None:
    """Write the problems: data/problems.jsonl."""
    from llmhalluc.interp.load import prepare_data

    prepare_data(runs.find(parse(config, overrides or []), run_id))


@app.command()
def generate(
    config: Config = DEFAULT, run_id: RunId = None, variant: Variant = None, condition: Condition = "baseline",
    overrides: Overrides = None,
) -> None:  # fmt: skip
    """Complete the problems: generations/VARIANT__CONDITION.jsonl."""
    from llmhalluc.interp.generate import generate

    run = runs.find(parse(config, overrides or []), run_id)
    generate(run, run.config.variant(variant), [condition])


@app.command()
def detect_events(config: Config = DEFAULT, run_id: RunId = None, overrides: Overrides = None) -> None:
    """Find where something is taken back: backtracking_events.csv, onsets.csv, summary_metrics.json."""
    from llmhalluc.interp.detect import detect_events

    detect_events(runs.find(parse(config, overrides or []), run_id))


@app.command()
def formatting_sweep(config: Config = DEFAULT, run_id: RunId = None, overrides: Overrides = None) -> None:
    """Compare the variants of the prompt: formatting_summary.csv."""
    from llmhalluc.interp.conditions import formatting_sweep

    formatting_sweep(runs.find(parse(config, overrides or []), run_id))


@app.command()
def compare_runs(
    other: Annotated[str, typer.Option(help="the other run's id")], config: Config = DEFAULT, run_id: RunId = None,
    variant: Variant = None, overrides: Overrides = None,
) -> None:  # fmt: skip
    """How the importance of events differs between two models, such as one of `soft` and one of `block`."""
    from llmhalluc.interp.counterfactual import compare_runs

    run = runs.find(parse(config, overrides or []), run_id)
    compare_runs(run, runs.named(run.config, other), run.config.variant(variant))


# Commands that take --variant and nothing else of their own: name -> (module of interp, function, help).
OF_A_VARIANT = {
    "logit-lens": ("lens_stage", "logit_lens", "What every layer would say at events and controls: logit_lens.csv."),
    "ablation-scan": (
        "scan", "ablation_scan", "What every sublayer does there: ablation_importance.csv, selected_layers.json."
    ),
    "compare-conditions": (
        "conditions", "compare_conditions", "Whole completions without the chosen layers: condition_comparison.csv."
    ),
    "probe": ("probes", "probe", "What a linear probe reads by layer: probes.csv."),
    "steer": ("directions", "steer", "Patching and doses of a direction: patching.csv, dose_response.csv."),
    "counterfactual": (
        "counterfactual", "counterfactual",
        "Resample with the trigger left, banned and forced: counterfactual__VARIANT.json.",
    ),
    "attention": (
        "attention", "attention", "What later tokens still see of what BACKTRACK erased: attention.csv."
    ),
    "compare-models": ("models", "compare_models", "The same events in the untuned model: model_comparison.csv."),
    "make-report": (
        "report", "make_report", "Draw the figures and write the report, as Markdown and as a page of its own."
    ),
}  # fmt: skip


def _of_a_variant(name: str) -> None:
    """Add a command whose module is imported when it is called."""
    module, function, meaning = OF_A_VARIANT[name]

    def command(
        config: Config = DEFAULT, run_id: RunId = None, variant: Variant = None, overrides: Overrides = None
    ) -> None:
        run = runs.find(parse(config, overrides or []), run_id)
        stage = getattr(import_module(f"llmhalluc.interp.{module}"), function)
        stage(run, run.config.variant(variant))

    app.command(name, help=meaning)(command)


for _name in OF_A_VARIANT:
    _of_a_variant(_name)


@app.command("all")
def run_all(
    config: Config = DEFAULT, run_id: RunId = None, variant: Variant = None, overrides: Overrides = None
) -> None:
    """Every command in its order, in a new run or in the one of --run-id; what is done already is left as it is."""
    from llmhalluc.interp.pipeline import run_everything

    made: Interp = parse(config, overrides or [])
    run_everything(runs.init(made, run_id), made.variant(variant))
