"""The commands `tune` and `tune-report`."""

from __future__ import annotations

import os
import shlex
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedvsr.cli import completion
from fedvsr.cli.common import (
    MaxConcurrentOption,
    OutOption,
    ResumeSweepOption,
    SetOption,
    console,
    interruptible,
    print_wide,
    say,
)
from fedvsr.errors import UserError
from fedvsr.files import require_folder
from fedvsr.limits import ClusterGoneError

if TYPE_CHECKING:
    from fedvsr.config import ExperimentConfig
    from fedvsr.data.split import Split
    from fedvsr.tuning.config import SweepConfig
    from fedvsr.tuning.estimate import Cost
    from fedvsr.tuning.progress import Row
    from fedvsr.tuning.sweep import Trial


_BEST_SHOWN = 5
# Seconds between two looks at the cluster.
_LOOK_S = 5.0


def tune(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A sweep file, e.g. in tune_configs/.")
    ],
    settings: SetOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the trials, their cost and how many run at once; run nothing."
        ),
    ] = False,
    resume: ResumeSweepOption = False,
    max_concurrent: MaxConcurrentOption = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto",
            help="Ray cluster: one started here, or the one this machine belongs to. Default: "
            "RAY_ADDRESS, else local.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the sweep (default: the file's).")
    ] = None,
    out: OutOption = Path("results"),
) -> None:
    """Run many trials of an experiment and compare them: DIR/sweeps/<name>/."""
    from fedvsr.tuning.sweep import expand, load_sweep

    sweep = load_sweep(file, settings or (), name)
    trials = expand(sweep) if sweep.searcher.built_in else None
    require_startable(address, max_concurrent, resume)
    if dry_run:
        print_plan(sweep, trials, address, max_concurrent, out)
        return
    again = ["tune", str(file), "--out", str(out)]
    for setting in settings or ():
        again += ["--set", setting]
    again += ["--name", name] if name else []
    run_sweep_in(out, sweep, trials, address, max_concurrent, resume, again)


def require_startable(address: str | None, max_concurrent: int | None, resume: bool) -> None:
    """Check the options of a command that runs a sweep.

    Raises:
        UserError: a sweep cannot be run in this way.
    """
    if (address or os.environ.get("RAY_ADDRESS", "")).startswith("ray://"):
        raise UserError(
            "--address ray://...: a sweep must run on a machine of the cluster; start it there "
            "with --address auto, or as a job"
        )
    if resume and max_concurrent:
        raise UserError(
            "--max-concurrent: a resumed sweep keeps the limit that it was started with; leave it "
            "out"
        )


def run_sweep_in(
    out: Path,
    sweep: SweepConfig,
    trials: Sequence[Trial] | None,
    address: str | None,
    max_concurrent: int | None,
    resume: bool,
    again: Sequence[str],
) -> Path:
    """Run a sweep to its end and return its folder; `again` are the words that resume it.

    Raises:
        typer.Exit: it was stopped.
    """
    require_folder(out)
    folder = out / "sweeps" / sweep.name
    try:
        with interruptible():
            complete = run_to_end(sweep, trials, folder, address, max_concurrent, resume)
    except KeyboardInterrupt:
        complete = False
    if not complete:
        say(f"\nstopped; resume with: {shlex.join(['fedvsr', *again, '--resume'])}")
        raise typer.Exit(130)
    return folder


