"""Runs and executors on the Ray that a test is connected to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fedvsr.config import ExperimentConfig
from fedvsr.data.split import Split
from fedvsr.federation import driver, placement
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Clients, Fault, SerialExecutor
from fedvsr.federation.placement import Placement
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.runs.events import Event
from fedvsr.runs.execution import execute
from fedvsr.runs.launch import prepare_data
from fedvsr.runs.run import Run, create_run


def no_progress(*_: object) -> None:
    pass


def split_of(config: ExperimentConfig) -> Split:
    return prepare_data(config, no_progress)


def clients_of(config: ExperimentConfig, **local: Any) -> Clients:
    changed = config.local.model_copy(update=local)
    return Clients(config.model, config.algorithm, changed, split_of(config).clients)


def run_serially(config: ExperimentConfig, out: Path) -> Path:
    run = create_run(config, out)
    list(execute(run, split_of(config), SerialExecutor))
    return run.folder


@contextmanager
def placed(config: ClusterConfig, cohort: int = 2) -> Iterator[Placement]:
    wanted = placement.ask(config, 1, cohort)
    where = placement.reserve(wanted, config.placement_timeout_s, driver.here())
    try:
        yield where
    finally:
        where.release()


@contextmanager
def executor_of(
    clients: Clients, config: ClusterConfig, kind: type[RayExecutor] = RayExecutor
) -> Iterator[Any]:
    with placed(config) as where:
        executor = kind(clients, config, where)
        try:
            yield executor
        finally:
            executor.close()


def drive(run: Run, config: ExperimentConfig, kind: type[RayExecutor] = RayExecutor) -> list[Event]:
    """Run in a driver actor, as the command does; the cluster's settings are `config.cluster`."""
    cluster = config.cluster
    with placed(cluster, config.federation.clients_per_round) as where:
        begin = partial(start, run, split_of(config), cluster, where, kind)
        return list(driver.drive(begin, where, max_restarts=cluster.max_retries))


def start(
    run: Run,
    split: Split,
    config: ClusterConfig,
    where: Placement,
    kind: type[RayExecutor],
    stop: threading.Event,
) -> Iterator[Event]:
    make = partial(kind, config=config, placement=where, stop=stop)
    return execute(run, split, make)


def faults_in(events: list[Event]) -> list[Fault]:
    return [event for event in events if isinstance(event, Fault)]


def with_cluster(config: ExperimentConfig, **settings: Any) -> ExperimentConfig:
    return config.model_copy(update={"cluster": ClusterConfig(**settings)})
