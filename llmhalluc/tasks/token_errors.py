"""Errors that a task puts into the ids of its solutions, and what it is given for that."""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tokenizers import Encoding


class Runs(Protocol):
    """What the `backtrack` section says of error runs (data/errors.py), for a task that puts its errors into ids."""

    backtrack_id: int

    def longest(self, progress: float) -> int: ...
    def length(self, rng: Random, longest: int) -> int: ...
    def places(self, eligible: Sequence[int], tokens: int, rng: Random) -> list[int]: ...
    def nest(self, error: list[int], longest: int, rng: Random) -> list[int]: ...


class TokenErrors(Protocol):
    """Errors that a task puts into the ids of its solutions; `needs` says what a solution must hold for that."""

    needs: str

    def details(self, record: dict[str, Any], answer: str, encoding: "Encoding") -> dict[str, Any]:
        """Return what the other two read beside the ids; `steps`, empty where nothing can go wrong, among it."""

    def corrupt(self, encoded: dict[str, Any], rng: Random, progress: float) -> list[int]:
        """Return the completion with erased errors in it."""

    def pair(self, encoded: dict[str, Any], longest: int, rng: Random) -> tuple[int, list[int], list[int]] | None:
        """Return a position, the error tokens that stand before it, and how the error is carried on to the eos."""
