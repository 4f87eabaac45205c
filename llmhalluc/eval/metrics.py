"""What evaluation measures: erasures against the gold, cost, overlap of texts.

Everything here is a pure function. Counts of tokens, erasures and cost read the trace; the rest reads text.
"""

from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from llmhalluc.backtrack import erasures


class Counts(NamedTuple):
    """Tokens of one trace. `wrong` and `wrong_erased` are None without a gold completion.

    emitted: everything the model wrote, BACKTRACKs and the end token counted. kept: what survives of it. cut: whether
    it ended by its length. cost: the Cost of the search that chose it.
    """

    emitted: int
    kept: int
    erasures: int
    wrong: int | None = None
    wrong_erased: int | None = None
    cut: bool = False
    cost: Any = None  # of a search


def counts_of(trace: Any, backtrack_id: int | None, gold_ids: Sequence[int] | None = None) -> Counts:
    """Return the counts of a Trace."""
    counts = count(trace.completion_ids, backtrack_id, gold_ids, trace.events)
    return counts._replace(cut=trace.finish_reason == "length", cost=trace.cost)


def count(
    completion_ids: Sequence[int], backtrack_id: int | None, gold_ids: Sequence[int] | None = None,
    events: Sequence[Any] = (),
) -> Counts:  # fmt: skip
    """Replay a trace and count; `gold_ids` is the one right completion, its end token included.

    `events` are what operators erased (a Trace's). A token is right when it and everything that stands before it agree
    with the gold up to its depth; it is wrong when it differs from the gold token at its depth, or stands after a wrong
    one.
    """
    erased = erasures(completion_ids, backtrack_id, events)
    n_tokens = len(completion_ids) - list(completion_ids).count(backtrack_id)
    counts = Counts(len(completion_ids), n_tokens - len(erased), len(erased))
    if gold_ids is None:
        return counts
    right, wrong = [True], set()  # whether the first so many survivors agree with the gold; tokens that do not
    later = deque(erased)
    for i, token in enumerate(completion_ids):
        while later and later[0].at <= i:
            later.popleft()
            right.pop()
        if token == backtrack_id:
            continue
        depth = len(right) - 1
        agrees = depth < len(gold_ids) and token == gold_ids[depth]
        right.append(agrees and right[-1])
        if not right[-1]:
            wrong.add(i)
    return counts._replace(wrong=len(wrong), wrong_erased=sum(one.token in wrong for one in erased))


def trace_metrics(traces: Sequence[Counts]) -> dict[str, float | None]:
    """Averages over traces; the two shares with a gold pool all tokens.

    cut_off: share of the traces that ended by their length.
    backtrack_precision: share of the erasures that erased a token that was wrong given the gold.
    backtrack_recall: share of the wrong tokens emitted that were erased later.
    Both are None without a gold, and where their denominator is 0; so is everything where there is no trace.
    """
    if not traces:
        names = ("erasures_per_sample", "samples_with_erasure", "emitted_per_sample", "emitted_per_kept", "cut_off")
        return dict.fromkeys((*names, "backtrack_precision", "backtrack_recall"))
    emitted, kept, erasures = (sum(getattr(trace, name) for trace in traces) for name in Counts._fields[:3])
    judged = [trace for trace in traces if trace.wrong is not None]
    wrong, wrong_erased = sum(trace.wrong for trace in judged), sum(trace.wrong_erased for trace in judged)
    costs = [trace.cost for trace in traces if trace.cost is not None]
    searched = {f"search_{name}": sum(getattr(cost, name) for cost in costs) / len(costs)
                for name in ("emitted", "forward", "flops", "seconds", "leaves") if costs}  # fmt: skip
    return searched | {
        "erasures_per_sample": erasures / len(traces),
        "samples_with_erasure": sum(trace.erasures > 0 for trace in traces) / len(traces),
        "emitted_per_sample": emitted / len(traces),
        "emitted_per_kept": _share(emitted, kept),
        "cut_off": sum(trace.cut for trace in traces) / len(traces),
        "backtrack_precision": _share(wrong_erased, sum(trace.erasures for trace in judged)),
        "backtrack_recall": _share(wrong_erased, wrong),
    }


def text_overlap(text: str, reference: str) -> dict[str, float]:
    """ROUGE-L (F measure, no stemming) and sentence BLEU of a surviving text, both 0..1; secondary metrics."""
    import sacrebleu

    return {
        "rougeL": _rouge().score(reference, text)["rougeL"].fmeasure,
        "bleu": sacrebleu.sentence_bleu(text, [reference]).score / 100,
    }


@cache
def _rouge():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
