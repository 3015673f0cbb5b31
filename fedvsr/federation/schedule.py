"""Which client goes where: greedy list scheduling by what each took before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from fedvsr.federation.placement import Place

# What building an actor takes: PyTorch's import, for the most part.
_BUILD_S = 5.0


class Schedule:
    """Knows how long clients take.

    Args:
        num_steps: optimiser steps of a client in a round, by its id: what is known before it has
            trained.
    """

    def __init__(self, num_steps: Callable[[int], int]) -> None:
        self._num_steps = num_steps
        self._took_s = dict[int, float]()
        self._all_s, self._all_steps = 0.0, 0

    def took(self, client_id: int, wall_s: float) -> None:
        """A client has trained."""
        self._took_s[client_id] = wall_s
        self._all_s += wall_s
        self._all_steps += self._num_steps(client_id)

    def expected_s(self, client_id: int) -> float:
        """As long as last time, else by its steps."""
        if client_id in self._took_s:
            return self._took_s[client_id]
        step_s = self._all_s / self._all_steps if self._all_steps else 1.0
        return self._num_steps(client_id) * step_s

    def left_s(self, client_id: int, elapsed_s: float) -> float:
        """Seconds that a running client is expected to need still.

        One that takes longer than expected is expected to take as long again as it is late.
        """
        return abs(self.expected_s(client_id) - elapsed_s)

    def worth_moving(self, wait_s: float) -> bool:
        """Whether a client that would wait so long should be built anew in a place that is free."""
        return wait_s > _BUILD_S

    def plan(
        self,
        client_ids: Sequence[int],
        places: Sequence[Place],
        living: Mapping[int, Place],
        taken_s: Mapping[Place, float],
    ) -> dict[int, Place]:
        """Give every client, in order, the slot that lets it finish first.

        A client with a living actor would have to be built anew elsewhere; one without is built
        where the fewest others of the round live.

        Args:
            client_ids: in the order in which they are to begin.
            places: where they may go.
            living: where those with an actor have it.
            taken_s: seconds for which others hold a slot of a place.
        """
        free_at = {(place, slot): 0.0 for place in places for slot in place.slots}
        free_at |= {(p, p.slots[0]): left_s for p, left_s in taken_s.items() if p in places}
        residents = Counter(living[i] for i in client_ids if i in living)
        found = dict[int, Place]()
        for client_id in client_ids:
            home = living.get(client_id)

            def cost(seat: tuple[Place, int], home: Place | None = home) -> tuple[float, int, int]:
                place, slot = seat
                moved = _BUILD_S if home is not None and home != place else 0.0
                return free_at[seat] + moved, residents[place] if home is None else 0, slot

            seat = min(free_at, key=cost)
            free_at[seat] = cost(seat)[0] + self.expected_s(client_id)
            found[client_id] = seat[0]
        return found
