"""Result tables: parquet files with versioned schemas, one folder a run.

    <run>/runs.parquet         one row: the run
    <run>/rounds.parquet       a row per round; round 0 is the network before training
    <run>/clients.parquet      a row per round and sampled client
    <run>/evaluations.parquet  a row per evaluated round and test clip
    <run>/partition.parquet    a row per clip that a client trains on
    <run>/faults.parquet       a row per failure that the run met

For the same configuration and seed on the same kind of machine, columns are the same bit for bit,
but for those that say when, where and by which release a run was made (`run_id`, `*_at`,
`executor`, `node`, `slot`, versions), wall seconds (`*_s`), restarts (`attempts`) and faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedvsr.errors import UserError
from fedvsr.files import replacing

# pyarrow imports pandas when `load_results` asks for it: `fedvsr list` and `show` do without.
if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 4

Row = Mapping[str, object]


def _field(name: str, kind: pa.DataType, description: str, unit: str = "") -> pa.Field:
    metadata = {"description": description, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, metadata=metadata)


_IDENTITY = [
    _field("run_id", pa.string(), "Names the run and its folder."),
    _field("config_hash", pa.string(), "Of all settings that can change a number, the seed too."),
    _field("seed", pa.int64(), "Root of every random draw."),
    _field("fedvsr_version", pa.string(), "Version of the program."),
    _field("git_commit", pa.string(), "Commit of its source tree; null for an installed wheel."),
    _field("num_overlap", pa.int64(), "Test clips that are also trained on; should be 0.", "1"),
]
_ROUND = _field("round_idx", pa.int64(), "Round, from 1; 0 is before any training.")


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema([*_IDENTITY, *fields], metadata={"schema_version": str(SCHEMA_VERSION)})


SCHEMAS: dict[str, pa.Schema] = {
    "runs": _schema(
        _field("name", pa.string(), "The configuration's name."),
        _field("status", pa.string(), "running, finished, failed or interrupted."),
        _field("model", pa.string(), "Network."),
        _field("algorithm", pa.string(), "Federated algorithm."),
        _field("executor", pa.string(), "ray or serial."),
        _field("num_params", pa.int64(), "Parameters of the network.", "1"),
        _field("num_rounds", pa.int64(), "Rounds asked for.", "1"),
        _field("num_clients", pa.int64(), "Registered clients.", "1"),
        _field("num_train_clips", pa.int64(), "Clips dealt to the clients.", "1"),
        _field("num_test_clips", pa.int64(), "Clips held out.", "1"),
        _field("psnr_db", pa.float64(), "Of the last evaluated round, mean of clips.", "dB"),
        _field("ssim", pa.float64(), "Of the last evaluated round, mean of clips.", "1"),
        _field("bicubic_psnr_db", pa.float64(), "Bicubic enlargement, mean of clips.", "dB"),
        _field("bicubic_ssim", pa.float64(), "Bicubic enlargement, mean of clips.", "1"),
        _field("started_at", pa.timestamp("us", "UTC"), "First start."),
        _field("updated_at", pa.timestamp("us", "UTC"), "When this row was written."),
        _field("device", pa.string(), "What clients trained on."),
        _field("versions", pa.string(), "Python and packages, as JSON."),
        _field("config", pa.string(), "The resolved configuration, as JSON."),
        _field("error", pa.string(), "Why a failed run failed."),
    ),
    "rounds": _schema(
        _ROUND,
        _field("num_sampled", pa.int64(), "Clients that trained.", "1"),
        _field("num_online", pa.int64(), "Clients that could be reached.", "1"),
        _field("num_rejected", pa.int64(), "Of those, clients whose update was refused.", "1"),
        _field("num_failed", pa.int64(), "Sampled clients that gave no update at all.", "1"),
        _field("loss", pa.float64(), "Local loss, mean of the accepted clients.", "1"),
        _field("vsr_loss", pa.float64(), "The network's own term of it.", "1"),
        _field("psnr_db", pa.float64(), "Mean of test clips; null if not evaluated.", "dB"),
        _field("ssim", pa.float64(), "Mean of test clips; null if not evaluated.", "1"),
        _field("download_bytes", pa.int64(), "Parameters sent to clients.", "B"),
        _field("upload_bytes", pa.int64(), "Parameters sent back.", "B"),
        _field("epsilon", pa.float64(), "Of differential privacy so far; null without.", "1"),
        _field("gap_s", pa.float64(), "Last update of the round before to first step.", "s"),
        _field("train_s", pa.float64(), "First task to last report.", "s"),
        _field("aggregate_s", pa.float64(), "Weighing and summing.", "s"),
        _field("evaluate_s", pa.float64(), "Scoring the test clips.", "s"),
    ),
    "clients": _schema(
        _ROUND,
        _field("client_id", pa.int64(), "The client, from 0."),
        _field("position", pa.int64(), "Place in the round's sample, from 0."),
        _field("num_samples", pa.int64(), "Training samples drawn.", "1"),
        _field("num_steps", pa.int64(), "Optimiser steps.", "1"),
        _field("loss", pa.float64(), "Mean local loss.", "1"),
        _field("vsr_loss", pa.float64(), "The network's own term of it.", "1"),
        _field("weight", pa.float64(), "Share in the aggregate; null where there is none.", "1"),
        _field("first_loss", pa.float64(), "Of the first batch, before any step.", "1"),
        _field("lr", pa.float64(), "Mean learning rate.", "1"),
        _field("update_norm", pa.float64(), "L2 distance from the global parameters.", "1"),
        _field("upload_bytes", pa.int64(), "Sent to the server, compressed if so set.", "B"),
        _field("rejected", pa.bool_(), "Its loss or update was not finite; it did not count."),
        _field("attempts", pa.int64(), "Starts; over 1 where its process died.", "1"),
        _field("node", pa.string(), "Ray node that trained it; null without Ray."),
        _field("slot", pa.int64(), "Slot that it took, from 0; null without Ray."),
        _field("started_s", pa.float64(), "From the round's first task to its own start.", "s"),
        _field("train_s", pa.float64(), "Local training.", "s"),
        _field("input_wait_s", pa.float64(), "Of it, waiting for samples.", "s"),
    ),
    "evaluations": _schema(
        _ROUND,
        _field("client_id", pa.int64(), "Whose network; null for the global one."),
        _field("clip_id", pa.string(), "Test clip."),
        _field("channel", pa.string(), "rgb, or y for BT.601 luma."),
        _field("num_frames", pa.int64(), "Frames scored.", "1"),
        _field("psnr_db", pa.float64(), "Mean of frames, no border crop.", "dB"),
        _field("ssim", pa.float64(), "Mean of frames, no border crop.", "1"),
        _field("lpips", pa.float64(), "LPIPS (AlexNet) on RGB; null unless asked for.", "1"),
        _field("bicubic_psnr_db", pa.float64(), "Bicubic enlargement of the same frames.", "dB"),
        _field("bicubic_ssim", pa.float64(), "Bicubic enlargement of the same frames.", "1"),
        _field("bicubic_lpips", pa.float64(), "Bicubic enlargement of the same frames.", "1"),
    ),
    "partition": _schema(
        _field("client_id", pa.int64(), "The client, from 0."),
        _field("clip_id", pa.string(), "A clip that it holds."),
        _field("label", pa.string(), "What kind of content it is."),
        _field("num_frames", pa.int64(), "Frames.", "1"),
        _field("height", pa.int64(), "Of the ground truth.", "px"),
        _field("width", pa.int64(), "Of the ground truth.", "px"),
        _field("sha256", pa.string(), "Of the ground truth's pixels; null for an old store."),
    ),
    "faults": _schema(
        _ROUND,
        _field("client_id", pa.int64(), "Whose work failed; null for the driver's."),
        _field("attempt", pa.int64(), "Which start of that work failed, from 1.", "1"),
        _field(
            "kind",
            pa.string(),
            "died, node_lost, out_of_memory, timeout, raised, not_finite, driver or checkpoint.",
        ),
        _field("final", pa.bool_(), "The work was given up; else it was started again."),
        _field("node", pa.string(), "Ray node; null if unknown."),
        _field("message", pa.string(), "What happened, in one line."),
        _field("traceback", pa.string(), "Where, if there is one."),
        _field("lost_s", pa.float64(), "Work lost.", "s"),
    ),
}
# The table that `fedvsr evaluate --out` writes: of no run, so it stands apart.
SCORES = pa.schema(
    [
        _field("checkpoint", pa.string(), "The run's id, or the file of weights."),
        _field("origin", pa.string(), "What the weights are, e.g. after which round."),
        _field("scale", pa.int64(), "Enlargement of height and width.", "1"),
        _field("device", pa.string(), "What computed."),
        _field("precision", pa.string(), "fp32, bf16 or fp16."),
        *(_IDENTITY[3:5]),
        *(f for f in list(SCHEMAS["evaluations"])[len(_IDENTITY) + 2 :]),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)
_TIMES = ("started_at", "updated_at")
_BY_ROUND = ("clients", "evaluations", "rounds", "faults")
_COUNTS = ("num_sampled", "num_rejected", "num_failed", "download_bytes", "upload_bytes")


class RunRecords:
    """Writes one run's tables. Each write replaces a file whole, on disk before it is seen."""

    def __init__(self, folder: Path, identity: Row) -> None:
        self._folder = folder
        self._identity = identity
        self._tables = {name: read_table(folder, name) for name in _BY_ROUND}

    def write_run(self, row: Row) -> None:
        """Replace the run's own row."""
        self._write("runs", self._table("runs", [row]))

    def write_partition(self, rows: Sequence[Row]) -> None:
        """Write which client holds which clip."""
        self._write("partition", self._table("partition", rows))

    def write_round(self, round_idx: int, row: Row, clients: Sequence[Row]) -> None:
        """Add a round's training; one written before is replaced, its scores too.

        A resumed run repeats the rounds after its checkpoint: their old rows stay until the new
        ones are there, so a finished round is never missing from the files. `rounds` goes last: a
        row in it says that the other tables have theirs.
        """
        self._replace("evaluations", round_idx, [])
        self._replace("clients", round_idx, clients)
        self._replace("rounds", round_idx, [row])

    def begin_round(self, round_idx: int, epsilon: float | None) -> None:
        """Make sure that a round which trained nobody, or in an earlier process, has a row."""
        if not pc.any(pc.equal(self._tables["rounds"]["round_idx"], round_idx)).as_py():
            zero = dict.fromkeys(_COUNTS, 0) | dict.fromkeys(("train_s", "aggregate_s"), 0.0)
            self._replace("rounds", round_idx, [{**zero, "epsilon": epsilon}])

    def write_scores(self, round_idx: int, means: Row, rows: Sequence[Row]) -> None:
        """Add the scores of a round that is there."""
        self._replace("evaluations", round_idx, rows)
        table = self._tables["rounds"]
        (row,) = table.filter(pc.equal(table["round_idx"], round_idx)).to_pylist()
        self._replace("rounds", round_idx, [{**row, **means}])

    def has_scores(self, round_idx: int) -> bool:
        """Whether a round's scores are written, or it has none because none were due."""
        table = self._tables["rounds"]
        rows = table.filter(pc.equal(table["round_idx"], round_idx))
        return bool(rows.num_rows) and rows["evaluate_s"].null_count == 0

    def add_fault(self, row: Row) -> None:
        """Add a failure. Those of rounds that are repeated stay: they happened."""
        self._tables["faults"] = pa.concat_tables(
            [self._tables["faults"], self._table("faults", [row])]
        )
        self._write("faults", self._tables["faults"])

    def _replace(self, name: str, round_idx: int, rows: Sequence[Row]) -> None:
        old = self._tables[name]
        before = old.filter(pc.less(old["round_idx"], round_idx))
        after = old.filter(pc.greater(old["round_idx"], round_idx))
        new = self._table(name, [{"round_idx": round_idx, **row} for row in rows])
        self._tables[name] = pa.concat_tables([before, new, after])
        if new.num_rows:
            self._write(name, self._tables[name])

    def last_evaluation(self) -> Row:
        """Means over the test clips of the last evaluated round, by column; empty if none."""
        last = last_evaluation(self._tables["evaluations"])
        return mean_scores(last) if last.num_rows else {}

    def _table(self, name: str, rows: Sequence[Row]) -> pa.Table:
        schema = SCHEMAS[name]
        full = [{**self._identity, **row} for row in rows]
        unknown = {key for row in full for key in row} - set(schema.names)
        assert not unknown, f"columns that {name} does not have: {sorted(unknown)}"
        return pa.Table.from_pylist(full, schema=schema)

    def _write(self, name: str, table: pa.Table) -> None:
        with replacing(self._folder / f"{name}.parquet") as aside:
            pq.write_table(table, aside)


