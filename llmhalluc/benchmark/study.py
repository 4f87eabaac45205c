"""The search: Optuna asks for parameters, `tune` reports how well they did, the study lies in an SQLite file.

The draw of a trial depends on the seed, its number and the trials before it alone, so a study that was killed is
resumed as if it had not been. An interrupted trial is tried again; one that raised is reported with its reason and
never scored.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from llmhalluc.benchmark.config import Benchmark, values
from llmhalluc.benchmark.measure import Outcome, Session
from llmhalluc.decoding.operators import OPERATORS
from llmhalluc.extras.errors import one_line

NAME = "benchmark"


def open_study(folder: Path) -> optuna.Study:
    """The study in folder/study.db, new or as it was left."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}", study_name=NAME, direction="maximize", load_if_exists=True
    )


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count, in order: scored, pruned, or failed for a reason; not the interrupted ones."""
    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [trial for trial in ended if trial.state != TrialState.FAIL or "reason" in trial.user_attrs]


def winner(study: optuna.Study) -> FrozenTrial | None:
    """The scored trial of the highest accuracy; of equals the one with the fewest forward passes, then the first."""
    scored = [trial for trial in finished(study) if trial.state == TrialState.COMPLETE]
    return max(scored, key=lambda t: (t.value, -t.user_attrs["forward_passes_per_sample"], -t.number), default=None)


def tune(
    session: Session, study: optuna.Study, baseline: list[Outcome] | None, show: Callable[[int, FrozenTrial], None]
) -> None:
    """Run trials until the study has hpo.n_trials; `show` is called with the number and the trial as each ends.

    `baseline`: the outcome without the operator, part by part, measured in this process; times are relative to it.
    """
    benchmark, hpo = session.benchmark, session.benchmark.hpo
    for left in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(left.number, state=TrialState.FAIL)
    space = distributions(benchmark)
    while (number := len(finished(study))) < hpo.n_trials:
        # The sampler's own seed follows from the number: a resumed study draws what an uninterrupted one would.
        study.sampler = optuna.samplers.TPESampler(seed=hpo.seed + 1000 * number, n_startup_trials=hpo.startup_trials)
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=hpo.startup_trials)
        if number == 0 and not study.get_trials(states=(TrialState.WAITING,)):
            study.enqueue_trial(_defaults(benchmark, space))
        trial = study.ask(space)
        try:
            state, value = _run(session, study, trial, baseline)
        except Exception as error:  # the report shows it, with the trial's parameters; the others run
            trial.set_user_attr("reason", f"{type(error).__name__}: {one_line(error)}")
            trial.set_user_attr("traceback", traceback.format_exc())
            state, value = TrialState.FAIL, None
        study.tell(trial, value, state=state)
        show(number + 1, study.get_trials()[trial.number])


def distributions(benchmark: Benchmark) -> dict[str, Any]:
    """The search space as Optuna's distributions; whole numbers where the operator wants them."""
    kinds = {name: field.type for name, field in OPERATORS[benchmark.top.operator_to_tune].__dataclass_fields__.items()}
    space: dict[str, Any] = {}
    for name, span in benchmark.hpo.search_space.items():
        ends = values(name, span)
        more = {key: span[key] for key in ("log", "step") if key in span} if isinstance(span, dict) else {}
        if isinstance(span, dict) and "choices" in span:
            space[name] = CategoricalDistribution(ends)
        elif kinds[name] is int:
            space[name] = IntDistribution(*ends, **more)
        else:
            space[name] = FloatDistribution(float(ends[0]), float(ends[1]), **more)
    return space


def _run(
    session: Session, study: optuna.Study, trial: Trial, baseline: list[Outcome] | None
) -> tuple[TrialState, float | None]:
    """Decode the tuning split part by part: state and accuracy; what was measured becomes the trial's attributes."""
    for other in finished(study):
        if other.params == trial.params and other.state == TrialState.COMPLETE:
            for key, value in (other.user_attrs | {"same_as": other.number}).items():
                trial.set_user_attr(key, value)
            return TrialState.COMPLETE, other.value
    outcome, state = Outcome(), TrialState.COMPLETE
    for i, documents in enumerate(session.tune):
        outcome += session.decode(trial.params, documents)
        trial.report(outcome.summary()["accuracy"], i + 1)
        if i + 1 < len(session.tune) and trial.should_prune():
            state = TrialState.PRUNED
            break
    summary = outcome.summary()
    if baseline is not None:
        summary["seconds_over_baseline"] = outcome.seconds / sum(part.seconds for part in baseline[: i + 1])
    for key, value in summary.items():
        trial.set_user_attr(key, value)
    return state, summary["accuracy"] if state == TrialState.COMPLETE else None


def _defaults(benchmark: Benchmark, space: dict[str, Any]) -> dict[str, Any]:
    """The operator's own defaults, as far as they lie in the search space: the first trial."""
    fields = OPERATORS[benchmark.top.operator_to_tune].__dataclass_fields__
    found = {}
    for name, distribution in space.items():
        default = fields[name].default
        if isinstance(default, (int, float)) and (
            default in distribution.choices
            if isinstance(distribution, CategoricalDistribution)
            else distribution.low <= default <= distribution.high
        ):
            found[name] = default
    return found
