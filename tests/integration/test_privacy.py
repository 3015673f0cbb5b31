"""What a client's process opens and holds, seen from inside it."""

from __future__ import annotations

import _thread
import dataclasses
import gc
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import ray
import torch

from fedvsr.algorithms import build, scaffold
from fedvsr.algorithms.base import Aggregated
from fedvsr.config import ExperimentConfig
from fedvsr.data.clips import Clip
from fedvsr.federation import masked_sum
from fedvsr.federation.actors import ActorPool
from fedvsr.federation.aggregation import RoundSum
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Fault, SerialExecutor, TrainedClient
from fedvsr.federation.masking import Field, MaskRequest, quantum_of, rounded, unmasked
from fedvsr.federation.placement import Place
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.federation.rounds import RoundFinished, RoundSetup, RunState, run_rounds
from fedvsr.federation.sampling import FederationConfig
from fedvsr.messages import ClientTask
from fedvsr.models import build_fresh
from fedvsr.params import flatten
from fedvsr.training.updates import UpdateConfig
from tests.integration.running import clients_of, executor_of, split_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

# Clips of the video `texture.mp4`; the expression itself does not match.
CLIP_ID = re.compile(rb"texture-\d{3}")


# Each costs a client's process tenths of a second or more, and none is needed to train.
HEAVY = {
    *("av", "matplotlib", "pandas", "PIL", "pywt", "rich", "scipy", "sympy", "torchvision"),
    *("torch._dynamo", "torch._inductor", "triton", "typer", "ray.serve"),
    *("fedvsr.config", "fedvsr.cli", "fedvsr.federation.rounds", "fedvsr.inference.evaluate"),
    *("fedvsr.metrics", "fedvsr.records", "ray.data", "ray.train", "ray.tune"),
}


def watch(actor: Any) -> None:
    """Inside a client's process: note every file that is opened from now on."""
    actor.opened = []
    sys.addaudithook(
        lambda event, arguments: actor.opened.append(str(arguments[0])) if event == "open" else None
    )


def look_around(actor: Any) -> tuple[list[str], set[str]]:
    """Inside a client's process: the files opened, and the clips named anywhere in its memory."""
    opened, named = list(actor.opened), set[bytes]()
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in maps:
            region, rights, _, _, _, *path = line.split(maxsplit=5)
            # Heap, stacks and anonymous memory have no path; files and shared memory have one.
            if not rights.startswith("rw") or (path and path[0].startswith("/")):
                continue
            begin, end = (int(part, 16) for part in region.split("-"))
            memory.seek(begin)
            try:
                named.update(CLIP_ID.findall(memory.read(end - begin)))
            except OSError:
                continue  # Unmapped meanwhile.
    return opened, {name.decode() for name in named}


class WatchedPool(ActorPool):
    """Watches every client's process before its first task."""

    def start(self, client_id: int | None, place: Place) -> Any:
        actor = super().start(client_id, place)
        actor.handle.__ray_call__.remote(watch)
        return actor


class Watched(RayExecutor):
    pools: ClassVar = {"client": WatchedPool}


def test_a_clients_process_opens_and_names_only_its_own_clips(small: ExperimentConfig) -> None:
    clients = clients_of(small)
    params = flatten(build_fresh(small.model))
    tasks = [ClientTask(client_id=i, round_idx=1, num_rounds=1, seed=i) for i in (0, 2)]
    split = split_of(small)
    every_id = {clip.clip_id for clips in (*split.clients, split.test) for clip in clips}
    num_looked = 0
    with executor_of(clients, ClusterConfig(slots=2), Watched) as executor:
        for client in executor.run_round(tasks, {"params": params}, ClientStates()):
            assert isinstance(client, TrainedClient)
            client_id = client.outcome.report.client_id
            handle = executor.pool[client_id].handle
            opened, named = ray.get(handle.__ray_call__.remote(look_around))
            own = {clip.clip_id for clip in clients.clips[client_id]}
            clips = {Path(path) for path in opened if path.endswith(".npy")}
            assert {path.name.rpartition("_")[0] for path in clips} <= own
            assert {str(path.parent) for path in clips} == {clients.clips[0][0].folder}
            # Not the folder's name, `texture-` and a hash, which may look like a clip's.
            assert named & every_id == own, (
                "the search finds its own clips, so it would find others"
            )
            num_looked += 1
    assert num_looked == 2


