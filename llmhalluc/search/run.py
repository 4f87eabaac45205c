"""The loop: many problems at once over one engine, each by the method that `gen.search` names, to one budget."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmhalluc.decoding.backend import backend_of
from llmhalluc.decoding.engine import Engine
from llmhalluc.decoding.sequence import Event, Spec, Trace
from llmhalluc.extras.errors import UserError
from llmhalluc.search.budget import Budget, flops_of
from llmhalluc.search.guides import Guide, Judged, Likelihood, check_guide
from llmhalluc.search.methods import METHODS
from llmhalluc.search.options import STEPWISE, SearchOptions, search_options
from llmhalluc.search.tree import Branch, Problem, Tree
from llmhalluc.tasks.steps import pieces_of


@dataclass(eq=False)
class Running:
    """A problem that is being searched."""

    number: int
    tree: Tree
    method: Iterator[None]


def search(
    model_or_backend: Any,
    problems: Sequence[Problem],
    spec: Spec,
    *,
    guide: Guide | None = None,
    batch_size: int = 64,
    on_finish: Callable[[int, Trace], None] | None = None,
) -> list[Trace]:
    """Return the chosen text of each problem, with `Trace.cost` of the whole search, in the order of `problems`.

    batch_size: sequences in the cache, more where one problem alone needs more. Sampling depends on keys and seed, not
    on the batch; with a budget in seconds the outcome depends on the machine. Raises UserError for options that do not
    fit, and for a guide or steps that the task does not have.
    """
    options = search_options(spec.options)
    if options is None:
        raise UserError("gen.search is not set: name a method, such as best_of_n")
    guide = guide or Likelihood()
    for problem in problems:
        check_guide(options.guide, problem.task)
        if spec.options.search in STEPWISE and options.step_tokens is None and problem.task is None:
            raise UserError("gen.search_args.step_tokens is not set, and there is no task whose steps could be taken")
    backend = backend_of(model_or_backend)
    engine = Engine(backend, replace(spec, layers=tuple(dict.fromkeys((*spec.layers, *guide.layers)))))
    loop = Loop(engine, options, guide, flops_of(backend).of)
    traces: list[Trace] = [None] * len(problems)  # type: ignore[list-item]  # each is set when its search ends
    waiting = deque(enumerate(problems))
    while waiting or loop.trees:
        placed = len(engine.running) + len(engine.held) + len(engine.waiting)
        while waiting and (placed < batch_size or not loop.trees):
            number, problem = waiting.popleft()
            placed += loop.begin(number, problem)
        for number, trace in loop.step():
            traces[number] = trace
            if on_finish is not None:
                on_finish(number, trace)
    return traces


class Loop:
    """Steps the engine, hands each branch its score, and lets the methods go on."""

    def __init__(self, engine: Engine, options: SearchOptions, guide: Guide, flops: Callable[[int, float], float]):
        self.engine, self.options, self.guide, self.flops = engine, options, guide, flops
        self.gen, self.tokenizer = engine.spec.options, engine.spec.tokenizer
        self.trees: list[Running] = []
        self.piece = pieces_of(self.tokenizer)
        self.by_step = guide.by_step or self.gen.search in STEPWISE

    def begin(self, number: int, problem: Problem) -> int:
        """Begin a problem; return how many sequences it has now."""
        tree = Tree(self.engine, problem, self.options, Budget(self.gen.budget_unit, self.gen.budget))
        read = len(problem.prompt_ids) - 1  # its last token goes with the first step; what neighbours share counts, too
        tree.cost = tree.cost.plus(0, read, self.flops(read, read / 2), 0.0)
        one = Running(number, tree, METHODS[str(self.gen.search)](tree))
        next(one.method)
        self.trees.append(one)
        return 1 + len(tree.live)

    def step(self) -> list[tuple[int, Trace]]:
        """Run one forward; return the problems whose search has ended."""
        began = time.perf_counter()
        ended = {event.sequence: event for event in self.engine.step() if event.kind == "end"}
        seconds = time.perf_counter() - began
        running = [(one.tree, branch) for one in self.trees for branch in one.tree.running]
        stopped, passing = [], []
        for tree, branch in running:
            tree.account(branch, self.flops, seconds / len(running))
            boundary = tree.at_boundary(branch, self.piece) if self.by_step or not branch.whole else False
            if branch.sequence in ended or (boundary and not branch.whole):
                stopped.append((tree, branch))
            elif boundary:
                passing.append((tree, branch))
        self._stop(stopped, ended)
        self._score([*stopped, *passing])
        return self._advance()

    def _stop(self, stopped: list[tuple[Tree, Branch]], ended: dict[Any, Event]) -> None:
        """Hold the prefixes, and keep the whole texts."""
        held = []
        for tree, branch in stopped:
            tree.running.remove(branch)
            if branch.sequence in ended:
                branch.trace = ended[branch.sequence].value
                tree.live.remove(branch)
                tree.leaves.append(branch)
            else:
                held.append(branch.sequence)
        if held:
            self.engine.hold(held)

    def _score(self, branches: list[tuple[Tree, Branch]]) -> None:
        if not branches:
            return
        began = time.perf_counter()
        scores = self.guide([Judged(branch, tree.problem) for tree, branch in branches])
        seconds = (time.perf_counter() - began) / len(branches)
        for (tree, branch), (score, forward, flops) in zip(branches, scores, strict=True):
            branch.score = score
            tree.cost = tree.cost.plus(0, forward, flops, seconds)

    def _advance(self) -> list[tuple[int, Trace]]:
        """Let those go on whose branches all wait; end those that are through, or whose budget is spent."""
        through, left = [], []
        for one in self.trees:
            over = one.tree.spent
            if not over and not one.tree.running:
                over = next(one.method, self) is self
            if over:
                through.append((one.number, self._chosen(one.tree)))
            else:
                left.append(one)
        self.trees = left
        return through

    def _chosen(self, tree: Tree) -> Trace:
        """The text that a search ends with: of the whole ones by vote or score, else its best beginning, cut off."""
        trace = self._pick(tree)
        tree.close()
        trace.cost = replace(tree.cost, leaves=sum(leaf.complete for leaf in tree.leaves))
        return trace

    def _pick(self, tree: Tree) -> Trace:
        whole = [leaf for leaf in tree.leaves if leaf.complete]
        if not whole:
            best = max([*tree.leaves, *tree.live], key=lambda branch: (branch.score, len(branch.sequence.surviving)))
            if best.trace is None:
                best.trace = best.sequence.trace(self.tokenizer)
                best.trace.finish_reason = "length"
            return best.trace
        pick = self.options.pick or ("vote" if self.gen.search == "majority" else "score")
        best = max(whole, key=lambda branch: branch.score)
        if pick != "score":
            ballots = [tree.ballot(leaf) for leaf in whole]
            votes: dict[Any, float] = defaultdict(float)
            for ballot, leaf in zip(ballots, whole, strict=True):
                votes[ballot] += 1 if pick == "vote" else max(leaf.score, 0.0)
            votes.pop(None, None)
            if votes:
                winner = max(votes, key=votes.__getitem__)
                own = [leaf for ballot, leaf in zip(ballots, whole, strict=True) if ballot == winner]
                best = max(own, key=lambda branch: branch.score)
        assert best.trace is not None
        return best.trace
