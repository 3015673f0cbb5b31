"""The commands `show` and `list`. They read parquet through pyarrow alone, to answer at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fedvsr.cli.common import OutOption, RunArgument, console, print_wide
from fedvsr.cli.frames import score_cells
from fedvsr.errors import UserError

# pyarrow is imported by the commands: `--help` stays quick.


def show(run_id: RunArgument, out: OutOption = Path("results")) -> None:
    """Print a run's summary."""
    folder = Path(run_id) if (Path(run_id) / "runs.parquet").is_file() else out / run_id
    summary(folder)


def list_runs(out: OutOption = Path("results")) -> None:
    """List the runs in DIR; the gain is over bicubic."""
    table = Table(box=None, pad_edge=False)
    for name in ("run", "status", "model", "algorithm"):
        table.add_column(name, no_wrap=True)
    for name in ("seed", "rounds", "PSNR dB", "gain dB"):
        table.add_column(name, justify="right")
    for run in _runs(out):
        psnr_db, bicubic_psnr_db = run["psnr_db"], run["bicubic_psnr_db"]
        is_scored = psnr_db is not None and bicubic_psnr_db is not None
        table.add_row(
            run["run_id"],
            run["status"],
            run["model"],
            run["algorithm"],
            str(run["seed"]),
            f"{run['last_round']}/{run['num_rounds']}",
            f"{psnr_db:.2f}" if is_scored else "",
            f"{psnr_db - bicubic_psnr_db:+.2f}" if is_scored else "",
        )
    if not table.rows:
        console.print(f"no runs under {out}/ yet; `fedvsr run` makes one")
        return
    print_wide(table)


def _runs(out: Path) -> list[dict[str, Any]]:
    """The rows of all runs at or below `out`, oldest first, with `last_round` and true `status`."""
    from fedvsr.records import read_runs, read_table, run_folders
    from fedvsr.runs.run import run_status

    runs = list[dict[str, Any]]()
    for folder in run_folders(out):
        rows = read_runs(folder)
        rounds = read_table(folder, "rounds").select(["run_id", "round_idx"]).to_pylist()
        for row in rows:
            # Collected tables of several runs have no process behind them.
            status = run_status(folder) if len(rows) == 1 else row["status"]
            own_rounds = [r["round_idx"] for r in rounds if r["run_id"] == row["run_id"]]
            runs.append({**row, "status": status, "last_round": max(own_rounds, default=0)})
    return sorted(runs, key=lambda run: (run["started_at"] is None, run["started_at"]))


def summary(folder: Path) -> None:
    """Print a run's settings and status, the scores of its last evaluated round, and its files."""
    import pyarrow.compute as pc

    from fedvsr.inference.scores import Scores
    from fedvsr.records import last_evaluation, mean_scores, read_runs, read_table
    from fedvsr.runs.run import run_status

    runs = read_runs(folder)
    if not runs:
        raise UserError(f"there is no run at {folder}; `fedvsr list` shows the existing ones")
    if len(runs) > 1:
        raise UserError(
            f"{folder} holds the tables of {len(runs)} runs; "
            f"`fedvsr list --out {folder}` shows their scores"
        )
    run = runs[0]
    last_round = pc.max(read_table(folder, "rounds")["round_idx"]).as_py()
    console.print(Text(run["run_id"], style="bold").append(f"  {run_status(folder)}", "not bold"))
    console.print(
        f"{run['algorithm']} with {run['model']} ({run['num_params']:,} parameters), "
        f"{run['num_clients']} clients, {last_round or 0}/{run['num_rounds']} "
        f"rounds, seed {run['seed']}, {run['executor']}, {run['device']}"
    )
    if run["error"]:
        console.print(f"error: {run['error']}")
    table = Table(box=None, pad_edge=False)
    table.add_column("test clip")
    for name in ("frames", "bicubic", "PSNR", "gain", "bicubic SSIM", "SSIM"):
        table.add_column(name, justify="right")
    scores = last_evaluation(read_table(folder, "evaluations"))
    clip_ids = sorted(scores["clip_id"].unique(), key=str)
    for clip_id in clip_ids:
        # If each client has a network, a clip's row is the mean of theirs.
        clip = scores.filter(pc.equal(scores["clip_id"], clip_id))
        table.add_row(
            str(clip_id), str(clip["num_frames"][0]), *score_cells(Scores(**mean_scores(clip)))
        )
    if len(clip_ids) > 1:
        table.add_section()
        table.add_row("mean", "", *score_cells(Scores(**mean_scores(scores))), style="bold")
    console.print(table)
    files = ("config.yaml", "model.safetensors", "clients", "curves.png", "comparison.png")
    existing = [name for name in files if (folder / name).exists()]
    contents = ", ".join([*existing, "*.parquet"])
    console.print(f"{folder}/: {contents}", soft_wrap=True)
