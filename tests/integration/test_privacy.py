"""What a client's process opens and holds, seen from inside it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from fedvsr.config import ExperimentConfig
from fedvsr.federation.actors import ActorPool
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import TrainedClient
from fedvsr.federation.placement import Place
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.messages import ClientTask
from fedvsr.models import build_fresh
from fedvsr.params import flatten
from tests.integration.running import clients_of, executor_of, split_of

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

# Clips of the video `texture.mp4`; the expression itself does not match.
CLIP_ID = re.compile(rb"texture-\d{3}")


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

    def start(self, client_id: int, place: Place) -> Any:
        actor = super().start(client_id, place)
        actor.handle.__ray_call__.remote(watch)
        return actor


class Watched(RayExecutor):
    make_pool = WatchedPool


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
