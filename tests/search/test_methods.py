"""Searches on a toy: the right one is found where the guide is right, every token is counted, budgets are kept."""

import random
from dataclasses import replace

import pytest

from llmhalluc.decoding.backend import TorchBackend
from llmhalluc.decoding.engine import decode
from llmhalluc.decoding.sequence import Cost, Spec
from llmhalluc.extras.errors import UserError
from llmhalluc.hparams.sections import GenArguments
from llmhalluc.search.budget import flops_of
from llmhalluc.search.methods import METHODS, Node
from llmhalluc.search.options import STEPWISE, search_options
from llmhalluc.search.tree import Problem
from tests.search.toy import EOS, TOKENIZER, found, letters
from tests.tiny import FAMILIES, tiny_model

WIDE = {"width": 4, "expand": 3, "explore": 0.0}
SAMPLED = [name for name in METHODS if name != "greedy"]


def right(traces, asked):
    return sum(one.task.check(trace.text, one.record).right for trace, one in zip(traces, asked, strict=True))


class Noise:
    """A guide that knows nothing."""

    layers = ()
    by_step = False

    def __call__(self, judged):
        return [
            (random.Random(f"{one.branch.sequence.surviving}-{one.problem.key}").random(), 0, 0.0) for one in judged
        ]


@pytest.mark.parametrize("method", STEPWISE)
def test_a_search_that_is_told_what_is_right_finds_it(method):
    traces, _, asked = found(method, budget=300, search_args=WIDE)
    assert right(traces, asked) == 20
    by_samples, _, asked = found("best_of_n", budget=300)
    assert right(by_samples, asked) <= 6  # 33 samples of a chance of 2 ** -8


@pytest.mark.parametrize("method", STEPWISE)
def test_a_guide_that_knows_nothing_finds_no_more_than_samples_do(method):
    traces, _, asked = found(method, count=150, n=4, budget=30, guide=Noise())
    by_samples, _, _ = found("best_of_n", count=150, n=4, budget=30, guide=Noise())
    told, _, _ = found(method, count=150, n=4, budget=30)
    # One text in 16 is right; 150 problems have a standard deviation of 3.
    assert right(traces, asked) <= right(by_samples, asked) + 12 < right(told, asked)


@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.parametrize("unit", ["emitted", "forward"])
def test_a_method_stops_at_its_budget_and_every_token_is_counted(method, unit):
    traces, forward, _ = found(method, count=7, budget=90, budget_unit=unit)
    assert sum(trace.cost.forward for trace in traces) == forward
    for trace in traces:
        spent = getattr(trace.cost, unit)
        # The last step of all branches that run may go beyond: of a wide search 64 prefixes in the pool never run.
        assert 90 <= spent < 90 + 4 * 2 * 2
        assert trace.cost.flops > 0 and trace.cost.seconds > 0


def test_emitted_tokens_are_those_of_all_branches():
    traces, _, _ = found("best_of_n", count=3, n=5, budget=None, search_args={"n": 4, "guide": "check"})
    assert [trace.cost.emitted for trace in traces] == [4 * 6] * 3
    assert [trace.cost.leaves for trace in traces] == [4] * 3
    assert [trace.cost.forward for trace in traces] == [
        7 + 4 * 6
    ] * 3  # a prompt of 8, its last token with the first step


