"""Launch a run: prepare its data, choose its executor, and yield its events."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from fedvsr import algorithms, models
from fedvsr.config import ExperimentConfig
from fedvsr.data import owned
from fedvsr.data.clips import default_cache_dir
from fedvsr.data.owners import Owners
from fedvsr.data.split import Split, keys_of, prepare
from fedvsr.data.videos import Progress
from fedvsr.errors import UserError
from fedvsr.federation.executors import Clients, Delay, Executor, SerialExecutor
from fedvsr.limits import ClusterGoneError
from fedvsr.loggers.config import require_packages
from fedvsr.params import ParamTable
from fedvsr.runs.events import Event, measure
from fedvsr.runs.execution import execute
from fedvsr.runs.finish import noticed
from fedvsr.runs.run import Run
from fedvsr.training.requirements import require_room

if TYPE_CHECKING:
    from fedvsr.federation.gpu_probe import Probe
    from fedvsr.federation.placement import Placement

# Ray takes seconds to end a driver that is stopped, which this one then replaces.
_LOCK_S = 30.0
# A wait for resources is told if it is longer.
_SILENT_S = 2.0


def prepare_data(config: ExperimentConfig, progress: Progress) -> Split:
    """Cut the videos, unless that has been done, and check that the training crop fits into them.

    What the run's loggers need is checked before. The clips of `data.owners` are not among those of
    the result: `launch` adds them.

    Raises:
        UserError: a logger's package is missing; see `fedvsr.data.split.prepare` and
            `require_room` for the others.
    """
    require_packages(config.logging)
    split = prepare(config.data, config.seed, progress)
    require_room(split.train, config.local)
    return split


def with_owners(config: ExperimentConfig, split: Split, on_ray: bool) -> Split:
    """A split of `prepare_data` with the clips of `data.owners`, if there are owners.

    Args:
        config: the experiment.
        split: its other clips.
        on_ray: whether each owner's nodes of the connected cluster read the owner's stores, or this
            process reads them all.

    Raises:
        UserError: an owner has no node, its stores cannot be read there, or a crop does not fit.
    """
    if not config.data.owners:
        return split
    if on_ray:
        from fedvsr.cluster.nodes import deal_on_nodes as deal
    else:
        deal = owned.deal_here
    dealt = deal(config.data, config.seed, keys_of(split.test))
    split = owned.with_owners(split, config.data, dealt)
    require_room(split.train, config.local)
    return split


def require_weights(config: ExperimentConfig) -> None:
    """Check that the files of initial weights exist, before videos are cut and a cluster starts.

    Raises:
        UserError: one is missing; the message says how to get it, or to do without. Or an adapter
            has no weights, or no layers, to adapt.
    """
    if config.model.adapter is not None:
        if config.model.weights is None:
            raise UserError(
                "model.adapter leaves all other weights as they are, and model.weights is missing: "
                "give a trained network by --set model.weights=PATH, or leave model.adapter out"
            )
        with torch.device("meta"):
            models.build_fresh(config.model)
    files = config.files()
    for path in files.get("model.weights", []):
        if not Path(path).expanduser().is_file():
            raise UserError(f"model.weights: there is no file {path}; correct the path")
    for path in files.get("model.flow_weights", []):
        if not Path(path).expanduser().is_file():
            raise UserError(
                f"model.flow_weights: there is no file {path}; put SpyNet's released weights "
                "there, or give their path by --set model.flow_weights=PATH; to train flow from "
                "scratch: --set model.flow_weights=null --set local.freeze_steps=0"
            )


def object_store_bytes(config: ExperimentConfig) -> int:
    """Shared memory that a local cluster needs for a round's vectors.

    At once it holds what the server sends, the parameters being scored and the next ones to score,
    and what each client of the round sends and remembers. Some is spare, for Ray's own objects.
    """
    algorithm, federation = algorithms.build(config.algorithm), config.federation
    poisson = federation.sampling == "poisson"
    cohort = config.data.num_clients if poisson else federation.clients_per_round
    # Adam's moments are two vectors in one.
    per_client = len(algorithm.upload) + len(algorithm.client_state)
    per_client += ("moments" in algorithm.client_state) + config.update.active
    per_client += len(algorithm.cohort_state)
    num_vectors = len(algorithm.broadcast) + 2 + cohort * per_client
    size = 4 * ParamTable.of(models.build_fresh(config.model)).size
    return num_vectors * size + (256 << 20)


def launch(
    run: Run,
    split: Split,
    executor: Literal["ray", "serial"] = "ray",
    address: str | None = None,
) -> Generator[Event, None, None]:
    """Run an experiment, or the rest of it after a stop, and yield its events.

    Args:
        run: the run.
        split: its clips, from `prepare_data`.
        executor: `ray`: clients are actors of a cluster; `serial`: one by one in this process.
        address: the Ray cluster, see `federation.connection.connect`; connected to and left here.

    Raises:
        UserError: no such cluster answers, it lacks what the run asks for, or see `execute`.
    """
    # In this process, not in the driver's: it is the user's, with the user's desktop.
    with noticed(run):
        yield from _launch(run, split, executor, address)


def _launch(run: Run, split: Split, executor: str, address: str | None) -> Iterator[Event]:
    if executor == "serial":
        split = with_owners(run.config, split, on_ray=False)
        yield from execute(run, split, SerialExecutor)
        return
    from fedvsr.federation.connection import CONNECT_S, connected

    limit_s = max(CONNECT_S, run.config.cluster.placement_timeout_s)
    with connected(address, object_store_bytes(run.config), limit_s=limit_s):
        yield from on_cluster(run, split)


def on_cluster(
    run: Run,
    split: Split,
    make_executor: Callable[..., Executor] | None = None,
    probe: Probe | None = None,
) -> Iterator[Event]:
    """Run on the Ray cluster that this process is connected to: reserve, drive, release.

    Args:
        run: the run; `cluster` of its configuration says what to reserve.
        split: its clips.
        make_executor: takes the arguments of `RayExecutor`, which is the default.
        probe: measures GPUs for `cluster.clients_per_gpu: auto`.

    Raises:
        UserError: a node does not see the run's data, or the cluster lacks what the run asks for.
        ClusterGoneError: the cluster, or this node's part of it, has died.
    """
    try:
        yield from _on_cluster(run, split, make_executor, probe)
    except ClusterGoneError as error:
        saved = run.folder.joinpath("runs.parquet").exists()
        way_out = (
            "; finished rounds are saved: --resume continues on a new cluster" if saved else ""
        )
        raise ClusterGoneError(f"the Ray cluster is gone: {error}{way_out}") from None


def _on_cluster(
    run: Run, split: Split, make_executor: Callable[..., Executor] | None, probe: Probe | None
) -> Iterator[Event]:
    from fedvsr.cluster.nodes import require_plugins, require_readable
    from fedvsr.federation import connection, driver, gpu_probe, placement

    config = run.config
    require_plugins(config)
    require_readable(config)
    split, here = with_owners(config, split, on_ray=True), connection.here()
    cluster, notes = yield from gpu_probe.resolved(
        config.cluster,
        Clients(config.model, config.algorithm, config.local, ()),
        1 if algorithms.build(config.algorithm).pooled else config.federation.clients_per_round,
        Path(config.data.cache_dir or default_cache_dir()),
        probe,
    )
    # The run's row in `runs.parquet` tells the number.
    config = config.model_copy(update={"cluster": cluster})
    run = replace(run, config=config)
    wanted = placement.ask(
        cluster,
        config.local.num_threads,
        config.federation.clients_per_round,
        Owners.in_config(config.data),
        here,
    )
    placed = placement.request(wanted, here)
    gone = False
    try:
        limit_s = config.cluster.placement_timeout_s
        if not placed.is_ready(min(_SILENT_S, limit_s)):
            yield Delay(f"waiting for {placed}, which others hold", limit_s)
            placed.require_ready(limit_s)
        start = partial(_start, run, split, placed, make_executor, notes)
        in_folder = partial(_start_in, Path.cwd(), start)
        yield from driver.drive(in_folder, placed, measure, run.run_id, config.cluster.max_retries)
    except ClusterGoneError:
        gone = True
        raise
    finally:
        if not gone:
            placed.release()


def _start_in(
    folder: Path, start: Callable[[threading.Event], Iterator[Event]], stop: threading.Event
) -> Iterator[Event]:
    """Inside the driver actor, which is on the command's machine: go to the command's folder.

    Relative paths of loggers begin there.
    """
    os.chdir(folder)
    return start(stop)


def _start(
    run: Run,
    split: Split,
    placed: Placement,
    make_executor: Callable[..., Executor] | None,
    notes: tuple[str, ...],
    stop: threading.Event,
) -> Iterator[Event]:
    """Inside the driver actor."""
    from fedvsr.federation.ray_executor import RayExecutor

    make = make_executor or RayExecutor
    config = run.config.cluster
    make_here = partial(make, config=config, placement=placed, stop=stop)
    return execute(run, split, make_here, _LOCK_S, notes)