def write_scores(path: Path, rows: Sequence[Row]) -> None:
    """Write a table of `SCORES`."""
    with replacing(path) as aside:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=SCORES), aside)


@dataclass(frozen=True)
class Results:
    """The tables of one run or more as pandas tables; a row names its run by `run_id`."""

    runs: pd.DataFrame
    rounds: pd.DataFrame
    clients: pd.DataFrame
    evaluations: pd.DataFrame
    partition: pd.DataFrame
    faults: pd.DataFrame


def load_results(folder: str | Path = "results") -> Results:
    """All runs at or below a folder as pandas tables, e.g. `results.rounds`.

    Each table holds the rows of all runs; `run_id` joins them. `run_folders` says which folders
    count.

    Raises:
        UserError: the folder does not exist, or was written by a newer version.
    """
    folders = run_folders(Path(folder))
    return Results(
        **{
            name: pa.concat_tables(
                [SCHEMAS[name].empty_table(), *(read_table(run, name) for run in folders)]
            ).to_pandas()
            for name in SCHEMAS
        }
    )


def run_folders(folder: Path) -> list[Path]:
    """The folders at or below `folder` that hold the tables of a run.

    A folder with the tables of several runs, such as results/study-small, counts only if it is
    `folder` itself.

    Raises:
        UserError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; `fedvsr run` writes to results/")
    return [
        path.parent
        for path in sorted(folder.rglob("runs.parquet"))
        if path.parent == folder or pq.read_metadata(path).num_rows == 1
    ]


def read_run(folder: Path) -> dict[str, Any] | None:
    """A run's own row, or None if the folder holds no run."""
    rows = read_runs(folder)
    return rows[0] if rows else None


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's `runs.parquet`: one, or several of collected tables; empty if none."""
    table = read_table(folder, "runs")
    # pyarrow loads pandas to convert times that have a zone, so the zone is added afterwards.
    for name in _TIMES:
        naive = table[name].cast(pa.timestamp("us"))
        table = table.set_column(table.schema.get_field_index(name), name, naive)
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row |= {name: row[name].replace(tzinfo=timezone.utc) for name in _TIMES if row[name]}
    return rows


def read_table(folder: Path, name: str) -> pa.Table:
    """A run's table in the newest schema: columns that an older file lacks are null.

    Returns:
        The table; empty if the run has no such file.

    Raises:
        UserError: a newer version wrote the file.
    """
    path, schema = folder / f"{name}.parquet", SCHEMAS[name]
    if not path.exists():
        return schema.empty_table()
    table = pq.ParquetFile(path).read()
    version = int((table.schema.metadata or {}).get(b"schema_version", b"0"))
    if not 1 <= version <= SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}; this fedvsr reads 1 to {SCHEMA_VERSION}"
        )
    columns = [
        table[field.name] if field.name in table.schema.names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def last_evaluation(evaluations: pa.Table) -> pa.Table:
    """The rows of the last evaluated round."""
    round_idx = evaluations["round_idx"]
    return evaluations.filter(pc.equal(round_idx, pc.max(round_idx)))


def mean_scores(evaluations: pa.Table) -> dict[str, float]:
    """Means over rows of `evaluations` by column: PSNR and SSIM, the network's and bicubic's."""
    names = ("psnr_db", "ssim", "bicubic_psnr_db", "bicubic_ssim")
    return {name: pc.mean(evaluations[name]).as_py() for name in names}
