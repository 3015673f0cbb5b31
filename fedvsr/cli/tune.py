"""The commands `tune` and `tune-report`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvsr.cli.common import OutOption, SetOption, console, interruptible, print_wide, say
from fedvsr.errors import UserError

if TYPE_CHECKING:
    from fedvsr.config import ExperimentConfig
    from fedvsr.tuning.sweep import SweepConfig, Trial


_BEST_SHOWN = 5


def tune(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A sweep, e.g. of tune_configs/.")],
    settings: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the trials, their cost, what runs at once.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a sweep that was stopped or killed.")
    ] = False,
    max_concurrent: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Trials at once (default: as many as fit)."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto",
            help="Ray cluster: one started here, or the one this machine is in. Default: what "
            "RAY_ADDRESS says, else local.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the sweep, instead of the file's.")
    ] = None,
    out: OutOption = Path("results"),
) -> None:
    """Run many trials of an experiment and compare them: DIR/sweeps/<name>/."""
    from fedvsr.tuning.sweep import expand, load_sweep

    sweep = load_sweep(file, settings or (), name)
    trials = expand(sweep) if sweep.searcher.built_in else None
    if (address or os.environ.get("RAY_ADDRESS", "")).startswith("ray://"):
        raise UserError(
            "--address ray://...: a sweep must run on a machine of the cluster; start it there "
            "with --address auto, or as a job"
        )
    if resume and max_concurrent:
        raise UserError(
            "--max-concurrent: a sweep that is resumed keeps what it was started with; leave it out"
        )
    if dry_run:
        _dry_run(sweep, trials, address, max_concurrent, out)
        return
    folder = out / "sweeps" / sweep.name
    try:
        with interruptible():
            complete = _run(sweep, trials, folder, address, max_concurrent, resume)
    except KeyboardInterrupt:
        complete = False
    if not complete:
        again = ["fedvsr", "tune", str(file), "--out", str(out), "--resume"]
        for setting in settings or ():
            again += ["--set", setting]
        again += ["--name", name] if name else []
        say(f"\nstopped; go on with: {shlex.join(again)}")
        raise typer.Exit(130)


def _run(
    sweep: SweepConfig,
    trials: Sequence[Trial] | None,
    folder: Path,
    address: str | None,
    max_concurrent: int | None,
    resume: bool,
) -> bool:
    """Whether the sweep came to its end."""
    from fedvsr.cli.sweep_view import SweepView
    from fedvsr.federation import driver
    from fedvsr.runs.launch import object_store_bytes
    from fedvsr.tuning.estimate import fits_here
    from fedvsr.tuning.progress import Watch, best_of, write_best
    from fedvsr.tuning.runner import opened, run_sweep

    with opened(sweep, folder, resume):
        some = _representative(sweep, trials)
        _prepare([trial.config for trial in trials] if trials else [some])
        at_once = min(fits_here(some), max_concurrent or 10**6, len(trials or [some] * 10**6))
        # A trial's process is its driver, which waits while clients train, or trains itself.
        num_waiting = 0 if sweep.executor == "serial" else at_once
        driver.connect(address, at_once * object_store_bytes(some), num_waiting)
        try:
            with SweepView(console, _swept(sweep)) as view:
                with Watch(sweep, trials, folder, view) as watch:
                    outcomes = run_sweep(sweep, trials, folder, max_concurrent=max_concurrent)
                rows = watch.finish(outcomes)
                view(rows)
        finally:
            driver.disconnect()
    best = best_of(rows, sweep)
    if best:
        write_best(sweep, best[0], folder)
        _print_best(best, sweep)
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        say(f"trial {row['trial']} failed: {row['error']}")
    files = [n for n in ("trials.parquet", "best.yaml") if (folder / n).exists()]
    say(f"{folder}/: {', '.join(files)}, runs/, tune/")
    if not all(outcome.state in ("TERMINATED", "ERROR") for outcome in outcomes):
        return False
    if not best:
        raise UserError(f"no trial of {sweep.name} gave a score")
    return True


def _prepare(configs: Sequence[ExperimentConfig]) -> None:
    """Cut or find each data set once, so that trials find it, and mistakes are seen at once."""
    from fedvsr.cli.views import PreparationView
    from fedvsr.runs.launch import prepare_data

    done = set[str]()
    with PreparationView(console) as preparation:
        for config in configs:
            key = config.model_dump_json(include={"data", "local", "seed"})
            if key not in done:
                done.add(key)
                prepare_data(config, preparation)


def _dry_run(
    sweep: SweepConfig,
    trials: Sequence[Trial] | None,
    address: str | None,
    max_concurrent: int | None,
    out: Path,
) -> None:
    from rich.table import Table

    from fedvsr.tuning.estimate import cost

    if trials is None:
        console.print(
            f"{sweep.name}: {sweep.searcher.num_samples} trials, which {sweep.searcher.name} "
            "chooses by the results so far",
            highlight=False,
        )
        return
    found = cost(sweep, trials, out)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in ("trial", *(key.rpartition(".")[2] for key in trials[0].values), "rounds"):
        table.add_column(key, justify="right")
    table.add_column("GPU hours" if sweep.estimate else "slot hours", justify="right")
    for i, trial in enumerate(trials):
        hours = f"{found.slot_s[i] / 3600:,.3g}" if found else ""
        values = [str(value) for value in trial.values.values()]
        table.add_row(str(i), *values, str(trial.config.federation.num_rounds), hours)
    console.print(table)
    at_once, where = _at_once(sweep, trials, address)
    at_once = min(at_once, max_concurrent or at_once, len(trials))
    kind = "GPU hours" if sweep.estimate else "slot hours"
    text = f"{sweep.name}: {len(trials)} trials; {at_once} at once on {where}"
    if found:
        early = "" if sweep.scheduler.name == "none" else ", less what is stopped early"
        text += (
            f"; {found.slot_hours:,.0f} {kind}, {found.wall_hours(trials, max(1, at_once)):,.0f} "
            f"hours of time{early} ({found.source.rstrip('.')})"
        )
    else:
        text += "; no estimate: give one in the file, or run one trial first"
    say(text)


def _at_once(sweep: SweepConfig, trials: Sequence[Trial], address: str | None) -> tuple[int, str]:
    """How many trials fit, on the cluster if one is named, else on this machine."""
    from fedvsr.tuning.estimate import fits, fits_here

    config = _representative(sweep, trials)
    if not address or address == "local":
        return fits_here(config), "this machine"
    import ray

    from fedvsr.federation import driver
    from fedvsr.tuning.trial import bundles_of

    driver.connect(address, 0)
    try:
        total = ray.cluster_resources()  # type: ignore[no-untyped-call]
        has = ", ".join(f"{total.get(name, 0):g} {name}" for name in ("GPU", "CPU"))
        return fits(bundles_of(sweep, config).bundles, total), f"the cluster ({has})"
    finally:
        driver.disconnect()


def _representative(sweep: SweepConfig, trials: Sequence[Trial] | None) -> ExperimentConfig:
    """A configuration to measure by: that of the trial that wants most, or of any."""
    from fedvsr.tuning.estimate import slots_of
    from fedvsr.tuning.sweep import any_trial

    if trials is None:
        return any_trial(sweep).config
    return max((trial.config for trial in trials), key=slots_of)


def _print_best(best: Sequence[Any], sweep: SweepConfig) -> None:
    from fedvsr.cli.sweep_view import trials_table

    print_wide(trials_table(best[:_BEST_SHOWN], _swept(sweep)))


def _swept(sweep: SweepConfig) -> list[str]:
    return [*sweep.space, *sweep.constraints, *(["seed"] if sweep.seeds else [])]


def report(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A sweep's name, or its folder.")],
    out: OutOption = Path("results"),
) -> None:
    """Print the best trials of a sweep and draw its pictures."""
    from fedvsr.report import sweep as pictures
    from fedvsr.tuning.progress import best_of
    from fedvsr.tuning.sweep import load_sweep
    from fedvsr.tuning.table import SWEEP_FILE, column_of, read_trials

    folder = Path(name) if (Path(name) / "trials.parquet").is_file() else out / "sweeps" / name
    trials = read_trials(folder / "trials.parquet")
    sweep = load_sweep(folder / SWEEP_FILE)
    rows: list[dict[str, Any]] = [
        {str(k): None if v != v else v for k, v in row.items()} for row in trials.to_dict("records")
    ]
    best = best_of(rows, sweep)
    if not best:
        raise UserError(f"no trial of {folder} has a score yet")
    counts = trials["status"].value_counts().to_dict()
    console.print(
        f"[bold]{sweep.name}[/]  " + ", ".join(f"{n} {status}" for status, n in counts.items()),
        highlight=False,
    )
    _print_best(best, sweep)
    drawn = pictures.draw(trials, _swept(sweep), column_of(sweep.metric), sweep.mode, folder)
    say(f"{folder}/: {', '.join(path.name for path in drawn)}")
