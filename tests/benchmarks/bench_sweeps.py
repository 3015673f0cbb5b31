"""What Ray Tune costs around a trial, trials side by side, and what stopping early saves.

    python -m tests.benchmarks.bench_sweeps

Trials are those of tune_configs/smoke.yaml, on the demo's videos.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import yaml
from ray import tune

from fedvsr.federation import connection
from fedvsr.records import load_results
from fedvsr.tuning.space import flat

SMOKE = Path(__file__).parents[2] / "tune_configs" / "smoke.yaml"
NUM_TRIALS, NUM_REPORTS = 4, 20


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["overhead", "concurrency", "asha"])
    parser.add_argument("--pairs", type=int, default=3)
    only = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if only.only in (None, "overhead"):
            overhead(Path(folder))
        if only.only in (None, "concurrency"):
            concurrency(Path(folder), only.pairs)
        if only.only in (None, "asha"):
            asha(Path(folder))


def overhead(folder: Path) -> None:
    """Trials that do nothing but report, one after the other."""
    connection.connect("local", 128 << 20)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    bundles = tune.PlacementGroupFactory([{"CPU": 1}, {"CPU": 1}])
    tuner = tune.Tuner(
        tune.with_resources(_report_only, bundles),
        param_space={"trial": tune.grid_search(list(range(NUM_TRIALS))), "log": str(folder)},
        tune_config=tune.TuneConfig(metric="psnr_db", mode="max"),
        run_config=tune.RunConfig(name="overhead", storage_path=str(folder), verbose=0),
    )
    begun = time.time()
    tuner.fit()
    ended = time.time()
    connection.disconnect()
    marks = [json.loads(path.read_text()) for path in sorted(folder.glob("trial-*.json"))]
    starts = sorted(mark["entered"] for mark in marks)
    ends = sorted(mark["reports"][-1] for mark in marks)
    between = [start - end for start, end in zip(starts[1:], ends, strict=False)]
    reports = [b - a for m in marks for a, b in zip(m["reports"], m["reports"][1:], strict=False)]
    imports = median(mark["reports"][0] - mark["entered"] for mark in marks)
    print(f"first trial entered after {starts[0] - begun:.1f} s")
    print(f"from the end of a trial into the next {median(between):.1f} s (median)")
    print(f"of a trial's own, imports {imports:.1f} s (median)")
    print(f"a report {1000 * median(reports):.0f} ms (median of {len(reports)})")
    print(f"after the last trial {ended - ends[-1]:.1f} s")


def _report_only(settings: dict[str, Any]) -> None:
    entered = time.time()
    import fedvsr.tuning.trial  # noqa: F401 (what a real trial imports)

    marks = [time.time()]
    for round_idx in range(NUM_REPORTS):
        with tempfile.TemporaryDirectory() as path:
            (Path(path) / "reported.json").write_text(json.dumps({"round_idx": round_idx}))
            metrics = {"round_idx": round_idx, "loss": 0.1, "psnr_db": 30.0, "ssim": 0.8}
            test = {"test": {"vid4": {"psnr_db": 30.0, "ssim": 0.8}}}
            tune.report({**metrics, **test}, checkpoint=tune.Checkpoint.from_directory(path))
        marks.append(time.time())
    path = Path(settings["log"]) / f"trial-{settings['trial']}.json"
    path.write_text(json.dumps({"entered": entered, "reports": marks}))


def concurrency(folder: Path, pairs: int) -> None:
    """One trial alone, and two at once, in turns: seconds of a trial's rounds."""
    changes = {"set": {"evaluation.every_rounds": 100, "federation.num_rounds": 6}}
    ratios = list[float]()
    for pair in range(pairs):
        seconds = dict[int, float]()
        for count in (1, 2):
            space = {"local.lr": {"grid": [0.0005, 0.002][:count]}}
            out = folder / f"concurrency-{pair}-{count}"
            run(out, space=space, **changes)
            rounds = load_results(out).rounds
            # The first round builds the clients' processes.
            rounds = rounds[rounds["round_idx"] > 1]
            seconds[count] = rounds.groupby("run_id")[["gap_s", "train_s"]].sum().sum(axis=1).max()
        ratios.append(seconds[2] / seconds[1])
        print(f"alone {seconds[1]:.1f} s, two at once {seconds[2]:.1f} s: {ratios[-1]:.2f}x")
    print(f"median {median(ratios):.2f}x, of {os.cpu_count()} cores")


def asha(folder: Path) -> None:
    """The grid of smoke.yaml to the end, and with ASHA."""
    settings = {
        "space": {
            "local.lr": {"grid": [0.0001, 0.0005, 0.002, 0.008]},
            "algorithm.lambda_hifr": {"grid": [0.0, 1.0]},
        },
        "set": {"federation.num_rounds": 9},
    }
    found = dict[str, tuple[float, str]]()
    for name in ("none", "asha"):
        out = folder / name
        run(out, scheduler={"name": name}, **settings)
        table = pd.read_parquet(out / "sweeps" / "smoke" / "trials.parquet")
        slot_s = load_results(out).clients["train_s"].sum()
        best = table[table["status"] == "finished"].nlargest(1, "psnr_db").iloc[0]
        winner = f"lr={best['local.lr']:g} lambda_hifr={best['algorithm.lambda_hifr']:g}"
        found[name] = slot_s, winner
        rounds = table["round_idx"].sum()
        print(f"{name}: {slot_s:.0f} slot seconds, {rounds} rounds, best {winner}", end=" ")
        print(f"with {best['psnr_db']:.3f} dB")
    saved = 1 - found["asha"][0] / found["none"][0]
    print(f"saved {100 * saved:.0f} %; same winner: {found['asha'][1] == found['none'][1]}")


def run(out: Path, **changes: Any) -> None:
    """Run smoke.yaml with other keys."""
    sweep = yaml.safe_load(SMOKE.read_text())
    changes["set"] = {**flat(sweep["set"]), **changes.get("set", {})}
    out.mkdir(parents=True)
    (out / "smoke.yaml").write_text(yaml.safe_dump({**sweep, **changes}, sort_keys=False))
    command = [sys.executable, "-m", "fedvsr", "tune", str(out / "smoke.yaml"), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
