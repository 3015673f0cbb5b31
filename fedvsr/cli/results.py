"""The commands `show` and `compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedvsr.cli import completion
from fedvsr.cli.common import OutOption, RunArgument, console, print_wide, say
from fedvsr.cli.labels import lines
from fedvsr.errors import UserError, skipping
from fedvsr.run_names import find_folder

# pyarrow is imported by the commands: `--help` stays quick.


def show(run_id: RunArgument, out: OutOption = Path("results")) -> None:
    """Print a run's summary."""
    summary(find_folder(run_id, out))


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Two runs or more, the reference first.",
            autocompletion=completion.runs,
        ),
    ],
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.png", help="Draw the PSNR of the runs by round."),
    ] = None,
    out: OutOption = Path("results"),
) -> None:
    """Compare runs: the settings that differ, and the scores on the test clips that all have.

    A difference is that to the first run; its 95 % interval says how it varies over the clips.
    """
    from pandas import isna

    from fedvsr.metrics import METRICS
    from fedvsr.report.compare import compare
    from fedvsr.report.figures import save

    if len(runs) < 2:
        raise UserError(f"name two runs or more to compare; {runs[0]} is one")
    if picture is not None and picture.suffix not in (".png", ".pdf"):
        raise UserError(f"--picture {picture}: pictures are written as .png or .pdf")
    found = compare([find_folder(name, out) for name in runs])
    settings = Table(box=None, pad_edge=False)
    settings.add_column("setting", no_wrap=True)
    for run_id in found.run_ids:
        settings.add_column(Text(run_id), no_wrap=True)
    for key, values in found.settings.iterrows():
        settings.add_row(str(key), *(Text("" if v is None else str(v)) for v in values))
    if settings.rows:
        print_wide(settings)
    else:
        say("no setting differs")
    say("")
    scores = Table(box=None, pad_edge=False)
    for name in ("test set", "metric", "run"):
        scores.add_column(name, no_wrap=True)
    for name in ("mean", "difference", "95 % interval"):
        scores.add_column(name, justify="right", no_wrap=True)
    for row in found.means.reset_index().to_dict("records"):
        metric, run_id = METRICS[row["metric"]], row["run_id"]
        digits = metric.decimals
        difference = "" if isna(row["difference"]) else f"{row['difference']:+.{digits}f}"
        ends = "" if isna(row["low"]) else f"{row['low']:+.{digits}f} to {row['high']:+.{digits}f}"
        cells = f"{row['mean']:.{digits}f}", difference, ends
        scores.add_row(Text(row["test_set"]), metric.heading, Text(run_id), *cells)
    print_wide(scores)
    say(f"\nmeans of {len(found.clip_ids)} test clips: {', '.join(found.clip_ids)}")
    if picture is not None:
        save(found.plot(), picture)
        say(f"open {picture}")


def summary(folder: Path) -> None:
    """Print a run's settings and status, the scores of its last evaluated round, and its files."""
    import pyarrow.compute as pc

    from fedvsr.cli.scores import scores_table
    from fedvsr.data.owners import Owners
    from fedvsr.inference.scores import ClipScore, scored_part
    from fedvsr.labels import FILE, read_labels
    from fedvsr.means import by_test_set, degradations_of, groups, last_evaluation, mean_scores
    from fedvsr.records import checked_table, read_runs
    from fedvsr.runs.run import run_status

    runs = read_runs(folder)
    if not runs:
        raise UserError(f"there is no run at {folder}; `fedvsr list` shows the existing ones")
    if len(runs) > 1:
        raise UserError(
            f"{folder} holds the tables of {len(runs)} runs; "
            f"`fedvsr list --out {folder}` shows their scores"
        )
    from fedvsr.layout import in_words

    run = runs[0]
    last_round = pc.max(checked_table(folder, "rounds", ["round_idx"])["round_idx"]).as_py()
    console.print(
        Text(str(run["run_id"]), style="bold"), run_status(folder), sep="  ", soft_wrap=True
    )
    say(
        f"{run['algorithm']} with {run['model']} "
        f"({in_words(run['num_params'], run['num_shared_params'])}), "
        f"{run['num_clients']} clients, {last_round or 0}/{run['num_rounds']} "
        f"rounds, seed {run['seed']}, {run['executor']}, {run['device']}"
    )
    recorded = json.loads(run["config"]) if run["config"] else {}
    if recorded.get("cluster", {}).get("isolation") == "slot":
        say("clients share processes, one after the other (cluster.isolation = slot)")
    if owners := Owners.recorded(recorded.get("data") or {}):
        say(f"owners and their clients: {owners}")
    if run["error"]:
        say(f"error: {run['error']}")
    with skipping(folder / FILE):
        for line in lines(read_labels(folder)):
            say(line)
    dealt = degradations_of(checked_table(folder, "partition"))
    if len(dealt) > 1:
        say(f"degradations of clients: {'; '.join(f'{k}: {v}' for k, v in dealt.items())}")
    evaluations = last_evaluation(checked_table(folder, "evaluations"))
    scores = [
        # If each client has a network, a clip's row is the mean of theirs.
        ClipScore(
            clip_id=str(clip_id),
            test_set=test_set,
            num_frames=rows["num_frames"][0].as_py(),
            degradation=degradation.as_py() or "",
            values=mean_scores(rows),
        )
        for test_set, of_set in by_test_set(evaluations)
        for degradation, of_kind in groups(of_set, "degradation")
        for clip_id, rows in sorted(groups(of_kind, "clip_id"), key=lambda group: str(group[0]))
    ]
    crop = recorded.get("evaluation", {}).get("crop")
    print_wide(scores_table(scores, scored_part(crop)))
    files = ("config.yaml", "model.safetensors", "clients", "curves.png", "comparison.png")
    existing = [name for name in files if (folder / name).exists()]
    contents = ", ".join([*existing, "*.parquet"])
    say(f"{folder}/: {contents}")
