"""What the tables and figures are made of: runs with their labels, and scores by test set.

**Runs.** Runs count as seeds of one another where their configurations differ in nothing but the
seed and in what changes no number (`ExperimentConfig.config_hash`). Where runs of one network,
method and heterogeneity differ in another setting, the method's name says in which:
`FedVSR (algorithm.alpha=2)`. Where that would be long, a short hash stands for the settings, and a
note says which they are.

**Test sets.** `evaluations.parquet` names clips. All four of REDS4 (000, 011, 015, 020) among a
run's clips are `REDS4`, all four of Vid4 (calendar, city, foliage, walk) are `Vid4`. Other clips of
`data.held_out` or of `data.videos` are `held-out`; what is left is called after the folders in
`data.test`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pandas as pd

from fedvsr.data.config import REDS4
from fedvsr.errors import UserError
from fedvsr.records import Results

VID4 = ("calendar", "city", "foliage", "walk")
METRICS = ("psnr_db", "ssim", "lpips")
METRIC_NAMES = {"psnr_db": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
UNITS = {"psnr_db": " dB", "ssim": "", "lpips": ""}
DECIMALS = {"psnr_db": 2, "ssim": 4, "lpips": 4}
# LPIPS is a distance.
SMALLER_IS_BETTER = ("lpips",)

# Not federated: what training on all clips at once, or on one's own alone, gives.
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
# Rows of a table stand in this order; what is not named comes between, by name.
_FIRST, _LAST = ("fedavg", "fedprox", "scaffold"), ("f_gla", "f_ala", "f_hifr", "fedvsr", *BOUNDS)
_MODELS = ("vrt", "rvrt", "iart")
_HETEROGENEITY = ("less", "more")
# As `ExperimentConfig.config_hash` leaves out, and the seed, and what has a label of its own.
_NO_NUMBER = (
    "seed",
    "name",
    "description",
    "checkpoint",
    "cluster",
    "data.cache_dir",
    "local.num_workers",
)
_LABELLED = ("model.name", "model.size", "algorithm.name", "data.partition")

# Of settings in a method's name; a figure's legend has room for little more.
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
    of `METRICS`, its value and bicubic's. The mean over clients where each has a network."""
    notes: tuple[str, ...]
    """What a reader of the report should know of the runs."""


def gather(results: Results) -> Gathered:
    """Label runs and scores of a folder's tables.

    Raises:
        UserError: there is no run.
    """
    if results.runs.empty:
        raise UserError("there are no runs to report on; `fedvsr run` makes one, `--help` says how")
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
    """The test set of each clip of a run; the rules are at the top of this module."""
    left, found = set(clip_ids), dict[str, str]()
    for name, known in (("REDS4", REDS4), ("Vid4", VID4)):
        if left >= set(known):
            found |= dict.fromkeys(known, name)
            left -= set(known)
    data = config.get("data", {})
    held_out = data.get("held_out") or []
    own = left & set(REDS4 if held_out == "reds4" else held_out)
    if data.get("videos"):
        own = left
    found |= dict.fromkeys(own, "held-out")
    names = [PurePath(path).name for path in data.get("test") or []]
    # A folder that is called after a set found above holds that one.
    names = [n for n in names if n.lower()[:4] not in {name.lower()[:4] for name in found.values()}]
    return found | dict.fromkeys(left - own, " + ".join(names) or "test")


def display(name: str) -> str:
    """A network's or method's name as papers write it."""
    return _NAMES.get(name, name)


def setting_name(heterogeneity: str) -> str:
    """A heterogeneity as a figure says it."""
    return f"{heterogeneity} heterogeneous" if heterogeneity in _HETEROGENEITY else heterogeneity


def method_order(methods: pd.DataFrame) -> list[str]:
    """Names of methods in the order of a table's rows, of a frame with `method`, `algorithm`."""
    pairs = methods[["method", "algorithm"]].drop_duplicates().itertuples(index=False)
    return [method for method, _ in sorted(pairs, key=lambda pair: (*_rank(pair[1]), pair[0]))]


def ordered(values: Iterable[str], kind: str) -> list[str]:
    """Distinct `model`s, kinds of `heterogeneity` or `testset`s, in the order of a table."""
    known: Sequence[str] = {
        "model": [display(name) for name in _MODELS],
        "heterogeneity": _HETEROGENEITY,
        "testset": ("REDS4", "Vid4"),
    }[kind]
    places = {name: i for i, name in enumerate(known)}
    # `VRT (small)` goes with `VRT`.
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
    """Of runs of one configuration and seed, the one that is furthest; of those, the newest."""
    runs = runs.assign(done=runs["status"] == "finished")
    runs = runs.sort_values(["done", "last_round", "updated_at"], kind="stable")
    kept = runs.drop_duplicates(["setting", "seed"], keep="last").sort_index()
    left_out = sorted(set(runs["run_id"]) - set(kept["run_id"]))
    notes = (
        f"{run_id} is left out: another run of the same configuration and seed is as far or further"
        for run_id in left_out
    )
    return kept.drop(columns="done").reset_index(drop=True), tuple(notes)


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
