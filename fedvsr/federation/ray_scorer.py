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
from fedvsr.federation.executors import Pending, first_line, timed_score
from fedvsr.federation.placement import Place, Placement
from fedvsr.inference.evaluate import Evaluator
from fedvsr.inference.scores import ClipScore
from fedvsr.params import FloatVector

# Seconds between two checks of deadlines, of nodes, and of whether to stop.
POLL_S = 1.0


def keep_to_own_gpus() -> None:
    """Hide all GPUs from an actor that holds no share: Ray shows it every GPU of its node."""
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class EvaluatorActor:
    """The run's evaluator in a process of its own."""

    def __init__(self, make: Callable[[], Evaluator]) -> None:
        keep_to_own_gpus()
        self._evaluator = make()

    def score(self, params: FloatVector) -> tuple[list[ClipScore], float]:
        """The scores of parameters (P,), and the wall seconds that they took."""
        return timed_score(self._evaluator, params)

    def pictures(self, params: FloatVector, clip: Clip, frame_idx: int) -> dict[str, Frames]:
        """See `Evaluator.pictures`."""
        return self._evaluator.pictures(params, clip, frame_idx)


class RayScorer:
    """Scores in an actor while clients train. A dead actor is replaced: it holds no state.

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
        self._lost = list[str]()
        self.last_s = math.inf
        self.place: Place | None = None
        self._actor = self._start()
        self.device_name = self.place.device if self.place else "CPU"

    def take_faults(self) -> list[str]:
        """Deaths of the actor since the last call, a line each."""
        lost, self._lost = self._lost, []
        return lost

    def score(self, params: FloatVector) -> Pending:
        """Start to score; see `Scorer.score`."""
        pending = _RayPending(self, ray.put(params))
        self._scoring = [*(p for p in self._scoring if not p.ready()), pending]
        return pending

    def pictures(self, params: FloatVector, clip: Clip, frame_idx: int) -> dict[str, Frames]:
        """See `Evaluator.pictures`."""
        pictures: dict[str, Frames] = ray.get(self._actor.pictures.remote(params, clip, frame_idx))
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
        ray.kill(self._actor)

    def send(self, params_ref: Any) -> Any:
        """Send parameters to the actor; returns the reference to the scores."""
        return self._actor.score.remote(params_ref)

    def wait(self, ref: Any) -> None:
        """Wait for scores.

        Raises:
            KeyboardInterrupt: the run is to stop.
        """
        while not ray.wait([ref], timeout=POLL_S)[0]:
            if self._stop.is_set():
                raise KeyboardInterrupt

    def restart(self, error: RayError) -> None:
        """Replace the actor, and record why."""
        self._lost.append(f"the evaluator died: {first_line(error)}")
        ray.kill(self._actor)
        self._actor = self._start()

    def _start(self) -> Any:
        self.place = self._choose_place()
        bundle = self.place.bundles[0] if self.place else 0
        share = self._placement.wanted.gpu_share if self.place else 0.0
        options = self._placement.options(bundle, share)
        return ray.remote(EvaluatorActor).options(**options).remote(self._make)


class _RayPending:
    def __init__(self, scorer: RayScorer, params_ref: Any) -> None:
        self._scorer, self._params_ref = scorer, params_ref
        self.begun = time.monotonic()
        self.ref = scorer.send(params_ref)

    def ready(self) -> bool:
        return bool(ray.wait([self.ref], timeout=0)[0])

    def result(self) -> tuple[list[ClipScore], float]:
        for last in (False, False, True):
            self._scorer.wait(self.ref)
            try:
                scores: tuple[list[ClipScore], float] = ray.get(self.ref)
                self._scorer.last_s = scores[1]
                # Scores of personal networks are kept for many rounds; their vectors need not be.
                self._params_ref = None
                return scores
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                if last:
                    raise
                self._scorer.restart(error)
                self.ref = self._scorer.send(self._params_ref)
        raise AssertionError
