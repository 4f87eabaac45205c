"""Ways to search, each a generator over a Tree: `yield` lets its branches run until they end a step, or their text.

After a `yield` each branch has its score, and those that came to their end are among `tree.leaves`. A method is closed
when the budget is spent, and begins anew, with other random numbers, while something of it is left.
"""

import math
from collections.abc import Callable, Iterator

from llmhalluc.search.tree import Branch, Tree, likelihood

MOST_HELD = 64  # prefixes that a pool keeps in the cache
WIDENING = 6  # a prefix of the tree has expand * sqrt(visits / WIDENING) continuations
PATIENCE = 0.5  # by how much each continuation lowers what a prefix is worth to the pool, in units of its score
Method = Callable[[Tree], Iterator[None]]


def samples(tree: Tree) -> Iterator[None]:
    """Whole texts, one after the other (greedy, majority, best_of_n)."""
    while not tree.spent:
        tree.start(1, whole=True)
        yield


def greedy(tree: Tree) -> Iterator[None]:
    """One text."""
    tree.start(1, whole=True)
    yield


def beam(tree: Tree) -> Iterator[None]:
    """The `width` best prefixes, each continued in `expand` ways by a step, until all have ended."""
    while not tree.spent:
        found = tree.start(tree.options.width * tree.options.expand)
        yield
        while open_ := _kept(tree, found, tree.options.width):
            found = _continued(tree, open_)
            yield


def dvts(tree: Tree) -> Iterator[None]:
    """`width` beams of one prefix that do not compete (diverse verifier tree search; Beeching et al. 2024)."""
    while not tree.spent:
        groups = [tree.start(tree.options.expand) for _ in range(tree.options.width)]
        yield
        while open_ := [prefix for group in groups for prefix in _kept(tree, group, 1)]:
            groups = [_continued(tree, [prefix]) for prefix in open_]
            yield


def pool(tree: Tree) -> Iterator[None]:
    """The best of all prefixes there ever were, after the pool of arXiv 2605.25143.

    A prefix stays when it has been continued, so that the search can go back behind what it wrote on any branch.
    """
    prefixes: dict[Branch, int] = {}  # -> how often it was continued
    found = tree.start(tree.options.width * tree.options.expand)
    yield
    while not tree.spent:
        prefixes |= {branch: 0 for branch in found if branch.trace is None}
        if not prefixes:
            found = tree.start(tree.options.width * tree.options.expand)
            yield
            continue
        # Each continuation makes a prefix worth less; of equal ones the longer is nearer to its end.
        order = sorted(prefixes, key=lambda branch: (PATIENCE * prefixes[branch] - branch.score, -len(branch.marks)))
        for branch in order[MOST_HELD:]:
            tree.drop([branch])
            del prefixes[branch]
        chosen = order[: tree.options.width]
        found = _continued(tree, chosen, drop=False)
        for branch in chosen:
            prefixes[branch] += 1
        yield


class Node:
    """A prefix in the search tree: its score, or once continued that of the best continuation; how often visited."""

    def __init__(self, branch: Branch | None, parent: "Node | None" = None):
        self.branch, self.parent = branch, parent
        self.children: list[Node] = []
        self.visits, self.best, self.over = 0, -math.inf, False

    def value(self, explore: float) -> float:
        """Return the upper confidence bound (UCB1; Kocsis & Szepesvari 2006), of the best instead of the mean.

        A step that can be drawn again costs little where it was wrong: what counts is how good the best one is.
        """
        assert self.parent is not None
        return self.best + explore * math.sqrt(math.log(self.parent.visits) / self.visits)

    def add(self, score: float) -> None:
        """Note a score here and at all nodes above."""
        self.visits += 1
        self.best = max((child.best for child in self.children), default=score)
        if self.parent is not None:
            self.parent.add(score)


def tree_search(tree: Tree) -> Iterator[None]:
    """Monte-Carlo tree search over steps: selection by UCB, expansion in `expand` ways, scores handed up.

    After `visits` expansions below a prefix the search goes on from its best continuation, so that it comes to whole
    texts. A prefix that was visited often is continued anew (progressive widening; Coulom 2007).
    """
    while not tree.spent:
        root = Node(None)
        while not tree.spent and not root.over:
            for _ in range(tree.options.visits):
                node = root
                while node.children and len(node.children) >= tree.options.expand * math.sqrt(node.visits / WIDENING):
                    open_ = [child for child in node.children if not child.over]
                    if not open_:
                        break
                    node = max(open_, key=lambda child: (child.value(tree.options.explore), child.visits))
                yield from _expand(tree, node)
            best = max(root.children, key=lambda child: (child.best, child.visits))
            _drop_all(tree, root, keep=best)
            root = best
            root.parent = None
        tree.drop(list(tree.live))


def _drop_all(tree: Tree, node: Node, keep: Node) -> None:
    """Drop the prefixes of a node and of all below it, but those of `keep`."""
    if node.branch is not None:
        tree.drop([node.branch])
    for child in node.children:
        if child is not keep:
            _drop_all(tree, child, keep)


def _expand(tree: Tree, node: Node) -> Iterator[None]:
    count = tree.options.expand
    found = tree.start(count) if node.branch is None else tree.fork(node.branch, count)
    yield
    made = [Node(branch, node) for branch in found]
    node.children += made
    for child, branch in zip(made, found, strict=True):
        child.over = branch.trace is not None
        child.add(branch.score)


def _rank(branch: Branch) -> tuple[float, float]:
    """The score; of equal ones the likelier text."""
    return branch.score, likelihood(branch)


def _kept(tree: Tree, found: list[Branch], width: int) -> list[Branch]:
    """The prefixes among the `width` best; whole texts count, and are continued no more."""
    best = sorted(found, key=_rank, reverse=True)[:width]
    tree.drop(branch for branch in found if branch not in best)
    return [branch for branch in best if branch.trace is None]


def _continued(tree: Tree, prefixes: list[Branch], drop: bool = True) -> list[Branch]:
    found = [twin for prefix in prefixes for twin in tree.fork(prefix, tree.options.expand)]
    if drop:
        tree.drop(prefixes)
    return found


METHODS: dict[str, Method] = {
    "greedy": greedy, "majority": samples, "best_of_n": samples, "beam": beam, "dvts": dvts, "tree": tree_search,
    "pool": pool,
}  # fmt: skip
