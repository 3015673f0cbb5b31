"""The text of docs/reference/results.md, from the schemas of `fedvsr.records`."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from fedvsr.schemas import SCHEMA_VERSION, SCHEMAS, SCORES

_ROWS = {
    "runs": "the run: status, settings, versions, last scores",
    "rounds": "a round; round 0 is the network before training",
    "clients": "a client's part in a round",
    "evaluations": "a test clip in an evaluated round; one per client where each has a network",
    "partition": "a clip that a client trains on",
    "faults": "a failure during the run",
}
_INTRODUCTION = """\
# Result tables

`fedvsr report --columns` writes this page from the schemas in `fedvsr/schemas.py`, version
{version}. A run writes one parquet file per table into `results/<run id>/`; each write replaces the
whole file. A round's row is added when the round is trained. Its scores (`psnr_db`, `ssim`, rows in
`evaluations`) follow while the next round trains. Rows of the last seconds may still be in
`added.jsonl`, from where they move to the files: after 10 s or so, and when the run ends. While a
run works, the rows after a table's first 32,768 are in files like `clients-000001.parquet`. Every
file has these descriptions and units as metadata of its fields, and `schema_version` as metadata of
the file. When an older file is read, the columns that it lacks are null.
[Read results](../how-to/read-results.md) shows how to read the files with pandas, DuckDB, Polars
and Arrow; `fedvsr report` makes tables, figures and a page of them.
"""
_SAME = """\
Columns that end in `_s` are wall seconds. Two runs with the same configuration on the same kind of
machine may differ only in these columns, in `attempts`, `node`, `slot`, `device`, `versions`, the
times in `runs`, and the table `faults`.
"""
_KINDS = {"large_string": "string", "timestamp[us, tz=UTC]": "timestamp, UTC"}
# The first columns of every table of a run.
_SHARED = SCHEMAS["runs"].names[: SCHEMAS["runs"].names.index("name")]


def reference() -> str:
    """The reference page as Markdown."""
    lines = [
        _INTRODUCTION.format(version=SCHEMA_VERSION),
        "| file | a row is |",
        "|---|---|",
        *(f"| [`{name}.parquet`](#{name}) | {_ROWS[name]} |" for name in SCHEMAS),
        "",
        _SAME,
        "## Shared columns",
        "",
        "Every table begins with these.",
        "",
        *_table(SCHEMAS["runs"].field(name) for name in _SHARED),
    ]
    for name, schema in SCHEMAS.items():
        own = [field for field in schema if field.name not in _SHARED]
        lines += ["", f"## {name}", "", f"A row is {_ROWS[name]}.", "", *_table(own)]
    lines += [
        "",
        "## Scores of `fedvsr evaluate`",
        "",
        "`fedvsr evaluate --out FILE.parquet` writes this table, a row per clip.",
        "",
        *_table(SCORES),
        "",
        "A sweep also writes `trials.parquet`, a row per trial; `run_id` joins it to the tables of "
        "the runs. See [Sweeps](../how-to/sweeps.md).",
    ]
    return "\n".join(lines) + "\n"


def _table(fields: Iterable[pa.Field]) -> list[str]:
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for field in fields:
        metadata = {key.decode(): text.decode() for key, text in (field.metadata or {}).items()}
        kind = _KINDS.get(str(field.type), str(field.type))
        unit, description = metadata.get("unit", ""), metadata.get("description", "")
        lines.append(f"| `{field.name}` | {kind} | {unit} | {description} |")
    return lines
