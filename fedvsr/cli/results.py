"""The commands `show` and `list`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from fedvsr.cli.common import OutOption, RunArgument, console, print_wide
from fedvsr.errors import UserError


def show(run_id: RunArgument, out: OutOption = Path("results")) -> None:
    """Print a run's summary."""
    folder = Path(run_id) if (Path(run_id) / "runs.parquet").is_file() else out / run_id
    summary(folder)


def list_runs(out: OutOption = Path("results")) -> None:
    """List the runs in DIR; the gain is over bicubic."""
    from fedvsr.records import load_results
    from fedvsr.runs.run import run_status

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
        console.print(f"no runs under {out}/ yet; `fedvsr run` makes one", highlight=False)
        return
    print_wide(table)


def summary(folder: Path) -> None:
    """Print what a run is, its last scores, and its files."""
    from fedvsr.records import load_results, read_run
    from fedvsr.runs.run import run_status

    row = read_run(folder)
    if row is None:
        raise UserError(f"there is no run at {folder}; `fedvsr list` shows those there are")
    results = load_results(folder)
    console.print(
        f"[bold]{row['run_id']}[/]  {run_status(folder)}\n"
        f"{row['algorithm']} with {row['model']} ({row['num_params']:,} parameters), "
        f"{row['num_clients']} clients, {results.rounds['round_idx'].max()}/{row['num_rounds']} "
        f"rounds, seed {row['seed']}, {row['executor']}, {row['device']}",
        highlight=False,
    )
    if row["error"]:
        console.print(f"error: {row['error']}", markup=False, highlight=False)
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
    console.print(table)
    files = ("config.yaml", "model.safetensors", "clients", "curves.png", "comparison.png")
    there = [name for name in files if (folder / name).exists()]
    console.print(f"{folder}/: {', '.join(there)}, *.parquet", highlight=False, soft_wrap=True)


def _score_cells(score: dict[Any, Any]) -> list[str]:
    gain = score["psnr_db"] - score["bicubic_psnr_db"]
    return [
        f"{score['bicubic_psnr_db']:.2f} dB",
        f"{score['psnr_db']:.2f} dB",
        f"{gain:+.2f} dB",
        f"{score['bicubic_ssim']:.4f}",
        f"{score['ssim']:.4f}",
    ]
