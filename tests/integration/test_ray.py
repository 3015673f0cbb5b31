"""Ray gives the bits of the serial reference: for any slots, after lost processes, after a stop."""

from __future__ import annotations

import dataclasses
import gc
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from urllib.request import urlopen

import pytest
import ray
from ray.util.placement_group import placement_group_table

from fedvsr.config import ExperimentConfig, load_config
from fedvsr.data.clips import Clip
from fedvsr.errors import UserError
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig, Isolation
from fedvsr.federation.dispatch import Waiting
from fedvsr.federation.executors import Delay, Fault, SerialExecutor, TrainedClient
from fedvsr.messages import ClientTask
from fedvsr.models import build_fresh
from fedvsr.params import flatten
from fedvsr.records import load_results
from fedvsr.runs.events import Event, RoundRecorded
from fedvsr.runs.run import create_run, run_status
from tests.integration.equality import assert_equal_runs, facts
from tests.integration.faulty import Failure, faulty
from tests.integration.running import (
    clients_of,
    executor_of,
    on_ray,
    reserved,
    run_serially,
    with_cluster,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize(
    "cluster",
    [
        {"slots": 2, "max_live_clients": 1},
        pytest.param({"slots": 1, "isolation": "slot"}, marks=pytest.mark.full),
    ],
)
def test_serial_equals_ray_for_any_number_of_slots(
    cluster: dict[str, Any], small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    config = with_cluster(small, **cluster)
    run = create_run(config, tmp_path)
    events = list(on_ray(run))
    assert [e.round_idx for e in events if isinstance(e, RoundRecorded)] == [0, 1, 2, 3]
    assert_equal_runs(undisturbed, run.folder)
    assert facts(run.folder)["runs"]["status"].tolist() == ["finished"]


@pytest.mark.full
@pytest.mark.parametrize(
    "setting",
    [
        # SCAFFOLD's clients are stopped in the test below too, and FedMRI's keep networks.
        pytest.param("algorithm.name=scaffold", marks=pytest.mark.slow),
        pytest.param("algorithm.name=fedsr", marks=pytest.mark.slow),
        pytest.param("algorithm.name=local", marks=pytest.mark.slow),
        "algorithm.name=fedmri",
        pytest.param("algorithm.name=centralized", marks=pytest.mark.slow),
        "update.compression=top_k",
    ],
)
def test_what_clients_remember_survives_a_stop(
    small_yaml: Path, tmp_path: Path, setting: str
) -> None:
    # A round is reported, at the latest, when the next one is trained. So one more must follow, or
    # a run that is stopped then has nothing left to do.
    settings = [setting, "algorithm.lambda_hifr=0.5", "federation.num_rounds=4"]
    if setting == "update.compression=top_k":
        # What is frozen reaches the clients too, and what is left out is of adapters alone.
        settings.append("model.adapter={rank: 2, targets: conv}")
    config = load_config(str(small_yaml), settings)
    assert list((_stopped_and_resumed(config, tmp_path) / "checkpoints").glob("client-*"))


@pytest.mark.full
def test_the_same_uploads_are_lost_on_ray_and_after_a_stop(
    small_yaml: Path, tmp_path: Path
) -> None:
    """Clients remember the rounds whose uploads were lost, as SCAFFOLD's control variates show."""
    # With seed 4, rounds lose 0, 1, 2 and 1 of their 2 uploads.
    settings = ["algorithm.name=scaffold", "federation.num_rounds=4", "seed=4"]
    settings.append("federation.upload_failure_probability=0.5")
    folder = _stopped_and_resumed(load_config(str(small_yaml), settings), tmp_path)
    results = load_results(folder)
    rounds = results.rounds.set_index("round_idx")
    assert rounds["num_upload_failures"].tolist() == [0, 0, 1, 2, 1]
    assert rounds["num_failed"].sum() == 0
    assert len(results.faults) == 0
    assert rounds["psnr_db"][3] == rounds["psnr_db"][2], "without an upload the network stays"
    assert rounds["psnr_db"].nunique() == 4
    clients = results.clients
    assert clients["upload_failed"].sum() == 4
    assert clients["upload_bytes"].gt(0).all(), "what was lost was sent"
    assert clients.loc[clients["upload_failed"], "weight"].isin([0.0]).sum() == 2
    assert clients.loc[clients["round_idx"] == 3, "weight"].isna().all()


def _stopped_and_resumed(config: ExperimentConfig, tmp_path: Path) -> Path:
    """Run serially, and on Ray with a stop: both must agree. Returns the folder of the latter."""
    whole = run_serially(config, tmp_path / "serial")
    # Nothing of it stays in memory, so all goes through files.
    config = with_cluster(config, slots=2, client_state_bytes=0)
    stopped = create_run(config, tmp_path / "ray")
    events = on_ray(stopped)
    for event in events:
        if isinstance(event, RoundRecorded) and event.round_idx == 2:
            events.close()
            break
    assert run_status(stopped.folder) == "interrupted"
    list(on_ray(stopped))
    assert_equal_runs(whole, stopped.folder)
    return stopped.folder


@pytest.mark.parametrize("isolation", ["client", pytest.param("slot", marks=pytest.mark.full)])
def test_a_client_killed_while_it_trains_costs_an_attempt_and_no_bit(
    small: ExperimentConfig, tmp_path: Path, isolation: Isolation
) -> None:
    clients = clients_of(small)
    params = {"params": flatten(build_fresh(small.model))}
    states = ClientStates()
    tasks = [ClientTask(client_id=i, round_idx=1, num_rounds=1, seed=i) for i in (2, 0)]
    done = SerialExecutor(clients).run_round(tasks, params, states)
    expected = {c.outcome.report.client_id: c for c in done if isinstance(c, TrainedClient)}
    victim = 2
    death = Failure("die", victim, 1, tmp_path / "marker")
    config = ClusterConfig(slots=2, isolation=isolation)
    with executor_of(faulty(clients, death), config) as executor:
        results = list(executor.run_round(tasks, params, states))
    assert death.marker.exists(), "the client did not die"
    (fault,) = (result for result in results if isinstance(result, Fault))
    assert (fault.client_id, fault.kind, fault.attempt, fault.final) == (victim, "died", 1, False)
    trained = {c.outcome.report.client_id: c for c in results if isinstance(c, TrainedClient)}
    assert trained[victim].outcome.attempts == 2
    assert trained[0].outcome.attempts == 1
    for client_id, client in trained.items():
        assert params_of(client) == params_of(expected[client_id])
        assert client.outcome.report.loss == expected[client_id].outcome.report.loss


@pytest.mark.full
def test_a_client_that_keeps_dying_is_given_up(small: ExperimentConfig, tmp_path: Path) -> None:
    params = {"params": flatten(build_fresh(small.model))}
    tasks = [ClientTask(client_id=1, round_idx=1, num_rounds=1, seed=0)]
    clients = faulty(clients_of(small), Failure("die", 1, 1, tmp_path / "marker", always=True))
    with executor_of(clients, ClusterConfig(slots=1, max_retries=1)) as executor:
        first, last = executor.run_round(tasks, params, ClientStates())
    assert (first.final, last.final) == (False, True)
    assert re.match(r"client 1 in round 1: ActorDiedError: .* \(start 2 of 2\)", last.message)


def test_a_process_is_sent_no_clips_but_its_clients(small: ExperimentConfig) -> None:
    clients = clients_of(small)
    task, sent = ClientTask(client_id=3, round_idx=1, num_rounds=1, seed=0), list[Any]()

    class Spy:
        def options(self, **_: Any) -> Spy:
            return self

        def remote(self, *arguments: Any) -> Any:
            sent.append(arguments)
            handle = MagicMock()
            handle.train.options.return_value.remote.side_effect = self.train
            return handle

        def train(self, *arguments: Any) -> Any:
            sent.append(arguments)
            return MagicMock(), MagicMock(), MagicMock()

    with executor_of(clients, ClusterConfig()) as executor:
        executor.pool._remote = Spy()
        waiting = Waiting(task, executor._places[0])
        executor._send(waiting, executor._places[0], 0, None, ClientStates())
        ((settings,), client_id), (_, _, _, clips, _) = sent
        assert ray.get(settings).clips == ()
        # There is no process to end.
        executor.pool._actors.clear()
    assert client_id == 3
    assert clips == clients.clips[3]


def look_around(actor: Any) -> tuple[set[str], set[str]]:
    """Inside a client's process: the ids of all clips in it, and of all clip files it maps."""
    gc.collect()
    known = {clip.clip_id for clip in gc.get_objects() if isinstance(clip, Clip)}
    mapped = re.findall(r"/(\S+)_(?:gt|lq)\.npy", Path("/proc/self/maps").read_text())
    return known, {name.rpartition("/")[2] for name in mapped}


@pytest.mark.full
def test_a_clients_process_holds_no_other_clip_and_only_numbers_leave_it(
    small: ExperimentConfig,
) -> None:
    clients = clients_of(small)
    params = flatten(build_fresh(small.model))
    tasks = [ClientTask(client_id=i, round_idx=1, num_rounds=1, seed=i) for i in (0, 2)]
    with executor_of(clients, ClusterConfig(slots=2)) as executor:
        for client in executor.run_round(tasks, {"params": params}, ClientStates()):
            client_id = client.outcome.report.client_id
            fields = dataclasses.asdict(client.outcome.report)
            assert fields.pop("label_counts") == {}, "only methods that count labels get them"
            assert all(isinstance(value, int | float) for value in fields.values()), fields
            update = client.update
            assert set(update.upload) == {"params"}
            assert update.upload["params"].shape == params.shape
            assert update.state == {}
            actor = executor.pool[client_id]
            known, mapped = ray.get(actor.handle.__ray_call__.remote(look_around))
            own = {clip.clip_id for clip in clients.clips[client_id]}
            assert known <= own
            assert mapped <= own


@pytest.mark.full
def test_an_error_for_the_user_inside_a_client_reaches_the_user_unchanged(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    changed = small.model_copy(
        update={"local": small.local.model_copy(update={"lr": 1.0, "steps": 300})}
    )
    hot = changed.model_copy(
        update={"model": small.model.model_copy(update={"channels": 32, "blocks": 20})}
    )
    run = create_run(hot, tmp_path)
    with pytest.raises(UserError, match=r"^the loss of client \d is (nan|inf) in round 1"):
        list(on_ray(run))
    assert load_results(run.folder).runs["status"].tolist() == ["failed"]


@pytest.mark.full
def test_a_run_exports_its_metrics(small: ExperimentConfig, tmp_path: Path) -> None:
    """At the node's own port, where Prometheus reads them."""
    run = create_run(with_cluster(small, slots=2), tmp_path)
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {"round", "loss", "psnr_db", "step_seconds", "slot_utilisation"}
    exported = set[str]()
    for event in on_ray(run):
        if not isinstance(event, RoundRecorded) or event.round_idx < 2:
            continue
        deadline = time.monotonic() + 20
        while exported < wanted and time.monotonic() < deadline:
            with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
                text = page.read().decode()
            lines = [line for line in text.splitlines() if run.run_id in line]
            exported = {m[1] for line in lines if (m := re.match(r"ray_fedvsr_(\w+)\{", line))}
            time.sleep(0.3)
    assert exported >= wanted


def test_a_run_that_asks_for_what_the_cluster_lacks_is_refused_at_once(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    lacking = {
        r"cluster\.gpu_share = 0\.5, but this Ray cluster has no GPU": {"gpu_share": 0.5},
        r"cluster\.accelerator = H100, but this Ray cluster has no H100": {"accelerator": "H100"},
        r"the run asks for \d+ CPU \(lower cluster\.slots = 99 or": {"slots": 99},
    }
    for message, settings in lacking.items():
        run = create_run(with_cluster(small, **settings), tmp_path)
        with pytest.raises(UserError, match=message):
            list(on_ray(run))
        assert run_status(run.folder) != "running"


def test_a_run_that_asks_for_what_others_hold_is_refused_after_the_timeout(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    run = create_run(with_cluster(small, slots=1, placement_timeout_s=0.5), tmp_path)
    refused = pytest.raises(UserError, match=r"after 0\.5 s others still hold too much.*1 CPU;")
    events = list[Event]()
    with reserved(ClusterConfig(slots=1)), refused:
        events.extend(on_ray(run))
    assert events == [Delay("waiting for 2 CPU, which others hold", 0.5)]


def test_a_run_that_is_stopped_while_it_waits_asks_for_nothing_any_more(
    small: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvsr.runs.launch._SILENT_S", 0.2)
    events = on_ray(create_run(with_cluster(small, slots=1), tmp_path))
    with reserved(ClusterConfig(slots=1)):
        assert isinstance(next(events), Delay)
        assert states_of_groups()["PENDING"] == 1
        with pytest.raises(KeyboardInterrupt):
            events.throw(KeyboardInterrupt)
        assert states_of_groups()["PENDING"] == 0


def states_of_groups() -> Counter[str]:
    return Counter(group["state"] for group in placement_group_table().values())


def params_of(client: TrainedClient) -> bytes:
    return client.update.upload["params"].tobytes()
