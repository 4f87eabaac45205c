"""The keys of `gen.search_args`: how each method searches, and what it is guided by."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from llmhalluc.extras.errors import UserError, did_you_mean
from llmhalluc.extras.option import option
from llmhalluc.hparams.mapping import check_mapping, make

METHODS = ("greedy", "majority", "best_of_n", "beam", "dvts", "tree", "pool")
GUIDES = ("likelihood", "check", "verifier", "prm")
STEPWISE = ("beam", "dvts", "tree", "pool")  # guided at the end of each step, not only at that of the text


@dataclass
class SearchOptions:
    """`gen.search_args`."""

    n: int | None = option(None, "most whole texts; none: as many as the budget pays for", bounds="[1, inf)")
    width: int = option(4, "beam, dvts, pool: prefixes that are continued at a time", bounds="[1, inf)")
    expand: int = option(2, "beam, dvts, tree, pool: ways in which a prefix is continued", bounds="[1, inf)")
    guide: Literal["likelihood", "check", "verifier", "prm"] = option(
        "likelihood", "what values a prefix: mean log-probability, the task's own check, or a trained judge"
    )
    pick: Literal["score", "vote", "weighted"] | None = option(
        None, "which whole text is taken; none: majority votes, the others take the best score"
    )
    step_tokens: int | None = option(None, "tokens of a step; none: the steps of the task", bounds="[1, inf)")
    explore: float = option(0.1, "tree: weight of rarely visited prefixes (UCB)", bounds="[0, inf)")
    visits: int = option(2, "tree: expansions before it goes on from the best continuation", bounds="[1, inf)")
    judge: str | None = option(None, "verifier, prm: folder of the judge; none: that of the model")


def search_options(gen: Any) -> SearchOptions | None:
    """Return how `gen` searches, None where it does not. Raises UserError with a sentence for each mistake."""
    if problems := list(mistakes(gen)):
        raise UserError(*problems)
    return None if gen.search is None else make(SearchOptions, gen.search_args)


def mistakes(gen: Any) -> Iterator[str]:
    """Yield a sentence for each key of `gen` that no search could follow."""
    if gen.search is None:
        for name in ("search_args", "budget"):
            if getattr(gen, name):
                yield f"gen.{name} is given without gen.search: name a method, such as best_of_n, or take it out"
        return
    if gen.search not in METHODS:
        yield f"gen.search is {gen.search!r}{did_you_mean(gen.search, METHODS)}"
        return
    yield from (sentence for _, sentence in check_mapping("gen.search_args", gen.search_args, SearchOptions))
    if gen.compile:
        yield "gen.compile is true, but a search lets sequences wait: set it to false"
    if gen.search == "greedy" and gen.temperature:
        yield f"gen.search is greedy, but gen.temperature is {gen.temperature}: set it to 0, or name another method"
    if gen.search != "greedy" and not gen.temperature:
        yield f"gen.search {gen.search} samples, but gen.temperature is 0: set it to 1"
    args = gen.search_args if isinstance(gen.search_args, dict) else {}
    if gen.search != "greedy" and gen.budget is None and args.get("n") is None:
        yield f"gen.search {gen.search} would never end: set gen.budget, or n in gen.search_args"
    if args.get("judge") is not None and args.get("guide") not in ("verifier", "prm"):
        yield "gen.search_args.judge is for the guides verifier and prm: set guide, or take it out"


def names() -> list[str]:
    """Return the keys."""
    return [field.name for field in fields(SearchOptions)]
