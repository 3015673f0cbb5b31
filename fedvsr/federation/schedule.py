"""Which client goes where: greedy list scheduling by the time that each took before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush

from fedvsr.data.owners import NOBODY
from fedvsr.federation.placement import Place

BUILD_S = 5.0
"""Seconds to start an actor: mostly the import of PyTorch."""


class Schedule:
    """Estimates how long clients take, and plans where they train.

    Args:
        num_steps: gives a client's optimiser steps in a round, by its id: all that is known before
            the client has trained.
        owner_of: gives a client's owner.
        move_s: seconds that a client pays for a place other than that of its actor.
    """

    def __init__(
        self,
        num_steps: Callable[[int], int],
        owner_of: Callable[[int], str] = NOBODY.of,
        move_s: float = BUILD_S,
    ) -> None:
        self._num_steps, self._owner_of, self._move_s = num_steps, owner_of, move_s
        self._took_s = dict[int, float]()
        self._all_s, self._all_steps = 0.0, 0

    def took(self, client_id: int, wall_s: float) -> None:
        """Record that a client has trained for `wall_s` seconds."""
        self._took_s[client_id] = wall_s
        self._all_s += wall_s
        self._all_steps += self._num_steps(client_id)

    def expected_s(self, client_id: int) -> float:
        """Seconds that a client is expected to train: as last time, or by its steps."""
        if client_id in self._took_s:
            return self._took_s[client_id]
        step_s = self._all_s / self._all_steps if self._all_steps else 1.0
        return self._num_steps(client_id) * step_s

    def left_s(self, client_id: int, elapsed_s: float) -> float:
        """Seconds that a running client is expected to need from now.

        A client that is late by x seconds is expected to need x more.
        """
        return abs(self.expected_s(client_id) - elapsed_s)

    def worth_moving(self, wait_s: float) -> bool:
        """Whether a client that would wait for `wait_s` should start in a free place instead."""
        return wait_s > self._move_s

    def plan(
        self,
        client_ids: Sequence[int],
        places: Sequence[Place],
        living: Mapping[int, Place],
        taken_s: Mapping[Place, float],
    ) -> dict[int, Place]:
        """Give every client, in order, the slot of its owner in which it finishes first.

        A client whose owner has no place is left out. A client with a living actor pays for a new
        one if it moves; a client without is started where the fewest others of the round live.

        Args:
            client_ids: clients, in the order in which they are to start.
            places: where they may train.
            living: places of the clients that have an actor.
            taken_s: seconds for which others hold a slot, by place.
        """
        residents = Counter(living[i] for i in client_ids if i in living)
        by_owner = dict[str, list[Place]]()
        for place in places:
            by_owner.setdefault(place.owner, []).append(place)
        seats = {
            owner: _Seats(own, taken_s, residents, self._move_s) for owner, own in by_owner.items()
        }
        return {
            i: own.take(living.get(i), self.expected_s(i))
            for i in client_ids
            if (own := seats.get(self._owner_of(i)))
        }


class _Seats:
    """Slots, and when each is free. The best one for a client is found without a look at all.

    Args:
        places: the places of the slots.
        taken_s: seconds for which others hold a place's first slot.
        residents: clients of the round that live in each place.
        move_s: seconds that a client pays for another place.
    """

    def __init__(
        self,
        places: Iterable[Place],
        taken_s: Mapping[Place, float],
        residents: Counter[Place],
        move_s: float,
    ) -> None:
        self._residents, self._move_s = residents, move_s
        self._place_of = {slot: place for place in places for slot in place.slots}
        self._free_at = dict[int, float]()
        # Heaps of slots, the first free one first: for a newcomer, who prefers places with few
        # residents; for a client who lives elsewhere; and for one who lives in that place.
        self._for_newcomers = list[tuple[float, int, int]]()
        self._for_all = list[tuple[float, int]]()
        self._at_home = dict[Place, list[tuple[float, int]]]()
        first = {place.slots[0]: left_s for place, left_s in taken_s.items()}
        for slot in self._place_of:
            self._set(slot, first.get(slot, 0.0))

    def take(self, home: Place | None, expected_s: float) -> Place:
        """Take the slot in which a client finishes first, and return its place.

        Args:
            home: where the client has an actor, if it has one.
            expected_s: seconds that it will hold the slot.
        """
        start_s, slot = self._best(home)
        self._set(slot, start_s + expected_s)
        return self._place_of[slot]

    def _best(self, home: Place | None) -> tuple[float, int]:
        """When a client can start in its best slot, and the slot."""
        if home is None:
            while (entry := self._for_newcomers[0])[0] != self._free_at[entry[2]]:
                heappop(self._for_newcomers)
            return entry[0], entry[2]
        free_s, slot = self._first(self._for_all)
        if self._place_of[slot] == home:
            return free_s, slot
        moved = free_s + self._move_s, slot
        return min(moved, self._first(self._at_home[home])) if home in self._at_home else moved

    def _first(self, heap: list[tuple[float, int]]) -> tuple[float, int]:
        while heap[0][0] != self._free_at[heap[0][1]]:
            heappop(heap)
        return heap[0]

    def _set(self, slot: int, free_at: float) -> None:
        """Say when a slot is free; what the heaps hold of it becomes stale."""
        place = self._place_of[slot]
        self._free_at[slot] = free_at
        heappush(self._for_newcomers, (free_at, self._residents[place], slot))
        heappush(self._for_all, (free_at, slot))
        heappush(self._at_home.setdefault(place, []), (free_at, slot))
