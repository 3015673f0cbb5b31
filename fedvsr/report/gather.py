"""Label runs and scores, as input to the tables and figures.

**Runs.** Runs are seeds of the same method if their configurations differ only in the seed and in
settings that change no number (`ExperimentConfig.config_hash`). If runs of one network, method and
heterogeneity differ in another setting, the method's name includes it:
`FedVSR (algorithm.alpha=2)`. If that is long, the name has a short hash of these settings, and a
note lists them.

**Test sets.** `evaluations.parquet` names clips. If a run has all four clips of REDS4 (000, 011,
015, 020) they are the test set `REDS4`, and all four of Vid4 (calendar, city, foliage, walk) are
`Vid4`. Other clips of `data.held_out` or `data.videos` are `held-out`. The remaining clips are
named after the folders in `data.test`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pandas as pd

from fedvsr.data.config import REDS4, is_named
from fedvsr.errors import UserError
from fedvsr.records import Results

VID4 = ("calendar", "city", "foliage", "walk")
METRICS = ("psnr_db", "ssim", "lpips")
METRIC_NAMES = {"psnr_db": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
UNITS = {"psnr_db": " dB", "ssim": "", "lpips": ""}
DECIMALS = {"psnr_db": 2, "ssim": 4, "lpips": 4}
# LPIPS is a distance.
SMALLER_IS_BETTER = ("lpips",)

# Not federated: training on all clips at once, and each client on its own clips alone.
BOUNDS = ("centralized", "local")
ABLATION = ("fedavg", "f_hifr", "f_ala", "f_gla", "fedvsr")
_NAMES = {
    "vrt": "VRT",
    "rvrt": "RVRT",
    "iart": "IART",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fednova": "FedNova",
    "qffl": "q-FFL",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
    "fedadagrad": "FedAdagrad",
    "fedavgm": "FedAvgM",
    "fedmedian": "median",
    "trimmed_mean": "trimmed mean",
    "krum": "Krum",
    "fisher": "Fisher merging",
    "moon": "MOON",
    "fedsr": "FedSR",
    "fedvsr": "FedVSR",
    "f_hifr": "F-HiFr",
    "f_ala": "F-ALA",
    "f_gla": "F-GLA",
}
# The order of a table's rows; other algorithms come between these, by name.
_FIRST, _LAST = ("fedavg", "fedprox", "scaffold"), ("f_gla", "f_ala", "f_hifr", "fedvsr", *BOUNDS)
_MODELS = ("vrt", "rvrt", "iart")
_HETEROGENEITY = ("less", "more")
# The seed, and the settings that `ExperimentConfig.config_hash` leaves out.
_NO_NUMBER = (
    "seed",
    "name",
    "description",
    "checkpoint",
    "cluster",
    "data.cache_dir",
    "local.num_workers",
)
# Settings with a label of their own in a table.
_LABELLED = ("model.name", "model.size", "algorithm.name", "data.partition")

# Longest list of settings in a method's name; a figure's legend has little room.
_MOST_CHARACTERS = 60

GROUP = ["model", "heterogeneity", "testset"]


@dataclass(frozen=True)
class Gathered:
    """Labelled runs and their scores."""

    runs: pd.DataFrame
    """A row per run: `run_id, model, method, algorithm, heterogeneity, seed, status, num_rounds,
    last_round` (the last one evaluated; 0 is before training), `setting`."""
    scores: pd.DataFrame
    """A row per run, round and clip, with the labels of `runs`, `testset`, `clip_id` and, for each
    of `METRICS`, its value and bicubic's. Means over clients if each has a network."""
    notes: tuple[str, ...]
    """Sentences on the runs for the reader of the report."""


def gather(results: Results) -> Gathered:
    """Label runs and scores of a folder's tables.

    Raises:
        UserError: the tables hold no run.
    """
    if results.runs.empty:
        raise UserError(
            "there are no runs to report on; `fedvsr run` makes one, see `fedvsr run --help`"
        )
    runs, notes = _labelled(results)
    columns = [*METRICS, *(f"bicubic_{metric}" for metric in METRICS)]
    by_clip = mean_scores(results.evaluations, ["run_id", "round_idx", "clip_id"], columns)
    scores = by_clip.merge(runs, on="run_id", how="inner")
    configs = dict(zip(results.runs["run_id"], results.runs["config"], strict=True))
    sets = {
        (run_id, clip_id): name
        for run_id, rows in scores.groupby("run_id")
        for clip_id, name in testsets(_settings(configs[run_id]), rows["clip_id"].unique()).items()
    }
    keys = zip(scores["run_id"], scores["clip_id"], strict=True)
    scores["testset"] = pd.Series([sets[key] for key in keys], index=scores.index, dtype=object)
    return Gathered(runs, scores, notes)


def testsets(config: Mapping[str, Any], clip_ids: Iterable[str]) -> dict[str, str]:
    """The test set of each clip of a run, by the rules at the top of this module."""
    remaining, sets = set(clip_ids), dict[str, str]()
    for name, known in (("REDS4", REDS4), ("Vid4", VID4)):
        if remaining >= set(known):
            sets |= dict.fromkeys(known, name)
            remaining -= set(known)
    data = config.get("data", {})
    held_out = data.get("held_out") or []
    names = REDS4 if held_out == "reds4" else held_out
    own = {clip_id for clip_id in remaining if any(is_named(clip_id, name) for name in names)}
    if data.get("videos"):
        own = remaining
    sets |= dict.fromkeys(own, "held-out")
    names = [PurePath(path).name for path in data.get("test") or []]
    # The clips of a folder such as `vid4_x4` are in their set already.
    names = [n for n in names if n.lower()[:4] not in {name.lower()[:4] for name in sets.values()}]
    return sets | dict.fromkeys(remaining - own, " + ".join(names) or "test")


