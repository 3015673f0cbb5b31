"""Ray must give the reference's bits: for any slots, after lost processes, in a driver or not."""

from __future__ import annotations

import dataclasses
import gc
import os
import re
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from fedvsr import experiment
from fedvsr.config import ExperimentConfig, load_config
from fedvsr.data.clips import Clip
from fedvsr.errors import UserError
from fedvsr.federation import driver
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.cluster import ClusterConfig
from fedvsr.federation.executors import ClientOutcome, Clients, SerialExecutor
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.messages import ClientTask
from fedvsr.models import build_fresh
from fedvsr.params import flatten
from fedvsr.records import load_results
from tests.integration.equality import assert_equal_runs, facts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture(scope="session")
def reference(small_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same experiment run by the serial executor."""
    config = load_config(str(small_yaml))
    run = experiment.create_run(config, tmp_path_factory.mktemp("serial"))
    split = experiment.prepare_data(config, lambda *_: None)
    list(experiment.execute(run, split, SerialExecutor))
    return run.folder


@pytest.mark.parametrize(("slots", "max_live_clients"), [(1, 8), (3, 2)])
def test_serial_equals_ray_for_any_number_of_slots(
    slots: int, max_live_clients: int, small: ExperimentConfig, reference: Path, tmp_path: Path
) -> None:
    run = experiment.create_run(small, tmp_path)
    split = experiment.prepare_data(small, lambda *_: None)
    cluster = ClusterConfig(slots=slots, max_live_clients=max_live_clients)
    start = partial(experiment.execute, run, split, partial(RayExecutor, config=cluster))
    events = list(driver.drive(start))
    assert [e.round_idx for e in events if isinstance(e, experiment.RoundRecorded)] == [0, 1, 2, 3]
    assert_equal_runs(reference, run.folder)
    assert facts(run.folder)["runs"]["status"].tolist() == ["finished"]


@pytest.mark.parametrize(
    "setting",
    [
        "algorithm.name=scaffold",
        "algorithm.name=fedsr",
        "algorithm.name=local",
        "algorithm.name=centralized",
        "update.compression=top_k",
    ],
)
def test_what_clients_remember_survives_a_stop(
    small_yaml: Path, tmp_path: Path, setting: str
) -> None:
    config = load_config(str(small_yaml), [setting, "algorithm.lambda_hifr=0.5"])
    split = experiment.prepare_data(config, lambda *_: None)
    whole = experiment.create_run(config, tmp_path / "serial")
    list(experiment.execute(whole, split, SerialExecutor))
    # Nothing of it stays in memory, so all goes through files.
    cluster = ClusterConfig(slots=2, client_state_bytes=0)
    stopped = experiment.create_run(
        config.model_copy(update={"cluster": cluster}), tmp_path / "ray"
    )
    for last in (2, 3):
        events = experiment.execute(stopped, split, partial(RayExecutor, config=cluster))
        for event in events:
            if isinstance(event, experiment.RoundRecorded) and event.round_idx == last == 2:
                events.close()
                break
    assert_equal_runs(whole.folder, stopped.folder)
    assert list((stopped.folder / "checkpoints").glob("client-*"))


def test_a_client_killed_in_mid_round_costs_an_attempt_and_no_bit(
    small: ExperimentConfig,
) -> None:
    clients = clients_of(small, steps=60)
    params = {"params": flatten(build_fresh(small.model))}
    states = ClientStates()
    tasks = [ClientTask(client_id=i, round_idx=1, num_rounds=1, seed=i) for i in (2, 0)]
    expected = {
        o.report.client_id: o for o in SerialExecutor(clients).run_round(tasks, params, states)
    }
    victim = 2
    executor = Killing(clients, ClusterConfig(slots=2), victim)
    outcomes = {o.report.client_id: o for o in executor.run_round(tasks, params, states)}
    executor.thread.join()
    executor.close()
    assert executor.was_training, "the client was killed before or after its training"
    assert outcomes[victim].attempts == 2
    assert outcomes[0].attempts == 1
    for client_id, outcome in outcomes.items():
        assert params_of(outcome) == params_of(expected[client_id])
        assert outcome.report.loss == expected[client_id].report.loss


def test_a_client_that_keeps_dying_ends_the_round(small: ExperimentConfig) -> None:
    clients = clients_of(small, steps=60)
    params = {"params": flatten(build_fresh(small.model))}
    states = ClientStates()
    tasks = [ClientTask(client_id=1, round_idx=1, num_rounds=1, seed=0)]
    executor = Killing(clients, ClusterConfig(slots=1, max_retries=0), 1)
    with pytest.raises(RuntimeError, match="the process of client 1 died 1 times in round 1"):
        list(executor.run_round(tasks, params, states))
    executor.close()


def test_a_client_sees_its_own_clips_alone(small: ExperimentConfig) -> None:
    clients = clients_of(small)
    executor = RayExecutor(clients, ClusterConfig())
    sent = list[Any]()

    class Spy:
        def options(self, **_: Any) -> Spy:
            return self

        def remote(self, *arguments: Any) -> str:
            sent.append(arguments)
            return "actor"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "remote", lambda _: Spy())
        executor._start(3)
    ((own, client_id),) = sent
    assert client_id == 3
    assert own.clips == (clients.clips[3],)
    others = {clip.clip_id for i, clips in enumerate(clients.clips) if i != 3 for clip in clips}
    assert not any(other in repr(own) for other in others)


def look_around(actor: Any) -> tuple[set[str], set[str]]:
    """Inside a client's process: the ids of all clips it knows of, and all clip files it maps."""
    gc.collect()
    known = {found.clip_id for found in gc.get_objects() if isinstance(found, Clip)}
    mapped = re.findall(r"/(\S+)_(?:gt|lq)\.npy", Path("/proc/self/maps").read_text())
    return known, {name.rpartition("/")[2] for name in mapped}


def test_a_clients_process_knows_no_other_clip_and_only_numbers_leave_it(
    small: ExperimentConfig,
) -> None:
    clients = clients_of(small)
    executor = RayExecutor(clients, ClusterConfig(slots=2))
    params = flatten(build_fresh(small.model))
    tasks = [ClientTask(client_id=i, round_idx=1, num_rounds=1, seed=i) for i in (0, 2)]
    try:
        for outcome in executor.run_round(tasks, {"params": params}, ClientStates()):
            client_id = outcome.report.client_id
            fields = dataclasses.asdict(outcome.report)
            assert all(isinstance(value, int | float) for value in fields.values()), fields
            update = outcome.fetch()
            assert set(update.upload) == {"params"}
            assert update.upload["params"].shape == params.shape
            assert update.state == {}
            actor = executor._actors[client_id]
            known, mapped = ray.get(actor.__ray_call__.remote(look_around))
            own = {clip.clip_id for clip in clients.clips[client_id]}
            assert known == own
            assert mapped <= own
    finally:
        executor.close()


def test_a_mistake_inside_a_client_reaches_the_user_as_itself(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    changed = small.model_copy(
        update={"local": small.local.model_copy(update={"lr": 1.0, "steps": 300})}
    )
    hot = changed.model_copy(
        update={"model": small.model.model_copy(update={"channels": 32, "blocks": 20})}
    )
    run = experiment.create_run(hot, tmp_path)
    split = experiment.prepare_data(hot, lambda *_: None)
    start = partial(experiment.execute, run, split, partial(RayExecutor, config=hot.cluster))
    with pytest.raises(UserError, match=r"^the loss of client \d is (nan|inf) in round 1"):
        list(driver.drive(start))
    assert load_results(run.folder).runs["status"].tolist() == ["failed"]


def test_what_the_cluster_lacks_is_said_at_once(small: ExperimentConfig) -> None:
    with pytest.raises(UserError, match=r"cluster\.gpu_share = 0\.5, but this Ray cluster has no"):
        RayExecutor(clients_of(small), ClusterConfig(gpu_share=0.5))


def clients_of(config: ExperimentConfig, **local: Any) -> Clients:
    split = experiment.prepare_data(config, lambda *_: None)
    dealt = split.clients
    changed = config.local.model_copy(update=local)
    return Clients(config.model, config.algorithm, changed, dealt)


class Killing(RayExecutor):
    """Kills the process of one client with SIGKILL, once, while it trains."""

    def __init__(self, clients: Clients, config: ClusterConfig, victim: int) -> None:
        super().__init__(clients, config)
        self.victim, self.was_training = victim, False
        self.thread = threading.Thread(target=lambda: None)

    def _start(self, client_id: int) -> Any:
        actor = super()._start(client_id)
        if client_id == self.victim and self.thread.ident is None:
            # Asked before the task is sent: an actor answers its calls in order.
            pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
            self.thread = threading.Thread(target=self._kill, args=(pid,))
            self.thread.start()
        return actor

    def _kill(self, pid: int) -> None:
        title = Path(f"/proc/{pid}/cmdline")
        deadline = time.monotonic() + 60
        while b"train" not in title.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        self.was_training = b"ClientActor.train" in title.read_bytes()
        os.kill(pid, 9)


def params_of(outcome: ClientOutcome) -> bytes:
    return outcome.fetch().upload["params"].tobytes()