@dataclasses.dataclass(frozen=True)
class Remains:
    """What is left in a process of the clients that it has trained."""

    pid: int
    clips: set[str]
    """Clips that anything refers to, and clip files that are open or mapped."""
    num_values: int
    """Values of all tensors and of NumPy's large vectors that are not zero."""
    num_threads: int
    """Those that Python has started."""


def look_for_remains(actor: Any) -> Remains:
    """Inside a slot's process, after a task."""
    gc.collect()
    # What was there when the process was ready is frozen, and none of it is a client's.
    objects = gc.get_objects()
    clips = {clip.clip_id for clip in objects if isinstance(clip, Clip)}
    opened = [str(path.resolve()) for path in Path("/proc/self/fd").iterdir()]
    used = "\n".join([Path("/proc/self/maps").read_text(), *opened])
    clips |= set(re.findall(r"/([^/\s]+)_(?:gt|lq)\.npy", used))
    parameters = list(actor._trainer.network.parameters())
    tensors = [
        *parameters,
        *(p.grad for p in parameters if p.grad is not None),
        *(found for found in objects if type(found) is torch.Tensor and found.numel() > 100),
    ]
    num_values = sum(int(tensor.count_nonzero()) for tensor in tensors)
    size = sum(p.numel() for p in parameters)
    # Arrays of numbers are unknown to the collector, but what holds them is not.
    held = {
        id(value): value
        for owner in objects
        if isinstance(owner, dict)
        for value in owner.values()
        if isinstance(value, np.ndarray) and value.size == size
    }
    num_values += sum(int(np.count_nonzero(value)) for value in held.values())
    return Remains(os.getpid(), clips, num_values, _thread._count())


