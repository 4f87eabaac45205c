"""Where sequences stand in the cache: those that run first, behind them those that wait, with gaps between these."""

from typing import Any

from llmhalluc.decoding.sequence import Sequence


class Places:
    """Slots of an engine's cache: `running[i]` is in slot i, `behind[j]` in slot len(running) + j; None is a gap."""

    def __init__(self, slots: Any):
        self.slots = slots
        self.running: list[Sequence] = []
        self.behind: list[Sequence | None] = []

    @property
    def held(self) -> list[Sequence]:
        """The sequences that wait."""
        return [one for one in self.behind if one is not None]

    def slot(self, sequence: Sequence) -> int:
        """Return the slot of a sequence. Raises ValueError for one that has none."""
        if sequence in self.running:
            return self.running.index(sequence)
        if sequence in self.behind:
            return len(self.running) + self.behind.index(sequence)
        raise ValueError(f"sequence {sequence.key} is not in the engine, or has ended")

    def make_room(self, count: int) -> None:
        """Free the first `count` slots behind those that run: what waits there moves into gaps, or to the end."""
        first = len(self.running)
        taken, rest = self.behind[:count], self.behind[count:]
        gaps = [at for at, one in enumerate(rest) if one is None]
        moves: dict[int, int] = {}
        movers = [(at, one) for at, one in enumerate(taken) if one is not None]
        for at, one in movers:
            if gaps:
                goal = gaps.pop()
                rest[goal] = one
            else:
                goal = len(rest)
                rest.append(one)
            moves[first + at] = first + count + goal
        self.behind = [*[None] * count, *rest]
        self._copy(moves, [one for _, one in movers])

    def run(self, sequences: list[Sequence]) -> None:
        """Let sequences run in slots that `make_room` has freed."""
        self.running += sequences
        self.behind = self.behind[len(sequences) :]

    def hold(self, sequences: list[Sequence]) -> None:
        """Let running sequences wait: they change places with the last ones that run on."""
        gone = set(sequences)
        left = len(self.running) - len(gone)
        last = self.running[left:]
        movers = [at for at, one in enumerate(last) if one not in gone]
        moves, moved = {}, []
        for slot in range(left):
            if self.running[slot] in gone:
                at = movers.pop()
                moves |= {slot: left + at, left + at: slot}
                moved += [self.running[slot], last[at]]
                self.running[slot], last[at] = last[at], self.running[slot]
        self.running, self.behind = self.running[:left], [*last, *self.behind]
        self._copy(moves, moved)

    def resume(self, sequences: list[Sequence]) -> None:
        """Let waiting sequences run on."""
        first, going, count = len(self.running), set(sequences), len(sequences)
        self.behind += [None] * max(0, count - len(self.behind))
        inside = [at for at, one in enumerate(self.behind[:count]) if one in going]
        outside = [at for at, one in enumerate(self.behind) if at >= count and one in going]
        moves, moved = {}, []
        for goal in (at for at in range(count) if at not in inside):
            source, other = outside.pop(), self.behind[goal]
            moves[first + source] = first + goal
            moved.append(self.behind[source])
            if other is not None:
                moves[first + goal] = first + source
                moved.append(other)
            self.behind[goal], self.behind[source] = self.behind[source], other
        self._copy(moves, moved)
        self.running += [one for one in self.behind[:count] if one is not None]
        self.behind = self.behind[count:]

    def leave(self, sequences: list[Sequence]) -> None:
        """Free the slots of sequences; the last that run move into the gaps among those."""
        gone = set(sequences)
        for one in sequences:
            if one in self.behind:
                self.behind[self.behind.index(one)] = None
                gone.discard(one)
        while self.behind and self.behind[-1] is None:
            self.behind.pop()
        if not gone:
            return
        left = sum(one not in gone for one in self.running)
        movers = [at for at in range(left, len(self.running)) if self.running[at] not in gone]
        moves, moved = {}, []
        for slot in range(left):
            if self.running[slot] in gone:
                source = movers.pop(0)
                moves[source] = slot
                moved.append(self.running[source])
                self.running[slot] = self.running[source]
        if self.behind:
            self.behind = [*[None] * (len(self.running) - left), *self.behind]
        self.running = self.running[:left]
        self._copy(moves, moved)

    def _copy(self, moves: dict[int, int], sequences: list[Any]) -> None:
        """Copy slots at once, through spare ones where a target is also a source."""
        if not moves:
            return
        columns = max(len(sequence.tape.columns) for sequence in sequences)
        sources, targets = list(moves), list(moves.values())
        end = len(self.running) + len(self.behind)
        if moves.keys() & set(targets):
            first = max(end, 1 + max(*sources, *targets))
            spare = list(range(first, first + len(moves)))
            self.slots.reserve(first + len(moves))
            self.slots.copy(sources, spare, columns)
            sources = spare
        self.slots.reserve(max(end, 1 + max(targets)))
        self.slots.copy(sources, targets, columns)
