"""Which client goes where: greedy list scheduling by the time that each took before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from fedvsr.federation.placement import Place

# Seconds to start an actor: mostly the import of PyTorch.
_BUILD_S = 5.0


class Schedule:
    """Estimates how long clients take, and plans where they train.

    Args:
        num_steps: gives a client's optimiser steps in a round, by its id: all that is known before
            the client has trained.
    """

    def __init__(self, num_steps: Callable[[int], int]) -> None:
        self._num_steps = num_steps
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
        return wait_s > _BUILD_S

    def plan(
        self,
        client_ids: Sequence[int],
        places: Sequence[Place],
        living: Mapping[int, Place],
        taken_s: Mapping[Place, float],
    ) -> dict[int, Place]:
        """Give every client, in order, the slot in which it finishes first.

        A client with a living actor pays for a new one if it moves; a client without is started
        where the fewest others of the round live.

        Args:
            client_ids: clients, in the order in which they are to start.
            places: where they may train.
            living: places of the clients that have an actor.
            taken_s: seconds for which others hold a slot, by place.
        """
        free_at = {(place, slot): 0.0 for place in places for slot in place.slots}
        free_at |= {(p, p.slots[0]): left_s for p, left_s in taken_s.items() if p in places}
        residents = Counter(living[i] for i in client_ids if i in living)
        plan = dict[int, Place]()
        for client_id in client_ids:
            home = living.get(client_id)

            def cost(seat: tuple[Place, int], home: Place | None = home) -> tuple[float, int, int]:
                place, slot = seat
                moved = _BUILD_S if home is not None and home != place else 0.0
                return free_at[seat] + moved, residents[place] if home is None else 0, slot

            seat = min(free_at, key=cost)
            free_at[seat] = cost(seat)[0] + self.expected_s(client_id)
            plan[client_id] = seat[0]
        return plan