def run_to_end(
    sweep: SweepConfig,
    trials: Sequence[Trial] | None,
    folder: Path,
    address: str | None,
    max_concurrent: int | None,
    resume: bool,
) -> bool:
    """Run a sweep; return whether it came to its end."""
    from fedvsr.cli.sweep_view import SweepView
    from fedvsr.cluster.archive import SWEEPS
    from fedvsr.cluster.fetch import record_folder
    from fedvsr.federation.connection import connected
    from fedvsr.runs.launch import object_store_bytes
    from fedvsr.tuning.estimate import fits_here
    from fedvsr.tuning.finish import noticed
    from fedvsr.tuning.progress import TrialMonitor, best_of, write_best
    from fedvsr.tuning.runner import opened, run_sweep

    largest = _representative(sweep, trials)
    with opened(sweep, folder, resume), noticed(sweep, largest.on_finish, folder):
        record_folder(folder.parent.parent, f"{SWEEPS}/{sweep.name}")
        _prepare([trial.config for trial in trials] if trials else [largest], resume)
        limits = [fits_here(largest), *([max_concurrent] if max_concurrent else [])]
        at_once = min(*limits, len(trials)) if trials else min(limits)
        # A trial's process is its driver, which waits while clients train, or trains itself.
        num_waiting = 0 if sweep.executor == "serial" else at_once
        with (
            connected(address, at_once * object_store_bytes(largest), num_waiting),
            _leaving_if_gone(),
            SweepView(console, _swept(sweep)) as view,
        ):
            with TrialMonitor(sweep, trials, folder, view) as monitor:
                outcomes = run_sweep(sweep, trials, folder, max_concurrent=max_concurrent)
            rows = monitor.finish(outcomes)
            view(rows)
    best = best_of(rows, sweep)
    if best:
        _print_best(best, sweep)
    if best and best[0]["status"] == "finished":
        write_best(sweep, best[0], folder)
    else:
        # An unfinished trial is no result; nor is one of an earlier start.
        (folder / "best.yaml").unlink(missing_ok=True)
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        say(f"trial {row['trial']} failed: {row['error']}")
    files = [n for n in ("trials.parquet", "best.yaml") if (folder / n).exists()]
    say(f"{folder}/: {', '.join(files)}, runs/, tune/")
    if not all(outcome.state in ("TERMINATED", "ERROR") for outcome in outcomes):
        return False
    if not best:
        raise UserError(f"no trial of {sweep.name} has a score; the lines above say why")
    return True


@contextmanager
def _leaving_if_gone() -> Iterator[None]:
    """End this process if the cluster is gone: Ray Tune would wait for it without end."""
    from fedvsr.federation.connection import here
    from fedvsr.federation.placement import require_node

    node, ended = here(), threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_S):
            try:
                require_node(node)
            except ClusterGoneError as error:
                if ended.is_set():
                    return
                typer.echo(
                    f"error: the Ray cluster is gone: {error}; finished rounds are saved: --resume "
                    "continues elsewhere",
                    err=True,
                )
                # The main thread is inside Ray.
                os._exit(2)

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _prepare(configs: Sequence[ExperimentConfig], resume: bool) -> None:
    """Prepare each data set once, so that trials find it and a mistake shows at once.

    A sweep that begins also prints the notes of its runs, each once.
    """
    from fedvsr.cli.views import PreparationView
    from fedvsr.runs.launch import prepare_data, require_weights
    from fedvsr.runs.notes import notes_of

    splits: dict[str, Split] = {}
    notes = Counter[str]()
    if not resume:
        for config in configs:
            require_weights(config)
    with PreparationView(console) as preparation:
        for config in configs:
            key = config.model_dump_json(include={"data", "local", "seed"})
            if key not in splits:
                splits[key] = prepare_data(config, preparation)
            notes.update([] if resume else notes_of(config, splits[key]))
    for note, count in notes.items():
        say(note if count == len(configs) else f"{count} of {len(configs)} trials: {note}")


def print_plan(
    sweep: SweepConfig,
    trials: Sequence[Trial] | None,
    address: str | None,
    max_concurrent: int | None,
    out: Path,
) -> None:
    """Print the trials of a sweep, their cost, and how many run at once."""
    from fedvsr.tuning.estimate import cost, missing_inputs

    configs = [trial.config for trial in trials] if trials else [_representative(sweep, None)]
    for line in missing_inputs(configs):
        say(f"missing here: {line}")
    if trials is None:
        say(
            f"{sweep.name}: {sweep.searcher.num_samples} trials, which {sweep.searcher.name} "
            "chooses by the results so far"
        )
        return
    estimate = cost(sweep, trials, out)
    unit = "GPU hours" if sweep.estimate else "slot hours"
    print_wide(_trials_and_hours(trials, estimate, unit))
    fitting, where, has_gpus = at_once(sweep, trials, address)
    fitting = max(1, min(fitting, max_concurrent or fitting, len(trials)))
    text = f"{sweep.name}: {len(trials)} trials; {fitting} at once on {where}"
    if estimate:
        text += f"; {estimate.slot_hours:,.0f} {unit}"
        if sweep.estimate and not has_gpus:
            text += f", but {where} has no GPU, and the time on processors is not known"
        else:
            early = "" if sweep.scheduler.name == "none" else ", minus what is stopped early"
            hours = estimate.wall_hours(trials, fitting)
            text += f", {hours:,.0f} hours of time{early}"
        text += f" ({estimate.source.rstrip('.')})"
    else:
        text += "; no estimate: give one in the file, or run one trial first"
    say(text)


