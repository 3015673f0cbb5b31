"""Replays work on a GPU as CUDA graphs.

The networks launch tens of thousands of small kernels for a training step. A fast GPU runs them
sooner than a host launches them. A graph records them once and then launches them all at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import wraps
from typing import Generic, TypeVar

import torch
from torch import Tensor
from typing_extensions import ParamSpec

T = TypeVar("T")
P = ParamSpec("P")

# For each graph that is being recorded: the cached tensors that were asked for meanwhile.
_recordings: dict[int, list[object]] = {}


def cached_tensors(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function of hashable arguments whose tensors depend on them alone.

    A graph reads memory where it lies. One that is recorded while it asks for such tensors keeps
    them, even if the cache drops them. What a graph itself computes is not cached: it has no value
    before the first replay.

    Args:
        maxsize: results to keep; the oldest is dropped.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        results: dict[object, T] = {}

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            key = args, tuple(kwargs.items())
            result = results.get(key)
            if result is None:
                # Tensors made in inference mode could not be used in training later.
                with torch.inference_mode(False):
                    result = function(*args, **kwargs)
                if not _recording():
                    results[key] = result
                    while len(results) > maxsize:
                        results.pop(next(iter(results)), None)
            for recording in tuple(_recordings.values()):
                recording.append(result)
            return result

        # For tests; to a type checker, functions have no attributes of their own.
        call.results = results  # type: ignore[attr-defined]
        return call

    return decorate


def _recording() -> bool:
    """Whether a graph records what this thread does now."""
    # PyTorch gives this function no types.
    ready: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return ready and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class _Recorded(Generic[T]):
    key: Hashable
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    constants: list[object]
    output: T


class Replayed(Generic[T]):
    """Calls functions of GPU tensors, and replays them as CUDA graphs if they are called again.

    The first call with a key calls the function itself, which compiles and loads its kernels. The
    second records the graph and replays it, later ones only replay it. A function that cannot be
    recorded, because it waits for the GPU or because memory does not suffice, is called itself
    every time, and a warning says why.

    A graph holds the memory of all its values until `release`. Only one is kept.

    Args:
        name: what the functions do, for the warning.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._known = set[Hashable]()
        self._refused = set[Hashable]()
        self._recorded: _Recorded[T] | None = None

    def __call__(self, key: Hashable, function: Callable[..., T], *inputs: Tensor) -> T:
        """Call a function, or replay it. Not on the default stream, on which nothing is recorded.

        Args:
            key: with equal keys, functions must do the same work on inputs of equal shapes. A
                function may read what changes between calls only from memory that stays in place,
                such as a network's parameters. Random numbers are drawn anew at each replay.
            function: returns tensors on the GPU.
            inputs: its arguments.

        Returns:
            The function's result. The next call may overwrite it.
        """
        key = (key, *((x.shape, x.dtype) for x in inputs))
        recorded = self._recorded
        if recorded is not None and recorded.key == key:
            for own, given in zip(recorded.inputs, inputs, strict=True):
                own.copy_(given, non_blocking=True)
            recorded.graph.replay()
            return recorded.output
        if recorded is not None and _size(inputs) < _size(recorded.inputs):
            # A pass's last batch may be smaller: not worth another graph, and memory suffices.
            return function(*_on_gpu(inputs))
        self.release()
        if key not in self._known or key in self._refused:
            self._known.add(key)
            return function(*_on_gpu(inputs))
        self._recorded = self._record(key, function, _on_gpu(inputs))
        if self._recorded is None:
            self._refused.add(key)
            return function(*_on_gpu(inputs))
        self._recorded.graph.replay()
        return self._recorded.output

    def release(self) -> None:
        """Drop the graph and its memory; the next call records it anew."""
        self._recorded = None

    def _record(
        self, key: Hashable, function: Callable[..., T], inputs: tuple[Tensor, ...]
    ) -> _Recorded[T] | None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        constants: list[object] = []
        _recordings[id(constants)] = constants
        try:
            # Other threads may allocate pinned memory meanwhile, which a global capture refuses.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                output = function(*inputs)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"{self._name} is not replayed as a CUDA graph and may be slower: {reason}",
                RuntimeWarning,
                stacklevel=3,
            )
            return None
        finally:
            del _recordings[id(constants)]
        return _Recorded(key, graph, inputs, constants, output)


def _size(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _on_gpu(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copies of the inputs, which a graph may keep."""
    return tuple(x.to("cuda", non_blocking=True, copy=True) for x in inputs)
