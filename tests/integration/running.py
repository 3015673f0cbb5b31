"""Runs and executors as the tests start them: the launch is the command's own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedvsr.config import ExperimentConfig
from fedvsr.data.split import Split
from fedvsr.federation import connection, placement
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Clients, Executor, Fault
from fedvsr.federation.gpu_probe import Probe
from fedvsr.federation.placement import Placement
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.runs.events import Event
from fedvsr.runs.launch import launch, on_cluster, prepare_data
from fedvsr.runs.run import Run, create_run


def no_progress(*_: object) -> None:
    pass


def split_of(config: ExperimentConfig) -> Split:
    return prepare_data(config, no_progress)


def clients_of(config: ExperimentConfig, **local: Any) -> Clients:
    """The clients of an experiment, with changed settings of `local`."""
    changed = config.local.model_copy(update=local)
    return Clients(config.model, config.algorithm, changed, split_of(config).clients)


def with_cluster(config: ExperimentConfig, **settings: Any) -> ExperimentConfig:
    """The experiment with other settings of `cluster`, which change no number."""
    return config.model_copy(update={"cluster": ClusterConfig(**settings)})


def run_serially(config: ExperimentConfig, out: Path) -> Path:
    """Run an experiment in this process, and return its folder."""
    run = create_run(config, out)
    list(launch(run, split_of(config), "serial"))
    return run.folder


def on_ray(
    run: Run,
    make_executor: Callable[..., Executor] | None = None,
    probe: Probe | None = None,
) -> Generator[Event, None, None]:
    """Run, or resume, on the Ray that the test is connected to."""
    yield from on_cluster(run, split_of(run.config), make_executor, probe)


@contextmanager
def reserved(config: ClusterConfig, cohort: int = 2) -> Iterator[Placement]:
    """What a run would reserve of the connected cluster, without a run."""
    slots = placement.ask(config, num_threads=1, cohort=cohort)
    reservation = placement.request(slots, connection.here())
    try:
        reservation.require_ready(config.placement_timeout_s)
        yield reservation
    finally:
        reservation.release()


@contextmanager
def executor_of(
    clients: Clients,
    config: ClusterConfig,
    kind: type[RayExecutor] = RayExecutor,
    cohort: int = 2,
) -> Iterator[Any]:
    """An executor in this process, without a driver actor around it."""
    with reserved(config, cohort) as reservation:
        executor = kind(clients, config, reservation)
        try:
            yield executor
        finally:
            executor.close()


def faults_in(events: list[Event]) -> list[Fault]:
    return [event for event in events if isinstance(event, Fault)]
