"""A run's clients: in the round under way, in the slots of the last round, and over all rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedvsr.dashboard.eventlog import Event
from fedvsr.dashboard.values import finite
from fedvsr.data.owners import NOBODY, Owners
from fedvsr.errors import UserError
from fedvsr.federation.sampling import FederationConfig, sample_cohort

Json = dict[str, Any]

# Rows of the table of clients; a run may have 100,000.
_MOST_CLIENTS = 300


def under_way(
    round_idx: int, config: Json, partition: pa.Table, num_clients: int, events: Sequence[Event]
) -> Json:
    """The round that trains now: what its clients' events say, and who is drawn.

    Args:
        round_idx: the round.
        config: the run's configuration.
        partition: the table `partition`.
        num_clients: registered clients.
        events: the newest events.
    """
    begun = [i for i, event in enumerate(events) if event.get("event") == "RunStarted"]
    # What a process did that died in this round is done again.
    events = events[begun[-1] :] if begun else events
    of_round = [event for event in events if event.get("round_idx") == round_idx]
    states = dict[int, Json]()
    for client_id in drawn(round_idx, config, partition, num_clients) or ():
        states[client_id] = {"client_id": client_id, "state": "training or waiting"}
    num_sampled = len(states) or None
    for event in of_round:
        known = event.get("client_id")
        if not isinstance(known, int):
            continue
        own = states.setdefault(known, {"client_id": known, "state": ""})
        if event.get("event") == "ClientFinished":
            num_sampled = event.get("num_sampled")
            own |= {
                "state": "finished",
                "train_s": finite(event.get("train_s")),
                "loss": finite(event.get("loss")),
            }
        elif event.get("event") == "Fault":
            what = "given up" if event.get("final") else "retried"
            own["state"] = f"{event.get('kind')}, {what}"
    finished = sum(own["state"] == "finished" for own in states.values())
    shown = sorted(states.values(), key=lambda own: own["state"] == "finished")[:_MOST_CLIENTS]
    return {
        "round_idx": round_idx,
        "num_finished": finished,
        "num_sampled": num_sampled,
        "clients": shown,
    }


def drawn(round_idx: int, config: Json, partition: pa.Table, num_clients: int) -> list[int] | None:
    """The clients of a round, drawn as the run draws them; None if only the run can know."""
    grouped = partition.group_by("client_id").aggregate([("num_frames", "sum")])
    grouped = grouped.sort_by("client_id")
    # Pooled training has one client, and a store of an older version no partition.
    if not np.array_equal(grouped["client_id"].to_numpy(), np.arange(num_clients)):
        return None
    try:
        federation = FederationConfig.model_validate(config["federation"])
        if not federation.knows_cohorts:
            return None
        sizes = grouped["num_frames_sum"].to_numpy()
        return sample_cohort(federation, config["seed"], round_idx, sizes, {}).client_ids
    except (UserError, ValueError, KeyError):
        # The configuration is of another version.
        return None


def slots(
    rounds: Sequence[Json], clients: pa.Table, config: Json, partition: pa.Table, num_clients: int
) -> Json | None:
    """Who trained where in the last recorded round, and who did not; None before the first."""
    trained = [row for row in rounds if row["round_idx"]]
    if not trained:
        return None
    row = trained[-1]
    # A table is compared with a value of its own: pyarrow loads pandas for one of Python.
    last = pc.max(clients["round_idx"])
    own = clients.filter(pc.equal(clients["round_idx"], last)) if last.is_valid else clients
    names = ("client_id", "slot", "node", "started_s", "train_s", "loss", "attempts")
    bars = own.select([*names, "rejected", "upload_failed"]).to_pylist()
    if not last.is_valid or last.as_py() != row["round_idx"]:
        bars = []
    reported = {bar["client_id"] for bar in bars}
    cohort = drawn(row["round_idx"], config, partition, num_clients) or () if bars else ()
    counts = ("num_sampled", "num_online", "num_failed", "num_rejected", "num_upload_failures")
    return {
        "round_idx": row["round_idx"],
        "train_s": finite(row["train_s"]),
        **{name: row[name] for name in counts},
        "absent": [client_id for client_id in cohort if client_id not in reported],
        "bars": [{k: finite(v) for k, v in bar.items()} for bar in bars[:_MOST_CLIENTS]],
    }


def overview(clients: pa.Table, faults: pa.Table, owners: Owners = NOBODY) -> Json:
    """Each client that has trained or failed, with its owner, rounds, times and last loss."""
    if not len(clients) and not len(faults):
        return {"num": 0, "rows": []}
    ordered = clients.sort_by([("client_id", "ascending"), ("round_idx", "ascending")])
    grouped = ordered.group_by("client_id", use_threads=False).aggregate(
        [("round_idx", "count"), ("round_idx", "max"), ("train_s", "mean"), ("loss", "last")]
    )
    rows = {
        row["client_id"]: {
            "client_id": row["client_id"],
            "rounds": row["round_idx_count"],
            "last_round": row["round_idx_max"],
            "mean_s": finite(row["train_s_mean"]),
            "loss": finite(row["loss_last"]),
            "faults": 0,
        }
        for row in grouped.to_pylist()
    }
    counts = faults.group_by("client_id", use_threads=False).aggregate([("round_idx", "count")])
    for row in counts.to_pylist():
        if row["client_id"] is None:
            continue
        empty = {"client_id": row["client_id"], "rounds": 0, "last_round": None}
        own = rows.setdefault(
            row["client_id"], {**empty, "mean_s": None, "loss": None, "faults": 0}
        )
        own["faults"] = row["round_idx_count"]
    shown = [rows[key] for key in sorted(rows)[:_MOST_CLIENTS]]
    if owners:
        shown = [{**row, "owner": owners.of(row["client_id"])} for row in shown]
    return {"num": len(rows), "rows": shown}
