"""probe: what a linear probe reads from the stream by layer, trained on some problems and tested on others.

event: whether the next token takes something back (events against their controls). error: whether the token just
written is wrong, where the task can say so; what was wrong and stayed says whether a model knows and does not act.
"""

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from llmhalluc.backtrack import replay
from llmhalluc.interp.detect import points_of
from llmhalluc.interp.events import Sample
from llmhalluc.interp.importance import split_off
from llmhalluc.interp.load import Model, model_of, problems_of, task_of
from llmhalluc.interp.run import Row, Run, Stage, write_csv
from llmhalluc.tasks import TASKS
from llmhalluc.tasks.base import Written

COLUMNS = ("variant", "target", "layer", "train_rows", "test_rows", "test_problems", "auc", "auc_low", "auc_high",
           "shuffled_auc", "shuffled_low", "shuffled_high", "auc_not_acted", "not_acted_rows")  # fmt: skip
MOST_ROWS = 2000  # of a target: training a probe on more changes little
STRENGTH = 0.01  # C of the logistic regression: there are fewer rows than directions
SHUFFLES = 20  # of the training labels, for what a probe reads by chance
_REACH = 64  # tokens before a token that a task looks at


class Labelled(NamedTuple):
    """A row of a sample, its label, and whether the model acted on it: took back the token that stands there."""

    at: int
    row: int
    label: bool
    acted: bool = True


def probe(run: Run, variant: str) -> None:
    """Write probes.csv of a variant. Raises UserError before detect-events and where it found no event."""
    config = run.config
    inputs = [run.path("generations", f"{variant}__baseline.jsonl")]
    output = run.path("analysis", "probes.csv")
    settings: dict[str, Any] = {"test_share": config.scan.test_share, "seed": config.interp.seed}
    points = points_of(run, variant)
    settings["points"] = points.digest
    samples = points.samples
    own = run.path("analysis", f"probe_rows__{variant}.csv")
    weights = run.path("analysis", f"probe__{variant}.safetensors")
    stage = Stage(f"probe {variant}", inputs, settings, [own, weights], [output])
    if run.is_done(stage):
        return
    model = model_of(run)
    targets = {"event": [Labelled(point.at, point.row, True) for point in points.events]}
    targets["event"] += [Labelled(point.at, point.row, False) for point in points.paired().controls]
    if TASKS[task_of(run)].can("is_wrong") and model.loaded.backtrack_id is not None:
        targets["error"] = errors(model, samples, TASKS[task_of(run)], problems_of(run))
    rows, counts = [], []
    for target, labelled in targets.items():
        labelled = _at_most(labelled, Random(config.interp.seed))
        counts.append({"target": target, "rows": len(labelled), "positive": sum(one.label for one in labelled)})
        problems = [samples[one.at]["example_id"] for one in labelled]
        test = split_off(problems, config.scan.test_share, config.interp.seed)
        features = model.states(samples, labelled).float().cpu().numpy()
        found = auc_by_layer(features, labelled, problems, test, config.interp.seed)
        if target == "event":
            save_file(_weights(features, [one.label for one in labelled]), weights)
        rows += [{"variant": variant, "target": target, "layer": layer} | row for layer, row in enumerate(found)]
    write_csv(output, rows, COLUMNS, variant=variant)
    write_csv(own, counts, ("target", "rows", "positive"))
    run.mark_done(stage)


def errors(model: Model, samples: Sequence[Sample], task: Any, records: dict[str, Any]) -> list[Labelled]:
    """Return the rows of tokens that the task knows to be wrong or right, among those written on nothing wrong."""
    found, backtrack_id = [], model.loaded.backtrack_id
    for at, sample in enumerate(samples):
        ids, n_prompt, record = sample["completion_ids"], len(sample["prompt_ids"]), records[sample["example_id"]]
        standing: list[tuple[str, bool]] = []  # each token's text, and whether it or one before it is wrong
        survivors = set(replay(ids, backtrack_id))
        for i, token in enumerate(ids):
            if token == backtrack_id:
                standing = standing[:-1]
                continue
            text = model.piece(token)
            pieces = [*(piece for piece, _ in standing[-_REACH:]), text]
            wrong = task.is_wrong(Written(text, partial("".join, pieces), i in survivors), record)
            on_wrong = bool(standing) and standing[-1][1]
            if wrong is not None and not on_wrong and token not in model.eos_ids:
                acted = i + 1 < len(ids) and ids[i + 1] == backtrack_id
                found.append(Labelled(at, n_prompt + i, bool(wrong), acted))
            standing.append((text, on_wrong or bool(wrong)))
    return found


