"""The run's evaluator as a Ray actor that scores while clients train."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fedvsr.federation.client_actor import keep_to_own_gpus
from fedvsr.federation.executors import FaultKind, Pending, first_line
from fedvsr.federation.placement import Place, Placement
from fedvsr.federation.pulse import CONTROL, Pulse, SilentError, end
from fedvsr.heap import keep_freed
from fedvsr.inference.evaluate import Evaluator
from fedvsr.inference.scores import Scored
from fedvsr.limits import FETCH_S
from fedvsr.params import FloatVector

# Seconds between two checks of deadlines, of nodes, and of whether to stop.
POLL_S = 1.0


class EvaluatorActor:
    """The run's evaluator in a process of its own."""

    def __init__(self, make: Callable[[], Evaluator]) -> None:
        keep_to_own_gpus()
        keep_freed()
        self._make = make
        self._evaluator: Evaluator | None = None

    def ping(self) -> None:
        """Answer; see `Pulse`."""

    def ready(self) -> None:
        """Build the evaluator, while the first clients train."""
        self._build()

    def score(self, params: FloatVector, pictures: bool) -> Scored:
        """See `Evaluator.score`."""
        return self._build().score(params, pictures)

    def _build(self) -> Evaluator:
        # Not in `__init__`: the process answers `ping` only after that.
        if self._evaluator is None:
            self._evaluator = self._make()
        return self._evaluator


class RayScorer:
    """Scores in an actor while clients train. A dead or hung actor is replaced: it has no state.

    Args:
        make: makes the evaluator, in the actor.
        placement: where actors may run.
        choose_place: the place whose slot it takes; None if it takes none.
        stop: when set, waiting ends with KeyboardInterrupt.
    """

    def __init__(
        self,
        make: Callable[[], Evaluator],
        placement: Placement,
        choose_place: Callable[[], Place | None],
        stop: threading.Event,
    ) -> None:
        self._make, self._placement, self._stop = make, placement, stop
        self._choose_place = choose_place
        self._scoring = list[_RayPending]()
        self._lost = list[tuple[FaultKind, str]]()
        self.last_s = math.inf
        self.place: Place | None = None
        self.actor: Any
        self._start()
        self.device_name = self.place.device if self.place else "CPU"

    def take_faults(self) -> list[tuple[FaultKind, str]]:
        """Losses of the actor since the last call, a line each."""
        lost, self._lost = self._lost, []
        return lost

    def score(self, params: FloatVector, pictures: bool = True) -> Pending:
        """Start to score; see `Scorer.score`."""
        pending = _RayPending(self, ray.put(params), pictures)
        self._scoring = [*(p for p in self._scoring if not p.ready()), pending]
        return pending

    def left_s(self) -> float:
        """Seconds until it is expected to be done, by its last time; infinite before its first."""
        begun = min((p.begun for p in self._scoring if not p.ready()), default=None)
        if begun is None:
            return 0.0
        return abs(self.last_s - (time.monotonic() - begun))

    def occupies(self, place: Place) -> bool:
        """Whether it computes in that place now."""
        return place == self.place and any(not pending.ready() for pending in self._scoring)

    def pending(self) -> list[Any]:
        """References that become ready when it gives its slot back."""
        return [p.ref for p in self._scoring if not p.ready()] if self.place else []

    def close(self) -> None:
        """End the actor."""
        end(self.actor)

    def wait(self, ref: Any) -> None:
        """Wait for a result.

        Raises:
            KeyboardInterrupt: the run is to stop.
            SilentError: the actor does not answer.
        """
        while not ray.wait([ref], timeout=POLL_S)[0]:
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._pulse.check()

    def replace(self, actor: Any, error: Exception) -> None:
        """Replace an actor that is lost, unless that has been done, and record why."""
        if actor is not self.actor:
            return
        kind: FaultKind = "timeout" if isinstance(error, TimeoutError) else "died"
        self._lost.append((kind, f"the evaluator was lost: {first_line(error)}"))
        end(actor)
        self._start()

    def _start(self) -> None:
        self.place = self._choose_place()
        bundle = self.place.bundles[0] if self.place else 0
        share = self._placement.wanted.gpu_share if self.place else 0.0
        options = self._placement.options(bundle, share)
        make: Any = ray.remote(concurrency_groups={CONTROL: 1})  # type: ignore[call-overload]
        self.actor = make(EvaluatorActor).options(**options).remote(self._make)
        self.actor.ready.remote()
        self._pulse = Pulse(self.actor)


class _RayPending:
    """Scores that are being computed; they are asked for again if the scorer's actor is lost."""

    def __init__(self, scorer: RayScorer, params_ref: Any, pictures: bool) -> None:
        self.begun = time.monotonic()
        self._scorer, self._params_ref, self._pictures = scorer, params_ref, pictures
        self._begin()

    def ready(self) -> bool:
        return bool(ray.wait([self.ref], timeout=0)[0])

    def result(self) -> Scored:
        """Wait for the scores.

        Raises:
            KeyboardInterrupt: the run is to stop.
            Exception: what the evaluator raised.
            RuntimeError: the actor was lost three times.
        """
        for last in (False, False, True):
            try:
                self._scorer.wait(self.ref)
                scored: Scored = ray.get(self.ref, timeout=FETCH_S)
            except RayTaskError as error:
                raise error.cause from error
            except (RayError, SilentError) as error:
                if last:
                    message = f"the evaluator was lost three times: {first_line(error)}"
                    raise RuntimeError(message) from error
                self._scorer.replace(self._actor, error)
                self._begin()
            else:
                self._scorer.last_s = scored.wall_s
                # Scores of personal networks are kept for many rounds; their vectors need not be.
                self._params_ref = None
                return scored
        raise AssertionError

    def _begin(self) -> None:
        self._actor = self._scorer.actor
        self.ref = self._actor.score.remote(self._params_ref, self._pictures)