def modules_of_process() -> Any:
    """A function that travels as its own source: all modules that are loaded."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("import sys\ndef modules(_):\n    return set(sys.modules)", namespace)
    return namespace["modules"]


@pytest.mark.full
def test_a_slots_process_keeps_nothing_of_the_clients_that_it_trained(
    small: ExperimentConfig,
) -> None:
    settings = clients_of(small, num_workers=2)
    clients = dataclasses.replace(settings, algorithm=scaffold.Config())
    params = flatten(build_fresh(small.model))
    shared = {"params": params, "control": np.ones_like(params)}
    states = ClientStates()
    remains = list[Remains]()
    config = ClusterConfig(slots=1, isolation="slot")
    with executor_of(clients, config) as executor:
        for round_idx in (1, 2):
            tasks = [ClientTask(i, round_idx, num_rounds=2, seed=i) for i in (0, 2, 3)]
            for client in executor.run_round(tasks, shared, states, (0, 2, 3)):
                assert isinstance(client, TrainedClient)
                client_id = client.outcome.report.client_id
                states.put(client_id, round_idx, client.update.state)
                handle = executor.pool[client_id].handle
                if not remains:
                    # This module imports more itself, so it must not have been there.
                    loaded = ray.get(handle.__ray_call__.remote(modules_of_process()))
                    assert set() == HEAVY & loaded, "a process imports what it needs to train"
                    assert "torch" in loaded
                remains.append(ray.get(handle.__ray_call__.remote(look_for_remains)))
    assert len({found.pid for found in remains}) == 1, "one slot, one process"
    assert len(remains) == 6
    assert [found.clips for found in remains] == [set()] * 6
    assert [found.num_values for found in remains] == [0] * 6
    assert len({found.num_threads for found in remains}) == 1, "readers have ended"


def windows_of(actor: Any, begin: np.ndarray, request: MaskRequest, half: int) -> list[bytes]:
    """Inside a client's process: 32 bytes of its update, of its parameters and of what it rounds.

    Halves come one by one, so that nothing but a copy of the whole has both side by side.
    """
    change = actor._change
    start = int(np.flatnonzero(change)[0]) + 8 * half
    vectors = change, begin + change, rounded(change, request)
    return [vector[start : start + 8].tobytes() for vector in vectors]


def are_held(pairs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
    """Whether memory of this process, also that of the object store, has each pair in a row."""
    held = [False] * len(pairs)
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in maps:
            region, rights, _, _, _, *path = line.split(maxsplit=5)
            is_store = bool(path) and "plasma" in path[0]
            if not rights.startswith("rw") or (path and path[0][0] == "/" and not is_store):
                continue
            begin, end = (int(part, 16) for part in region.split("-"))
            memory.seek(begin)
            try:
                content = memory.read(end - begin)
            except OSError:
                continue  # Unmapped meanwhile.
            for i, (first, second) in enumerate(pairs):
                place = content.find(first)
                while place >= 0 and not held[i]:
                    after = place + len(first)
                    held[i] = content[after : after + len(second)] == second
                    place = content.find(first, place + 1)
    return held


class Losing(RayExecutor):
    """Kills client 1 before it masks, twice; then looks for an update of another in the driver."""

    deaths: ClassVar[list[bool]] = [True, True, False]
    sent: ClassVar[list[Field]] = []

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        begin = work.server["params"]
        updates = {client.outcome.report.client_id: client.update for client in work.clients}
        kept = [(update.upload, update.state) for update in updates.values()]
        assert kept == [({}, {})] * len(updates)
        handles = {client_id: update.holder.handle for client_id, update in updates.items()}
        if self.deaths.pop(0):
            # A second time, from a process that has masked its update once.
            os.kill(ray.get(handles[1].__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
            yield from super().aggregate(work)
            return
        quantum = quantum_of(work.weights, self._clients.update)
        request = MaskRequest(0, 1, {}, work.weights[0], quantum)
        first, second = (
            ray.get(handles[0].__ray_call__.remote(windows_of, begin, request, half))
            for half in (0, 1)
        )
        self.sent.clear()
        yield from super().aggregate(work)
        assert len(self.sent) == len(updates)
        masked = self.sent[0]
        pairs = [*zip(first, second, strict=True), (masked[:8].tobytes(), masked[8:16].tobytes())]
        assert are_held(pairs) == [False, False, False, True], "it finds what was sent alone"


class Without(SerialExecutor):
    """Client 1 fails for good."""

    def run_round(self, tasks: Any, *arguments: Any) -> Iterator[TrainedClient | Fault]:
        yield Fault(1, 1, "died", "its process is gone", final=True)
        yield from super().run_round([t for t in tasks if t.client_id != 1], *arguments)


def test_the_driver_sees_only_the_sum_of_updates(
    small: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer slots and live processes than clients, one of which is lost after training."""

    def noting(masked: Iterator[Field], work: RoundSum, quantum: float) -> Aggregated:
        # Kept, so that the memory is not written over before it is searched.
        Losing.sent += masked
        return unmasked(iter(Losing.sent), work, quantum)

    monkeypatch.setattr(masked_sum, "unmasked", noting)
    update = UpdateConfig(secure_sum=True)
    clients = dataclasses.replace(clients_of(small, steps=2), update=update)
    federation = FederationConfig(
        num_rounds=1, clients_per_round=3, min_updates=2, sampling="round_robin"
    )
    setup = RoundSetup(build(small.algorithm), federation, update, [4] * 4, (), seed=3)
    state = RunState(0, {"params": flatten(build_fresh(small.model))}, {})
    *_, expected = run_rounds(state, setup, Without(clients), ClientStates())
    config = ClusterConfig(slots=2, max_live_clients=1, max_retries=1)
    with executor_of(clients, config, Losing, cohort=3) as executor:
        events = [*run_rounds(state, setup, executor, ClientStates())]
    faults = [event for event in events if isinstance(event, Fault)]
    assert [(f.client_id, f.kind, f.final) for f in faults] == [
        (1, "died", False),
        (1, "died", True),
    ]
    found = events[-1]
    assert isinstance(found, RoundFinished)
    assert isinstance(expected, RoundFinished)
    assert [report.client_id for report in found.reports] == [0, 2]
    assert found.weights == expected.weights
    assert found.state.params.tobytes() == expected.state.params.tobytes()
