"""Label runs and scores, as input to the tables and figures.

**Runs.** Runs are seeds of the same method if their configurations differ only in the seed and in
settings that change no number (`ExperimentConfig.config_hash`). If runs of one network and method
differ in another setting, the method's name includes it: `FedVSR (algorithm.alpha=2)`. If that is
long, the name has a short hash of these settings, and a note lists them. Of two runs with different
heterogeneity only the data may differ, or else they are different methods too: a row of a table
must not show the effect of other settings as one of heterogeneity.

`fedvsr.report.testsets` names the test sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedvsr.data.testsets import PUBLISHED
from fedvsr.errors import UserError
from fedvsr.metrics import METRICS, columns
from fedvsr.records import Results
from fedvsr.report.testsets import label_testsets

# Metrics that a report shows only if it is asked to, or a record lacks the other channel.
_OF_LUMA = {"psnr_y_db": "psnr_db", "ssim_y": "ssim"}

# Not federated: training on all clips at once, and each client on its own clips alone.
BOUNDS = ("centralized", "local")
# FedVSR as the preprint and as the published paper describe it. Neither is a rival of the other.
VARIANTS = ("fedvsr", "fedvsr_published")
PARTS = ("f_hifr", "f_ala", "f_gla")
"""Parts of FedVSR alone."""
_NAMES = {
    "vrt": "VRT",
    "rvrt": "RVRT",
    "iart": "IART",
    "basicvsrpp": "BasicVSR++",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "fednova": "FedNova",
    "qffl": "q-FFL",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
    "fedadagrad": "FedAdagrad",
    "fedavgm": "FedAvgM",
    "fedmedian": "FedMedian",
    "trimmed_mean": "trimmed mean",
    "krum": "Krum",
    "fisher": "Fisher merging",
    "moon": "MOON",
    "fedsr": "FedSR",
    "fedper": "FedPer",
    "fedrep": "FedRep",
    "fedbn": "FedBN",
    "ditto": "Ditto",
    "feddisco": "FedDisco",
    "fedmri": "FedMRI",
    "fedpr": "FedPR",
    "fedvsr": "FedVSR",
    "fedvsr_published": "FedVSR (published)",
    "f_hifr": "F-HiFr",
    "f_ala": "F-ALA",
    "f_gla": "F-GLA",
}
_ADAPTERS = {"lora": "LoRA", "prompt": "prompts"}
# The order of a table's rows; other algorithms come between these, by name.
_FIRST = ("fedavg", "fedprox", "scaffold", "fedmedian")
_LAST = ("f_gla", "f_ala", "f_hifr", *VARIANTS, *BOUNDS)
_MODELS = ("vrt", "rvrt", "iart", "basicvsrpp")
_HETEROGENEITY = ("less", "more")
# The seed, and the settings that `ExperimentConfig.config_hash` leaves out.
_NO_NUMBER = (
    "seed",
    "name",
    "description",
    "checkpoint",
    "cluster",
    "on_finish",
    "data.cache_dir",
    "local.num_workers",
    "evaluation.metric_weights",
)
# Settings with a label of their own in a table: of rows, columns and test sets.
_LABELLED = (
    "model.name",
    "model.size",
    "model.adapter",
    "model.adapter.kind",
    "algorithm.name",
    "data.partition",
    "data.scale",
    "evaluation.crop",
    "evaluation.luma",
    "evaluation.max_frames",
    "evaluation.lpips",
    "evaluation.metrics",
)
# Settings in which runs of different heterogeneity may differ: what data is dealt.
_DATA = (
    *("data.alpha", "data.videos", "data.train", "data.owners", "data.test", "data.held_out"),
    *("data.degradation", "data.deal_degradations", "data.degradation_alpha"),
)
_DEGRADATION = "data.degradation"

# Longest list of settings in a method's name; a figure's legend has little room.
_MOST_CHARACTERS = 60

GROUP = ["model", "heterogeneity", "testset"]


@dataclass(frozen=True)
class Gathered:
    """Labelled runs and their scores."""

    runs: pd.DataFrame
    """A row per run: `run_id, model, method, algorithm, heterogeneity, seed, status, num_rounds,
    last_round` (the last one evaluated; 0 is before training), `setting` (its settings by dotted
    key, as JSON), `named` (the keys of those in its method's name, separated by spaces)."""
    scores: pd.DataFrame
    """A row per run, round and clip, with the labels of `runs`, `testset`, `clip_id` and, for each
    metric, its value and bicubic's. Means over clients if each has a network."""
    notes: tuple[str, ...]
    """Sentences on the runs for the reader of the report."""
    metrics: tuple[str, ...]
    """The metrics to show, in the order of tables."""


def gather(results: Results, metrics: Sequence[str] | None = None) -> Gathered:
    """Label runs and scores of a folder's tables.

    Args:
        results: the tables.
        metrics: the metrics to show. Default: all that were scored but luma's, which are shown if
            a run has no scores of RGB.

    Raises:
        UserError: the tables hold no run, or no score of a metric that is asked for.
    """
    if results.runs.empty:
        raise UserError(
            "there are no runs to report on; `fedvsr run` makes one, see `fedvsr run --help`"
        )
    if results.evaluations.empty:
        raise UserError("no run has a score yet; the first follows the start of a run")
    runs, notes = _labelled(results)
    by_clip = mean_scores(results.evaluations, ["run_id", "round_idx", "clip_id"], columns())
    scores = by_clip.merge(runs, on="run_id", how="inner")
    configs = dict(zip(results.runs["run_id"], results.runs["config"].map(_settings), strict=True))
    counted = results.evaluations[results.evaluations["run_id"].isin(runs["run_id"])]
    sets, explained = label_testsets(counted, configs)
    keys = zip(scores["run_id"], scores["clip_id"], strict=True)
    scores["testset"] = pd.Series([sets[key] for key in keys], index=scores.index, dtype=object)
    return Gathered(runs, scores, (*notes, *explained), _shown(scores, metrics))


def _shown(scores: pd.DataFrame, wanted: Sequence[str] | None) -> tuple[str, ...]:
    scored = [name for name in METRICS if scores[name].notna().any()]
    if wanted is None:
        return tuple(
            name
            for name in scored
            if name not in _OF_LUMA or (scores[name].notna() & scores[_OF_LUMA[name]].isna()).any()
        )
    if missing := [name for name in wanted if name not in scored]:
        raise UserError(f"no run has scores of {missing[0]}; choose from: {', '.join(scored)}")
    return tuple(name for name in METRICS if name in wanted)


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
        "testset": tuple(PUBLISHED),
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
        run_id: flat_settings(config)
        for run_id, config in zip(results.runs["run_id"], results.runs["config"], strict=True)
    }
    rows = [
        {
            "run_id": row["run_id"],
            "model": _model_label(row["model"], flat[row["run_id"]].get("model.size")),
            "algorithm": row["algorithm"],
            "kind": _kind(row["algorithm"], flat[row["run_id"]]),
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
    methods, named = dict[str, str](), dict[str, str]()
    explained = dict[str, None]()
    for (model, kind), row in runs.groupby(["model", "kind"]):
        everywhere = _differing([flat[run_id] for run_id in row["run_id"]], _DATA)
        for _, alike in row.groupby("heterogeneity"):
            within = _differing([flat[run_id] for run_id in alike["run_id"]])
            keys = sorted({*everywhere, *within})
            for run_id in alike["run_id"]:
                own = ", ".join(f"{key}={flat[run_id].get(key)}" for key in keys)
                name = f" ({own})" if own else ""
                if len(own) > _MOST_CHARACTERS:
                    name = f" ({hashlib.sha256(own.encode()).hexdigest()[:6]})"
                    explained[f"{model}, {kind}{name}: {own}"] = None
                methods[run_id] = f"{kind}{name}"
                named[run_id] = " ".join(keys)
    runs["method"], runs["named"] = (runs["run_id"].map(of_run) for of_run in (methods, named))
    notes = (*notes, *explained, *_unequal(runs, flat))
    return runs.drop(columns=["updated_at", "kind"]), notes


def _kind(algorithm: str, flat: Mapping[str, Any]) -> str:
    """An algorithm's name as papers print it, with what is trained instead of the weights."""
    adapter = _ADAPTERS.get(flat.get("model.adapter.kind", ""))
    # FedPR is nothing without prompts.
    return display(algorithm) + (f" with {adapter}" if adapter and algorithm != "fedpr" else "")


def _unequal(runs: pd.DataFrame, flat: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A warning for each column whose methods differ in settings that no method's name shows."""
    competing = runs[~runs["algorithm"].isin(BOUNDS)]
    for (model, heterogeneity), column in competing.groupby(["model", "heterogeneity"]):
        for key in _differing([flat[run_id] for run_id in column["run_id"]]):
            of_value = dict[str, list[str]]()
            for kind, own in column.groupby("kind"):
                for value in sorted({str(flat[run_id].get(key)) for run_id in own["run_id"]}):
                    of_value.setdefault(value, []).append(str(kind))
            named = [name for names in of_value.values() for name in names]
            if not key.startswith("algorithm.") and len(named) == len(set(named)):
                text = ", ".join(f"{v} with {' and '.join(names)}" for v, names in of_value.items())
                yield f"{model}, {heterogeneity}: not only the methods differ, {key} is {text}"


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


def _differing(settings: Sequence[Mapping[str, Any]], but: Sequence[str] = ()) -> list[str]:
    keys = sorted(set().union(*settings) - {*_LABELLED, *but})
    return [k for k in keys if len({json.dumps(own.get(k)) for own in settings}) > 1]


def flat_settings(config: str | None) -> dict[str, Any]:
    """A run's settings that can change a number, but the seed, by dotted key.

    Args:
        config: its configuration as JSON, as its tables have it; None in those of old versions.
    """
    return _flat(_settings(config))


def _settings(config: str | None) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(config) if config else {}
    return settings


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = dict[str, Any]()
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in _NO_NUMBER:
            continue
        if name == "data.owners" and value:
            # One setting, without the labels of nodes, which change no number.
            flat[name] = {
                owner: {k: v for k, v in own.items() if k != "nodes"}
                for owner, own in value.items()
            }
            continue
        whole = not isinstance(value, Mapping) or name == _DEGRADATION
        flat |= {name: value} if whole else _flat(value, f"{name}.")
    return flat


def _model_label(model: str, size: str | None) -> str:
    return display(model) if size in (None, "paper") else f"{display(model)} ({size})"


def _heterogeneity(flat: Mapping[str, Any]) -> str:
    partition = str(flat.get("data.partition", "less"))
    if partition in ("dirichlet", "quantity"):
        partition = f"{partition} {flat.get('data.alpha'):g}"
    several = flat.get(_DEGRADATION)
    if isinstance(several, Mapping) and len(several) > 1:
        dealt = str(flat.get("data.deal_degradations"))
        if dealt == "dirichlet":
            dealt = f"dirichlet {flat.get('data.degradation_alpha'):g}"
        partition += f", degradations by {dealt}"
    return partition
