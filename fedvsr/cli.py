"""The command line: parse, call, print."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedvsr import __version__, cli_data, cli_doctor, cli_frames, cli_jobs, cli_report, cli_tune
from fedvsr.environment import let_threads_sleep
from fedvsr.errors import UserError
from fedvsr.files import DISK_FULL

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from fedvsr.data.split import Split
    from fedvsr.experiment import Event, Run
    from fedvsr.federation.placement import Placement

# Modules that load torch or Ray are imported by the commands that need them: `--help` stays quick.

app = typer.Typer(
    name="fedvsr",
    help="Federated video super-resolution experiments on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console()

SourceArgument = Annotated[
    str,
    typer.Argument(metavar="PRESET_OR_YAML", help="A preset (`fedvsr presets`) or a YAML file."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, e.g. local.lr=1e-3; repeatable."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the results.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its folder.")]


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    if version:
        _out.print(f"fedvsr {__version__}", highlight=False)
        raise typer.Exit


@app.command()
def run(
    source: SourceArgument = "demo",
    settings: SetOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the newest unfinished run of this configuration."
        ),
    ] = False,
    executor: Annotated[
        Literal["ray", "serial"],
        typer.Option(help="Clients as Ray actors, or one by one in this process."),
    ] = "ray",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|ray://HOST:PORT",
            help="Ray cluster: one started here, the one this machine is in, or another. "
            "Default: what RAY_ADDRESS says, else local.",
        ),
    ] = None,
    out: OutOption = Path("results"),
) -> None:
    """Run an experiment and write its tables, network and pictures to DIR/<run id>/."""
    from fedvsr import experiment
    from fedvsr.config import load_config
    from fedvsr.live import PreparationView, follow
    from fedvsr.report import figures

    config = load_config(source, settings or ())
    this = experiment.find_run(config, out) if resume else None
    before = signal.getsignal(signal.SIGTERM)
    _stop_on_sigterm()
    try:
        with PreparationView(_out) as preparation:
            split = experiment.prepare_data(config, preparation)
        this = this or experiment.create_run(config, out)
        # `fedvsr fetch` reads it in the log of a job.
        _out.print(f"run folder: {this.folder}", highlight=False, markup=False, soft_wrap=True)
        follow(_events(this, split, executor, address), _out)
    except UserError:
        # Refused before it began, as by a cluster that lacks what it asks for.
        if this and not resume and not (this.folder / "runs.parquet").exists():
            shutil.rmtree(this.folder)
        raise
    except KeyboardInterrupt:
        again = ["fedvsr", "run", source]
        for setting in settings or ():
            again += ["--set", shlex.quote(setting)]
        again += ["--executor", executor] if executor != "ray" else []
        again += ["--address", shlex.quote(address)] if address else []
        again += ["--out", shlex.quote(str(out)), *(["--resume"] if this else [])]
        _out.print(f"\nstopped; go on with: {' '.join(again)}", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    figures.draw(this.folder)
    _summary(this.folder)


def _events(this: Run, split: Split, executor: str, address: str | None) -> Iterator[Event]:
    from fedvsr import experiment
    from fedvsr.federation.executors import SerialExecutor

    if executor == "serial":
        yield from experiment.execute(this, split, SerialExecutor)
        return
    from fedvsr.federation import driver, placement
    from fedvsr.nodes import require_readable

    config = this.config
    driver.connect(address, experiment.object_store_bytes(config))
    # Ray has put a handler of its own there.
    _stop_on_sigterm()
    try:
        require_readable(config)
        wanted = placement.ask(
            config.cluster, config.local.num_threads, config.federation.clients_per_round
        )
        placed = placement.reserve(wanted, config.cluster.placement_timeout_s, driver.here())
        start = partial(_start, this, split, placed)
        restarts = config.cluster.max_retries
        yield from driver.drive(start, placed, experiment.measure, this.run_id, restarts)
    finally:
        driver.disconnect()


def _stop_on_sigterm() -> None:
    """`ray job stop`, Slurm and Kubernetes end a process so: stop as for Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _start(this: Run, split: Split, placed: Placement, stop: threading.Event) -> Iterator[Event]:
    """Inside the driver actor."""
    from fedvsr import experiment
    from fedvsr.federation.ray_executor import RayExecutor

    make = partial(RayExecutor, config=this.config.cluster, placement=placed, stop=stop)
    return experiment.execute(this, split, make)


app.command()(cli_frames.upscale)
app.command()(cli_frames.evaluate)
app.command()(cli_tune.tune)
app.command("tune-report")(cli_tune.report)
app.command()(cli_report.report)
app.command()(cli_report.watch)
app.command()(cli_report.export)
app.add_typer(cli_data.app, name="data", no_args_is_help=True)
app.command()(cli_jobs.submit)
app.command()(cli_jobs.jobs)
app.command()(cli_jobs.logs)
app.command()(cli_jobs.stop)
app.command()(cli_jobs.fetch)
app.command()(cli_doctor.doctor)


@app.command()
def algorithms(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/reference/algorithms.md.")
    ] = False,
) -> None:
    """List the federated algorithms, and what each costs."""
    from fedvsr.algorithms import COLUMNS, reference, rows

    if markdown:
        sys.stdout.write(reference())
        return
    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows():
        table.add_row(*row)
    _out.print(table)


@app.command()
def presets() -> None:
    """List the packaged experiments."""
    from fedvsr.config import presets as packaged

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, description in packaged().items():
        table.add_row(f"[bold]{name}[/]", escape(description))
    _out.print(table)