def display(name: str) -> str:
    """A network's or method's name as papers print it."""
    return _NAMES.get(name, name)


def setting_name(heterogeneity: str) -> str:
    """A kind of heterogeneity as figures name it."""
    return f"{heterogeneity} heterogeneous" if heterogeneity in _HETEROGENEITY else heterogeneity


def method_order(methods: pd.DataFrame) -> list[str]:
    """Names of the methods in `methods` (`method`, `algorithm`) in the order of a table's rows."""
    pairs = methods[["method", "algorithm"]].drop_duplicates().itertuples(index=False)
    return [method for method, _ in sorted(pairs, key=lambda pair: (*_rank(pair[1]), pair[0]))]


def ordered(values: Iterable[str], kind: str) -> list[str]:
    """Distinct names of a kind (`model`, `heterogeneity`, `testset`) in the order of a table."""
    known: Sequence[str] = {
        "model": [display(name) for name in _MODELS],
        "heterogeneity": _HETEROGENEITY,
        "testset": ("REDS4", "Vid4"),
    }[kind]
    places = {name: i for i, name in enumerate(known)}
    # `VRT (small)` is next to `VRT`.
    return sorted(set(values), key=lambda v: (places.get(v.split(" (")[0], len(known)), v))


def mean_scores(scores: pd.DataFrame, keys: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Means over rows with equal `keys`: a row per combination of keys, and its `columns`."""
    return scores.groupby([*keys], as_index=False)[[*columns]].mean()


def last_scores(gathered: Gathered) -> pd.DataFrame:
    """Scores of each run's last evaluated round."""
    scores = gathered.scores
    return scores[scores["round_idx"] == scores["last_round"]]


def _rank(algorithm: str) -> tuple[int, str]:
    if algorithm in _FIRST:
        return _FIRST.index(algorithm), ""
    if algorithm in _LAST:
        return 100 + _LAST.index(algorithm), ""
    return 50, algorithm


def _labelled(results: Results) -> tuple[pd.DataFrame, tuple[str, ...]]:
    last = results.evaluations.groupby("run_id")["round_idx"].max()
    flat = {
        run_id: _flat(_settings(config))
        for run_id, config in zip(results.runs["run_id"], results.runs["config"], strict=True)
    }
    rows = [
        {
            "run_id": row["run_id"],
            "model": _model_label(row["model"], flat[row["run_id"]].get("model.size")),
            "algorithm": row["algorithm"],
            "heterogeneity": _heterogeneity(flat[row["run_id"]]),
            "seed": row["seed"],
            "status": row["status"],
            "num_rounds": row["num_rounds"],
            "last_round": int(last.get(row["run_id"], 0)),
            "updated_at": row["updated_at"],
            "setting": json.dumps(flat[row["run_id"]], sort_keys=True),
        }
        for row in results.runs.to_dict("records")
    ]
    runs, notes = _without_repeats(pd.DataFrame(rows))
    methods, explained = dict[str, str](), dict[str, None]()
    for key, alike in runs.groupby(["model", "algorithm", "heterogeneity"]):
        differing = _differing([flat[run_id] for run_id in alike["run_id"]])
        for run_id in alike["run_id"]:
            own = ", ".join(f"{key}={flat[run_id].get(key)}" for key in differing)
            name = f" ({own})" if own else ""
            if len(own) > _MOST_CHARACTERS:
                name = f" ({hashlib.sha256(own.encode()).hexdigest()[:6]})"
                explained[f"{key[0]}, {display(str(key[1]))}{name}: {own}"] = None
            methods[run_id] = display(str(key[1])) + name
    runs["method"] = runs["run_id"].map(methods)
    return runs.drop(columns="updated_at"), (*notes, *explained)


def _without_repeats(runs: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep the most advanced run of each configuration and seed; of equals, the newest."""
    runs = runs.assign(done=runs["status"] == "finished")
    runs = runs.sort_values(["done", "last_round", "updated_at"], kind="stable")
    unique = runs.drop_duplicates(["setting", "seed"], keep="last").sort_index()
    left_out = sorted(set(runs["run_id"]) - set(unique["run_id"]))
    notes = (
        f"{run_id} is left out: another run of the same configuration and seed is at least as far"
        for run_id in left_out
    )
    return unique.drop(columns="done").reset_index(drop=True), tuple(notes)


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = sorted(set().union(*settings) - set(_LABELLED))
    return [k for k in keys if len({json.dumps(own.get(k)) for own in settings}) > 1]


def _settings(config: str | None) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(config) if config else {}
    return settings


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = dict[str, Any]()
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in _NO_NUMBER:
            continue
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _model_label(model: str, size: str | None) -> str:
    return display(model) if size in (None, "paper") else f"{display(model)} ({size})"


def _heterogeneity(flat: Mapping[str, Any]) -> str:
    partition = str(flat.get("data.partition", "less"))
    if partition in ("dirichlet", "quantity"):
        return f"{partition} {flat.get('data.alpha'):g}"
    return partition
