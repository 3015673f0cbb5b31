"""What each column of the result tables is. `fedvsr.records` reads them.

Two runs with the same configuration and seed on the same kind of machine have bit-equal columns,
except for when, where and with which versions each was made (`run_id`, `*_at`, `executor`, `node`,
`slot`, versions), seconds and energy (`*_s`, `*_j`, `gpu_*`), restarts (`attempts`) and faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from fedvsr.checked import write_parquet
from fedvsr.metrics import BICUBIC, METRICS

SCHEMA_VERSION = 8

Row = Mapping[str, object]


def _field(name: str, kind: pa.DataType, description: str, unit: str = "") -> pa.Field:
    metadata = {"description": description, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, metadata=metadata)


_IDENTITY = [
    _field("run_id", pa.string(), "Name of the run and of its folder."),
    _field("config_hash", pa.string(), "Hash of all settings that change numbers, with the seed."),
    _field("seed", pa.int64(), "Root seed of every random draw."),
    _field("fedvsr_version", pa.string(), "Version of fedvsr."),
    _field("git_commit", pa.string(), "Commit of the source tree; null for an installed wheel."),
    _field("num_overlap", pa.int64(), "Test clips that are also trained on; should be 0.", "1"),
    _field(
        "num_same_video",
        pa.int64(),
        "Test clips cut from videos of which other parts are trained on.",
        "1",
    ),
]
_ROUND = _field("round_idx", pa.int64(), "Round, from 1; 0 is the network before training.")


# What a mean in `runs` and `rounds` is over.
_TEST_SET = _field(
    "test_set",
    pa.string(),
    "Test set of the scores in this row, the run's first; null in an older record, whose scores "
    "are means over all sets.",
)


def _scores(of: str, bicubic: str = "") -> list[pa.Field]:
    """A column for each metric and, with `bicubic`, for that of bicubic enlargement."""
    own = [
        _field(m.column, pa.float64(), f"{m.description}, {of}; null if not scored.", m.unit)
        for m in METRICS.values()
    ]
    others = [
        _field(f"{BICUBIC}{m.column}", pa.float64(), f"{m.label} of {bicubic}.", m.unit)
        for m in METRICS.values()
    ]
    return [*own, *(others if bicubic else [])]


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema([*_IDENTITY, *fields], metadata={"schema_version": str(SCHEMA_VERSION)})


SCHEMAS: dict[str, pa.Schema] = {
    "runs": _schema(
        _field("name", pa.string(), "Name of the configuration."),
        _field("status", pa.string(), "running, finished, failed or interrupted."),
        _field("model", pa.string(), "Network."),
        _field("algorithm", pa.string(), "Federated algorithm."),
        _field("executor", pa.string(), "ray or serial."),
        _field("weights_source", pa.string(), "Weights of others that it started from, or null."),
        _field("num_params", pa.int64(), "Parameters of the network.", "1"),
        _field(
            "num_shared_params",
            pa.int64(),
            "Those of them that are trained and travel; null in an older record.",
            "1",
        ),
        _field("num_rounds", pa.int64(), "Rounds that the configuration asks for.", "1"),
        _field("num_clients", pa.int64(), "Registered clients.", "1"),
        _field("num_train_clips", pa.int64(), "Clips that the clients train on.", "1"),
        _field("num_test_clips", pa.int64(), "Clips that are scored.", "1"),
        _TEST_SET,
        *_scores("of the last evaluation, mean over clips", "bicubic, mean over clips"),
        _field("started_at", pa.timestamp("us", "UTC"), "When the run was first started."),
        _field("updated_at", pa.timestamp("us", "UTC"), "When this row was written."),
        _field("device", pa.string(), "Device that clients trained on."),
        _field("versions", pa.string(), "Versions of Python and packages, as JSON."),
        _field("config", pa.string(), "The resolved configuration, as JSON."),
        _field("error", pa.string(), "Why a failed run failed."),
    ),
    "rounds": _schema(
        _ROUND,
        _field("num_sampled", pa.int64(), "Clients that trained.", "1"),
        _field("num_online", pa.int64(), "Clients that could be sampled.", "1"),
        _field("num_rejected", pa.int64(), "Sampled clients whose update was rejected.", "1"),
        _field("num_failed", pa.int64(), "Sampled clients that sent no update.", "1"),
        _field("num_upload_failures", pa.int64(), "Clients whose upload was lost.", "1"),
        _field("loss", pa.float64(), "Local loss, mean over the aggregated clients.", "1"),
        _field("vsr_loss", pa.float64(), "Part of `loss` that is the network's own loss.", "1"),
        _field("weights_hellinger", pa.float64(), "Hellinger distance from uniform weights.", "1"),
        _field("weights_deviation", pa.float64(), "Largest abs(K w - 1) of K weights w.", "1"),
        _TEST_SET,
        *_scores("mean over clips"),
        _field("download_bytes", pa.int64(), "Bytes sent to all clients.", "B"),
        _field("upload_bytes", pa.int64(), "Bytes sent back by all clients.", "B"),
        _field("epsilon", pa.float64(), "Differential privacy spent; null without noise.", "1"),
        _field(
            "gap_s",
            pa.float64(),
            "Idle time between the previous round's last update and this round's first step.",
            "s",
        ),
        _field("train_s", pa.float64(), "Time from the first task to the last report.", "s"),
        _field("aggregate_s", pa.float64(), "Time to weigh and sum the updates.", "s"),
        _field("aggregate_j", pa.float64(), "Energy of processors in `aggregate_s`.", "J"),
        _field("evaluate_s", pa.float64(), "Time to score the test clips.", "s"),
    ),
    "clients": _schema(
        _ROUND,
        _field("client_id", pa.int64(), "Client, from 0."),
        _field("position", pa.int64(), "Position in the round's sample, from 0."),
        _field("num_samples", pa.int64(), "Training samples drawn.", "1"),
        _field("num_steps", pa.int64(), "Optimiser steps.", "1"),
        _field("loss", pa.float64(), "Mean local loss.", "1"),
        _field("vsr_loss", pa.float64(), "Part of `loss` that is the network's own loss.", "1"),
        _field("inverse_loss", pa.float64(), "1 / `loss`: FedVSR's I_i.", "1"),
        _field("weight", pa.float64(), "Weight in the aggregate; null without weights.", "1"),
        _field("first_loss", pa.float64(), "Loss of the first batch, before any step.", "1"),
        _field("lr", pa.float64(), "Mean learning rate.", "1"),
        _field("update_norm", pa.float64(), "L2 distance from the global parameters.", "1"),
        _field("upload_bytes", pa.int64(), "Bytes sent to the server, compressed if set.", "B"),
        _field("rejected", pa.bool_(), "Whether it was left out; loss or update not finite."),
        _field("upload_failed", pa.bool_(), "Whether its upload was lost after its training."),
        _field("attempts", pa.int64(), "Starts of its task; over 1 after a failure.", "1"),
        _field("node", pa.string(), "Ray node that trained it; null without Ray."),
        _field("slot", pa.int64(), "Slot that it ran in, from 0; null without Ray."),
        _field("started_s", pa.float64(), "Time from the round's first task to its start.", "s"),
        _field("train_s", pa.float64(), "Time of local training.", "s"),
        _field("input_wait_s", pa.float64(), "Part of `train_s` spent waiting for samples.", "s"),
        _field("energy_j", pa.float64(), "Energy of its GPU or processors while it trained.", "J"),
        _field("gpu_memory_bytes", pa.int64(), "Peak GPU memory of its tensors.", "B"),
        _field("gpu_utilisation", pa.float64(), "Share of the time that its GPU computed.", "1"),
    ),
    "evaluations": _schema(
        _ROUND,
        _field("client_id", pa.int64(), "Client whose network is scored; null for the global one."),
        _field("test_set", pa.string(), "Test set of the clip: REDS4, Vid4, held-out or a folder."),
        _field("clip_id", pa.string(), "Test clip."),
        _field(
            "degradation",
            pa.string(),
            "How its low-resolution frames were made: bi, bd or a name of `data.degradation`; null "
            "if unknown, as in an older record.",
        ),
        _field("num_frames", pa.int64(), "Frames scored.", "1"),
        *_scores("mean over frames", "bicubic enlargement"),
    ),
    "partition": _schema(
        _field("client_id", pa.int64(), "Client, from 0."),
        _field("clip_id", pa.string(), "A clip that the client holds."),
        _field("label", pa.string(), "Kind of content, e.g. its action class."),
        _field(
            "degradation",
            pa.string(),
            "How its low-resolution frames were made; null in an older record.",
        ),
        _field("num_frames", pa.int64(), "Frames of the clip.", "1"),
        _field("height", pa.int64(), "Height of the ground truth.", "px"),
        _field("width", pa.int64(), "Width of the ground truth.", "px"),
        _field("sha256", pa.string(), "SHA-256 of the ground truth; null for an old store."),
    ),
    "faults": _schema(
        _ROUND,
        _field("client_id", pa.int64(), "Client whose work failed; null for the driver."),
        _field("attempt", pa.int64(), "Attempt that failed, from 1.", "1"),
        _field(
            "kind",
            pa.string(),
            "died, node_lost, out_of_memory, timeout, raised, not_finite, driver, checkpoint, "
            "table or logger.",
        ),
        _field("final", pa.bool_(), "Whether the work was given up; otherwise it was retried."),
        _field("node", pa.string(), "Ray node; null if unknown."),
        _field("message", pa.string(), "What happened, in one line."),
        _field("traceback", pa.string(), "Traceback, if any."),
        _field("lost_s", pa.float64(), "Time of the work that was lost.", "s"),
    ),
}
# The table that `fedvsr evaluate --out` writes. It belongs to no run, so it is not in SCHEMAS.
SCORES = pa.schema(
    [
        _field("checkpoint", pa.string(), "Id of the run, or the file of weights."),
        _field("origin", pa.string(), "What the weights are, e.g. those after round 20."),
        _field("scale", pa.int64(), "Enlargement of height and width.", "1"),
        _field("device", pa.string(), "Device that computed."),
        _field("precision", pa.string(), "fp32, bf16 or fp16."),
        *(_IDENTITY[3:5]),
        *(f for f in list(SCHEMAS["evaluations"])[len(_IDENTITY) + 2 :]),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)
GROWING = ("clients", "evaluations", "rounds", "faults")
"""Tables whose newest rows may be in the journal."""


def write_scores(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of `SCORES` to a parquet file."""
    write_parquet(path, pa.Table.from_pylist([dict(row) for row in rows], schema=SCORES))
