"""`run_interp all`: every stage in its order."""

from llmhalluc.interp.attention import attention
from llmhalluc.interp.conditions import compare_conditions, formatting_sweep
from llmhalluc.interp.counterfactual import counterfactual
from llmhalluc.interp.directions import steer
from llmhalluc.interp.lens_stage import logit_lens
from llmhalluc.interp.load import generations_of, prepare_data
from llmhalluc.interp.models import compare_models
from llmhalluc.interp.probes import probe
from llmhalluc.interp.report import make_report
from llmhalluc.interp.run import Run
from llmhalluc.interp.scan import ablation_scan


def run_everything(run: Run, variant: str) -> None:
    """Run what is not up to date. Raises UserError where a stage has nothing to look at."""
    prepare_data(run)
    formatting_sweep(run)
    for stage in (logit_lens, ablation_scan, compare_conditions, probe, steer, counterfactual):
        stage(run, variant)
    if not run.config.interp.triggers and any(sample["erasures"] for sample in generations_of(run, variant)):
        attention(run, variant)
    if run.config.interp.base:
        compare_models(run, variant)
    make_report(run, variant)
