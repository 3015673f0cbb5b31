"""Experiments from Python and notebooks. `import fedvsr` offers these names and loads this late.

The functions take what the commands of the same names take, and raise `UserError` with the line
that a command would print.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedvsr.checked_text import require_yaml
from fedvsr.config import ExperimentConfig, load_config, load_effective
from fedvsr.data.split import Split
from fedvsr.errors import UserError
from fedvsr.run_names import find_folder
from fedvsr.runs.events import Event
from fedvsr.runs.launch import launch, prepare_data, require_weights
from fedvsr.runs.run import Run, begun, find_run

if TYPE_CHECKING:
    import pandas as pd

# In a notebook, Ray and tqdm, which it imports, ask for ipywidgets, which nothing here needs.
warnings.filterwarnings("ignore", "IProgress not found")
logging.getLogger("ray.widgets").setLevel(logging.WARNING)

Settings = Mapping[str, Any] | Sequence[str]
"""Dotted keys and their values, as in `{"local.lr": 1e-3}`; or as on the command line, as in
`["local.lr=1e-3"]`."""


def run(
    source: str | Path | ExperimentConfig = "demo",
    settings: Settings = (),
    *,
    executor: Literal["ray", "serial"] = "ray",
    address: str | None = None,
    out: str | Path = "results",
    resume: bool = False,
    on_event: Callable[[Event], object] | None = None,
    progress: bool = True,
) -> Run:
    """Run an experiment to its end.

    An interrupt (Ctrl-C, or a notebook's stop button) saves the last finished round and raises
    KeyboardInterrupt; the same call with `resume=True` continues.

    Args:
        source: a preset, a YAML file, or a configuration.
        settings: overrides; none for a configuration.
        executor: `ray`: clients are actors of a cluster; `serial`: one by one in this process.
        address: the cluster: `local` (a new one here), `auto` or `ray://HOST:PORT`. None: the one
            that this process is connected to, or else as the command `run` chooses.
        out: folder of the run's folder.
        resume: continue the newest unfinished run of this configuration.
        on_event: called with each event, see `stream`. What it raises ends the run.
        progress: show progress, in a notebook or a terminal as a table that is redrawn.

    Returns:
        The finished run.

    Raises:
        UserError: the experiment is refused, or ends early, for a reason that the user can mend.
    """
    from fedvsr.cli.common import plain_console
    from fedvsr.cli.views import follow
    from fedvsr.runs.watch import recorded

    config, found = _chosen(source, settings, Path(out), resume)
    split = _prepared(config, progress)
    with begun(config, Path(out), found) as started:
        events = launch(started, split, executor, address)
        with closing(_told(events, on_event)) as told:
            if progress:
                follow(told, plain_console(), recorded(found.folder) if found else ())
            else:
                for _ in told:
                    pass
    return started


def stream(
    source: str | Path | ExperimentConfig = "demo",
    settings: Settings = (),
    *,
    executor: Literal["ray", "serial"] = "ray",
    address: str | None = None,
    out: str | Path = "results",
    resume: bool = False,
) -> Iterator[Event]:
    """Run an experiment, and yield what happens, without printing anything.

    Whoever stops to read closes the stream, which saves the last finished round. Arguments and
    errors are those of `run`.

    Yields:
        The events of `fedvsr.runs.events`: `Delay`, if the cluster is not free at once; then
        `RunStarted` (its `run_id` is for `load_run`), `ClientFinished`, `Fault` and
        `RoundRecorded`. What these report is on disk already.
    """
    config, found = _chosen(source, settings, Path(out), resume)
    split = _prepared(config, progress=False)
    with begun(config, Path(out), found) as started:
        yield from launch(started, split, executor, address)


def tune(
    file: str | Path,
    settings: Settings = (),
    *,
    address: str | None = None,
    out: str | Path = "results",
    name: str | None = None,
    resume: bool = False,
    max_concurrent: int | None = None,
) -> pd.DataFrame:
    """Run a sweep to its end, with the progress that the command `tune` shows.

    Args:
        file: a sweep file.
        settings: overrides of its base.
        address: `local` or `auto`; None: as the command `tune` chooses.
        out: folder of results.
        name: of the sweep; None: the file's.
        resume: continue a sweep that was stopped.
        max_concurrent: most trials at once; None: as many as fit.

    Returns:
        A row per trial, as in `<out>/sweeps/<name>/trials.parquet`.

    Raises:
        KeyboardInterrupt: it was stopped; the same call with `resume=True` continues.
        UserError: it is refused, or no trial has a score.
    """
    import pandas as pd

    from fedvsr.cli.tune import require_startable, run_to_end
    from fedvsr.tuning.sweep import expand, load_sweep

    sweep = load_sweep(Path(file), _overrides(settings), name)
    trials = expand(sweep) if sweep.searcher.built_in else None
    require_startable(address, max_concurrent, resume)
    folder = Path(out) / "sweeps" / sweep.name
    if not run_to_end(sweep, trials, folder, address, max_concurrent, resume):
        raise KeyboardInterrupt(f"{folder} was stopped; resume=True continues")
    return pd.read_parquet(folder / "trials.parquet")


def load_run(name: str = "latest", results: str | Path = "results") -> Run:
    """A run that exists, finished or not. The plug-ins that its folder keeps are executed.

    Args:
        name: its id, the start of its id if only one run has it, its folder, or `latest`: the run
            that was started last.
        results: the folder in which runs are looked up.

    Raises:
        UserError: there is no such run, there are several, or its `config.yaml` is damaged.
    """
    folder = find_folder(str(name), Path(results))
    require_yaml(folder / "config.yaml")
    config, _ = load_effective(str(folder / "config.yaml"))
    return Run(folder.name, folder.resolve(), config)


def _chosen(
    source: str | Path | ExperimentConfig, settings: Settings, out: Path, resume: bool
) -> tuple[ExperimentConfig, Run | None]:
    if not isinstance(source, ExperimentConfig):
        config = load_config(str(source), _overrides(settings))
    elif settings:
        raise UserError("settings override a preset or a file; put them into the configuration")
    else:
        config = source
    if resume:
        return config, find_run(config, out)
    # A run that is resumed starts from its checkpoint.
    require_weights(config)
    return config, None


def _overrides(settings: Settings) -> list[str]:
    """Settings as the command line has them."""
    if not isinstance(settings, Mapping):
        return [*settings]
    from fedvsr.tuning.sweep import as_overrides

    return as_overrides(settings)


def _prepared(config: ExperimentConfig, progress: bool) -> Split:
    from fedvsr.cli.common import plain_console
    from fedvsr.cli.views import PreparationView

    if not progress:
        return prepare_data(config, lambda _video, _done, _total: None)
    with PreparationView(plain_console()) as preparation:
        return prepare_data(config, preparation)


def _told(
    events: Generator[Event, None, None], on_event: Callable[[Event], object] | None
) -> Generator[Event, None, None]:
    """Pass events on after telling `on_event` of each. Closing it closes `events`."""
    with closing(events):
        for event in events:
            if on_event:
                on_event(event)
            yield event