def _trials_and_hours(trials: Sequence[Trial], estimate: Cost | None, unit: str) -> Table:
    """One line per trial: its swept values, its rounds and its hours."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in ("trial", *(key.rpartition(".")[2] for key in trials[0].values), "rounds", unit):
        table.add_column(key, justify="right")
    for i, trial in enumerate(trials):
        hours = f"{estimate.slot_s[i] / 3600:,.3g}" if estimate else ""
        values = [str(value) for value in trial.values.values()]
        table.add_row(str(i), *values, str(trial.config.federation.num_rounds), hours)
    return table


def at_once(
    sweep: SweepConfig, trials: Sequence[Trial], address: str | None
) -> tuple[int, str, bool]:
    """How many trials run at once on the named cluster, or else here.

    Returns:
        The number, the place in words, and whether it has GPUs.
    """
    from fedvsr.tuning.estimate import fits, fits_here, has_gpus_here

    config = _representative(sweep, trials)
    if not address or address == "local":
        return fits_here(config), "this machine", has_gpus_here(config)
    import ray

    from fedvsr.federation.connection import connected
    from fedvsr.federation.placement import asked
    from fedvsr.tuning.trial import bundles_of

    with connected(address, 0):
        total = asked(lambda: ray.cluster_resources())  # type: ignore[no-untyped-call]
        has = ", ".join(f"{total.get(name, 0):g} {name}" for name in ("GPU", "CPU"))
        at_once = fits(bundles_of(sweep, config).bundles, total)
        return at_once, f"the cluster ({has})", total.get("GPU", 0) > 0


def _representative(sweep: SweepConfig, trials: Sequence[Trial] | None) -> ExperimentConfig:
    """The configuration of the trial that needs most slots; of any trial if one is searched for."""
    from fedvsr.tuning.estimate import slots_of
    from fedvsr.tuning.sweep import any_trial

    if trials is None:
        return any_trial(sweep).config
    return max((trial.config for trial in trials), key=slots_of)


def _print_best(best: Sequence[Row], sweep: SweepConfig) -> None:
    from fedvsr.cli.sweep_view import trials_table

    print_wide(trials_table(best[:_BEST_SHOWN], _swept(sweep)))


def _swept(sweep: SweepConfig) -> list[str]:
    return [*sweep.space, *sweep.constraints, *(["seed"] if sweep.seeds else [])]


def report(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of a sweep, or its folder.",
            autocompletion=completion.sweeps,
        ),
    ],
    out: OutOption = Path("results"),
) -> None:
    """Print the best trials of a sweep, and draw its pictures."""
    import pandas as pd

    from fedvsr.cli.sweep_view import words
    from fedvsr.report import sweep as pictures
    from fedvsr.tuning.progress import best_of, current_rows
    from fedvsr.tuning.sweep import saved_sweep
    from fedvsr.tuning.table import SWEEP_FILE, column_of

    folder = Path(name) if (Path(name) / "trials.parquet").is_file() else out / "sweeps" / name
    rows = current_rows(folder)
    sweep = saved_sweep(folder / SWEEP_FILE)
    counts = Counter(words(row["status"]) for row in rows)
    say(f"{sweep.name}  " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
    best = best_of(rows, sweep)
    if not best:
        pictures.clear(folder)
        raise UserError(f"no trial of {folder} has a score yet")
    _print_best(best, sweep)
    table = pd.DataFrame(rows)
    drawn = pictures.draw(table, _swept(sweep), column_of(sweep.metric), sweep.mode, folder)
    say(f"{folder}/: {', '.join(path.name for path in drawn) or 'too few trials for a picture'}")
    if drawn:
        say(f"open {drawn[0]}")