@pytest.mark.parametrize("method", METHODS)
def test_a_search_does_not_depend_on_the_batch(method):
    args = {"budget": 60} if method != "greedy" else {}
    one, _, _ = found(method, count=6, batch_size=1, model=tiny_model("llama"), **args)
    many, _, _ = found(method, count=6, batch_size=64, model=tiny_model("llama"), **args)
    for left, other in zip(one, many, strict=True):
        assert left.completion_ids == other.completion_ids and left.logprobs == pytest.approx(other.logprobs, abs=1e-9)
        assert replace(left.cost, seconds=0) == replace(other.cost, seconds=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("context", ["soft", "block", "rewind"])
def test_greedy_and_samples_are_what_decoding_gives(family, context):
    model = tiny_model(family)
    options = GenArguments(max_new_tokens=12, temperature=1.0, seed=3)
    spec = Spec(options, [EOS], 5, context, TOKENIZER)
    prompt = [4, 6, 7, 4, 6]
    keys = ["doc", "doc/1", "doc/2"]
    alone = decode(TorchBackend(model), [prompt] * 3, spec, keys=keys)
    searching = replace(options, search="best_of_n", search_args={"n": 3})
    from llmhalluc.search.run import search

    (best,) = search(model, [Problem(prompt, "doc")], replace(spec, options=searching))
    complete = [trace for trace in alone if trace.finish_reason == "eos"] or alone
    assert best.completion_ids in [trace.completion_ids for trace in complete]
    greedy = replace(options, temperature=0.0)
    (plain,) = decode(TorchBackend(model), [prompt], replace(spec, options=greedy), keys=["doc"])
    asked = replace(greedy, search="greedy")
    (same,) = search(model, [Problem(prompt, "doc")], replace(spec, options=asked))
    assert same.completion_ids == plain.completion_ids and same.logprobs == pytest.approx(plain.logprobs, abs=1e-9)


def test_a_tree_reads_a_third_of_what_independent_samples_read():
    traces, forward, asked = found(
        "tree", count=4, prompt=40, budget=None, search_args={"n": 12, "expand": 3, "explore": 0.0}
    )
    assert [trace.cost.leaves for trace in traces] == [12] * 4
    apart = 0
    for one in asked:
        for i in range(12):
            backend = TorchBackend(tiny_model("llama"))
            options = GenArguments(max_new_tokens=24, temperature=1.0)
            decode(backend, [one.prompt_ids], Spec(options, [EOS], None, "soft", sampler=letters(8)), keys=[str(i)])
            apart += backend.forward_tokens
    assert forward * 3 <= apart == 4 * 12 * (39 + 9)


def test_majority_takes_the_text_that_stands_most_often():
    class Votes(Noise):
        def __call__(self, judged):
            return [(float(judged_one.branch.trace is not None), 0, 0.0) for judged_one in judged]

    traces, _, _ = found("majority", count=12, n=1, budget=None, search_args={"n": 15}, guide=Votes())
    again, _, _ = found("best_of_n", count=12, n=1, budget=None, search_args={"n": 15, "pick": "vote"}, guide=Votes())
    assert [trace.text for trace in traces] == [trace.text for trace in again]


def test_a_node_is_worth_its_best_and_more_where_it_was_rarely_visited():
    root = Node(None)
    first, second = Node(None, root), Node(None, root)
    root.children = [first, second]
    first.add(0.5), second.add(0.0), second.add(1.0)
    assert (root.visits, root.best) == (3, 1.0)
    assert first.value(0.0) == 0.5 and second.value(0.0) == 1.0
    assert second.value(10.0) - second.value(0.0) < first.value(10.0) - first.value(0.0)


def test_flops_are_two_a_weight_and_four_a_row_and_width():
    model = tiny_model("llama")
    flops = flops_of(model)
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert flops.token == 2 * (weights + (model.get_input_embeddings().weight.numel() if tied else 0))
    assert flops.row == 4 * 2 * 32 and flops.of(3, 10) == 3 * (flops.token + 10 * flops.row)


def test_costs_add_up():
    assert Cost().plus(1, 2, 3.0, 4.0).plus(1, 1, 1.0, 1.0) == Cost(2, 3, 4.0, 5.0, 0)


@pytest.mark.parametrize(
    ("gen", "sentence"),
    [
        (dict(search="beem"), r"gen.search is 'beem'; did you mean beam\?"),
        (dict(search="beam"), r"gen.search beam samples, but gen.temperature is 0: set it to 1"),
        (dict(search="greedy", temperature=1.0), r"gen.search is greedy, but gen.temperature is 1.0: set it to 0"),
        (dict(search="pool", temperature=1.0), r"gen.search pool would never end: set gen.budget, or n in"),
        (dict(budget=5.0), r"gen.budget is given without gen.search: name a method"),
        (dict(search_args={"width": 2}), r"gen.search_args is given without gen.search: name a method"),
        (dict(search="beam", temperature=1.0, budget=9.0, search_args={"widht": 2}), r"search_args.widht .*width"),
        (dict(search="beam", temperature=1.0, budget=9.0, search_args={"width": 0}), r"search_args.width is 0"),
        (dict(search="beam", temperature=1.0, budget=9.0, compile=True), r"gen.compile is true, but a search lets"),
        (dict(search="beam", temperature=1.0, budget=9.0, search_args={"judge": "x"}), r"judge is for the guides"),
    ],
)
def test_options_that_no_search_could_follow(gen, sentence):
    with pytest.raises(UserError, match=sentence):
        search_options(GenArguments(**gen))
    assert search_options(GenArguments()) is None


def test_a_guide_or_steps_that_a_task_does_not_have():
    from llmhalluc.search.run import search
    from llmhalluc.tasks import TASKS

    options = GenArguments(search="beam", temperature=1.0, budget=9.0, search_args={"guide": "check"})
    spec = Spec(options, [EOS], None, "soft", TOKENIZER)
    with pytest.raises(UserError, match="guide is check, but the task cannot judge a partial answer"):
        search(tiny_model("llama"), [Problem([5], "doc", TASKS["math"], {})], spec)
    options = replace(options, search_args={})
    with pytest.raises(UserError, match="step_tokens is not set, and there is no task whose steps"):
        search(tiny_model("llama"), [Problem([5], "doc")], replace(spec, options=options))
    with pytest.raises(UserError, match="gen.search is beam, and this command does not search"):
        decode(TorchBackend(tiny_model("llama")), [[5]], spec)
