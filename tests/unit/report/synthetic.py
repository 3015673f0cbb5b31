"""Result folders like those of `fedvsr run`, with numbers that the tests choose."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fedvsr.data.testsets import recorded_names
from fedvsr.schemas import SCHEMAS

CLIPS = ("a", "b")
Score = Callable[[int, str], float]


def write_run(
    out: Path,
    run_id: str,
    *,
    algorithm: str = "fedavg",
    seed: int = 1,
    model: str = "tiny",
    size: str = "demo",
    partition: str = "less",
    psnr_db: Score = lambda round_idx, clip_id: 30.0 + round_idx,
    clips: Sequence[str] = CLIPS,
    num_rounds: int = 2,
    done: int | None = None,
    status: str = "finished",
    lpips: float | None = None,
    settings: Mapping[str, Any] | None = None,
    clients: Sequence[Mapping[str, Any]] = (),
    faults: Sequence[Mapping[str, Any]] = (),
    data: Mapping[str, Any] | None = None,
    minutes: int = 0,
    num_clients: int = 4,
) -> Path:
    """Write a run with `done` of its rounds (default: all); `settings` extend its configuration."""
    folder = out / run_id
    folder.mkdir(parents=True)
    identity = {"run_id": run_id, "seed": seed, "fedvsr_version": "v", "git_commit": None}
    identity |= {"config_hash": run_id, "num_overlap": 0, "num_same_video": 0}
    config = {
        "seed": seed,
        "name": run_id,
        "model": {"name": model, "size": size},
        "algorithm": {"name": algorithm},
        "data": {"partition": partition, "alpha": 0.5, "videos": ["v.mp4"], **(data or {})},
        **(settings or {}),
    }
    run = {
        "name": "synthetic",
        "status": status,
        "model": model,
        "algorithm": algorithm,
        "executor": "serial",
        "num_params": 1000,
        "num_rounds": num_rounds,
        "num_clients": num_clients,
        "started_at": datetime(2026, 1, 1, tzinfo=timezone.utc),
        "updated_at": datetime(2026, 1, 1, 0, minutes, tzinfo=timezone.utc),
        "device": "CPU",
        "config": json.dumps(config),
        "versions": json.dumps({"python": "3", "torch": "2", "ray": "2"}),
    }

    sets = recorded_names(config, clips)
    # A round's scores are those of the first test set.
    test_set = sets[clips[0]] if clips else None

    def mean(round_idx: int, divisor: float) -> float:
        values = [psnr_db(round_idx, clip) for clip in clips if sets[clip] == test_set]
        return float(np.mean(values)) / divisor

    indices = range(1 + (num_rounds if done is None else done))
    trained = [dict(row) for row in clients if row["round_idx"] in indices]
    rounds = [
        {
            "round_idx": round_idx,
            "num_sampled": sum(row["round_idx"] == round_idx for row in trained),
            "num_online": num_clients,
            "loss": 0.1 if round_idx else None,
            "test_set": test_set,
            "psnr_db": mean(round_idx, 1) if clips else None,
            "ssim": mean(round_idx, 100) if clips else None,
            "download_bytes": 8000 * bool(round_idx),
            "upload_bytes": 4000 * bool(round_idx),
            "train_s": 2.0 * bool(round_idx),
            "aggregate_s": 0.5 * bool(round_idx),
            "evaluate_s": 1.0,
        }
        for round_idx in indices
    ]
    evaluations = [
        {
            "round_idx": round_idx,
            "clip_id": clip_id,
            "test_set": sets[clip_id],
            "num_frames": 3,
            "psnr_db": (value := psnr_db(round_idx, clip_id)),
            "ssim": value / 100,
            "psnr_y_db": value + 1,
            "ssim_y": value / 100 + 0.01,
            "lpips": lpips,
            "bicubic_psnr_db": 29.0,
            "bicubic_ssim": 0.29,
            "bicubic_psnr_y_db": 30.0,
            "bicubic_ssim_y": 0.3,
            "bicubic_lpips": None if lpips is None else 0.5,
        }
        for round_idx in indices
        for clip_id in clips
    ]
    tables = {"runs": [run], "rounds": rounds, "clients": trained, "evaluations": evaluations}
    # `RunRecords` writes the same tables round by round.
    for name, rows in {**tables, "faults": list(faults)}.items():
        if rows:
            full = [{**identity, **row} for row in rows]
            table = pa.Table.from_pylist(full, schema=SCHEMAS[name])
            pq.write_table(table, folder / f"{name}.parquet")
    return folder


def write_frames(folder: Path, clip_id: str, sr: np.ndarray, gt: np.ndarray) -> None:
    """Write the pictures that a finished run saves of a test clip."""
    frames = folder / "frames"
    frames.mkdir(exist_ok=True)
    for kind, picture in (("bicubic", gt // 2), ("sr", sr), ("gt", gt)):
        Image.fromarray(picture).save(frames / f"{clip_id}_002_{kind}.png")
