"""The run's evaluator as a Ray actor that scores while clients train."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fedvsr.data.clips import Clip, Frames
from fedvsr.federation.executors import FaultKind, Pending, first_line, timed_score
from fedvsr.federation.placement import Place, Placement
from fedvsr.federation.pulse import CONTROL, Pulse, SilentError, end
from fedvsr.inference.evaluate import Evaluator
from fedvsr.inference.scores import ClipScore
from fedvsr.params import FloatVector

# Seconds between two checks of deadlines, of nodes, and of whether to stop.
POLL_S = 1.0
# Seconds within which a result that is ready must come from its node.
FETCH_S = 300.0


def keep_to_own_gpus() -> None:
    """Hide all GPUs from an actor that holds no share: Ray shows it every GPU of its node."""
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class EvaluatorActor:
    """The run's evaluator in a process of its own."""

    def __init__(self, make: Callable[[], Evaluator]) -> None:
        keep_to_own_gpus()
        self._make = make
        self._evaluator: Evaluator | None = None

    def ping(self) -> None:
        """Answer; see `Pulse`."""

    def ready(self) -> None:
        """Build the evaluator, while the first clients train."""
        self._build()

    def score(self, params: FloatVector) -> tuple[list[ClipScore], float]:
        """The scores of parameters (P,), and the wall seconds that they took."""
        return timed_score(self._build(), params)

    def pictures(self, params: FloatVector, clip: Clip, frame_idx: int) -> dict[str, Frames]:
        """See `Evaluator.pictures`."""
        return self._build().pictures(params, clip, frame_idx)

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

    def score(self, params: FloatVector) -> Pending:
        """Start to score; see `Scorer.score`."""
        pending = _RayPending(self, ray.put(params))
        self._scoring = [*(p for p in self._scoring if not p.ready()), pending]
        return pending

    def pictures(self, params: FloatVector, clip: Clip, frame_idx: int) -> dict[str, Frames]:
        """See `Evaluator.pictures`."""
        params_ref = ray.put(params)
        call = _Call(self, lambda actor: actor.pictures.remote(params_ref, clip, frame_idx))
        pictures: dict[str, Frames] = call.result()
        return pictures

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


class _Call:
    """A call of the scorer's actor, which is sent again if the actor is lost."""

    def __init__(self, scorer: RayScorer, send: Callable[[Any], Any]) -> None:
        self._scorer, self._send = scorer, send
        self._begin()

    def result(self) -> Any:
        """Wait for the result.

        Raises:
            KeyboardInterrupt: the run is to stop.
            Exception: what the call raised.
            RuntimeError: the actor was lost three times.
        """
        for last in (False, False, True):
            try:
                self._scorer.wait(self.ref)
                return ray.get(self.ref, timeout=FETCH_S)
            except RayTaskError as error:
                raise error.cause from error
            except (RayError, SilentError) as error:
                if last:
                    message = f"the evaluator was lost three times: {first_line(error)}"
                    raise RuntimeError(message) from error
                self._scorer.replace(self._actor, error)
                self._begin()
        raise AssertionError

    def _begin(self) -> None:
        self._actor = self._scorer.actor
        self.ref = self._send(self._actor)


class _RayPending(_Call):
    """Scores that are being computed."""

    def __init__(self, scorer: RayScorer, params_ref: Any) -> None:
        self.begun = time.monotonic()
        super().__init__(scorer, lambda actor: actor.score.remote(params_ref))

    def ready(self) -> bool:
        return bool(ray.wait([self.ref], timeout=0)[0])

    def result(self) -> tuple[list[ClipScore], float]:
        scores: tuple[list[ClipScore], float] = super().result()
        self._scorer.last_s = scores[1]
        # Scores of personal networks are kept for many rounds; their vectors need not be.
        self._send = _never
        return scores


def _never(_: Any) -> Any:
    raise AssertionError("the result has been taken")