def auc_by_layer(
    features_LPH: np.ndarray, labelled: Sequence[Labelled], problems: Sequence[str], test: set[str], seed: int
) -> list[Row]:
    """Return for each layer the area under the ROC curve on the problems in `test`, with its interval over problems.

    shuffled: mean and 95% range of probes whose training labels were shuffled. No area where a side has one class.
    """
    labels = np.array([one.label for one in labelled], dtype=bool)
    inside = np.array([problem in test for problem in problems])
    missed = np.array([one.label and not one.acted for one in labelled])
    row = {
        "train_rows": int((~inside).sum()),
        "test_rows": int(inside.sum()),
        "test_problems": len(set(problems) & test),
    }
    found = []
    for features_PH in features_LPH:
        made: Row = dict(row)
        if len(set(labels[~inside])) == 2 and len(set(labels[inside])) == 2:
            scores = _scores(features_PH, labels[~inside], inside)
            own = [problem for problem, is_in in zip(problems, inside, strict=True) if is_in]
            made["auc"] = area(labels[inside], scores)
            made["auc_low"], made["auc_high"] = auc_interval(labels[inside], scores, own, seed)
            rng = np.random.default_rng(seed)
            shuffled = [area(labels[inside], _scores(features_PH, rng.permutation(labels[~inside]), inside))
                        for _ in range(SHUFFLES)]  # fmt: skip
            made["shuffled_auc"] = float(np.mean(shuffled))
            made["shuffled_low"], made["shuffled_high"] = map(float, np.quantile(shuffled, [0.025, 0.975]))
            kept = missed[inside] | ~labels[inside]
            made["not_acted_rows"] = int(missed[inside].sum())
            if missed[inside].any():
                made["auc_not_acted"] = area(labels[inside][kept], scores[kept])
        found.append(made)
    return found


def _scores(features_PH: np.ndarray, labels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """What a probe trained on the rows outside says of those inside.

    Its weights lie in the span of the rows that train it, so it is trained there, in fewer dimensions, exactly.
    """
    scaled_PH = StandardScaler().fit(features_PH[~inside]).transform(features_PH)
    _, _, span = np.linalg.svd(scaled_PH[~inside], full_matrices=False)
    reduced = scaled_PH @ span.T
    return _regression().fit(reduced[~inside], labels).decision_function(reduced[inside])


def auc_interval(
    labels: np.ndarray, scores: np.ndarray, clusters: Sequence[str], seed: int, draws: int = 500
) -> tuple[float, float]:
    """Return the 95% percentile interval of the area over problems drawn again."""
    rng, names = np.random.default_rng(seed), sorted(set(clusters))
    rows_of = {name: np.flatnonzero(np.asarray(clusters) == name) for name in names}
    areas = []
    for _ in range(draws):
        rows = np.concatenate([rows_of[names[i]] for i in rng.integers(len(names), size=len(names))])
        if len(set(labels[rows])) == 2:
            areas.append(area(labels[rows], scores[rows]))
    low, high = np.quantile(areas, [0.025, 0.975]) if areas else (0.0, 1.0)
    return float(low), float(high)


def area(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve: how often a score of a True row is the higher one, ties counted half."""
    ranks, right = rankdata(scores), int(labels.sum())
    return float((ranks[labels].sum() - right * (right + 1) / 2) / (right * (len(labels) - right)))


def _weights(features_LPH: np.ndarray, labels: Sequence[bool]) -> dict[str, torch.Tensor]:
    """Probes of all rows, for the report: weight (L, H) and bias (L) on the states as they are; 0 with one class."""
    layers, _, width = features_LPH.shape
    weight, bias = torch.zeros(layers, width), torch.zeros(layers)
    for layer, features_PH in enumerate(features_LPH if len(set(labels)) == 2 else ()):
        scaler, model = make_pipeline(StandardScaler(), _regression()).fit(features_PH, labels)
        weight[layer] = torch.from_numpy(model.coef_[0] / scaler.scale_)
        bias[layer] = float(model.intercept_[0] - (model.coef_[0] / scaler.scale_) @ scaler.mean_)
    return {"weight": weight, "bias": bias}


def _regression() -> LogisticRegression:
    return LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=1000)


def _at_most(labelled: list[Labelled], rng: Random) -> list[Labelled]:
    return labelled if len(labelled) <= MOST_ROWS else rng.sample(labelled, MOST_ROWS)
