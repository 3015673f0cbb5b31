"""Deals a round's clients to slots as these become free. It knows neither Ray nor the clock."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from fedvsr.federation.placement import Place
from fedvsr.federation.schedule import Schedule
from fedvsr.messages import ClientTask


@dataclass(frozen=True)
class Waiting:
    """A task that waits for a slot of a place."""

    task: ClientTask
    place: Place
    attempts: int = 0
    shunned: str | None = None
    """Node on which its last process was lost; the node itself may be dying."""
    alone: bool = False
    """Whether it needs its place for itself: memory ran out there."""


@dataclass
class _Held:
    client_id: int
    place: Place
    alone: bool
    began: float | None = None


class Dispatch:
    """The queues of a round, one for each place, and the slots that are free.

    What it does for each client does not grow with the number of clients: a round may have
    thousands. Of the places it only asks whether one has a free slot.

    Args:
        schedule: estimates how long clients take.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._place_of = dict[int, Place]()
        self._free = dict[Place, list[int]]()
        self._held = dict[int, _Held]()
        self._running = dict[Place, set[int]]()
        # By the order in which they were queued; ordered dictionaries lose their first key quickly.
        self._waiting = OrderedDict[int, Waiting]()
        self._queues = dict[Place, OrderedDict[int, Waiting]]()
        self._numbers = count()
        self._waits = set[int]()
        self.slot_of = dict[int, int]()
        """The slot in which each running client trains."""

    def __bool__(self) -> bool:
        """Whether a client trains or waits."""
        return bool(self._waiting or self._held)

    def set_places(self, places: Sequence[Place]) -> None:
        """Say which places there are; slots that nobody holds are free."""
        self._place_of = {slot: place for place in places for slot in place.slots}
        self._free = {p: [s for s in sorted(p.slots) if s not in self._held] for p in places}

    def queue(self, items: Sequence[Waiting]) -> None:
        """Let tasks wait, in this order, instead of those that do."""
        self._waiting.clear()
        self._queues.clear()
        self._waits.clear()
        for item in items:
            self.add(item)

    def add(self, item: Waiting) -> None:
        """Let one more task wait."""
        number = next(self._numbers)
        self._waiting[number] = item
        self._queues.setdefault(item.place, OrderedDict())[number] = item
        self._waits.add(item.task.client_id)

    def waiting(self) -> Iterator[Waiting]:
        """The tasks that wait, in order."""
        return iter(self._waiting.values())

    def is_busy(self, client_id: int) -> bool:
        """Whether a client trains or waits."""
        return client_id in self.slot_of or client_id in self._waits

    def starting(
        self, now: float, taken_s: Mapping[Place, float]
    ) -> Iterator[tuple[Waiting, Place, int]]:
        """Tasks that start now, each with its place and slot, which it holds from then on.

        Args:
            now: the time in seconds.
            taken_s: seconds for which others hold a slot, by place.
        """
        slow: list[Place] | None = None
        for place, free in self._free.items():
            if not free or not self._waiting:
                continue
            num_kept = 1 if place in taken_s else 0
            while len(free) > num_kept and not self._has_one_alone(place):
                if slow is None and place not in self._queues:
                    slow = self._slow(now, taken_s)
                if not (found := self._next_for(place, slow or ())):
                    break
                if found[1].alone and (num_kept or self._running.get(place)):
                    # Nothing starts there until it can: others would keep it waiting.
                    break
                item = self._leave_queue(*found)
                slot = free.pop(num_kept)
                self._held[slot] = _Held(item.task.client_id, place, item.alone)
                self._running.setdefault(place, set()).add(slot)
                self.slot_of[item.task.client_id] = slot
                yield item, place, slot

    def _has_one_alone(self, place: Place) -> bool:
        return any(self._held[slot].alone for slot in self._running.get(place, ()))

    def began(self, slot: int, now: float) -> None:
        """Say that the process of a slot's client is ready, and trains from now on."""
        self._held[slot].began = now

    def ended(self, slot: int) -> None:
        """Say that a slot's client does not train any more."""
        held = self._held.pop(slot)
        self._running[held.place].discard(slot)
        del self.slot_of[held.client_id]
        # Its place may be lost.
        if place := self._place_of.get(slot):
            insort(self._free[place], slot)

    def _leave_queue(self, number: int, item: Waiting) -> Waiting:
        del self._waiting[number], self._queues[item.place][number]
        if not self._queues[item.place]:
            del self._queues[item.place]
        self._waits.discard(item.task.client_id)
        return item

    def _next_for(self, place: Place, slow: Sequence[Place]) -> tuple[int, Waiting] | None:
        """The next task for a free slot: the first that waits for it, or one better off here.

        A client is better off only in a place of its owner.
        """
        if own := self._queues.get(place):
            return next(iter(own.items()))
        moved = []
        for other in slow:
            if other.owner != place.owner:
                continue
            queue = self._queues.get(other, OrderedDict())
            fits = (
                (number, item)
                for number, item in reversed(queue.items())
                if item.shunned != place.node_id and not item.alone
            )
            moved += [last for last in [next(fits, None)] if last]
        # The last in the queue, because the actors of those before it are ready sooner.
        return max(moved, key=lambda numbered: numbered[0], default=None)

    def _slow(self, now: float, taken_s: Mapping[Place, float]) -> list[Place]:
        """Places whose first waiting client would be better off in a free slot elsewhere."""
        return [
            place
            for place in self._queues
            if self._schedule.worth_moving(self._left_s(place, now, taken_s))
        ]

    def _left_s(self, place: Place, now: float, taken_s: Mapping[Place, float]) -> float:
        """Expected seconds until a slot of the place is free."""
        running = [self._held[slot] for slot in self._running.get(place, ())]
        left_s = [
            self._schedule.left_s(held.client_id, 0.0 if held.began is None else now - held.began)
            for held in running
        ]
        left_s += [taken_s[place]] if place in taken_s else []
        return min(left_s) if len(left_s) >= len(place.slots) else 0.0