@app.command("config")
def show_config(
    source: SourceArgument = "demo",
    settings: SetOption = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema, for editors to complete from.")
    ] = False,
) -> None:
    """Print an experiment's resolved configuration as YAML."""
    import json

    from fedvsr.config import ExperimentConfig, load_config

    if schema:
        text = json.dumps(ExperimentConfig.model_json_schema(), indent=2)
    else:
        text = load_config(source, settings or ()).to_yaml().rstrip()
    typer.echo(text)


@app.command()
def show(run_id: RunArgument, out: OutOption = Path("results")) -> None:
    """Print a run's summary."""
    folder = Path(run_id) if (Path(run_id) / "runs.parquet").is_file() else out / run_id
    _summary(folder)


@app.command("list")
def list_runs(out: OutOption = Path("results")) -> None:
    """List the runs in DIR; the gain is over bicubic."""
    from fedvsr.experiment import run_status
    from fedvsr.records import load_results

    results = load_results(out)
    table = Table(box=None, pad_edge=False)
    for name in ("run", "status", "model", "algorithm"):
        table.add_column(name, no_wrap=True)
    for name in ("seed", "rounds", "PSNR dB", "gain dB"):
        table.add_column(name, justify="right")
    for row in results.runs.sort_values("started_at").to_dict("records"):
        rounds = results.rounds[results.rounds["run_id"] == row["run_id"]]["round_idx"]
        done = 0 if rounds.empty else rounds.max()
        table.add_row(
            row["run_id"],
            run_status(out / row["run_id"]),
            row["model"],
            row["algorithm"],
            str(row["seed"]),
            f"{done}/{row['num_rounds']}",
            f"{row['psnr_db']:.2f}",
            f"{row['psnr_db'] - row['bicubic_psnr_db']:+.2f}",
        )
    if not table.rows:
        _out.print(f"no runs under {out}/ yet; `fedvsr run` makes one", highlight=False)
        return
    # Wider than a narrow terminal rather than cut: a run's id is there to be copied.
    Console(width=max(_out.width, 120)).print(table)


def _summary(folder: Path) -> None:
    from fedvsr.experiment import run_status
    from fedvsr.records import load_results, read_run

    row = read_run(folder)
    if row is None:
        raise UserError(f"there is no run at {folder}; `fedvsr list` shows those there are")
    results = load_results(folder)
    _out.print(
        f"[bold]{row['run_id']}[/]  {run_status(folder)}\n"
        f"{row['algorithm']} with {row['model']} ({row['num_params']:,} parameters), "
        f"{row['num_clients']} clients, {results.rounds['round_idx'].max()}/{row['num_rounds']} "
        f"rounds, seed {row['seed']}, {row['executor']}, {row['device']}",
        highlight=False,
    )
    if row["error"]:
        _out.print(f"error: {row['error']}", markup=False, highlight=False)
    last = results.evaluations[
        results.evaluations["round_idx"] == results.evaluations["round_idx"].max()
    ]
    table = Table(box=None, pad_edge=False)
    table.add_column("test clip")
    for name in ("frames", "bicubic", "PSNR", "gain", "bicubic SSIM", "SSIM"):
        table.add_column(name, justify="right")
    # Where each client has a network, a clip's row is the mean of theirs.
    columns = ["num_frames", "psnr_db", "bicubic_psnr_db", "ssim", "bicubic_ssim"]
    clips = last.groupby("clip_id", as_index=False)[columns].mean().astype({"num_frames": int})
    for score in clips.to_dict("records"):
        table.add_row(score["clip_id"], str(score["num_frames"]), *_score_cells(score))
    if len(clips) > 1:
        means = clips[columns[1:]].mean().to_dict()
        table.add_section()
        table.add_row("mean", "", *_score_cells(means), style="bold")
    _out.print(table)
    files = ("config.yaml", "model.safetensors", "clients", "curves.png", "comparison.png")
    there = [name for name in files if (folder / name).exists()]
    _out.print(f"{folder}/: {', '.join(there)}, *.parquet", highlight=False, soft_wrap=True)


def _score_cells(score: dict[Any, Any]) -> list[str]:
    gain = score["psnr_db"] - score["bicubic_psnr_db"]
    return [
        f"{score['bicubic_psnr_db']:.2f} dB",
        f"{score['psnr_db']:.2f} dB",
        f"{gain:+.2f} dB",
        f"{score['bicubic_ssim']:.4f}",
        f"{score['ssim']:.4f}",
    ]


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 the user's mistake, 1 ours, 130 interrupted."""
    let_threads_sleep()
    debug = "--debug" in sys.argv
    err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        app([argument for argument in sys.argv[1:] if argument != "--debug"])
    except UserError as error:
        if debug:
            err.print_exception()
        err.print(f"error: {error}")
        sys.exit(2)
    except Exception as error:
        if debug:
            err.print_exception()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            err.print(f"error: no room left on the disk: {error.filename or error}; make some")
            sys.exit(2)
        if isinstance(error, PermissionError) and error.filename:
            err.print(f"error: {error.filename} may not be used: {error.strerror}; see to it")
            sys.exit(2)
        reason = str(error).strip().splitlines() or [""]
        hint = "" if debug else " (--debug shows the traceback)"
        err.print(f"internal error: {type(error).__name__}: {reason[0]}{hint}")
        sys.exit(1)
